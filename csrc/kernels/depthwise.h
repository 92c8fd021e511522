/* Depthwise convolution on contiguous planes (N, C, H, W), which so need no transposition: a vector holds
 * neighbouring pixels of a row.
 *
 *     for each plane of an image, band of output rows:                               shared among threads
 *         copy the input rows that the band reads, with zeros around them            kept in L2
 *         for each row, for each phase of it (see product.h), for each block of 8 vectors:
 *             sum over the taps: weight * neighbours in the copy
 *
 * Of a row that is read with a stride the pixels of each remainder lie together, so a tap reads neighbours for every
 * stride and dilation. Backward-data is the same nest over dx with the axes reversed; where a row has several phases,
 * they are made one after another and interleaved. Backward-weights runs over the same copies:
 *
 *     for each plane of an image:                                                    shared among threads
 *         for each band: copy; for up to 9 taps: sum over the band's pixels: dy * neighbours in the copy
 *     dw, db = sums over the images, from the first to the last                      shared among threads */

enum { BAND_FLOATS = 16384, ROW_VECTORS = 8, SUM_TAPS = 9, SUM_VECTORS = 256 };

/* A tap of a phase: what it adds to where a row's copy is read, its number, its weight. */
typedef struct { int64_t place, tap; float w; } plane_tap;

typedef struct {
    int64_t taps, step, run, row;                /* copied rows: remainders, pixels of each, floats in all */
    int64_t bands, rows;                         /* of a plane; copied rows of a band */
    int64_t phases_v, phases_h;
    span h;                                      /* the columns read */
    int64_t taps_at, ends_at, axes_at, sums_at, line_at, copy_at, worker_bytes;   /* in a thread's memory */
} depthwise_layout;

/* The positions that outputs o0..o1 read, and perhaps some between or beside them. */
static span read_by(const axis *a, int64_t o0, int64_t o1)
{
    const int64_t reach = (a->taps - 1) * a->dilation;
    const int64_t first = a->backward ? floor_div(o0 + a->pad - reach, a->stride) : o0 * a->stride - a->pad;
    const int64_t last = a->backward ? floor_div(o1 - 1 + a->pad, a->stride) : (o1 - 1) * a->stride + reach - a->pad;
    return (span){ first, 1, last + 1 - first };
}

static depthwise_layout lay_out_planes(const grouped *g)
{
    const axis *v = &g->v, *h = &g->h;
    depthwise_layout s = { .taps = v->taps * h->taps, .h = read_by(h, 0, h->out) };
    s.step = h->backward ? 1 : h->stride;
    s.run = ceil_div(s.h.count, s.step);
    s.row = s.step * s.run;
    const int64_t reach = (v->taps - 1) * v->dilation, most = BAND_FLOATS / s.row;
    const int64_t fit = v->backward ? (most - 2) * v->stride - reach : (most - 1 - reach) / v->stride;
    s.bands = ceil_div(v->out, MAX(fit, LEAST_ROWS));
    const int64_t longest = ceil_div(v->out, s.bands);
    s.rows = v->backward ? (longest + reach) / v->stride + 2 : longest * v->stride + reach + 1;
    s.phases_v = v->backward ? v->stride : 1;
    s.phases_h = h->backward ? MIN(h->stride, h->out) : 1;
    s.taps_at = take(&s.worker_bytes, s.taps * (int64_t)sizeof(plane_tap));
    s.ends_at = take(&s.worker_bytes, (s.phases_v * s.phases_h + 1) * (int64_t)sizeof(int64_t));
    s.axes_at = take(&s.worker_bytes, 2 * (v->taps + h->taps) * (int64_t)sizeof(int64_t));
    s.sums_at = take(&s.worker_bytes, (s.taps + 2) * VEC_BYTES);
    s.line_at = take(&s.worker_bytes, s.phases_h * round_up(h->out, VL) * (int64_t)sizeof(float));
    s.copy_at = take(&s.worker_bytes, (s.rows * s.row + VL) * (int64_t)sizeof(float));
    return s;
}

/* The floats of all threads' memory. */
static int64_t plane_workers(int64_t threads, const grouped *g)
{
    return own_floats(threads, lay_out_planes(g).worker_bytes / (int64_t)sizeof(float));
}

/* A thread's own memory. */
typedef struct {
    const grouped *g;
    const depthwise_layout *s;
    plane_tap *taps;        /* phase by phase */
    int64_t *ends;          /* phase i's taps are those from ends[i] to ends[i + 1] */
    float *sums, *line;     /* of each tap; a row of outputs, phase by phase */
    float *copy;            /* whose padding begins as zeros, and stays so */
} depthwise_worker;

static depthwise_worker start_planes(const grouped *g, const depthwise_layout *s, void *workspace)
{
    char *own = (char *)own_part(workspace, s->worker_bytes / (int64_t)sizeof(float));
    depthwise_worker t = {
        .g = g, .s = s, .taps = (plane_tap *)(own + s->taps_at), .ends = (int64_t *)(own + s->ends_at),
        .sums = (float *)(own + s->sums_at), .line = (float *)(own + s->line_at), .copy = (float *)(own + s->copy_at),
    };
    int64_t *axes = (int64_t *)(own + s->axes_at), *end = t.ends;
    plane_tap *tap = t.taps;
    for (int64_t i = 0; i < s->phases_v; i++)
        for (int64_t j = 0; j < s->phases_h; j++) {
            const phase v = axis_phase(&g->v, i, axes), h = axis_phase(&g->h, j, axes + 2 * g->v.taps);
            *end++ = tap - t.taps;
            for (int64_t r = 0; r < v.taps; r++)
                for (int64_t c = 0; c < h.taps; c++) {
                    const int64_t column = h.offset[c] - s->h.first;
                    const int64_t place = v.offset[r] * s->row + column % s->step * s->run + column / s->step;
                    *tap++ = (plane_tap){ place, v.tap[r] * g->h.taps + h.tap[c], 0 };
                }
        }
    *end = tap - t.taps;
    memset(own + s->copy_at, 0, (size_t)(s->worker_bytes - s->copy_at));
    return t;
}

static void copy_row(const depthwise_worker *t, const float *from, float *to)
{
    const depthwise_layout *s = t->s;
    const int64_t first = MAX(0, s->h.first), end = MIN(t->g->h.in, s->h.first + s->h.count);
    if (s->step == 1) {
        copy_floats(to + first - s->h.first, from + first, end - first);
        return;
    }
    if (s->step == 2) {
        const int64_t at = first - s->h.first, next = at + 1;
        split_pairs(from + first, to + at % 2 * s->run + at / 2, to + next % 2 * s->run + next / 2, end - first);
        return;
    }
    for (int64_t i = first; i < MIN(end, first + s->step); i++) {
        float *run = to + (i - s->h.first) % s->step * s->run + (i - s->h.first) / s->step;
        for (int64_t j = 0; i + s->step * j < end; j++)
            run[j] = from[i + s->step * j];
    }
}

/* Copies what output rows o0..o1 read of a plane; returns where in the copy the input's first row would begin. */
static int64_t copy_band(const depthwise_worker *t, const float *plane, int64_t o0, int64_t o1)
{
    const depthwise_layout *s = t->s;
    const span v = read_by(&t->g->v, o0, o1);
    for (int64_t i = 0; i < v.count; i++) {
        float *to = t->copy + i * s->row;
        if (inside(v.first + i, t->g->v.in))
            copy_row(t, plane + (v.first + i) * t->g->h.in, to);
        else
            memset(to, 0, sizeof(float) * (size_t)s->row);
    }
    return -v.first * s->row;
}

/* Rows of outputs of one phase. */
typedef struct {
    const plane_tap *tap, *end;
    const float *x;
    float *y;
    int64_t x_row, y_row, rows, width;
    float bias;
} plane_rows;

/* Some vectors of the first rows, of which n pixels are stored. */
INLINE void plane_products(const int rows, const int vectors, const plane_rows *p, int64_t n)
{
    vec acc[ROW_VECTORS];
    UNROLL for (int i = 0; i < rows * vectors; i++)
        acc[i] = splat(p->bias);
    for (const plane_tap *tap = p->tap; tap < p->end; tap++) {
        const vec w = splat(tap->w);
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vectors; j++)
                acc[i * vectors + j] = acc[i * vectors + j] + w * load(p->x + tap->place + i * p->x_row + j * VL);
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store_n(p->y + i * p->y_row + j * VL, acc[i * vectors + j], n - j * VL);
}

/* All rows, `at_once` of them at a time where they have few vectors, which fills the multiply-add units. */
INLINE void plane_blocks(const int at_once, const int vectors, plane_rows p)
{
    for (; p.rows >= at_once; p.rows -= at_once, p.x += at_once * p.x_row, p.y += at_once * p.y_row)
        plane_products(at_once, vectors, &p, p.width);
    for (; at_once > 1 && p.rows > 0; p.rows--, p.x += p.x_row, p.y += p.y_row)
        plane_products(1, vectors, &p, p.width);
}

static void make_rows(plane_rows p)
{
    for (; p.width > ROW_VECTORS * VL; p.width -= ROW_VECTORS * VL, p.x += ROW_VECTORS * VL, p.y += ROW_VECTORS * VL)
        for (int64_t i = 0; i < p.rows; i++) {
            plane_rows row = p;
            row.x += i * p.x_row;
            row.y += i * p.y_row;
            plane_products(1, ROW_VECTORS, &row, ROW_VECTORS * VL);
        }
    switch (ceil_div(p.width, VL)) {
    case 1: plane_blocks(8, 1, p); break;
    case 2: plane_blocks(4, 2, p); break;
    case 3: plane_blocks(2, 3, p); break;
    case 4: plane_blocks(2, 4, p); break;
    case 5: plane_blocks(1, 5, p); break;
    case 6: plane_blocks(1, 6, p); break;
    case 7: plane_blocks(1, 7, p); break;
    default: plane_blocks(1, 8, p); break;
    }
}

/* Rows whose pixels are in several phases: the phases one after another, then interleaved. */
static void make_mixed_rows(const depthwise_worker *t, const int64_t *ends, plane_rows p)
{
    const int64_t phases = t->s->phases_h, line = round_up(t->g->h.out, VL), width = p.width, whole = width / phases;
    const int64_t rows = p.rows;
    float *y = p.y;
    p.y = t->line;
    p.rows = 1;
    for (int64_t row = 0; row < rows; row++, p.x += p.x_row, y += p.y_row) {
        for (int64_t i = 0; i < phases; i++) {
            p.tap = t->taps + ends[i];
            p.end = t->taps + ends[i + 1];
            p.y = t->line + i * line;
            p.width = ceil_div(width - i, phases);
            make_rows(p);
        }
        if (phases == 2)
            interleave_pairs(t->line, t->line + line, y, whole);
        else
            interleave(t->line, line, y, whole, phases);
        for (int64_t i = 0; i < width % phases; i++)
            y[whole * phases + i] = t->line[i * line + whole];
    }
}

/* Rows o0..o1 of outputs, whose copy has the input's first row at `origin`. */
static void make_band(const depthwise_worker *t, int64_t origin, int64_t o0, int64_t o1, float bias, float *y)
{
    const depthwise_layout *s = t->s;
    const axis *v = &t->g->v, *h = &t->g->h;
    for (int64_t o = o0; o < MIN(o1, o0 + s->phases_v); o++) {
        const int64_t *ends = t->ends + o % s->phases_v * s->phases_h;
        const plane_rows p = {
            .tap = t->taps + ends[0], .end = t->taps + ends[1], .bias = bias,
            .x = t->copy + origin + (v->backward ? o / v->stride : o * v->stride) * s->row,
            .y = y + (o - o0) * h->out,
            .x_row = (v->backward ? 1 : v->stride) * s->row, .y_row = s->phases_v * h->out,
            .rows = ceil_div(o1 - o, s->phases_v), .width = h->out,
        };
        if (s->phases_h == 1)
            make_rows(p);
        else
            make_mixed_rows(t, ends, p);
    }
}

static void run_planes(const grouped *g, float *out, const float *in, const float *w, const float *bias,
                       void *workspace)
{
    const depthwise_layout s = lay_out_planes(g);
    const depthwise_worker t = start_planes(g, &s, workspace);
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < g->images * g->groups * s.bands; task++) {
        const int64_t plane = task / s.bands, channel = plane % g->groups, band = task % s.bands;
        const int64_t first = part_start(g->v.out, band, s.bands), end = part_start(g->v.out, band + 1, s.bands);
        for (int64_t i = 0; i < s.taps; i++)
            t.taps[i].w = w[t.taps[i].tap * g->w_tap + channel * g->w_group];
        const int64_t origin = copy_band(&t, in + plane * g->v.in * g->h.in, first, end);
        make_band(&t, origin, first, end, bias ? bias[channel] : 0, out + (plane * g->v.out + first) * g->h.out);
    }
}

static int64_t depthwise_conv2d_workspace(const void *desc, int64_t threads)
{
    const grouped g = forward_grouped(desc);
    return plane_workers(threads, &g) * (int64_t)sizeof(float);
}

/* y, x, w, bias or NULL */
static void depthwise_conv2d(const void *desc, void *const *args)
{
    const grouped g = forward_grouped(desc);
    run_planes(&g, args[0], args[1], args[2], args[3], args[4]);
}

static int64_t depthwise_conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const grouped g = backward_grouped(desc);
    return plane_workers(threads, &g) * (int64_t)sizeof(float);
}

/* dx, dy, w */
static void depthwise_conv2d_backward_data(const void *desc, void *const *args)
{
    const grouped g = backward_grouped(desc);
    run_planes(&g, args[0], args[1], args[2], NULL, args[3]);
}

/* Rows of dy and what some taps multiply them with. */
typedef struct {
    const plane_tap *tap;
    const float *x, *dy;
    int64_t x_row, width, rows;
} plane_pixels;

/* sums[t] += dy * x under tap t, and sum of dy, by lanes. */
typedef void (*plane_sum_function)(const plane_pixels *p, float *sums, float *sum);

INLINE void plane_sum(const int taps, const plane_pixels *p, float *sums, float *sum)
{
    const float *x[SUM_TAPS], *dy = p->dy;
    vec acc[SUM_TAPS], all = splat(0);
    UNROLL for (int t = 0; t < taps; t++) {
        x[t] = p->x + p->tap[t].place;
        acc[t] = splat(0);
    }
    for (int64_t row = 0, at = 0; row < p->rows; row++, at += p->x_row, dy += p->width) {
        int64_t i = 0;
        for (; i + VL <= p->width; i += VL) {
            const vec d = load(dy + i);
            all = all + d;
            UNROLL for (int t = 0; t < taps; t++)
                acc[t] = acc[t] + d * load(x[t] + at + i);
        }
        if (i < p->width) {
            const vec d = load_n(dy + i, p->width - i);
            all = all + d;
            UNROLL for (int t = 0; t < taps; t++)
                acc[t] = acc[t] + d * load_n(x[t] + at + i, p->width - i);
        }
    }
    store(sum, load(sum) + all);
    UNROLL for (int t = 0; t < taps; t++)
        store(sums + t * VL, load(sums + t * VL) + acc[t]);
}

#define PLANE_SUM(unused, taps)                                                                               \
    static void plane_sum_##taps(const plane_pixels *p, float *sums, float *sum) { plane_sum(taps, p, sums, sum); }
#define PLANE_SUM_ENTRY(unused, taps) plane_sum_##taps,
COUNTS_9(PLANE_SUM, )
static const plane_sum_function plane_sums[] = { COUNTS_9(PLANE_SUM_ENTRY, ) };

/* The plane's part of each tap's gradient, then of the bias's. */
static void sum_plane(const depthwise_worker *t, const float *in, const float *dy, float *to)
{
    const grouped *g = t->g;
    const depthwise_layout *s = t->s;
    const int64_t parts = ceil_div(s->taps, SUM_TAPS), at_once = MAX(1, SUM_VECTORS / ceil_div(g->h.out, VL));
    float *sum = t->sums + s->taps * VL, *again = sum + VL; /* parts of the taps but the first find it again */
    memset(t->sums, 0, (size_t)((s->taps + 1) * VEC_BYTES));
    for (int64_t band = 0; band < s->bands; band++) {
        const int64_t end = part_start(g->v.out, band + 1, s->bands);
        int64_t o = part_start(g->v.out, band, s->bands);
        const float *x = t->copy + copy_band(t, in, o, end);
        for (; o < end; o += at_once)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t first = part_start(s->taps, part, parts);
                const plane_pixels p = { t->taps + first, x + o * g->v.stride * s->row, dy + o * g->h.out,
                                         g->v.stride * s->row, g->h.out, MIN(at_once, end - o) };
                plane_sums[part_start(s->taps, part + 1, parts) - first - 1](&p, t->sums + first * VL,
                                                                             part == 0 ? sum : again);
            }
    }
    for (int64_t i = 0; i <= s->taps; i++) {
        double total = 0; /* lanes may cancel */
        for (int l = 0; l < VL; l++)
            total += t->sums[i * VL + l];
        to[i] = (float)total;
    }
}

static int64_t depthwise_conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    const grouped g = forward_grouped(desc);
    const int64_t sums = line_floats(g.images * g.groups * (lay_out_planes(&g).taps + 1));
    return (sums + plane_workers(threads, &g)) * (int64_t)sizeof(float);
}

/* dw, db, x, dy */
static void depthwise_conv2d_backward_weights(const void *desc, void *const *args)
{
    const grouped g = forward_grouped(desc);
    const depthwise_layout s = lay_out_planes(&g);
    const int64_t planes = g.images * g.groups, results = s.taps + 1;
    float *dw = args[0], *db = args[1], *parts = args[4];
    const float *x = args[2], *dy = args[3];
    const depthwise_worker t = start_planes(&g, &s, parts + line_floats(planes * results));
#pragma omp for schedule(guided)
    for (int64_t plane = 0; plane < planes; plane++)
        sum_plane(&t, x + plane * g.v.in * g.h.in, dy + plane * g.v.out * g.h.out, parts + plane * results);
#pragma omp for schedule(static)
    for (int64_t channel = 0; channel < g.groups; channel++)
        for (int64_t i = 0; i < results; i++) {
            double total = 0;
            for (int64_t image = 0; image < g.images; image++)
                total += parts[(image * g.groups + channel) * results + i];
            *(i < s.taps ? dw + channel * g.w_group + i * g.w_tap : db + channel) = (float)total;
        }
}

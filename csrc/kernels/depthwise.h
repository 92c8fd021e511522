/* Depthwise convolution on contiguous planes (N, C, H, W), which so need no transposition: a vector holds
 * neighbouring pixels of a row.
 *
 *     for each plane of an image, band of output rows:                               shared among threads
 *         copy the input rows that the band reads, with zeros around them            kept in L1
 *         for each phase of a row (see product.h), for each tile of 4 rows by 2 vectors:
 *             sum over the taps: weight * neighbours in the copy
 *
 * Taps of a column that read the rows of neighbouring outputs, as the three of a 3x3 kernel do, make a run: a tile loads
 * each vector once for all of them. The lines that the next tiles write and what is copied next are called meanwhile.
 *
 * Of a row that is read with a stride the pixels of each remainder lie together, so a tap reads neighbours for every
 * stride and dilation. Backward-data is the same nest over dx with the axes reversed; where a row has several phases,
 * they are made one after another and interleaved. Backward-weights runs over the same copies:
 *
 *     for each plane of an image:                                                    shared among threads
 *         for each band: copy; for up to 3 runs of taps: sum over pairs of rows: dy * neighbours in the copy
 *     dw, db = sums over the images, from the first to the last                      shared among threads */

enum { BAND_FLOATS = 8192, LONGEST_COLUMN = 3, TILE_SUMS = 8, RUNS_AT_ONCE = 3, SUM_VECTORS = 256 };

/* A tap of a phase: what it adds to where a row's copy is read, its number, its weight. */
typedef struct { int64_t place, tap; float w; } plane_tap;

/* A phase's taps, the longest runs first: those of n taps begin at starts[n] and end at starts[n - 1]. */
typedef struct { int64_t starts[LONGEST_COLUMN + 1]; } plane_runs;

typedef struct {
    int64_t taps, step, run, row;                /* copied rows: remainders, pixels of each, floats in all */
    int64_t bands, rows;                         /* of a plane; copied rows of a band */
    int64_t phases_v, phases_h;
    span h;                                      /* the columns read */
    int64_t taps_at, runs_at, axes_at, sums_at, line_at, copy_at, worker_bytes;   /* in a thread's memory */
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
    s.run = round_up(ceil_div(s.h.count, s.step), VL);
    s.row = s.step * s.run;
    const int64_t reach = (v->taps - 1) * v->dilation, most = BAND_FLOATS / s.row;
    const int64_t fit = v->backward ? (most - 2) * v->stride - reach : (most - 1 - reach) / v->stride;
    s.bands = ceil_div(v->out, MAX(fit, LEAST_ROWS));
    const int64_t longest = ceil_div(v->out, s.bands);
    s.rows = v->backward ? (longest + reach) / v->stride + 2 : longest * v->stride + reach + 1;
    s.phases_v = v->backward ? v->stride : 1;
    s.phases_h = h->backward ? MIN(h->stride, h->out) : 1;
    s.taps_at = take(&s.worker_bytes, s.taps * (int64_t)sizeof(plane_tap));
    s.runs_at = take(&s.worker_bytes, s.phases_v * s.phases_h * (int64_t)sizeof(plane_runs));
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
    plane_runs *runs;       /* of each phase */
    float *sums, *line;     /* of each tap; a row of outputs, phase by phase */
    float *copy;            /* whose padding begins as zeros, and stays so */
} depthwise_worker;

/* Lists a phase's taps behind those `listed`. Their rows are evenly spaced, so a run takes every `next` one. */
static plane_runs list_runs(const depthwise_worker *t, const phase *v, const phase *h, int64_t *listed)
{
    const depthwise_layout *s = t->s;
    const int64_t apart = v->taps > 1 ? v->offset[1] - v->offset[0] : 0;
    const int64_t next = apart && v->in_step % apart == 0 ? v->in_step / apart : v->taps;
    const int64_t chains = MAX(next, -next); /* the first taps of as many rows are no other's next */
    plane_runs runs;
    for (int64_t n = LONGEST_COLUMN; n > 0; n--) {
        runs.starts[n] = *listed;
        for (int64_t r = 0; r < v->taps; r++) {
            const int64_t left = ceil_div(v->taps - r, chains), first = next < 0 ? r - (n - 1) * next : r;
            if (r / chains % LONGEST_COLUMN != 0 || MIN(left, LONGEST_COLUMN) != n)
                continue;
            for (int64_t c = 0; c < h->taps; c++)
                for (int64_t i = 0; i < n; i++) {
                    const int64_t row = first + i * next, column = h->offset[c] - s->h.first;
                    const int64_t place = v->offset[row] * s->row + column % s->step * s->run + column / s->step;
                    t->taps[(*listed)++] = (plane_tap){ place, v->tap[row] * t->g->h.taps + h->tap[c], 0 };
                }
        }
    }
    runs.starts[0] = *listed;
    return runs;
}

static depthwise_worker start_planes(const grouped *g, const depthwise_layout *s, void *workspace)
{
    char *own = (char *)own_part(workspace, s->worker_bytes / (int64_t)sizeof(float));
    depthwise_worker t = {
        .g = g, .s = s, .taps = (plane_tap *)(own + s->taps_at), .runs = (plane_runs *)(own + s->runs_at),
        .sums = (float *)(own + s->sums_at), .line = (float *)(own + s->line_at), .copy = (float *)(own + s->copy_at),
    };
    int64_t *axes = (int64_t *)(own + s->axes_at), listed = 0;
    for (int64_t i = 0; i < s->phases_v; i++)
        for (int64_t j = 0; j < s->phases_h; j++) {
            const phase v = axis_phase(&g->v, i, axes), h = axis_phase(&g->h, j, axes + 2 * g->v.taps);
            t.runs[i * s->phases_h + j] = list_runs(&t, &v, &h, &listed);
        }
    memset(own + s->copy_at, 0, (size_t)(s->worker_bytes - s->copy_at));
    return t;
}

static void copy_row(const depthwise_worker *t, const float *from, float *to)
{
    const depthwise_layout *s = t->s;
    const int64_t end = MIN(t->g->h.in, s->h.first + s->h.count);
    int64_t first = MAX(0, s->h.first);
    if (s->step == 1) {
        for (; first < end; first += VL)
            store_n(to + first - s->h.first, get_n(from + first, end - first, 1), end - first);
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
    const plane_tap *taps;
    const plane_runs *runs;
    const float *x;
    float *y;
    int64_t x_row, y_row, rows, width;
    float bias;
} plane_rows;

/* A tile: some vectors of some rows, of which n pixels are stored. */
INLINE void plane_tile(const int rows, const int vectors, const plane_rows *p, const float *x, float *y, int64_t n)
{
    vec acc[TILE_SUMS];
    UNROLL for (int i = 0; i < rows * vectors; i++) {
        acc[i] = splat(p->bias);
        call_for_writing(y, (rows + i / vectors) * p->y_row + i % vectors * VL);
    }
    UNROLL for (int taps = LONGEST_COLUMN; taps > 0; taps--)
        for (int64_t run = p->runs->starts[taps]; run < p->runs->starts[taps - 1]; run += taps) {
            const plane_tap *tap = p->taps + run;
            const float *from = x + tap->place;
            vec w[LONGEST_COLUMN];
            UNROLL for (int r = 0; r < taps; r++)
                w[r] = splat(tap[r].w);
            UNROLL for (int i = 0; i < rows + taps - 1; i++, from += p->x_row)
                UNROLL for (int j = 0; j < vectors; j++) {
                    const vec v = load_once(from + j * VL);
                    UNROLL for (int r = 0; r < taps; r++)
                        if (i >= r && i - r < rows)
                            acc[(i - r) * vectors + j] = acc[(i - r) * vectors + j] + w[r] * v;
                }
        }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store_n(y + i * p->y_row + j * VL, acc[i * vectors + j], n - j * VL);
}

/* The last tile may begin within the one before it, which makes some outputs twice. */
INLINE void plane_tiles(const int rows, const int vectors, const plane_rows *p)
{
    for (int64_t i = 0; i < p->rows; i += rows) {
        const int64_t row = MIN(i, p->rows - rows);
        const float *x = p->x + row * p->x_row;
        float *y = p->y + row * p->y_row;
        int64_t n = p->width;
        for (; vectors > 1 && n > VL; n -= vectors * VL, x += vectors * VL, y += vectors * VL)
            plane_tile(rows, vectors, p, x, y, n);
        if (n > 0)
            plane_tile(rows, 1, p, x, y, n);
    }
}

static void make_rows(const plane_rows *p)
{
    if (p->width <= VL && p->rows >= TILE_SUMS)
        plane_tiles(TILE_SUMS, 1, p);
    else if (p->rows >= TILE_SUMS / 2)
        plane_tiles(TILE_SUMS / 2, 2, p);
    else
        plane_tiles(1, 2, p);
}

/* Rows whose pixels are in several phases: the phases one after another, then interleaved. */
static void make_mixed_rows(const depthwise_worker *t, plane_rows p)
{
    const int64_t phases = t->s->phases_h, line = round_up(t->g->h.out, VL), width = p.width, whole = width / phases;
    const int64_t rows = p.rows;
    float *y = p.y;
    p.y = t->line;
    p.rows = 1;
    for (int64_t row = 0; row < rows; row++, p.x += p.x_row, y += p.y_row) {
        for (int64_t i = 0; i < phases; i++) {
            p.y = t->line + i * line;
            p.width = ceil_div(width - i, phases);
            make_rows(&p);
            p.runs++;
        }
        p.runs -= phases;
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
        const plane_rows p = {
            .taps = t->taps, .runs = t->runs + o % s->phases_v * s->phases_h, .bias = bias,
            .x = t->copy + origin + (v->backward ? o / v->stride : o * v->stride) * s->row,
            .y = y + (o - o0) * h->out,
            .x_row = (v->backward ? 1 : v->stride) * s->row, .y_row = s->phases_v * h->out,
            .rows = ceil_div(o1 - o, s->phases_v), .width = h->out,
        };
        if (s->phases_h == 1)
            make_rows(&p);
        else
            make_mixed_rows(t, p);
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

/* Rows of dy and what some runs of taps multiply them with. */
typedef struct {
    const plane_tap *tap;
    const float *x, *dy;
    int64_t x_row, width, rows;
} plane_pixels;

/* Adds the products of n pixels, from i on, of `rows` rows of dy to each tap's sum and to that of dy. */
INLINE void add_pixels(const int taps, const int runs, const int rows, const plane_pixels *p, const float *const *x,
                       const float *dy, int64_t i, int64_t n, vec *acc, vec *all)
{
    vec d[2];
    UNROLL for (int row = 0; row < rows; row++) {
        d[row] = get_n(dy + row * p->width + i, n, 1);
        *all = *all + d[row];
    }
    UNROLL for (int j = 0; j < runs; j++)
        UNROLL for (int k = 0; k < rows + taps - 1; k++) {
            const float *from = x[j] + k * p->x_row + i;
            const vec read = load_once(from), v = n >= VL ? read : (vec)((ivec)read & lanes_below(n));
            UNROLL for (int row = 0; row < rows; row++)
                if (k >= row && k - row < taps)
                    acc[j * taps + k - row] = acc[j * taps + k - row] + d[row] * v;
        }
}

INLINE void add_rows(const int taps, const int runs, const int rows, const plane_pixels *p, const float *const *x,
                     const float *dy, vec *acc, vec *all)
{
    int64_t i = 0;
    for (; i + VL <= p->width; i += VL)
        add_pixels(taps, runs, rows, p, x, dy, i, VL, acc, all);
    if (i < p->width)
        add_pixels(taps, runs, rows, p, x, dy, i, p->width - i, acc, all);
}

/* sums[t] += dy * x under tap t, and sum of dy, by lanes. */
typedef void (*plane_sum_function)(const plane_pixels *p, float *sums, float *sum);

INLINE void plane_sum(const int taps, const int runs, const plane_pixels *p, float *sums, float *sum)
{
    vec acc[RUNS_AT_ONCE * LONGEST_COLUMN], all = splat(0);
    UNROLL for (int t = 0; t < runs * taps; t++)
        acc[t] = splat(0);
    for (int64_t row = 0; row < p->rows; row += 2) {
        const float *x[RUNS_AT_ONCE], *dy = p->dy + row * p->width;
        UNROLL for (int j = 0; j < runs; j++)
            x[j] = p->x + row * p->x_row + p->tap[j * taps].place;
        if (row + 1 < p->rows)
            add_rows(taps, runs, 2, p, x, dy, acc, &all);
        else
            add_rows(taps, runs, 1, p, x, dy, acc, &all);
    }
    store(sum, load(sum) + all);
    UNROLL for (int t = 0; t < runs * taps; t++)
        store(sums + t * VL, load(sums + t * VL) + acc[t]);
}

#define PLANE_SUM(taps, runs)                                                                                 \
    static void plane_sum_##taps##_##runs(const plane_pixels *p, float *sums, float *sum)                     \
    {                                                                                                         \
        plane_sum(taps, runs, p, sums, sum);                                                                  \
    }
#define PLANE_SUM_ENTRY(taps, runs) plane_sum_##taps##_##runs,
COUNTS_3(PLANE_SUM, 1) COUNTS_3(PLANE_SUM, 2) COUNTS_3(PLANE_SUM, 3)
static const plane_sum_function plane_sums[][RUNS_AT_ONCE] = {
    { COUNTS_3(PLANE_SUM_ENTRY, 1) }, { COUNTS_3(PLANE_SUM_ENTRY, 2) }, { COUNTS_3(PLANE_SUM_ENTRY, 3) },
};

/* Adds to the worker's sums what some rows of dy give, whose first output is read from x on. */
static void add_to_sums(const depthwise_worker *t, const float *x, const float *dy, int64_t rows)
{
    const grouped *g = t->g;
    const int64_t *starts = t->runs->starts;
    float *sum = t->sums + t->s->taps * VL, *again = sum + VL; /* where all calls but the first add the sum of dy */
    for (int64_t taps = LONGEST_COLUMN; taps > 0; taps--) {
        for (int64_t first = starts[taps]; first < starts[taps - 1]; first += RUNS_AT_ONCE * taps) {
            const int64_t runs = MIN(RUNS_AT_ONCE, (starts[taps - 1] - first) / taps);
            const plane_pixels p = { t->taps + first, x, dy, g->v.stride * t->s->row, g->h.out, rows };
            plane_sums[taps - 1][runs - 1](&p, t->sums + first * VL, first == 0 ? sum : again);
        }
    }
}

/* The plane's part of each tap's gradient, then of the bias's. */
static void sum_plane(const depthwise_worker *t, const float *in, const float *dy, float *to)
{
    const grouped *g = t->g;
    const depthwise_layout *s = t->s;
    const int64_t at_once = 2 * MAX(1, SUM_VECTORS / 2 / ceil_div(g->h.out, VL));
    memset(t->sums, 0, (size_t)((s->taps + 1) * VEC_BYTES));
    for (int64_t band = 0; band < s->bands; band++) {
        const int64_t first = part_start(g->v.out, band, s->bands), end = part_start(g->v.out, band + 1, s->bands);
        const float *x = t->copy + copy_band(t, in, first, end);
        for (int64_t o = first; o < end; o += at_once)
            add_to_sums(t, x + o * g->v.stride * s->row, dy + o * g->h.out, MIN(at_once, end - o));
    }
    for (int64_t i = 0; i <= s->taps; i++) {
        double total = 0; /* lanes may cancel */
        for (int l = 0; l < VL; l++)
            total += t->sums[i * VL + l];
        to[i < s->taps ? t->taps[i].tap : i] = (float)total;
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

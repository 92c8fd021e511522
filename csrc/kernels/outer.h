/* One engine for the gradients of weights: sums of outer products of input and output-gradient pixels.
 *
 *     dw[tap][l][column] = sum over pixels: x[position(pixel, tap)][l] * dy[pixel][column]
 *
 *     for each slice of the pixels, group, part of l, part of the columns:              shared among threads
 *         for each chunk of pixels in the slice:                                        x in L2
 *             where x's pixels lie far apart: copy the part of them that some taps share
 *             for each panel of columns: copy the chunk's part of dy
 *                 for each tap, for each block of l:                                    accumulators in registers
 *                     for each pixel of the chunk that the tap reaches: rank-1 update, prefetch what comes next
 *                     add to dw, or to the slice's partial dw
 *     dw = sum of the partials, from the first slice to the last                        shared among threads
 *
 * The number of slices depends on shapes alone, so the bits do not depend on the threads. Padding is never
 * multiplied: each tap runs over the pixels whose position lies inside the input. */

typedef struct {
    int64_t images, groups;
    int64_t len, columns;            /* of a group */
    axis v, h;                       /* as in the forward product: in x, out dy */
    const float *x, *dy;
    int64_t x_pixel, dy_pixel;
    float *dw;
    int64_t w_tap, inner, w_outer, w_inner, w_column, w_group;
} outer;

enum { MIN_CHUNK = 128, MAX_CHUNK = 8192 / PANEL, CHUNK_FLOATS = 49152, WIDE_PIXEL = 256, AHEAD_SHIFT = 2 };
enum { BOX_AHEAD = 4 }; /* pixels */
enum { SLICE_CHUNKS = 2, MAX_SLICES = 16, WANTED_TASKS = 8, PART_ROWS = 128, SUM_STRIP = 16 };

/* out[i][j] = or += sum over images, over rows of n pixels: x[pixel][i] * dy[pixel][j] */
typedef struct {
    int64_t images, rows, n;
    const float *x, *dy;
    int64_t x_image, x_row, x_step, dy_image, dy_row;    /* dy's pixels follow each other */
    float *out;
    int64_t out_row, columns;                            /* columns: how many of the vectors' lanes are stored */
    int adds;
    const char *ahead;                                   /* to prefetch: a line with every 1 << AHEAD_SHIFT pixels */
    int64_t ahead_step;                                  /* bytes from line to line */
} outer_tile;

INLINE void outer_finish(const int rows, const int vectors, vec acc[TALL_ROWS][TILE_VECTORS], const outer_tile *t,
                         int64_t columns)
{
    if (t->adds)
        UNROLL for (int i = 0; i < rows; i++)
            UNROLL for (int j = 0; j < vectors; j++)
                acc[i][j] = load_n(t->out + i * t->out_row + j * VL, columns - j * VL) + acc[i][j];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store_n(t->out + i * t->out_row + j * VL, acc[i][j], columns - j * VL);
}

INLINE void outer_product(const int rows, const int vectors, const outer_tile *t)
{
    vec acc[TALL_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) {
            acc[i][j] = (vec){ 0 };
            __builtin_prefetch(t->out + i * t->out_row + j * VL, 1);
        }
    const char *ahead = t->ahead;
    int64_t pixel = 0;
    for (int64_t image = 0; image < t->images; image++)
        for (int64_t row = 0; row < t->rows; row++) {
            const float *x = t->x + image * t->x_image + row * t->x_row;
            const float *dy = t->dy + image * t->dy_image + row * t->dy_row;
            for (const int64_t end = pixel + t->n; pixel < end; pixel++, x += t->x_step, dy += vectors * VL) {
                __builtin_prefetch(ahead + (pixel >> AHEAD_SHIFT) * t->ahead_step, 0, 2);
                vec b[TILE_VECTORS];
                UNROLL for (int j = 0; j < vectors; j++)
                    b[j] = load(dy + j * VL);
                UNROLL for (int i = 0; i < rows; i++) {
                    vec a = splat(x[i]);
                    UNROLL for (int j = 0; j < vectors; j++)
                        acc[i][j] = acc[i][j] + a * b[j];
                }
            }
        }
    if (t->columns >= vectors * VL)
        outer_finish(rows, vectors, acc, t, vectors * VL);
    else
        outer_finish(rows, vectors, acc, t, t->columns);
}

TILE_TABLE(outer, outer_product, (const outer_tile *t), (t))

/* How the work is cut. A chunk is some images, some rows of an image, or a part of a long row. */
typedef struct {
    int64_t taps, blocks, parts;                  /* blocks of a tile's rows of l, parts of blocks */
    int64_t images, rows, width;                  /* a chunk's pixels */
    int64_t down, across, chunks;                 /* chunks down and across an image, in all */
    int64_t v_taps, h_taps;                       /* the taps that share a box */
    int64_t slices, row, partial, box;            /* floats of a row, of a slice's partial, of a part's box */
    int direct;                                   /* sums go straight to dw */
} outer_cut;

/* Pixels far apart share few cache sets and many pages: then the task's part of them is copied side by side. */
INLINE int copies_x(const outer *p) { return p->x_pixel > WIDE_PIXEL; }

/* The positions of an axis that some taps read for some outputs. */
typedef struct { int64_t first, step, count; } span;

/* Taps share a copy, a box of positions, where theirs overlap; one on its own takes none that it would not read. */
INLINE int64_t taps_together(const axis *a, int64_t outputs)
{
    return (a->taps - 1) * a->dilation <= outputs * a->stride ? a->taps : 1;
}
INLINE int64_t most_positions(const axis *a, int64_t taps, int64_t outputs)
{
    return taps == 1 ? outputs : MIN(a->in, (outputs - 1) * a->stride + (taps - 1) * a->dilation + 1);
}

/* A longer chunk loads and stores the sums less often; it should lie in L2 with the next one, which is prefetched. */
INLINE int64_t chunk_pixels(const outer *p)
{
    const int64_t x_floats = copies_x(p) ? WIDE_PIXEL : p->x_pixel * p->v.stride * p->h.stride;
    return MAX(MIN_CHUNK, MIN(MAX_CHUNK, CHUNK_FLOATS / x_floats));
}

static void cut_chunks(const outer *p, outer_cut *c)
{
    const int64_t pixels = chunk_pixels(p), across = ceil_div(p->h.out, pixels);
    c->width = ceil_div(p->h.out, across);
    c->across = ceil_div(p->h.out, c->width);
    c->down = ceil_div(p->v.out, MAX(1, pixels / c->width));
    c->rows = ceil_div(p->v.out, c->down);
    c->down = ceil_div(p->v.out, c->rows);
    const int64_t most = c->down * c->across == 1 ? MAX(1, pixels / (c->rows * c->width)) : 1;
    const int64_t several = ceil_div(p->images, most);
    c->images = ceil_div(p->images, MAX(1, several));
    c->chunks = several * c->down * c->across;
}

static outer_cut cut_outer(const outer *p)
{
    outer_cut c = { .taps = p->v.taps * p->h.taps, .blocks = ceil_div(p->len, tile_rows(p->columns)) };
    cut_chunks(p, &c);
    c.v_taps = copies_x(p) ? taps_together(&p->v, c.rows) : p->v.taps;
    c.h_taps = copies_x(p) ? taps_together(&p->h, c.width) : p->h.taps;
    c.parts = copies_x(p) ? MAX(1, MIN(c.blocks, p->len * c.v_taps * c.h_taps / PART_ROWS)) : 1;
    for (c.slices = 1; c.slices < MAX_SLICES && c.slices * c.parts * p->groups < WANTED_TASKS; c.slices *= 2)
        if (c.chunks < 2 * c.slices * SLICE_CHUNKS)
            break;
    c.direct = c.slices == 1 && p->w_column == 1 && (p->inner == p->len || p->w_outer == p->inner * p->w_inner);
    c.row = round_up(p->columns, VL);
    c.partial = line_floats(p->groups * c.taps * p->len * c.row);
    const int64_t part_blocks = ceil_div(c.blocks, c.parts);
    const int64_t pixels = c.images * most_positions(&p->v, c.v_taps, c.rows) * most_positions(&p->h, c.h_taps, c.width);
    c.box = copies_x(p) ? line_floats(pixels * part_blocks * tile_rows(p->columns)) : 0;
    return c;
}

INLINE int64_t dy_floats(const outer_cut *c) { return c->images * c->rows * c->width * PANEL; }
INLINE int64_t partials_floats(const outer_cut *c) { return c->direct ? 0 : c->slices * c->partial; }

static int64_t outer_workspace(const outer *p, int64_t threads)
{
    const outer_cut c = cut_outer(p);
    return (partials_floats(&c) + own_floats(threads, c.box + dy_floats(&c))) * (int64_t)sizeof(float);
}

/* The outputs o0..o1 of an axis that tap t reaches inside the input. */
INLINE void reached(const axis *a, int64_t t, int64_t *o0, int64_t *o1)
{
    const int64_t distance = t * a->dilation - a->pad;
    *o0 = MAX(*o0, ceil_div(-distance, a->stride));
    *o1 = MIN(*o1, floor_div(a->in - 1 - distance, a->stride) + 1);
}

INLINE int64_t position(const axis *a, int64_t t, int64_t o) { return o * a->stride + t * a->dilation - a->pad; }

/* What the taps t0..t1 read for the outputs o0..o1. */
static span positions(const axis *a, int64_t t0, int64_t t1, int64_t o0, int64_t o1)
{
    if (t1 - t0 == 1) {
        reached(a, t0, &o0, &o1);
        return (span){ position(a, t0, o0), a->stride, MAX(0, o1 - o0) };
    }
    const int64_t first = MAX(0, position(a, t0, o0)), end = MIN(a->in, position(a, t1 - 1, o1 - 1) + 1);
    return (span){ first, 1, MAX(0, end - first) };
}

/* Lines of memory to prefetch. */
typedef struct { const char *at; int64_t step, lines; } ahead;

/* A task's share of one chunk: images n0..n1, rows oh0..oh1, columns ow0..ow1. */
typedef struct {
    const outer *p;
    const outer_cut *c;
    int64_t group, first_block, last_block, first_panel, last_panel;
    int64_t n0, n1, oh0, oh1, ow0, ow1;
    span v, h;               /* the box, or all of x as it lies */
    float *box, *dy;         /* room for copies */
    float *out;              /* the group's [tap][l][column] */
    int64_t out_tap, out_row;
    int adds;
    int64_t next_dy;         /* floats from this chunk's dy to the next one's */
    ahead x_ahead, dy_ahead; /* what the next chunk adds to x; the next panel of dy, which comes first */
} outer_share;

INLINE int64_t block_start(const outer_share *s, int64_t block) { return part_start(s->p->len, block, s->c->blocks); }

static void copy_box(const outer_share *s, int64_t l0, int64_t len)
{
    const outer *p = s->p;
    float *to = s->box;
    for (int64_t n = s->n0; n < s->n1; n++)
        for (int64_t i = 0; i < s->v.count; i++) {
            const int64_t row = (n * p->v.in + s->v.first + i * s->v.step) * p->h.in + s->h.first;
            const float *x = p->x + row * p->x_pixel + s->group * p->len + l0;
            const int64_t step = s->h.step * p->x_pixel;
            for (int64_t j = 0; j < s->h.count; j++, x += step, to += len)
                for (int64_t l = 0; l < len; l += VL) {
                    call_for_reading(x, BOX_AHEAD * step + l);
                    store_n(to + l, load_n(x + l, len - l), len - l);
                }
        }
}

/* Where dy of a share begins. */
INLINE int64_t dy_start(const outer_share *s)
{
    const outer *p = s->p;
    return ((s->n0 * p->v.out + s->oh0) * p->h.out + s->ow0) * p->dy_pixel + s->group * p->columns;
}

/* The chunk's part of dy's panel, without gaps and padded with zeros to full vectors. */
static void panel_of_dy(const outer_share *s, int64_t panel, int64_t vectors, outer_tile *t)
{
    const outer *p = s->p;
    const int64_t width = s->ow1 - s->ow0, lanes = vectors * VL, columns = p->columns - panel * PANEL;
    const int64_t row = p->h.out * p->dy_pixel, image = p->v.out * row;
    const float *dy = p->dy + dy_start(s) + panel * PANEL;
    t->dy = dy;
    t->dy_row = row;
    t->dy_image = image;
    if (p->dy_pixel == lanes && columns == lanes)
        return;
    float *to = s->dy;
    for (int64_t n = s->n0; n < s->n1; n++)
        for (int64_t oh = s->oh0; oh < s->oh1; oh++) {
            const float *from = dy + (n - s->n0) * image + (oh - s->oh0) * row;
            for (int64_t ow = 0; ow < width; ow++, from += p->dy_pixel, to += lanes)
                for (int64_t j = 0; j < lanes; j += VL)
                    store(to + j, columns > j ? load_n(from + j, columns - j) : splat(0));
        }
    t->dy = s->dy;
    t->dy_row = width * lanes;
    t->dy_image = (s->oh1 - s->oh0) * t->dy_row;
}

/* Rows that follow each other without a gap are one row. */
INLINE void join_rows(outer_tile *t, int64_t lanes)
{
    if (t->x_row == t->n * t->x_step && t->dy_row == t->n * lanes) {
        t->n *= t->rows;
        t->rows = 1;
        if (t->x_image == t->n * t->x_step && t->dy_image == t->n * lanes) {
            t->n *= t->images;
            t->images = 1;
        }
    }
}

/* Where the part of x that a share reads ends. */
INLINE int64_t x_end(const outer_share *s)
{
    const axis *v = &s->p->v, *h = &s->p->h;
    const int64_t row = MIN(v->in, position(v, v->taps - 1, s->oh1 - 1) + 1);
    const int64_t column = MIN(h->in, position(h, h->taps - 1, s->ow1 - 1) + 1);
    return (((s->n1 - 1) * v->in + row - 1) * h->in + column) * s->p->x_pixel;
}

static void prefetch_with(outer_share *s, outer_tile *t)
{
    ahead *a = s->dy_ahead.lines > 0 ? &s->dy_ahead : &s->x_ahead;
    const int64_t lines = MIN(a->lines, (t->images * t->rows * t->n >> AHEAD_SHIFT) + 1);
    t->ahead = a->at;
    t->ahead_step = lines > 0 ? a->step : 0;
    a->at += lines * a->step;
    a->lines -= lines;
}

/* The last floats of the next panel's pixels: where a panel lies across two lines, its first is the last panel's. */
static void prefetch_panel_after(outer_share *s, int64_t panel)
{
    const outer *p = s->p;
    const int64_t next = panel + 1 < s->last_panel ? (panel + 1) * PANEL : s->first_panel * PANEL + s->next_dy;
    const int64_t lines = (s->n1 - s->n0) * (s->oh1 - s->oh0) * (s->ow1 - s->ow0);
    const float *from = p->dy + dy_start(s) + MIN(next + PANEL, p->columns + s->next_dy) - 1;
    s->dy_ahead = (ahead){ (const char *)from, p->dy_pixel * (int64_t)sizeof(float), lines };
}

/* Tap (r, c): its part of all blocks of l. `t` has dy's panel and where x and dw of the first of them begin. */
static void add_tap(outer_share *s, int64_t r, int64_t c, int vectors, int64_t x_pixel, outer_tile t)
{
    const outer *p = s->p;
    int64_t oh0 = s->oh0, oh1 = s->oh1, ow0 = s->ow0, ow1 = s->ow1;
    reached(&p->v, r, &oh0, &oh1);
    reached(&p->h, c, &ow0, &ow1);
    t.images = s->n1 - s->n0;
    t.rows = oh1 - oh0;
    t.n = ow1 - ow0;
    if (t.rows <= 0 || t.n <= 0) {
        if (s->adds)
            return;
        t.images = 0; /* the first chunk writes zeros */
    } else {
        const int64_t ih = (position(&p->v, r, oh0) - s->v.first) / s->v.step;
        const int64_t iw = (position(&p->h, c, ow0) - s->h.first) / s->h.step;
        t.x += (ih * s->h.count + iw) * x_pixel;
        t.x_step = p->h.stride / s->h.step * x_pixel;
        t.x_row = p->v.stride / s->v.step * s->h.count * x_pixel;
        t.x_image = s->v.count * s->h.count * x_pixel;
        t.dy += (oh0 - s->oh0) * t.dy_row + (ow0 - s->ow0) * vectors * VL;
        join_rows(&t, vectors * VL);
    }
    t.out += (r * p->h.taps + c) * s->out_tap;
    const int64_t least = p->len / s->c->blocks, longer = p->len % s->c->blocks;
    for (int64_t b = s->first_block; b < s->last_block; b++) {
        const int64_t rows = least + (b < longer);
        prefetch_with(s, &t);
        outer_functions[vectors - 1][rows - 1](&t);
        t.x += rows;
        t.out += rows * s->out_row;
    }
}

/* The taps r0.. and c0.. that share a box. */
static void add_box(outer_share *s, int64_t r0, int64_t c0)
{
    const outer *p = s->p;
    const int64_t r1 = r0 + s->c->v_taps, c1 = c0 + s->c->h_taps;
    const int64_t first = block_start(s, s->first_block), len = block_start(s, s->last_block) - first;
    outer_tile t = { .out_row = s->out_row, .adds = s->adds };
    t.x = p->x + s->n0 * p->v.in * p->h.in * p->x_pixel + s->group * p->len + first;
    int64_t pixel = p->x_pixel;
    s->v = (span){ 0, 1, p->v.in };
    s->h = (span){ 0, 1, p->h.in };
    if (copies_x(p)) {
        s->v = positions(&p->v, r0, r1, s->oh0, s->oh1);
        s->h = positions(&p->h, c0, c1, s->ow0, s->ow1);
        copy_box(s, first, len);
        t.x = s->box;
        pixel = len;
    }
    for (int64_t panel = s->first_panel; panel < s->last_panel; panel++) {
        const int vectors = panel_vectors(p->columns, panel);
        t.columns = p->columns - panel * PANEL;
        t.out = s->out + first * s->out_row + panel * PANEL;
        panel_of_dy(s, panel, vectors, &t);
        prefetch_panel_after(s, panel);
        for (int64_t r = r0; r < r1; r++)
            for (int64_t c = c0; c < c1; c++)
                add_tap(s, r, c, vectors, pixel, t);
    }
}

static void find_chunk(outer_share *s, int64_t chunk)
{
    const outer *p = s->p;
    const outer_cut *c = s->c;
    s->n0 = chunk / (c->down * c->across) * c->images;
    s->n1 = MIN(p->images, s->n0 + c->images);
    s->oh0 = chunk / c->across % c->down * c->rows;
    s->oh1 = MIN(p->v.out, s->oh0 + c->rows);
    s->ow0 = chunk % c->across * c->width;
    s->ow1 = MIN(p->h.out, s->ow0 + c->width);
}

static void add_chunk(outer_share *s, int64_t chunk)
{
    const outer *p = s->p;
    const outer_cut *c = s->c;
    const int64_t next = MIN(chunk + 1, c->chunks - 1);
    find_chunk(s, next);
    const int64_t next_x = x_end(s), next_dy = dy_start(s);
    find_chunk(s, chunk);
    const int64_t x = x_end(s);
    s->next_dy = next_dy - dy_start(s);
    s->x_ahead = (ahead){ (const char *)(p->x + x), 64, copies_x(p) || p->groups > 1 ? 0 : MAX(0, next_x - x) / 16 };
    for (int64_t r = 0; r < p->v.taps; r += c->v_taps)
        for (int64_t j = 0; j < p->h.taps; j += c->h_taps)
            add_box(s, r, j);
}

INLINE vec partial_sum(const outer_cut *c, const float *from)
{
    vec sum = load(from);
    for (int64_t z = 1; z < c->slices; z++)
        sum = sum + load(from + z * c->partial);
    return sum;
}

/* Some l of a group, to weights whose columns lie next to each other. */
static void finish_rows(const outer *p, const outer_cut *c, const float *partials, int64_t l0, int64_t l1, float *dw)
{
    for (int64_t tap = 0; tap < c->taps; tap++)
        for (int64_t l = l0; l < l1; l++) {
            const float *from = partials + (tap * p->len + l) * c->row;
            float *to = dw + tap * p->w_tap + l / p->inner * p->w_outer + l % p->inner * p->w_inner;
            for (int64_t j = 0; j < p->columns; j += VL)
                store_n(to + j, partial_sum(c, from + j), p->columns - j);
        }
}

/* Likewise to columns that lie apart: a vector of them at a time, so that their taps and l meet in a cache. */
static void finish_columns(const outer *p, const outer_cut *c, const float *partials, int64_t l0, int64_t l1, float *dw)
{
    const int adjacent = p->w_inner == 1 && p->inner >= p->len;
    for (int64_t j = 0; j < p->columns; j += VL)
        for (int64_t tap = 0; tap < c->taps; tap++) {
            const int64_t n = MIN(VL, p->columns - j);
            float sums[SUM_STRIP * VL], *to = dw + tap * p->w_tap + j * p->w_column;
            for (int64_t l = l0; l < l1; l++)
                store(sums + (l - l0) * VL, partial_sum(c, partials + (tap * p->len + l) * c->row + j));
            if (adjacent) {
                transpose_matrix(sums, VL, to + l0, p->w_column, l1 - l0, n);
                continue;
            }
            for (int64_t l = l0; l < l1; l++)
                for (int64_t k = 0; k < n; k++)
                    to[l / p->inner * p->w_outer + l % p->inner * p->w_inner + k * p->w_column] = sums[(l - l0) * VL + k];
        }
}

static void sum_partials(const outer *p, const outer_cut *c, const float *partials)
{
    const int64_t strips = ceil_div(p->len, SUM_STRIP);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p->groups * strips; task++) {
        const int64_t group = task / strips, l0 = task % strips * SUM_STRIP, l1 = MIN(p->len, l0 + SUM_STRIP);
        (p->w_column == 1 ? finish_rows : finish_columns)(p, c, partials + group * c->taps * p->len * c->row, l0,
                                                           l1, p->dw + group * p->w_group);
    }
}

static void outer_run(const outer *p, void *workspace)
{
    const outer_cut c = cut_outer(p);
    const int64_t all = panels(p->columns);
    float *partials = workspace, *own = own_part(partials + partials_floats(&c), c.box + dy_floats(&c));
    outer_share s = { .p = p, .c = &c, .box = own, .dy = own + c.box };
    s.out_tap = c.direct ? p->w_tap : p->len * c.row;
    s.out_row = c.direct ? p->w_inner : c.row;
    const int64_t tasks = c.slices * p->groups * c.parts;
    const int64_t panel_parts = MIN(all, ceil_div(TASKS_A_THREAD * omp_get_num_threads(), tasks));
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < tasks * panel_parts; task++) {
        const int64_t panel_part = task % panel_parts, part = task / panel_parts % c.parts;
        const int64_t slice = task / panel_parts / c.parts / p->groups;
        s.group = task / panel_parts / c.parts % p->groups;
        s.first_panel = part_start(all, panel_part, panel_parts);
        s.last_panel = part_start(all, panel_part + 1, panel_parts);
        s.first_block = part_start(c.blocks, part, c.parts);
        s.last_block = part_start(c.blocks, part + 1, c.parts);
        s.out = c.direct ? p->dw + s.group * p->w_group : partials + slice * c.partial + s.group * c.taps * s.out_tap;
        const int64_t first = part_start(c.chunks, slice, c.slices), end = part_start(c.chunks, slice + 1, c.slices);
        for (int64_t chunk = first; chunk < end; chunk++) {
            s.adds = chunk > first;
            add_chunk(&s, chunk);
        }
    }
    if (!c.direct)
        sum_partials(p, &c, partials);
}

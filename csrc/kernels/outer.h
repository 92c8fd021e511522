/* One engine for the gradients of weights: sums of outer products of input and output-gradient pixels.
 *
 *     dw[tap][l][column] = sum over pixels: x[position(pixel, tap)][l] * dy[pixel][column]
 *
 *     for each slice of the pixels, group, panel of columns, part of l:             shared among threads
 *         for each chunk of pixels in the slice:                                    x and dy chunk in L2
 *             for each tap, for each block of l:                                    accumulators in registers
 *                 for each pixel of the chunk that the tap reaches: rank-1 update
 *             add to the slice's partial dw
 *     dw = sum of the partials, from the first slice to the last                    shared among threads
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

enum { CHUNK_PIXELS = 256, CHUNK_FLOATS = 65536, MAX_SLICES = 8, WANTED_TASKS = 16 };

/* acc[i][j] += x[pixel][i] * dy[pixel][j] over rows of n pixels each. */
typedef struct {
    int64_t rows, n;
    const float *x, *dy;
    int64_t x_row, x_step, dy_row, dy_step;
    float *out;                      /* [TILE rows][vectors * VL], added to */
} outer_tile;

typedef void (*outer_function)(const outer_tile *t);

INLINE void outer_product(const int rows, const int vectors, const outer_tile *t)
{
    vec acc[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    for (int64_t r = 0; r < t->rows; r++) {
        const float *x = t->x + r * t->x_row, *dy = t->dy + r * t->dy_row;
        for (int64_t n = t->n; n > 0; n--, x += t->x_step, dy += t->dy_step) {
            vec b[2];
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(dy + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(x[i]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) {
            float *to = t->out + (i * vectors + j) * VL;
            store(to, load(to) + acc[i][j]);
        }
}

#define OUTER_FUNCTION(rows, vectors)                                                                         \
    static void outer_##rows##x##vectors(const outer_tile *t) { outer_product(rows, vectors, t); }
#define OUTER_FUNCTIONS(rows) OUTER_FUNCTION(rows, 1) OUTER_FUNCTION(rows, 2)
TILE_SIZES(OUTER_FUNCTIONS)

#define OUTER_ENTRY_1(rows) outer_##rows##x1,
#define OUTER_ENTRY_2(rows) outer_##rows##x2,
static const outer_function outer_functions[2][TILE_ROWS] = { { TILE_SIZES(OUTER_ENTRY_1) },
                                                              { TILE_SIZES(OUTER_ENTRY_2) } };

/* How the work is cut. A chunk is some rows of output pixels, or a part of one long row. */
typedef struct {
    int64_t taps, l_blocks;                       /* blocks of at most TILE_ROWS of l */
    int64_t width, rows, across, down, chunks;    /* a chunk's pixels; chunks across and down an image, in all */
    int64_t slices, l_parts, partial;             /* partial: floats of one slice */
} outer_cut;

static outer_cut cut_outer(const outer *p)
{
    outer_cut c = { .taps = p->v.taps * p->h.taps, .l_blocks = ceil_div(p->len, TILE_ROWS) };
    const int64_t across = ceil_div(p->h.out, CHUNK_PIXELS);
    c.width = ceil_div(p->h.out, across);
    c.across = ceil_div(p->h.out, c.width);
    const int64_t x_row = p->v.stride * p->h.in * p->x_pixel;
    c.rows = MAX(1, MIN(MIN(p->v.out, CHUNK_PIXELS / c.width), CHUNK_FLOATS / x_row));
    c.down = ceil_div(p->v.out, c.rows);
    c.chunks = p->images * c.down * c.across;
    const int64_t blocks = p->groups * panels(p->columns);
    c.slices = MAX(1, MIN(MIN(c.chunks, MAX_SLICES), ceil_div(WANTED_TASKS, blocks)));
    c.l_parts = MIN(c.l_blocks, ceil_div(WANTED_TASKS, blocks * c.slices));
    c.partial = line_floats(blocks * c.taps * p->len * PANEL);
    return c;
}

static int64_t outer_workspace(const outer *p, int64_t threads)
{
    const outer_cut c = cut_outer(p);
    return (c.slices * c.partial + threads * c.rows * c.width * PANEL) * (int64_t)sizeof(float);
}

/* The outputs o0..o1 of an axis that tap t reaches inside the input. */
INLINE void reached(const axis *a, int64_t t, int64_t *o0, int64_t *o1)
{
    const int64_t distance = t * a->dilation - a->pad;
    *o0 = MAX(*o0, ceil_div(-distance, a->stride));
    *o1 = MIN(*o1, floor_div(a->in - 1 - distance, a->stride) + 1);
}

/* A task's share of one chunk: rows oh0..oh1, columns ow0..ow1 of image n. */
typedef struct {
    const outer *p;
    int64_t taps, group, panel, l_blocks, first_block, last_block;
    int64_t n, oh0, oh1, ow0, ow1;
    float *partial;          /* the panel's [tap][l][width] */
    float *copy;             /* room for a padded copy of dy */
} outer_share;

/* dy's panel of the chunk as full vectors; a panel that is not full is copied and padded with zeros. */
static void chunk_of_dy(const outer_share *s, int64_t vectors, outer_tile *t)
{
    const outer *p = s->p;
    const int64_t width = s->ow1 - s->ow0, lanes = vectors * VL, columns = p->columns - s->panel * PANEL;
    const int64_t row = p->h.out * p->dy_pixel;
    t->dy = p->dy + (s->n * p->v.out + s->oh0) * row + s->ow0 * p->dy_pixel + s->group * p->columns + s->panel * PANEL;
    t->dy_row = row;
    t->dy_step = p->dy_pixel;
    if (columns >= lanes)
        return;
    float *to = s->copy;
    for (int64_t oh = s->oh0; oh < s->oh1; oh++)
        for (int64_t ow = 0; ow < width; ow++, to += lanes)
            for (int64_t j = 0; j < vectors; j++)
                store(to + j * VL, columns > j * VL ? load_n(t->dy + (oh - s->oh0) * row + ow * p->dy_pixel + j * VL,
                                                             columns - j * VL) : splat(0));
    t->dy = s->copy;
    t->dy_row = width * lanes;
    t->dy_step = lanes;
}

static void add_chunk(const outer_share *s)
{
    const outer *p = s->p;
    const int vectors = panel_vectors(p->columns, s->panel);
    outer_tile chunk = { .x_row = p->v.stride * p->h.in * p->x_pixel, .x_step = p->h.stride * p->x_pixel };
    chunk_of_dy(s, vectors, &chunk);
    const float *image = p->x + s->n * p->v.in * p->h.in * p->x_pixel + s->group * p->len;
    for (int64_t tap = 0; tap < s->taps; tap++) {
        const int64_t r = tap / p->h.taps, c = tap % p->h.taps;
        int64_t oh0 = s->oh0, oh1 = s->oh1, ow0 = s->ow0, ow1 = s->ow1;
        reached(&p->v, r, &oh0, &oh1);
        reached(&p->h, c, &ow0, &ow1);
        if (oh0 >= oh1 || ow0 >= ow1)
            continue;
        const int64_t ih = oh0 * p->v.stride + r * p->v.dilation - p->v.pad;
        const int64_t iw = ow0 * p->h.stride + c * p->h.dilation - p->h.pad;
        outer_tile t = chunk;
        t.rows = oh1 - oh0;
        t.n = ow1 - ow0;
        t.dy += (oh0 - s->oh0) * chunk.dy_row + (ow0 - s->ow0) * chunk.dy_step;
        for (int64_t b = s->first_block; b < s->last_block; b++) {
            const int64_t l0 = part_start(p->len, b, s->l_blocks), l1 = part_start(p->len, b + 1, s->l_blocks);
            t.x = image + (ih * p->h.in + iw) * p->x_pixel + l0;
            t.out = s->partial + (tap * p->len + l0) * vectors * VL;
            outer_functions[vectors - 1][l1 - l0 - 1](&t);
        }
    }
}

static void clear_share(const outer_share *s)
{
    const outer *p = s->p;
    const int64_t width = panel_vectors(p->columns, s->panel) * VL;
    const int64_t l0 = part_start(p->len, s->first_block, s->l_blocks);
    const int64_t l1 = part_start(p->len, s->last_block, s->l_blocks);
    for (int64_t tap = 0; tap < s->taps; tap++)
        memset(s->partial + (tap * p->len + l0) * width, 0, sizeof(float) * (size_t)((l1 - l0) * width));
}

static void sum_partials(const outer *p, const outer_cut *c, const float *partials)
{
    const int64_t all = panels(p->columns), panel_floats = c->taps * p->len * PANEL;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p->groups * all * c->taps; task++) {
        const int64_t tap = task % c->taps, panel = task / c->taps % all, group = task / c->taps / all;
        const int64_t width = panel_vectors(p->columns, panel) * VL, columns = MIN(width, p->columns - panel * PANEL);
        const float *from = partials + (group * all + panel) * panel_floats + tap * p->len * width;
        float *to = p->dw + group * p->w_group + tap * p->w_tap + panel * PANEL * p->w_column;
        int64_t inner = 0;
        for (int64_t l = 0; l < p->len; l++, from += width) {
            for (int64_t j = 0; j < columns; j += VL) {
                const int64_t n = MIN(VL, columns - j);
                vec sum = load(from + j);
                for (int64_t z = 1; z < c->slices; z++)
                    sum = sum + load(from + z * c->partial + j);
                float *w = to + inner * p->w_inner + j * p->w_column;
                if (p->w_column == 1)
                    store_n(w, sum, n);
                else
                    for (int64_t k = 0; k < n; k++)
                        w[k * p->w_column] = sum[k];
            }
            if (++inner == p->inner) {
                inner = 0;
                to += p->w_outer;
            }
        }
    }
}

static void outer_run(const outer *p, void *workspace)
{
    const outer_cut c = cut_outer(p);
    const int64_t all = panels(p->columns), panel_floats = c.taps * p->len * PANEL;
    float *partials = workspace;
    outer_share s = { .p = p, .taps = c.taps, .l_blocks = c.l_blocks };
    s.copy = partials + c.slices * c.partial + omp_get_thread_num() * c.rows * c.width * PANEL;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < c.slices * p->groups * all * c.l_parts; task++) {
        const int64_t part = task % c.l_parts, slice = task / c.l_parts / all / p->groups;
        s.panel = task / c.l_parts % all;
        s.group = task / c.l_parts / all % p->groups;
        s.first_block = part_start(c.l_blocks, part, c.l_parts);
        s.last_block = part_start(c.l_blocks, part + 1, c.l_parts);
        s.partial = partials + slice * c.partial + (s.group * all + s.panel) * panel_floats;
        clear_share(&s);
        const int64_t end = part_start(c.chunks, slice + 1, c.slices);
        for (int64_t chunk = part_start(c.chunks, slice, c.slices); chunk < end; chunk++) {
            s.n = chunk / (c.down * c.across);
            s.oh0 = chunk / c.across % c.down * c.rows;
            s.oh1 = MIN(p->v.out, s.oh0 + c.rows);
            s.ow0 = chunk % c.across * c.width;
            s.ow1 = MIN(p->h.out, s.ow0 + c.width);
            add_chunk(&s);
        }
    }
    sum_partials(p, &c, partials);
}

/* Convolution to few filters, and its gradient of the weights; with few channels, too, the gradient of the input.
 *
 * Vectors over few filters would be mostly empty, so here a vector holds neighbouring outputs of a row. The rows of
 * x that a band of outputs reads are copied to planes [c][phase][row][pitch], the padding to zeros around them and
 * the columns a stride apart (a phase) to neighbours. Then outputs, in vectors at places of the first plane, read
 * under a tap (c, r, s) what lies a fixed offset further:
 *
 *     y[k][vector]  = sum over taps: w[tap][k] * planes[place[vector] + offset[tap]]
 *     dw[tap][k]    = sum over vectors, their lanes: planes[place[vector] + offset[tap]] * dy[k][vector]
 *
 *     for each image, band of its rows of outputs:                                      shared among threads
 *         copy its part of x to planes                                                  L1 or L2
 *         forward:  for each tile of filters, of vectors: sum over taps                 accumulators in registers
 *                   transpose y's planes to pixels
 *         gradient: transpose dy's pixels to planes, zeros between the rows
 *                   for each tile of filters, of taps: sum over vectors, add to the slice's sums
 *
 * A row of outputs begins a vector of its own, or, where that needs fewer vectors, the rows of outputs follow each
 * other as the planes' rows do, what lies between them being computed in vain. Each output is one sum in the order
 * of the taps; a slice is some bands, cut and added up by shapes alone. */

enum { PLANAR_FLOATS = 12288, MOST_PLANAR_FLOATS = 65536, PLANAR_FILTERS = 4, PLANAR_VECTORS = 8 };
enum { PLANAR_SUMS = 2 * TILE_ROWS, PLANAR_TERMS = 576, PLANAR_SLICES = 16, PLANAR_SLICE_WORK = 200000 };

typedef struct {
    int64_t taps, phases, pitch;                  /* floats of a row of a plane */
    int64_t joined, y_pitch;                      /* whether rows of outputs follow each other without a gap */
    int64_t bands, rows, x_rows;                  /* of an image; rows of outputs in the longest band, and of x */
    int64_t vectors, y_plane, x_floats, y_floats, packed, own;
} planar_cut;

/* Vectors of some rows of outputs. */
INLINE int64_t planar_vectors(const pycnn_conv2d *d, const planar_cut *c, int64_t rows)
{
    return ceil_div((rows - 1) * c->y_pitch + d->ow, VL);
}

static planar_cut cut_planar(const pycnn_conv2d *d)
{
    const int64_t reach_h = (d->r - 1) * d->dilation_h, reach_w = (d->s - 1) * d->dilation_w;
    planar_cut c = { .taps = d->c * d->r * d->s, .phases = MIN(d->stride_w, reach_w + 1) };
    c.pitch = d->ow + reach_w / d->stride_w;
    const int64_t own_vectors = round_up(d->ow, VL);
    c.joined = d->stride_h == 1 && (d->oh - 1) * c.pitch + d->ow <= d->oh * own_vectors - VL;
    c.y_pitch = c.joined ? c.pitch : own_vectors;
    const int64_t x_row = d->c * c.phases * c.pitch, a_row = d->stride_h * x_row + d->k * c.y_pitch;
    const int64_t most = MAX(1, (PLANAR_FLOATS - (reach_h + 1 - d->stride_h) * x_row) / a_row);
    c.bands = ceil_div(d->oh, most);
    c.rows = ceil_div(d->oh, c.bands);
    c.x_rows = (c.rows - 1) * d->stride_h + reach_h + 1;
    c.vectors = planar_vectors(d, &c, c.rows);
    c.y_plane = c.vectors * VL;
    c.x_floats = line_floats(c.x_rows * x_row + VL); /* the last vector may hang over */
    c.y_floats = line_floats(d->k * c.y_plane);
    c.packed = line_floats(c.taps * d->k);
    c.own = c.x_floats + c.y_floats + line_floats((c.taps + c.vectors) * 2);
    return c;
}

/* Whether a band stays near, and at most a third more lanes are computed than with vectors of filters. */
static int fits_planar(const pycnn_conv2d *d)
{
    const planar_cut c = cut_planar(d);
    const int64_t lanes = c.bands * c.y_plane * d->k;
    return c.x_floats <= MOST_PLANAR_FLOATS && 3 * lanes <= 4 * d->oh * d->ow * round_up(d->k, VL);
}

static int64_t planar_workspace(const pycnn_conv2d *d, int64_t threads)
{
    const planar_cut c = cut_planar(d);
    return (c.packed + threads * c.own) * (int64_t)sizeof(float);
}

/* What a thread works with: a band of an image is rows oh0..oh0 + rows of its outputs. */
typedef struct {
    const pycnn_conv2d *d;
    const planar_cut *c;
    float *x, *y;                                 /* planes; y: of the outputs, or their gradients */
    int64_t *place, *offset;
    int64_t image, oh0, rows;
} planar;

static planar start_planar(const pycnn_conv2d *d, const planar_cut *c, float *own)
{
    planar p = { .d = d, .c = c, .x = own, .y = own + c->x_floats };
    p.place = (int64_t *)(p.y + c->y_floats);
    p.offset = p.place + c->vectors;
    memset(own, 0, sizeof(float) * (size_t)(c->x_floats + c->y_floats));
    const int64_t across = c->y_pitch / VL, row = d->stride_h * c->pitch;
    for (int64_t i = 0; i < c->vectors; i++)
        p.place[i] = c->joined ? i * VL : i / across * row + i % across * VL;
    int64_t *offset = p.offset;
    for (int64_t channel = 0; channel < d->c; channel++)
        for (int64_t r = 0; r < d->r; r++)
            for (int64_t s = 0; s < d->s; s++) {
                const int64_t column = s * d->dilation_w, plane = channel * c->phases + column % d->stride_w;
                *offset++ = (plane * c->x_rows + r * d->dilation_h) * c->pitch + column / d->stride_w;
            }
    return p;
}

static void find_planar_band(planar *p, int64_t task, int64_t bands)
{
    p->image = task / bands;
    p->oh0 = part_start(p->d->oh, task % bands, bands);
    p->rows = part_start(p->d->oh, task % bands + 1, bands) - p->oh0;
}

/* planes[c][i] = pixels[i * step][c] for `channels` that lie next to each other. */
static void pixels_to_planes(const float *pixels, int64_t step, float *planes, int64_t plane, int64_t n,
                             int64_t channels)
{
    if (channels == 1 && step == 1)
        copy_floats(planes, pixels, n);
    else if (channels == 1)
        for (int64_t i = 0; i < n; i++)
            planes[i] = pixels[i * step];
    else if (channels == 2 && step == 1)
        split(pixels, planes, plane, n, 2);
    else if (channels == 3 && step == 1)
        split(pixels, planes, plane, n, 3);
    else
        transpose_matrix(pixels, step * channels, planes, plane, n, channels);
}

static void planes_to_pixels(const float *planes, int64_t plane, float *pixels, int64_t n, int64_t channels)
{
    if (channels == 1)
        copy_floats(pixels, planes, n);
    else if (channels == 2)
        interleave(planes, plane, pixels, n, 2);
    else if (channels == 3)
        interleave(planes, plane, pixels, n, 3);
    else
        transpose_matrix(planes, plane, pixels, channels, channels, n);
}

static void fill_planes(const planar *p, const float *x)
{
    const pycnn_conv2d *d = p->d;
    const int64_t pitch = p->c->pitch, plane = p->c->x_rows * pitch, above = p->oh0 * d->stride_h - d->pad_top;
    const int64_t rows = (p->rows - 1) * d->stride_h + (d->r - 1) * d->dilation_h + 1;
    const float *image = x + p->image * d->h * d->w * d->c;
    for (int64_t phase = 0; phase < p->c->phases; phase++) {
        const int64_t left = phase - d->pad_left;
        const int64_t first = MAX(0, ceil_div(-left, d->stride_w));
        const int64_t n = MIN(pitch, floor_div(d->w - 1 - left, d->stride_w) + 1) - first;
        for (int64_t row = 0; n > 0 && row < rows; row++) {
            const int64_t ih = above + row;
            if (d->dilation_h == 1 && row % d->stride_h >= d->r) /* no tap reads it */
                continue;
            float *to = p->x + phase * plane + row * pitch + first;
            if (inside(ih, d->h))
                pixels_to_planes(image + (ih * d->w + first * d->stride_w + left) * d->c, d->stride_w, to,
                                 p->c->phases * plane, n, d->c);
            else
                for (int64_t channel = 0; channel < d->c; channel++)
                    clear_floats(to + channel * p->c->phases * plane, n);
        }
    }
}

/* Rows without gaps between them are one. */
INLINE void join_planar_rows(const planar *p, int64_t *rows, int64_t *width)
{
    const int one = p->c->y_pitch == p->d->ow;
    *rows = one ? 1 : p->rows;
    *width = one ? p->rows * p->d->ow : p->d->ow;
}

/* A tile: for some filters, and n vectors, the sum over i of a[i][filter] * the vector at x[n] + at[i]. Forward, i is
 * a tap and a[i][filter] a weight; for the gradient, n is a tap and a[i][filter] a vector of dy. */
typedef struct {
    const float *x[PLANAR_VECTORS];
    const int64_t *at;
    int64_t terms;
    const float *a, *bias;
    float *y;
    int64_t a_row, y_row;                         /* from filter to filter; weights lie next to each other */
    pycnn_epilogue epilogue;
} planar_tile;

INLINE void planar_sums(const int filters, const int n, const int gradient, const planar_tile *t)
{
    vec acc[PLANAR_FILTERS][PLANAR_VECTORS];
    UNROLL for (int k = 0; k < filters; k++)
        UNROLL for (int j = 0; j < n; j++)
            acc[k][j] = (vec){ 0 };
    const float *from = t->a;
    for (int64_t i = 0; i < t->terms; i++, from += gradient ? VL : filters) {
        const int64_t at = t->at[i];
        vec a[PLANAR_FILTERS], x[PLANAR_VECTORS];
        if (filters < n) { /* what is few stays in registers */
            UNROLL for (int k = 0; k < filters; k++)
                a[k] = gradient ? load(from + k * t->a_row) : splat(from[k]);
            UNROLL for (int j = 0; j < n; j++) {
                x[j] = load(t->x[j] + at);
                UNROLL for (int k = 0; k < filters; k++)
                    acc[k][j] = acc[k][j] + a[k] * x[j];
            }
        } else {
            UNROLL for (int j = 0; j < n; j++)
                x[j] = load(t->x[j] + at);
            UNROLL for (int k = 0; k < filters; k++) {
                a[k] = gradient ? load(from + k * t->a_row) : splat(from[k]);
                UNROLL for (int j = 0; j < n; j++)
                    acc[k][j] = acc[k][j] + a[k] * x[j];
            }
        }
    }
    const float *bias = t->bias;
    float *y = t->y;
    const int64_t y_row = t->y_row;
    const pycnn_epilogue epilogue = t->epilogue;
    UNROLL for (int k = 0; k < filters; k++, y += y_row) {
        const vec shift = splat(bias ? bias[k] : 0);
        UNROLL for (int j = 0; j < n; j++) {
            const vec sum = acc[k][j] + (gradient ? load(y + j * VL) : shift);
            store(y + j * VL, epilogue.rectifies ? rectify(sum, epilogue.slope) : sum);
        }
    }
}

/* A tile has as many vectors, or taps, as its sums fit into the registers. */
INLINE int64_t planar_width(int64_t filters) { return MIN(PLANAR_VECTORS, PLANAR_SUMS / filters); }

#define PLANAR_CASE(filters, n, gradient)                                                                     \
    case n:                                                                                                   \
        if ((filters) * n <= PLANAR_SUMS)                                                                     \
            planar_sums(filters, n, gradient, t);                                                             \
        break;
#define PLANAR_FUNCTION(name, filters, gradient)                                                              \
    static void name##_##filters(const planar_tile *t, int64_t n)                                             \
    {                                                                                                         \
        switch (n) {                                                                                          \
            PLANAR_CASE(filters, 1, gradient)                                                                 \
            PLANAR_CASE(filters, 2, gradient)                                                                 \
            PLANAR_CASE(filters, 3, gradient)                                                                 \
            PLANAR_CASE(filters, 4, gradient)                                                                 \
            PLANAR_CASE(filters, 5, gradient)                                                                 \
            PLANAR_CASE(filters, 6, gradient)                                                                 \
            PLANAR_CASE(filters, 7, gradient)                                                                 \
            PLANAR_CASE(filters, 8, gradient)                                                                 \
        }                                                                                                     \
    }
#define PLANAR_FUNCTIONS(name, gradient)                                                                      \
    PLANAR_FUNCTION(name, 1, gradient)                                                                        \
    PLANAR_FUNCTION(name, 2, gradient)                                                                        \
    PLANAR_FUNCTION(name, 3, gradient)                                                                        \
    PLANAR_FUNCTION(name, 4, gradient)                                                                        \
    static void (*const name##_functions[PLANAR_FILTERS])(const planar_tile *t, int64_t n) = {                \
        name##_1, name##_2, name##_3, name##_4                                                                \
    };
PLANAR_FUNCTIONS(planar_forward, 0)
PLANAR_FUNCTIONS(planar_gradient, 1)

INLINE int64_t planar_tiles(const pycnn_conv2d *d) { return ceil_div(d->k, PLANAR_FILTERS); }

/* [tile of filters][tap][filters] */
static void pack_planar(const pycnn_conv2d *d, const float *w, float *packed)
{
    const int64_t tiles = planar_tiles(d), area = d->r * d->s;
#pragma omp for schedule(static)
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = part_start(d->k, tile, tiles), end = part_start(d->k, tile + 1, tiles);
        float *to = packed + first * d->c * area;
        for (int64_t tap = 0; tap < d->c * area; tap++)
            for (int64_t k = first; k < end; k++)
                *to++ = w[tap / area * d->w_c + tap % area * d->w_tap + k * d->w_k];
    }
}

/* y's planes: for each tile of filters, of vectors. */
static void sum_taps(const planar *p, const float *packed, const float *bias)
{
    const int64_t vectors = planar_vectors(p->d, p->c, p->rows), tiles = planar_tiles(p->d), k = p->d->k;
    planar_tile t = { .at = p->offset, .terms = p->c->taps, .y_row = p->c->y_plane, .epilogue = p->d->epilogue };
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = part_start(k, tile, tiles), filters = part_start(k, tile + 1, tiles) - first;
        const int64_t parts = ceil_div(vectors, planar_width(filters));
        t.a = packed + first * p->c->taps;
        t.bias = bias ? bias + first : NULL;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t v0 = part_start(vectors, part, parts), n = part_start(vectors, part + 1, parts) - v0;
            for (int64_t v = 0; v < n; v++)
                t.x[v] = p->x + p->place[v0 + v];
            t.y = p->y + first * t.y_row + v0 * VL;
            planar_forward_functions[filters - 1](&t, n);
        }
    }
}

static void planar_run(const pycnn_conv2d *d, float *y, const float *x, const float *w, const float *bias,
                       float *workspace)
{
    const planar_cut c = cut_planar(d);
    planar p = start_planar(d, &c, workspace + c.packed + omp_get_thread_num() * c.own);
    pack_planar(d, w, workspace);
    const int64_t wanted = ceil_div(TASKS_A_THREAD * (omp_get_num_threads() - 1), MAX(1, d->n));
    const int64_t bands = MAX(c.bands, MIN(d->oh, wanted));
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < d->n * bands; task++) {
        find_planar_band(&p, task, bands);
        fill_planes(&p, x);
        sum_taps(&p, workspace, bias);
        int64_t rows, width;
        join_planar_rows(&p, &rows, &width);
        for (int64_t row = 0; row < rows; row++)
            planes_to_pixels(p.y + row * c.y_pitch, c.y_plane,
                             y + ((p.image * d->oh + p.oh0) * d->ow + row * width) * d->k, width, d->k);
    }
}

/* dy's pixels of the band to planes; all between and behind its rows is zero. */
static void fill_gradients(const planar *p, const float *dy)
{
    const pycnn_conv2d *d = p->d;
    const int64_t plane = p->c->y_plane, pitch = p->c->y_pitch;
    int64_t rows, width;
    join_planar_rows(p, &rows, &width);
    for (int64_t row = 0; row < rows; row++)
        pixels_to_planes(dy + ((p->image * d->oh + p->oh0) * d->ow + row * width) * d->k, 1, p->y + row * pitch,
                         plane, width, d->k);
    const int64_t end = (rows - 1) * pitch + width, last = planar_vectors(d, p->c, p->rows) * VL;
    for (int64_t k = 0; k < d->k; k++)
        clear_floats(p->y + k * plane + end, last - end);
}

/* Adds a band's part to sums[k][tap][lane]. */
static void sum_vectors(const planar *p, float *sums)
{
    const int64_t taps = p->c->taps, tiles = planar_tiles(p->d), k = p->d->k;
    planar_tile t = { .at = p->place, .terms = planar_vectors(p->d, p->c, p->rows), .a_row = p->c->y_plane,
                      .y_row = taps * VL };
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = part_start(k, tile, tiles), filters = part_start(k, tile + 1, tiles) - first;
        const int64_t parts = ceil_div(taps, planar_width(filters));
        t.a = p->y + first * t.a_row;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t tap = part_start(taps, part, parts), n = part_start(taps, part + 1, parts) - tap;
            for (int64_t j = 0; j < n; j++)
                t.x[j] = p->x + p->offset[tap + j];
            t.y = sums + first * t.y_row + tap * VL;
            planar_gradient_functions[filters - 1](&t, n);
        }
    }
}

/* By shapes alone. */
static int64_t planar_slices(const pycnn_conv2d *d, const planar_cut *c)
{
    const int64_t work = d->n * d->oh * d->ow * d->k * c->taps;
    return MAX(1, MIN(MIN(PLANAR_SLICES, d->n * c->bands), work / PLANAR_SLICE_WORK));
}

static int64_t planar_weights_workspace(const pycnn_conv2d *d, int64_t threads)
{
    const planar_cut c = cut_planar(d);
    return (planar_slices(d, &c) * d->k * c.taps * VL + threads * c.own) * (int64_t)sizeof(float);
}

static void planar_weights_run(const pycnn_conv2d *d, float *dw, const float *x, const float *dy, float *workspace)
{
    const planar_cut c = cut_planar(d);
    const int64_t slices = planar_slices(d, &c), floats = d->k * c.taps * VL, all = d->n * c.bands;
    const int64_t area = d->r * d->s;
    planar p = start_planar(d, &c, workspace + slices * floats + omp_get_thread_num() * c.own);
#pragma omp for schedule(dynamic, 1)
    for (int64_t slice = 0; slice < slices; slice++) {
        float *sums = workspace + slice * floats;
        memset(sums, 0, sizeof(float) * (size_t)floats);
        for (int64_t task = part_start(all, slice, slices); task < part_start(all, slice + 1, slices); task++) {
            find_planar_band(&p, task, c.bands);
            fill_planes(&p, x);
            fill_gradients(&p, dy);
            sum_vectors(&p, sums);
        }
    }
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->k * c.taps; i++) {
        vec sum = load(workspace + i * VL);
        for (int64_t slice = 1; slice < slices; slice++)
            sum = sum + load(workspace + slice * floats + i * VL);
        const int64_t k = i / c.taps, tap = i % c.taps;
        dw[tap / area * d->w_c + tap % area * d->w_tap + k * d->w_k] = lane_sum(sum);
    }
}

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
 *     for each image, group, band of its rows of outputs:                               shared among threads
 *         copy its part of x to planes                                                  L1 or L2
 *         forward:  for each tile of filters, of vectors: sum over taps                 accumulators in registers
 *                   y's planes to their places, or transposed to pixels
 *         gradient: dy to planes, zeros between the rows
 *                   for each tile of filters, of taps: sum over vectors, add to the slice's sums
 *
 * A row of outputs begins a vector of its own, or, where that needs fewer vectors, the rows of outputs follow each
 * other as the planes' rows do, what lies between them being computed in vain. Each output is one sum in the order
 * of the taps; a slice is some bands, cut and added up by shapes alone.
 *
 * Arrays may be channels-last or in contiguous planes, which need no transposition here; rows of outputs that are whole
 * vectors of such planes are made where they belong. */

enum { PLANAR_FLOATS = 12288, MOST_PLANAR_FLOATS = 65536, PLANAR_FILTERS = 4, PLANAR_VECTORS = 8 };
enum { PLANAR_SUMS = TILE_ROWS * TILE_VECTORS, PLANAR_TERMS = 576, PLANAR_SLICES = 16, PLANAR_SLICE_WORK = 200000 };

typedef struct {
    int64_t taps, phases, pitch;                  /* floats of a row of a plane */
    int64_t joined, y_pitch;                      /* whether rows of outputs follow each other without a gap */
    int64_t bands, rows, x_rows;                  /* of an image; rows of outputs in the longest band, and of x */
    int64_t vectors, y_plane, x_floats, y_floats, packed, own;
} planar_cut;

/* Floats from image to image of an array, from group to group, row to row, pixel to pixel, channel to channel. */
typedef struct { int64_t image, group, row, pixel, channel; } image_steps;

/* What is convolved: `d` is of one group, its channels and filters; w_group: from its weights to the next group's. */
typedef struct {
    pycnn_conv2d d;
    int64_t groups, w_group;
    image_steps x, y;
} planar_conv;

/* Of an array of so many channels in all, in contiguous planes or channels-last. */
static image_steps steps_of(int64_t channels, int64_t groups, int64_t h, int64_t w, int planes)
{
    const int64_t image = channels * h * w;
    return planes ? (image_steps){ image, image / groups, w, 1, h * w }
                  : (image_steps){ image, channels / groups, w * channels, channels, 1 };
}

static planar_conv planar_of(const pycnn_conv2d *d, int64_t w_group, int x_planes, int y_planes)
{
    planar_conv p = { .d = *d, .groups = d->groups, .w_group = w_group,
                      .x = steps_of(d->c, d->groups, d->h, d->w, x_planes),
                      .y = steps_of(d->k, d->groups, d->oh, d->ow, y_planes) };
    p.d.c /= d->groups;
    p.d.k /= d->groups;
    return p;
}

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

/* Whether a band stays near, and not too many lanes are computed, compared with vectors of filters: at most a third more
 * where those would have empty lanes in their only vector, else a tenth. */
static int fits_planar(const pycnn_conv2d *d)
{
    const planar_cut c = cut_planar(d);
    const int64_t lanes = c.bands * c.y_plane * d->k, others = d->oh * d->ow * round_up(d->k, VL);
    return c.x_floats <= MOST_PLANAR_FLOATS && (d->k < VL ? 3 * lanes <= 4 * others : 10 * lanes <= 11 * others);
}

static int64_t planar_workspace(const planar_conv *p, int64_t threads)
{
    const planar_cut c = cut_planar(&p->d);
    return (p->groups * c.packed + own_floats(threads, c.own)) * (int64_t)sizeof(float);
}

/* What a thread works with: a band of an image is rows oh0..oh0 + rows of its outputs. */
typedef struct {
    const planar_conv *conv;
    const pycnn_conv2d *d;                        /* the convolution's */
    const planar_cut *c;
    float *x, *y;                                 /* planes; y: of the outputs, or their gradients */
    float *to;                                    /* where the outputs' planes are made, and from plane to plane */
    int64_t to_plane;
    int64_t *place, *offset;
    int64_t image, group, oh0, rows;
} planar;

static planar start_planar(const planar_conv *conv, const planar_cut *c, float *own)
{
    const pycnn_conv2d *d = &conv->d;
    planar p = { .conv = conv, .d = d, .c = c, .x = own, .y = own + c->x_floats };
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

static void find_planar_band(planar *p, int64_t group, int64_t task, int64_t bands)
{
    p->group = group;
    p->image = task / bands;
    p->oh0 = part_start(p->d->oh, task % bands, bands);
    p->rows = part_start(p->d->oh, task % bands + 1, bands) - p->oh0;
}

/* planes[c][i] = pixels[i * step + c] */
static void pixels_to_planes(const float *pixels, int64_t step, float *planes, int64_t plane, int64_t n,
                             int64_t channels)
{
    if (channels == 1 && step == 1)
        copy_floats(planes, pixels, n);
    else if (channels == 1)
        for (int64_t i = 0; i < n; i++)
            planes[i] = pixels[i * step];
    else if (channels == 2 && step == 2)
        split_pairs(pixels, planes, planes + plane, 2 * n);
    else if (channels == 3 && step == 3)
        split(pixels, planes, plane, n, 3);
    else
        transpose_matrix(pixels, step, planes, plane, n, channels);
}

/* pixels[i * step + c] = planes[c][i] */
static void planes_to_pixels(const float *planes, int64_t plane, float *pixels, int64_t step, int64_t n,
                             int64_t channels)
{
    if (channels == 1 && step == 1)
        copy_floats(pixels, planes, n);
    else if (channels == 2 && step == 2)
        interleave_pairs(planes, planes + plane, pixels, n);
    else if (channels == 3 && step == 3)
        interleave(planes, plane, pixels, n, 3);
    else
        transpose_matrix(planes, plane, pixels, step, channels, n);
}

/* Part of a row of an array to planes: n pixels, of which it takes every `stride`-th. */
static void row_to_planes(const image_steps *steps, const float *from, int64_t stride, float *to, int64_t plane,
                          int64_t n, int64_t channels)
{
    if (steps->channel == 1) {
        pixels_to_planes(from, stride * steps->pixel, to, plane, n, channels);
        return;
    }
    for (int64_t c = 0; c < channels; c++)
        pixels_to_planes(from + c * steps->channel, stride, to + c * plane, plane, n, 1);
}

static void fill_planes(const planar *p, const float *x)
{
    const pycnn_conv2d *d = p->d;
    const image_steps *steps = &p->conv->x;
    const int64_t pitch = p->c->pitch, plane = p->c->x_rows * pitch, above = p->oh0 * d->stride_h - d->pad_top;
    const int64_t rows = (p->rows - 1) * d->stride_h + (d->r - 1) * d->dilation_h + 1;
    const float *image = x + p->image * steps->image + p->group * steps->group;
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
                row_to_planes(steps, image + ih * steps->row + (first * d->stride_w + left) * steps->pixel,
                              d->stride_w, to, p->c->phases * plane, n, d->c);
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
        if (filters < n) { /* what is few stays in registers, and where one is left, each x while it is used */
            UNROLL for (int k = 0; k < filters; k++)
                a[k] = gradient ? load(from + k * t->a_row) : splat(from[k]);
            UNROLL for (int j = 0; j < n; j++) {
                x[j] = filters * n < PLANAR_SUMS ? load_once(t->x[j] + at) : load(t->x[j] + at);
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

/* [group][tile of filters][tap][filters] */
static void pack_planar(const planar_conv *p, int64_t group_floats, const float *w, float *packed)
{
    const pycnn_conv2d *d = &p->d;
    const int64_t tiles = planar_tiles(d), area = d->r * d->s;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p->groups * tiles; task++) {
        const int64_t group = task / tiles, tile = task % tiles;
        const int64_t first = part_start(d->k, tile, tiles), end = part_start(d->k, tile + 1, tiles);
        const float *from = w + group * p->w_group;
        float *to = packed + group * group_floats + first * d->c * area;
        for (int64_t tap = 0; tap < d->c * area; tap++)
            for (int64_t k = first; k < end; k++)
                *to++ = from[tap / area * d->w_c + tap % area * d->w_tap + k * d->w_k];
    }
}

/* y's planes: for each tile of filters, of vectors. */
static void sum_taps(const planar *p, const float *packed, const float *bias)
{
    const int64_t vectors = planar_vectors(p->d, p->c, p->rows), tiles = planar_tiles(p->d), k = p->d->k;
    planar_tile t = { .at = p->offset, .terms = p->c->taps, .y_row = p->to_plane, .epilogue = p->d->epilogue };
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t first = part_start(k, tile, tiles), filters = part_start(k, tile + 1, tiles) - first;
        const int64_t parts = ceil_div(vectors, planar_width(filters));
        t.a = packed + first * p->c->taps;
        t.bias = bias ? bias + first : NULL;
        for (int64_t part = 0; part < parts; part++) {
            const int64_t v0 = part_start(vectors, part, parts), n = part_start(vectors, part + 1, parts) - v0;
            for (int64_t v = 0; v < n; v++)
                t.x[v] = p->x + p->place[v0 + v];
            t.y = p->to + first * t.y_row + v0 * VL;
            planar_forward_functions[filters - 1](&t, n);
        }
    }
}

INLINE float *band_start(const planar *p, float *y)
{
    const image_steps *steps = &p->conv->y;
    return y + p->image * steps->image + p->group * steps->group + p->oh0 * steps->row;
}

/* A band of y from its planes. */
static void store_band(const planar *p, float *y)
{
    const pycnn_conv2d *d = p->d;
    const image_steps *steps = &p->conv->y;
    int64_t rows, width;
    join_planar_rows(p, &rows, &width);
    for (int64_t row = 0; row < rows; row++) {
        const float *from = p->y + row * p->c->y_pitch;
        float *to = band_start(p, y) + row * width * steps->pixel;
        if (steps->channel == 1)
            planes_to_pixels(from, p->c->y_plane, to, steps->pixel, width, d->k);
        else
            for (int64_t k = 0; k < d->k; k++)
                copy_floats(to + k * steps->channel, from + k * p->c->y_plane, width);
    }
}

/* Whether y is made where it belongs: its rows are whole vectors of contiguous planes. */
INLINE int makes_planes(const planar_conv *p, const planar_cut *c)
{
    return p->y.channel != 1 && !c->joined && c->y_pitch == p->d.ow;
}

static void planar_run(const planar_conv *conv, float *y, const float *x, const float *w, const float *bias,
                       float *workspace)
{
    const pycnn_conv2d *d = &conv->d;
    const planar_cut c = cut_planar(d);
    planar p = start_planar(conv, &c, own_part(workspace + conv->groups * c.packed, c.own));
    pack_planar(conv, c.packed, w, workspace);
    const int64_t parts = d->n * conv->groups, wanted = ceil_div(TASKS_A_THREAD * (omp_get_num_threads() - 1), parts);
    const int64_t bands = MAX(c.bands, MIN(d->oh, wanted));
    const int in_place = makes_planes(conv, &c);
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < parts * bands; task++) {
        const int64_t image = task / bands / conv->groups, band = task % bands;
        find_planar_band(&p, task / bands % conv->groups, image * bands + band, bands);
        fill_planes(&p, x);
        p.to = in_place ? band_start(&p, y) : p.y;
        p.to_plane = in_place ? conv->y.channel : c.y_plane;
        sum_taps(&p, workspace + p.group * c.packed, bias ? bias + p.group * d->k : NULL);
        if (!in_place)
            store_band(&p, y);
    }
}

/* dy of the band to planes; all between and behind its rows is zero. */
static void fill_gradients(const planar *p, const float *dy)
{
    const pycnn_conv2d *d = p->d;
    const image_steps *steps = &p->conv->y;
    const int64_t plane = p->c->y_plane, pitch = p->c->y_pitch;
    const float *from = dy + p->image * steps->image + p->group * steps->group + p->oh0 * steps->row;
    int64_t rows, width;
    join_planar_rows(p, &rows, &width);
    for (int64_t row = 0; row < rows; row++)
        row_to_planes(steps, from + row * width * steps->pixel, 1, p->y + row * pitch, plane, width, d->k);
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

/* Adds a band's part to sums[k][lane], those of dy. */
static void sum_gradients(const planar *p, float *sums)
{
    const int64_t vectors = planar_vectors(p->d, p->c, p->rows);
    for (int64_t k = 0; k < p->d->k; k++) {
        vec sum = load(sums + k * VL);
        for (int64_t i = 0; i < vectors; i++)
            sum = sum + load(p->y + k * p->c->y_plane + i * VL);
        store(sums + k * VL, sum);
    }
}

/* Of a group, by shapes alone. */
static int64_t planar_slices(const planar_conv *p, const planar_cut *c)
{
    const pycnn_conv2d *d = &p->d;
    const int64_t work = d->n * d->oh * d->ow * d->k * c->taps;
    return MAX(1, MIN(MIN(ceil_div(PLANAR_SLICES, p->groups), d->n * c->bands), work / PLANAR_SLICE_WORK));
}

/* A slice's sums: of each filter and tap, then of each filter's dy. */
INLINE int64_t planar_sums_floats(const planar_conv *p, const planar_cut *c) { return p->d.k * (c->taps + 1) * VL; }

static int64_t planar_weights_workspace(const planar_conv *p, int64_t threads)
{
    const planar_cut c = cut_planar(&p->d);
    const int64_t sums = p->groups * planar_slices(p, &c) * planar_sums_floats(p, &c);
    return (line_floats(sums) + own_floats(threads, c.own)) * (int64_t)sizeof(float);
}

/* db may be NULL. */
static void add_planar_slices(const planar_conv *p, const planar_cut *c, const float *sums, float *dw, float *db)
{
    const pycnn_conv2d *d = &p->d;
    const int64_t slices = planar_slices(p, c), floats = planar_sums_floats(p, c), results = d->k * (c->taps + 1);
    const int64_t area = d->r * d->s;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p->groups * results; i++) {
        const int64_t group = i / results, k = i % results / c->taps, tap = i % results % c->taps;
        const float *from = sums + group * slices * floats + i % results * VL;
        vec sum = load(from);
        for (int64_t slice = 1; slice < slices; slice++)
            sum = sum + load(from + slice * floats);
        if (k < d->k)
            dw[group * p->w_group + tap / area * d->w_c + tap % area * d->w_tap + k * d->w_k] = lane_sum(sum);
        else if (db)
            db[group * d->k + i % results - d->k * c->taps] = lane_sum(sum);
    }
}

static void planar_weights_run(const planar_conv *conv, float *dw, float *db, const float *x, const float *dy,
                               float *workspace)
{
    const planar_cut c = cut_planar(&conv->d);
    const int64_t slices = planar_slices(conv, &c), floats = planar_sums_floats(conv, &c), all = conv->d.n * c.bands;
    planar p = start_planar(conv, &c, own_part(workspace + line_floats(conv->groups * slices * floats), c.own));
#pragma omp for schedule(guided)
    for (int64_t part = 0; part < conv->groups * slices; part++) {
        const int64_t group = part / slices, slice = part % slices;
        float *sums = workspace + part * floats;
        memset(sums, 0, sizeof(float) * (size_t)floats);
        for (int64_t task = part_start(all, slice, slices); task < part_start(all, slice + 1, slices); task++) {
            find_planar_band(&p, group, task, c.bands);
            fill_planes(&p, x);
            fill_gradients(&p, dy);
            sum_vectors(&p, sums);
            if (db)
                sum_gradients(&p, sums + conv->d.k * c.taps * VL);
        }
    }
    add_planar_slices(conv, &c, workspace, dw, db);
}

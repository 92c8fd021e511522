/* Forward convolution of few channels, as a network's first. A row of a filter, S * C floats, is contiguous in a
 * channels-last image, so it is one long tap instead of S short ones; the image has its padding around it for that.
 *
 *     y[pixel][column] = bias[column] + sum over r, l: x[window(pixel) + r * row][l] * w[r][l][column]      l < S * C
 *
 *     for each block of pixels:                                                     shared among threads
 *         find where their windows begin
 *         for each panel of columns, for each tile of pixels: sum                   panel and windows in L1
 *         (where y has contiguous planes: each panel's outputs, from L1)
 *
 * These sums are short: what the tile of product.h does besides, for rows found by tap and sums taken up again, would
 * cost half as much as the sums. */

enum { WINDOW_TILES = 8 };

typedef struct {
    int64_t taps, len, row;          /* rows of a filter; their floats; floats from one to the next in the image */
    const float *bias;
    int64_t columns, out_pixel;
    pycnn_epilogue epilogue;
} window_sum;

INLINE void sum_windows(const int rows, const int vectors, const int quads, const window_sum *s,
                        const float *const *window, const float *w, float *y)
{
    const int made = quads ? 1 : vectors;
    const int64_t len = s->len, row = s->row, columns = s->columns, out_pixel = s->out_pixel;
    const pycnn_epilogue epilogue = s->epilogue;
    const float *x[TALL_ROWS];
    vec acc[TALL_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        x[i] = window[i];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = splat(0);
    for (int64_t t = s->taps; t > 0; t--) {
        if (quads)
            w = add_quads(rows, vectors, acc, x, w, len);
        for (int64_t l = 0; !quads && l < len; l++, w += vectors * VL) {
            vec b[TILE_VECTORS];
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(w + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                const vec a = splat(x[i][l]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
        UNROLL for (int i = 0; i < rows; i++)
            x[i] += row;
    }
    if (quads)
        join_quads(rows, vectors, acc);
    UNROLL for (int j = 0; j < made; j++) {
        const vec shift = s->bias ? load_n(s->bias + j * VL, columns - j * VL) : splat(0);
        UNROLL for (int i = 0; i < rows; i++) {
            const vec sum = acc[i][j] + shift;
            store_n(y + i * out_pixel + j * VL, epilogue.rectifies ? rectify(sum, epilogue.slope) : sum, columns - j * VL);
        }
    }
}

#define WINDOW_PARAMETERS (const window_sum *s, const float *const *window, const float *w, float *y)
TILE_TABLE(window, sum_windows, WINDOW_PARAMETERS, (0, s, window, w, y))
QUAD_TABLE(quad_window, sum_windows, WINDOW_PARAMETERS, (1, s, window, w, y))

/* Where the windows of n pixels begin, the first being number `first` of all images. */
static void find_windows(const product *p, int64_t first, int64_t n, const float **window)
{
    const int64_t in_line = p->h.in * p->in_pixel, step = p->h.stride * p->in_pixel;
    for (int64_t i = 0; i < n;) { /* the rest of a line of outputs */
        const int64_t line = (first + i) / p->h.out, column = (first + i) % p->h.out;
        const float *at = p->in + (line / p->v.out * p->v.in + line % p->v.out * p->v.stride) * in_line + column * step;
        for (const int64_t end = MIN(n, i + p->h.out - column); i < end; i++, at += step)
            window[i] = at;
    }
}

INLINE void measure_pixels(const product *p, const float *y, int64_t slice, int64_t pixels, int64_t panel,
                           const int vectors)
{
    const int64_t first = panel * PANEL, channels = p->columns - first;
    moment_sums s = sums_from(y, channels, vectors);
    for (int64_t i = 0; i < pixels; i++)
        add_pixel(&s, y + i * p->out_pixel, channels, vectors);
    keep_sums(&p->moments, slice, first, &s, pixels, channels, vectors);
}

static void run_windows(const product *p, const float *packed, int64_t block, int64_t first, int64_t pixels)
{
    const float *windows[WINDOW_TILES * TILE_ROWS];
    float outputs[WINDOW_TILES * TILE_ROWS * PANEL]; /* on their way to planes */
    const int64_t all = panels(p->columns);
    window_sum s = { .taps = p->v.taps, .len = p->len, .row = p->v.dilation * p->h.in * p->in_pixel,
                     .out_pixel = p->planes ? PANEL : p->out_pixel, .epilogue = p->epilogue };
    find_windows(p, first, pixels, windows);
    for (int64_t panel = 0; panel < all; panel++) {
        const int vectors = packed_vectors(p, panel), quads = has_quads(p, panel);
        const float *w = packed + panel_offset(p, 0, panel);
        float *y = p->planes ? outputs : p->out + first * p->out_pixel + panel * PANEL;
        s.columns = MIN(PANEL, p->columns - panel * PANEL);
        if (p->planes)
            prefetch_planes(p->out, p->v.out * p->h.out, p->columns, first, pixels, panel * PANEL, s.columns);
        s.bias = p->bias ? p->bias + panel * PANEL : NULL;
        const int64_t tiles = ceil_div(pixels, quads ? quad_rows(s.columns) : tile_rows(s.columns));
        for (int64_t t = 0; t < tiles; t++) {
            const int64_t start = part_start(pixels, t, tiles), rows = part_start(pixels, t + 1, tiles) - start;
            float *to = y + start * s.out_pixel;
            (quads ? quad_window_functions[vectors - 1][rows - 1] : window_functions[vectors - 1][rows - 1])(
                &s, windows + start, w, to);
        }
        if (p->planes)
            store_planes(outputs, PANEL, p->out, p->v.out * p->h.out, p->columns, first, pixels, panel * PANEL,
                         s.columns);
        if (p->moments.slices > 0)
            BY_VECTORS(panel_vectors(p->columns, panel), measure_pixels, p, y, block, pixels, panel);
    }
}

/* Whether one running sum may take all terms. */
static int fits_row_taps(const product *p) { return p->len <= taps_chunk(p->v.taps); }

static int64_t row_tap_blocks(const product *p)
{
    return ceil_div(p->images * p->v.out * p->h.out, WINDOW_TILES * TILE_ROWS);
}

static void run_row_taps(const product *p, float *workspace)
{
    if (!p->prepacked) {
        pack_weights(p, workspace);
#pragma omp barrier
    }
    const int64_t pixels = p->images * p->v.out * p->h.out, blocks = row_tap_blocks(p);
#pragma omp for schedule(guided)
    for (int64_t block = 0; block < blocks; block++) {
        const int64_t first = part_start(pixels, block, blocks);
        run_windows(p, p->prepacked ? p->packed : workspace, block, first, part_start(pixels, block + 1, blocks) - first);
    }
}

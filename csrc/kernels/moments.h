/* The mean and variance of each channel over all pixels, for batch normalisation, from the moments of slices of pixels.
 *
 *     for each slice of the pixels, for each strip of channels: mean, centred sum of squares      by who made the pixels
 *     for each channel: merge the slices in double precision                                      shared
 *
 * A convolution takes a slice's moments while its outputs are still in a cache (add_pixel), in one pass of sums that
 * are relative to the slice's first pixel; take_moments goes twice over slices of a matrix that lies in memory. The
 * variance is never E[x^2] - E[x]^2, which cancels when the mean is large: the distance from a pixel of the slice to
 * its mean is of the size of the deviations (Chan, Golub and LeVeque 1983, "Algorithms for computing the sample
 * variance", section 3). The slices depend on shapes alone. */

enum { SLICE_PIXELS = 64, MOMENT_STRIP = 8, MERGE_CHANNELS = 16 };

/* Of each slice: its number of pixels, and its means and sums of squares, a row of all channels. */
typedef struct { int64_t slices, channels, *pixels; float *mean, *square; } moments;

static int64_t moments_floats(int64_t slices, int64_t channels)
{
    return line_floats(2 * slices) + line_floats(2 * slices * channels);
}

static moments moments_at(float *workspace, int64_t slices, int64_t channels)
{
    float *mean = workspace + line_floats(2 * slices);
    return (moments){ slices, channels, (int64_t *)workspace, mean, mean + slices * channels };
}

/* ---- of pixels as they are made */

/* f of one panel's channels, for each number of vectors of them. */
#if TILE_VECTORS == 2
#define BY_VECTORS(count, f, ...) ((count) == 2 ? f(__VA_ARGS__, 2) : f(__VA_ARGS__, 1))
#else
#define BY_VECTORS(count, f, ...)                                                                             \
    ((count) == 4 ? f(__VA_ARGS__, 4) : (count) == 3 ? f(__VA_ARGS__, 3) :                                    \
     (count) == 2 ? f(__VA_ARGS__, 2) : f(__VA_ARGS__, 1))
#endif

/* Sums over pixels of a panel's vectors of channels. */
typedef struct { vec shift[TILE_VECTORS], sum[TILE_VECTORS], square[TILE_VECTORS]; } moment_sums;

INLINE moment_sums sums_from(const float *pixel, int64_t channels, const int vectors)
{
    moment_sums s = { 0 };
    UNROLL for (int j = 0; j < vectors; j++)
        s.shift[j] = load_n(pixel + j * VL, channels - j * VL);
    return s;
}

INLINE void add_pixel(moment_sums *s, const float *pixel, int64_t channels, const int vectors)
{
    UNROLL for (int j = 0; j < vectors; j++) {
        const vec distance = load_n(pixel + j * VL, channels - j * VL) - s->shift[j];
        s->sum[j] = s->sum[j] + distance;
        s->square[j] = s->square[j] + distance * distance;
    }
}

/* The sums are those of `pixels` pixels and of channels first, first + 1, ... of a slice. */
INLINE void keep_sums(const moments *m, int64_t slice, int64_t first, const moment_sums *s, int64_t pixels,
                      int64_t channels, const int vectors)
{
    const int64_t at = slice * m->channels + first;
    const float share = 1.0f / (float)MAX(pixels, 1);
    if (first == 0)
        m->pixels[slice] = pixels;
    UNROLL for (int j = 0; j < vectors; j++) {
        const vec distance = s->sum[j] * share;
        store_n(m->mean + at + j * VL, s->shift[j] + distance, channels - j * VL);
        store_n(m->square + at + j * VL, s->square[j] - s->sum[j] * distance, channels - j * VL);
    }
}

/* ---- of a matrix of pixels */

static int64_t matrix_slices(int64_t pixels) { return MAX(1, pixels / SLICE_PIXELS); }

/* Means and centred sums of squares of n channels, in `vectors` vectors, of some rows. */
INLINE void strip_moments(const float *x, int64_t rows, int64_t columns, float *means, float *squares, int64_t n,
                          const int vectors)
{
    vec mean[MOMENT_STRIP] = { splat(0) }, square[MOMENT_STRIP] = { splat(0) };
    for (int64_t i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++)
            mean[v] = mean[v] + load_n(x + i * columns + v * VL, n - v * VL);
    UNROLL for (int v = 0; v < vectors; v++)
        mean[v] = mean[v] / (float)rows;
    for (int64_t i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const vec centred = load_n(x + i * columns + v * VL, n - v * VL) - mean[v];
            square[v] = square[v] + centred * centred;
        }
    UNROLL for (int v = 0; v < vectors; v++) {
        store_n(means + v * VL, mean[v], n - v * VL);
        store_n(squares + v * VL, square[v], n - v * VL);
    }
}

/* Memory is read once: a strip of a slice stays in the first cache between its two passes. */
static void take_moments(const moments *m, const float *x, int64_t pixels)
{
    const int64_t columns = m->channels;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < m->slices; slice++) {
        const int64_t first = part_start(pixels, slice, m->slices);
        const int64_t rows = part_start(pixels, slice + 1, m->slices) - first;
        float *means = m->mean + slice * columns, *squares = m->square + slice * columns;
        int64_t c = 0;
        m->pixels[slice] = rows;
        for (; c + MOMENT_STRIP * VL <= columns; c += MOMENT_STRIP * VL)
            strip_moments(x + first * columns + c, rows, columns, means + c, squares + c, MOMENT_STRIP * VL,
                          MOMENT_STRIP);
        for (; c + MOMENT_STRIP / 2 * VL <= columns; c += MOMENT_STRIP / 2 * VL)
            strip_moments(x + first * columns + c, rows, columns, means + c, squares + c, MOMENT_STRIP / 2 * VL,
                          MOMENT_STRIP / 2);
        for (; c < columns; c += VL)
            strip_moments(x + first * columns + c, rows, columns, means + c, squares + c, columns - c, 1);
    }
}

/* ---- of all slices */

/* The squares of all pixels are the slices' own squares, and those of their means' distances from the mean of all. */
static void merge_moments(const moments *m, float *mean, float *variance)
{
    int64_t pixels = 0;
    for (int64_t slice = 0; slice < m->slices; slice++)
        pixels += m->pixels[slice];
#pragma omp for schedule(static)
    for (int64_t c0 = 0; c0 < m->channels; c0 += MERGE_CHANNELS) {
        const int64_t n = MIN(MERGE_CHANNELS, m->channels - c0);
        double centre[MERGE_CHANNELS] = { 0 }, square[MERGE_CHANNELS] = { 0 };
        for (int64_t slice = 0; slice < m->slices; slice++) {
            const double share = (double)m->pixels[slice] / (double)pixels;
            for (int64_t i = 0; i < n; i++)
                centre[i] += share * m->mean[slice * m->channels + c0 + i];
        }
        for (int64_t slice = 0; slice < m->slices; slice++)
            for (int64_t i = 0; i < n; i++) {
                const double delta = m->mean[slice * m->channels + c0 + i] - centre[i];
                square[i] += m->square[slice * m->channels + c0 + i] + (double)m->pixels[slice] * delta * delta;
            }
        for (int64_t i = 0; i < n; i++) {
            mean[c0 + i] = (float)centre[i];
            variance[c0 + i] = (float)(square[i] / (double)pixels);
        }
    }
}

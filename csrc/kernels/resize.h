/* Images of other sizes, vectors over channels: adaptive averages and upsampling.
 *
 * Forward:   for each row of outputs (or of inputs that several rows repeat; shared among threads), for each pixel.
 * Backward:  for each row of inputs (shared among threads), for each of its pixels: add up what it gets from each
 *            output that it has a share in, in their order. */

/* The pixels first..last-1 of a row of `size` that output i of `outputs` averages. With the numbers exchanged it
 * is the other way round: the outputs that pixel i is part of. */
INLINE void adaptive_window(int64_t i, int64_t size, int64_t outputs, int64_t *first, int64_t *last)
{
    *first = i * size / outputs;
    *last = ceil_div((i + 1) * size, outputs);
}

/* n channels of the mean over rows by columns; the sums of rows are added, which keeps the sums short. */
INLINE vec adaptive_mean(const pycnn_resize *d, const float *x, int64_t rows, int64_t columns, int64_t n)
{
    vec total = splat(0);
    for (int64_t r = 0; r < rows; r++) {
        vec sum = splat(0);
        for (int64_t s = 0; s < columns; s++)
            sum = sum + load_n(x + (r * d->w + s) * d->c, n);
        total = total + sum;
    }
    return total / (float)(rows * columns);
}

/* y, x */
static void adaptive_avg_pool2d(const void *desc, void *const *args)
{
    const pycnn_resize own = *(const pycnn_resize *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        int64_t h0, h1, w0, w1;
        adaptive_window(row % d->oh, d->h, d->oh, &h0, &h1);
        for (int64_t ow = 0; ow < d->ow; ow++) {
            adaptive_window(ow, d->w, d->ow, &w0, &w1);
            const float *from = x + ((row / d->oh * d->h + h0) * d->w + w0) * d->c;
            float *to = y + (row * d->ow + ow) * d->c;
            for (int64_t c = 0; c < d->c; c += VL)
                store_n(to + c, adaptive_mean(d, from + c, h1 - h0, w1 - w0, d->c - c), d->c - c);
        }
    }
}

/* One part in so many of output i is a pixel's. */
INLINE int64_t adaptive_size(int64_t i, int64_t size, int64_t outputs)
{
    int64_t first, last;
    adaptive_window(i, size, outputs, &first, &last);
    return last - first;
}

/* dx, dy */
static void adaptive_avg_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_resize own = *(const pycnn_resize *)desc, *d = &own;
    float *dx = args[0];
    const float *dy = args[1];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++) {
        int64_t oh0, oh1, ow0, ow1;
        adaptive_window(row % d->h, d->oh, d->h, &oh0, &oh1);
        for (int64_t w = 0; w < d->w; w++) {
            adaptive_window(w, d->ow, d->w, &ow0, &ow1);
            for (int64_t oh = oh0; oh < oh1; oh++)
                for (int64_t ow = ow0; ow < ow1; ow++) {
                    const int64_t pixels = adaptive_size(oh, d->h, d->oh) * adaptive_size(ow, d->w, d->ow);
                    add_share(dx + (row * d->w + w) * d->c, dy + ((row / d->h * d->oh + oh) * d->ow + ow) * d->c,
                              1.0f / (float)pixels, d->c, (d->w - w) * d->c, oh == oh0 && ow == ow0);
                }
        }
    }
}

static void upsample_nearest(const pycnn_resize *desc, float *y, const float *x)
{
    const pycnn_resize own = *desc, *d = &own;
    const int64_t down = d->oh / d->h, across = d->ow / d->w, width = d->ow * d->c;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++) {
        float *to = y + row * down * width;
        for (int64_t ow = 0; ow < d->ow; ow++)
            copy_floats(to + ow * d->c, x + (row * d->w + ow / across) * d->c, d->c);
        for (int64_t i = 1; i < down; i++)
            memcpy(to + i * width, to, sizeof(float) * (size_t)width);
    }
}

/* Output i lies (i + 1/2) / scale - 1/2 pixels from the first pixel's centre, but not before it: the two pixels that
 * it is between, and the weight of the second. */
INLINE float between(int64_t i, int64_t scale, int64_t size, int64_t *first, int64_t *second)
{
    const int64_t place = MAX(2 * i + 1 - scale, 0);
    *first = place / (2 * scale);
    *second = MIN(*first + 1, size - 1);
    return (float)(place % (2 * scale)) / (float)(2 * scale);
}

static void upsample_bilinear(const pycnn_resize *desc, float *y, const float *x)
{
    const pycnn_resize own = *desc, *d = &own;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        int64_t h0, h1, w0, w1;
        const float lower = between(row % d->oh, d->oh / d->h, d->h, &h0, &h1);
        const float *top = x + (row / d->oh * d->h + h0) * d->w * d->c, *bottom = top + (h1 - h0) * d->w * d->c;
        for (int64_t ow = 0; ow < d->ow; ow++) {
            const float right = between(ow, d->ow / d->w, d->w, &w0, &w1);
            float *to = y + (row * d->ow + ow) * d->c;
            for (int64_t c = 0; c < d->c; c += VL) {
                const int64_t n = d->c - c, at0 = w0 * d->c + c, at1 = w1 * d->c + c;
                const vec above = load_n(top + at0, n) * (1 - right) + load_n(top + at1, n) * right;
                const vec below = load_n(bottom + at0, n) * (1 - right) + load_n(bottom + at1, n) * right;
                store_n(to + c, above * (1 - lower) + below * lower, n);
            }
        }
    }
}

/* y, x */
static void upsample2d(const void *desc, void *const *args)
{
    const pycnn_resize *d = desc;
    (d->bilinear ? upsample_bilinear : upsample_nearest)(d, args[0], args[1]);
}

/* The outputs first..last-1 that pixel i has a share in. */
INLINE void outputs_of(const pycnn_resize *d, int64_t i, int64_t scale, int64_t size, int64_t *first, int64_t *last)
{
    *first = d->bilinear ? MAX(0, (i - 1) * scale + (scale + 1) / 2) : i * scale;
    *last = d->bilinear ? MIN(size * scale, (i + 1) * scale + scale / 2) : (i + 1) * scale;
}

INLINE float share_of(const pycnn_resize *d, int64_t output, int64_t i, int64_t scale, int64_t size)
{
    if (!d->bilinear)
        return 1;
    int64_t first, second;
    const float weight = between(output, scale, size, &first, &second);
    return (first == i ? 1 - weight : 0) + (second == i ? weight : 0);
}

/* dx, dy */
static void upsample2d_backward(const void *desc, void *const *args)
{
    const pycnn_resize own = *(const pycnn_resize *)desc, *d = &own;
    float *dx = args[0];
    const float *dy = args[1];
    const int64_t down = d->oh / d->h, across = d->ow / d->w;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++) {
        const int64_t h = row % d->h;
        int64_t oh0, oh1, ow0, ow1;
        outputs_of(d, h, down, d->h, &oh0, &oh1);
        for (int64_t w = 0; w < d->w; w++) {
            outputs_of(d, w, across, d->w, &ow0, &ow1);
            for (int64_t oh = oh0; oh < oh1; oh++) {
                const float vertical = share_of(d, oh, h, down, d->h);
                for (int64_t ow = ow0; ow < ow1; ow++)
                    add_share(dx + (row * d->w + w) * d->c, dy + ((row / d->h * d->oh + oh) * d->ow + ow) * d->c,
                              vertical * share_of(d, ow, w, across, d->w), d->c, (d->w - w) * d->c,
                              oh == oh0 && ow == ow0);
            }
        }
    }
}

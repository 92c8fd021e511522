/* Max, average and global average pooling, vectors over channels.
 *
 * Forward:   for each row of outputs (shared among threads), for each output pixel, for each vector of
 *            channels: go through the part of the window that lies inside the image.
 * Backward:  for each image and strip of channels (shared among threads): clear dx, then give each output
 *            pixel's gradient to its inputs, in the order of the outputs. */

enum { POOL_STRIP = 4 * VL };

/* The taps first..last of a window that starts at `start` which lie inside 0..size-1. */
INLINE void window(int64_t start, int64_t taps, int64_t dilation, int64_t size, int64_t *first, int64_t *last)
{
    if (dilation == 1) { /* without the divisions */
        *first = MAX(0, -start);
        *last = MIN(taps, size - start);
        return;
    }
    *first = start < 0 ? ceil_div(-start, dilation) : 0;
    *last = MIN(taps, (size - 1 - start) / dilation + 1);
}

/* y, argmax (int32, h * W + w), x. A value replaces the maximum when it is greater or NaN, so ties keep the
 * first and a NaN in the window comes out. */
static void max_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *y = args[0];
    int32_t *argmax = args[1];
    const float *x = args[2];
    const int64_t channels = d->c;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        const float *image = x + row / d->oh * d->h * d->w * channels;
        const int64_t top = row % d->oh * d->stride_h - d->pad_h;
        int64_t r0, r1, s0, s1;
        window(top, d->r, d->dilation_h, d->h, &r0, &r1);
        for (int64_t ow = 0; ow < d->ow; ow++) {
            const int64_t left = ow * d->stride_w - d->pad_w, out = (row * d->ow + ow) * channels;
            window(left, d->s, d->dilation_w, d->w, &s0, &s1);
            for (int64_t c = 0; c < channels; c += VL) {
                const int64_t n = channels - c;
                vec best = splat(-INFINITY);
                ivec where_best = splat_int((int32_t)((top + r0 * d->dilation_h) * d->w + left + s0 * d->dilation_w));
                for (int64_t r = r0; r < r1; r++)
                    for (int64_t s = s0; s < s1; s++) {
                        const int64_t place = (top + r * d->dilation_h) * d->w + left + s * d->dilation_w;
                        const vec value = load_n(image + place * channels + c, n);
                        const ivec better = (value > best) | (value != value);
                        best = where(better, value, best);
                        where_best = where_int(better, splat_int((int32_t)place), where_best);
                    }
                store_n(y + out + c, best, n);
                store_int_n(argmax + out + c, where_best, n);
            }
        }
    }
}

/* dx, dy, argmax */
static void max_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *dx = args[0];
    const float *dy = args[1];
    const int32_t *argmax = args[2];
    const int64_t channels = d->c, strips = ceil_div(channels, POOL_STRIP);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, c0 = task % strips * POOL_STRIP, c1 = MIN(channels, c0 + POOL_STRIP);
        float *to = dx + image * d->h * d->w * channels;
        for (int64_t pixel = 0; pixel < d->h * d->w; pixel++)
            memset(to + pixel * channels + c0, 0, sizeof(float) * (size_t)(c1 - c0));
        const int64_t first = image * d->oh * d->ow;
        for (int64_t pixel = first; pixel < first + d->oh * d->ow; pixel++)
            for (int64_t c = c0; c < c1; c++)
                to[argmax[pixel * channels + c] * channels + c] += dy[pixel * channels + c];
    }
}

/* 1 / the divisor of the window at (top, left): its size with padding, cut at the padded edge, or what of it
 * lies inside the image. */
INLINE float average_scale(const pycnn_pool2d *d, int64_t top, int64_t left)
{
    int64_t rows = MIN(top + d->r, d->h + d->pad_h) - top, columns = MIN(left + d->s, d->w + d->pad_w) - left;
    if (!d->count_include_pad) {
        rows = MIN(top + d->r, d->h) - MAX(top, 0);
        columns = MIN(left + d->s, d->w) - MAX(left, 0);
    }
    return 1.0f / (float)(rows * columns);
}

/* y, x */
static void avg_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *y = args[0];
    const float *x = args[1];
    const int64_t channels = d->c;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        const float *image = x + row / d->oh * d->h * d->w * channels;
        const int64_t top = row % d->oh * d->stride_h - d->pad_h;
        for (int64_t ow = 0; ow < d->ow; ow++) {
            const int64_t left = ow * d->stride_w - d->pad_w;
            const float scale = average_scale(d, top, left);
            for (int64_t c = 0; c < channels; c += VL) {
                const int64_t n = channels - c;
                vec sum = splat(0);
                for (int64_t h = MAX(top, 0); h < MIN(top + d->r, d->h); h++)
                    for (int64_t w = MAX(left, 0); w < MIN(left + d->s, d->w); w++)
                        sum = sum + load_n(image + (h * d->w + w) * channels + c, n);
                store_n(y + (row * d->ow + ow) * channels + c, sum * scale, n);
            }
        }
    }
}

/* dx, dy */
static void avg_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *dx = args[0];
    const float *dy = args[1];
    const int64_t channels = d->c, strips = ceil_div(channels, VL);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, c = task % strips * VL, n = channels - c;
        float *to = dx + image * d->h * d->w * channels + c;
        const float *from = dy + image * d->oh * d->ow * channels + c;
        for (int64_t pixel = 0; pixel < d->h * d->w; pixel++)
            store_n(to + pixel * channels, splat(0), n);
        for (int64_t oh = 0; oh < d->oh; oh++)
            for (int64_t ow = 0; ow < d->ow; ow++) {
                const int64_t top = oh * d->stride_h - d->pad_h, left = ow * d->stride_w - d->pad_w;
                const vec share = load_n(from + (oh * d->ow + ow) * channels, n) * average_scale(d, top, left);
                for (int64_t h = MAX(top, 0); h < MIN(top + d->r, d->h); h++)
                    for (int64_t w = MAX(left, 0); w < MIN(left + d->s, d->w); w++) {
                        float *at = to + (h * d->w + w) * channels;
                        store_n(at, load_n(at, n) + share, n);
                    }
            }
    }
}

/* y (N, C), x */
static void global_avg_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *y = args[0];
    const float *x = args[1];
    const int64_t channels = d->c, pixels = d->h * d->w, strips = ceil_div(channels, VL);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, c = task % strips * VL, n = channels - c;
        const float *from = x + image * pixels * channels + c;
        vec sum[4] = { splat(0), splat(0), splat(0), splat(0) };
        for (int64_t pixel = 0; pixel < pixels; pixel++)
            sum[pixel % 4] = sum[pixel % 4] + load_n(from + pixel * channels, n);
        store_n(y + image * channels + c, ((sum[0] + sum[1]) + (sum[2] + sum[3])) / (float)pixels, n);
    }
}

/* dx, dy (N, C) */
static void global_avg_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    float *dx = args[0];
    const float *dy = args[1];
    const int64_t channels = d->c, pixels = d->h * d->w;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++)
        for (int64_t pixel = 0; pixel < d->w; pixel++)
            for (int64_t c = 0; c < channels; c += VL)
                store_n(dx + (row * d->w + pixel) * channels + c,
                        load_n(dy + row / d->h * channels + c, channels - c) / (float)pixels, channels - c);
}

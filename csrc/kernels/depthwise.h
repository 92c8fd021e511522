/* Depthwise convolution, one filter a channel (groups = C = K), vectors over channels.
 *
 *     pack w into [tap][channel]                                                     shared, once a call
 *     for each row of outputs:                                                       shared among threads
 *         for each pixel of the row: find the taps that lie inside
 *             for each vector of channels: sum over those taps
 *
 * Backward-data is the same nest over dx with the axes reversed (see product.h). Backward-weights sums each
 * tap over a fixed number of slices of the output rows, added in order. */

typedef struct { const float *x, *w; } depthwise_tap;

enum { DEPTHWISE_SLICES = 16 };

/* The input position of output o under tap t, or -1. */
INLINE int64_t tap_position(const axis *a, int64_t o, int64_t t)
{
    int64_t position = a->backward ? o + a->pad - t * a->dilation : o * a->stride + t * a->dilation - a->pad;
    if (a->backward) {
        if (position % a->stride)
            return -1;
        position /= a->stride;
    }
    return inside(position, a->in) ? position : -1;
}

static int64_t packed_floats(const pycnn_conv2d *d) { return line_floats(d->r * d->s * d->c); }
static int64_t tap_table_bytes(const pycnn_conv2d *d)
{
    return round_up(d->r * d->s * (int64_t)sizeof(depthwise_tap), 64);
}

static int64_t depthwise_workspace(const void *desc, int64_t threads)
{
    return packed_floats(desc) * (int64_t)sizeof(float) + threads * tap_table_bytes(desc);
}

static void pack_depthwise(const pycnn_conv2d *d, const float *w, float *packed)
{
#pragma omp for schedule(static)
    for (int64_t tap = 0; tap < d->r * d->s; tap++)
        for (int64_t c = 0; c < d->c; c++)
            packed[tap * d->c + c] = w[tap * d->w_tap + c * d->w_k];
}

static void depthwise_rows(const pycnn_conv2d *d, axis v, axis h, float *out, const float *in, const float *bias,
                           const float *packed, depthwise_tap *taps)
{
    const int64_t channels = d->c;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * v.out; row++) {
        const float *image = in + row / v.out * v.in * h.in * channels;
        for (int64_t o = 0; o < h.out; o++) {
            int64_t used = 0;
            for (int64_t r = 0; r < v.taps; r++) {
                const int64_t ih = tap_position(&v, row % v.out, r);
                for (int64_t s = 0; ih >= 0 && s < h.taps; s++) {
                    const int64_t iw = tap_position(&h, o, s);
                    if (iw >= 0)
                        taps[used++] = (depthwise_tap){ image + (ih * h.in + iw) * channels,
                                                        packed + (r * h.taps + s) * channels };
                }
            }
            float *to = out + (row * h.out + o) * channels;
            for (int64_t c = 0; c < channels; c += VL) {
                const int64_t n = channels - c;
                vec sum = bias ? load_n(bias + c, n) : splat(0);
                for (int64_t t = 0; t < used; t++)
                    sum = sum + load_n(taps[t].x + c, n) * load_n(taps[t].w + c, n);
                store_n(to + c, sum, n);
            }
        }
    }
}

static void run_depthwise(const pycnn_conv2d *d, axis v, axis h, float *out, const float *in, const float *w,
                          const float *bias, float *workspace)
{
    char *tables = (char *)(workspace + packed_floats(d));
    pack_depthwise(d, w, workspace);
    depthwise_rows(d, v, h, out, in, bias, workspace,
                   (depthwise_tap *)(tables + omp_get_thread_num() * tap_table_bytes(d)));
}

/* y, x, w, bias or NULL */
static void depthwise(const void *desc, void *const *args)
{
    run_depthwise(desc, vertical(desc), horizontal(desc), args[0], args[1], args[2], args[3], args[4]);
}

static int64_t depthwise_backward_data_workspace(const void *desc, int64_t threads)
{
    return depthwise_workspace(desc, threads);
}

/* dx, dy, w */
static void depthwise_backward_data(const void *desc, void *const *args)
{
    run_depthwise(desc, reversed(vertical(desc)), reversed(horizontal(desc)), args[0], args[1], args[2], NULL, args[3]);
}

static int64_t depthwise_slices(const pycnn_conv2d *d) { return MIN(DEPTHWISE_SLICES, d->n * d->oh); }

static int64_t depthwise_backward_weights_workspace(const void *desc, int64_t threads)
{
    (void)threads;
    return depthwise_slices(desc) * packed_floats(desc) * (int64_t)sizeof(float);
}

/* The sum over one row of outputs of x * dy for one tap and vector of channels; four running sums. */
INLINE vec row_sum(const float *x, int64_t x_step, const float *dy, int64_t dy_step, int64_t pixels, int64_t n)
{
    vec sum[4] = { splat(0), splat(0), splat(0), splat(0) };
    for (; pixels >= 4; pixels -= 4)
        UNROLL for (int u = 0; u < 4; u++, x += x_step, dy += dy_step)
            sum[u] = sum[u] + load_n(x, n) * load_n(dy, n);
    for (; pixels > 0; pixels--, x += x_step, dy += dy_step)
        sum[0] = sum[0] + load_n(x, n) * load_n(dy, n);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* dw, x, dy */
static void depthwise_backward_weights(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    float *dw = args[0], *partials = args[3];
    const float *x = args[1], *dy = args[2];
    const axis v = vertical(d), h = horizontal(d);
    const int64_t channels = d->c, taps = d->r * d->s, strips = ceil_div(channels, VL), slices = depthwise_slices(d);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < slices * strips; task++) {
        const int64_t slice = task / strips, c = task % strips * VL, n = channels - c;
        float *partial = partials + slice * packed_floats(d) + c;
        const int64_t end = part_start(d->n * d->oh, slice + 1, slices);
        for (int64_t tap = 0; tap < taps; tap++)
            store_n(partial + tap * channels, splat(0), n);
        for (int64_t row = part_start(d->n * d->oh, slice, slices); row < end; row++)
            for (int64_t tap = 0; tap < taps; tap++) {
                const int64_t ih = tap_position(&v, row % d->oh, tap / d->s);
                int64_t o0 = 0, o1 = d->ow;
                reached(&h, tap % d->s, &o0, &o1);
                if (ih < 0 || o0 >= o1)
                    continue;
                const int64_t iw = tap_position(&h, o0, tap % d->s);
                const float *from = x + ((row / d->oh * d->h + ih) * d->w + iw) * channels + c;
                const vec sum = row_sum(from, d->stride_w * channels, dy + (row * d->ow + o0) * channels + c, channels,
                                        o1 - o0, n);
                store_n(partial + tap * channels, load_n(partial + tap * channels, n) + sum, n);
            }
    }
#pragma omp for schedule(static)
    for (int64_t tap = 0; tap < taps; tap++)
        for (int64_t c = 0; c < channels; c++) {
            float sum = 0;
            for (int64_t slice = 0; slice < slices; slice++)
                sum += partials[slice * packed_floats(d) + tap * channels + c];
            dw[tap * d->w_tap + c * d->w_k] = sum;
        }
}

/* Element-wise kernels over flat arrays, in blocks shared among the threads. */

enum { ELEMENT_BLOCK = 4096, SCALE_STRIP = 4 };

/* An activation f and the derivative's product dy * f'(x), at kinks as PyTorch defines them. The order is
 * that of ACTIVATION_OPTIONS in shapes.py. */
#define ACTIVATIONS(A)                                                                                        \
    A(relu, where(x <= 0.0f, splat(0), x), where(x <= 0.0f, splat(0), dy))                                    \
    A(leaky_relu, where(x > 0.0f, x, x * alpha), where(x > 0.0f, dy, dy * alpha))                             \
    A(sigmoid, vec_sigmoid(x), dy * vec_sigmoid(x) * (1.0f - vec_sigmoid(x)))                                 \
    A(tanh, vec_tanh(x), dy * (1.0f - vec_tanh(x) * vec_tanh(x)))                                             \
    A(elu, where(x <= 0.0f, alpha * vec_expm1_negative(x), x), where(x <= 0.0f, dy * alpha * vec_exp_negative(x), dy)) \
    A(gelu, gelu_value(x), dy * gelu_slope(x))                                                                \
    A(silu, x * vec_sigmoid(x), dy * vec_sigmoid(x) * (1.0f + x * (1.0f - vec_sigmoid(x))))                   \
    A(hard_swish, x * hard_gate(x), where(x <= -3.0f, splat(0), where(x < 3.0f, dy * (x * (1 / 3.0f) + 0.5f), dy)))

/* min(max(x + 3, 0), 6) / 6 */
INLINE vec hard_gate(vec x)
{
    const vec gate = where(x <= -3.0f, splat(0), x + 3.0f);
    return where(gate > 6.0f, splat(6), gate) * (1 / 6.0f);
}

/* x F(x) with the normal distribution function F(x) = 1 - F(-x); of infinity, which times 0 would be NaN, as of 14. */
INLINE vec gelu_value(vec x)
{
    const vec tail = vec_max(splat(-14), vec_minus_abs(x));
    return vec_max(splat(0), x) + tail * (vec_normal_tail_ratio(tail) * vec_gauss(tail));
}

/* F(x) + x F'(x); of infinities NaN. */
INLINE vec gelu_slope(vec x)
{
    const vec tail = vec_minus_abs(x);
    const vec slope = (vec_normal_tail_ratio(tail) + 0.3989422804f * tail) * vec_gauss(tail);
    return where(x < 0.0f, slope, 1.0f - slope);
}

#define ACTIVATION_FUNCTIONS(name, forward, backward)                                                         \
    INLINE vec name##_of(vec x, float alpha)                                                                  \
    {                                                                                                         \
        (void)alpha;                                                                                          \
        return forward;                                                                                       \
    }                                                                                                         \
    INLINE vec name##_gradient(vec dy, vec x, float alpha)                                                    \
    {                                                                                                         \
        (void)alpha;                                                                                          \
        return backward;                                                                                      \
    }                                                                                                         \
    static void name##_forward(float *y, const float *x, int64_t size, float alpha, int past)                 \
    {                                                                                                         \
        int64_t i = 0;                                                                                        \
        for (; i + VL <= size; i += VL)                                                                       \
            put_n(y + i, name##_of(get_n(x + i, VL, past), alpha), VL, past);                                 \
        if (i < size)                                                                                         \
            store_n(y + i, name##_of(load_n(x + i, size - i), alpha), size - i);                              \
    }                                                                                                         \
    static void name##_backward(float *dx, const float *dy, const float *x, int64_t size, float alpha,        \
                                int past)                                                                     \
    {                                                                                                         \
        int64_t i = 0;                                                                                        \
        for (; i + VL <= size; i += VL)                                                                       \
            put_n(dx + i, name##_gradient(get_n(dy + i, VL, past), get_n(x + i, VL, past), alpha), VL, past); \
        if (i < size)                                                                                         \
            store_n(dx + i, name##_gradient(load_n(dy + i, size - i), load_n(x + i, size - i), alpha), size - i); \
    }
ACTIVATIONS(ACTIVATION_FUNCTIONS)

#define ACTIVATION_ENTRY(name, forward, backward) { name##_forward, name##_backward },
static const struct {
    void (*forward)(float *y, const float *x, int64_t size, float alpha, int past);
    void (*backward)(float *dx, const float *dy, const float *x, int64_t size, float alpha, int past);
} activation_functions[] = { ACTIVATIONS(ACTIVATION_ENTRY) };

#define ACTIVATION_KIND(name, forward, backward) KIND_##name,
enum { ACTIVATIONS(ACTIVATION_KIND) };

/* y, x */
static void activation(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    float *y = args[0];
    const float *x = args[1];
    const int past = streams(y, 2 * d->size, ELEMENT_BLOCK);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < d->size; i += ELEMENT_BLOCK)
        activation_functions[d->kind].forward(y + i, x + i, MIN(ELEMENT_BLOCK, d->size - i), d->alpha, past);
    end_stream(past);
}

/* dx, dy, x */
static void activation_backward(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    float *dx = args[0];
    const float *dy = args[1], *x = args[2];
    const int past = streams(dx, 3 * d->size, ELEMENT_BLOCK);
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < d->size; i += ELEMENT_BLOCK)
        activation_functions[d->kind].backward(dx + i, dy + i, x + i, MIN(ELEMENT_BLOCK, d->size - i), d->alpha,
                                               past);
    end_stream(past);
}

/* out = f(a, b) */
INLINE void combine(float *out, const float *a, const float *b, int64_t size, vec (*const f)(vec, vec))
{
    const int past = streams(out, 3 * size, ELEMENT_BLOCK);
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < size; first += ELEMENT_BLOCK) {
        const int64_t end = MIN(size, first + ELEMENT_BLOCK);
        int64_t i = first;
        for (; i + VL <= end; i += VL)
            put_n(out + i, f(get_n(a + i, VL, past), get_n(b + i, VL, past)), VL, past);
        if (i < end)
            store_n(out + i, f(load_n(a + i, end - i), load_n(b + i, end - i)), end - i);
    }
    end_stream(past);
}

INLINE vec through_sigmoid(vec dy, vec y) { return dy * (y * (1.0f - y)); }
INLINE vec through_tanh(vec dy, vec y) { return dy * (1.0f - y * y); }
INLINE vec sum_of(vec a, vec b) { return a + b; }

/* dx, dy, y = f(x): sigmoid and tanh have derivatives that cost less from y. */
static void activation_backward_of_y(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    if (d->kind == KIND_tanh)
        combine(args[0], args[1], args[2], d->size, through_tanh);
    else
        combine(args[0], args[1], args[2], d->size, through_sigmoid);
}

/* y, a, b; y may be a or b */
static void add(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    combine(args[0], args[1], args[2], d->size, sum_of);
}

/* y (rows, columns), bias (columns,), which is added to each row. A bias of less than a vector is repeated until it
 * fills whole vectors, of which each then takes several rows. */
static void add_bias(const void *desc, void *const *args)
{
    const pycnn_matrix own = *(const pycnn_matrix *)desc, *d = &own;
    float *y = args[0];
    const float *bias = args[1];
    const int64_t size = d->rows * d->columns, period = d->columns < VL ? d->columns * VL : d->columns;
    float repeated[VL * VL];
    if (d->columns < VL) {
        for (int64_t i = 0; i < period; i++)
            repeated[i] = bias[i % d->columns];
        bias = repeated;
    }
#pragma omp for schedule(static)
    for (int64_t row = 0; row < size; row += period)
        for (int64_t i = 0, n = MIN(period, size - row); i < n; i += VL)
            store_n(y + row + i, load_n(y + row + i, n - i) + load_n(bias + i, n - i), n - i);
}

/* y, x, scale (N, C), which each pixel of an image is multiplied by */
static void scale_channels(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1], *scale = args[2];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++)
        for (int64_t pixel = row * d->w; pixel < (row + 1) * d->w; pixel++)
            for (int64_t c = 0; c < d->c; c += VL) {
                const vec factor = load_n(scale + row / d->h * d->c + c, d->c - c);
                store_n(y + pixel * d->c + c, load_n(x + pixel * d->c + c, d->c - c) * factor, d->c - c);
            }
}

/* dx = dy * scale and dscale = sum of dy * x of n channels of an image from `at` on, in `vectors` vectors. The sum of
 * each MEAN_CHUNK pixels is added to the total, which keeps the sums short. */
INLINE void scale_backward_strip(const pycnn_pool2d *d, void *const *args, int64_t image, int64_t at, int64_t n,
                                 int vectors)
{
    const int64_t pixels = d->h * d->w, start = image * pixels * d->c + at;
    float *dx = (float *)args[0] + start, *dscale = (float *)args[1] + image * d->c + at;
    const float *dy = (const float *)args[2] + start, *x = (const float *)args[3] + start;
    const float *scale = (const float *)args[4] + image * d->c + at;
    vec total[SCALE_STRIP] = { splat(0) };
    for (int64_t first = 0; first < pixels; first += MEAN_CHUNK) {
        vec sum[SCALE_STRIP] = { splat(0) };
        for (int64_t pixel = first; pixel < MIN(pixels, first + MEAN_CHUNK); pixel++)
            UNROLL for (int v = 0; v < vectors; v++) {
                const int64_t i = pixel * d->c + v * VL, rest = n - v * VL;
                const vec gradient = load_n(dy + i, rest);
                sum[v] = sum[v] + gradient * load_n(x + i, rest);
                store_n(dx + i, gradient * load_n(scale + v * VL, rest), rest);
            }
        UNROLL for (int v = 0; v < vectors; v++)
            total[v] = total[v] + sum[v];
    }
    UNROLL for (int v = 0; v < vectors; v++)
        store_n(dscale + v * VL, total[v], n - v * VL);
}

/* dx, dscale (N, C), dy, x, scale (N, C) */
static void scale_channels_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    const int64_t strip = SCALE_STRIP * VL, strips = ceil_div(d->c, strip);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, first = task % strips * strip;
        if (first + strip <= d->c)
            scale_backward_strip(d, args, image, first, strip, SCALE_STRIP);
        else
            for (int64_t c = first; c < d->c; c += VL)
                scale_backward_strip(d, args, image, c, d->c - c, 1);
    }
}

/* Philox-4x32-10 (Salmon, Moraes, Dror and Shaw 2011): ten rounds of two 32 x 32 -> 64 bit products. */
static void philox(uint32_t word[4], uint32_t key0, uint32_t key1)
{
    for (int round = 0; round < 10; round++, key0 += 0x9E3779B9u, key1 += 0xBB67AE85u) {
        const uint64_t a = (uint64_t)0xD2511F53u * word[0], b = (uint64_t)0xCD9E8D57u * word[2];
        const uint32_t next[4] = { (uint32_t)(b >> 32) ^ word[1] ^ key0, (uint32_t)b,
                                   (uint32_t)(a >> 32) ^ word[3] ^ key1, (uint32_t)a };
        memcpy(word, next, sizeof next);
    }
}

/* y, x, state (int64: seed, step). Element i, counted in (N, C, H, W) order (spatial: channel i of (N, C)), uses word
 * i % 4 of the block whose counter is (i / 4 in two words, step, entry); backward draws the same words again. */
static void dropout(const void *desc, void *const *args)
{
    const pycnn_dropout *d = desc;
    float *y = args[0];
    const float *x = args[1];
    const int64_t *state = args[2];
    const uint64_t seed = (uint64_t)state[0];
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * d->h; row++)
        for (int64_t c = 0; c < d->c; c++) {
            const int64_t channel = row / d->h * d->c + c, first = (channel * d->h + row % d->h) * d->w;
            uint64_t i = (uint64_t)(d->spatial ? channel : first), drawn = UINT64_MAX;
            uint32_t word[4];
            for (int64_t w = 0; w < d->w; w++, i += !d->spatial) {
                const int64_t at = (row * d->w + w) * d->c + c;
                if (i / 4 != drawn) {
                    drawn = i / 4;
                    word[0] = (uint32_t)drawn;
                    word[1] = (uint32_t)(drawn >> 32);
                    word[2] = (uint32_t)state[1];
                    word[3] = (uint32_t)d->entry;
                    philox(word, (uint32_t)seed, (uint32_t)(seed >> 32));
                }
                y[at] = word[i % 4] >= (uint64_t)d->threshold ? x[at] * d->scale : 0.0f;
            }
        }
}

/* Updates of weights in one pass over memory each.
 *
 * What changes from step to step comes in `state`: 0 learning rate, 1 factor of the gradient (clipping by
 * norm), 2 and 3 Adam's 1 - beta1^t and sqrt(1 - beta2^t). */

enum { LEARNING_RATE, GRADIENT_FACTOR, CORRECTION_1, CORRECTION_2 };

/* The gradient after clipping, plus the weight decay. */
INLINE vec used_gradient(const pycnn_update *d, const float *state, const float *g, vec w, int64_t n)
{
    vec gradient = load_n(g, n) * state[GRADIENT_FACTOR];
    const vec limit = splat(d->clip_value);
    gradient = where(gradient > limit, limit, where(gradient < -limit, -limit, gradient));
    return gradient + d->weight_decay * w;
}

/* w, velocity or NULL, gradient, state.
 * velocity = momentum velocity + g;  w -= lr velocity, or with Nesterov lr (g + momentum velocity). */
static void sgd(const void *desc, void *const *args)
{
    const pycnn_update own = *(const pycnn_update *)desc, *d = &own;
    float *weights = args[0], *velocities = args[1];
    const float *gradients = args[2], *state = args[3], rate = state[LEARNING_RATE];
#pragma omp for schedule(static)
    for (int64_t i0 = 0; i0 < d->size; i0 += ELEMENT_BLOCK)
        for (int64_t i = i0; i < MIN(d->size, i0 + ELEMENT_BLOCK); i += VL) {
            const int64_t n = d->size - i;
            const vec w = load_n(weights + i, n);
            vec step = used_gradient(d, state, gradients + i, w, n);
            if (velocities) {
                const vec v = d->momentum * load_n(velocities + i, n) + step;
                store_n(velocities + i, v, n);
                step = d->nesterov ? step + d->momentum * v : v;
            }
            store_n(weights + i, w - rate * step, n);
        }
}

INLINE vec vec_sqrt(vec v)
{
    for (int i = 0; i < VL; i++)
        v[i] = sqrtf(v[i]);
    return v;
}

/* w, first moment, second moment, gradient, state (Kingma and Ba 2015, algorithm 1; with decoupled_decay Loshchilov and
 * Hutter 2019, algorithm 2). */
static void adam(const void *desc, void *const *args)
{
    const pycnn_update own = *(const pycnn_update *)desc, *d = &own;
    float *weights = args[0], *first = args[1], *second = args[2];
    const float *gradients = args[3], *state = args[4];
    const float rate = state[LEARNING_RATE] / state[CORRECTION_1], root = state[CORRECTION_2];
    const float kept = 1.0f - state[LEARNING_RATE] * d->decoupled_decay;
#pragma omp for schedule(static)
    for (int64_t i0 = 0; i0 < d->size; i0 += ELEMENT_BLOCK)
        for (int64_t i = i0; i < MIN(d->size, i0 + ELEMENT_BLOCK); i += VL) {
            const int64_t n = d->size - i;
            const vec w = load_n(weights + i, n), g = used_gradient(d, state, gradients + i, w, n);
            const vec m = d->beta1 * load_n(first + i, n) + d->rest1 * g;
            const vec v = d->beta2 * load_n(second + i, n) + d->rest2 * g * g;
            store_n(first + i, m, n);
            store_n(second + i, v, n);
            store_n(weights + i, kept * w - rate * m / (vec_sqrt(v) / root + d->eps), n);
        }
}

/* w, mean of squares, mean of gradients or NULL (not centred), velocity or NULL, gradient, state.
 * s = beta2 s + (1 - beta2) g^2;  v = momentum v + g / (sqrt(s - mean^2) + eps);  w -= lr v. */
static void rmsprop(const void *desc, void *const *args)
{
    const pycnn_update own = *(const pycnn_update *)desc, *d = &own;
    float *weights = args[0], *squares = args[1], *means = args[2], *velocities = args[3];
    const float *gradients = args[4], *state = args[5], rate = state[LEARNING_RATE];
#pragma omp for schedule(static)
    for (int64_t i0 = 0; i0 < d->size; i0 += ELEMENT_BLOCK)
        for (int64_t i = i0; i < MIN(d->size, i0 + ELEMENT_BLOCK); i += VL) {
            const int64_t n = d->size - i;
            const vec w = load_n(weights + i, n), g = used_gradient(d, state, gradients + i, w, n);
            const vec s = d->beta2 * load_n(squares + i, n) + d->rest2 * g * g;
            vec variance = s;
            store_n(squares + i, s, n);
            if (means) {
                const vec old = load_n(means + i, n), m = old + d->rest2 * (g - old);
                store_n(means + i, m, n);
                variance = vec_max(s - m * m, splat(0)); /* rounding may take it below */
            }
            vec step = g / (vec_sqrt(variance) + d->eps);
            if (velocities) {
                step = d->momentum * load_n(velocities + i, n) + step;
                store_n(velocities + i, step, n);
            }
            store_n(weights + i, w - rate * step, n);
        }
}

/* w, sum of squares, velocity or NULL, gradient, state (Duchi, Hazan and Singer 2011).
 * s += g^2;  v = momentum v + lr g / (sqrt(s) + eps);  w -= v. */
static void adagrad(const void *desc, void *const *args)
{
    const pycnn_update own = *(const pycnn_update *)desc, *d = &own;
    float *weights = args[0], *squares = args[1], *velocities = args[2];
    const float *gradients = args[3], *state = args[4], rate = state[LEARNING_RATE];
#pragma omp for schedule(static)
    for (int64_t i0 = 0; i0 < d->size; i0 += ELEMENT_BLOCK)
        for (int64_t i = i0; i < MIN(d->size, i0 + ELEMENT_BLOCK); i += VL) {
            const int64_t n = d->size - i;
            const vec w = load_n(weights + i, n), g = used_gradient(d, state, gradients + i, w, n);
            const vec s = load_n(squares + i, n) + g * g;
            vec step = rate * g / (vec_sqrt(s) + d->eps);
            store_n(squares + i, s, n);
            if (velocities) {
                step = d->momentum * load_n(velocities + i, n) + step;
                store_n(velocities + i, step, n);
            }
            store_n(weights + i, w - step, n);
        }
}

enum { NORM_BLOCKS = 64 };

static int64_t gradient_norm_workspace(const void *desc, int64_t threads)
{
    (void)desc;
    (void)threads;
    return NORM_BLOCKS * (int64_t)sizeof(double);
}

/* total (double; kind 1 adds to it), gradient: the sum of squares, in a fixed number of parts of eight running sums
 * each. */
static void gradient_norm(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    double *total = args[0], *partials = args[2];
    const float *g = args[1];
#pragma omp for schedule(static)
    for (int64_t part = 0; part < NORM_BLOCKS; part++) {
        const int64_t last = part_start(d->size, part + 1, NORM_BLOCKS);
        int64_t i = part_start(d->size, part, NORM_BLOCKS);
        double sum[8] = { 0 };
        for (; i + 8 <= last; i += 8)
            UNROLL for (int u = 0; u < 8; u++)
                sum[u] += (double)g[i + u] * g[i + u];
        for (; i < last; i++)
            sum[0] += (double)g[i] * g[i];
        partials[part] = ((sum[0] + sum[1]) + (sum[2] + sum[3])) + ((sum[4] + sum[5]) + (sum[6] + sum[7]));
    }
#pragma omp single
    {
        double sum = d->kind ? *total : 0;
        for (int64_t part = 0; part < NORM_BLOCKS; part++)
            sum += partials[part];
        *total = sum;
    }
}

/* state, total: the factor that brings the gradients' norm, whose square is `total`, down to alpha at most. */
static void clip_factor(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    float *state = args[0];
    const double *total = args[1];
#pragma omp single
    state[GRADIENT_FACTOR] = (float)MIN(1.0, d->alpha / (sqrt(*total) + 1e-6));
}

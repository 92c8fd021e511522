/* Updates of weights in one pass over memory each.
 *
 * What changes from step to step comes in `state`: 0 learning rate, 1 factor of the gradient (clipping by
 * norm), 2 and 3 Adam's 1 - beta1^t and sqrt(1 - beta2^t). */

enum { LEARNING_RATE, GRADIENT_FACTOR, CORRECTION_1, CORRECTION_2 };

/* An update's arrays and numbers; slots that it does not use are NULL. */
typedef struct {
    pycnn_update d;
    float *w, *slot[3];
    const float *g;
    float rate, factor, correction_1, correction_2;
    int far; /* whether the arrays come from memory */
} update;

/* args: w, as many slots as are told, gradient, state. */
INLINE update read_update(const void *desc, void *const *args, const int slots)
{
    const float *state = args[slots + 2];
    update u = { .d = *(const pycnn_update *)desc, .w = args[0], .g = args[slots + 1], .rate = state[LEARNING_RATE],
                 .factor = state[GRADIENT_FACTOR], .correction_1 = state[CORRECTION_1],
                 .correction_2 = state[CORRECTION_2] };
    u.far = moves_much(2 * (slots + 1) * u.d.size);
    for (int i = 0; i < slots; i++)
        u.slot[i] = args[1 + i];
    return u;
}

INLINE vec get(const update *u, const float *p, int64_t i, int64_t n) { return get_n(p + i, n, u->far); }

/* f, which updates weights i..i + n - 1 of a vector, over all of them. */
INLINE void run_update(const void *desc, void *const *args, const int slots,
                       void (*const f)(const update *u, int64_t i, int64_t n))
{
    const update u = read_update(desc, args, slots);
#pragma omp for schedule(static)
    for (int64_t first = 0; first < u.d.size; first += ELEMENT_BLOCK) {
        const int64_t end = MIN(u.d.size, first + ELEMENT_BLOCK);
        int64_t i = first;
        for (; i + VL <= end; i += VL)
            f(&u, i, VL);
        if (i < end)
            f(&u, i, end - i);
    }
}

/* The gradient after clipping, plus the weight decay. */
INLINE vec used_gradient(const update *u, int64_t i, vec w, int64_t n)
{
    vec gradient = get(u, u->g, i, n) * u->factor;
    const vec limit = splat(u->d.clip_value);
    gradient = where(gradient > limit, limit, where(gradient < -limit, -limit, gradient));
    return gradient + u->d.weight_decay * w;
}

/* What is kept in a slot of each step: momentum times what is there, plus the step; without the slot, the step. */
INLINE vec with_momentum(const update *u, float *slot, int64_t i, vec step, int64_t n)
{
    if (!slot)
        return step;
    const vec v = u->d.momentum * get(u, slot, i, n) + step;
    store_n(slot + i, v, n);
    return v;
}

/* velocity = momentum velocity + g;  w -= lr velocity, or with Nesterov lr (g + momentum velocity). */
INLINE void update_by_sgd(const update *u, int64_t i, int64_t n)
{
    const vec w = get(u, u->w, i, n), g = used_gradient(u, i, w, n), v = with_momentum(u, u->slot[0], i, g, n);
    const vec step = u->slot[0] && u->d.nesterov ? g + u->d.momentum * v : v;
    store_n(u->w + i, w - u->rate * step, n);
}

/* w, velocity or NULL, gradient, state. */
static void sgd(const void *desc, void *const *args) { run_update(desc, args, 1, update_by_sgd); }

INLINE vec vec_sqrt(vec v)
{
    for (int i = 0; i < VL; i++)
        v[i] = sqrtf(v[i]);
    return v;
}

INLINE void update_by_adam(const update *u, int64_t i, int64_t n)
{
    float *first = u->slot[0], *second = u->slot[1];
    const float rate = u->rate / u->correction_1, kept = 1.0f - u->rate * u->d.decoupled_decay;
    const vec w = get(u, u->w, i, n), g = used_gradient(u, i, w, n);
    const vec m = u->d.beta1 * get(u, first, i, n) + u->d.rest1 * g;
    const vec v = u->d.beta2 * get(u, second, i, n) + u->d.rest2 * g * g;
    store_n(first + i, m, n);
    store_n(second + i, v, n);
    store_n(u->w + i, kept * w - rate * m / (vec_sqrt(v) / u->correction_2 + u->d.eps), n);
}

/* w, first moment, second moment, gradient, state (Kingma and Ba 2015, algorithm 1; with decoupled_decay Loshchilov and
 * Hutter 2019, algorithm 2). */
static void adam(const void *desc, void *const *args) { run_update(desc, args, 2, update_by_adam); }

/* s = beta2 s + (1 - beta2) g^2;  v = momentum v + g / (sqrt(s - mean^2) + eps);  w -= lr v. */
INLINE void update_by_rmsprop(const update *u, int64_t i, int64_t n)
{
    float *squares = u->slot[0], *means = u->slot[1];
    const vec w = get(u, u->w, i, n), g = used_gradient(u, i, w, n);
    const vec s = u->d.beta2 * get(u, squares, i, n) + u->d.rest2 * g * g;
    vec variance = s;
    store_n(squares + i, s, n);
    if (means) {
        const vec old = get(u, means, i, n), m = old + u->d.rest2 * (g - old);
        store_n(means + i, m, n);
        variance = vec_max(s - m * m, splat(0)); /* rounding may take it below */
    }
    const vec step = with_momentum(u, u->slot[2], i, g / (vec_sqrt(variance) + u->d.eps), n);
    store_n(u->w + i, w - u->rate * step, n);
}

/* w, mean of squares, mean of gradients or NULL (not centred), velocity or NULL, gradient, state. */
static void rmsprop(const void *desc, void *const *args) { run_update(desc, args, 3, update_by_rmsprop); }

/* s += g^2;  v = momentum v + lr g / (sqrt(s) + eps);  w -= v. */
INLINE void update_by_adagrad(const update *u, int64_t i, int64_t n)
{
    const vec w = get(u, u->w, i, n), g = used_gradient(u, i, w, n), s = get(u, u->slot[0], i, n) + g * g;
    store_n(u->slot[0] + i, s, n);
    const vec step = with_momentum(u, u->slot[1], i, u->rate * g / (vec_sqrt(s) + u->d.eps), n);
    store_n(u->w + i, w - step, n);
}

/* w, sum of squares, velocity or NULL, gradient, state (Duchi, Hazan and Singer 2011). */
static void adagrad(const void *desc, void *const *args) { run_update(desc, args, 2, update_by_adagrad); }

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

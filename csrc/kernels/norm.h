/* Batch normalisation over the rows of a matrix of pixels by channels (Ioffe and Szegedy 2015, algorithm 1).
 *
 *     mean and variance of the batch, where the convolution before has not taken them       moments.h
 *     for each slice of the rows, the last one first, for each row: y = (x - mean) * rstd * gamma + beta      shared
 *
 * What follows in a network may be done in the same pass: the addition of a residual, then a rectifier. Backward then
 * begins with the gradient of their result, which may come in two parts: the residual's gradient is
 *
 *     dr = (dy + dy2) * (y > 0 ? 1 : slope)
 *
 * What was read or made last may still be in the last cache when the pass over all rows begins with it. */

enum { NORM_STRIP = 4 };

static int64_t norm_slices(const pycnn_batch_norm *d) { return matrix_slices(d->rows); }
static int64_t slice_start(const pycnn_batch_norm *d, int64_t slice)
{
    return part_start(d->rows, slice, norm_slices(d));
}

/* The slices that this thread has in a loop of `omp for`. */
static void own_slices(const pycnn_batch_norm *d, int64_t *first, int64_t *last)
{
    *first = part_start(norm_slices(d), omp_get_thread_num(), omp_get_num_threads());
    *last = part_start(norm_slices(d), omp_get_thread_num() + 1, omp_get_num_threads());
}

static int64_t batch_norm_workspace(const void *desc, int64_t threads)
{
    const pycnn_batch_norm *d = desc;
    (void)threads;
    return moments_floats(norm_slices(d), d->columns) * (int64_t)sizeof(float);
}

/* n channels of one row of outputs; `residual` may be NULL. */
INLINE void normalise(pycnn_epilogue epilogue, float *y, const float *x, const float *mean, const float *rstd,
                      const float *gamma, const float *beta, const float *residual, int64_t n, int past)
{
    const vec scale = load_n(rstd, n) * load_n(gamma, n);
    vec out = (load_n(x, n) - load_n(mean, n)) * scale + load_n(beta, n);
    if (residual)
        out = out + load_n(residual, n);
    put_n(y, epilogue.rectifies ? rectify(out, epilogue.slope) : out, n, past);
}

static void normalise_rows(const pycnn_batch_norm *d, float *y, const float *x, const float *mean,
                           const float *rstd, const float *gamma, const float *beta, const float *residual)
{
    const int64_t columns = d->columns;
    const pycnn_epilogue epilogue = d->epilogue;
    const int past = streams(y, 2 * d->rows * columns, columns);
    int64_t first, slice;
    own_slices(d, &first, &slice);
    while (slice-- > first) {
        const int64_t end = slice_start(d, slice + 1) * columns;
        for (int64_t row = slice_start(d, slice) * columns; row < end; row += columns) {
            const float *added = residual ? residual + row : NULL;
            int64_t c = 0;
            for (; c + VL <= columns; c += VL)
                normalise(epilogue, y + row + c, x + row + c, mean + c, rstd + c, gamma + c, beta + c,
                          added ? added + c : NULL, VL, past);
            if (c < columns)
                normalise(epilogue, y + row + c, x + row + c, mean + c, rstd + c, gamma + c, beta + c,
                          added ? added + c : NULL, columns - c, past);
        }
    }
    end_stream(past);
}

/* y, mean, rstd (both kept for backward), variance (of training), x, gamma, beta, running_mean, running_var (both read
 * where it is not training), residual or NULL. Mean and variance of what is `measured` are there already. */
static void batch_norm(const void *desc, void *const *args)
{
    const pycnn_batch_norm own = *(const pycnn_batch_norm *)desc, *d = &own;
    float *y = args[0], *mean = args[1], *rstd = args[2], *variance = args[3];
    const float *x = args[4], *gamma = args[5], *beta = args[6], *running_mean = args[7], *running_var = args[8];
    if (d->training && !d->measured) {
        const moments m = moments_at(args[10], norm_slices(d), d->columns);
        take_moments(&m, x, d->rows);
        merge_moments(&m, mean, variance);
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < d->columns; c++) {
        if (!d->training)
            mean[c] = running_mean[c];
        rstd[c] = (float)(1.0 / sqrt((double)(d->training ? variance : running_var)[c] + d->eps));
    }
    normalise_rows(d, y, x, mean, rstd, gamma, beta, args[9]);
}

/* running_mean, running_var, mean, variance: apart from batch_norm, so that a step whose loss is not finite leaves
 * them as they are. */
static void running_statistics(const void *desc, void *const *args)
{
    const pycnn_batch_norm own = *(const pycnn_batch_norm *)desc, *d = &own;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < 2; row++) {
        float *running = args[row];
        const float *batch = args[2 + row];
        for (int64_t c = 0; c < d->columns; c++)
            running[c] = d->momentum * running[c] + (1.0f - d->momentum) * batch[c];
    }
}

static int64_t batch_norm_backward_workspace(const void *desc, int64_t threads)
{
    return batch_norm_workspace(desc, threads);
}

/* The gradient that comes from after the rectifier: dy, dy2 or NULL, y or NULL where nothing was rectified, and where
 * the residual's gradient goes, or NULL. All begin at the same element. */
typedef struct { const float *dy, *dy2, *y; float *dr; float slope; } norm_gradient;

static norm_gradient gradient_from(const norm_gradient *g, int64_t at)
{
    return (norm_gradient){ g->dy + at, g->dy2 ? g->dy2 + at : NULL, g->y ? g->y + at : NULL,
                            g->dr ? g->dr + at : NULL, g->slope };
}

/* What there is of it, known to the compiler: dy; dy and y; any of them. */
enum { DY_ALONE, DY_AND_Y, ANY_PARTS };

static int gradient_parts(const norm_gradient *g)
{
    return g->dy2 || g->dr ? ANY_PARTS : g->y ? DY_AND_Y : DY_ALONE;
}

#define BY_PARTS(parts, f, ...)                                                                               \
    ((parts) == DY_ALONE ? f(__VA_ARGS__, DY_ALONE) : (parts) == DY_AND_Y ? f(__VA_ARGS__, DY_AND_Y)          \
                                                                          : f(__VA_ARGS__, ANY_PARTS))

INLINE vec gradient_at(const norm_gradient *g, int64_t at, int64_t n, const int parts)
{
    vec v = load_n(g->dy + at, n);
    if (parts == ANY_PARTS && g->dy2)
        v = v + load_n(g->dy2 + at, n);
    if (parts == DY_AND_Y || (parts == ANY_PARTS && g->y))
        v = where(load_n(g->y + at, n) <= 0.0f, g->slope == 0 ? splat(0) : v * g->slope, v);
    return v;
}

/* Sums of dr x^ and of dr over some rows of n channels, in `vectors` vectors, with x^ = (x - mean) rstd. */
INLINE void strip_gradients(const norm_gradient *g, const float *x, int64_t rows, int64_t columns, const float *mean,
                            const float *rstd, float *products, float *sums, int64_t n, const int vectors,
                            const int parts)
{
    vec centre[NORM_STRIP], product[NORM_STRIP] = { splat(0) }, sum[NORM_STRIP] = { splat(0) };
    UNROLL for (int v = 0; v < vectors; v++)
        centre[v] = load_n(mean + v * VL, n - v * VL);
    for (int64_t i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const int64_t at = i * columns + v * VL;
            const vec gradient = gradient_at(g, at, n - v * VL, parts);
            if (parts == ANY_PARTS && g->dr)
                store_n(g->dr + at, gradient, n - v * VL);
            product[v] = product[v] + gradient * (load_n(x + at, n - v * VL) - centre[v]);
            sum[v] = sum[v] + gradient;
        }
    UNROLL for (int v = 0; v < vectors; v++) {
        store_n(products + v * VL, product[v] * load_n(rstd + v * VL, n - v * VL), n - v * VL);
        store_n(sums + v * VL, sum[v], n - v * VL);
    }
}

INLINE void slice_gradients(const pycnn_batch_norm *d, const norm_gradient *g, const float *x, const float *mean,
                            const float *rstd, float *products, float *sums, const int parts)
{
    const int64_t slices = norm_slices(d), columns = d->columns;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < slices; slice++) {
        const int64_t first = slice_start(d, slice), rows = slice_start(d, slice + 1) - first;
        const float *slice_x = x + first * columns;
        float *to = products + slice * columns, *sums_to = sums + slice * columns;
        for (int64_t c = 0, n; c < columns; c += n) {
            const norm_gradient from = gradient_from(g, first * columns + c);
            n = MIN(NORM_STRIP * VL, columns - c);
            if (n == NORM_STRIP * VL)
                strip_gradients(&from, slice_x + c, rows, columns, mean + c, rstd + c, to + c, sums_to + c,
                                NORM_STRIP * VL, NORM_STRIP, parts);
            else if (n >= VL)
                strip_gradients(&from, slice_x + c, rows, columns, mean + c, rstd + c, to + c, sums_to + c, n = VL, 1,
                                parts);
            else
                strip_gradients(&from, slice_x + c, rows, columns, mean + c, rstd + c, to + c, sums_to + c, n, 1,
                                parts);
        }
    }
}

static void merge_gradients(const pycnn_batch_norm *d, const float *products, const float *sums,
                            float *dgamma, float *dbeta)
{
    const int64_t slices = norm_slices(d);
#pragma omp for schedule(static)
    for (int64_t c0 = 0; c0 < d->columns; c0 += MERGE_CHANNELS) {
        const int64_t n = MIN(MERGE_CHANNELS, d->columns - c0);
        double product[MERGE_CHANNELS] = { 0 }, sum[MERGE_CHANNELS] = { 0 };
        for (int64_t slice = 0; slice < slices; slice++)
            for (int64_t i = 0; i < n; i++) {
                product[i] += products[slice * d->columns + c0 + i];
                sum[i] += sums[slice * d->columns + c0 + i];
            }
        for (int64_t i = 0; i < n; i++) {
            dgamma[c0 + i] = (float)product[i];
            dbeta[c0 + i] = (float)sum[i];
        }
    }
}

/* n channels, from `at` on, of one row of dx = gamma rstd (dr - share (dbeta + x^ dgamma)). */
INLINE void input_gradient(float *dx, const norm_gradient *g, int64_t at, const float *x, const float *mean, const float *rstd,
                           const float *gamma, const float *dgamma, const float *dbeta, float share, int64_t n,
                           int past, const int parts)
{
    const vec scale = load_n(rstd, n), normal = (load_n(x, n) - load_n(mean, n)) * scale;
    const vec through = load_n(dbeta, n) * share + normal * (load_n(dgamma, n) * share);
    put_n(dx, load_n(gamma, n) * scale * (gradient_at(g, at, n, parts) - through), n, past);
}

/* The share of each row in the mean and the variance is 1 / rows in training, 0 where they do not depend on x. */
INLINE void input_gradients(const pycnn_batch_norm *d, float *dx, const norm_gradient *g, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *dgamma,
                            const float *dbeta, const int parts)
{
    const float share = d->training ? 1.0f / (float)d->rows : 0.0f;
    const int64_t columns = d->columns;
    const norm_gradient from = *g;
    const int past = streams(dx, 3 * d->rows * columns, columns);
    int64_t first, slice;
    own_slices(d, &first, &slice);
    while (slice-- > first) {
        const int64_t end = slice_start(d, slice + 1) * columns;
        for (int64_t row = slice_start(d, slice) * columns; row < end; row += columns) {
            int64_t c = 0;
            for (; c + VL <= columns; c += VL)
                input_gradient(dx + row + c, &from, row + c, x + row + c, mean + c, rstd + c, gamma + c, dgamma + c,
                               dbeta + c, share, VL, past, parts);
            if (c < columns)
                input_gradient(dx + row + c, &from, row + c, x + row + c, mean + c, rstd + c, gamma + c, dgamma + c,
                               dbeta + c, share, columns - c, past, parts);
        }
    }
    end_stream(past);
}

/* dx, dgamma = sum dr x^, dbeta = sum dr, dr or NULL, dy, dy2 or NULL, y or NULL (what was rectified), x, mean, rstd,
 * gamma */
static void batch_norm_backward(const void *desc, void *const *args)
{
    const pycnn_batch_norm own = *(const pycnn_batch_norm *)desc, *d = &own;
    float *dx = args[0], *dgamma = args[1], *dbeta = args[2];
    norm_gradient g = { args[4], args[5], args[6], args[3], d->epilogue.slope };
    const float *x = args[7], *mean = args[8], *rstd = args[9], *gamma = args[10];
    float *products = args[11], *sums = products + norm_slices(d) * d->columns;
    BY_PARTS(gradient_parts(&g), slice_gradients, d, &g, x, mean, rstd, products, sums);
    merge_gradients(d, products, sums, dgamma, dbeta);
    if (g.dr)
        g = (norm_gradient){ .dy = g.dr };
    BY_PARTS(gradient_parts(&g), input_gradients, d, dx, &g, x, mean, rstd, gamma, dgamma, dbeta);
}

/* w and bias of a convolution that does the normalisation by running statistics that follows it, too: w_out, bias_out,
 * w, bias or NULL, gamma, beta, running_mean, running_var; a row of w has a column for each filter. */
static void fold_batch_norm(const void *desc, void *const *args)
{
    const pycnn_fold own = *(const pycnn_fold *)desc, *d = &own;
    float *w_out = args[0], *bias_out = args[1];
    const float *w = args[2], *bias = args[3], *gamma = args[4], *beta = args[5], *mean = args[6], *variance = args[7];
#pragma omp for schedule(static)
    for (int64_t row = 0; row <= d->rows; row++)
        for (int64_t c = 0; c < d->columns; c++) {
            const float scale = (float)(gamma[c] / sqrt((double)variance[c] + d->eps));
            if (row < d->rows)
                w_out[row * d->columns + c] = w[row * d->columns + c] * scale;
            else
                bias_out[c] = ((bias ? bias[c] : 0) - mean[c]) * scale + beta[c];
        }
}

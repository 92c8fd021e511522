/* Batch normalisation over the rows of a matrix of pixels by channels (Ioffe and Szegedy 2015, algorithm 1).
 *
 *     for each slice of the rows, for each strip of channels: mean, then centred sum of squares          shared
 *     for each channel: merge the slices in double precision                                             shared
 *     for each slice, the last one first, for each row: y = (x - mean) * rstd * gamma + beta             shared
 *
 * The variance is never E[x^2] - E[x]^2, which cancels when the mean is large. A strip of a slice stays in the first
 * cache between its two passes, so memory is read once for the statistics; what was read last may still be in the last
 * cache when the pass over all rows begins with it. The slices depend on shapes alone. */

enum { NORM_ROWS = 64, NORM_STRIP = 4, MERGE_CHANNELS = 16 };

static int64_t norm_slices(const pycnn_batch_norm *d) { return MAX(1, d->rows / NORM_ROWS); }
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
    return 2 * norm_slices(d) * d->columns * (int64_t)sizeof(float);
}

/* Means and centred sums of squares of n channels, in `vectors` vectors, of some rows. */
INLINE void strip_moments(const float *x, int64_t rows, int64_t columns, float *means, float *squares, int64_t n,
                          int vectors)
{
    vec mean[NORM_STRIP] = { splat(0) }, square[NORM_STRIP] = { splat(0) };
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

static void slice_moments(const pycnn_batch_norm *d, const float *x, float *means, float *squares)
{
    const int64_t slices = norm_slices(d), columns = d->columns;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < slices; slice++) {
        const int64_t first = slice_start(d, slice), rows = slice_start(d, slice + 1) - first;
        int64_t c = 0;
        for (; c + NORM_STRIP * VL <= columns; c += NORM_STRIP * VL)
            strip_moments(x + first * columns + c, rows, columns, means + slice * columns + c,
                          squares + slice * columns + c, NORM_STRIP * VL, NORM_STRIP);
        for (; c < columns; c += VL)
            strip_moments(x + first * columns + c, rows, columns, means + slice * columns + c,
                          squares + slice * columns + c, columns - c, 1);
    }
}

/* Mean and centred sum of squares of all rows: the slices' own squares, and those of their means' distances from
 * the mean of all. */
static void merge_moments(const pycnn_batch_norm *d, const float *means, const float *squares, float *mean,
                          float *rstd, float *running_mean, float *running_var)
{
    const int64_t slices = norm_slices(d);
#pragma omp for schedule(static)
    for (int64_t c0 = 0; c0 < d->columns; c0 += MERGE_CHANNELS) {
        const int64_t n = MIN(MERGE_CHANNELS, d->columns - c0);
        double centre[MERGE_CHANNELS] = { 0 }, square[MERGE_CHANNELS] = { 0 };
        for (int64_t slice = 0; slice < slices; slice++) {
            const double share = (double)(slice_start(d, slice + 1) - slice_start(d, slice)) / (double)d->rows;
            for (int64_t i = 0; i < n; i++)
                centre[i] += share * means[slice * d->columns + c0 + i];
        }
        for (int64_t slice = 0; slice < slices; slice++) {
            const double rows = (double)(slice_start(d, slice + 1) - slice_start(d, slice));
            for (int64_t i = 0; i < n; i++) {
                const double delta = means[slice * d->columns + c0 + i] - centre[i];
                square[i] += squares[slice * d->columns + c0 + i] + rows * delta * delta;
            }
        }
        for (int64_t i = 0, c = c0; i < n; i++, c++) {
            const double variance = square[i] / (double)d->rows;
            mean[c] = (float)centre[i];
            rstd[c] = (float)(1.0 / sqrt(variance + d->eps));
            running_mean[c] = d->momentum * running_mean[c] + (1.0f - d->momentum) * (float)centre[i];
            running_var[c] = d->momentum * running_var[c] + (1.0f - d->momentum) * (float)variance;
        }
    }
}

/* n channels of one row of outputs. */
INLINE void normalise(float *y, const float *x, const float *mean, const float *rstd, const float *gamma,
                      const float *beta, int64_t n)
{
    const vec scale = load_n(rstd, n) * load_n(gamma, n);
    store_n(y, (load_n(x, n) - load_n(mean, n)) * scale + load_n(beta, n), n);
}

static void normalise_rows(const pycnn_batch_norm *d, float *y, const float *x, const float *mean,
                           const float *rstd, const float *gamma, const float *beta)
{
    const int64_t columns = d->columns;
    int64_t first, slice;
    own_slices(d, &first, &slice);
    while (slice-- > first) {
        const int64_t end = slice_start(d, slice + 1) * columns;
        for (int64_t row = slice_start(d, slice) * columns; row < end; row += columns) {
            int64_t c = 0;
            for (; c + VL <= columns; c += VL)
                normalise(y + row + c, x + row + c, mean + c, rstd + c, gamma + c, beta + c, VL);
            if (c < columns)
                normalise(y + row + c, x + row + c, mean + c, rstd + c, gamma + c, beta + c, columns - c);
        }
    }
#pragma omp barrier
}

/* y, mean, rstd (both kept for backward), running_mean, running_var, x, gamma, beta */
static void batch_norm(const void *desc, void *const *args)
{
    const pycnn_batch_norm *d = desc;
    float *y = args[0], *mean = args[1], *rstd = args[2], *running_mean = args[3], *running_var = args[4];
    const float *x = args[5], *gamma = args[6], *beta = args[7];
    float *means = args[8], *squares = means + norm_slices(d) * d->columns;
    if (d->training) {
        slice_moments(d, x, means, squares);
        merge_moments(d, means, squares, mean, rstd, running_mean, running_var);
    } else {
#pragma omp for schedule(static)
        for (int64_t c = 0; c < d->columns; c++) {
            mean[c] = running_mean[c];
            rstd[c] = (float)(1.0 / sqrt((double)running_var[c] + d->eps));
        }
    }
    normalise_rows(d, y, x, mean, rstd, gamma, beta);
}

static int64_t batch_norm_backward_workspace(const void *desc, int64_t threads)
{
    return batch_norm_workspace(desc, threads);
}

/* Sums of dy x^ and of dy over some rows of n channels, in `vectors` vectors, with x^ = (x - mean) rstd. */
INLINE void strip_gradients(const float *dy, const float *x, int64_t rows, int64_t columns, const float *mean,
                            const float *rstd, float *products, float *sums, int64_t n, int vectors)
{
    vec centre[NORM_STRIP], product[NORM_STRIP] = { splat(0) }, sum[NORM_STRIP] = { splat(0) };
    UNROLL for (int v = 0; v < vectors; v++)
        centre[v] = load_n(mean + v * VL, n - v * VL);
    for (int64_t i = 0; i < rows; i++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const int64_t at = i * columns + v * VL;
            const vec gradient = load_n(dy + at, n - v * VL);
            product[v] = product[v] + gradient * (load_n(x + at, n - v * VL) - centre[v]);
            sum[v] = sum[v] + gradient;
        }
    UNROLL for (int v = 0; v < vectors; v++) {
        store_n(products + v * VL, product[v] * load_n(rstd + v * VL, n - v * VL), n - v * VL);
        store_n(sums + v * VL, sum[v], n - v * VL);
    }
}

static void slice_gradients(const pycnn_batch_norm *d, const float *dy, const float *x, const float *mean,
                            const float *rstd, float *products, float *sums)
{
    const int64_t slices = norm_slices(d), columns = d->columns;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < slices; slice++) {
        const int64_t first = slice_start(d, slice), rows = slice_start(d, slice + 1) - first;
        const float *slice_dy = dy + first * columns, *slice_x = x + first * columns;
        float *to = products + slice * columns, *sums_to = sums + slice * columns;
        int64_t c = 0;
        for (; c + NORM_STRIP * VL <= columns; c += NORM_STRIP * VL)
            strip_gradients(slice_dy + c, slice_x + c, rows, columns, mean + c, rstd + c, to + c, sums_to + c,
                            NORM_STRIP * VL, NORM_STRIP);
        for (; c < columns; c += VL)
            strip_gradients(slice_dy + c, slice_x + c, rows, columns, mean + c, rstd + c, to + c, sums_to + c,
                            columns - c, 1);
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

/* n channels of one row of dx = gamma rstd (dy - share (dbeta + x^ dgamma)). */
INLINE void input_gradient(float *dx, const float *dy, const float *x, const float *mean, const float *rstd,
                           const float *gamma, const float *dgamma, const float *dbeta, float share, int64_t n)
{
    const vec scale = load_n(rstd, n), normal = (load_n(x, n) - load_n(mean, n)) * scale;
    const vec through = load_n(dbeta, n) * share + normal * (load_n(dgamma, n) * share);
    store_n(dx, load_n(gamma, n) * scale * (load_n(dy, n) - through), n);
}

/* The share of each row in the mean and the variance is 1 / rows in training, 0 where they do not depend on x. */
static void input_gradients(const pycnn_batch_norm *d, float *dx, const float *dy, const float *x,
                            const float *mean, const float *rstd, const float *gamma, const float *dgamma,
                            const float *dbeta)
{
    const float share = d->training ? 1.0f / (float)d->rows : 0.0f;
    const int64_t columns = d->columns;
    int64_t first, slice;
    own_slices(d, &first, &slice);
    while (slice-- > first) {
        const int64_t end = slice_start(d, slice + 1) * columns;
        for (int64_t row = slice_start(d, slice) * columns; row < end; row += columns) {
            int64_t c = 0;
            for (; c + VL <= columns; c += VL)
                input_gradient(dx + row + c, dy + row + c, x + row + c, mean + c, rstd + c, gamma + c, dgamma + c,
                               dbeta + c, share, VL);
            if (c < columns)
                input_gradient(dx + row + c, dy + row + c, x + row + c, mean + c, rstd + c, gamma + c, dgamma + c,
                               dbeta + c, share, columns - c);
        }
    }
#pragma omp barrier
}

/* dx, dgamma = sum dy x^, dbeta = sum dy, dy, x, mean, rstd, gamma */
static void batch_norm_backward(const void *desc, void *const *args)
{
    const pycnn_batch_norm *d = desc;
    float *dx = args[0], *dgamma = args[1], *dbeta = args[2];
    const float *dy = args[3], *x = args[4], *mean = args[5], *rstd = args[6], *gamma = args[7];
    float *products = args[8], *sums = products + norm_slices(d) * d->columns;
    slice_gradients(d, dy, x, mean, rstd, products, sums);
    merge_gradients(d, products, sums, dgamma, dbeta);
    input_gradients(d, dx, dy, x, mean, rstd, gamma, dgamma, dbeta);
}

/* Batch normalisation over the rows of a matrix of pixels by channels (Ioffe and Szegedy 2015, algorithm 1).
 *
 *     for each slice of the rows, vector of channels:    mean, then centred sum of squares    shared
 *     for each channel: merge the slices from first to last (Chan, Golub and LeVeque 1979)    shared
 *     for each row: y = (x - mean) * rstd * gamma + beta                                      shared
 *
 * The variance is never E[x^2] - E[x]^2, which cancels when the mean is large. The number of slices depends
 * on shapes alone. */

enum { NORM_SLICES = 16, NORM_ROWS = 32 };

static int64_t norm_slices(const pycnn_batch_norm *d) { return MAX(1, MIN(NORM_SLICES, d->rows / NORM_ROWS)); }

static int64_t batch_norm_workspace(const void *desc, int64_t threads)
{
    const pycnn_batch_norm *d = desc;
    (void)threads;
    return 2 * norm_slices(d) * d->columns * (int64_t)sizeof(float);
}

static void slice_moments(const pycnn_batch_norm *d, const float *x, float *means, float *squares)
{
    const int64_t slices = norm_slices(d), strips = ceil_div(d->columns, VL);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < slices * strips; task++) {
        const int64_t slice = task / strips, c = task % strips * VL, n = d->columns - c;
        const int64_t first = part_start(d->rows, slice, slices), last = part_start(d->rows, slice + 1, slices);
        vec sum = splat(0), square = splat(0);
        for (int64_t i = first; i < last; i++)
            sum = sum + load_n(x + i * d->columns + c, n);
        const vec mean = sum / (float)(last - first);
        for (int64_t i = first; i < last; i++) {
            const vec centred = load_n(x + i * d->columns + c, n) - mean;
            square = square + centred * centred;
        }
        store_n(means + slice * d->columns + c, mean, n);
        store_n(squares + slice * d->columns + c, square, n);
    }
}

static void merge_moments(const pycnn_batch_norm *d, const float *means, const float *squares, float *mean, float *rstd,
                          float *running_mean, float *running_var)
{
    const int64_t slices = norm_slices(d);
#pragma omp for schedule(static)
    for (int64_t c = 0; c < d->columns; c++) {
        double count = 0, centre = 0, square = 0;
        for (int64_t slice = 0; slice < slices; slice++) {
            const double rows = (double)(part_start(d->rows, slice + 1, slices) - part_start(d->rows, slice, slices));
            const double delta = means[slice * d->columns + c] - centre;
            square += squares[slice * d->columns + c] + delta * delta * count * rows / (count + rows);
            centre += delta * rows / (count + rows);
            count += rows;
        }
        const double variance = square / count;
        mean[c] = (float)centre;
        rstd[c] = (float)(1.0 / sqrt(variance + d->eps));
        running_mean[c] = d->momentum * running_mean[c] + (1.0f - d->momentum) * (float)centre;
        running_var[c] = d->momentum * running_var[c] + (1.0f - d->momentum) * (float)variance;
    }
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
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++)
        for (int64_t c = 0; c < d->columns; c += VL) {
            const int64_t n = d->columns - c;
            const vec scale = load_n(rstd + c, n) * load_n(gamma + c, n);
            const vec centred = load_n(x + i * d->columns + c, n) - load_n(mean + c, n);
            store_n(y + i * d->columns + c, centred * scale + load_n(beta + c, n), n);
        }
}

static int64_t batch_norm_backward_workspace(const void *desc, int64_t threads)
{
    return batch_norm_workspace(desc, threads);
}

/* dx, dgamma, dbeta, dy, x, mean, rstd, gamma.
 * dgamma = sum dy x^, dbeta = sum dy with x^ = (x - mean) rstd; in training the mean and the variance depend
 * on x as well: dx = gamma rstd (dy - dbeta / rows - x^ dgamma / rows). */
static void batch_norm_backward(const void *desc, void *const *args)
{
    const pycnn_batch_norm *d = desc;
    float *dx = args[0], *dgamma = args[1], *dbeta = args[2];
    const float *dy = args[3], *x = args[4], *mean = args[5], *rstd = args[6], *gamma = args[7];
    const int64_t slices = norm_slices(d), strips = ceil_div(d->columns, VL);
    float *products = args[8], *sums = products + slices * d->columns;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < slices * strips; task++) {
        const int64_t slice = task / strips, c = task % strips * VL, n = d->columns - c;
        const int64_t last = part_start(d->rows, slice + 1, slices);
        const vec centre = load_n(mean + c, n), scale = load_n(rstd + c, n);
        vec product = splat(0), sum = splat(0);
        for (int64_t i = part_start(d->rows, slice, slices); i < last; i++) {
            const vec gradient = load_n(dy + i * d->columns + c, n);
            product = product + gradient * ((load_n(x + i * d->columns + c, n) - centre) * scale);
            sum = sum + gradient;
        }
        store_n(products + slice * d->columns + c, product, n);
        store_n(sums + slice * d->columns + c, sum, n);
    }
#pragma omp for schedule(static)
    for (int64_t c = 0; c < d->columns; c++) {
        float product = 0, sum = 0;
        for (int64_t slice = 0; slice < slices; slice++) {
            product += products[slice * d->columns + c];
            sum += sums[slice * d->columns + c];
        }
        dgamma[c] = product;
        dbeta[c] = sum;
    }
    const float share = d->training ? 1.0f / (float)d->rows : 0.0f;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++)
        for (int64_t c = 0; c < d->columns; c += VL) {
            const int64_t n = d->columns - c, at = i * d->columns + c;
            const vec scale = load_n(rstd + c, n), normal = (load_n(x + at, n) - load_n(mean + c, n)) * scale;
            const vec through = load_n(dbeta + c, n) * share + normal * (load_n(dgamma + c, n) * share);
            store_n(dx + at, load_n(gamma + c, n) * scale * (load_n(dy + at, n) - through), n);
        }
}

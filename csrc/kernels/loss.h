/* Softmax and the losses. Losses are summed up in double precision: each of LOSS_SLICES slices of the rows from its
 * first to its last, then the slices. A gradient argument may be NULL, when only the loss is wanted. */

enum { LOSS_SLICES = 64 };

/* Without NaN, which the sum of the row's exponentials brings out. */
static float row_max(const float *x, int64_t columns)
{
    float highest = x[0];
    if (columns < VL) {
        for (int64_t c = 1; c < columns; c++)
            highest = x[c] > highest ? x[c] : highest;
        return highest;
    }
    vec best = load(x + columns - VL); /* some of them twice */
    for (int64_t c = 0; c + VL <= columns; c += VL)
        best = vec_max(load(x + c), best);
    for (int i = 0; i < VL; i++)
        highest = best[i] > highest ? best[i] : highest;
    return highest;
}

/* y = exp(x - highest) over a row; returns its sum. Apart from `highest`, which may be so large that the difference of
 * two log-sum-exps would have few digits left. y may be x. */
static float exp_row(float *y, const float *x, float highest, int64_t columns)
{
    vec sum = splat(0);
    int64_t c = 0;
    for (; c + VL <= columns; c += VL) {
        const vec e = vec_exp_negative(load(x + c) - highest);
        store(y + c, e);
        sum = sum + e;
    }
    if (c < columns) {
        const vec e = vec_exp_negative(load_n(x + c, columns - c) - highest);
        store_n(y + c, e, columns - c);
        sum = sum + (vec)((ivec)e & lanes_below(columns - c));
    }
    return lane_sum(sum);
}

/* y = y * scale over a row. */
static void scale_row(float *y, float scale, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= columns; c += VL)
        store(y + c, load(y + c) * scale);
    if (c < columns)
        store_n(y + c, load_n(y + c, columns - c) * scale, columns - c);
}

/* y, x */
static void softmax(const void *desc, void *const *args)
{
    const pycnn_matrix own = *(const pycnn_matrix *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++) {
        const float *from = x + i * d->columns;
        float *to = y + i * d->columns;
        scale_row(to, 1.0f / exp_row(to, from, row_max(from, d->columns), d->columns), d->columns);
    }
}

/* dx, dy, y: dx = y (dy - sum(dy y)) */
static void softmax_backward(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dx = args[0];
    const float *dy = args[1], *y = args[2];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++) {
        const int64_t at = i * d->columns;
        vec sums = splat(0);
        for (int64_t c = 0; c < d->columns; c += VL)
            sums = sums + load_n(dy + at + c, d->columns - c) * load_n(y + at + c, d->columns - c);
        const float sum = lane_sum(sums);
        for (int64_t c = 0; c < d->columns; c += VL) {
            const int64_t n = d->columns - c;
            store_n(dx + at + c, load_n(y + at + c, n) * (load_n(dy + at + c, n) - sum), n);
        }
    }
}

static int64_t sums_bytes(void) { return LOSS_SLICES * (int64_t)sizeof(double); }

static void mean_loss(float *loss, const double *sums, int64_t count)
{
#pragma omp single
    {
        double sum = 0;
        for (int64_t slice = 0; slice < LOSS_SLICES; slice++)
            sum += sums[slice];
        *loss = (float)(sum / (double)count);
    }
}

static int64_t softmax_cross_entropy_workspace(const void *desc, int64_t threads)
{
    const pycnn_matrix *d = desc;
    return sums_bytes() + threads * line_floats(d->columns) * (int64_t)sizeof(float);
}

/* The loss of a row z with target probabilities t; p, its exponentials, become its gradient times rows. */
static float row_loss(float *p, const float *z, const float *t, float highest, float sum, int64_t columns)
{
    const float log_sum = logf(sum);
    float loss = 0, total = 0;
    for (int64_t c = 0; c < columns; c++) {
        loss += t[c] != 0.0f ? t[c] * (log_sum + (highest - z[c])) : 0.0f;
        total += t[c];
    }
    for (int64_t c = 0; c < columns; c++)
        p[c] = p[c] / sum * total - t[c];
    return loss;
}

/* loss, dlogits or NULL, logits, labels (int32) or NULL, targets (rows of probabilities) or NULL */
static void softmax_cross_entropy(const void *desc, void *const *args)
{
    const pycnn_matrix own = *(const pycnn_matrix *)desc, *d = &own;
    float *dlogits = args[1];
    const float *logits = args[2], *targets = args[4];
    const int32_t *labels = args[3];
    double *sums = args[5];
    float *spare = (float *)(sums + LOSS_SLICES) + omp_get_thread_num() * line_floats(d->columns);
    const float share = 1.0f / (float)d->rows;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < LOSS_SLICES; slice++) {
        const int64_t last = part_start(d->rows, slice + 1, LOSS_SLICES);
        double loss = 0;
        for (int64_t i = part_start(d->rows, slice, LOSS_SLICES); i < last; i++) {
            const float *z = logits + i * d->columns;
            float *p = dlogits ? dlogits + i * d->columns : spare;
            const float highest = row_max(z, d->columns), sum = exp_row(p, z, highest, d->columns);
            if (!labels) {
                loss += row_loss(p, z, targets + i * d->columns, highest, sum, d->columns);
                scale_row(p, share, d->columns);
                continue;
            }
            loss += logf(sum) + (highest - z[labels[i]]);
            if (dlogits) {
                scale_row(p, share / sum, d->columns);
                p[labels[i]] -= share;
            }
        }
        sums[slice] = loss;
    }
    mean_loss(args[0], sums, d->rows);
}

static int64_t binary_cross_entropy_workspace(const void *desc, int64_t threads)
{
    (void)desc;
    (void)threads;
    return sums_bytes();
}

/* loss, dlogits or NULL, logits, targets: mean of max(z, 0) - z t + log(1 + exp(-|z|)) */
static void binary_cross_entropy(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dlogits = args[1];
    const float *logits = args[2], *targets = args[3];
    double *sums = args[4];
    const int64_t count = d->rows * d->columns;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < LOSS_SLICES; slice++) {
        const int64_t last = part_start(count, slice + 1, LOSS_SLICES);
        double loss = 0;
        for (int64_t at = part_start(count, slice, LOSS_SLICES); at < last; at++) {
            const float z = logits[at], t = targets[at], small = expf(-fabsf(z));
            loss += (z < 0 ? 0 : z) - z * t + log1pf(small);
            if (dlogits)
                dlogits[at] = ((z >= 0 ? 1.0f : small) / (1.0f + small) - t) / (float)count;
        }
        sums[slice] = loss;
    }
    mean_loss(args[0], sums, count);
}

static int64_t mse_workspace(const void *desc, int64_t threads)
{
    return binary_cross_entropy_workspace(desc, threads);
}

/* loss, dy or NULL, y, targets: mean of (y - t)^2 */
static void mse(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dy = args[1];
    const float *y = args[2], *targets = args[3];
    double *sums = args[4];
    const int64_t count = d->rows * d->columns;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < LOSS_SLICES; slice++) {
        const int64_t last = part_start(count, slice + 1, LOSS_SLICES);
        double loss = 0;
        for (int64_t at = part_start(count, slice, LOSS_SLICES); at < last; at++) {
            const float difference = y[at] - targets[at];
            loss += (double)difference * difference;
            if (dy)
                dy[at] = 2.0f * difference / (float)count;
        }
        sums[slice] = loss;
    }
    mean_loss(args[0], sums, count);
}

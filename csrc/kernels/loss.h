/* Softmax and the losses: each sample's loss in parallel, then their mean in order, in double precision.
 * A gradient argument may be NULL, when only the loss is wanted. */

static float row_max(const float *x, int64_t columns)
{
    float highest = x[0];
    for (int64_t c = 1; c < columns; c++)
        highest = x[c] > highest || x[c] != x[c] ? x[c] : highest;
    return highest;
}

/* y = exp(x - highest) / sum over a row; returns log(sum). Apart from `highest`, which may be so large that the
 * difference of two log-sum-exps would have few digits left. y may be x. */
static float softmax_row(float *y, const float *x, float highest, int64_t columns)
{
    vec sum = splat(0);
    for (int64_t c = 0; c < columns; c += VL) {
        const vec e = vec_exp(load_n(x + c, columns - c) - highest);
        store_n(y + c, e, columns - c);
        sum = sum + load_n(y + c, columns - c);
    }
    const float total = lane_sum(sum);
    for (int64_t c = 0; c < columns; c += VL)
        store_n(y + c, load_n(y + c, columns - c) / total, columns - c);
    return logf(total);
}

/* y, x */
static void softmax(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *y = args[0];
    const float *x = args[1];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++)
        softmax_row(y + i * d->columns, x + i * d->columns, row_max(x + i * d->columns, d->columns), d->columns);
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

static void mean_loss(float *loss, const float *samples, int64_t rows, int64_t count)
{
#pragma omp single
    {
        double sum = 0;
        for (int64_t i = 0; i < rows; i++)
            sum += samples[i];
        *loss = (float)(sum / (double)count);
    }
}

static int64_t softmax_cross_entropy_workspace(const void *desc, int64_t threads)
{
    const pycnn_matrix *d = desc;
    return (line_floats(d->rows) + threads * line_floats(d->columns)) * (int64_t)sizeof(float);
}

/* loss, dlogits or NULL, logits, labels (int32) or NULL, targets (rows of probabilities) or NULL */
static void softmax_cross_entropy(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dlogits = args[1], *samples = args[5];
    const float *logits = args[2], *targets = args[4];
    const int32_t *labels = args[3];
    float *own = samples + line_floats(d->rows) + omp_get_thread_num() * line_floats(d->columns);
    const float share = 1.0f / (float)d->rows;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++) {
        const float *z = logits + i * d->columns;
        float *p = dlogits ? dlogits + i * d->columns : own;
        const float highest = row_max(z, d->columns), log_sum = softmax_row(p, z, highest, d->columns);
        if (labels) {
            samples[i] = log_sum + (highest - z[labels[i]]);
            p[labels[i]] -= 1.0f;
        } else {
            const float *t = targets + i * d->columns;
            float loss = 0, total = 0;
            for (int64_t c = 0; c < d->columns; c++) {
                loss += t[c] != 0.0f ? t[c] * (log_sum + (highest - z[c])) : 0.0f;
                total += t[c];
            }
            for (int64_t c = 0; c < d->columns; c++)
                p[c] = p[c] * total - t[c];
            samples[i] = loss;
        }
        for (int64_t c = 0; c < d->columns; c += VL)
            store_n(p + c, load_n(p + c, d->columns - c) * share, d->columns - c);
    }
    mean_loss(args[0], samples, d->rows, d->rows);
}

static int64_t row_losses(const void *desc, int64_t threads)
{
    const pycnn_matrix *d = desc;
    (void)threads;
    return d->rows * (int64_t)sizeof(float);
}

static int64_t binary_cross_entropy_workspace(const void *desc, int64_t threads) { return row_losses(desc, threads); }

/* loss, dlogits or NULL, logits, targets: mean of max(z, 0) - z t + log(1 + exp(-|z|)) */
static void binary_cross_entropy(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dlogits = args[1], *samples = args[4];
    const float *logits = args[2], *targets = args[3];
    const int64_t count = d->rows * d->columns;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++) {
        float loss = 0;
        for (int64_t at = i * d->columns; at < (i + 1) * d->columns; at++) {
            const float z = logits[at], t = targets[at], small = expf(-fabsf(z));
            loss += (z < 0 ? 0 : z) - z * t + log1pf(small);
            if (dlogits)
                dlogits[at] = ((z >= 0 ? 1.0f : small) / (1.0f + small) - t) / (float)count;
        }
        samples[i] = loss;
    }
    mean_loss(args[0], samples, d->rows, count);
}

static int64_t mse_workspace(const void *desc, int64_t threads) { return row_losses(desc, threads); }

/* loss, dy or NULL, y, targets: mean of (y - t)^2 */
static void mse(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *dy = args[1], *samples = args[4];
    const float *y = args[2], *targets = args[3];
    const int64_t count = d->rows * d->columns;
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->rows; i++) {
        float loss = 0;
        for (int64_t at = i * d->columns; at < (i + 1) * d->columns; at++) {
            const float difference = y[at] - targets[at];
            loss += difference * difference;
            if (dy)
                dy[at] = 2.0f * difference / (float)count;
        }
        samples[i] = loss;
    }
    mean_loss(args[0], samples, d->rows, count);
}

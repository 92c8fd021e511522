/* Softmax and the losses.
 *
 *     for each row (shared): its highest element; exponentials and their sum, in y or, where y is streamed, in
 *                            workspace; y, which is that, scaled
 *     rows of up to NARROW columns, LANES or VL rows at a time (shared): the same with two rows in each lane, or one,
 *                            transposed and back
 *
 * Losses, those of a vector's rows first, are summed up in double precision: each of at most LOSS_SLICES slices of
 * the rows, which begin where vectors do, from its first to its last, then the slices. A gradient argument may be NULL,
 * when only the loss is wanted. */

enum { LOSS_SLICES = 64, SLICE_ROWS = 16, NARROW = 32, LANES = 2 * VL, BLOCKS_AHEAD = 4 };
_Static_assert(SLICE_ROWS % VL == 0, "slices begin at vectors, or their streamed rows would be misaligned");

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
 * two log-sum-exps would have few digits left. Rows `past` the caches follow each other: the next one is called. */
static float exp_row(float *y, const float *x, float highest, int64_t columns, int past)
{
    vec sum = splat(0);
    int64_t c = 0;
    for (; c + VL <= columns; c += VL) {
        const vec e = vec_exp_negative(load(x + c) - highest);
        if (past)
            __builtin_prefetch(x + columns + c);
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

/* y = x * scale over a row; its whole vectors may go past the caches. */
static void scale_row(float *y, const float *x, float scale, int64_t columns, int past)
{
    int64_t c = past ? before_vector(y, columns) : 0;
    store_n(y, load_n(x, c) * scale, c);
    for (; c + VL <= columns; c += VL)
        put_n(y + c, load(x + c) * scale, VL, past);
    if (c < columns)
        store_n(y + c, load_n(x + c, columns - c) * scale, columns - c);
}

/* Whether what is read and written once is streamed: rows by lanes as one array, others wherever they begin. */
INLINE int streams_rows(const float *out, int64_t floats, int by_lanes)
{
    return by_lanes ? streams(out, 2 * floats, VL) : moves_much(2 * floats);
}

/* Of LANES or VL rows by lanes: a lane has `vectors` rows that follow each other, in as many vectors. `at_label`: x
 * where their labels are, if there are any. */
typedef struct { vec highest[2], sum[2], at_label[2]; } lane_sums;

/* What there is one of for each row. */
typedef struct { vec of[2]; } row_values;

INLINE row_values load_row_values(const float *p, const int vectors)
{
    if (vectors == 1)
        return (row_values){ { load(p), splat(0) } };
    const vec low = load(p), high = load(p + VL);
    return (row_values){ { even_lanes(low, high), odd_lanes(low, high) } };
}

/* exp_row of vectors * VL rows x of up to NARROW columns, to y: for each vector, each column, the lanes. Between the
 * exponentials, the lines of later rows are called one by one: all at once they would wait for each other. */
INLINE lane_sums exp_lanes(float *y, const float *x, const row_values *labels, int64_t columns, const int vectors)
{
    const int64_t rows = vectors * VL;
    lane_sums s;
    rows_to_lanes(x, vectors * columns, y, VL);
    UNROLL for (int v = 0; v < vectors; v++) {
        s.highest[v] = splat(-INFINITY);
        s.sum[v] = s.at_label[v] = splat(0);
    }
    for (int64_t c = 0; c < columns; c++)
        UNROLL for (int v = 0; v < vectors; v++) {
            const vec at = load(y + (v * columns + c) * VL);
            s.highest[v] = vec_max(at, s.highest[v]);
            if (labels)
                s.at_label[v] = where((ivec)labels->of[v] == (int32_t)c, at, s.at_label[v]);
        }
    for (int64_t c = 0; c < columns; c++)
        UNROLL for (int v = 0; v < vectors; v++) {
            float *at = y + (v * columns + c) * VL;
            __builtin_prefetch(x + (BLOCKS_AHEAD * columns + c) * rows + v * VL);
            const vec e = vec_exp_negative(load(at) - s.highest[v]);
            store(at, e);
            s.sum[v] = s.sum[v] + e;
        }
    return s;
}

/* y = those rows; they follow each other, so that they may go past the caches. */
INLINE void store_turned(float *y, const float *lanes, int64_t columns, const int vectors, int past)
{
    float turned[NARROW * LANES];
    lanes_to_rows(lanes, VL, past ? turned : y, vectors * columns);
    for (int64_t i = 0; past && i < vectors * VL * columns; i += VL)
        STREAM(y + i, load(turned + i));
}

/* softmax of the same rows. */
INLINE void softmax_lanes(float *y, const float *x, int64_t columns, const int vectors, int past)
{
    float e[NARROW * LANES];
    const lane_sums s = exp_lanes(e, x, NULL, columns, vectors);
    UNROLL for (int v = 0; v < vectors; v++) {
        const vec scale = 1.0f / s.sum[v];
        for (float *at = e + v * columns * VL; at < e + (v + 1) * columns * VL; at += VL)
            store(at, load(at) * scale);
    }
    store_turned(y, e, columns, vectors, past);
}

static int64_t softmax_workspace(const void *desc, int64_t threads)
{
    const pycnn_matrix *d = desc;
    return own_floats(threads, line_floats(d->columns)) * (int64_t)sizeof(float);
}

/* y, x */
static void softmax(const void *desc, void *const *args)
{
    const pycnn_matrix own = *(const pycnn_matrix *)desc, *d = &own;
    float *y = args[0], *spare = own_part(args[2], line_floats(d->columns));
    const float *x = args[1];
    const int by_lanes = d->columns <= NARROW;
    const int past = streams_rows(y, d->rows * d->columns, by_lanes);
#pragma omp for schedule(static) nowait
    for (int64_t first = 0; first < d->rows; first += LANES) {
        int64_t row = first, last = MIN(d->rows, first + LANES);
        for (; by_lanes && row + LANES <= last; row += LANES)
            softmax_lanes(y + row * d->columns, x + row * d->columns, d->columns, 2, past);
        for (; by_lanes && row + VL <= last; row += VL)
            softmax_lanes(y + row * d->columns, x + row * d->columns, d->columns, 1, past);
        for (; row < last; row++) {
            const float *from = x + row * d->columns;
            float *to = y + row * d->columns, *e = past ? spare : to;
            const float sum = exp_row(e, from, row_max(from, d->columns), d->columns, past);
            scale_row(to, e, 1.0f / sum, d->columns, past);
        }
    }
    end_stream(past);
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
        const int64_t whole = d->columns / VL * VL, rest = d->columns - whole;
        vec sums = splat(0);
        for (int64_t c = at; c < at + whole; c += VL)
            sums = sums + load(dy + c) * load(y + c);
        if (rest)
            sums = sums + load_n(dy + at + whole, rest) * load_n(y + at + whole, rest);
        const float sum = lane_sum(sums);
        for (int64_t c = at; c < at + whole; c += VL)
            store(dx + c, load(y + c) * (load(dy + c) - sum));
        if (rest)
            store_n(dx + at + whole, load_n(y + at + whole, rest) * (load_n(dy + at + whole, rest) - sum), rest);
    }
}

static int64_t sums_bytes(void) { return LOSS_SLICES * (int64_t)sizeof(double); }

static void mean_loss(float *loss, const double *sums, int64_t slices, int64_t count)
{
#pragma omp single
    {
        double sum = 0;
        for (int64_t slice = 0; slice < slices; slice++)
            sum += sums[slice];
        *loss = (float)(sum / (double)count);
    }
}

static int64_t softmax_cross_entropy_workspace(const void *desc, int64_t threads)
{
    const pycnn_loss *d = desc;
    return sums_bytes() + own_floats(threads, line_floats(d->columns)) * (int64_t)sizeof(float);
}

/* The loss of a row z with target probabilities t, or all at `label` where t is NULL, smoothed: (1 - smoothing) t +
 * smoothing / columns. p, the row's exponentials, become the gradient of that. */
static float row_loss(
    float *p, const float *z, const float *t, int32_t label, float smoothing, float highest, float sum, int64_t columns)
{
    const float log_sum = logf(sum), kept = 1.0f - smoothing, spread = smoothing / (float)columns;
    float loss = 0, total = 0;
    for (int64_t c = 0; c < columns; c++) {
        const float target = kept * (t ? t[c] : (float)(c == label)) + spread;
        loss += target != 0.0f ? target * (log_sum + (highest - z[c])) : 0.0f;
        total += target;
    }
    for (int64_t c = 0; c < columns; c++)
        p[c] = p[c] / sum * total - (kept * (t ? t[c] : (float)(c == label)) + spread);
    return loss;
}

/* What softmax_cross_entropy is called with. */
typedef struct {
    int64_t rows, columns;
    float *dlogits;
    const float *logits, *targets, *weights;
    const int32_t *labels;
    float smoothing;
    int past;
} entropy;

INLINE float row_weight(const entropy *e, int64_t row) { return e->weights ? e->weights[row] : 1.0f; }

/* The loss of one row. */
static double entropy_of_row(const entropy *e, int64_t row, float *spare)
{
    const int64_t columns = e->columns;
    float *dz = e->dlogits ? e->dlogits + row * columns : NULL, *p = dz && !e->past ? dz : spare;
    const float *z = e->logits + row * columns, highest = row_max(z, columns);
    const float sum = exp_row(p, z, highest, columns, e->past);
    const float weight = row_weight(e, row), share = weight / (float)e->rows;
    if (!e->labels || e->smoothing != 0.0f) {
        const float *t = e->labels ? NULL : e->targets + row * columns;
        const float loss = row_loss(p, z, t, e->labels ? e->labels[row] : 0, e->smoothing, highest, sum, columns);
        if (dz)
            scale_row(dz, p, share, columns, e->past);
        return weight * loss;
    }
    const int32_t label = e->labels[row];
    p[label] -= sum;
    if (dz)
        scale_row(dz, p, share / sum, columns, e->past);
    return weight * (logf(sum) + (highest - z[label]));
}

/* The losses of vectors * VL rows of up to NARROW columns, of labels without smoothing. */
INLINE double entropy_of_lanes(const entropy *e, int64_t row, const int vectors, int past)
{
    float p[NARROW * LANES];
    const row_values labels = load_row_values((const float *)(e->labels + row), vectors);
    const row_values weights = e->weights ? load_row_values(e->weights + row, vectors)
                                          : (row_values){ { splat(1), splat(1) } };
    const lane_sums s = exp_lanes(p, e->logits + row * e->columns, &labels, e->columns, vectors);
    double loss = 0;
    UNROLL for (int v = 0; v < vectors; v++) {
        const vec losses = weights.of[v] * (vec_log_from_1(s.sum[v]) + (s.highest[v] - s.at_label[v]));
        const vec share = weights.of[v] * (1.0f / (float)e->rows), scale = share / s.sum[v];
        for (int64_t c = 0; c < e->columns; c++) {
            float *at = p + (v * e->columns + c) * VL;
            const vec subtracted = (vec)((ivec)share & ((ivec)labels.of[v] == (int32_t)c));
            store(at, load(at) * scale - subtracted);
        }
        loss += VL * (double)lane_sum(losses * (1.0f / VL)); /* a sum may be beyond single precision */
    }
    if (e->dlogits)
        store_turned(e->dlogits + row * e->columns, p, e->columns, vectors, past);
    return loss;
}

/* loss, dlogits or NULL, logits, labels (int32) or NULL, targets (rows of probabilities) or NULL, weights of the rows
 * or NULL */
static void softmax_cross_entropy(const void *desc, void *const *args)
{
    const pycnn_loss *d = desc;
    const int by_lanes = d->columns <= NARROW && args[3] && d->parameter == 0;
    const int past = args[1] && streams_rows(args[1], d->rows * d->columns, by_lanes);
    const entropy e = { d->rows, d->columns, args[1], args[2], args[4], args[5], args[3], d->parameter,
                        past && !by_lanes };
    const int64_t part_rows = by_lanes ? MAX(LANES, SLICE_ROWS) : SLICE_ROWS;
    const int64_t parts = ceil_div(e.rows, part_rows), slices = MAX(1, MIN(LOSS_SLICES, parts));
    double *sums = args[6];
    float *spare = own_part((float *)(sums + LOSS_SLICES), line_floats(e.columns));
#pragma omp for schedule(static) nowait
    for (int64_t slice = 0; slice < slices; slice++) {
        const int64_t last = MIN(e.rows, part_start(parts, slice + 1, slices) * part_rows);
        int64_t row = part_start(parts, slice, slices) * part_rows;
        double loss = 0;
        for (; by_lanes && row + LANES <= last; row += LANES)
            loss += entropy_of_lanes(&e, row, 2, past);
        for (; by_lanes && row + VL <= last; row += VL)
            loss += entropy_of_lanes(&e, row, 1, past);
        for (; row < last; row++)
            loss += entropy_of_row(&e, row, spare);
        sums[slice] = loss;
    }
    end_stream(past);
    mean_loss(args[0], sums, slices, e.rows);
}

/* The losses of elements y with targets t, and their derivatives. */
typedef struct { vec loss, slope; } element_losses;

INLINE element_losses squared_error(vec y, vec t, float delta)
{
    (void)delta;
    return (element_losses){ (y - t) * (y - t), 2.0f * (y - t) };
}

INLINE element_losses absolute_error(vec y, vec t, float delta)
{
    (void)delta;
    const vec e = y - t;
    return (element_losses){ vec_abs(e), where(e == 0.0f, e, vec_copysign(splat(1), e)) };
}

/* Huber 1964: a parabola up to delta, a line beyond. */
INLINE element_losses huber_error(vec y, vec t, float delta)
{
    const vec e = y - t, size = vec_abs(e);
    const ivec near = size <= delta;
    return (element_losses){ where(near, 0.5f * e * e, delta * (size - 0.5f * delta)),
        where(near, e, vec_copysign(splat(delta), e)) };
}

/* max(z, 0) - z t + log(1 + exp(-|z|)) */
INLINE element_losses logistic_error(vec z, vec t, float delta)
{
    (void)delta;
    const vec small = vec_exp_negative(-vec_abs(z)), highest = where(z < 0.0f, splat(0), z);
    return (element_losses){ highest - z * t + vec_log1p_unit(small), vec_sigmoid(z) - t };
}

enum { LOSS_BLOCK = 64 * VL };

/* The sum of the losses of n elements; dy, if not NULL, becomes their derivatives times share. */
INLINE double sum_of_elements(float *dy, const float *y, const float *t, int64_t n, float share, float delta,
    element_losses (*const error)(vec, vec, float))
{
    double sum = 0;
    for (int64_t i0 = 0; i0 < n; i0 += LOSS_BLOCK) {
        vec sums = splat(0);
        for (int64_t i = i0; i < MIN(n, i0 + LOSS_BLOCK); i += VL) {
            const element_losses e = error(load_n(y + i, n - i), load_n(t + i, n - i), delta);
            sums = sums + (n - i < VL ? (vec)((ivec)e.loss & lanes_below(n - i)) : e.loss);
            if (dy)
                store_n(dy + i, e.slope * share, n - i);
        }
        sum += lane_sum(sums);
    }
    return sum;
}

/* loss, dy or NULL, y, targets, weights of the rows or NULL: the mean over all elements. */
INLINE void mean_of_elements(const void *desc, void *const *args, element_losses (*const error)(vec, vec, float))
{
    const pycnn_loss own = *(const pycnn_loss *)desc, *d = &own;
    float *dy = args[1];
    const float *y = args[2], *targets = args[3], *weights = args[4];
    double *sums = args[5];
    const int64_t count = d->rows * d->columns, columns = weights ? d->columns : count;
#pragma omp for schedule(static)
    for (int64_t slice = 0; slice < LOSS_SLICES; slice++) {
        const int64_t last = part_start(count, slice + 1, LOSS_SLICES);
        double loss = 0;
        for (int64_t at = part_start(count, slice, LOSS_SLICES), end; at < last; at = end) {
            const int64_t row = at / columns;
            const float weight = weights ? weights[row] : 1.0f, share = weight / (float)count;
            end = MIN(last, (row + 1) * columns);
            float *to = dy ? dy + at : NULL;
            loss += weight * sum_of_elements(to, y + at, targets + at, end - at, share, d->parameter, error);
        }
        sums[slice] = loss;
    }
    mean_loss(args[0], sums, LOSS_SLICES, count);
}

#define MEAN_OF_ELEMENTS(name, error) \
    static int64_t name##_workspace(const void *desc, int64_t threads) \
    { \
        (void)desc; \
        (void)threads; \
        return sums_bytes(); \
    } \
    static void name(const void *desc, void *const *args) { mean_of_elements(desc, args, error); }

MEAN_OF_ELEMENTS(binary_cross_entropy, logistic_error)
MEAN_OF_ELEMENTS(mse, squared_error)
MEAN_OF_ELEMENTS(mae, absolute_error)
MEAN_OF_ELEMENTS(huber, huber_error)

/* Matrix products, by the engines of product.h and outer.h: the rows are one line of pixels under one tap. */

static axis line_of(int64_t n) { return (axis){ .in = n, .out = n, .taps = 1, .stride = 1, .dilation = 1 }; }
static axis one_pixel(void) { return line_of(1); }

static product gemm_product(const pycnn_gemm *d)
{
    return (product){
        .images = 1, .groups = 1, .len = d->k, .columns = d->n, .v = one_pixel(), .h = line_of(d->m),
        .in_pixel = d->a_row, .in_channel = d->a_col, .out_pixel = d->n,
        .inner = MAX(d->k, 1), .w_inner = d->b_row, .w_column = d->b_col,
        .alpha = d->alpha, .beta = d->beta, .prepacked = d->prepacked, .epilogue = d->epilogue, .planes = d->planes,
    };
}

static int64_t pack_gemm_workspace(const void *desc, int64_t threads)
{
    const product p = gemm_product(desc);
    (void)threads;
    return packed_bytes(&p);
}

/* b, packed */
static void pack_gemm(const void *desc, void *const *args)
{
    product p = gemm_product(desc);
    p.w = args[0];
    pack_weights(&p, args[1]);
#pragma omp barrier
}

static int64_t gemm_workspace(const void *desc, int64_t threads)
{
    const product p = gemm_product(desc);
    return product_workspace(&p, threads);
}

/* c, a, b, bias or NULL, packed b or NULL */
static void gemm(const void *desc, void *const *args)
{
    product p = gemm_product(desc);
    p.out = args[0];
    p.in = args[1];
    p.w = args[2];
    p.bias = args[3];
    p.packed = args[4];
    product_run(&p, args[5]);
}

/* dw (k, n) = a^T dy for a (m, k) and dy (m, n), both without gaps. */
static outer gemm_outer(const pycnn_gemm *d)
{
    return (outer){
        .images = 1, .groups = 1, .len = d->k, .columns = d->n, .v = one_pixel(), .h = line_of(d->m),
        .x_pixel = d->k, .dy_pixel = d->n, .inner = d->k, .w_inner = d->n, .w_column = 1,
    };
}

static int64_t gemm_backward_weights_workspace(const void *desc, int64_t threads)
{
    const outer p = gemm_outer(desc);
    return outer_workspace(&p, threads);
}

/* dw, a, dy */
static void gemm_backward_weights(const void *desc, void *const *args)
{
    outer p = gemm_outer(desc);
    p.dw = args[0];
    p.x = args[1];
    p.dy = args[2];
    outer_run(&p, args[3]);
}

/* out[column] = sum over rows: a fixed number of slices of the rows, added in order. */
enum { SUM_SLICES = 16, SUM_ROWS = 64 };

static int64_t sum_slices(const pycnn_matrix *d) { return MAX(1, MIN(SUM_SLICES, d->rows / SUM_ROWS)); }

static int64_t column_sums_workspace(const void *desc, int64_t threads)
{
    const pycnn_matrix *d = desc;
    (void)threads;
    return sum_slices(d) * d->columns * (int64_t)sizeof(float);
}

/* Sums of some vectors of columns over rows, `at_once` of them next to each other. */
INLINE void sum_rows(const int vectors, const int at_once, const float *in, int64_t rows, int64_t row, float *out,
                     int64_t columns)
{
    vec sum[8];
    UNROLL for (int i = 0; i < vectors * at_once; i++)
        sum[i] = splat(0);
    int64_t i = 0;
    for (; i + at_once <= rows; i += at_once)
        UNROLL for (int u = 0; u < at_once; u++)
            UNROLL for (int j = 0; j < vectors; j++)
                sum[u * vectors + j] = sum[u * vectors + j] + load_n(in + (i + u) * row + j * VL, columns - j * VL);
    for (; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            sum[j] = sum[j] + load_n(in + i * row + j * VL, columns - j * VL);
    UNROLL for (int half = at_once / 2; half > 0; half /= 2)
        UNROLL for (int u = 0; u < half * vectors; u++)
            sum[u] = sum[u] + sum[u + half * vectors];
    UNROLL for (int j = 0; j < vectors; j++)
        store_n(out + j * VL, sum[j], columns - j * VL);
}

static void column_sums(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *out = args[0], *partials = args[2];
    const float *in = args[1];
    const int64_t slices = sum_slices(d), strips = ceil_div(d->columns, 8 * VL);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < slices * strips; task++) {
        const int64_t slice = task / strips, first = part_start(d->rows, slice, slices);
        const int64_t rows = part_start(d->rows, slice + 1, slices) - first;
        const float *from = in + first * d->columns;
        float *to = partials + slice * d->columns;
        const int64_t end = MIN(d->columns, (task % strips + 1) * 8 * VL);
        int64_t j = task % strips * 8 * VL;
        for (; end - j >= 8 * VL; j += 8 * VL)
            sum_rows(8, 1, from + j, rows, d->columns, to + j, 8 * VL);
        for (; end - j >= 2 * VL; j += 2 * VL)
            sum_rows(2, 4, from + j, rows, d->columns, to + j, 2 * VL);
        for (; j < end; j += VL)
            sum_rows(1, 8, from + j, rows, d->columns, to + j, end - j);
    }
#pragma omp for schedule(static)
    for (int64_t j = 0; j < d->columns; j++) {
        float sum = 0;
        for (int64_t slice = 0; slice < slices; slice++)
            sum += partials[slice * d->columns + j];
        out[j] = sum;
    }
}

/* sums[k] = or += sum over n pixels of plane k. */
static void sum_planes(const float *planes, int64_t pixels, int64_t count, int64_t n, float *sums, int adds)
{
    for (int64_t k = 0; k < count; k++, planes += pixels) {
        vec a = splat(0), b = splat(0);
        int64_t i = 0;
        for (; i + 2 * VL <= n; i += 2 * VL) {
            a = a + load(planes + i);
            b = b + load(planes + i + VL);
        }
        for (; i < n; i += VL)
            a = a + load_n(planes + i, n - i);
        sums[k] = lane_sum(a + b) + (adds ? sums[k] : 0);
    }
}

/* out[c] = sum over images and the pixels of their planes c: out, x. */
static void planar_column_sums(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    const int64_t pixels = d->h * d->w;
    float *out = args[0];
    const float *x = args[1];
#pragma omp for schedule(static)
    for (int64_t c = 0; c < d->c; c++)
        for (int64_t n = 0; n < d->n; n++)
            sum_planes(x + (n * d->c + c) * pixels, pixels, 1, pixels, out + c, n > 0);
}

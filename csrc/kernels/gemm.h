/* Matrix products, by the engines of product.h and outer.h: the rows are one line of pixels under one tap. */

static axis line_of(int64_t n) { return (axis){ .in = n, .out = n, .taps = 1, .stride = 1, .dilation = 1 }; }
static axis one_pixel(void) { return line_of(1); }

static product gemm_product(const pycnn_gemm *d)
{
    return (product){
        .images = 1, .groups = 1, .len = d->k, .columns = d->n, .v = one_pixel(), .h = line_of(d->m),
        .in_pixel = d->a_row, .in_channel = d->a_col, .out_pixel = d->n,
        .inner = MAX(d->k, 1), .w_inner = d->b_row, .w_column = d->b_col,
        .alpha = d->alpha, .beta = d->beta,
    };
}

static int64_t gemm_workspace(const void *desc, int64_t threads)
{
    const product p = gemm_product(desc);
    return product_workspace(&p, threads);
}

/* c, a, b, bias or NULL */
static void gemm(const void *desc, void *const *args)
{
    product p = gemm_product(desc);
    p.out = args[0];
    p.in = args[1];
    p.w = args[2];
    p.bias = args[3];
    product_run(&p, args[4]);
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

static void column_sums(const void *desc, void *const *args)
{
    const pycnn_matrix *d = desc;
    float *out = args[0], *partials = args[2];
    const float *in = args[1];
    const int64_t slices = sum_slices(d), strips = ceil_div(d->columns, VL);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < slices * strips; task++) {
        const int64_t slice = task / strips, j = task % strips * VL, n = MIN(VL, d->columns - j);
        const int64_t end = part_start(d->rows, slice + 1, slices);
        vec sum[4] = { splat(0), splat(0), splat(0), splat(0) };
        int64_t i = part_start(d->rows, slice, slices);
        for (; i + 4 <= end; i += 4)
            UNROLL for (int u = 0; u < 4; u++)
                sum[u] = sum[u] + load_n(in + (i + u) * d->columns + j, n);
        for (; i < end; i++)
            sum[0] = sum[0] + load_n(in + i * d->columns + j, n);
        store_n(partials + slice * d->columns + j, (sum[0] + sum[1]) + (sum[2] + sum[3]), n);
    }
#pragma omp for schedule(static)
    for (int64_t j = 0; j < d->columns; j++) {
        float sum = 0;
        for (int64_t slice = 0; slice < slices; slice++)
            sum += partials[slice * d->columns + j];
        out[j] = sum;
    }
}

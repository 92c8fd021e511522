/* Copies, and the transpositions between the planes of a contiguous array and channels-last pixels:
 * out[n][j][i] = in[n][i][j], in blocks of 16 x 16 that stay in the first-level cache. */

enum { TRANSPOSE_BLOCK = 16, COPY_BLOCK = 16384 };

static void transpose(const void *desc, void *const *args)
{
    const pycnn_transpose *d = desc;
    float *out = args[0];
    const float *in = args[1];
    const int64_t rows = d->rows, columns = d->columns, strips = ceil_div(rows, TRANSPOSE_BLOCK);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const float *from = in + task / strips * rows * columns;
        float *to = out + task / strips * rows * columns;
        const int64_t i0 = task % strips * TRANSPOSE_BLOCK, i1 = MIN(rows, i0 + TRANSPOSE_BLOCK);
        for (int64_t j0 = 0; j0 < columns; j0 += TRANSPOSE_BLOCK) {
            const int64_t j1 = MIN(columns, j0 + TRANSPOSE_BLOCK);
            for (int64_t j = j0; j < j1; j++)
                for (int64_t i = i0; i < i1; i++)
                    to[j * rows + i] = from[i * columns + j];
        }
    }
}

static void copy(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    float *out = args[0];
    const float *in = args[1];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->size; i += COPY_BLOCK)
        memcpy(out + i, in + i, sizeof(float) * (size_t)MIN(COPY_BLOCK, d->size - i));
}

static void zero(const void *desc, void *const *args)
{
    const pycnn_elementwise *d = desc;
    float *out = args[0];
#pragma omp for schedule(static)
    for (int64_t i = 0; i < d->size; i += COPY_BLOCK)
        memset(out + i, 0, sizeof(float) * (size_t)MIN(COPY_BLOCK, d->size - i));
}

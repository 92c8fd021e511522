/* Copies, and the transpositions between the planes of a contiguous array and channels-last pixels:
 * out[n][j][i] = in[n][i][j], in blocks of 4 x 4 in registers, 16 rows at a time so that whole cache lines are
 * written. */

enum { TRANSPOSE_ROWS = 16, COPY_BLOCK = 16384 };

typedef float four __attribute__((vector_size(16)));
typedef float four_anywhere __attribute__((vector_size(16), aligned(4), may_alias));

#if defined(__clang__)
#define SHUFFLE(a, b, i, j, k, l) __builtin_shufflevector(a, b, i, j, k, l)
#else
typedef int32_t four_indices __attribute__((vector_size(16)));
#define SHUFFLE(a, b, i, j, k, l) __builtin_shuffle(a, b, (four_indices){ i, j, k, l })
#endif

INLINE four load_four(const float *p) { return *(const four_anywhere *)p; }
INLINE void store_four(float *p, four v) { *(four_anywhere *)p = v; }

/* to[j][i] = from[i][j] for i, j < 4. */
INLINE void transpose_4x4(const float *from, int64_t from_row, float *to, int64_t to_row)
{
    const four a = load_four(from), b = load_four(from + from_row);
    const four c = load_four(from + 2 * from_row), d = load_four(from + 3 * from_row);
    const four ab_low = SHUFFLE(a, b, 0, 4, 1, 5), ab_high = SHUFFLE(a, b, 2, 6, 3, 7);
    const four cd_low = SHUFFLE(c, d, 0, 4, 1, 5), cd_high = SHUFFLE(c, d, 2, 6, 3, 7);
    store_four(to, SHUFFLE(ab_low, cd_low, 0, 1, 4, 5));
    store_four(to + to_row, SHUFFLE(ab_low, cd_low, 2, 3, 6, 7));
    store_four(to + 2 * to_row, SHUFFLE(ab_high, cd_high, 0, 1, 4, 5));
    store_four(to + 3 * to_row, SHUFFLE(ab_high, cd_high, 2, 3, 6, 7));
}

/* to[j][i] = from[i][j] for i < rows, j < columns. */
static void transpose_matrix(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t rows,
                             int64_t columns)
{
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t j = 0; j < whole_columns; j += 4)
        for (int64_t i = 0; i < whole_rows; i += 4)
            transpose_4x4(from + i * from_row + j, from_row, to + j * to_row + i, to_row);
    for (int64_t j = 0; j < columns; j++)
        for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; i++)
            to[j * to_row + i] = from[i * from_row + j];
}

static void transpose(const void *desc, void *const *args)
{
    const pycnn_transpose *d = desc;
    float *out = args[0];
    const float *in = args[1];
    const int64_t rows = d->rows, columns = d->columns, strips = ceil_div(rows, TRANSPOSE_ROWS);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const float *from = in + task / strips * rows * columns;
        float *to = out + task / strips * rows * columns;
        const int64_t first = task % strips * TRANSPOSE_ROWS, last = MIN(rows, first + TRANSPOSE_ROWS);
        const int64_t whole_rows = first + (last - first) / 4 * 4, whole_columns = columns / 4 * 4;
        for (int64_t j = 0; j < whole_columns; j += 4)
            for (int64_t i = first; i < whole_rows; i += 4)
                transpose_4x4(from + i * columns + j, columns, to + j * rows + i, rows);
        for (int64_t j = 0; j < columns; j++)
            for (int64_t i = j < whole_columns ? whole_rows : first; i < last; i++)
                to[j * rows + i] = from[i * columns + j];
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

/* The micro-kernel of every dense product.
 *
 *     acc[i][j] = sum over taps, over l:  x[tap][i][l] * w[tap][l][j]      i < rows, j < vectors * VL
 *     y[i][j]   = alpha * acc[i][j] + old * y[i][j] + bias[j], rectified if that is wanted
 *
 * The rows of x are found through pointers, so a row may be a pixel of an image under one tap of a filter, a
 * row of a matrix, or zeros that stand for padding. Each step of l loads the vectors of w once and broadcasts
 * one float of each row; rows x vectors accumulators stay in registers. */

typedef struct {
    int64_t tap;         /* its number, which tells its part of a panel of weights */
    int64_t offset;      /* of its rows from the pointers, in floats */
} tile_tap;

/* Row i under tap number t of the list begins at x[t * x_step + i] + tap[t].offset: the taps share their pointers
 * (x_step 0), or, where some rows are padding, have some each. */
typedef struct {
    int64_t taps, x_step;
    const tile_tap *tap;
    const float *const *x;
} tile_input;

/* The part of l that a call sums over: float first + l of each row times w[tap * w_tap + l * w_row + j]. */
typedef struct {
    int64_t first, len, w_tap, w_row;
    int64_t ahead;       /* bytes from a tile's rows to those of the next tile, which are fetched meanwhile */
} tile_range;

typedef struct {
    float *const *y;     /* where each row begins */
    int64_t first;       /* its first column here */
    int64_t columns;     /* how many of the vectors' lanes are stored */
    const float *bias;   /* NULL: none */
    float alpha, old;    /* old 0: y is not read */
    pycnn_epilogue epilogue;
} tile_store;

typedef void (*tile_function)(const tile_input *in, const float *w, const tile_range *range, const tile_store *out);

/* All rows of y are read before the first is written: rows 4096 bytes apart would otherwise wait for stores that
 * look like theirs. */
INLINE void tile_finish(const int rows, const int vectors, vec acc[TILE_ROWS][2], const tile_store *out)
{
    const float alpha = out->alpha, old = out->old, *bias = out->bias;
    const int64_t columns = out->columns;
    float *y[TILE_ROWS];
    UNROLL for (int i = 0; i < rows; i++)
        y[i] = out->y[i] + out->first;
    UNROLL for (int j = 0; j < vectors; j++) {
        const int64_t n = columns - j * VL;
        const vec shift = bias ? load_n(bias + j * VL, n) : splat(0);
        UNROLL for (int i = 0; i < rows; i++)
            acc[i][j] = alpha * acc[i][j] + shift;
        if (old != 0)
            UNROLL for (int i = 0; i < rows; i++)
                acc[i][j] = acc[i][j] + old * load_n(y[i] + j * VL, n);
        if (out->epilogue.rectifies)
            UNROLL for (int i = 0; i < rows; i++)
                acc[i][j] = rectify(acc[i][j], out->epilogue.slope);
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store_n(y[i] + j * VL, acc[i][j], columns - j * VL);
}

INLINE void tile(const int rows, const int vectors, const tile_input *in, const float *w, const tile_range *range,
                 const tile_store *out)
{
    const int64_t len = range->len, w_row = range->w_row;
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            __builtin_prefetch(out->y[i] + out->first + j * VL, 1);
    vec acc[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    const float *const *pointers = in->x;
    for (int64_t t = 0; t < in->taps; t++, pointers += in->x_step) {
        const int64_t offset = in->tap[t].offset + range->first;
        const float *row = w + in->tap[t].tap * range->w_tap, *x[TILE_ROWS];
        UNROLL for (int i = 0; i < rows; i++)
            x[i] = pointers[i] + offset;
        uintptr_t next = (uintptr_t)x[0] + (uintptr_t)range->ahead; /* a number: it may lie outside of the array */
        for (int64_t l = 0; l < len; l++, row += w_row, next += rows * sizeof(float)) {
            vec b[2];
            __builtin_prefetch((const void *)next);
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(row + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(x[i][l]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    }
    tile_finish(rows, vectors, acc, out);
}

#define TILE_SIZES_6(T) T(1) T(2) T(3) T(4) T(5) T(6)
#define TILE_SIZES_12(T) TILE_SIZES_6(T) T(7) T(8) T(9) T(10) T(11) T(12)
#define TILE_SIZES_14(T) TILE_SIZES_12(T) T(13) T(14)
#define TILE_SIZES__(rows, T) TILE_SIZES_##rows(T)
#define TILE_SIZES_(rows, T) TILE_SIZES__(rows, T)
#define TILE_SIZES(T) TILE_SIZES_(TILE_ROWS, T)

#define TILE_FUNCTION(rows, vectors)                                                                          \
    static void tile_##rows##x##vectors(const tile_input *in, const float *w, const tile_range *range,        \
                                        const tile_store *out)                                                \
    {                                                                                                         \
        tile(rows, vectors, in, w, range, out);                                                               \
    }
#define TILE_FUNCTIONS(rows) TILE_FUNCTION(rows, 1) TILE_FUNCTION(rows, 2)
TILE_SIZES(TILE_FUNCTIONS)

#define TILE_ENTRY_1(rows) tile_##rows##x1,
#define TILE_ENTRY_2(rows) tile_##rows##x2,
static const tile_function tile_functions[2][TILE_ROWS] = { { TILE_SIZES(TILE_ENTRY_1) }, { TILE_SIZES(TILE_ENTRY_2) } };

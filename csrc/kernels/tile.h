/* The micro-kernel of every dense product.
 *
 *     acc[i][j] = sum over taps, over l:  x[tap][i][l] * w[tap][l][j]      i < rows, j < vectors * VL
 *     y[i][j]   = alpha * acc[i][j] + old * y[i][j] + bias[j]
 *
 * The rows of x are found through pointers, so a row may be a pixel of an image under one tap of a filter, a
 * row of a matrix, or zeros that stand for padding. Each step of l loads the vectors of w once and broadcasts
 * one float of each row; rows x vectors accumulators stay in registers. */

typedef struct {
    int64_t w_row;       /* the tap's first row of a panel of weights */
    const float *x[TILE_ROWS];
} tile_tap;

/* The part of l that a call sums over: x[tap][i][x_first + l] times row w_row + w_first + l of the panel. */
typedef struct { int64_t x_first, w_first, len; } tile_range;

typedef struct {
    float *const *y;     /* the first column of each row */
    int64_t columns;     /* how many of the vectors' lanes are stored */
    const float *bias;   /* NULL: none */
    float alpha, old;    /* old 0: y is not read */
} tile_store;

typedef void (*tile_function)(int64_t taps, const tile_tap *tap, const float *panel, const tile_range *range,
                              const tile_store *out);

INLINE void tile(const int rows, const int vectors, int64_t taps, const tile_tap *tap, const float *panel,
                 const tile_range *range, const tile_store *out)
{
    const int64_t len = range->len;
    vec acc[TILE_ROWS][2];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    for (; taps > 0; taps--, tap++) {
        const float *w = panel + (tap->w_row + range->w_first) * vectors * VL;
        const float *x[TILE_ROWS];
        UNROLL for (int i = 0; i < rows; i++)
            x[i] = tap->x[i] + range->x_first;
        for (int64_t l = 0; l < len; l++, w += vectors * VL) {
            vec b[2];
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(w + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(x[i][l]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    }
    UNROLL for (int j = 0; j < vectors; j++) {
        const int64_t n = out->columns - j * VL;
        const vec bias = out->bias ? load_n(out->bias + j * VL, n) : splat(0);
        UNROLL for (int i = 0; i < rows; i++) {
            float *y = out->y[i] + j * VL;
            vec v = out->alpha * acc[i][j] + bias;
            if (out->old != 0)
                v = v + out->old * load_n(y, n);
            store_n(y, v, n);
        }
    }
}

#define TILE_SIZES_6(T) T(1) T(2) T(3) T(4) T(5) T(6)
#define TILE_SIZES_12(T) TILE_SIZES_6(T) T(7) T(8) T(9) T(10) T(11) T(12)
#define TILE_SIZES_14(T) TILE_SIZES_12(T) T(13) T(14)
#define TILE_SIZES__(rows, T) TILE_SIZES_##rows(T)
#define TILE_SIZES_(rows, T) TILE_SIZES__(rows, T)
#define TILE_SIZES(T) TILE_SIZES_(TILE_ROWS, T)

#define TILE_FUNCTION(rows, vectors)                                                                          \
    static void tile_##rows##x##vectors(int64_t taps, const tile_tap *tap, const float *panel,                \
                                        const tile_range *range, const tile_store *out)                       \
    {                                                                                                         \
        tile(rows, vectors, taps, tap, panel, range, out);                                                    \
    }
#define TILE_FUNCTIONS(rows) TILE_FUNCTION(rows, 1) TILE_FUNCTION(rows, 2)
TILE_SIZES(TILE_FUNCTIONS)

#define TILE_ENTRY_1(rows) tile_##rows##x1,
#define TILE_ENTRY_2(rows) tile_##rows##x2,
static const tile_function tile_functions[2][TILE_ROWS] = { { TILE_SIZES(TILE_ENTRY_1) }, { TILE_SIZES(TILE_ENTRY_2) } };

/* The micro-kernel of every dense product.
 *
 *     acc[i][j] = sum over taps, over l:  x[tap][i][l] * w[tap][l][j]      i < rows, j < vectors * VL
 *     y[i][j]   = alpha * acc[i][j] + old * y[i][j] + bias[j] + row_bias[i], rectified if that is wanted
 *
 * The rows of x are found through pointers, so a row may be a pixel of an image under one tap of a filter, a
 * row of a matrix, or zeros that stand for padding. Each step of l loads the vectors of w once and broadcasts
 * one float of each row; rows x vectors accumulators stay in registers.
 *
 * One vector of columns leaves a broadcast to each multiply-add, more loads than there is time for, and often some of
 * its lanes empty. Where the instruction set can repeat four floats over a vector, a step then takes four l at once:
 * vectors of w hold four columns' [column][l], and the four sums of a column are added in the end. */

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
    int fetches_weights;        /* which of a tap's are fetched meanwhile: weights, or rows */
    int64_t ahead, ahead_step;  /* they lie so many bytes behind those in use, and further with every l */
} tile_range;

/* The next tile's rows are fetched: so many, which lie `row` floats apart. */
INLINE void fetch_rows(tile_range *range, int64_t rows, int64_t row)
{
    range->ahead = rows * row * (int64_t)sizeof(float);
    range->ahead_step = rows * (int64_t)sizeof(float);
}

typedef struct {
    float *const *y;     /* where each row begins */
    int64_t first;       /* its first column here */
    int64_t columns;     /* how many of the vectors' lanes are stored */
    const float *bias;   /* NULL: none */
    const float *row_bias;
    float alpha, old;    /* old 0: y is not read */
    pycnn_epilogue epilogue;
} tile_store;

/* All rows of y are read before the first is written: rows 4096 bytes apart would otherwise wait for stores that
 * look like theirs. */
INLINE void tile_finish(const int rows, const int vectors, vec acc[TALL_ROWS][TILE_VECTORS], const tile_store *out)
{
    const float alpha = out->alpha, old = out->old, *bias = out->bias;
    const int64_t columns = out->columns;
    float *y[TALL_ROWS];
    UNROLL for (int i = 0; i < rows; i++)
        y[i] = out->y[i] + out->first;
    UNROLL for (int j = 0; j < vectors; j++) {
        const int64_t n = columns - j * VL;
        const vec shift = bias ? load_n(bias + j * VL, n) : splat(0);
        UNROLL for (int i = 0; i < rows; i++)
            acc[i][j] = alpha * acc[i][j] + shift;
        if (out->row_bias)
            UNROLL for (int i = 0; i < rows; i++)
                acc[i][j] = acc[i][j] + out->row_bias[i];
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

#ifdef SPREAD_FOUR
enum { HAS_QUADS = 1 };
#else /* quads are not used; what follows is only to be compiled */
enum { HAS_QUADS = 0 };
#define SPREAD_FOUR(p) splat(*(p))
#define SPREAD_PART(p, n) splat(*(p))
#endif
enum { QUAD = 4, QUAD_COLUMNS = VL / QUAD };

INLINE int64_t quad_vectors(int64_t columns) { return ceil_div(columns, QUAD_COLUMNS); }

/* Whether columns are summed by quads of l: what is computed in vain, up to whole quads, costs less than broadcasts. */
INLINE int sums_quads(int64_t columns, int64_t len)
{
    return HAS_QUADS && columns <= VL && 5 * quad_vectors(columns) * round_up(len, QUAD) <= 24 * len;
}

/* Adds the products of a quad of each row, or of the n floats of the last one. */
INLINE void add_quad(const int rows, const int vectors, vec acc[TALL_ROWS][TILE_VECTORS], const float *const *x,
                     int64_t l, const float *w, const int64_t n)
{
    vec b[TILE_VECTORS];
    UNROLL for (int j = 0; j < vectors; j++)
        b[j] = load(w + j * VL);
    UNROLL for (int i = 0; i < rows; i++) {
        const vec a = n == QUAD ? SPREAD_FOUR(x[i] + l) : SPREAD_PART(x[i] + l, n);
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = acc[i][j] + a * b[j];
    }
}

/* Adds those of `len` floats of each row; returns where their weights end. */
INLINE const float *add_quads(const int rows, const int vectors, vec acc[TALL_ROWS][TILE_VECTORS],
                              const float *const *x, const float *w, int64_t len)
{
    const int64_t whole = len / QUAD * QUAD;
    for (int64_t l = 0; l < whole; l += QUAD, w += vectors * VL)
        add_quad(rows, vectors, acc, x, l, w, QUAD);
    if (whole == len)
        return w;
    add_quad(rows, vectors, acc, x, whole, w, len - whole);
    return w + vectors * VL;
}

/* The sums of each pair of neighbouring lanes, those of a before those of b. */
INLINE vec pair_sums(vec a, vec b) { return even_lanes(a, b) + odd_lanes(a, b); }

/* Of pair sums next to each other in the first half, and twice each in the other: those of a quad. */
LANES_OF(first_pairs, i < VL / 2 ? 2 * i : VL + 4 * i % VL)
LANES_OF(second_pairs, i < VL / 2 ? 2 * i + 1 : VL + (4 * i + 2) % VL)

/* A vector of columns of each row, to acc[row][0]; lanes without a column may hold anything. */
INLINE void join_quads(const int rows, const int vectors, vec acc[TALL_ROWS][TILE_VECTORS])
{
    UNROLL for (int i = 0; i < rows; i++) {
        if (vectors == 3) {
            const vec ab = pair_sums(acc[i][0], acc[i][1]), c = acc[i][vectors - 1];
            const vec cc = c + swap_pairs(c);
            acc[i][0] = first_pairs(ab, cc) + second_pairs(ab, cc);
            continue;
        }
        vec sum[QUAD];
        UNROLL for (int j = 0; j < QUAD; j++)
            sum[j] = j < vectors ? acc[i][j] : splat(0);
        acc[i][0] = pair_sums(pair_sums(sum[0], sum[1]), pair_sums(sum[2], sum[3]));
    }
}

INLINE void tile(const int rows, const int vectors, const int quads, const tile_input *in, const float *w,
                 const tile_range *range, const tile_store *out)
{
    const int made = quads ? 1 : vectors;
    const int64_t len = range->len, w_row = range->w_row;
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < made; j++)
            __builtin_prefetch(out->y[i] + out->first + j * VL, 1);
    vec acc[TALL_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    const float *const *pointers = in->x;
    for (int64_t t = 0; t < in->taps; t++, pointers += in->x_step) {
        const int64_t offset = in->tap[t].offset + range->first;
        const float *row = w + in->tap[t].tap * range->w_tap, *x[TALL_ROWS];
        UNROLL for (int i = 0; i < rows; i++)
            x[i] = pointers[i] + offset;
        if (quads) {
            add_quads(rows, vectors, acc, x, row, len);
            continue;
        }
        /* a number: it may lie outside of the array */
        uintptr_t ahead = (uintptr_t)(range->fetches_weights ? row : x[0]) + (uintptr_t)range->ahead;
        for (int64_t l = 0; l < len; l++, row += w_row, ahead += (uintptr_t)range->ahead_step) {
            vec b[TILE_VECTORS];
            __builtin_prefetch((const void *)ahead);
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(row + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(x[i][l]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    }
    if (quads)
        join_quads(rows, vectors, acc);
    tile_finish(rows, made, acc, out);
}

/* The functions of a micro-kernel, body(rows, vectors, arguments), for each number of rows and of vectors, which the
 * compiler unrolls; and the table name_functions[vectors - 1][rows - 1]. */
#define TILE_TABLE(name, body, parameters, arguments)                                                         \
    TALL_HEIGHTS(TALL_FUNCTION, name, body, parameters, arguments)                                            \
    TILE_HEIGHTS(TILE_FUNCTIONS, name, body, parameters, arguments)                                           \
    static void (*const name##_functions[TILE_VECTORS][TALL_ROWS]) parameters = {                             \
        { TALL_HEIGHTS(TILE_ENTRY, name, 1) }, WIDE_TILES(TILE_ENTRIES, name)                                 \
    };
#ifdef QUAD_ROWS
#define QUAD_TABLE(name, body, parameters, arguments)                                                         \
    TALL_HEIGHTS(TALL_FUNCTION, name, body, parameters, arguments)                                            \
    QUAD_HEIGHTS(QUAD_FUNCTIONS, name, body, parameters, arguments)                                           \
    TILE_HEIGHTS(WIDEST_FUNCTION, name, body, parameters, arguments)                                          \
    static void (*const name##_functions[QUAD][TALL_ROWS]) parameters = {                                     \
        { TALL_HEIGHTS(TILE_ENTRY, name, 1) }, { QUAD_HEIGHTS(TILE_ENTRY, name, 2) },                         \
        { QUAD_HEIGHTS(TILE_ENTRY, name, 3) }, { TILE_HEIGHTS(TILE_ENTRY, name, 4) },                         \
    };
#else
#define QUAD_ROWS TILE_ROWS
#define QUAD_TABLE(name, body, parameters, arguments)                                                         \
    static void (*const name##_functions[QUAD][TALL_ROWS]) parameters = { { NULL } };
#endif
#define TALL_FUNCTION(rows, ...) TILE_FUNCTION(1, rows, __VA_ARGS__)
#define TILE_FUNCTIONS(rows, ...) WIDE_TILES(TILE_FUNCTION, rows, __VA_ARGS__)
#define QUAD_FUNCTIONS(rows, ...) TILE_FUNCTION(2, rows, __VA_ARGS__) TILE_FUNCTION(3, rows, __VA_ARGS__)
#define WIDEST_FUNCTION(rows, ...) TILE_FUNCTION(4, rows, __VA_ARGS__)
#define TILE_FUNCTION(vectors, rows, name, body, parameters, arguments)                                       \
    static void name##_##rows##x##vectors parameters { body(rows, vectors, TILE_ARGUMENTS arguments); }
#define TILE_ARGUMENTS(...) __VA_ARGS__
#define TILE_ENTRIES(vectors, name) { TILE_HEIGHTS(TILE_ENTRY, name, vectors) },
#define TILE_ENTRY(rows, name, vectors) name##_##rows##x##vectors,

/* T(i, ...) for each number of rows, of rows of one vector, and of more vectors. */
#define HEIGHTS_3(T, ...) T(1, __VA_ARGS__) T(2, __VA_ARGS__) T(3, __VA_ARGS__)
#define HEIGHTS_6(T, ...) HEIGHTS_3(T, __VA_ARGS__) T(4, __VA_ARGS__) T(5, __VA_ARGS__) T(6, __VA_ARGS__)
#define HEIGHTS_7(T, ...) HEIGHTS_6(T, __VA_ARGS__) T(7, __VA_ARGS__)
#define HEIGHTS_8(T, ...) HEIGHTS_7(T, __VA_ARGS__) T(8, __VA_ARGS__)
#define HEIGHTS_12(T, ...)                                                                                    \
    HEIGHTS_8(T, __VA_ARGS__) T(9, __VA_ARGS__) T(10, __VA_ARGS__) T(11, __VA_ARGS__) T(12, __VA_ARGS__)
#define HEIGHTS_14(T, ...) HEIGHTS_12(T, __VA_ARGS__) T(13, __VA_ARGS__) T(14, __VA_ARGS__)
#define HEIGHTS__(rows, ...) HEIGHTS_##rows(__VA_ARGS__)
#define HEIGHTS_(rows, ...) HEIGHTS__(rows, __VA_ARGS__)
#define TILE_HEIGHTS(...) HEIGHTS_(TILE_ROWS, __VA_ARGS__)
#define TALL_HEIGHTS(...) HEIGHTS_(TALL_ROWS, __VA_ARGS__)
#define QUAD_HEIGHTS(...) HEIGHTS_(QUAD_ROWS, __VA_ARGS__)
#define WIDTHS_2(T, ...) T(2, __VA_ARGS__)
#define WIDTHS_4(T, ...) T(2, __VA_ARGS__) T(3, __VA_ARGS__) T(4, __VA_ARGS__)
#define WIDTHS__(vectors, ...) WIDTHS_##vectors(__VA_ARGS__)
#define WIDTHS_(vectors, ...) WIDTHS__(vectors, __VA_ARGS__)
#define WIDE_TILES(...) WIDTHS_(TILE_VECTORS, __VA_ARGS__)

/* Rows of a tile: few vectors leave registers for more of them, whose sums hide each other's latency. */
INLINE int64_t tile_rows(int64_t columns) { return columns <= VL ? TALL_ROWS : TILE_ROWS; }
INLINE int64_t quad_rows(int64_t columns)
{
    const int64_t vectors = quad_vectors(columns);
    return vectors == 1 ? TALL_ROWS : vectors < QUAD ? QUAD_ROWS : TILE_ROWS;
}

#define TILE_PARAMETERS (const tile_input *in, const float *w, const tile_range *range, const tile_store *out)
TILE_TABLE(tile, tile, TILE_PARAMETERS, (0, in, w, range, out))
QUAD_TABLE(quad_tile, tile, TILE_PARAMETERS, (1, in, w, range, out))

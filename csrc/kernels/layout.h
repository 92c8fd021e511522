/* Copies, zero padding, and the transpositions between the planes of a contiguous array and channels-last pixels:
 * out[n][j][i] = in[n][i][j].
 *
 *     for each matrix, block of it (shared among threads), tile of 16 x 16 of the block, square of 4 x 4 or 8 x 8 of it
 *
 * Blocks are short along the longer side of the matrix, so that the pixels of a block stay in a cache while all of
 * their channels come or go; tiles, and the parts of a tile, first go along the longer side, where few lines of many
 * planes are in use at a time: planes are often a power of two apart and share few places of the first cache.
 * Beyond the caches, up to MOST_COLUMNS columns, memory takes long runs faster than a line of each of many rows:
 *
 *     for each matrix, block of some of its rows that fits into L2 (shared among threads)
 *         for each 16 columns: turn them, and call the next block, line by line; stream their runs
 *
 * Where one side is 2, rows are interleaved, or split, by pairs of vectors; where it is 3, as the compiler does it. */

enum { TILE_SIDE = 16, LONG_SIDE = 64, SHORT_SIDE = 256, THIN = 4, COPY_BLOCK = 16384 };
enum { LEAST_COLUMNS = 32, MOST_COLUMNS = 1024, LEAST_BLOCK = 64, MOST_BLOCK = 1024 };
enum { BLOCK_FLOATS = MIN(65536, CACHE_FLOATS / 2) };

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

/* The same for i, j < SQUARE, where there are vectors of eight: half i of each holds one of two 4 x 4 squares, and what
 * was said of four lanes is done in both halves. LOAD_PAIR loads four floats from each of two places. */
#ifdef LOAD_PAIR
enum { SQUARE = 8 };
#if defined(__clang__)
#define SHUFFLE_PAIR(a, b, i, j, k, l)                                                                      \
    __builtin_shufflevector(a, b, LANE(i), LANE(j), LANE(k), LANE(l), LANE(i) + 4, LANE(j) + 4, LANE(k) + 4, LANE(l) + 4)
#else
typedef int32_t eight_indices __attribute__((vector_size(32)));
#define SHUFFLE_PAIR(a, b, i, j, k, l)                                                                      \
    __builtin_shuffle(a, b, (eight_indices){ LANE(i), LANE(j), LANE(k), LANE(l),                            \
                                             LANE(i) + 4, LANE(j) + 4, LANE(k) + 4, LANE(l) + 4 })
#endif
#define LANE(i) ((i) < 4 ? (i) : (i) + 4)

typedef float eight __attribute__((vector_size(32)));
typedef float eight_anywhere __attribute__((vector_size(32), aligned(4), may_alias));

INLINE void transpose_square(const float *from, int64_t from_row, float *to, int64_t to_row)
{
    UNROLL for (int half = 0; half < SQUARE; half += 4, from += 4, to += 4 * to_row) {
        const float *below = from + 4 * from_row;
        const eight a = LOAD_PAIR(from, below), b = LOAD_PAIR(from + from_row, below + from_row);
        const eight c = LOAD_PAIR(from + 2 * from_row, below + 2 * from_row);
        const eight d = LOAD_PAIR(from + 3 * from_row, below + 3 * from_row);
        const eight ab_low = SHUFFLE_PAIR(a, b, 0, 4, 1, 5), ab_high = SHUFFLE_PAIR(a, b, 2, 6, 3, 7);
        const eight cd_low = SHUFFLE_PAIR(c, d, 0, 4, 1, 5), cd_high = SHUFFLE_PAIR(c, d, 2, 6, 3, 7);
        *(eight_anywhere *)to = SHUFFLE_PAIR(ab_low, cd_low, 0, 1, 4, 5);
        *(eight_anywhere *)(to + to_row) = SHUFFLE_PAIR(ab_low, cd_low, 2, 3, 6, 7);
        *(eight_anywhere *)(to + 2 * to_row) = SHUFFLE_PAIR(ab_high, cd_high, 0, 1, 4, 5);
        *(eight_anywhere *)(to + 3 * to_row) = SHUFFLE_PAIR(ab_high, cd_high, 2, 3, 6, 7);
    }
}
#else
enum { SQUARE = 4 };
INLINE void transpose_square(const float *from, int64_t from_row, float *to, int64_t to_row)
{
    transpose_4x4(from, from_row, to, to_row);
}
#endif

/* rows, columns >= side, which is 4 or SQUARE; the last blocks may overlap those before. */
INLINE void transpose_small(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t rows,
                            int64_t columns, const int64_t side)
{
    for (int64_t i = 0; i < rows; i += side)
        for (int64_t j = 0; j < columns; j += side) {
            const int64_t row = MIN(i, rows - side), column = MIN(j, columns - side);
            const float *corner = from + row * from_row + column;
            if (side == 4)
                transpose_4x4(corner, from_row, to + column * to_row + row, to_row);
            else
                transpose_square(corner, from_row, to + column * to_row + row, to_row);
        }
}

/* to[j][i] = from[i][j] for any rows and columns. */
static void transpose_matrix(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t rows,
                             int64_t columns)
{
    if (rows >= SQUARE && columns >= SQUARE) {
        transpose_small(from, from_row, to, to_row, rows, columns, SQUARE);
        return;
    }
    if (rows >= 4 && columns >= 4) {
        transpose_small(from, from_row, to, to_row, rows, columns, 4);
        return;
    }
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            to[j * to_row + i] = from[i * from_row + j];
}

/* Four floats from each of as many places, `step` apart, as fill a vector; and back. */
#ifndef LOAD_FOURS
#define LOAD_FOURS(p, step) load(p)
#define STORE_FOURS(p, step, v) store(p, v)
#endif

/* Of the fours in a: a0 b0 a1 b1, a2 b2 a3 b3; a0 a1 b0 b1, a2 a3 b2 b3 */
LANES_OF(low_of_fours, i / 4 * 4 + i % 4 / 2 + i % 2 * VL)
LANES_OF(high_of_fours, i / 4 * 4 + 2 + i % 4 / 2 + i % 2 * VL)
LANES_OF(first_twos, i / 4 * 4 + i % 2 + i % 4 / 2 * VL)
LANES_OF(last_twos, i / 4 * 4 + 2 + i % 2 + i % 4 / 2 * VL)

/* Transposes the squares that the fours in the same place of four vectors are. */
INLINE void transpose_fours(vec v[4])
{
    const vec ab_low = low_of_fours(v[0], v[1]), ab_high = high_of_fours(v[0], v[1]);
    const vec cd_low = low_of_fours(v[2], v[3]), cd_high = high_of_fours(v[2], v[3]);
    v[0] = first_twos(ab_low, cd_low);
    v[1] = last_twos(ab_low, cd_low);
    v[2] = first_twos(ab_high, cd_high);
    v[3] = last_twos(ab_high, cd_high);
}

/* v[j][i] = from[i][j] for VL rows of four. */
INLINE void load_turned(const float *from, int64_t from_row, vec v[4])
{
    UNROLL for (int i = 0; i < 4; i++)
        v[i] = LOAD_FOURS(from + i * from_row, 4 * from_row);
    transpose_fours(v);
}

/* lanes[column][row] = rows[row][column] for VL rows next to each other, whose columns lie `step` apart in `lanes`. */
INLINE void rows_to_lanes(const float *rows, int64_t columns, float *lanes, int64_t step)
{
    if (columns < 4) {
        transpose_matrix(rows, columns, lanes, step, VL, columns);
        return;
    }
    for (int64_t j = 0; j < columns; j += 4) {
        const int64_t first = MIN(j, columns - 4);
        vec v[4];
        load_turned(rows + first, columns, v);
        UNROLL for (int i = 0; i < 4; i++)
            store(lanes + (first + i) * step, v[i]);
    }
}

/* And back. */
INLINE void lanes_to_rows(const float *lanes, int64_t step, float *rows, int64_t columns)
{
    if (columns < 4) {
        transpose_matrix(lanes, step, rows, columns, columns, VL);
        return;
    }
    for (int64_t j = 0; j < columns; j += 4) {
        const int64_t first = MIN(j, columns - 4);
        vec v[4];
        UNROLL for (int i = 0; i < 4; i++)
            v[i] = load(lanes + (first + i) * step);
        transpose_fours(v);
        UNROLL for (int i = 0; i < 4; i++)
            STORE_FOURS(rows + i * columns + first, 4 * columns, v[i]);
    }
}

INLINE void transpose_tile(const float *from, int64_t from_row, float *to, int64_t to_row, int wide)
{
    const int64_t side = wide ? SQUARE : 4;
    for (int64_t a = 0; a < TILE_SIDE; a += side)
        UNROLL for (int64_t b = 0; b < TILE_SIDE; b += side) {
            const int64_t i = wide ? a : b, j = wide ? b : a;
            const float *corner = from + i * from_row + j;
            if (wide)
                transpose_square(corner, from_row, to + j * to_row + i, to_row);
            else
                transpose_4x4(corner, from_row, to + j * to_row + i, to_row);
        }
}

/* The same of 16 rows and 4 columns or more past the caches, line by line; `to` begins at a line, and so do its rows. */
INLINE void stream_tile(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t columns)
{
    for (int64_t j = 0; j < columns; j += 4) {
        const int64_t first = MIN(j, columns - 4);
        vec v[TILE_SIDE / VL][4];
        UNROLL for (int i = 0; i < TILE_SIDE / VL; i++)
            load_turned(from + i * VL * from_row + first, from_row, v[i]);
        UNROLL for (int k = 0; k < 4; k++)
            UNROLL for (int i = 0; i < TILE_SIDE / VL; i++)
                STREAM(to + (first + k) * to_row + i * VL, v[i][k]);
    }
}

/* Calls what a tile will write, at `offset`, which may lie outside of the array: its lines are more than a processor
 * sees coming, and a line is fetched before a part of it is written. */
INLINE void prefetch_rows(const float *to, int64_t offset, int64_t to_row)
{
    for (int64_t i = 0; i < TILE_SIDE; i++)
        call_for_writing(to, offset + i * to_row);
}

/* And what a tile will read. */
INLINE void prefetch_sources(const float *from, int64_t offset, int64_t from_row)
{
    for (int64_t i = 0; i < TILE_SIDE; i++)
        call_for_reading(from, offset + i * from_row);
}

/* rows, columns >= 4; `wide` says that the matrix has more columns than rows, `far` that it lies in memory, `past` that
 * its transpose goes there, which then has whole lines of rows. */
INLINE void transpose_block(const float *from, int64_t from_row, float *to, int64_t to_row, int64_t rows,
                            int64_t columns, int wide, int far, int past)
{
    const int64_t whole_rows = rows / TILE_SIDE * TILE_SIDE, whole_columns = columns / TILE_SIDE * TILE_SIDE;
    const int64_t short_end = wide ? whole_rows : whole_columns, long_end = wide ? whole_columns : whole_rows;
    for (int64_t a = 0; a < short_end; a += TILE_SIDE)
        for (int64_t b = 0; b < long_end; b += TILE_SIDE) {
            const int64_t i = wide ? a : b, j = wide ? b : a;
            const int is_last = a + TILE_SIDE >= short_end; /* the next block follows along the longer side */
            const int64_t next_a = is_last ? 0 : a + TILE_SIDE, next_b = is_last ? b + long_end : b;
            const int64_t next_i = wide ? next_a : next_b, next_j = wide ? next_b : next_a;
            if (far)
                prefetch_sources(from, next_i * from_row + next_j, from_row);
            if (past) {
                stream_tile(from + i * from_row + j, from_row, to + j * to_row + i, to_row, TILE_SIDE);
                continue;
            }
            prefetch_rows(to, next_j * to_row + next_i, to_row);
            transpose_tile(from + i * from_row + j, from_row, to + j * to_row + i, to_row, wide);
        }
    if (whole_rows < rows) {
        const int64_t i = MIN(whole_rows, rows - 4);
        transpose_small(from + i * from_row, from_row, to + i, to_row, rows - i, columns, 4);
    }
    if (whole_columns < columns) {
        const int64_t j = MIN(whole_columns, columns - 4);
        for (int64_t i = 0; past && i < rows; i += TILE_SIDE)
            stream_tile(from + i * from_row + j, from_row, to + j * to_row + i, to_row, columns - j);
        if (!past)
            transpose_small(from + j, from_row, to + j * to_row, to_row, rows, columns - j, 4);
    }
}

/* Some pixels, rows of channels, to contiguous planes: pixel number `first` of all images and those after it, channels
 * channel.. of the `all` that an image has. */
static void store_planes(const float *from, int64_t from_row, float *out, int64_t plane, int64_t all, int64_t first,
                         int64_t pixels, int64_t channel, int64_t channels)
{
    for (int64_t i = 0, run; i < pixels; i += run) {
        const int64_t image = (first + i) / plane, pixel = (first + i) % plane;
        float *to = out + (image * all + channel) * plane + pixel;
        run = MIN(pixels - i, plane - pixel);
        if (run >= 4 && channels >= 4)
            transpose_block(from + i * from_row, from_row, to, plane, run, channels, 0, 0, 0);
        else
            transpose_matrix(from + i * from_row, from_row, to, plane, run, channels);
    }
}

/* Calls into L2 what store_planes will write of the first pixel's image: so many planes are more than a processor sees
 * coming. */
static void prefetch_planes(float *out, int64_t plane, int64_t all, int64_t first, int64_t pixels, int64_t channel,
                            int64_t channels)
{
    enum { LINE = 16 };
    float *to = out + (first / plane * all + channel) * plane + first % plane;
    const int64_t run = MIN(pixels, plane - first % plane);
    for (int64_t c = 0; c < channels; c++, to += plane)
        for (int64_t i = 0; i < run; i += LINE)
            __builtin_prefetch(to + i, 1, 2);
}

/* The even and the odd of 2 n floats, n <= VL, of which the second VL begin `high` floats after the first. */
typedef struct { vec even, odd; } lane_pairs;

INLINE lane_pairs load_pairs(const float *p, int64_t high, int64_t n)
{
    const vec a = load_n(p, 2 * n), b = 2 * n > VL ? load_n(p + high, 2 * n - VL) : splat(0);
    return (lane_pairs){ even_lanes(a, b), odd_lanes(a, b) };
}

INLINE void store_pairs(float *p, int64_t high, lane_pairs v, int64_t n)
{
    store_n(p, low_pairs(v.even, v.odd), 2 * n);
    if (2 * n > VL)
        store_n(p + high, high_pairs(v.even, v.odd), 2 * n - VL);
}

/* to = even[0], odd[0], even[1], ... of n each. */
INLINE void interleave_pairs(const float *even, const float *odd, float *to, int64_t n)
{
    for (int64_t i = 0; i < n; i += VL) {
        const lane_pairs v = { load_n(even + i, n - i), load_n(odd + i, n - i) };
        store_pairs(to + 2 * i, VL, v, MIN(VL, n - i));
    }
}

/* The reverse, of n floats in all. */
INLINE void split_pairs(const float *from, float *even, float *odd, int64_t n)
{
    for (int64_t i = 0; i < n / 2; i += VL) {
        const lane_pairs v = load_pairs(from + 2 * i, VL, MIN(VL, n / 2 - i));
        store_n(even + i, v.even, n / 2 - i);
        store_n(odd + i, v.odd, n / 2 - i);
    }
    if (n % 2)
        even[n / 2] = from[n - 1];
}

/* to[j * n + i] = from[i * stride + j] for i < n, j < length. */
INLINE void interleave(const float *restrict from, int64_t stride, float *restrict to, int64_t length, int64_t n)
{
    for (int64_t j = 0; j < length; j++)
        for (int64_t i = 0; i < n; i++)
            to[j * n + i] = from[i * stride + j];
}

/* to[i * stride + j] = from[j * n + i] for i < n, j < length. */
INLINE void split(const float *restrict from, float *restrict to, int64_t stride, int64_t length, int64_t n)
{
    for (int64_t j = 0; j < length; j++)
        for (int64_t i = 0; i < n; i++)
            to[i * stride + j] = from[j * n + i];
}

/* A block of a matrix: rows i..i+m-1 and columns j..j+n-1. */
static void transpose_part(const pycnn_transpose *d, const float *in, float *out, int64_t i, int64_t j, int64_t m,
                           int64_t n, int far, int past)
{
    const float *from = in + i * d->columns + j;
    float *to = out + j * d->rows + i;
    if (d->rows == 2)
        interleave_pairs(from, from + d->columns, to, n);
    else if (d->rows == 3)
        interleave(from, d->columns, to, n, 3);
    else if (d->columns == 2)
        split_pairs(from, to, to + d->rows, 2 * m);
    else if (d->columns == 3)
        split(from, to, d->rows, m, 3);
    else if (d->rows == 1 || d->columns == 1)
        memcpy(to, from, sizeof(float) * (size_t)(m * n));
    else if (d->columns > d->rows)
        transpose_block(from, d->columns, to, d->rows, m, n, 1, far, past);
    else
        transpose_block(from, d->columns, to, d->rows, m, n, 0, far, past);
}

/* Blocks of `side` along `size`; the last one is longer by what remains. */
INLINE int64_t blocks_of(int64_t size, int64_t side) { return MAX(1, size / side); }
INLINE int64_t block_end(int64_t size, int64_t side, int64_t i)
{
    return i + 1 == blocks_of(size, side) ? size : (i + 1) * side;
}

/* A run of n floats past the caches, but for the ends, which share a line with others. */
static void stream_run(float *to, const float *from, int64_t n)
{
    int64_t i = before_vector(to, n);
    copy_floats(to, from, i);
    for (; i + VL <= n; i += VL)
        STREAM(to + i, load(from + i));
    copy_floats(to + i, from + i, n - i);
}

/* Some rows of a matrix, as long as it, to rows of `to_row` of its transpose; the rows behind them are called. */
static void stream_rows(const float *from, int64_t rows, int64_t columns, float *to, int64_t to_row)
{
    float turned[TILE_SIDE * (MOST_BLOCK + TILE_SIDE)];
    const int is_one_run = rows == to_row && rows % TILE_SIDE != 0;
    const int64_t step = is_one_run ? rows : rows + TILE_SIDE; /* no power of two, which would share sets of a cache */
    const int64_t groups = ceil_div(columns, TILE_SIDE);
    int64_t called = rows * columns;
    for (int64_t group = 0; group < groups; group++) {
        const int64_t j = part_start(columns, group, groups), n = part_start(columns, group + 1, groups) - j;
        for (int64_t i = 0, m; i < rows; i += m) {
            m = rows - i < 2 * TILE_SIDE ? rows - i : TILE_SIDE;
            for (int64_t line = 0; line < m * n; line += 16, called += 16)
                call_into_l2(from, called);
            transpose_matrix(from + i * columns + j, columns, turned + i, step, m, n);
        }
        if (is_one_run)
            stream_run(to + j * to_row, turned, n * rows);
        for (int64_t i = 0; !is_one_run && i < n; i++)
            stream_run(to + (j + i) * to_row, turned + i * step, rows);
    }
}

static int streams_by_rows(const pycnn_transpose *d)
{
    return d->rows >= THIN && d->columns >= LEAST_COLUMNS && d->columns <= MOST_COLUMNS &&
           moves_much(2 * d->n * d->rows * d->columns);
}

static void transpose_by_rows(const pycnn_transpose *d, float *out, const float *in)
{
    const int64_t size = d->rows * d->columns, wanted = BLOCK_FLOATS / d->columns / TILE_SIDE * TILE_SIDE;
    const int64_t rows = MIN(d->rows, MIN(MOST_BLOCK, MAX(LEAST_BLOCK, wanted)));
    const int64_t blocks = ceil_div(d->rows, rows);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < d->n * blocks; task++) {
        const int64_t matrix = task / blocks * size, i = task % blocks * rows;
        stream_rows(in + matrix + i * d->columns, MIN(rows, d->rows - i), d->columns, out + matrix + i, d->rows);
    }
    end_stream(1);
}

/* Whether whole lines are written past the caches. The next kernel reads them, so only where the transpose by itself is
 * more than a last cache holds; and not where each line of a tile lies in a page of its own, which was slower. */
static int goes_past(const pycnn_transpose *d, const float *out)
{
    return moves_much(d->n * d->rows * d->columns / 2) && d->rows % TILE_SIDE == 0 && d->rows <= PAGE_FLOATS &&
           (uintptr_t)out % LINE_BYTES == 0;
}

static void transpose(const void *desc, void *const *args)
{
    const pycnn_transpose *d = desc;
    float *out = args[0];
    const float *in = args[1];
    if (streams_by_rows(d)) {
        transpose_by_rows(d, out, in);
        return;
    }
    const int wide = d->columns > d->rows;
    const int64_t row_side = d->columns < THIN ? COPY_BLOCK : wide ? SHORT_SIDE : LONG_SIDE;
    const int64_t column_side = d->rows < THIN ? COPY_BLOCK : wide ? LONG_SIDE : SHORT_SIDE;
    const int64_t row_blocks = blocks_of(d->rows, row_side), column_blocks = blocks_of(d->columns, column_side);
    const int64_t blocks = row_blocks * column_blocks, size = d->rows * d->columns;
    const int far = moves_much(2 * d->n * size);
    const int past = goes_past(d, out);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < d->n * blocks; task++) {
        const int64_t matrix = task / blocks, block = task % blocks;
        const int64_t row = wide ? block % row_blocks : block / column_blocks;
        const int64_t column = wide ? block / row_blocks : block % column_blocks;
        const int64_t i = row * row_side, j = column * column_side;
        transpose_part(d, in + matrix * size, out + matrix * size, i, j, block_end(d->rows, row_side, row) - i,
                       block_end(d->columns, column_side, column) - j, far, past);
    }
    end_stream(past);
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

/* to, from: columns of one matrix to those of another. */
static void copy_columns(const void *desc, void *const *args)
{
    const pycnn_columns own = *(const pycnn_columns *)desc, *d = &own;
    float *to = (float *)args[0] + d->to;
    const float *from = (const float *)args[1] + d->from;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->rows; row++)
        copy_floats(to + row * d->to_row, from + row * d->from_row, d->columns);
}

/* y, x. The columns first..last-1 of a row of y come from x. */
static void pad2d(const void *desc, void *const *args)
{
    const pycnn_pad2d own = *(const pycnn_pad2d *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1];
    const int64_t oh = d->h + d->top + d->bottom, ow = d->w + d->left + d->right;
    const int64_t first = MAX(d->left, 0), last = MIN(d->left + d->w, ow);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * oh; row++) {
        float *to = y + row * ow * d->c;
        const int64_t h = row % oh - d->top;
        if (h < 0 || h >= d->h) {
            memset(to, 0, sizeof(float) * (size_t)(ow * d->c));
            continue;
        }
        const float *from = x + ((row / oh * d->h + h) * d->w + first - d->left) * d->c;
        memset(to, 0, sizeof(float) * (size_t)(first * d->c));
        memcpy(to + first * d->c, from, sizeof(float) * (size_t)((last - first) * d->c));
        memset(to + last * d->c, 0, sizeof(float) * (size_t)((ow - last) * d->c));
    }
}

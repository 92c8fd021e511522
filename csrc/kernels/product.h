/* One engine for convolution, its backward-data, GEMM and dense layers: rows found through taps, times weights.
 *
 *     out[pixel][column] = alpha * sum over taps, l: in[position(pixel, tap)][l] * w[tap][l][column]
 *                          + beta * out[pixel][column] + bias[column], rectified if that is wanted
 *
 * Along an axis, a forward convolution reads position o * stride + t * dilation - pad of its input. Its
 * backward-data reads, for each o of dx, the position (o + pad - t * dilation) / stride of dy, where that
 * divides: the taps that do are the same for all o of one remainder (phase) modulo the stride, so the outputs
 * are made phase by phase and no product with an inserted zero is ever done (the sub-pixel decomposition).
 *
 *     pack w into panels [group][chunk][panel][tap][l][vectors]                     shared, once a call
 *     for each phase, group, block of pixel tiles, group of panels:                 shared among threads
 *         find the rows of each tile and tap
 *         for each chunk of l:                                                      restarts the running sums
 *             for each panel, for each tile: the micro-kernel                       panel in L2, rows in L1
 *
 * Few weights are packed by each thread for itself. Those that stay the same from call to call may come packed. Where
 * few tiles would read a panel, w is read where it lies. A block's outputs may go to contiguous planes, through a part
 * of the workspace that lies in a cache, and their moments may be taken (moments.h). Every output is made by one task in
 * a fixed order, so its bits do not depend on the threads. */

typedef struct { int64_t in, out, taps, stride, dilation, pad; int backward; } axis;

typedef struct {
    int64_t images, groups;
    int64_t len, columns;            /* of a group: channels summed over, channels made */
    axis v, h;                       /* vertical, horizontal */
    const float *in;
    int64_t in_pixel, in_channel;    /* floats from pixel to pixel, from channel to channel; one of them is 1 */
    float *out;
    int64_t out_pixel;
    int64_t prepacked;               /* whether `packed` holds the weights as pack_weights leaves them */
    const float *packed;
    const float *w;                  /* tap t, l, column of group g: t * w_tap + l / inner * w_outer + ... */
    int64_t w_tap, inner, w_outer, w_inner, w_column, w_group;   /* ... + l % inner * w_inner + column * w_column */
    const float *bias;
    float alpha, beta;
    pycnn_epilogue epilogue;
    moments moments;                 /* of the columns, a slice for each block of tiles; or of no slices */
    int64_t planes;                  /* whether `out` has contiguous planes; of a forward product */
} product;

enum { PANEL = TILE_VECTORS * VL, PACK_STRIP = 64, PACK_PANELS = 8 };
enum { BLOCK_TILES = 8, COPIED_TILES = 16, FEW_TILES = 2, ROW_GAP = 17 };
enum { CHUNK = 512, PAGES_CHUNK = TILE_VECTORS > 2 ? 128 : CHUNK, LONG_ROW = 512 };
enum { TASKS_A_THREAD = 4, TILES_IN_PLACE = 6 * TILE_VECTORS };
enum { FEW_WEIGHTS = 32768, LITTLE_WORK = 1 << 20 }; /* floats; multiply-adds */
enum { SHORT_SUM = 128, MANY_OUTPUTS = 524288, COPIED_PANELS = 4, MANY_WEIGHTS = 1 << 22, MOST_TILES = 24 };

INLINE int64_t product_taps(const product *p) { return p->v.taps * p->h.taps; }
INLINE int64_t panels(int64_t columns) { return ceil_div(columns, PANEL); }
INLINE int panel_vectors(int64_t columns, int64_t panel)
{
    return (int)MIN(TILE_VECTORS, ceil_div(columns - panel * PANEL, VL));
}

/* Whether a panel is packed in quads of l, for quad_tile; and the vectors that a quad, or else one l, takes there. */
INLINE int has_quads(const product *p, int64_t panel) { return sums_quads(p->columns - panel * PANEL, p->len); }
INLINE int packed_vectors(const product *p, int64_t panel)
{
    return has_quads(p, panel) ? (int)quad_vectors(p->columns - panel * PANEL) : panel_vectors(p->columns, panel);
}
/* The floats of `len` l of a panel under one tap. */
INLINE int64_t packed_floats(const product *p, int64_t panel, int64_t len)
{
    return (has_quads(p, panel) ? ceil_div(len, QUAD) : len) * packed_vectors(p, panel) * VL;
}
/* Those of all panels of a group, the last of which may end with a part of a quad. */
INLINE int64_t group_floats(const product *p)
{
    return panels(p->columns) * product_taps(p) * round_up(p->len, QUAD) * PANEL;
}

/* Few weights are packed by each thread for itself: sooner than it would get the others' parts. */
INLINE int packs_alone(const product *p)
{
    return !p->prepacked && p->groups * product_taps(p) * p->len * round_up(p->columns, VL) <= FEW_WEIGHTS;
}

INLINE int64_t product_rows(const product *p)
{
    return sums_quads(p->columns, p->len) ? quad_rows(p->columns) : tile_rows(p->columns);
}

/* Rows whose channels lie apart are copied side by side; so are rows that would fall into so few sets of a cache
 * that those of a tall tile drive each other out. */
INLINE int copies_rows(const product *p)
{
    const int64_t apart = TILE_VECTORS > 2 ? 1024 : 2048;
    return product_taps(p) == 1 && (p->in_channel != 1 || p->in_pixel * p->h.stride % apart == 0);
}
INLINE int64_t product_pixels(const product *p) { return p->images * p->v.out * p->h.out; }
/* Whether rows that are copied, but not turned, come from a slow cache or from memory. */
INLINE int copies_from_afar(const product *p) { return product_pixels(p) * p->in_pixel > CACHE_FLOATS; }

/* Whether w has rows of columns, which may be read where they lie. */
INLINE int has_rows(const product *p) { return !p->prepacked && p->w_column == 1 && p->inner >= p->len; }

/* Whether one block has all tiles, so that weights beyond the caches are read from memory once. */
INLINE int is_one_block(const product *p)
{
    return has_rows(p) && product_taps(p) == 1 && p->len * p->columns > MANY_WEIGHTS &&
           product_pixels(p) <= MOST_TILES * product_rows(p);
}

INLINE int64_t block_tiles(const product *p)
{
    if (is_one_block(p))
        return MOST_TILES;
    return copies_rows(p) ? COPIED_TILES : MAX(1, MIN(BLOCK_TILES, 128 / product_taps(p)));
}
/* Tiles of a block that go through all panels before the next ones do. They are few where short sums make more outputs
 * than L2 holds, which lie a power of two apart: memory takes them faster side by side than a line of each of many. */
INLINE int64_t tiles_at_once(const product *p)
{
    const int64_t outputs = product_pixels(p) * p->out_pixel;
    const int few = product_taps(p) == 1 && p->len <= SHORT_SUM && p->out_pixel % 256 == 0 && outputs > MANY_OUTPUTS;
    return few && !copies_rows(p) ? FEW_TILES : block_tiles(p);
}

/* Whether w is read where it lies, but for a last panel that ends within a vector: packing would cost more than it
 * saves. */
INLINE int reads_in_place(const product *p)
{
    return has_rows(p) && (product_pixels(p) <= TILES_IN_PLACE * product_rows(p) || is_one_block(p));
}
/* Whether w, read in place, has rows that would share few sets of a cache. */
INLINE int rows_share_sets(const product *p) { return p->w_inner % (TILE_VECTORS > 2 ? 2048 : 512) == 0; }

/* l is summed in chunks: a panel's part stays in L2, and short running sums keep the rounding error low. Long rows that
 * tiles of 4 vectors read in place take a page each, of which a chunk should need no more than a processor has at hand. */
INLINE int64_t taps_chunk(int64_t taps) { return taps == 1 ? CHUNK : MIN(CHUNK, MAX(16, 576 / taps / 16 * 16)); }
INLINE int64_t chunk_length(const product *p)
{
    const int long_rows = product_taps(p) == 1 && p->w_inner >= LONG_ROW && reads_in_place(p);
    return long_rows && !rows_share_sets(p) && !is_one_block(p) ? PAGES_CHUNK : taps_chunk(product_taps(p));
}
/* The l that a task packs: a part of one chunk. */
INLINE int64_t strip_length(const product *p) { return chunk_length(p) % PACK_STRIP == 0 ? PACK_STRIP : 16; }

/* Many tiles read it, its rows would share few sets of a cache, or its vectors cross cache lines, which tiles of 4
 * vectors have time for: a task copies some panels, of which whole parts of a row lie together, before its tiles read
 * them again and again. */
INLINE int copies_panels(const product *p)
{
    const int64_t pixels = product_pixels(p);
    const int crosses = TILE_VECTORS <= 2 && (uintptr_t)p->w % VEC_BYTES != 0 && pixels > 2 * product_rows(p);
    return reads_in_place(p) && (rows_share_sets(p) || crosses || pixels > TILES_IN_PLACE * product_rows(p));
}
INLINE int64_t first_packed_panel(const product *p)
{
    if (!reads_in_place(p))
        return 0;
    const int64_t rest = p->columns % PANEL;
    const int has_whole_vectors = rest % VL == 0 && !sums_quads(rest, p->len) && !copies_panels(p);
    return has_whole_vectors ? panels(p->columns) : p->columns / PANEL;
}

INLINE int reads_padding(const axis *a)
{
    return a->backward || a->pad > 0 || (a->out - 1) * a->stride + (a->taps - 1) * a->dilation >= a->in;
}

/* Panels of a task, so that a chunk of them stays in L2. */
INLINE int64_t most_panels(const product *p)
{
    const int64_t taps = product_taps(p), len = MIN(chunk_length(p), p->len);
    return copies_rows(p) && !p->planes ? panels(p->columns) : MAX(1, CACHE_FLOATS / (taps * len * PANEL));
}

typedef struct {
    int64_t packed, zeros, shared, per_thread;   /* floats */
    int64_t tables, axes, rows, panel, outputs, weights; /* bytes */
} product_space;

static product_space product_layout(const product *p)
{
    const int64_t taps = product_taps(p), tiles = block_tiles(p);
    product_space s = { 0 };
    s.packed = p->groups * group_floats(p);
    s.zeros = line_floats(p->len);
    s.shared = (p->prepacked || packs_alone(p) ? 0 : line_floats(s.packed)) + s.zeros;
    s.tables = tiles * taps * (int64_t)(sizeof(tile_tap) + (size_t)product_rows(p) * sizeof(float *));
    s.axes = 2 * (p->v.taps + p->h.taps) * (int64_t)sizeof(int64_t) + taps * (int64_t)sizeof(tile_tap);
    s.rows = copies_rows(p) ? tiles * product_rows(p) * (chunk_length(p) + ROW_GAP) * (int64_t)sizeof(float) : 0;
    s.panel = reads_in_place(p) ? COPIED_PANELS * taps * chunk_length(p) * PANEL * (int64_t)sizeof(float) : 0;
    if (p->planes)
        s.outputs = tiles * product_rows(p) * MIN(most_panels(p), panels(p->columns)) * PANEL * (int64_t)sizeof(float);
    s.weights = packs_alone(p) ? s.packed * (int64_t)sizeof(float) : 0;
    const int64_t bytes = round_up(s.tables, 64) + round_up(s.axes, 64) + round_up(s.rows, 64) +
                          round_up(s.panel, 64) + round_up(s.outputs, 64) + round_up(s.weights, 64);
    s.per_thread = bytes / (int64_t)sizeof(float);
    return s;
}

static int64_t product_workspace(const product *p, int64_t threads)
{
    product_space s = product_layout(p);
    return (s.shared + own_floats(threads, s.per_thread)) * (int64_t)sizeof(float);
}

static int64_t packed_bytes(const product *p) { return product_layout(p).packed * (int64_t)sizeof(float); }

/* Packed weights: [group][chunk of l][panel][tap][l of the chunk][vectors], or, in quads, [...][quad of l][column][l],
 * so that what a block reads next lies next. Where a group's panel begins in the chunk that starts at l0: */
INLINE int64_t panel_offset(const product *p, int64_t l0, int64_t panel)
{
    const int64_t len = MIN(chunk_length(p), p->len - l0);
    return (l0 * panels(p->columns) + panel * len) * product_taps(p) * PANEL;
}

/* What one task packs: some panels of a group, l0..l1 of the chunk of l that starts at `chunk`. */
typedef struct { int64_t group, first_panel, last_panel, chunk, l0, l1; } strip;

/* Where (tap 0, l0) of the strip's panel belongs, and the floats from one l, or quad, to the next. */
INLINE float *packed_panel(const product *p, const strip *s, int64_t panel, float *packed, int64_t *width)
{
    *width = packed_vectors(p, panel) * VL;
    return packed + panel_offset(p, s->chunk, panel) + packed_floats(p, panel, s->l0 - s->chunk);
}

/* A row of a full panel. */
INLINE void copy_panel_row(float *to, const float *from)
{
    UNROLL for (int j = 0; j < PANEL; j += VL)
        store(to + j, load(from + j));
}

/* The last panel of some rows: `columns` of them fill its vectors, but for the last one's end. */
INLINE void pack_last(const float *const *rows, int64_t offset, int64_t count, float *to, int64_t columns,
                      const int vectors)
{
    for (int64_t l = 0; l < count; l++)
        UNROLL for (int j = 0; j < vectors; j++, to += VL)
            store(to, load_n(rows[l] + offset + j * VL, j + 1 < vectors ? VL : columns - j * VL));
}

/* Columns that lie next to each other: along a row of w, so that whole cache lines are read one after another. */
static void pack_rows(const product *p, const strip *s, const float *const *rows, int64_t len, float *packed)
{
    const int64_t taps = product_taps(p), full = MIN(s->last_panel, p->columns / PANEL), count = s->l1 - s->l0;
    const int64_t rest = p->columns - full * PANEL, panel_floats = taps * len * PANEL;
    int64_t width;
    float *first = packed_panel(p, s, s->first_panel, packed, &width);
    float *last = packed_panel(p, s, full, packed, &width);
    for (int64_t t = 0; t < taps; t++) {
        for (int64_t l = 0; l < count; l++) {
            const float *from = rows[l] + t * p->w_tap;
            float *to = first + (t * len + l) * PANEL;
            for (int64_t panel = s->first_panel; panel < full; panel++, to += panel_floats)
                copy_panel_row(to, from + panel * PANEL);
        }
        if (full < s->last_panel)
            BY_VECTORS(width / VL, pack_last, rows, t * p->w_tap + full * PANEL, count, last + t * len * width, rest);
    }
}

/* VL columns, `step` apart: each has a run of floats, the taps of one l after those of another. */
INLINE void pack_vector(const float *from, int64_t step, int64_t run, int64_t taps, float *to, int64_t to_tap,
                        int64_t to_l)
{
    for (int64_t i = 0; i < run; i += 4) {
        const int64_t first = MIN(i, run - 4);
        vec v[4];
        UNROLL for (int j = 0; j < 4; j++)
            __builtin_prefetch(from + (VL + i % 16 + j) * step + i / 16 * 16);
        load_turned(from + first, step, v);
        int64_t t = first % taps;
        float *at = to + t * to_tap + first / taps * to_l;
        UNROLL for (int j = 0; j < 4; j++, at += to_tap) {
            if (t++ == taps) {
                at += to_l - taps * to_tap;
                t = 1;
            }
            store(at, v[j]);
        }
    }
}

/* Columns that lie apart, each with its taps, and perhaps its l, together. */
static void pack_columns(const product *p, const strip *s, const float *const *rows, int64_t len, float *packed)
{
    const int64_t taps = product_taps(p), count = s->l1 - s->l0, step = p->w_column;
    const int follow = p->w_inner == taps && rows[count - 1] == rows[0] + (count - 1) * taps;
    const int64_t l_a_run = follow ? count : 1, run = l_a_run * taps;
    const int by_vectors = run >= 4 && (taps == 1 || p->w_tap == 1);
    for (int64_t panel = s->first_panel; panel < s->last_panel; panel++) {
        int64_t width;
        float *to = packed_panel(p, s, panel, packed, &width);
        const int64_t columns = MIN(width, p->columns - panel * PANEL), first = panel * PANEL * step;
        const int64_t whole = by_vectors && columns >= VL ? columns : 0;
        for (int64_t t = 0; columns < width && t < taps; t++)
            memset(to + t * len * width, 0, sizeof(float) * (size_t)(count * width));
        for (int64_t l = 0; l < count; l += l_a_run)
            for (int64_t k = 0; k < whole; k += VL) {
                const int64_t column = MIN(k, whole - VL);
                pack_vector(rows[l] + first + column * step, step, run, taps, to + l * width + column, len * width,
                            width);
            }
        for (int64_t k = whole; k < columns; k++)
            for (int64_t l = 0; l < count; l++)
                for (int64_t t = 0; t < taps; t++)
                    to[(t * len + l) * width + k] = rows[l][first + k * step + t * p->w_tap];
    }
}

/* The columns of a quad of l, of which there are n, side by side in each row: [column][l]. */
INLINE void pack_quad(const float *const *rows, int64_t offset, const int64_t n, int64_t columns, float *to)
{
    vec row[QUAD];
    UNROLL for (int i = 0; i < QUAD; i++)
        row[i] = i < n ? load_n(rows[i] + offset, columns) : splat(0);
    const vec even[] = { low_pairs(row[0], row[2]), high_pairs(row[0], row[2]) };
    const vec odd[] = { low_pairs(row[1], row[3]), high_pairs(row[1], row[3]) };
    for (int64_t j = 0; j < columns; j += 2 * QUAD_COLUMNS, to += 2 * VL) {
        store(to, low_pairs(even[j / (VL / 2)], odd[j / (VL / 2)]));
        if (j + QUAD_COLUMNS < columns)
            store(to + VL, high_pairs(even[j / (VL / 2)], odd[j / (VL / 2)]));
    }
}

/* A panel in quads. */
static void pack_quads(const product *p, const strip *s, int64_t panel, const float *const *rows, int64_t len,
                       float *packed)
{
    const int64_t first = panel * PANEL, columns = p->columns - first, count = s->l1 - s->l0;
    int64_t width;
    float *tap = packed_panel(p, s, panel, packed, &width);
    for (int64_t t = 0; t < product_taps(p); t++, tap += packed_floats(p, panel, len)) {
        float *to = tap;
        int64_t l = 0;
        for (; p->w_column == 1 && l + QUAD <= count; l += QUAD, to += width)
            pack_quad(rows + l, t * p->w_tap + first, QUAD, columns, to);
        for (; l < count; l += QUAD, to += width)
            if (p->w_column == 1)
                pack_quad(rows + l, t * p->w_tap + first, count - l, columns, to);
            else
                for (int64_t k = 0; k < width / QUAD; k++)
                    for (int64_t i = 0; i < QUAD; i++)
                        to[k * QUAD + i] = k < columns && l + i < count
                            ? rows[l + i][t * p->w_tap + (first + k) * p->w_column] : 0;
    }
}

static void pack_strip(const product *p, const strip *s, float *packed)
{
    const int64_t len = MIN(chunk_length(p), p->len - s->chunk), last = panels(p->columns) - 1;
    const float *rows[PACK_STRIP], *w = p->w + s->group * p->w_group;
    strip wide = *s;
    w += s->l0 / p->inner * p->w_outer;
    for (int64_t l = s->l0, i = l % p->inner; l < s->l1; i = 0, w += p->w_outer) {
        const float *row = w + i * p->w_inner;
        for (const int64_t end = MIN(s->l1, l + p->inner - i); l < end; l++, row += p->w_inner)
            rows[l - s->l0] = row;
    }
    if (s->last_panel > last && has_quads(p, last)) {
        pack_quads(p, s, last, rows, len, packed);
        wide.last_panel = last;
    }
    if (wide.first_panel < wide.last_panel)
        (p->w_column == 1 ? pack_rows : pack_columns)(p, &wide, rows, len, packed);
}

/* Packing is cut into so many tasks. */
INLINE int64_t pack_strips(const product *p) { return ceil_div(p->len, strip_length(p)); }
INLINE int64_t pack_parts(const product *p)
{
    return ceil_div(panels(p->columns) - first_packed_panel(p), PACK_PANELS);
}
INLINE int64_t pack_tasks(const product *p) { return p->groups * pack_parts(p) * pack_strips(p); }

static void pack_task(const product *p, int64_t task, float *packed)
{
    const int64_t first = first_packed_panel(p), all = panels(p->columns), length = strip_length(p);
    const int64_t strips = pack_strips(p), parts = pack_parts(p), chunk = chunk_length(p);
    const int64_t part = task / strips % parts, l0 = task % strips * length;
    const strip s = { .group = task / strips / parts, .first_panel = first + part_start(all - first, part, parts),
                      .last_panel = first + part_start(all - first, part + 1, parts), .chunk = l0 / chunk * chunk,
                      .l0 = l0, .l1 = MIN(p->len, l0 + length) };
    pack_strip(p, &s, packed + s.group * group_floats(p));
}

static void pack_weights(const product *p, float *packed)
{
    const int64_t tasks = pack_tasks(p);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < tasks; task++)
        pack_task(p, task, packed);
}

/* One phase of an axis: outputs first + i * step read position i * in_step + offset[j] under tap tap[j]; the
 * offsets lie between `low` and `high`, and `inside` pairs of an output and a tap do not meet padding. */
typedef struct { int64_t first, step, count, in_step, taps, low, high, inside, *tap, *offset; } phase;

/* space: room for the lists of taps and offsets; NULL, where they are not wanted. */
static phase axis_phase(const axis *a, int64_t first, int64_t *space)
{
    phase f = { .first = first, .tap = space, .offset = space ? space + a->taps : NULL };
    f.step = a->backward ? a->stride : 1;
    f.in_step = a->backward ? 1 : a->stride;
    f.count = first < a->out ? ceil_div(a->out - first, f.step) : 0;
    for (int64_t t = 0; t < a->taps; t++) {
        const int64_t distance = t * a->dilation - a->pad;
        if (a->backward && (first - distance) % a->stride != 0)
            continue;
        const int64_t offset = a->backward ? (first - distance) / a->stride : distance;
        f.low = f.taps ? MIN(f.low, offset) : offset;
        f.high = f.taps ? MAX(f.high, offset) : offset;
        const int64_t end = MIN(f.count, floor_div(a->in - 1 - offset, f.in_step) + 1);
        f.inside += MAX(0, end - MAX(0, ceil_div(-offset, f.in_step)));
        if (space) {
            f.tap[f.taps] = t;
            f.offset[f.taps] = offset;
        }
        f.taps++;
    }
    return f;
}

/* A task: some tiles of a phase's pixels by some panels of a group. */
typedef struct {
    const product *p;
    phase v, h;
    int64_t pixels, parts;           /* of the phase; into which the images are cut where tiles go by images, or 0 */
    int64_t blocks, panel_parts;     /* into which its tiles and the panels are cut */
    int64_t group, number, all_tiles, first_tile, tiles, first_panel, last_panel;
    const float *packed, *zeros;     /* the group's panels; what stands for padding */
    tile_tap *taps;                  /* of the phase */
    char *tables;                    /* room for the taps and pointers of tiles with padding */
    float *rows, *panel;             /* room for copies */
    float *outputs;                  /* room for the block's outputs on their way to planes */
} block;

typedef struct {
    int64_t rows;
    tile_input in;
    const float *x[TALL_ROWS];
    float *y[TALL_ROWS];
} block_tile;

static void list_taps(const block *b)
{
    tile_tap *to = b->taps;
    for (int64_t r = 0; r < b->v.taps; r++)
        for (int64_t s = 0; s < b->h.taps; s++)
            *to++ = (tile_tap){ .tap = b->v.tap[r] * b->p->h.taps + b->h.tap[s],
                                .offset = (b->v.offset[r] * b->p->h.in + b->h.offset[s]) * b->p->in_pixel };
}

/* A pixel of a phase: image n, line v of it, place h in the line; and where it is read, under offset 0 of both axes,
 * and written, once x is not NULL. */
typedef struct { int64_t n, v, h; const float *x; float *y; } place;

static void find_pointers(const block *b, place *at)
{
    const product *p = b->p;
    const int64_t x_line = at->n * p->v.in + at->v * b->v.in_step, x = x_line * p->h.in + at->h * b->h.in_step;
    const int64_t y_line = at->n * p->v.out + b->v.first + at->v * b->v.step;
    at->x = p->in + b->group * p->len * p->in_channel + x * p->in_pixel;
    at->y = p->out + b->group * p->columns + (y_line * p->h.out + b->h.first + at->h * b->h.step) * p->out_pixel;
}

INLINE int inside(int64_t position, int64_t size) { return position >= 0 && position < size; }

INLINE void next_line(const phase *v, place *at)
{
    at->h = 0;
    at->x = NULL;
    if (++at->v == v->count) {
        at->v = 0;
        at->n++;
    }
}

/* Finds a tile's pixels from `at`, which moves behind them. Returns whether no tap meets padding. */
static int find_pixels(const block *b, place *at, block_tile *tile)
{
    const product *p = b->p;
    const phase *v = &b->v, *h = &b->h;
    const int64_t x_step = h->in_step * p->in_pixel, y_step = h->step * p->out_pixel;
    const float **x = tile->x;
    float **y = tile->y;
    int all_inside = 1;
    for (int64_t left = tile->rows; left > 0;) { /* the part of an image's line that the tile holds */
        const int64_t n = MIN(left, h->count - at->h), line = at->v * v->in_step, begin = at->h * h->in_step;
        if (!at->x)
            find_pointers(b, at);
        all_inside &= line + v->low >= 0 && line + v->high < p->v.in && begin + h->low >= 0 &&
                      begin + (n - 1) * h->in_step + h->high < p->h.in;
        for (const float **end = x + n; x < end; at->x += x_step, at->y += y_step) {
            ONE_BY_ONE;
            *x++ = at->x;
            *y++ = at->y;
        }
        left -= n;
        at->h += n;
        if (at->h == h->count)
            next_line(v, at);
    }
    return all_inside;
}

/* The places of the same pixels in the input. */
static void find_places(const block *b, place at, int64_t rows, int64_t *row, int64_t *column)
{
    for (int64_t i = 0; i < rows; i++) {
        row[i] = at.v * b->v.in_step;
        column[i] = at.h * b->h.in_step;
        if (++at.h == b->h.count)
            next_line(&b->v, &at);
    }
}

/* Where much of what taps meet is padding, a tile holds the same pixel of several images: a tap is padding for all of
 * them, and left out, or for none. */
static int64_t image_parts(const product *p, const phase *v, const phase *h)
{
    const float pairs = (float)MAX(1, v->count * v->taps) * (float)MAX(1, h->count * h->taps);
    const int padded = (float)v->inside * (float)h->inside < 0.85f * pairs;
    return padded && !p->planes && 2 * p->images > product_rows(p) ? ceil_div(p->images, product_rows(p)) : 0;
}

/* The tiles of a phase. */
static int64_t count_tiles(const product *p, const phase *v, const phase *h)
{
    const int64_t parts = image_parts(p, v, h), pixels = v->count * h->count;
    return parts > 0 ? pixels * parts : ceil_div(p->images * pixels, product_rows(p));
}

/* The blocks of pixels whose moments are taken: those of any number of threads. */
static int64_t product_slices(const product *p)
{
    const phase v = axis_phase(&p->v, 0, NULL), h = axis_phase(&p->h, 0, NULL);
    return ceil_div(count_tiles(p, &v, &h), block_tiles(p));
}

/* Finds the pixel of tile number t, its taps that do not meet padding, and the images that the tile has of it. Tiles of
 * one pixel follow each other, so that their taps' weights stay in L1. */
static void find_images(const block *b, int64_t t, block_tile *tile, tile_tap *taps)
{
    const product *p = b->p;
    const phase *v = &b->v, *h = &b->h;
    const int64_t pixel = t / b->parts, part = t % b->parts, first = part_start(p->images, part, b->parts);
    const int64_t i = pixel / h->count, j = pixel % h->count, row = i * v->in_step, column = j * h->in_step;
    const float *x = p->in + b->group * p->len * p->in_channel;
    float *y = p->out + b->group * p->columns;
    tile->rows = part_start(p->images, part + 1, b->parts) - first;
    for (int64_t n = 0; n < tile->rows; n++) {
        tile->x[n] = x + (((first + n) * p->v.in + row) * p->h.in + column) * p->in_pixel;
        tile->y[n] = y + (((first + n) * p->v.out + v->first + i * v->step) * p->h.out + h->first + j * h->step) *
                         p->out_pixel;
    }
    tile->in = (tile_input){ .tap = taps, .x = tile->x };
    for (int64_t r = 0; r < v->taps; r++)
        for (int64_t s = 0; s < h->taps; s++)
            if (inside(row + v->offset[r], p->v.in) && inside(column + h->offset[s], p->h.in))
                taps[tile->in.taps++] = b->taps[r * h->taps + s];
}

/* Gives each tap of the tile that begins at `first` pointers of its own, to rows or to zeros; taps that are all padding
 * are left out. */
static void find_padding(const block *b, place first, block_tile *tile, tile_tap *taps)
{
    const product *p = b->p;
    int64_t row[TALL_ROWS], column[TALL_ROWS];
    find_places(b, first, tile->rows, row, column);
    const float **x = (const float **)(taps + product_taps(p));
    tile->in = (tile_input){ .x_step = product_rows(p), .tap = taps, .x = x };
    for (int64_t r = 0; r < b->v.taps; r++)
        for (int64_t s = 0; s < b->h.taps; s++) {
            const tile_tap tap = b->taps[r * b->h.taps + s];
            const int64_t v = b->v.offset[r], h = b->h.offset[s];
            int any = 0;
            for (int64_t i = 0; i < tile->rows; i++) {
                const int valid = inside(row[i] + v, p->v.in) && inside(column[i] + h, p->h.in);
                x[i] = valid ? tile->x[i] + tap.offset : b->zeros;
                any |= valid;
            }
            if (any) {
                taps[tile->in.taps++] = (tile_tap){ .tap = tap.tap };
                x += product_rows(p);
            }
        }
}

static void find_tiles(const block *b, block_tile *tiles)
{
    const int64_t taps = product_taps(b->p), most = product_rows(b->p);
    const int64_t table = taps * (int64_t)(sizeof(tile_tap) + (size_t)most * sizeof(float *));
    const int64_t first = part_start(b->pixels, b->first_tile, b->all_tiles);
    const int64_t rows = b->pixels / b->all_tiles, longer = b->pixels % b->all_tiles;
    place at = { first / b->h.count / b->v.count, first / b->h.count % b->v.count, first % b->h.count, NULL, NULL };
    for (int64_t t = 0; t < b->tiles; t++) {
        block_tile *tile = &tiles[t];
        tile_tap *own = (tile_tap *)(b->tables + t * table);
        if (b->parts > 0) {
            find_images(b, b->first_tile + t, tile, own);
            continue;
        }
        const place start = at;
        tile->rows = rows + (b->first_tile + t < longer);
        tile->in = (tile_input){ .taps = b->v.taps * b->h.taps, .tap = b->taps, .x = tile->x };
        if (!find_pixels(b, &at, tile))
            find_padding(b, start, tile, own);
    }
}

/* to[i][l] = from[l][i], by blocks of four rows, of which the last may repeat some of those before. */
static void copy_turned(const float *from, int64_t step, int64_t rows, int64_t len, float *to, int64_t to_row)
{
    const int64_t whole = rows < 4 ? 0 : len / 4 * 4;
    for (int64_t i = 0; i < rows; i += 4) {
        const int64_t first = rows < 4 ? 0 : MIN(i, rows - 4);
        for (int64_t l = 0; l < whole; l += 4)
            transpose_4x4(from + l * step + first, step, to + first * to_row + l, to_row);
    }
    for (int64_t l = whole; l < len; l++)
        for (int64_t i = 0; i < rows; i++)
            to[i * to_row + l] = from[l * step + i];
}

/* Tile t of a block with one tap, l0..l1 of its rows copied side by side. */
static void copy_tile(const block *b, const block_tile *tile, int64_t t, int64_t l0, int64_t l1, block_tile *copy)
{
    static const tile_tap only_tap = { 0, 0 };
    const int64_t step = b->p->in_channel, to_row = chunk_length(b->p) + ROW_GAP;
    float *to = b->rows + t * product_rows(b->p) * to_row;
    *copy = *tile;
    if (tile->in.taps == 0)
        return;
    copy->in.tap = &only_tap;
    copy->in.x = copy->x;
    for (int64_t i = 0; i < tile->rows; i++) {
        const float *from = tile->in.x[i] + tile->in.tap->offset;
        copy->x[i] = to + i * to_row;
        if (from == b->zeros)
            memset(to + i * to_row, 0, sizeof(float) * (size_t)(l1 - l0));
        else if (step == 1)
            memcpy(to + i * to_row, from + l0, sizeof(float) * (size_t)(l1 - l0));
    }
    if (step != 1)
        copy_turned(tile->in.x[0] + l0 * step, step, tile->rows, l1 - l0, to, to_row);
}

/* One chunk of some full panels, as packing would lay them out. */
static void copy_panels(const block *b, int64_t first, int64_t count, int64_t l0, int64_t len)
{
    const product *p = b->p;
    const float *w = p->w + b->group * p->w_group + l0 * p->w_inner + first * PANEL;
    const int64_t taps = product_taps(p), panel_floats = taps * len * PANEL;
    for (int64_t t = 0; t < taps; t++)
        for (int64_t l = 0; l < len; l++) {
            const float *from = w + t * p->w_tap + l * p->w_inner;
            float *to = b->panel + (t * len + l) * PANEL;
            for (int64_t panel = 0; panel < count; panel++, from += PANEL, to += panel_floats)
                copy_panel_row(to, from);
        }
}

INLINE int64_t next_pixel(const block *b)
{
    return b->p->in_pixel * (b->parts > 0 ? b->p->v.in * b->p->h.in : b->h.in_step);
}

/* What n tiles fetch from memory or a slow cache while they are busy: the next tile's rows, or, once these are near,
 * each a share of the packed panel that comes next. */
static void fetch_ahead(const block *b, int copies, int64_t panel, int64_t n, tile_range *range)
{
    const product *p = b->p;
    const int rows_are_near = panel > b->first_panel || (copies && !copies_from_afar(p));
    fetch_rows(range, product_rows(p), copies ? chunk_length(p) + ROW_GAP : next_pixel(b));
    if (rows_are_near && panel >= first_packed_panel(p) && panel + 1 < b->last_panel) {
        range->fetches_weights = 1;
        range->ahead = product_taps(p) * range->w_tap * (int64_t)sizeof(float);
        range->ahead_step = ceil_div(range->w_row, n) * (int64_t)sizeof(float);
    }
}

/* A tile, which is busy with its copy, fetches the next one's rows: whole ones, since all their chunks are copied soon. */
static void fetch_source(const block *b, const block_tile *tile, const block_tile *copy, int64_t l0, tile_range *range)
{
    const int64_t next_rows = product_rows(b->p) * next_pixel(b) * (int64_t)sizeof(float);
    range->ahead = (int64_t)((uintptr_t)(tile->x[0] + l0) - (uintptr_t)copy->in.x[0]) + next_rows;
    range->ahead_step = next_rows / range->len;
}

/* One panel of one chunk of l, by some tiles. Unless `copied` is NULL, copies of them are there, which the first panel
 * makes. */
static void run_panel(const block *b, const block_tile *tiles, block_tile *copied, int64_t n, int64_t panel, int64_t l0,
                      int64_t len)
{
    const product *p = b->p;
    const int vectors = packed_vectors(p, panel);
    int packed = panel >= first_packed_panel(p);
    const float *w = packed ? b->packed + panel_offset(p, l0, panel)
                            : p->w + b->group * p->w_group + l0 * p->w_inner + panel * PANEL;
    if (!packed && copies_panels(p)) {
        const int64_t place = (panel - b->first_panel) % COPIED_PANELS;
        const int64_t end = MIN(b->last_panel, p->columns / PANEL);
        if (place == 0)
            copy_panels(b, panel, MIN(COPIED_PANELS, end - panel), l0, len);
        w = b->panel + place * product_taps(p) * len * PANEL;
        packed = 1;
    }
    tile_range range = { .first = copied ? 0 : l0, .len = len, .w_tap = packed ? packed_floats(p, panel, len) : p->w_tap,
                         .w_row = packed ? vectors * VL : p->w_inner };
    fetch_ahead(b, copied != NULL, panel, n, &range);
    tile_store out = { .first = (p->planes ? panel - b->first_panel : panel) * PANEL,
                       .columns = MIN(PANEL, p->columns - panel * PANEL), .alpha = p->alpha, .old = l0 ? 1 : p->beta };
    if (p->bias && l0 == 0)
        out.bias = p->bias + b->group * p->columns + panel * PANEL;
    if (l0 + len == p->len)
        out.epilogue = p->epilogue;
    const int quads = has_quads(p, panel);
    for (int64_t t = 0; t < n; t++) {
        if (copied && panel == b->first_panel) {
            copy_tile(b, &tiles[t], t, l0, l0 + len, &copied[t]);
            if (copies_from_afar(p))
                fetch_source(b, &tiles[t], &copied[t], l0, &range);
        }
        const block_tile *tile = copied ? &copied[t] : &tiles[t];
        const int64_t row = tile->rows - 1;
        out.y = tile->y;
        (quads ? quad_tile_functions[vectors - 1][row] : tile_functions[vectors - 1][row])(&tile->in, w, &range, &out);
        if (range.fetches_weights)
            range.ahead += len * range.ahead_step;
    }
}

INLINE void measure_tiles(const block *b, const block_tile *tiles, int64_t panel, const int vectors)
{
    const product *p = b->p;
    const int64_t first = panel * PANEL, channels = p->columns - first;
    moment_sums s = sums_from(tiles[0].y[0] + first, channels, vectors);
    int64_t pixels = 0;
    for (int64_t t = 0; t < b->tiles; pixels += tiles[t++].rows)
        for (int64_t i = 0; i < tiles[t].rows; i++)
            add_pixel(&s, tiles[t].y[i] + first, channels, vectors);
    keep_sums(&p->moments, b->number, b->group * p->columns + first, &s, pixels, channels, vectors);
}

/* Outputs of a block on their way to planes: a row for each pixel. */
INLINE int64_t outputs_row(const block *b) { return (b->last_panel - b->first_panel) * PANEL; }

static int64_t keep_outputs(const block *b, block_tile *tiles)
{
    int64_t pixels = 0;
    for (int64_t t = 0; t < b->tiles; t++)
        for (int64_t i = 0; i < tiles[t].rows; i++)
            tiles[t].y[i] = b->outputs + pixels++ * outputs_row(b);
    return pixels;
}

static void move_outputs(const block *b, int64_t pixels)
{
    const product *p = b->p;
    const int64_t first = part_start(b->pixels, b->first_tile, b->all_tiles), column = b->first_panel * PANEL;
    store_planes(b->outputs, outputs_row(b), p->out, p->v.out * p->h.out, p->groups * p->columns, first, pixels,
                 b->group * p->columns + column, MIN(p->columns - column, outputs_row(b)));
}

static void run_block(const block *b)
{
    const product *p = b->p;
    const int64_t chunk = chunk_length(p), all = b->v.taps * b->h.taps > 0 ? p->len : 1;
    const int64_t at_once = tiles_at_once(p);
    block_tile tiles[MOST_TILES], copied[MOST_TILES];
    find_tiles(b, tiles);
    const int64_t kept = p->planes ? keep_outputs(b, tiles) : 0;
    for (int64_t l0 = 0; l0 < all; l0 += chunk) {
        const int64_t len = MIN(chunk, p->len - l0);
        for (int64_t t = 0; t < b->tiles; t += at_once)
            for (int64_t panel = b->first_panel; panel < b->last_panel; panel++)
                run_panel(b, tiles + t, copies_rows(p) ? copied : NULL, MIN(at_once, b->tiles - t), panel, l0, len);
        for (int64_t panel = b->first_panel; p->moments.slices > 0 && panel < b->last_panel; panel++)
            if (l0 + len == p->len)
                BY_VECTORS(panel_vectors(p->columns, panel), measure_tiles, b, tiles, panel);
    }
    if (p->planes)
        move_outputs(b, kept);
}

/* Task number `task` of a phase: a block of tiles by a part of a group's panels. */
static void run_task(block *b, int64_t task, const float *packed)
{
    const product *p = b->p;
    const int64_t all = panels(p->columns), part = task % b->panel_parts;
    b->number = task / b->panel_parts % b->blocks;
    b->group = task / b->panel_parts / b->blocks;
    b->first_panel = part_start(all, part, b->panel_parts);
    b->last_panel = part_start(all, part + 1, b->panel_parts);
    b->first_tile = part_start(b->all_tiles, b->number, b->blocks);
    b->tiles = part_start(b->all_tiles, b->number + 1, b->blocks) - b->first_tile;
    b->packed = packed + b->group * group_floats(p);
    run_block(b);
}

/* The tasks of one phase; the caller's barrier ends it. Little work is shared in even parts: for free, and the outputs
 * stay in the caches of those who made them before. */
static void run_phase(block *b, const float *packed)
{
    const product *p = b->p;
    b->pixels = p->images * b->v.count * b->h.count;
    b->parts = image_parts(p, &b->v, &b->h);
    b->all_tiles = count_tiles(p, &b->v, &b->h);
    if (b->pixels == 0)
        return;
    const int64_t threads = omp_get_num_threads(), tasks = threads > 1 ? TASKS_A_THREAD * threads : 1;
    const int64_t all = panels(p->columns);
    const int64_t least = p->moments.slices > 0 ? 1 : ceil_div(tasks, all * p->groups);
    b->blocks = MIN(b->all_tiles, MAX(ceil_div(b->all_tiles, block_tiles(p)), least));
    const int64_t wanted = ceil_div(tasks, b->blocks * p->groups);
    b->panel_parts = MIN(all, MAX(wanted, ceil_div(all, most_panels(p))));
    const int64_t all_tasks = p->groups * b->blocks * b->panel_parts;
    const int64_t work = b->pixels * product_taps(p) * p->len * p->columns * p->groups;
    if (threads == 1 || work < LITTLE_WORK) {
        const int64_t me = omp_get_thread_num(), end = part_start(all_tasks, me + 1, threads);
        for (int64_t task = part_start(all_tasks, me, threads); task < end; task++)
            run_task(b, task, packed);
        return;
    }
    int64_t taken = 0;
#pragma omp for schedule(dynamic, MAX(1, all_tasks / (4 * TASKS_A_THREAD * threads))) nowait
    for (int64_t ticket = 0; ticket < all_tasks; ticket++)
        run_task(b, next_task(ticket, all_tasks, &taken), packed);
}

/* Pixels that lie one after another in x and y, under one tap, by one panel, on one thread: finding out how to cut up
 * others would be much of the work of a small product. */
INLINE int lies_in_line(const axis *a) { return a->stride == 1 && a->pad == 0 && a->in == a->out; }
static int is_small(const product *p)
{
    return omp_get_num_threads() == 1 && p->groups == 1 && product_taps(p) == 1 && p->columns <= PANEL && p->len > 0 &&
           p->len <= chunk_length(p) && lies_in_line(&p->v) && lies_in_line(&p->h) && !p->planes &&
           !p->moments.slices && !copies_rows(p) && !copies_panels(p);
}

static void run_small(const product *p, float *weights)
{
    static const tile_tap only_tap = { 0, 0 };
    const int64_t pixels = product_pixels(p), tiles = ceil_div(pixels, product_rows(p));
    const int64_t rows = pixels / MAX(1, tiles), longer = pixels - rows * tiles, at_once = tiles_at_once(p);
    const block b = { .p = p, .packed = p->prepacked ? p->packed : weights, .h = { .in_step = 1 }, .last_panel = 1 };
    const int64_t tasks = p->prepacked ? 0 : pack_tasks(p);
    for (int64_t task = 0; task < tasks; task++)
        pack_task(p, task, weights);
    const float *x = p->in;
    float *y = p->out;
    block_tile some[MOST_TILES];
    for (int64_t first = 0; first < tiles; first += at_once) {
        const int64_t count = MIN(at_once, tiles - first);
        for (int64_t t = 0; t < count; t++) {
            block_tile *tile = &some[t];
            tile->rows = rows + (first + t < longer);
            tile->in = (tile_input){ .taps = 1, .tap = &only_tap, .x = tile->x };
            for (int64_t i = 0; i < tile->rows; i++, x += p->in_pixel, y += p->out_pixel) {
                ONE_BY_ONE;
                tile->x[i] = x;
                tile->y[i] = y;
            }
        }
        run_panel(&b, some, NULL, count, 0, 0, p->len);
    }
}

static void product_run(const product *p, void *workspace)
{
    if (is_small(p)) {
        run_small(p, workspace);
        return;
    }
    const product_space space = product_layout(p);
    float *zeros = workspace;
    char *own = (char *)own_part(zeros + space.shared, space.per_thread);
    int64_t *axes = (int64_t *)(own + round_up(space.tables, 64));
    block b = { .p = p, .zeros = zeros, .taps = (tile_tap *)(axes + 2 * (p->v.taps + p->h.taps)), .tables = own };
    b.rows = (float *)((char *)axes + round_up(space.axes, 64));
    b.panel = (float *)((char *)b.rows + round_up(space.rows, 64));
    b.outputs = (float *)((char *)b.panel + round_up(space.panel, 64));
    float *weights = packs_alone(p) ? (float *)((char *)b.outputs + round_up(space.outputs, 64)) : zeros + space.zeros;
    const int padded = reads_padding(&p->v) || reads_padding(&p->h);
    const int shares_weights = !p->prepacked && !packs_alone(p) && first_packed_panel(p) < panels(p->columns);
    if (padded) {
#pragma omp single nowait
        memset(zeros, 0, sizeof(float) * (size_t)p->len);
    }
    if (shares_weights)
        pack_weights(p, weights);
    const int64_t own_tasks = packs_alone(p) ? pack_tasks(p) : 0;
    for (int64_t task = 0; task < own_tasks; task++)
        pack_task(p, task, weights);
    if (padded || shares_weights) {
#pragma omp barrier
    }
    const int64_t phases_v = p->v.backward ? p->v.stride : 1, phases_h = p->h.backward ? p->h.stride : 1;
    for (int64_t v = 0; v < MIN(phases_v, p->v.out); v++)
        for (int64_t h = 0; h < MIN(phases_h, p->h.out); h++) {
            b.v = axis_phase(&p->v, v, axes);
            b.h = axis_phase(&p->h, h, axes + 2 * p->v.taps);
            list_taps(&b);
            run_phase(&b, p->prepacked ? p->packed : weights);
        }
#pragma omp barrier
}

/* One engine for convolution, its backward-data, GEMM and dense layers: rows found through taps, times weights.
 *
 *     out[pixel][column] = alpha * sum over taps, l: in[position(pixel, tap)][l] * w[tap][l][column]
 *                          + beta * out[pixel][column] + bias[column]
 *
 * Along an axis, a forward convolution reads position o * stride + t * dilation - pad of its input. Its
 * backward-data reads, for each o of dx, the position (o + pad - t * dilation) / stride of dy, where that
 * divides: the taps that do are the same for all o of one remainder (phase) modulo the stride, so the outputs
 * are made phase by phase and no product with an inserted zero is ever done (the sub-pixel decomposition).
 *
 *     pack w into panels [group][panel][tap][l][2 vectors]                          shared, once a call
 *     for each phase, group, block of pixel tiles, group of panels:                 shared among threads
 *         find the rows of each tile and tap
 *         for each chunk of l:                                                      restarts the running sums
 *             for each panel, for each tile: the micro-kernel                       panel in L2, rows in L1
 *
 * Every output is made by one task in a fixed order, so its bits do not depend on the threads. */

typedef struct { int64_t in, out, taps, stride, dilation, pad; int backward; } axis;

typedef struct {
    int64_t images, groups;
    int64_t len, columns;            /* of a group: channels summed over, channels made */
    axis v, h;                       /* vertical, horizontal */
    const float *in;
    int64_t in_pixel, in_channel;    /* floats from pixel to pixel, from channel to channel */
    float *out;
    int64_t out_pixel;
    const float *w;                  /* tap t, l, column of group g: t * w_tap + l / inner * w_outer + ... */
    int64_t w_tap, inner, w_outer, w_inner, w_column, w_group;   /* ... + l % inner * w_inner + column * w_column */
    const float *bias;
    float alpha, beta;
} product;

enum { BLOCK_TILES = 8, COPIED_TILES = 16, GROUP_PANELS = 8, PACK_STRIP = 16, PACK_PANELS = 8, PANEL = 2 * VL, ROW_GAP = 17 };
enum { CHUNK = 512, TASKS_A_THREAD = 4 };

INLINE int64_t panels(int64_t columns) { return ceil_div(columns, PANEL); }
INLINE int panel_vectors(int64_t columns, int64_t panel) { return columns - panel * PANEL > VL ? 2 : 1; }

/* l is summed in chunks: a panel's part stays in L2, and short running sums keep the rounding error low. */
INLINE int64_t chunk_length(int64_t taps) { return MIN(CHUNK, MAX(16, 576 / taps / 16 * 16)); }
INLINE int64_t product_taps(const product *p) { return p->v.taps * p->h.taps; }

/* With one tap the rows are copied side by side: rows a power of two apart would share few cache sets. */
INLINE int copies_rows(const product *p) { return product_taps(p) == 1 && (p->in_channel != 1 || p->in_pixel >= 512); }
INLINE int64_t block_tiles(const product *p)
{
    return copies_rows(p) ? COPIED_TILES : MAX(1, MIN(BLOCK_TILES, 128 / product_taps(p)));
}

typedef struct {
    int64_t packed, zeros, shared;               /* floats */
    int64_t tables, axes, rows, per_thread;      /* bytes */
} product_space;

static product_space product_layout(const product *p)
{
    const int64_t taps = product_taps(p), tiles = block_tiles(p);
    product_space s;
    s.packed = p->groups * panels(p->columns) * taps * p->len * PANEL;
    s.zeros = line_floats(p->len);
    s.shared = line_floats(s.packed) + s.zeros;
    s.tables = tiles * taps * (int64_t)sizeof(tile_tap);
    s.axes = 2 * (p->v.taps + p->h.taps) * (int64_t)sizeof(int64_t);
    s.rows = copies_rows(p) ? tiles * TILE_ROWS * (chunk_length(taps) + ROW_GAP) * (int64_t)sizeof(float) : 0;
    s.per_thread = round_up(s.tables, 64) + round_up(s.axes, 64) + round_up(s.rows, 64) + 64;
    return s;
}

static int64_t product_workspace(const product *p, int64_t threads)
{
    product_space s = product_layout(p);
    return s.shared * (int64_t)sizeof(float) + threads * s.per_thread;
}

/* Packed weights: [group][chunk of l][panel][tap][l of the chunk][vectors], so that what a block reads next lies
 * next. Where a group's panel begins in the chunk that starts at l0: */
INLINE int64_t panel_offset(const product *p, int64_t l0, int64_t panel)
{
    const int64_t len = MIN(chunk_length(product_taps(p)), p->len - l0);
    return (l0 * panels(p->columns) + panel * len) * product_taps(p) * PANEL;
}

/* What one task packs: some panels of a group, l0..l1 of the chunk of l that starts at `chunk`. */
typedef struct { int64_t group, first_panel, last_panel, chunk, l0, l1; } strip;

/* Where the strip's panel begins in `packed`, and its columns. */
INLINE float *packed_panel(const product *p, const strip *s, int64_t panel, float *packed, int64_t *width)
{
    *width = panel_vectors(p->columns, panel) * VL;
    return packed + panel_offset(p, s->chunk, panel) - s->chunk * *width;
}

/* Columns that lie next to each other: along a row of w, so that whole cache lines are read one after another. */
static void pack_rows(const product *p, const strip *s, const float *const *rows, int64_t len, float *packed)
{
    for (int64_t t = 0; t < product_taps(p); t++)
        for (int64_t l = s->l0; l < s->l1; l++)
            for (int64_t panel = s->first_panel; panel < s->last_panel; panel++) {
                int64_t width;
                float *to = packed_panel(p, s, panel, packed, &width) + (t * len + l) * width;
                const float *from = rows[l - s->l0] + t * p->w_tap + panel * PANEL;
                const int64_t columns = p->columns - panel * PANEL;
                for (int64_t j = 0; j < width; j += VL)
                    store(to + j, columns > j ? load_n(from + j, columns - j) : splat(0));
            }
}

/* Columns that lie apart, each with its taps or its l together. */
static void pack_columns(const product *p, const strip *s, const float *const *rows, int64_t len, float *packed)
{
    const int64_t taps = product_taps(p);
    for (int64_t panel = s->first_panel; panel < s->last_panel; panel++) {
        int64_t width;
        float *to = packed_panel(p, s, panel, packed, &width);
        const int64_t columns = MIN(width, p->columns - panel * PANEL);
        for (int64_t t = 0; columns < width && t < taps; t++)
            memset(to + (t * len + s->l0) * width, 0, sizeof(float) * (size_t)((s->l1 - s->l0) * width));
        for (int64_t k = 0; k < columns; k++)
            for (int64_t l = s->l0; l < s->l1; l++) {
                const float *from = rows[l - s->l0] + (panel * PANEL + k) * p->w_column;
                for (int64_t t = 0; t < taps; t++)
                    to[(t * len + l) * width + k] = from[t * p->w_tap];
            }
    }
}

static void pack_strip(const product *p, const strip *s, float *packed)
{
    const int64_t len = MIN(chunk_length(product_taps(p)), p->len - s->chunk);
    const float *rows[PACK_STRIP], *w = p->w + s->group * p->w_group;
    for (int64_t l = s->l0; l < s->l1; l++)
        rows[l - s->l0] = w + l / p->inner * p->w_outer + l % p->inner * p->w_inner;
    (p->w_column == 1 ? pack_rows : pack_columns)(p, s, rows, len, packed);
}

static void pack_weights(const product *p, float *packed, float *zeros)
{
    const int64_t all = panels(p->columns), strips = ceil_div(p->len, PACK_STRIP), parts = ceil_div(all, PACK_PANELS);
    const int64_t chunk = chunk_length(product_taps(p)), group_floats = all * product_taps(p) * p->len * PANEL;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < p->groups * parts * strips; task++) {
        const int64_t part = task / strips % parts, l0 = task % strips * PACK_STRIP;
        const strip s = { .group = task / strips / parts, .first_panel = part_start(all, part, parts),
                          .last_panel = part_start(all, part + 1, parts), .chunk = l0 / chunk * chunk, .l0 = l0,
                          .l1 = MIN(p->len, l0 + PACK_STRIP) };
        pack_strip(p, &s, packed + s.group * group_floats);
    }
#pragma omp single
    memset(zeros, 0, sizeof(float) * (size_t)p->len);
}

/* One phase of an axis: outputs first + i * step read position i * in_step + offset[j] under tap tap[j].
 * `inside`: all of these positions lie inside the input. */
typedef struct { int64_t first, step, count, in_step, taps, inside, *tap, *offset; } phase;

static phase axis_phase(const axis *a, int64_t first, int64_t *space)
{
    phase f = { .first = first, .tap = space, .offset = space + a->taps, .inside = 1 };
    f.step = a->backward ? a->stride : 1;
    f.in_step = a->backward ? 1 : a->stride;
    f.count = first < a->out ? ceil_div(a->out - first, f.step) : 0;
    for (int64_t t = 0; t < a->taps; t++) {
        const int64_t distance = t * a->dilation - a->pad;
        if (a->backward && (first - distance) % a->stride != 0)
            continue;
        f.tap[f.taps] = t;
        const int64_t offset = a->backward ? (first - distance) / a->stride : distance;
        f.inside &= offset >= 0 && (f.count - 1) * f.in_step + offset < a->in;
        f.offset[f.taps++] = offset;
    }
    return f;
}

/* A task: some pixels of a phase, in tiles, by some panels of a group. */
typedef struct {
    const product *p;
    phase v, h;
    int64_t group, first_pixel, tiles, tile_rows, longer_tiles, first_panel, last_panel;
    const float *packed, *zeros;     /* the group's panels; what stands for padding */
    tile_tap *tables;
    float *rows;
} block;

INLINE int inside(int64_t position, int64_t size) { return position >= 0 && position < size; }
/* The tiles of a block differ by at most one row. */
INLINE int64_t tile_rows(const block *b, int64_t t) { return b->tile_rows + (t < b->longer_tiles); }
INLINE int64_t tile_start(const block *b, int64_t t) { return t * b->tile_rows + MIN(t, b->longer_tiles); }

/* The pixels of a tile: their places in the input under offset 0 of both axes, and where `out` is written. */
typedef struct {
    const float *corner[TILE_ROWS];
    int64_t row[TILE_ROWS], column[TILE_ROWS];
} tile_pixels;

static void find_pixels(const block *b, int64_t first, int64_t rows, tile_pixels *px, float **y)
{
    const product *p = b->p;
    const int64_t in_step = b->h.in_step, width = b->h.count;
    const int64_t corner_step = in_step * p->in_pixel, y_step = b->h.step * p->out_pixel;
    const int64_t line = first / width;
    int64_t ow = first % width, n = line / b->v.count, oh = line % b->v.count;
    for (int64_t i = 0; i < rows; ow = 0) { /* the part of an image's line that the tile holds */
        const int64_t row = oh * b->v.in_step, end = MIN(rows, i + width - ow);
        int64_t column = ow * in_step;
        const float *corner = p->in + ((n * p->v.in + row) * p->h.in + column) * p->in_pixel +
                              b->group * p->len * p->in_channel;
        float *out = p->out + b->group * p->columns +
                     ((n * p->v.out + b->v.first + oh * b->v.step) * p->h.out + b->h.first + ow * b->h.step) * p->out_pixel;
        for (; i < end; i++, column += in_step, corner += corner_step, out += y_step) {
            px->row[i] = row;
            px->column[i] = column;
            px->corner[i] = corner;
            y[i] = out;
        }
        if (++oh == b->v.count) {
            oh = 0;
            n++;
        }
    }
}

/* Fills the table of tile t, taps that are all padding left out, and where its rows of `out` begin; returns
 * the number of taps. */
static int64_t find_rows(const block *b, int64_t t, tile_tap *table, float **y)
{
    const product *p = b->p;
    const int64_t rows = tile_rows(b, t), v_in = p->v.in, h_in = p->h.in;
    const float *zeros = b->zeros;
    int64_t used = 0;
    tile_pixels px;
    find_pixels(b, b->first_pixel + tile_start(b, t), rows, &px, y);
    for (int64_t r = 0; r < b->v.taps; r++)
        for (int64_t s = 0; s < b->h.taps; s++) {
            const int64_t v = b->v.offset[r], h = b->h.offset[s], offset = (v * h_in + h) * p->in_pixel;
            int any = b->v.inside && b->h.inside;
            if (any)
                for (int64_t i = 0; i < rows; i++)
                    table[used].x[i] = px.corner[i] + offset;
            else
                for (int64_t i = 0; i < rows; i++) {
                    const int valid = inside(px.row[i] + v, v_in) && inside(px.column[i] + h, h_in);
                    table[used].x[i] = valid ? px.corner[i] + offset : zeros;
                    any |= valid;
                }
            table[used].tap = b->v.tap[r] * p->h.taps + b->h.tap[s];
            used += any;
        }
    return used;
}

/* Copies l0..l1 of a tile's rows side by side, to where the copy's one tap then points. */
static void copy_rows(const block *b, const tile_tap *tap, int64_t rows, int64_t l0, int64_t l1, tile_tap *copy)
{
    const int64_t step = b->p->in_channel;
    for (int64_t i = 0; i < rows; i++) {
        float *to = (float *)copy->x[i];
        if (tap->x[i] == b->zeros)
            memset(to, 0, sizeof(float) * (size_t)(l1 - l0));
        else if (step == 1)
            memcpy(to, tap->x[i] + l0, sizeof(float) * (size_t)(l1 - l0));
        else
            for (int64_t l = l0; l < l1; l++)
                to[l - l0] = tap->x[i][l * step];
    }
}

static void run_block(const block *b)
{
    const product *p = b->p;
    const int64_t taps = product_taps(p), chunk = chunk_length(taps);
    const int copies = copies_rows(p);
    int64_t used[COPIED_TILES];
    float *y[COPIED_TILES][TILE_ROWS];
    tile_tap copied[COPIED_TILES] = { 0 };
    for (int64_t t = 0; t < b->tiles; t++) {
        used[t] = find_rows(b, t, b->tables + t * taps, y[t]);
        for (int64_t i = 0; copies && i < TILE_ROWS; i++)
            copied[t].x[i] = b->rows + (t * TILE_ROWS + i) * (chunk + ROW_GAP);
    }
    for (int64_t l0 = 0; l0 < p->len; l0 += chunk) {
        const tile_range range = { copies ? 0 : l0, MIN(chunk, p->len - l0) };
        for (int64_t t = 0; copies && t < b->tiles; t++)
            if (used[t])
                copy_rows(b, b->tables + t, tile_rows(b, t), l0, l0 + range.len, copied + t);
        for (int64_t panel = b->first_panel; panel < b->last_panel; panel++) {
            const tile_function *functions = tile_functions[panel_vectors(p->columns, panel) - 1];
            for (int64_t t = 0; t < b->tiles; t++) {
                float *to[TILE_ROWS];
                const int64_t rows = tile_rows(b, t);
                for (int64_t i = 0; i < rows; i++)
                    to[i] = y[t][i] + panel * PANEL;
                const float *bias = p->bias ? p->bias + b->group * p->columns + panel * PANEL : NULL;
                const tile_store out = { to, MIN(PANEL, p->columns - panel * PANEL), l0 ? NULL : bias, p->alpha,
                                         l0 ? 1 : p->beta };
                functions[rows - 1](used[t], copies ? copied + t : b->tables + t * taps,
                                    b->packed + panel_offset(p, l0, panel), &range, &out);
            }
        }
    }
}

/* The tasks of one phase; the caller's barrier ends it. */
static void run_phase(block b, float *packed)
{
    const product *p = b.p;
    const int64_t pixels = p->images * b.v.count * b.h.count, all = panels(p->columns);
    const int64_t pixels_at_once = block_tiles(p) * TILE_ROWS, blocks = ceil_div(pixels, pixels_at_once);
    if (pixels == 0)
        return;
    const int64_t wanted = ceil_div(TASKS_A_THREAD * omp_get_num_threads(), blocks * p->groups);
    const int64_t most = copies_rows(p) ? all : GROUP_PANELS;
    const int64_t panel_groups = MIN(all, MAX(wanted, ceil_div(all, most)));
    const int64_t panel_floats = product_taps(p) * p->len * PANEL;
#pragma omp for schedule(dynamic, 1) nowait
    for (int64_t task = 0; task < p->groups * blocks * panel_groups; task++) {
        const int64_t part = task % panel_groups, place = task / panel_groups % blocks;
        b.group = task / panel_groups / blocks;
        b.first_panel = part_start(all, part, panel_groups);
        b.last_panel = part_start(all, part + 1, panel_groups);
        b.first_pixel = part_start(pixels, place, blocks);
        const int64_t count = part_start(pixels, place + 1, blocks) - b.first_pixel;
        b.tiles = ceil_div(count, TILE_ROWS);
        b.tile_rows = count / b.tiles;
        b.longer_tiles = count % b.tiles;
        b.packed = packed + b.group * all * panel_floats;
        run_block(&b);
    }
}

static void product_run(const product *p, void *workspace)
{
    const product_space space = product_layout(p);
    float *packed = workspace, *zeros = packed + line_floats(space.packed);
    char *own = (char *)(packed + space.shared) + omp_get_thread_num() * space.per_thread;
    int64_t *axes = (int64_t *)(own + round_up(space.tables, 64));
    block b = { .p = p, .zeros = zeros, .tables = (tile_tap *)own };
    b.rows = (float *)((char *)axes + round_up(space.axes, 64));
    pack_weights(p, packed, zeros);
    const int64_t phases_v = p->v.backward ? p->v.stride : 1, phases_h = p->h.backward ? p->h.stride : 1;
    for (int64_t v = 0; v < MIN(phases_v, p->v.out); v++)
        for (int64_t h = 0; h < MIN(phases_h, p->h.out); h++) {
            b.v = axis_phase(&p->v, v, axes);
            b.h = axis_phase(&p->h, h, axes + 2 * p->v.taps);
            run_phase(b, packed);
        }
#pragma omp barrier
}

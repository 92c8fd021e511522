/* Convolution with 1x1 filters on contiguous planes (N, C, H, W): a matrix product an image, without transpositions.
 *
 *     y[image][k][pixel] = sum over c: w[k][c] * x[image][c][pixel] + bias[k] * 1
 *
 *     copy w to rows that end with the bias                                          shared, once a call
 *     for each image, block of panels of pixels:                                     shared among threads
 *         for each chunk of c:                                                       restarts the running sums
 *             copy the block's part of x to panels [c][2 vectors]; ones below        a panel fits into L1
 *             for each tile of filters, for each panel: the micro-kernel
 *
 * Backward-data is the same with the filters turned. Backward-weights sums over pixels, so of x and dy the one with
 * fewer channels is turned, in a cache, and the other one's planes are the rows of tiles:
 *
 *     for each slice of the pixels, part of the rows:                                shared among threads
 *         for each chunk of pixels in the slice:
 *             turn the columns' part to panels [pixel][2 vectors]                    kept in L2
 *             for each tile of rows, for each panel: the micro-kernel, adds to the slice's partial dw
 *     dw, db = sums of the slices, from the first to the last                        shared among threads */

enum { PLANE_CHUNK = 256, PLANE_PANELS = 7, PLANE_SLICES = 8, FEW_SLICES = 4, SLICE_FLOATS = 65536 };

typedef struct {
    int64_t images, pixels, rows, len;           /* rows made, planes summed over */
    int64_t w_row, w_len;
    int64_t pitch, chunks, longest;              /* floats of a row of the copy; chunks of len, the longest of them */
} pointwise;

static pointwise pointwise_of(const pycnn_conv2d *d, int backward)
{
    pointwise p = { .images = d->n, .pixels = d->h * d->w, .rows = d->k, .len = d->c, .w_row = d->w_k, .w_len = d->w_c };
    if (backward) {
        p.rows = d->c;
        p.len = d->k;
        p.w_row = d->w_c;
        p.w_len = d->w_k;
    }
    p.pitch = p.len + 1;
    p.chunks = ceil_div(p.len, PLANE_CHUNK);
    p.longest = ceil_div(p.len, p.chunks) + 1;
    return p;
}

INLINE int64_t pointwise_blocks(const pointwise *p) { return ceil_div(panels(p->pixels), PLANE_PANELS); }
INLINE int64_t panels_floats(const pointwise *p) { return line_floats(PLANE_PANELS * p->longest * PANEL); }

static int64_t pointwise_bytes(const pointwise *p, int64_t threads)
{
    return (line_floats(p->rows * p->pitch) + threads * panels_floats(p)) * (int64_t)sizeof(float);
}

/* One of w_row and w_len is 1. */
static void copy_filters(const pointwise *p, const float *w, const float *bias, float *to)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p->rows; i += TILE_SIDE) {
        const int64_t rows = MIN(TILE_SIDE, p->rows - i);
        if (p->w_row == 1)
            transpose_matrix(w + i, p->w_len, to + i * p->pitch, p->pitch, p->len, rows);
        for (int64_t j = i; j < i + rows; j++) {
            float *row = to + j * p->pitch;
            if (p->w_row != 1)
                copy_floats(row, w + j * p->w_row, p->len);
            row[p->len] = bias ? bias[j] : 0;
        }
    }
}

/* Some planes, from panel `first` on, where x is, to `last`, to panels that begin `panel_floats` apart. */
static void copy_planes(const pointwise *p, const float *x, int64_t planes, int64_t first, int64_t last, float *to,
                        int64_t panel_floats)
{
    const int64_t whole = MIN(last, p->pixels / PANEL);
    for (int64_t l = 0; l < planes; l++) {
        const float *from = x + l * p->pixels;
        float *panel = to + l * PANEL;
        for (int64_t i = first; i < whole; i++, from += PANEL, panel += panel_floats) {
            store(panel, load(from));
            store(panel + VL, load(from + VL));
        }
        if (whole < last) {
            const int64_t rest = p->pixels - whole * PANEL;
            store(panel, load_n(from, rest));
            if (rest > VL)
                store(panel + VL, load_n(from + VL, rest - VL));
        }
    }
}

/* Rows first_row..last_row of y from rows of x, of which some floats are summed over, and from panels of columns. What
 * is to be copied next, a line a panel of `next_rows` rows, is called into L2. */
typedef struct {
    const float *x;
    int64_t x_row;
    float *y;
    int64_t y_row, first_row, last_row, columns;
    const float *next;
    int64_t next_row, next_rows, next_panels;
} row_tiles;

INLINE void call_next(const row_tiles *r, int64_t t, int64_t tiles)
{
    for (int64_t i = part_start(r->next_rows, t, tiles); i < part_start(r->next_rows, t + 1, tiles); i++)
        for (int64_t panel = 0; panel < r->next_panels; panel++)
            __builtin_prefetch(r->next + i * r->next_row + panel * PANEL, 0, 2);
}

/* Each tile of rows, over floats first..first + len, by all panels of columns column..end - 1, so that what lies side by
 * side is written soon after another. */
INLINE void run_rows(const row_tiles *r, const float *copied, int64_t first, int64_t len, int64_t column, int64_t end,
                     int64_t panel_floats, int adds)
{
    static const tile_tap only_tap = { 0, 0 };
    const int64_t rows = r->last_row - r->first_row, tiles = ceil_div(rows, TILE_ROWS);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t start = r->first_row + part_start(rows, t, tiles);
        const int64_t count = r->first_row + part_start(rows, t + 1, tiles) - start;
        const float *x[TILE_ROWS], *panel = copied;
        float *y[TILE_ROWS];
        for (int64_t i = 0; i < count; i++) {
            x[i] = r->x + (start + i) * r->x_row;
            y[i] = r->y + (start + i) * r->y_row;
        }
        call_next(r, t, tiles);
        const tile_input in = { .taps = 1, .tap = &only_tap, .x = x };
        const tile_range range = { .first = first, .len = len, .w_row = PANEL,
                                   .ahead = count * r->x_row * (int64_t)sizeof(float) };
        for (int64_t j = column; j < end; j += PANEL, panel += panel_floats) {
            const int64_t columns = MIN(PANEL, r->columns - j);
            const tile_store out = { .y = y, .first = j, .columns = columns, .alpha = 1, .old = adds };
            tile_functions[columns > VL][count - 1](&in, panel, &range, &out);
        }
    }
}

/* A block of panels of an image's pixels, and the planes of a chunk. */
typedef struct { int64_t image, first, last, l0, l1; } pointwise_part;

/* Part number i: the chunks of a block one after another. */
static pointwise_part find_part(const pointwise *p, int64_t i)
{
    const int64_t all = panels(p->pixels), blocks = pointwise_blocks(p);
    const int64_t chunk = i % p->chunks, block = i / p->chunks % blocks;
    return (pointwise_part){ i / p->chunks / blocks, part_start(all, block, blocks), part_start(all, block + 1, blocks),
                             part_start(p->len, chunk, p->chunks), part_start(p->len, chunk + 1, p->chunks) };
}

INLINE const float *part_planes(const pointwise *p, const pointwise_part *part, const float *x)
{
    return x + (part->image * p->len + part->l0) * p->pixels + part->first * PANEL;
}

static void run_pointwise(const pointwise *p, float *y, const float *x, const float *w, const float *bias,
                          float *workspace)
{
    const int64_t panel_floats = p->longest * PANEL, tasks = p->images * pointwise_blocks(p);
    float *rows = workspace, *own = rows + line_floats(p->rows * p->pitch) + omp_get_thread_num() * panels_floats(p);
    copy_filters(p, w, bias, rows);
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < tasks; task++)
        for (int64_t i = task * p->chunks; i < (task + 1) * p->chunks; i++) {
            const pointwise_part part = find_part(p, i), next = find_part(p, i + 1);
            const int64_t n = part.last - part.first, ones = bias && part.l1 == p->len;
            row_tiles tiles = { .x = rows, .x_row = p->pitch, .y = y + part.image * p->rows * p->pixels,
                                .y_row = p->pixels, .last_row = p->rows, .columns = p->pixels };
            if (i + 1 < tasks * p->chunks) {
                tiles.next = part_planes(p, &next, x);
                tiles.next_row = p->pixels;
                tiles.next_rows = next.l1 - next.l0;
                tiles.next_panels = next.last - next.first;
            }
            copy_planes(p, part_planes(p, &part, x), part.l1 - part.l0, part.first, part.last, own, panel_floats);
            for (int64_t panel = 0; ones && panel < n; panel++)
                for (int64_t j = 0; j < PANEL; j++)
                    own[panel * panel_floats + (part.l1 - part.l0) * PANEL + j] = 1;
            run_rows(&tiles, own, part.l0, part.l1 - part.l0 + ones, part.first * PANEL,
                     MIN(p->pixels, part.last * PANEL), panel_floats, part.l0 > 0);
        }
}

static int64_t pointwise_conv2d_workspace(const void *desc, int64_t threads)
{
    const pointwise p = pointwise_of(desc, 0);
    return pointwise_bytes(&p, threads);
}

/* y, x, w, bias or NULL */
static void pointwise_conv2d(const void *desc, void *const *args)
{
    const pointwise p = pointwise_of(desc, 0);
    run_pointwise(&p, args[0], args[1], args[2], args[3], args[4]);
}

static int64_t pointwise_conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const pointwise p = pointwise_of(desc, 1);
    return pointwise_bytes(&p, threads);
}

/* dx, dy, w */
static void pointwise_conv2d_backward_data(const void *desc, void *const *args)
{
    const pointwise p = pointwise_of(desc, 1);
    run_pointwise(&p, args[0], args[1], args[2], NULL, args[3]);
}

/* How backward-weights is cut: a unit is a chunk of an image's pixels. */
typedef struct {
    int64_t rows, columns, chunks, longest, units, slices;
    int64_t row, partial, own;                   /* floats of a row, of a slice's dw and db, of a thread's panels */
    int rows_are_dy;
} pointwise_cut;

static pointwise_cut cut_pointwise(const pycnn_conv2d *d)
{
    const int64_t pixels = d->h * d->w;
    pointwise_cut c = { .rows = MAX(d->c, d->k), .columns = MIN(d->c, d->k), .rows_are_dy = d->k >= d->c };
    c.chunks = ceil_div(pixels, PLANE_CHUNK);
    c.longest = ceil_div(pixels, c.chunks);
    c.units = d->n * c.chunks;
    c.slices = MIN(c.units, c.rows * c.columns > SLICE_FLOATS ? FEW_SLICES : PLANE_SLICES);
    c.row = panels(c.columns) * PANEL;
    c.partial = line_floats(c.rows * c.row + d->k);
    c.own = line_floats(c.longest * c.row);
    return c;
}

static int64_t pointwise_conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    const pointwise_cut c = cut_pointwise(desc);
    return (c.slices * c.partial + threads * c.own) * (int64_t)sizeof(float);
}

/* to[panel][pixel][lane] = planes[lane of the panel][pixel] for n pixels; lanes without a plane are zero. */
static void turn_planes(const float *planes, int64_t pixels, int64_t columns, int64_t n, float *to)
{
    for (int64_t j = 0; j < columns; j += PANEL, to += n * PANEL) {
        if (columns - j < PANEL)
            memset(to, 0, sizeof(float) * (size_t)(n * PANEL));
        transpose_matrix(planes + j * pixels, pixels, to, PANEL, MIN(PANEL, columns - j), n);
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

static void add_pointwise_slices(const pycnn_conv2d *d, const pointwise_cut *c, const float *partials, float *dw,
                                 float *db)
{
    const int64_t w_row = c->rows_are_dy ? d->w_k : d->w_c, w_column = c->rows_are_dy ? d->w_c : d->w_k;
#pragma omp for schedule(static) nowait
    for (int64_t i = 0; i < c->rows; i++)
        for (int64_t j = 0; j < c->columns; j += VL) {
            vec sum = load(partials + i * c->row + j);
            for (int64_t slice = 1; slice < c->slices; slice++)
                sum = sum + load(partials + slice * c->partial + i * c->row + j);
            float *to = dw + i * w_row + j * w_column;
            for (int64_t l = 0; l < MIN(VL, c->columns - j); l++)
                to[l * w_column] = sum[l];
        }
#pragma omp for schedule(static)
    for (int64_t k = 0; k < d->k; k++) {
        float sum = 0;
        for (int64_t slice = 0; slice < c->slices; slice++)
            sum += partials[slice * c->partial + c->rows * c->row + k];
        db[k] = sum;
    }
}

/* dw, db, x, dy */
static void pointwise_conv2d_backward_weights(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    const pointwise_cut c = cut_pointwise(d);
    const int64_t pixels = d->h * d->w, threads = omp_get_num_threads();
    const int64_t parts = MIN(ceil_div(c.rows, TILE_ROWS), ceil_div(TASKS_A_THREAD * (threads - 1) + 1, c.slices));
    const float *x = args[2], *dy = args[3], *rows = c.rows_are_dy ? dy : x, *columns = c.rows_are_dy ? x : dy;
    float *partials = args[4], *own = partials + c.slices * c.partial + omp_get_thread_num() * c.own;
#pragma omp for schedule(dynamic, 1)
    for (int64_t task = 0; task < c.slices * parts; task++) {
        const int64_t slice = task / parts, part = task % parts;
        const int64_t first = part_start(c.units, slice, c.slices), end = part_start(c.units, slice + 1, c.slices);
        float *partial = partials + slice * c.partial;
        row_tiles tiles = { .x_row = pixels, .y = partial, .y_row = c.row, .columns = c.columns,
                            .first_row = part_start(c.rows, part, parts),
                            .last_row = part_start(c.rows, part + 1, parts) };
        for (int64_t unit = first; unit < end; unit++) {
            const int64_t image = unit / c.chunks, chunk = unit % c.chunks;
            const int64_t pixel = part_start(pixels, chunk, c.chunks), n = part_start(pixels, chunk + 1, c.chunks) - pixel;
            tiles.x = rows + image * c.rows * pixels;
            turn_planes(columns + image * c.columns * pixels + pixel, pixels, c.columns, n, own);
            if (part == 0)
                sum_planes(dy + image * d->k * pixels + pixel, pixels, d->k, n, partial + c.rows * c.row, unit > first);
            run_rows(&tiles, own, pixel, n, 0, c.columns, n * PANEL, unit > first);
        }
    }
    add_pointwise_slices(d, &c, partials, args[0], args[1]);
}

/* Convolution with 1x1 filters on contiguous planes (N, C, H, W): one matrix product, without transpositions, whose
 * columns are the pixels of all images.
 *
 *     y[image][k][pixel] = bias[k] + sum over c: w[k][c] * x[image][c][pixel's place]
 *
 *     for each part of the filters, block of panels of pixels:                       shared among threads
 *         find the pixels' places in x and y                                         they may lie in several images
 *         for each chunk of c:                                                       restarts the running sums
 *             copy the block's part of x to panels [c][vectors]                      they fit into L2
 *             for each tile of filters, for each panel: the micro-kernel             the tile's filters in L1
 *
 * Backward-data is the same with the filters turned before. Backward-weights sums over pixels, so of x and dy the one
 * with fewer channels is turned, in a cache, and the other one's planes are the rows of tiles:
 *
 *     for each slice of the pixels, part of the rows:                                shared among threads
 *         for each chunk of pixels in the slice:
 *             turn the columns' part to panels [pixel][vectors]                      kept in L2
 *             for each tile of rows, for each panel: the micro-kernel, adds to the slice's partial dw
 *     dw, db = sums of the slices, from the first to the last                        shared among threads */

enum { PLANE_CHUNK = 512, PLANE_PANELS = CACHE_FLOATS * 7 / 10 / (PLANE_CHUNK * PANEL) };
enum { PLANE_SLICES = 8, FEW_SLICES = 4, SLICE_FLOATS = 65536 };

typedef struct {
    int64_t images, rows, len;                   /* planes of an image made, and summed over */
    int64_t pixels, height, width;               /* of a plane made */
    int64_t in_pixels, in_row, in_column;        /* floats of a plane summed over, and to its next row, column */
    int64_t w_row;                               /* floats from filter to filter */
    int64_t turned;                              /* or, where those lie side by side, from one's weight to its next */
    int64_t chunks, longest;                     /* chunks of len, the longest of them */
} pointwise;

static pointwise pointwise_of(const pycnn_conv2d *d, int backward)
{
    pointwise p = { .images = d->n, .rows = d->k, .len = d->c, .pixels = d->oh * d->ow, .height = d->oh,
                    .width = d->ow, .in_pixels = d->h * d->w, .in_row = d->stride_h * d->w, .in_column = d->stride_w,
                    .w_row = d->w_k };
    if (backward) { /* of stride 1 */
        p.rows = d->c;
        p.len = d->k;
        p.turned = d->w_k;
        p.w_row = d->k + 1;
    }
    if (d->stride_h == 1 && d->stride_w == 1) { /* a plane is like one row */
        p.height = 1;
        p.width = p.pixels;
    }
    p.chunks = ceil_div(p.len, PLANE_CHUNK);
    p.longest = ceil_div(p.len, p.chunks);
    return p;
}

INLINE int64_t pointwise_panels(const pointwise *p) { return panels(p->images * p->pixels); }
INLINE int64_t pointwise_blocks(const pointwise *p) { return ceil_div(pointwise_panels(p), PLANE_PANELS); }
INLINE int64_t panels_floats(const pointwise *p) { return line_floats(PLANE_PANELS * p->longest * PANEL); }

INLINE int64_t turned_floats(const pointwise *p) { return p->turned ? line_floats(p->rows * p->w_row) : 0; }

static int64_t pointwise_bytes(const pointwise *p, int64_t threads)
{
    return (turned_floats(p) + own_floats(threads, panels_floats(p))) * (int64_t)sizeof(float);
}

static void turn_filters(const pointwise *p, const float *w, float *to)
{
#pragma omp for schedule(static)
    for (int64_t i = 0; i < p->rows; i += TILE_SIDE)
        transpose_matrix(w + i, p->turned, to + i * p->w_row, p->w_row, p->len, MIN(TILE_SIDE, p->rows - i));
}

/* A pixel of those made, and where it is, from the first plane of the first image on, in x and in y. */
typedef struct { int64_t row, column, in, out; } pixel_place;

static pixel_place find_pixel(const pointwise *p, int64_t number)
{
    const int64_t image = number / p->pixels, pixel = number % p->pixels;
    const int64_t row = pixel / p->width, column = pixel % p->width;
    return (pixel_place){ row, column, image * p->len * p->in_pixels + row * p->in_row + column * p->in_column,
                          image * p->rows * p->pixels + pixel };
}

/* n pixels on, along a row. */
INLINE void go_on(const pointwise *p, pixel_place *at, int64_t n)
{
    at->in += n * p->in_column;
    at->out += n;
    at->column += n;
    if (at->column < p->width)
        return;
    at->column = 0;
    at->in += p->in_row - p->width * p->in_column;
    if (++at->row < p->height)
        return;
    at->row = 0;
    at->in += p->len * p->in_pixels - p->height * p->in_row;
    at->out += (p->rows - 1) * p->pixels;
}

typedef struct {
    int64_t pixels, in[PANEL], out[PANEL];
    int in_line, out_line;                       /* whether each lies next to the one before, so that one place tells */
} pixel_panel;

static void find_panel(const pointwise *p, pixel_place *at, int64_t pixels, pixel_panel *panel)
{
    panel->pixels = pixels;
    panel->in[0] = at->in;
    panel->out[0] = at->out;
    panel->in_line = panel->out_line = pixels == PANEL && p->in_column == 1 && at->column + PANEL <= p->width;
    if (panel->in_line) {
        go_on(p, at, PANEL);
        return;
    }
    for (int64_t j = 0; j < pixels; j++, go_on(p, at, 1)) {
        panel->in[j] = at->in;
        panel->out[j] = at->out;
    }
    for (int64_t j = pixels; j < PANEL; j++)
        panel->in[j] = panel->in[0];
    panel->out_line = panel->out[pixels - 1] - panel->out[0] == pixels - 1;
}

typedef struct {
    int64_t panels;
    int in_line;                                 /* whether the panels, too, lie next to each other in x */
    pixel_panel panel[PLANE_PANELS];
} pixel_block;

static void find_block(const pointwise *p, int64_t number, pixel_block *block)
{
    const int64_t all = pointwise_panels(p), blocks = pointwise_blocks(p), first = part_start(all, number, blocks);
    pixel_place at = find_pixel(p, first * PANEL);
    block->panels = part_start(all, number + 1, blocks) - first;
    block->in_line = 1;
    for (int64_t i = 0; i < block->panels; i++) {
        find_panel(p, &at, MIN(PANEL, p->images * p->pixels - (first + i) * PANEL), &block->panel[i]);
        block->in_line &= block->panel[i].in_line && block->panel[i].in[0] == block->panel[0].in[0] + i * PANEL;
    }
}

/* Some planes, x being where the first one of the first image is, to panels that begin `panel_floats` apart. */
static void copy_planes(const pixel_block *b, const float *x, int64_t plane, int64_t planes, float *to,
                        int64_t panel_floats)
{
    const int64_t n = b->panels, first = b->panel[0].in[0];
    const int in_line = b->in_line;
    for (int64_t l = 0; l < planes; l++, x += plane, to += PANEL) {
        for (int64_t i = 0; in_line && i < n; i++)
            copy_panel_row(to + i * panel_floats, x + first + i * PANEL);
        for (int64_t i = 0; !in_line && i < n; i++)
            if (b->panel[i].in_line)
                copy_panel_row(to + i * panel_floats, x + b->panel[i].in[0]);
            else
                UNROLL for (int64_t j = 0; j < PANEL; j++)
                    to[i * panel_floats + j] = x[b->panel[i].in[j]];
    }
}

/* Calls into L2 part number t of `parts` of what copy_planes will read. */
INLINE void call_planes(const pixel_block *b, const float *x, int64_t plane, int64_t planes, int64_t t, int64_t parts)
{
    for (int64_t l = part_start(planes, t, parts); l < part_start(planes, t + 1, parts); l++)
        for (int64_t i = 0; i < b->panels; i++)
            __builtin_prefetch(x + l * plane + b->panel[i].in[0], 0, 2);
}

/* Outputs of a panel from pixel j on that lie next to each other. */
INLINE int64_t pixels_in_line(const pixel_panel *panel, int64_t j)
{
    int64_t n = 1;
    while (j + n < panel->pixels && panel->out[j + n] == panel->out[j] + n)
        n++;
    return n;
}

/* A tile whose pixels lie in several images: its outputs come and go by what lies in each. */
INLINE void run_apart(const pixel_panel *panel, int64_t rows, const tile_input *in, const float *w,
                      const tile_range *range, tile_store out)
{
    float outputs[TILE_ROWS][PANEL], *y[TILE_ROWS];
    float *const *to = out.y;
    for (int64_t i = 0; i < rows; i++)
        y[i] = outputs[i];
    for (int64_t j = 0, n; out.old != 0 && j < panel->pixels; j += n) {
        n = pixels_in_line(panel, j);
        for (int64_t i = 0; i < rows; i++)
            copy_floats(y[i] + j, to[i] + panel->out[j], n);
    }
    out.y = y;
    tile_functions[panel_vectors(out.columns, 0) - 1][rows - 1](in, w, range, &out);
    for (int64_t j = 0, n; j < panel->pixels; j += n) {
        n = pixels_in_line(panel, j);
        for (int64_t i = 0; i < rows; i++)
            copy_floats(to[i] + panel->out[j], y[i] + j, n);
    }
}

/* Rows start..start + rows - 1 of w, of which `range` is summed over, by all panels, so that what lies side by side is
 * written soon after another. */
INLINE void run_filters(const pointwise *p, const pixel_block *b, float *y, const float *w, const float *bias,
                        const float *copied, int64_t start, int64_t rows, const tile_range *range)
{
    static const tile_tap only_tap = { 0, 0 };
    const float *x[TILE_ROWS];
    float *to[TILE_ROWS];
    for (int64_t i = 0; i < rows; i++) {
        x[i] = w + (start + i) * p->w_row;
        to[i] = y + (start + i) * p->pixels;
    }
    const tile_input in = { .taps = 1, .tap = &only_tap, .x = x };
    for (int64_t i = 0; i < b->panels; i++, copied += p->longest * PANEL) {
        const pixel_panel *panel = &b->panel[i];
        tile_store out = { .y = to, .columns = panel->pixels, .alpha = 1, .old = range->first > 0 };
        if (bias && range->first == 0)
            out.row_bias = bias + start;
        if (panel->out_line) {
            out.first = panel->out[0];
            tile_functions[panel_vectors(out.columns, 0) - 1][rows - 1](&in, copied, range, &out);
        } else {
            run_apart(panel, rows, &in, copied, range, out);
        }
    }
}

static void run_pointwise(const pointwise *p, float *y, const float *x, const float *w, const float *bias,
                          float *workspace)
{
    float *own = own_part(workspace + turned_floats(p), panels_floats(p));
    const float *filters = p->turned ? workspace : w;
    if (p->turned)
        turn_filters(p, w, workspace);
    const int64_t blocks = pointwise_blocks(p), threads = omp_get_num_threads();
    const int64_t wanted = threads > 1 ? ceil_div(TASKS_A_THREAD * threads, blocks) : 1;
    const int64_t parts = MIN(wanted, ceil_div(p->rows, TILE_ROWS));
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < blocks * parts; task++) {
        const int64_t number = task % blocks, part = task / blocks, first = part_start(p->rows, part, parts);
        const int64_t rows = part_start(p->rows, part + 1, parts) - first, tiles = ceil_div(rows, TILE_ROWS);
        pixel_block block, after;
        find_block(p, number, &block);
        find_block(p, (number + 1) % blocks, &after);
        for (int64_t chunk = 0; chunk < p->chunks; chunk++) {
            const int64_t l0 = part_start(p->len, chunk, p->chunks), l1 = part_start(p->len, chunk + 1, p->chunks);
            const int64_t next = l1 == p->len ? 0 : chunk + 1, next_l = part_start(p->len, next, p->chunks);
            const int64_t next_planes = part_start(p->len, next + 1, p->chunks) - next_l;
            tile_range range = { .first = l0, .len = l1 - l0, .w_row = PANEL };
            copy_planes(&block, x + l0 * p->in_pixels, p->in_pixels, l1 - l0, own, p->longest * PANEL);
            for (int64_t t = 0; t < tiles; t++) {
                const int64_t start = part_start(rows, t, tiles), count = part_start(rows, t + 1, tiles) - start;
                fetch_rows(&range, count, p->w_row);
                call_planes(next ? &block : &after, x + next_l * p->in_pixels, p->in_pixels, next_planes, t, tiles);
                run_filters(p, &block, y, filters, bias, own, first + start, count, &range);
            }
        }
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

/* Rows first_row..last_row of y from rows of x and panels of columns. */
typedef struct {
    const float *x;
    int64_t x_row;
    float *y;
    int64_t y_row, first_row, last_row, columns;
} row_tiles;

/* Each tile of rows, over floats first..first + len, by all panels. */
INLINE void run_rows(const row_tiles *r, const float *panels, int64_t first, int64_t len, int adds)
{
    static const tile_tap only_tap = { 0, 0 };
    const int64_t rows = r->last_row - r->first_row, tiles = ceil_div(rows, TILE_ROWS);
    for (int64_t t = 0; t < tiles; t++) {
        const int64_t start = r->first_row + part_start(rows, t, tiles);
        const int64_t count = r->first_row + part_start(rows, t + 1, tiles) - start;
        const float *x[TILE_ROWS], *panel = panels;
        float *y[TILE_ROWS];
        for (int64_t i = 0; i < count; i++) {
            x[i] = r->x + (start + i) * r->x_row;
            y[i] = r->y + (start + i) * r->y_row;
        }
        const tile_input in = { .taps = 1, .tap = &only_tap, .x = x };
        tile_range range = { .first = first, .len = len, .w_row = PANEL };
        fetch_rows(&range, count, r->x_row);
        for (int64_t j = 0; j < r->columns; j += PANEL, panel += len * PANEL) {
            const int64_t columns = MIN(PANEL, r->columns - j);
            const tile_store out = { .y = y, .first = j, .columns = columns, .alpha = 1, .old = adds };
            tile_functions[panel_vectors(columns, 0) - 1][count - 1](&in, panel, &range, &out);
        }
    }
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
    return (c.slices * c.partial + own_floats(threads, c.own)) * (int64_t)sizeof(float);
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
    float *partials = args[4], *own = own_part(partials + c.slices * c.partial, c.own);
#pragma omp for schedule(guided)
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
            run_rows(&tiles, own, pixel, n, unit > first);
        }
    }
    add_pointwise_slices(d, &c, partials, args[0], args[1]);
}

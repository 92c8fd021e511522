/* The gradient of filters of stride 1 by Winograd's F(3x3, 4x4), the counterpart of winograd.h: the same segments of
 * larger kernels, windows of the input and 36 products, with patches of dy in the place of filters.
 *
 *     dw[3x3] = G^T [ sum over patches: (B^T x[6x6] B) * (A dy[4x4] A^T) ] G
 *
 * Where du, or a part of its panels, stays in a thread's cache, each sums up slices of the patches for itself: their v
 * and d never leave its cache either, and it waits for nobody. The number of slices depends on the shape alone, and so
 * do the bits. Each part makes v anew, which costs less than waiting.
 *
 *     for each slice of the patches, part of the panels:                 shared among threads
 *         for each chunk of the slice:
 *             v of its windows, d of its patches of dy
 *             for each panel of the part, strip of l, place e, block of l:
 *                 du[e][l][column] += sum over patches: v[e][patch][l] * d[e][patch][column]
 *     dw of the sums of the slices' du                                   shared among threads
 *
 * A larger du, or one of few patches, is cut instead, and no sum is split. A chunk is so long that v and d are read
 * about as often as du.
 *
 *     for each chunk of patches:
 *         v and d                                                        shared among threads
 *         for each panel of columns, strip of l:                         shared among threads
 *             for each place e, block of l: du += ...
 *             after the last chunk: dw of the strip */

enum { STRIP_BLOCKS = (48 + TILE_ROWS - 1) / TILE_ROWS, LEAST_PATCHES = 128, PLANE_PARTS = 8 };
enum { SLICE_TASKS = 8, MOST_PARTS = 4, SLICE_PATCHES = 48 };

typedef struct {
    winograd p;                      /* as in the forward product */
    int64_t slices, parts;           /* of the patches, or 0; of the panels */
    int64_t first_panel, last_panel; /* of the part that is made */
    int64_t chunks, patches;         /* of a slice, or of all; patches of the longest chunk */
    int64_t len, strips, strip;      /* l, without the zeros after the last channel; l of the longest strip */
    int64_t v_row, v_step, d_step, du_step;
} winograd_outer;

/* The columns of the part, and where one of its panels begins in each place of d. */
INLINE int64_t part_columns(const winograd_outer *o)
{
    return MIN(o->p.columns, o->last_panel * PANEL) - o->first_panel * PANEL;
}
INLINE int64_t d_panel(const winograd_outer *o, int64_t panel) { return (panel - o->first_panel) * o->patches * PANEL; }

static winograd_outer winograd_weights_cut(const pycnn_conv2d *d)
{
    winograd_outer o = { .p = winograd_forward(d) };
    const winograd *p = &o.p;
    o.len = (p->segments - 1) * segment_len(p) + p->channels;
    const int64_t all = panels(p->columns);
    const int64_t parts = MAX(1, ceil_div(PLACES * o.len * p->columns, 2 * CACHE_FLOATS));
    const int64_t shared = MAX(LEAST_PATCHES, 2 * o.len * p->columns / (o.len + p->columns));
    const int by_slices = parts == 1 || (parts <= MIN(MOST_PARTS, all) && p->patches > shared);
    o.parts = by_slices ? parts : 1;
    if (by_slices)
        o.slices = MAX(1, MIN(SLICE_TASKS / o.parts, p->patches / SLICE_PATCHES));
    o.last_panel = ceil_div(all, o.parts);
    const int64_t alone = MAX(SLICE_PATCHES, CACHE_FLOATS / (PLACES * (o.len + part_columns(&o))));
    const int64_t patches = ceil_div(p->patches, MAX(1, o.slices));
    o.chunks = ceil_div(patches, o.slices > 0 ? alone : shared);
    o.patches = ceil_div(patches, o.chunks);
    o.strips = ceil_div(o.len, STRIP_BLOCKS * TILE_ROWS);
    o.strip = ceil_div(o.len, o.strips);
    o.v_row = place_step(winograd_len(p));
    o.v_step = place_step(o.patches * o.v_row);
    o.d_step = place_step(o.last_panel * o.patches * PANEL);
    o.du_step = place_step(o.strip * PANEL);
    return o;
}

/* Floats of du for one panel and strip, and how many of them are kept at once: with one chunk a thread uses its own
 * again and again. */
static int64_t strip_floats(const winograd_outer *o) { return PLACES * o->du_step; }
static int64_t kept_strips(const winograd_outer *o, int64_t threads)
{
    const int64_t strips = panels(o->p.columns) * o->strips;
    return o->slices > 0 ? o->slices * strips : o->chunks == 1 ? threads : strips;
}
/* Of v and d. */
static int64_t chunk_floats(const winograd_outer *o) { return PLACES * (o->v_step + o->d_step); }

static int64_t winograd_conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    const winograd_outer o = winograd_weights_cut(desc);
    const int64_t zeros = line_floats(MAX(o.p.channels, o.p.columns));
    const int64_t chunks = o.slices > 0 ? own_floats(threads, chunk_floats(&o)) : chunk_floats(&o);
    return (zeros + chunks + kept_strips(&o, threads) * strip_floats(&o)) * (int64_t)sizeof(float);
}

/* o = A d: a patch of dy. */
INLINE void gradient_transform(const vec d[PATCH], vec o[WINDOW])
{
    const vec even_a = d[0] + 0.5f * d[2], odd_a = POINT_A * d[1] + CUBE_A * d[3];
    const vec even_b = d[0] + 2 * d[2], odd_b = POINT_B * d[1] + CUBE_B * d[3];
    o[0] = d[0];
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = d[3];
}

/* o = G^T u: sums to a filter's gradient. */
INLINE void filter_gradient(const vec u[WINDOW], vec o[SEGMENT])
{
    const vec even_a = NORM_A * (u[1] + u[2]), odd_a = NORM_A * (u[1] - u[2]);
    const vec even_b = NORM_B * (u[3] + u[4]), odd_b = NORM_B * (u[3] - u[4]);
    o[0] = u[0] + even_a + even_b;
    o[1] = POINT_A * odd_a + POINT_B * odd_b;
    o[2] = u[5] + 0.5f * even_a + 2 * even_b;
}

/* A dy A^T of n columns from `column` on, to d, d + step, ... */
INLINE void transform_gradient(const float *const pixel[PATCH * PATCH], int64_t column, int64_t n, float *d, int64_t step)
{
    vec half[WINDOW][PATCH];
    UNROLL for (int j = 0; j < PATCH; j++) {
        vec in[PATCH], o[WINDOW];
        UNROLL for (int i = 0; i < PATCH; i++)
            in[i] = load_n(pixel[i * PATCH + j] + column, n);
        gradient_transform(in, o);
        UNROLL for (int i = 0; i < WINDOW; i++)
            half[i][j] = o[i];
    }
    UNROLL for (int i = 0; i < WINDOW; i++) {
        vec o[WINDOW];
        gradient_transform(half[i], o);
        UNROLL for (int j = 0; j < WINDOW; j++)
            store(d + (i * WINDOW + j) * step, o[j]);
    }
}

/* d of a patch: [e][panel][patch][width], `row` being its place in the chunk. */
static void transform_dy(const winograd_outer *o, const float *dy, const float *zeros, const patch_place *at, int64_t row,
                         float *d)
{
    const winograd *p = &o->p;
    const float *pixel[PATCH * PATCH];
    for (int64_t i = 0; i < PATCH; i++)
        for (int64_t j = 0; j < PATCH; j++) {
            const int64_t h = at->row + i * p->apart_h, w = at->column + j * p->apart_w;
            pixel[i * PATCH + j] = h < p->out_h && w < p->out_w
                ? dy + ((at->n * p->out_h + h) * p->out_w + w) * p->columns : zeros;
        }
    for (int64_t panel = o->first_panel; panel < o->last_panel; panel++) {
        const int64_t width = panel_width(p->columns, panel);
        float *to = d + d_panel(o, panel) + row * width;
        for (int64_t j = 0; j < width; j += VL)
            transform_gradient(pixel, panel * PANEL + j, p->columns - panel * PANEL - j, to + j, o->d_step);
    }
}

/* Channels l..l + VL of a box, whose patches' places in the chunk begin at `row`, from planes of x to v. */
static void transform_x_box(const winograd_outer *o, const float *x, const patch_box *box, int64_t l, float *v, int64_t row)
{
    patch_target to[BOX_PATCHES];
    for (int64_t q = 0; q < box->down * box->across; q++)
        to[q] = (patch_target){ v + (row + q) * o->v_row, VL };
    transform_box(&o->p, x, box, l, MIN(l + VL, o->p.channels), to, o->v_step);
}

/* Columns column..column + VL of such a box, from planes of dy to d. */
static void transform_dy_box(const winograd_outer *o, const float *dy, const patch_box *box, int64_t column, float *d,
                             int64_t row)
{
    const winograd *p = &o->p;
    const patch_place at = find_patch(p, box->first);
    const int64_t panel = column / PANEL, width = panel_width(p->columns, panel);
    const int64_t rows = box->down * PATCH, columns = box->across * PATCH;
    float pixels[BOX_PIXELS * VL];
    clear_floats(pixels, rows * columns * VL);
    fill_box(dy + (at.n * p->columns + column) * p->out_h * p->out_w, p->out_h, p->out_w, p->columns - column, at.row,
             at.column, rows, columns, pixels);
    d += d_panel(o, panel) + row * width + column % PANEL;
    for (int64_t q = 0; q < box->down * box->across; q++, d += width) {
        const float *pixel[PATCH * PATCH];
        find_box_pixels(pixels, columns, box, q, PATCH, pixel);
        transform_gradient(pixel, 0, VL, d, o->d_step);
    }
}

/* The sum of the slices of du. */
INLINE vec load_slices(const winograd_outer *o, const float *du)
{
    const int64_t apart = panels(o->p.columns) * o->strips * strip_floats(o);
    vec sum = load(du);
    for (int64_t slice = 1; slice < o->slices; slice++)
        sum = sum + load(du + slice * apart);
    return sum;
}

/* G^T du G of one vector of columns, to [tap][PANEL]. */
INLINE void transform_gradients(const winograd_outer *o, const float *du, float *filter)
{
    vec half[SEGMENT][WINDOW];
    UNROLL for (int s = 0; s < WINDOW; s++) {
        vec in[WINDOW], sums[SEGMENT];
        UNROLL for (int r = 0; r < WINDOW; r++)
            in[r] = load_slices(o, du + (r * WINDOW + s) * o->du_step);
        filter_gradient(in, sums);
        UNROLL for (int r = 0; r < SEGMENT; r++)
            half[r][s] = sums[r];
    }
    UNROLL for (int r = 0; r < SEGMENT; r++) {
        vec taps[SEGMENT];
        filter_gradient(half[r], taps);
        UNROLL for (int s = 0; s < SEGMENT; s++)
            store(filter + (r * SEGMENT + s) * PANEL, taps[s]);
    }
}

/* n taps [tap][PANEL] of one channel, to dw. */
static void store_taps(const winograd *p, const float *filter, int64_t n, int64_t columns, float *dw)
{
    if (p->w_tap == 1)
        transpose_matrix(filter, PANEL, dw, p->w_column, n, columns);
    else if (p->w_column == 1)
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < columns; j += VL)
                store_n(dw + t * p->w_tap + j, load(filter + t * PANEL + j), columns - j);
    else
        for (int64_t t = 0; t < n; t++)
            for (int64_t j = 0; j < columns; j++)
                dw[t * p->w_tap + j * p->w_column] = filter[t * PANEL + j];
}

/* dw of l0..l1 of a panel from du [e][l][width]. */
static void store_gradient(const winograd_outer *o, int64_t panel, int64_t l0, int64_t l1, const float *du, float *dw)
{
    const winograd *p = &o->p;
    const int64_t width = panel_width(p->columns, panel), columns = MIN(PANEL, p->columns - panel * PANEL);
    for (int64_t l = l0; l < l1; l++, du += width) {
        const int64_t channel = l % segment_len(p);
        float filter[SEGMENT_TAPS * PANEL];
        if (channel >= p->channels)
            continue;
        for (int64_t j = 0; j < width; j += VL)
            transform_gradients(o, du + j, filter + j);
        float *to = dw + panel * PANEL * p->w_column + channel * p->w_l;
        segment_taps t = find_taps(p, l / segment_len(p));
        for (; t.runs > 0; t.runs--, t.tap += p->kernel_w, t.place += SEGMENT)
            store_taps(p, filter + t.place * PANEL, t.n, columns, to + t.tap * p->w_tap);
    }
}

/* du of a strip, l0..l1 of a panel: the sums over n patches of a chunk, added to those of the chunks before. */
static void sum_patches(const winograd_outer *o, int64_t panel, int64_t l0, int64_t l1, int64_t n, int adds,
                        const float *v, const float *d, float *du)
{
    const int64_t width = panel_width(o->p.columns, panel), blocks = ceil_div(l1 - l0, tile_rows(o->p.columns));
    outer_tile t = { .images = 1, .rows = 1, .n = n, .x_step = o->v_row, .out_row = width, .columns = width,
                     .adds = adds, .ahead = (const char *)v };
    for (int64_t e = 0; e < PLACES; e++) {
        t.dy = d + e * o->d_step + d_panel(o, panel);
        for (int64_t b = 0; b < blocks; b++) {
            const int64_t first = part_start(l1 - l0, b, blocks), rows = part_start(l1 - l0, b + 1, blocks) - first;
            t.x = v + e * o->v_step + l0 + first;
            t.out = du + e * o->du_step + first * width;
            outer_functions[width / VL - 1][rows - 1](&t);
        }
    }
}

/* v and d of a patch, whose place in the chunk is `row`. */
static void transform_pair(const winograd_outer *o, int64_t patch, int64_t row, const float *x, const float *dy,
                           const float *zeros, float *v, float *d)
{
    const winograd *p = &o->p;
    const float *window[PLACES];
    const patch_place at = find_patch(p, patch);
    float *to = v + row * o->v_row;
    for (int64_t segment = 0; segment < p->segments; segment++, to += segment_len(p)) {
        find_window(p, x, &at, segment, zeros, window);
        transform_channels(window, p->channels, to, VL, o->v_step);
    }
    transform_dy(o, dy, zeros, &at, row, d);
}

/* Where both come in planes: a vector of channels of x, or of columns of dy, of patches from..end - 1 of a chunk that
 * begins with patch `first`. */
INLINE int64_t plane_vectors(const winograd_outer *o)
{
    return ceil_div(o->p.channels, VL) + ceil_div(part_columns(o), VL);
}
static void transform_vector(const winograd_outer *o, int64_t vector, int64_t first, int64_t from, int64_t end,
                             const float *x, const float *dy, float *v, float *d)
{
    const winograd *p = &o->p;
    const int64_t channels = ceil_div(p->channels, VL);
    patch_box box;
    for (int64_t patch = from; patch < end; patch += box.down * box.across) {
        box = next_box(p, patch, end - patch);
        if (vector < channels)
            transform_x_box(o, x, &box, vector * VL, v, patch - first);
        else
            transform_dy_box(o, dy, &box, o->first_panel * PANEL + (vector - channels) * VL, d, patch - first);
    }
}

/* v and d of patches first..end - 1, by one thread, and shared among threads. */
static void transform_alone(const winograd_outer *o, int64_t first, int64_t end, const float *x, const float *dy,
                            const float *zeros, float *v, float *d)
{
    if (o->p.from_planes)
        for (int64_t vector = 0; vector < plane_vectors(o); vector++)
            transform_vector(o, vector, first, first, end, x, dy, v, d);
    else
        for (int64_t patch = first; patch < end; patch++)
            transform_pair(o, patch, patch - first, x, dy, zeros, v, d);
}
static void transform_shared(const winograd_outer *o, int64_t first, int64_t end, const float *x, const float *dy,
                             const float *zeros, float *v, float *d)
{
    const int64_t parts = MIN(end - first, PLANE_PARTS);
    if (o->p.from_planes) {
#pragma omp for schedule(static)
        for (int64_t task = 0; task < plane_vectors(o) * parts; task++)
            transform_vector(o, task / parts, first, first + part_start(end - first, task % parts, parts),
                             first + part_start(end - first, task % parts + 1, parts), x, dy, v, d);
    } else {
#pragma omp for schedule(static)
        for (int64_t patch = first; patch < end; patch++)
            transform_pair(o, patch, patch - first, x, dy, zeros, v, d);
    }
}

/* du of a part of the panels, of one slice. */
static void sum_slice(const winograd_outer *o, int64_t slice, const float *x, const float *dy, const float *zeros,
                      float *v, float *d, float *du)
{
    const int64_t begin = part_start(o->p.patches, slice, o->slices);
    const int64_t patches = part_start(o->p.patches, slice + 1, o->slices) - begin;
    du += (slice * panels(o->p.columns) + o->first_panel) * o->strips * strip_floats(o);
    for (int64_t chunk = 0; chunk < o->chunks; chunk++) {
        const int64_t first = begin + part_start(patches, chunk, o->chunks);
        const int64_t end = begin + part_start(patches, chunk + 1, o->chunks);
        float *strip = du;
        transform_alone(o, first, end, x, dy, zeros, v, d);
        for (int64_t panel = o->first_panel; panel < o->last_panel; panel++)
            for (int64_t i = 0; i < o->strips; i++, strip += strip_floats(o))
                sum_patches(o, panel, part_start(o->len, i, o->strips), part_start(o->len, i + 1, o->strips),
                            end - first, chunk > 0, v, d, strip);
    }
}

/* du, slice by slice, then dw. */
static void sum_by_slices(const winograd_outer *o, float *dw, const float *x, const float *dy, const float *zeros,
                          float *v, float *d, float *du)
{
    const int64_t all = panels(o->p.columns), tasks = o->slices * o->parts;
    winograd_outer part = *o;
    int64_t taken = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t ticket = 0; ticket < tasks; ticket++) {
        const int64_t task = next_task(ticket, tasks, &taken);
        part.first_panel = part_start(all, task % o->parts, o->parts);
        part.last_panel = part_start(all, task % o->parts + 1, o->parts);
        sum_slice(&part, task / o->parts, x, dy, zeros, v, d, du);
    }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < all * o->len; task++) {
        const int64_t panel = task / o->len, l = task % o->len, strip = part_holding(o->len, l, o->strips);
        const float *from = du + (panel * o->strips + strip) * strip_floats(o);
        from += (l - part_start(o->len, strip, o->strips)) * panel_width(o->p.columns, panel);
        store_gradient(o, panel, l, l + 1, from, dw);
    }
}

/* The same chunk by chunk, of which all threads make a part of du. */
static void sum_by_chunks(const winograd_outer *o, float *dw, const float *x, const float *dy, const float *zeros,
                          float *v, float *d, float *du)
{
    const winograd *p = &o->p;
    const int64_t tasks = panels(p->columns) * o->strips;
    for (int64_t chunk = 0; chunk < o->chunks; chunk++) {
        const int64_t first = part_start(p->patches, chunk, o->chunks), end = part_start(p->patches, chunk + 1, o->chunks);
        transform_shared(o, first, end, x, dy, zeros, v, d);
        int64_t taken = 0;
#pragma omp for schedule(dynamic, 1)
        for (int64_t ticket = 0; ticket < tasks; ticket++) {
            const int64_t task = next_task(ticket, tasks, &taken), panel = task / o->strips;
            const int64_t l0 = part_start(o->len, task % o->strips, o->strips);
            const int64_t l1 = part_start(o->len, task % o->strips + 1, o->strips);
            float *strip = du + (o->chunks == 1 ? omp_get_thread_num() : task) * strip_floats(o);
            sum_patches(o, panel, l0, l1, end - first, chunk > 0, v, d, strip);
            if (chunk == o->chunks - 1)
                store_gradient(o, panel, l0, l1, strip, dw);
        }
    }
}

/* dw, x, dy */
static void winograd_conv2d_backward_weights(const void *desc, void *const *args)
{
    const winograd_outer o = winograd_weights_cut(desc);
    const int64_t most = MAX(o.p.channels, o.p.columns);
    float *zeros = args[3], *v = zeros + line_floats(most);
#pragma omp single
    memset(zeros, 0, sizeof(float) * (size_t)most);
    if (o.slices > 0) {
        float *own = own_part(v, chunk_floats(&o)), *du = v + own_floats(omp_get_num_threads(), chunk_floats(&o));
        sum_by_slices(&o, args[0], args[1], args[2], zeros, own, own + PLACES * o.v_step, du);
    } else
        sum_by_chunks(&o, args[0], args[1], args[2], zeros, v, v + PLACES * o.v_step, v + chunk_floats(&o));
}

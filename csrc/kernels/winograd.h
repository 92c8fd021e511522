/* Convolution of stride 1 by Winograd's F(4x4, 3x3): 36 multiplications where the direct sum takes 144 (Lavin and
 * Gray 2016, "Fast algorithms for convolutional neural networks", equation 12).
 *
 *     y[4x4] = A^T [ (G g G^T) * (B^T x[6x6] B) ] A        for each patch of 4x4 outputs, summed over channels
 *
 * A larger kernel is cut into segments of 3x3 taps, the last ones filled up with zeros. What a segment contributes is
 * a 3x3 convolution of the image seen from 3 pixels further on, so that its channels are just more channels to sum
 * over (Huang et al. 2020, "DWM: a decomposable Winograd method", section 3). A dilated convolution is a plain one on
 * every d-th pixel: the outputs of a patch, and the pixels of its window, lie d apart.
 *
 * After the transforms, each of the 36 places `e` of a patch is a matrix product of its own:
 *
 *     m[e][patch][column] = sum over l: v[e][patch][l] * u[e][l][column]
 *
 * Of v and u the larger one is made where it is used and stays in L2; the other lies in shared memory.
 *
 *     as many patches as columns, or more:             fewer:
 *         u of all weights              shared             v of all patches                   shared
 *         for each block of patches:    among threads      for each panel, part of patches:   among threads
 *             v of the block                                   for each chunk of l:
 *             for each panel of columns:                           u of the panel's chunk
 *                 for each e: m = v u                              for each e: m += v u
 *                 outputs                                      outputs
 *
 * To the first of the two, and to the gradient of the weights, images may come in contiguous planes: their pixels are
 * brought together where v is made, instead of in a pass of their own through memory.
 *
 * Weights that stay the same from call to call may come as u to the first of the two; for the second, reading u, four
 * times as large as w, would take longer than making it.
 *
 * The transforms interpolate at 0, +-sqrt(1/2), +-sqrt(2) and infinity: reciprocal points keep the entries of
 * A, B and G small, and the error at a third of what 0, +-1, +-2 give (Barabasz et al. 2020, section 5).
 *
 * Backward-data is the convolution of dy with the flipped filters, channels and filters exchanged. Each output
 * is made by one task, in an order of shapes alone. */

enum { PATCH = 4, WINDOW = 6, PLACES = WINDOW * WINDOW, SEGMENT = 3, SEGMENT_TAPS = SEGMENT * SEGMENT };
enum { LEAST_TASKS = 8 };

static const float POINT_A = 0.70710678118654752f, POINT_B = 1.4142135623730951f;      /* a * a = 1/2, b * b = 2 */
static const float CUBE_A = 0.35355339059327376f, CUBE_B = 2.8284271247461903f;
static const float NORM_A = -2.f / 3, NORM_B = 1.f / 6;

/* o = B^T d: a window of the input. */
INLINE void input_transform(const vec d[WINDOW], vec o[WINDOW])
{
    const vec even_a = d[4] - 2 * d[2], odd_a = d[3] - 2 * d[1];
    const vec even_b = d[4] - 0.5f * d[2], odd_b = d[3] - 0.5f * d[1];
    o[0] = d[0] + (d[4] - 2.5f * d[2]);
    o[1] = even_a + POINT_A * odd_a;
    o[2] = even_a - POINT_A * odd_a;
    o[3] = even_b + POINT_B * odd_b;
    o[4] = even_b - POINT_B * odd_b;
    o[5] = d[1] + (d[5] - 2.5f * d[3]);
}

/* o = A^T m: products to outputs. */
INLINE void output_transform(const vec m[WINDOW], vec o[PATCH])
{
    const vec even_a = m[1] + m[2], odd_a = m[1] - m[2], even_b = m[3] + m[4], odd_b = m[3] - m[4];
    o[0] = m[0] + even_a + even_b;
    o[1] = POINT_A * odd_a + POINT_B * odd_b;
    o[2] = 0.5f * even_a + 2 * even_b;
    o[3] = m[5] + CUBE_A * odd_a + CUBE_B * odd_b;
}

/* o = G g: a filter. */
INLINE void filter_transform(const vec g[3], vec o[WINDOW])
{
    const vec even_a = NORM_A * (g[0] + 0.5f * g[2]), odd_a = (NORM_A * POINT_A) * g[1];
    const vec even_b = NORM_B * (g[0] + 2 * g[2]), odd_b = (NORM_B * POINT_B) * g[1];
    o[0] = g[0];
    o[1] = even_a + odd_a;
    o[2] = even_a - odd_a;
    o[3] = even_b + odd_b;
    o[4] = even_b - odd_b;
    o[5] = g[2];
}

/* Images and weights as one product sees them: forward, or backward-data with the roles exchanged. */
typedef struct {
    int64_t images, channels, columns;       /* channels read, channels made */
    int64_t in_h, in_w, out_h, out_w, top, left, apart_h, apart_w;
    int64_t kernel_h, kernel_w, segments, segments_across;
    int64_t w_tap, w_l, w_column, flipped;
    int64_t down, across, patches;           /* of every apart-th pixel of an image; in all */
    int64_t prepacked;                       /* whether u comes as pack_winograd leaves it */
    const float *packed;
    pycnn_epilogue epilogue;
    moments moments;                         /* of the columns, a slice for each part of the patches; or of no slices */
    int64_t from_planes, planes;             /* whether images come in, and outputs go to, contiguous planes */
} winograd;

static winograd cut(winograd p, const pycnn_conv2d *d)
{
    p.images = d->n, p.w_tap = d->w_tap, p.kernel_h = d->r, p.kernel_w = d->s;
    p.segments_across = ceil_div(d->s, SEGMENT), p.segments = ceil_div(d->r, SEGMENT) * p.segments_across;
    p.apart_h = d->dilation_h, p.apart_w = d->dilation_w, p.from_planes = d->from_planes, p.planes = d->planes;
    p.down = ceil_div(ceil_div(p.out_h, p.apart_h), PATCH), p.across = ceil_div(ceil_div(p.out_w, p.apart_w), PATCH);
    p.patches = p.images * p.apart_h * p.apart_w * p.down * p.across;
    return p;
}

static winograd winograd_forward(const pycnn_conv2d *d)
{
    return cut((winograd){
        .channels = d->c, .columns = d->k, .in_h = d->h, .in_w = d->w, .out_h = d->oh, .out_w = d->ow,
        .top = d->pad_top, .left = d->pad_left, .w_l = d->w_c, .w_column = d->w_k, .prepacked = d->prepacked,
        .epilogue = d->epilogue,
    }, d);
}

static winograd winograd_reversed(const pycnn_conv2d *d)
{
    return cut((winograd){
        .channels = d->k, .columns = d->c, .in_h = d->oh, .in_w = d->ow, .out_h = d->h, .out_w = d->w,
        .top = (d->r - 1) * d->dilation_h - d->pad_top, .left = (d->s - 1) * d->dilation_w - d->pad_left,
        .w_l = d->w_k, .w_column = d->w_c, .flipped = 1,
    }, d);
}

/* The l that are summed over: of each segment the channels in whole vectors, those beyond the last being zeros. */
INLINE int64_t segment_len(const winograd *p) { return round_up(p->channels, VL); }
INLINE int64_t winograd_len(const winograd *p) { return p->segments * segment_len(p); }
/* The distance of two places: an odd number of cache lines, for a patch's 36 places a power of two apart would share
 * one set of a cache. */
INLINE int64_t place_step(int64_t floats) { return (ceil_div(floats, 16) | 1) * 16; }
INLINE int64_t panel_width(int64_t columns, int64_t panel) { return panel_vectors(columns, panel) * VL; }
INLINE int64_t widest_panel(const winograd *p) { return panel_width(p->columns, 0); }

/* ---- v, of a range of patches in groups of rows: [e][group][l / VL][row][VL] */

typedef struct { int64_t first, patches, groups; } patch_range;

static patch_range patch_part(const winograd *p, int64_t part, int64_t parts)
{
    patch_range r = { .first = part_start(p->patches, part, parts) };
    r.patches = part_start(p->patches, part + 1, parts) - r.first;
    r.groups = ceil_div(r.patches, tile_rows(p->columns));
    return r;
}
INLINE int64_t group_start(const patch_range *r, int64_t g) { return part_start(r->patches, g, r->groups); }
INLINE int64_t group_rows(const patch_range *r, int64_t g) { return group_start(r, g + 1) - group_start(r, g); }

/* The place of a patch in its images: its first row and column of outputs. */
typedef struct { int64_t n, row, column; } patch_place;

INLINE patch_place find_patch(const winograd *p, int64_t patch)
{
    const int64_t line = patch / p->across, i = line % p->down, j = patch % p->across, phase = line / p->down;
    const int64_t phase_h = phase / p->apart_w % p->apart_h, phase_w = phase % p->apart_w;
    return (patch_place){ phase / p->apart_w / p->apart_h, i * PATCH * p->apart_h + phase_h,
                          j * PATCH * p->apart_w + phase_w };
}

/* Where the pixels of a patch's window lie, as a segment sees it; padding is read from `zeros`. */
static void find_window(const winograd *p, const float *in, const patch_place *at, int64_t segment, const float *zeros,
                        const float *window[PLACES])
{
    const int64_t row = at->row - p->top + segment / p->segments_across * SEGMENT * p->apart_h;
    const int64_t column = at->column - p->left + segment % p->segments_across * SEGMENT * p->apart_w;
    for (int64_t i = 0; i < WINDOW; i++)
        for (int64_t j = 0; j < WINDOW; j++) {
            const int64_t h = row + i * p->apart_h, w = column + j * p->apart_w;
            window[i * WINDOW + j] = inside(h, p->in_h) && inside(w, p->in_w)
                ? in + ((at->n * p->in_h + h) * p->in_w + w) * p->channels : zeros;
        }
}

/* B^T d B of n channels from l on, to v, v + step, ... */
INLINE void transform_window(const float *const pixel[PLACES], int64_t l, int64_t n, float *v, int64_t step)
{
    vec half[WINDOW][WINDOW];
    UNROLL for (int j = 0; j < WINDOW; j++) {
        vec d[WINDOW], o[WINDOW];
        UNROLL for (int i = 0; i < WINDOW; i++)
            d[i] = load_n(pixel[i * WINDOW + j] + l, n);
        input_transform(d, o);
        UNROLL for (int i = 0; i < WINDOW; i++)
            half[i][j] = o[i];
    }
    UNROLL for (int i = 0; i < WINDOW; i++) {
        vec o[WINDOW];
        input_transform(half[i], o);
        UNROLL for (int j = 0; j < WINDOW; j++)
            store(v + (i * WINDOW + j) * step, o[j]);
    }
}

/* All channels of a window, those of vector i to v + i * vector_step. */
static void transform_channels(const float *const pixel[PLACES], int64_t channels, float *v, int64_t vector_step,
                               int64_t step)
{
    const int64_t full = channels / VL * VL;
    for (int64_t l = 0; l < full; l += VL, v += vector_step)
        transform_window(pixel, l, VL, v, step);
    if (full < channels)
        transform_window(pixel, full, channels - full, v, step);
}

static void transform_patch(const winograd *p, const float *in, const float *zeros, const patch_range *r, int64_t g,
                            int64_t row, float *v)
{
    const float *window[PLACES];
    const int64_t start = group_start(r, g), rows = group_rows(r, g), len = winograd_len(p);
    const patch_place at = find_patch(p, r->first + start + row);
    v += start * len + row * VL;
    for (int64_t segment = 0; segment < p->segments; segment++, v += segment_len(p) * rows) {
        find_window(p, in, &at, segment, zeros, window);
        transform_channels(window, p->channels, v, rows * VL, place_step(r->patches * len));
    }
}

/* Where images come in planes, undilated: a vector of channels is brought to pixels for a box of neighbouring patches,
 * [row][column][VL] with padding in its place, which stays in a near cache. */

enum { BOX_PIXELS = 1024, BOX_PATCHES = BOX_PIXELS / (PATCH * PATCH) };

/* down x across patches of one image, from number `first` on. */
typedef struct { int64_t first, down, across; } patch_box;

INLINE int64_t box_side(int64_t patches) { return patches * PATCH + WINDOW - PATCH; }

/* The first box of `count` patches: some whole lines of an image, or a part of one. */
static patch_box next_box(const winograd *p, int64_t first, int64_t count)
{
    const int64_t column = first % p->across, row = first / p->across % p->down;
    const int64_t lines = (BOX_PIXELS / box_side(p->across) - (WINDOW - PATCH)) / PATCH;
    if (column == 0 && count >= p->across && lines > 0)
        return (patch_box){ first, MIN(MIN(lines, count / p->across), p->down - row), p->across };
    const int64_t most = (BOX_PIXELS / WINDOW - (WINDOW - PATCH)) / PATCH;
    return (patch_box){ first, 1, MIN(most, MIN(count, p->across - column)) };
}

/* to[i][j][lane] = row + i, column + j of each of n planes; what lies outside of them is left as it is. */
static void fill_box(const float *planes, int64_t height, int64_t width, int64_t n, int64_t row, int64_t column,
                     int64_t rows, int64_t columns, float *to)
{
    const int64_t left = MAX(0, -column), right = MIN(columns, width - column);
    for (int64_t i = MAX(0, -row); i < MIN(rows, height - row) && left < right; i++)
        transpose_matrix(planes + (row + i) * width + column + left, height * width, to + (i * columns + left) * VL, VL,
                         MIN(n, VL), right - left);
}

/* Where the side x side pixels of patch q of a box lie. */
INLINE void find_box_pixels(const float *pixels, int64_t columns, const patch_box *box, int64_t q, const int64_t side,
                            const float **pixel)
{
    const float *first = pixels + (q / box->across * columns + q % box->across) * PATCH * VL;
    UNROLL for (int64_t i = 0; i < side; i++)
        UNROLL for (int64_t j = 0; j < side; j++)
            pixel[i * side + j] = first + (i * columns + j) * VL;
}

/* Where a patch's transform goes: a vector of channels, and how far behind it the next. */
typedef struct { float *at; int64_t vector_step; } patch_target;

/* Channels l0..l1 of the windows of a box to v, whose places are `step` floats apart. */
static void transform_box(const winograd *p, const float *in, const patch_box *box, int64_t l0, int64_t l1,
                          const patch_target *v, int64_t step)
{
    const patch_place at = find_patch(p, box->first);
    const int64_t rows = box_side(box->down), columns = box_side(box->across), plane = p->in_h * p->in_w;
    float pixels[BOX_PIXELS * VL];
    for (int64_t segment = 0; segment < p->segments; segment++) {
        const int64_t row = at.row - p->top + segment / p->segments_across * SEGMENT;
        const int64_t column = at.column - p->left + segment % p->segments_across * SEGMENT;
        for (int64_t l = l0; l < l1; l += VL) {
            if (l == l0 || p->channels - l < VL)
                clear_floats(pixels, rows * columns * VL);
            fill_box(in + (at.n * p->channels + l) * plane, p->in_h, p->in_w, p->channels - l, row, column, rows, columns,
                     pixels);
            for (int64_t i = 0; i < box->down * box->across; i++) {
                const float *pixel[PLACES];
                find_box_pixels(pixels, columns, box, i, WINDOW, pixel);
                transform_window(pixel, 0, VL, v[i].at + (segment * segment_len(p) + l) / VL * v[i].vector_step, step);
            }
        }
    }
}

/* v of a range, from planes. */
static void transform_planes(const winograd *p, const float *in, const patch_range *r, float *v)
{
    const int64_t len = winograd_len(p);
    patch_target to[BOX_PATCHES];
    patch_box box;
    for (int64_t i = 0; i < r->patches; i += box.down * box.across) {
        box = next_box(p, r->first + i, r->patches - i);
        for (int64_t q = 0; q < box.down * box.across; q++) {
            const int64_t g = part_holding(r->patches, i + q, r->groups), start = group_start(r, g);
            to[q] = (patch_target){ v + start * len + (i + q - start) * VL, group_rows(r, g) * VL };
        }
        transform_box(p, in, &box, 0, p->channels, to, place_step(r->patches * len));
    }
}

/* ---- u, weights in panels of columns: [e][l][vectors] */

enum { GATHERED = 16, FILTER_FLOATS = GATHERED * SEGMENT_TAPS * PANEL };

/* Which taps of a filter a segment has: `runs` of n taps next to each other, the first from `tap` of the filter and
 * `place` of the segment on. The segments of a flipped filter begin at its end, and are flipped later. */
typedef struct { int64_t runs, n, tap, place; } segment_taps;

static segment_taps find_taps(const winograd *p, int64_t segment)
{
    const int64_t i = segment / p->segments_across * SEGMENT, j = segment % p->segments_across * SEGMENT;
    const int64_t top = p->flipped ? p->kernel_h - SEGMENT - i : i, left = p->flipped ? p->kernel_w - SEGMENT - j : j;
    const int64_t r = MAX(top, 0), s = MAX(left, 0);
    segment_taps t = { .runs = MIN(top + SEGMENT, p->kernel_h) - r, .n = MIN(left + SEGMENT, p->kernel_w) - s,
                       .tap = r * p->kernel_w + s, .place = (r - top) * SEGMENT + s - left };
    if (p->kernel_w == SEGMENT) /* then its rows are next to each other as well */
        t.n *= t.runs, t.runs = 1;
    return t;
}

/* Brings n taps of `len` filters of a panel to [l][tap][PANEL]. One of the strides is 1, and blocks are transposed
 * along it. */
static void gather_taps(const winograd *p, const float *w, int64_t n, int64_t len, int64_t columns, float *to)
{
    if (p->w_column == 1)
        for (int64_t l = 0; l < len; l++)
            for (int64_t t = 0; t < n; t++)
                for (int64_t j = 0; j < columns; j += VL)
                    store_n(to + (l * SEGMENT_TAPS + t) * PANEL + j,
                            load_n(w + l * p->w_l + t * p->w_tap + j, columns - j), columns - j);
    else if (p->w_tap == 1 && n == SEGMENT_TAPS && p->w_l == n) /* the channels of a filter are as one */
        transpose_matrix(w, p->w_column, to, PANEL, columns, len * n);
    else if (p->w_tap == 1)
        for (int64_t l = 0; l < len; l++)
            transpose_matrix(w + l * p->w_l, p->w_column, to + l * SEGMENT_TAPS * PANEL, PANEL, columns, n);
    else
        for (int64_t t = 0; t < n; t++)
            transpose_matrix(w + t * p->w_tap, p->w_column, to + t * PANEL, SEGMENT_TAPS * PANEL, columns, len);
}

/* A segment of `len` filters: columns beyond the last, and taps that the filter does not have, are zeros. */
static void gather_segment(const winograd *p, const float *w, int64_t segment, int64_t len, int64_t columns, float *to)
{
    segment_taps t = find_taps(p, segment);
    if (columns < PANEL || t.runs * t.n < SEGMENT_TAPS)
        memset(to, 0, sizeof(float) * FILTER_FLOATS);
    for (; t.runs > 0; t.runs--, t.tap += p->kernel_w, t.place += SEGMENT)
        gather_taps(p, w + t.tap * p->w_tap, t.n, len, columns, to + t.place * PANEL);
}

/* G g G^T of one vector of columns, to u, u + step, ... */
INLINE void transform_filter(const float *g, int64_t flipped, float *u, int64_t step)
{
    vec half[WINDOW][SEGMENT];
    UNROLL for (int s = 0; s < SEGMENT; s++) {
        vec column[SEGMENT], o[WINDOW];
        UNROLL for (int r = 0; r < SEGMENT; r++)
            column[r] = load(g + (flipped ? SEGMENT_TAPS - 1 - r * SEGMENT - s : r * SEGMENT + s) * PANEL);
        filter_transform(column, o);
        UNROLL for (int i = 0; i < WINDOW; i++)
            half[i][s] = o[i];
    }
    UNROLL for (int i = 0; i < WINDOW; i++) {
        vec o[WINDOW];
        filter_transform(half[i], o);
        UNROLL for (int j = 0; j < WINDOW; j++)
            store(u + (i * WINDOW + j) * step, o[j]);
    }
}

/* u of l0..l1 of a panel; places are `step` floats apart. */
static void transform_filters(const winograd *p, const float *w, int64_t panel, int64_t l0, int64_t l1, float *u,
                              int64_t step)
{
    const int64_t width = panel_width(p->columns, panel), columns = MIN(PANEL, p->columns - panel * PANEL);
    float gathered[FILTER_FLOATS];
    while (l0 < l1) {
        const int64_t segment = l0 / segment_len(p), channel = l0 % segment_len(p);
        const int64_t padded = MIN(MIN(l1 - l0, GATHERED), segment_len(p) - channel);
        const int64_t len = MIN(padded, p->channels - channel);
        gather_segment(p, w + panel * PANEL * p->w_column + channel * p->w_l, segment, len, columns, gathered);
        if (len < padded)
            memset(gathered + len * SEGMENT_TAPS * PANEL, 0, sizeof(float) * (size_t)((padded - len) * SEGMENT_TAPS * PANEL));
        for (const float *g = gathered; g < gathered + padded * SEGMENT_TAPS * PANEL; g += SEGMENT_TAPS * PANEL)
            for (int64_t j = 0; j < width; j += VL, u += VL)
                transform_filter(g + j, p->flipped, u, step);
        l0 += padded;
    }
}

/* ---- m = v u, or m += v u, of one place and group: [row][vectors] */

/* What is fetched meanwhile: a line with every l. */
typedef struct { uintptr_t at; int64_t step; } fetched; /* a number: it may lie outside of the array */

INLINE void place_product(const int rows, const int vectors, int64_t len, const float *v, const float *u, float *m,
                          int64_t add, fetched next)
{
    vec acc[TALL_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    for (; len > 0; len -= VL, v += (rows - 1) * VL)
        for (int64_t l = 0; l < VL; l++, v++, u += vectors * VL, next.at += (uintptr_t)next.step) {
            vec b[TILE_VECTORS];
            __builtin_prefetch((const void *)next.at, 0, 2);
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(u + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(v[i * VL]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++) {
            float *to = m + (i * vectors + j) * VL;
            store(to, add ? load(to) + acc[i][j] : acc[i][j]);
        }
}

TILE_TABLE(place, place_product, (int64_t len, const float *v, const float *u, float *m, int64_t add, fetched next),
           (len, v, u, m, add, next))

/* From a place's products, [patch][width], to the next one's. */
INLINE int64_t products_step(const winograd *p, const patch_range *r)
{
    return place_step(r->patches * widest_panel(p));
}

/* All places of a range of patches, for l0..l1 of one panel whose rows of u begin at l0: m is [e][patch][width]. */
static void multiply_places(const winograd *p, const patch_range *r, int64_t panel, int64_t l0, int64_t l1,
                            const float *v, const float *u, int64_t u_step, float *m)
{
    const int64_t len = winograd_len(p), v_step = place_step(r->patches * len), m_step = products_step(p, r);
    const int64_t width = panel_width(p->columns, panel), share = (l1 - l0) * width / r->groups;
    for (int64_t e = 0; e < PLACES; e++, v += v_step, u += u_step, m += m_step)
        for (int64_t g = 0; g < r->groups; g++) {
            const int64_t start = group_start(r, g), rows = group_rows(r, g);
            const fetched next = { (uintptr_t)u + (uintptr_t)(u_step + g * share) * sizeof(float),
                                   share / (l1 - l0) * (int64_t)sizeof(float) };
            place_functions[width / VL - 1][rows - 1](l1 - l0, v + start * len + l0 * rows, u, m + start * width, l0 > 0,
                                                      next);
        }
}

/* ---- outputs */

/* A^T m A of one vector of columns, n of them, to the rows x columns outputs of a patch. */
INLINE void transform_outputs(const float *m, int64_t step, vec bias, pycnn_epilogue epilogue, float *out,
                              int64_t row_step, int64_t pixel_step, int64_t rows, int64_t columns, int64_t n)
{
    vec half[PATCH][WINDOW];
    UNROLL for (int j = 0; j < WINDOW; j++) {
        vec column[WINDOW], o[PATCH];
        UNROLL for (int i = 0; i < WINDOW; i++)
            column[i] = load(m + (i * WINDOW + j) * step);
        output_transform(column, o);
        UNROLL for (int i = 0; i < PATCH; i++)
            half[i][j] = o[i];
    }
    UNROLL for (int i = 0; i < PATCH; i++) {
        vec o[PATCH];
        if (i >= rows)
            return;
        output_transform(half[i], o);
        UNROLL for (int j = 0; j < PATCH; j++)
            if (j < columns) {
                const vec y = o[j] + bias;
                store_n(out + i * row_step + j * pixel_step, epilogue.rectifies ? rectify(y, epilogue.slope) : y, n);
            }
    }
}

/* Where a patch's outputs lie, of one panel. */
typedef struct { int64_t rows, columns, row_step, pixel_step; float *out; } patch_outputs;

static patch_outputs find_outputs(const winograd *p, int64_t patch, float *out)
{
    const patch_place at = find_patch(p, patch);
    const int64_t pixel = p->planes ? 1 : p->columns, plane = p->out_h * p->out_w;
    patch_outputs o = { .row_step = p->apart_h * p->out_w * pixel, .pixel_step = p->apart_w * pixel };
    if (at.row >= p->out_h || at.column >= p->out_w) /* of a phase with fewer pixels than others */
        return o;
    o.rows = MIN(PATCH, ceil_div(p->out_h - at.row, p->apart_h));
    o.columns = MIN(PATCH, ceil_div(p->out_w - at.column, p->apart_w));
    o.out = out + at.n * plane * p->columns + (at.row * p->out_w + at.column) * pixel;
    return o;
}

static void store_patches(const winograd *p, const patch_range *r, int64_t panel, const float *m, float *out,
                          const float *bias)
{
    const int64_t width = panel_width(p->columns, panel), first = panel * PANEL;
    for (int64_t i = 0; i < r->patches; i++) {
        const patch_outputs o = find_outputs(p, r->first + i, out + first);
        for (int64_t j = 0; j < width && o.rows > 0; j += VL) {
            const int64_t n = p->columns - first - j;
            const vec shift = bias ? load_n(bias + first + j, n) : splat(0);
            transform_outputs(m + i * width + j, products_step(p, r), shift, p->epilogue, o.out + j, o.row_step,
                              o.pixel_step, o.rows, o.columns, n);
        }
    }
}

enum { RUN_PATCHES = 4, RUN_PIXELS = RUN_PATCHES * PATCH };

/* One vector of columns, n of them, of neighbouring patches to as many planes; a row has so many pixels. */
INLINE void store_run(const float *outputs, const patch_outputs *o, int64_t pixels, int64_t plane, int64_t n)
{
    float *to = o->out;
    for (int64_t i = 0; i < o->rows; i++, outputs += RUN_PIXELS * VL, to += o->row_step) {
        if (o->pixel_step == 1)
            for (int64_t l = 0; l < MIN(VL, n); l += SQUARE)
                transpose_matrix(outputs + l, VL, to + l * plane, plane, pixels, MIN(SQUARE, n - l));
        else
            for (int64_t j = 0; j < pixels; j++)
                for (int64_t l = 0; l < MIN(VL, n); l++)
                    to[l * plane + j * o->pixel_step] = outputs[j * VL + l];
    }
}

/* A vector of columns of all patches before the next one: a cache line of a plane holds outputs of several patches. */
static void store_patches_to_planes(const winograd *p, const patch_range *r, int64_t panel, const float *m, float *out,
                                    const float *bias)
{
    const int64_t width = panel_width(p->columns, panel), plane = p->out_h * p->out_w;
    for (int64_t j = 0; j < width; j += VL) {
        const int64_t column = panel * PANEL + j, n = p->columns - column;
        const vec shift = bias ? load_n(bias + column, n) : splat(0);
        for (int64_t i = 0, run; i < r->patches; i += run) {
            const int64_t first = r->first + i, left_in_line = p->across - first % p->across;
            run = MIN(RUN_PATCHES, MIN(r->patches - i, left_in_line));
            const patch_outputs o = find_outputs(p, first, out + column * plane);
            const patch_outputs last = find_outputs(p, first + run - 1, out + column * plane);
            float outputs[PATCH * RUN_PIXELS * VL];
            for (int64_t q = 0; q < run; q++)
                transform_outputs(m + (i + q) * width + j, products_step(p, r), shift, p->epilogue,
                                  outputs + q * PATCH * VL, RUN_PIXELS * VL, VL, o.rows, PATCH, VL);
            store_run(outputs, &o, (run - 1) * PATCH + last.columns, plane, n);
        }
    }
}

INLINE void measure_patches(const winograd *p, const patch_range *r, int64_t part, int64_t panel, float *out,
                            const int vectors)
{
    const int64_t first = panel * PANEL, channels = p->columns - first;
    moment_sums s = { 0 };
    int64_t pixels = 0;
    for (int64_t i = 0; i < r->patches; i++) {
        const patch_outputs o = find_outputs(p, r->first + i, out + first);
        if (pixels == 0 && o.rows > 0)
            s = sums_from(o.out, channels, vectors);
        for (int64_t v = 0; v < o.rows; v++)
            for (int64_t h = 0; h < o.columns; h++)
                add_pixel(&s, o.out + v * o.row_step + h * o.pixel_step, channels, vectors);
        pixels += o.rows * o.columns;
    }
    keep_sums(&p->moments, part, first, &s, pixels, channels, vectors);
}

/* What becomes of the products of a part of the patches. */
static void finish_patches(const winograd *p, const patch_range *r, int64_t part, int64_t panel, const float *m,
                           float *out, const float *bias)
{
    (p->planes ? store_patches_to_planes : store_patches)(p, r, panel, m, out, bias);
    if (p->moments.slices > 0)
        BY_VECTORS(panel_vectors(p->columns, panel), measure_patches, p, r, part, panel, out);
}

/* ---- the two loop nests */

/* The parts of a workspace, in floats: the zeros, the shared u or v, a thread's own v or u, a thread's m. */
typedef struct { int64_t parts, chunk, zeros, shared, own, m; } winograd_space;

INLINE int keeps_weights(const winograd *p) { return p->patches >= p->columns; }
INLINE int64_t panel_floats_u(const winograd *p) { return PLACES * place_step(winograd_len(p) * PANEL); }
INLINE int64_t all_floats_u(const winograd *p) { return panels(p->columns) * panel_floats_u(p); }

static winograd_space winograd_layout(const winograd *p)
{
    const int64_t len = winograd_len(p), all = panels(p->columns);
    winograd_space s = { .zeros = line_floats(p->channels) };
    if (keeps_weights(p)) { /* blocks of whole groups */
        const int64_t rows = tile_rows(p->columns);
        const int64_t groups = MAX(1, CACHE_FLOATS / (PLACES * (len + widest_panel(p)) * rows));
        s.parts = MAX(ceil_div(p->patches, groups * rows), MIN(LEAST_TASKS, ceil_div(p->patches, 2 * rows)));
        s.parts += s.parts > 1 && s.parts % 2; /* two threads have as much to do */
        s.chunk = len;
        s.shared = p->prepacked ? 0 : all_floats_u(p);
        s.own = PLACES * place_step(ceil_div(p->patches, s.parts) * len);
    } else {
        s.parts = MIN(p->patches, ceil_div(LEAST_TASKS, all));
        s.chunk = MIN(len, MAX(1, CACHE_FLOATS / (PLACES * PANEL * GATHERED)) * GATHERED);
        s.shared = s.parts * PLACES * place_step(ceil_div(p->patches, s.parts) * len);
        s.own = PLACES * place_step(s.chunk * PANEL);
    }
    s.m = PLACES * place_step(ceil_div(p->patches, s.parts) * widest_panel(p));
    return s;
}

static int64_t winograd_floats(const winograd *p, int64_t threads)
{
    const winograd_space s = winograd_layout(p);
    return s.zeros + s.shared + own_floats(threads, s.own + s.m);
}

static void pack_winograd(const winograd *p, const float *w, float *u)
{
    const int64_t len = winograd_len(p), strips = ceil_div(len, GATHERED);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < panels(p->columns) * strips; task++) {
        const int64_t panel = task / strips, l0 = task % strips * GATHERED, width = panel_width(p->columns, panel);
        transform_filters(p, w, panel, l0, MIN(len, l0 + GATHERED), u + panel * panel_floats_u(p) + l0 * width,
                          place_step(len * PANEL));
    }
}

static void winograd_blocks(const winograd *p, const winograd_space *s, float *out, const float *in, const float *bias,
                            const float *zeros, const float *u, float *v, float *m)
{
    const int64_t len = winograd_len(p), all = panels(p->columns);
    const int64_t u_step = place_step(len * PANEL);
    int64_t taken = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t ticket = 0; ticket < s->parts; ticket++) {
        const int64_t block = next_task(ticket, s->parts, &taken);
        const patch_range r = patch_part(p, block, s->parts);
        if (p->from_planes)
            transform_planes(p, in, &r, v);
        else
            for (int64_t g = 0; g < r.groups; g++)
                for (int64_t row = 0; row < group_rows(&r, g); row++)
                    transform_patch(p, in, zeros, &r, g, row, v);
        for (int64_t panel = 0; panel < all; panel++) {
            multiply_places(p, &r, panel, 0, len, v, u + PLACES * panel * u_step, u_step, m);
            finish_patches(p, &r, block, panel, m, out, bias);
        }
    }
}

static void winograd_panels(const winograd *p, const winograd_space *s, float *out, const float *in, const float *w,
                            const float *bias, const float *zeros, float *u, float *v, float *m)
{
    const int64_t len = winograd_len(p), all = panels(p->columns);
    const int64_t u_step = place_step(s->chunk * PANEL);
    const int64_t v_part = PLACES * place_step(ceil_div(p->patches, s->parts) * len);
#pragma omp for schedule(static)
    for (int64_t patch = 0; patch < p->patches; patch++) {
        const int64_t part = part_holding(p->patches, patch, s->parts);
        const patch_range r = patch_part(p, part, s->parts);
        const int64_t g = part_holding(r.patches, patch - r.first, r.groups);
        transform_patch(p, in, zeros, &r, g, patch - r.first - group_start(&r, g), v + part * v_part);
    }
    int64_t taken = 0;
#pragma omp for schedule(dynamic, 1)
    for (int64_t ticket = 0; ticket < all * s->parts; ticket++) {
        const int64_t task = next_task(ticket, all * s->parts, &taken);
        const int64_t panel = task / s->parts, part = task % s->parts;
        const patch_range r = patch_part(p, part, s->parts);
        for (int64_t l0 = 0; l0 < len; l0 += s->chunk) {
            const int64_t l1 = MIN(len, l0 + s->chunk);
            transform_filters(p, w, panel, l0, l1, u, u_step);
            multiply_places(p, &r, panel, l0, l1, v + part * v_part, u, u_step, m);
        }
        finish_patches(p, &r, part, panel, m, out, bias);
    }
}

static void run_winograd(const winograd *p, float *out, const float *in, const float *w, const float *bias,
                         float *workspace)
{
    const winograd_space s = winograd_layout(p);
    float *zeros = workspace, *shared = zeros + s.zeros, *own = own_part(shared + s.shared, s.own + s.m);
    float *m = own + s.own;
#pragma omp single
    memset(zeros, 0, sizeof(float) * (size_t)p->channels);
    if (keeps_weights(p)) {
        if (!p->prepacked)
            pack_winograd(p, w, shared);
        winograd_blocks(p, &s, out, in, bias, zeros, p->prepacked ? p->packed : shared, own, m);
    } else
        winograd_panels(p, &s, out, in, w, bias, zeros, own, shared, m);
}

static int64_t pack_winograd_conv2d_workspace(const void *desc, int64_t threads)
{
    const winograd p = winograd_forward(desc);
    (void)threads;
    return all_floats_u(&p) * (int64_t)sizeof(float);
}

/* w, u */
static void pack_winograd_conv2d(const void *desc, void *const *args)
{
    const winograd p = winograd_forward(desc);
    pack_winograd(&p, args[0], args[1]);
}

static int64_t winograd_slices(const pycnn_conv2d *d)
{
    const winograd p = winograd_forward(d);
    return d->measures ? winograd_layout(&p).parts : 0;
}

static int64_t winograd_conv2d_workspace(const void *desc, int64_t threads)
{
    const pycnn_conv2d *d = desc;
    const winograd p = winograd_forward(d);
    return (moments_floats(winograd_slices(d), d->k) + winograd_floats(&p, threads)) * (int64_t)sizeof(float);
}

/* y, mean, variance (both of y, or NULL), x, w, bias or NULL, u or NULL */
static void winograd_conv2d(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    const int64_t slices = winograd_slices(d);
    float *workspace = args[7];
    winograd p = winograd_forward(d);
    p.packed = args[6];
    p.moments = moments_at(workspace, slices, d->k);
    run_winograd(&p, args[0], args[3], args[4], args[5], workspace + moments_floats(slices, d->k));
    if (d->measures)
        merge_moments(&p.moments, args[1], args[2]);
}

static int64_t winograd_conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const winograd p = winograd_reversed(desc);
    return winograd_floats(&p, threads) * (int64_t)sizeof(float);
}

/* dx, dy, w */
static void winograd_conv2d_backward_data(const void *desc, void *const *args)
{
    const winograd p = winograd_reversed(desc);
    run_winograd(&p, args[0], args[1], args[2], NULL, args[3]);
}

/* Backward-data of a convolution with few channels.
 *
 * A vector of few channels would be mostly empty, so here a vector holds neighbouring pixels of a row of dx that
 * are a stride apart, which the same taps reach (a phase, see product.h). A row of dy adds to R rows of dx:
 *
 *     dx[oh * stride + r * dilation - pad][first + i * stride][c] += sum over the phase's taps s, over k:
 *                                                                    w[r, s, c][k] * dy[oh][i + offset(s)][k]
 *
 *     for each band of rows of an image of dx:                                          shared among threads
 *         for each row of dy that reaches the band:
 *             move the rows of dx that are complete from a ring of rows to dx           ring in L1
 *             for each block of a row, for each chunk of k:
 *                 transpose dy's part to [k][pixels], zeros around the image            L1
 *                 for each phase, for each panel of pixels:
 *                     for each tile of rows (r, c): sum over taps and k, add to the ring
 *
 * A row of the ring is [phase][c][i]. Bands compute what they share twice, so each sum is made in the same order
 * wherever a band begins. */

enum { PIXEL_FLOATS = 8192 };

/* y[i][j] += sum over taps, over k: x[i][tap * w_tap + k] * pixels[k][offset(tap) + j] */
typedef struct {
    const float *x[TALL_ROWS];
    float *y[TALL_ROWS];
    const float *pixels;
    int64_t pitch, k, taps, w_tap;
    const int64_t *tap, *offset;
} spread_tile;

INLINE void spread(const int rows, const int vectors, const spread_tile *t)
{
    vec acc[TALL_ROWS][TILE_VECTORS];
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            acc[i][j] = (vec){ 0 };
    for (int64_t s = 0; s < t->taps; s++) {
        const float *pixels = t->pixels + t->offset[s], *x[TALL_ROWS];
        UNROLL for (int i = 0; i < rows; i++)
            x[i] = t->x[i] + t->tap[s] * t->w_tap;
        for (int64_t k = 0; k < t->k; k++, pixels += t->pitch) {
            vec b[TILE_VECTORS];
            UNROLL for (int j = 0; j < vectors; j++)
                b[j] = load(pixels + j * VL);
            UNROLL for (int i = 0; i < rows; i++) {
                vec a = splat(x[i][k]);
                UNROLL for (int j = 0; j < vectors; j++)
                    acc[i][j] = acc[i][j] + a * b[j];
            }
        }
    }
    UNROLL for (int i = 0; i < rows; i++)
        UNROLL for (int j = 0; j < vectors; j++)
            store(t->y[i] + j * VL, load(t->y[i] + j * VL) + acc[i][j]);
}

TILE_TABLE(spread, spread, (const spread_tile *t), (t))

/* How the work and the workspace are cut; sizes in floats. */
typedef struct {
    int64_t phases, plane, row, ring;     /* the longest phase, a row of dx, rows of the ring */
    int64_t lanes, blocks, k;             /* a block's pixels in full vectors, blocks of a row, a chunk of k */
    int64_t width, pitch;                 /* pixels of dy that a block reads; floats from k to k */
    int64_t packed, taps, own;            /* the weights, the phases and their taps, all that a thread has */
} spread_cut;

static spread_cut cut_spread(const pycnn_conv2d *d)
{
    spread_cut c = { .phases = MIN(d->stride_w, d->w), .k = MIN(d->k, taps_chunk(d->s)) };
    const int64_t vectors = ceil_div(ceil_div(d->w, d->stride_w), VL), most = MAX(2, PIXEL_FLOATS / (c.k * VL));
    c.plane = vectors * VL;
    c.row = line_floats(c.phases * d->c * c.plane);
    c.ring = MIN((d->r - 1) * d->dilation_h + 1, d->h + d->pad_top + d->pad_bottom);
    c.blocks = ceil_div(vectors, most);
    c.lanes = ceil_div(vectors, c.blocks) * VL;
    c.width = c.lanes + (d->s - 1) * d->dilation_w / d->stride_w + 2;
    c.pitch = round_up(c.width, 32) + 16; /* spreads k over the cache's sets */
    c.packed = d->w_k == 1 ? 0 : line_floats(d->r * d->s * d->c * d->k);
    const int64_t taps = c.phases * (int64_t)sizeof(phase) + 2 * c.phases * d->s * (int64_t)sizeof(int64_t);
    c.taps = line_floats(ceil_div(taps, (int64_t)sizeof(float)));
    c.own = c.taps + c.ring * c.row + line_floats(c.k * c.pitch);
    return c;
}

static int64_t spread_workspace(const pycnn_conv2d *d, int64_t threads)
{
    const spread_cut c = cut_spread(d);
    return (c.packed + own_floats(threads, c.own)) * (int64_t)sizeof(float);
}

/* A band: rows first..end of the padded image of dx. */
typedef struct {
    const pycnn_conv2d *d;
    const spread_cut *c;
    int64_t first, end;
    const float *dy, *w;             /* dy: the image; w: k lie next to each other */
    int64_t w_tap, w_c;
    float *dx;                       /* the image */
    const phase *phases;
    int64_t lowest;                  /* where the phases' offsets are counted from */
    float *ring, *pixels;
} band;

/* pixels[k][j] = dy[oh][q + j][k0 + k], 0 where that is outside of the row. */
static void transpose_pixels(const band *b, int64_t oh, int64_t q, int64_t k0, int64_t k)
{
    const int64_t all = b->d->k, q0 = MAX(0, q), q1 = MIN(b->d->ow, q + b->c->width);
    if (b->c->blocks > 1) /* one block leaves the zeros around the row as they are */
        memset(b->pixels, 0, sizeof(float) * (size_t)(k * b->c->pitch));
    if (q0 < q1)
        transpose_matrix(b->dy + (oh * b->d->ow + q0) * all + k0, all, b->pixels + q0 - q, b->c->pitch, q1 - q0, k);
}

/* Adds the block of a row of dy that lies transposed to rows r0..r1 of the filter's reach, from pixel i0 of each
 * phase on. */
static void add_block(const band *b, int64_t oh, int64_t r0, int64_t r1, int64_t i0, int64_t k0, int64_t k)
{
    const pycnn_conv2d *d = b->d;
    const spread_cut *c = b->c;
    const int64_t all = (r1 - r0) * d->c, tiles = ceil_div(all, tile_rows(c->lanes));
    for (int64_t tile = 0; tile < tiles; tile++) {
        const int64_t row = part_start(all, tile, tiles), rows = part_start(all, tile + 1, tiles) - row;
        int64_t r = r0 + row / d->c, channel = row % d->c;
        spread_tile t = { .pitch = c->pitch, .k = k, .w_tap = b->w_tap };
        float *y[TALL_ROWS];
        for (int64_t i = 0; i < rows; i++) {
            t.x[i] = b->w + r * d->s * b->w_tap + channel * b->w_c + k0;
            y[i] = b->ring + (oh * d->stride_h + r * d->dilation_h) % c->ring * c->row + channel * c->plane + i0;
            if (++channel == d->c) {
                channel = 0;
                r++;
            }
        }
        for (int64_t first = 0; first < c->phases; first++) {
            const phase *f = b->phases + first;
            const int64_t lanes = MIN(c->lanes, f->count - i0);
            t.taps = f->taps;
            t.tap = f->tap;
            t.offset = f->offset;
            for (int64_t j = 0; j < lanes; j += PANEL) {
                t.pixels = b->pixels + j;
                for (int64_t i = 0; i < rows; i++)
                    t.y[i] = y[i] + first * d->c * c->plane + j;
                spread_functions[panel_vectors(lanes - j, 0) - 1][rows - 1](&t);
            }
        }
    }
}

static void add_row(const band *b, int64_t oh)
{
    const pycnn_conv2d *d = b->d;
    const spread_cut *c = b->c;
    const int64_t ih = oh * d->stride_h;
    const int64_t r0 = MAX(0, ceil_div(b->first - ih, d->dilation_h));
    const int64_t r1 = MIN(d->r, floor_div(b->end - 1 - ih, d->dilation_h) + 1);
    for (int64_t i = 0; i < c->plane; i += c->lanes)
        for (int64_t k = 0; k < d->k; k += c->k) {
            const int64_t len = MIN(c->k, d->k - k);
            transpose_pixels(b, oh, i + b->lowest, k, len);
            add_block(b, oh, r0, r1, i, k, len);
        }
}

/* Moves a complete row from the ring to dx. */
static void give_row(const band *b, int64_t ih)
{
    const int64_t channels = b->d->c, stride = b->d->stride_w, width = b->d->w;
    float *row = b->ring + ih % b->c->ring * b->c->row, *dx = b->dx + (ih - b->d->pad_top) * width * channels;
    for (int64_t first = 0; first < b->c->phases; first++)
        for (int64_t c = 0; c < channels; c++) {
            const float *from = row + (first * channels + c) * b->c->plane;
            for (int64_t iw = first; iw < width; iw += stride)
                dx[iw * channels + c] = *from++;
        }
    memset(row, 0, sizeof(float) * (size_t)b->c->row);
}

static void run_band(const band *b)
{
    const pycnn_conv2d *d = b->d;
    const int64_t oh0 = MAX(0, ceil_div(b->first - (d->r - 1) * d->dilation_h, d->stride_h));
    const int64_t oh1 = MIN(d->oh, (b->end - 1) / d->stride_h + 1);
    int64_t given = b->first;
    for (int64_t oh = oh0; oh < oh1; oh++) {
        for (; given < MIN(b->end, oh * d->stride_h); given++)
            give_row(b, given);
        add_row(b, oh);
    }
    for (; given < b->end; given++)
        give_row(b, given);
}

/* The weights as [tap][c][k]. */
static void pack_filters(const pycnn_conv2d *d, const float *w, float *packed)
{
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->r * d->s * d->c; row++)
        for (int64_t k = 0; k < d->k; k++)
            packed[row * d->k + k] = w[row / d->c * d->w_tap + row % d->c * d->w_c + k * d->w_k];
}

/* The horizontal phases of backward-data, their offsets counted from one that is no higher than any. */
static void find_phases(band *b, const axis *h, void *space)
{
    phase *f = space;
    int64_t *taps = (int64_t *)(f + b->c->phases);
    b->phases = f;
    b->lowest = floor_div(h->pad - (h->taps - 1) * h->dilation, h->stride);
    for (int64_t i = 0; i < b->c->phases; i++) {
        f[i] = axis_phase(h, i, taps + 2 * h->taps * i);
        for (int64_t t = 0; t < f[i].taps; t++)
            f[i].offset[t] -= b->lowest;
    }
}

/* h: the horizontal axis of backward-data */
static void spread_run(const pycnn_conv2d *d, const axis *h, float *dx, const float *dy, const float *w, float *workspace)
{
    const spread_cut c = cut_spread(d);
    float *own = own_part(workspace + c.packed, c.own);
    band b = { .d = d, .c = &c, .w = w, .w_tap = d->w_tap, .w_c = d->w_c, .ring = own + c.taps };
    b.pixels = b.ring + c.ring * c.row;
    find_phases(&b, h, own);
    memset(b.ring, 0, sizeof(float) * (size_t)(c.ring * c.row + c.k * c.pitch));
    if (c.packed) {
        pack_filters(d, w, workspace);
        b.w = workspace;
        b.w_tap = d->c * d->k;
        b.w_c = d->k;
    }
    const int64_t bands = MAX(1, MIN(d->h, ceil_div(TASKS_A_THREAD * (omp_get_num_threads() - 1), d->n)));
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < d->n * bands; task++) {
        const int64_t n = task / bands, i = task % bands;
        b.first = d->pad_top + part_start(d->h, i, bands);
        b.end = d->pad_top + part_start(d->h, i + 1, bands);
        b.dy = dy + n * d->oh * d->ow * d->k;
        b.dx = dx + n * d->h * d->w * d->c;
        run_band(&b);
    }
}

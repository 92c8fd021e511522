/* Convolution with few channels a group, down to depthwise: vectors hold the channels of several groups.
 *
 * Each group has a slot of lanes, a power of two or whole vectors, in the planes of the input and of the output
 * alike; a plane is one vector of each pixel. The lanes of x that output lane j is made of are those of its slot:
 *
 *     y[j] = bias[j] + sum over taps, l: x[first lane of j's slot + l] * w[tap][l][j]
 *
 * so one shuffle of the input's vector serves all groups in it; no shuffle where a slot is one lane, a
 * broadcast where it is a vector or more.
 *
 *     pack w into [plane][tap][vector of the slot][l][VL]                            shared, once a call
 *     for each image, block of planes, block of output rows:                        shared among threads
 *         for each row of outputs:
 *             copy the input rows that it is the first to need into a ring of rows   kept in L2
 *             for each phase (see product.h), for each plane, for each tile of up to 10 pixels:
 *                 sum over the taps, vectors of the slot, l
 *
 * The copied rows have their padding around them, and of a row that is read with a stride the pixels of each
 * remainder lie together, so a tile reads neighbours for every stride and dilation. Where taps are neighbours, too,
 * an input is loaded once for up to three of them. Depthwise rows of few channels are read where they lie instead, and
 * made tile by tile, each for all planes; outputs at their ends leave out the taps that would read padding.
 *
 * Backward-data is the same nest over dx with the axes reversed. Backward-weights runs over the copied rows:
 *
 *     for each slice of the output rows, block of planes:                           shared among threads
 *         for each row: copy; for each plane, for a few taps: sum over the row's pixels, add to the slice's dw
 *     dw = sum of the slices, from the first to the last                             shared among threads */

enum { TILE_PIXELS = 10, LONGEST_RUN = 3, BLOCK_BYTES = 131072, GROUPED_TASKS = 32, LEAST_ROWS = 8 };
enum { NEAR_PIXELS = 64, WIDE_ROW = 40, STRIDED_PIXELS = 256, STRIDED_ROW = 20 };
enum { LINE_PLANES = MAX(1, 16 / VL), GROUPED_SLICES = 16, SLICES_FLOATS = 262144, SUM_PIXELS = 256 };

typedef struct {
    int64_t images, groups, in, out;             /* in, out: channels of a group */
    axis v, h;
    int64_t w_tap, w_in, w_out, w_group;         /* from tap to tap, channel to channel, group to group of w */
    pycnn_epilogue epilogue;
} grouped;

/* What follows from it. */
typedef struct {
    int64_t slot, kind, slot_lanes, slot_planes;  /* of a group: lanes in all, log2 of, and those in a plane; planes */
    int64_t planes, block, blocks;               /* planes in all and of a task */
    int64_t tap_floats, plane_floats, packed;    /* packed weights of a tap, of a plane, in all */
    int64_t left, step, run;                     /* copied rows: padding before; remainders, pixels of each */
    int64_t row, depth, ring_plane;              /* floats of a row, rows, floats of a plane */
    int in_image;                                /* whether rows are read where they lie */
    int64_t low, lead, trail;                    /* then: an output's first column; outputs at the ends */
    int64_t phases, steps;                       /* phases of a row; taps and vectors of the slot */
    int64_t phases_at, steps_at, held_at, parts_at, pixels_at, ring_at, worker_bytes;   /* in a thread's memory */
} grouped_layout;

/* The input position of output o under tap t, or -1. */
INLINE int64_t tap_position(const axis *a, int64_t o, int64_t t)
{
    int64_t position = a->backward ? o + a->pad - t * a->dilation : o * a->stride + t * a->dilation - a->pad;
    if (a->backward) {
        if (position % a->stride)
            return -1;
        position /= a->stride;
    }
    return inside(position, a->in) ? position : -1;
}

/* The channels in a plane: lane i * slot + l holds channel first + i * floats + l for i < pieces, l < floats. */
typedef struct { int64_t group, column, first, pieces, floats; int dense; } plane_part;

/* Taps that read neighbours in a row: where the first reads, its weights, from one tap's to the next's. */
typedef struct { int64_t taps, x, w, w_step; } tap_run;

/* A phase of a row of outputs, as in product.h, with its taps in runs. */
typedef struct { int64_t first, step, count, runs; tap_run *run; } row_phase;

/* The place of an array of so many bytes behind those that are there. */
static int64_t take(int64_t *bytes, int64_t more)
{
    const int64_t start = *bytes;
    *bytes += round_up(more, 64);
    return start;
}

/* The pixels of a copied row, and how many of them lie before the image. */
static int64_t columns_read(const axis *h, int64_t *left)
{
    const int64_t reach = (h->taps - 1) * h->dilation;
    const int64_t first = h->backward ? floor_div(h->pad - reach, h->stride) : -h->pad;
    const int64_t last = h->backward ? (h->out - 1 + h->pad) / h->stride
                                     : (h->out - 1) * h->stride + reach - h->pad;
    *left = MAX(0, -first);
    return *left + MAX(h->in, last + 1);
}

/* Depthwise rows of few channels are read where they lie: tiles then read and write memory in its order, which pays for
 * images that come from there. Pixels of more channels lie too far apart for a tile. */
static void find_ends(const grouped *g, grouped_layout *s)
{
    const int64_t pixel = g->groups * g->in, reach = (g->h.taps - 1) * g->h.dilation;
    s->low = g->h.backward ? g->h.pad - reach : -g->h.pad;
    s->lead = ceil_div(MAX(0, -s->low), s->step);
    s->trail = MAX(0, g->h.out - 1 - floor_div(g->h.in - 1 - s->low - reach, s->step));
    const int few_ends = s->lead <= TILE_PIXELS && s->trail <= TILE_PIXELS && s->lead + s->trail < g->h.out;
    const int strided = s->step > 1; /* each pixel is read by fewer taps, so that a copy saves less */
    const int near = pixel <= (strided ? STRIDED_PIXELS : NEAR_PIXELS) && reach <= TILE_PIXELS &&
                     g->h.out >= (strided ? STRIDED_ROW : WIDE_ROW);
    s->in_image = g->in == 1 && g->out == 1 && pixel % VL == 0 && (g->h.stride == 1 || !g->h.backward) &&
                  few_ends && near;
}

static grouped_layout lay_out(const grouped *g)
{
    const int64_t most = MAX(g->in, g->out), taps = g->v.taps * g->h.taps;
    grouped_layout s = { .slot = 1 };
    for (; s.slot < MIN(most, VL); s.slot *= 2)
        s.kind++;
    s.slot_lanes = s.slot;
    if (most > VL)
        s.slot = round_up(most, VL);
    s.slot_planes = s.slot / s.slot_lanes;
    s.tap_floats = s.slot * VL;
    s.plane_floats = taps * s.tap_floats;
    s.planes = ceil_div(g->groups * s.slot, VL);
    s.packed = s.planes * s.plane_floats;

    s.step = g->h.backward ? 1 : g->h.stride;
    s.run = ceil_div(columns_read(&g->h, &s.left), s.step);
    s.row = s.step * s.run * VL;
    s.depth = (g->v.taps - 1) * g->v.dilation / (g->v.backward ? g->v.stride : 1) + 1;
    s.ring_plane = s.depth * s.row;
    find_ends(g, &s);

    /* whole slots and, where they are smaller, whole cache lines */
    const int64_t unit = round_up(LINE_PLANES, s.slot_planes), plane_bytes = (s.ring_plane + s.plane_floats) * 4;
    s.blocks = ceil_div(s.planes, MAX(unit, BLOCK_BYTES / plane_bytes / unit * unit));
    s.block = round_up(ceil_div(s.planes, s.blocks), unit);
    s.blocks = ceil_div(s.planes, s.block);
    s.phases = g->h.backward ? MIN(g->h.stride, g->h.out) : 1;
    s.steps = taps * s.slot_planes;

    const int64_t lists = s.phases + (s.in_image ? s.lead + s.trail : 0);
    s.phases_at = take(&s.worker_bytes, lists * (int64_t)sizeof(row_phase));
    s.steps_at = take(&s.worker_bytes, (s.steps + lists * g->h.taps) * (int64_t)sizeof(tap_run));
    s.held_at = take(&s.worker_bytes, MAX(s.depth, 4 * g->h.taps) * (int64_t)sizeof(int64_t));
    s.parts_at = take(&s.worker_bytes, 2 * s.block * (int64_t)sizeof(plane_part));
    s.pixels_at = take(&s.worker_bytes, s.block * g->h.out * VEC_BYTES);
    s.ring_at = take(&s.worker_bytes, s.block * s.ring_plane * (int64_t)sizeof(float));
    return s;
}

static plane_part part_of(const grouped *g, const grouped_layout *s, int64_t plane, int64_t channels)
{
    plane_part p = { .group = plane * VL / s->slot, .column = MIN(plane * VL % s->slot, channels) };
    p.first = p.group * channels + p.column;
    p.pieces = MIN(VL / s->slot_lanes, g->groups - p.group);
    p.floats = MIN(s->slot_lanes, channels - p.column);
    p.dense = p.pieces == 1 || p.floats == s->slot_lanes;
    return p;
}

/* Between channels side by side and slots: the steps are those from group to group. */
INLINE void copy_lanes(const plane_part *p, const float *from, int64_t from_step, float *to, int64_t to_step)
{
    for (int64_t i = 0; i < p->pieces; i++)
        for (int64_t l = 0; l < p->floats; l++)
            to[i * to_step + l] = from[i * from_step + l];
}

/* Lanes without a filter or without an input are zero. */
static void pack_grouped(const grouped *g, const grouped_layout *s, const float *w, const float *bias, float *packed)
{
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < s->planes; plane++) {
        const plane_part p = part_of(g, s, plane, g->out);
        const float *first = w + p.group * g->w_group + p.column * g->w_out;
        float *to = packed + plane * s->plane_floats;
        for (int64_t tap = 0; tap < g->v.taps * g->h.taps; tap++)
            for (int64_t l = 0; l < s->slot; l++, to += VL) {
                const float *from = first + tap * g->w_tap + l * g->w_in;
                store(to, splat(0));
                for (int64_t i = 0; l < g->in && i < p.pieces; i++)
                    for (int64_t j = 0; j < p.floats; j++)
                        to[i * s->slot + j] = from[i * g->w_group + j * g->w_out];
            }
        float *shift = packed + s->packed + plane * VL;
        store(shift, splat(0));
        if (bias)
            copy_lanes(&p, bias + p.first, p.floats, shift, s->slot);
    }
}

/* A thread's own memory. */
typedef struct {
    const grouped *g;
    const grouped_layout *s;
    row_phase *phases;
    tap_run *steps;                  /* all runs of one row of outputs, the longest first */
    int64_t ends[LONGEST_RUN + 1];   /* where those of at least this length end */
    int64_t *held;                   /* the row of the input that each row of the ring holds */
    plane_part *in, *out;            /* of the planes of a block */
    float *pixels;                   /* a row of outputs or of dy, [plane][pixel][VL] */
    float *ring;                     /* [plane][row][pixel][VL] */
} grouped_worker;

/* Where a copied row has the pixel at this position of the input, in floats. */
INLINE int64_t copied_place(const grouped_layout *s, int64_t position)
{
    position += s->left;
    return (position % s->step * s->run + position / s->step) * VL;
}

/* And where the image has what would be copied to that place. */
INLINE int64_t image_place(const grouped *g, const grouped_layout *s, int64_t place)
{
    return (place / VL % s->run * s->step + place / VL / s->run - s->left) * g->groups;
}

/* A phase's taps, sorted by where copies are read, in runs of up to `longest`. */
static void find_runs(const grouped *g, const grouped_layout *s, const phase *f, int64_t longest, row_phase *to)
{
    tap_run *run = to->run;
    for (int64_t j = 0; j < f->taps; j++) {
        const tap_run single = { 1, copied_place(s, f->offset[j]), f->tap[j] * s->tap_floats, 0 };
        int64_t i = j;
        for (; i > 0 && run[i - 1].x > single.x; i--)
            run[i] = run[i - 1];
        run[i] = single;
    }
    to->runs = 0;
    for (int64_t j = 0; j < f->taps; j++) {
        tap_run *last = run + to->runs - 1;
        const int64_t w_step = to->runs > 0 ? (run[j].w - last->w) / last->taps : 0;
        if (to->runs > 0 && last->taps < longest && last->x + last->taps * VL == run[j].x &&
            (last->taps == 1 || last->w_step == w_step)) {
            last->w_step = w_step;
            last->taps++;
        } else {
            run[to->runs++] = run[j];
        }
    }
    for (int64_t j = 0; s->in_image && j < to->runs; j++)
        run[j].x = image_place(g, s, run[j].x);
}

/* Output number i of those at the ends of a row. */
INLINE int64_t end_output(const grouped_worker *t, int64_t i)
{
    return i < t->s->lead ? i : t->g->h.out - t->s->trail + i - t->s->lead;
}

/* The runs of each output at the ends of a row, of the taps inside the image. */
static void find_end_runs(const grouped_worker *t, const phase *f, int64_t longest)
{
    const grouped_layout *s = t->s;
    for (int64_t i = 0; i < s->lead + s->trail; i++) {
        row_phase *to = t->phases + s->phases + i;
        phase left = { .tap = f->offset + t->g->h.taps, .offset = f->offset + 2 * t->g->h.taps };
        for (int64_t j = 0; j < f->taps; j++)
            if (inside(end_output(t, i) * f->in_step + f->offset[j], t->g->h.in)) {
                left.tap[left.taps] = f->tap[j];
                left.offset[left.taps++] = f->offset[j];
            }
        *to = (row_phase){ .run = t->steps + s->steps + (s->phases + i) * t->g->h.taps };
        find_runs(t->g, s, &left, longest, to);
    }
}

/* The floats of all threads' memory. */
static int64_t grouped_workers(int64_t threads, const grouped_layout *s)
{
    return own_floats(threads, s->worker_bytes / (int64_t)sizeof(float));
}

/* Pixels begin as zeros, which stay in the padding of copied rows and in the empty lanes of slots. */
static grouped_worker start_worker(const grouped *g, const grouped_layout *s, int64_t longest, float *workspace)
{
    char *own = (char *)own_part(workspace, s->worker_bytes / (int64_t)sizeof(float));
    grouped_worker t = {
        .g = g, .s = s, .phases = (row_phase *)(own + s->phases_at), .steps = (tap_run *)(own + s->steps_at),
        .held = (int64_t *)(own + s->held_at), .in = (plane_part *)(own + s->parts_at),
        .pixels = (float *)(own + s->pixels_at), .ring = (float *)(own + s->ring_at),
    };
    t.out = t.in + s->block;
    for (int64_t i = 0; i < s->phases; i++) {
        const phase f = axis_phase(&g->h, i, t.held);
        t.phases[i] = (row_phase){ f.first, f.step, f.count, 0, t.steps + s->steps + i * g->h.taps };
        find_runs(g, s, &f, longest, t.phases + i);
        if (s->in_image)
            find_end_runs(&t, &f, longest);
    }
    for (int64_t i = 0; i < s->depth; i++)
        t.held[i] = -1;
    memset(own + s->pixels_at, 0, (size_t)(s->worker_bytes - s->pixels_at));
    return t;
}

/* The planes of a block: their number, and their parts of x and y, which are found in the worker. */
static int64_t take_block(const grouped_worker *t, int64_t block)
{
    const grouped_layout *s = t->s;
    const int64_t first = block * s->block, planes = MIN(s->planes - first, s->block);
    for (int64_t i = 0; i < planes; i++) {
        t->in[i] = part_of(t->g, s, first + i, t->g->in);
        t->out[i] = part_of(t->g, s, first + i, t->g->out);
    }
    return planes;
}

/* Copies n pixels, `step` floats apart, to planes. Where slots are full, whole pixels are read one after another, and
 * those that lie `ahead`, in the next row, are called into L2. */
static void copy_pixels(const grouped_layout *s, const plane_part *parts, int64_t planes, int64_t channels,
                        const float *from, int64_t step, int64_t ahead, int64_t n, float *to, int64_t to_plane)
{
    const int64_t lanes = (planes - 1) * VL;
    if (channels == s->slot) {
        const int64_t rest = parts[planes - 1].pieces * parts[planes - 1].floats;
        from += parts->first;
        for (int64_t i = 0; i < n; i++, from += step, to += VL) {
            float *next = to;
            for (int64_t lane = 0; lane < lanes; lane += VL, next += to_plane) {
                __builtin_prefetch(from + lane + ahead, 0, 2);
                store(next, load(from + lane));
            }
            __builtin_prefetch(from + lanes + ahead, 0, 2);
            store(next, load_n(from + lanes, rest));
        }
    } else {
        for (int64_t plane = 0; plane < planes; plane++, to += to_plane)
            for (int64_t i = 0; i < n; i++)
                copy_lanes(parts + plane, from + i * step + parts[plane].first, parts[plane].floats, to + i * VL,
                           s->slot);
    }
}

/* Where in the ring the slot begins that a plane of a block is in. */
INLINE int64_t slot_start(const grouped_layout *s, int64_t plane)
{
    return plane / s->slot_planes * s->slot_planes * s->ring_plane;
}

/* A row of an image to work on, and the planes it is made for. */
typedef struct { int64_t block, planes, image, o; } grouped_task;

/* The place in the ring of a row of the input, in floats; the row is copied if it is not there yet. */
static int64_t ring_row(const grouped_worker *t, const grouped_task *k, const float *in, int64_t row)
{
    const grouped *g = t->g;
    const grouped_layout *s = t->s;
    const int64_t line = k->image * g->v.in + row, key = k->block * g->images * g->v.in + line;
    const int64_t place = row % s->depth, pixel = g->groups * g->in;
    if (t->held[place] != key)
        for (int64_t first = 0; first < MIN(s->step, g->h.in); first++)
            copy_pixels(s, t->in, k->planes, g->in, in + (line * g->h.in + first) * pixel, s->step * pixel,
                        g->h.in * pixel, ceil_div(g->h.in - first, s->step),
                        t->ring + place * s->row + copied_place(s, first), s->ring_plane);
    t->held[place] = key;
    return place * s->row;
}

/* Lists the runs of one row and phase of outputs, and has the rows that they read in the ring. */
static void list_steps(grouped_worker *t, const grouped_task *k, const float *in, const row_phase *f)
{
    const grouped *g = t->g;
    const grouped_layout *s = t->s;
    tap_run *step = t->steps;
    for (int64_t taps = LONGEST_RUN; taps > 0; taps--) {
        for (const tap_run *run = f->run; run < f->run + f->runs; run++)
            for (int64_t r = 0; run->taps == taps && r < g->v.taps; r++) {
                const int64_t position = tap_position(&g->v, k->o, r);
                if (position < 0)
                    continue;
                const int64_t row = s->in_image ? (k->image * g->v.in + position) * g->h.in * g->groups
                                                : ring_row(t, k, in, position);
                const int64_t w = r * g->h.taps * s->tap_floats;
                for (int64_t i = 0; i < s->slot_planes; i++)
                    *step++ = (tap_run){ taps, row + run->x + i * s->ring_plane, w + run->w + i * s->slot_lanes * VL,
                                         run->w_step };
            }
        t->ends[taps] = step - t->steps;
    }
}

/* Input l of each lane's slot. */
INLINE vec spread_slots(const int slot, const float *x, const int l)
{
    if (slot == 1)
        return load_once(x);
    if (slot == VL)
        return splat(x[l]);
    return spread_lane(load(x), slot, l);
}

/* A row of outputs of one plane and phase, or some of its pixels. */
typedef struct {
    const tap_run *steps;
    const int64_t *ends;
    const float *x, *w, *bias;
    int64_t x_step;                  /* from pixel to pixel; looked at where x is no copy */
    int64_t inputs;                  /* of a slot's lanes; looked at where slots are whole vectors */
    int64_t pixels;
    float *y;
    int64_t y_step, lanes;
    pycnn_epilogue epilogue;
} grouped_row;

typedef void (*grouped_row_function)(const grouped_row *t);

/* Adds the products of input l of a run to a tile; each input is loaded once for all taps of the run. */
INLINE void add_products(const int slot, const int width, const int taps, const int l, const tap_run *run,
                         const float *x, const int64_t x_step, const float *w, vec *acc)
{
    vec b[LONGEST_RUN];
    if (slot > 1)
        LOAD_AGAIN;
    UNROLL for (int j = 0; j < taps; j++)
        b[j] = load(w + j * run->w_step + l * VL);
    UNROLL for (int p = 0; p < width + taps - 1; p++, x += x_step) {
        const vec a = spread_slots(slot, x, l);
        UNROLL for (int j = 0; j < taps; j++)
            if (p >= j && p - j < width)
                acc[p - j] = acc[p - j] + a * b[j];
    }
}

/* The last tile may begin within the one before it, which makes some outputs twice. */
INLINE void grouped_products(const int slot, const int width, const int in_image, const grouped_row *t)
{
    const int64_t x_step = in_image ? t->x_step : VL;
    const int64_t y_step = t->y_step, lanes = t->lanes;
    for (int64_t done = 0; done < t->pixels; done += width) {
        const int64_t first = MIN(done, t->pixels - width);
        const tap_run *run = t->steps;
        vec acc[TILE_PIXELS];
        UNROLL for (int p = 0; p < width; p++)
            acc[p] = load(t->bias);
        UNROLL for (int taps = LONGEST_RUN; taps > 0; taps--)
            for (; run < t->steps + t->ends[taps]; run++) {
                const float *x = t->x + run->x + first * x_step, *w = t->w + run->w;
                if (slot == VL)
                    for (int l = 0; l < t->inputs; l++)
                        add_products(slot, width, taps, l, run, x, x_step, w, acc);
                else
                    UNROLL for (int l = 0; l < slot; l++)
                        add_products(slot, width, taps, l, run, x, x_step, w, acc);
            }
        if (t->epilogue.rectifies)
            UNROLL for (int p = 0; p < width; p++)
                acc[p] = rectify(acc[p], t->epilogue.slope);
        float *y = t->y + first * y_step;
        if (lanes >= VL)
            UNROLL for (int p = 0; p < width; p++, y += y_step)
                store(y, acc[p]);
        else
            UNROLL for (int p = 0; p < width; p++, y += y_step)
                store_n(y, acc[p], lanes);
    }
}

/* dw[l] of some taps += the sum over n pixels of input l * dy. */
typedef void (*grouped_sum_function)(const tap_run *step, const float *x, const float *dy, int64_t n, float *dw);

INLINE void grouped_sum(const int slot, const int taps, const tap_run *step, const float *x, const float *dy,
                        int64_t n, float *dw)
{
    const float *from[TILE_PIXELS];
    vec acc[TILE_PIXELS][VL];
    UNROLL for (int t = 0; t < taps; t++) {
        from[t] = x + step[t].x;
        UNROLL for (int l = 0; l < slot; l++)
            acc[t][l] = splat(0);
    }
    for (int64_t i = 0; i < n * VL; i += VL) {
        const vec d = load(dy + i);
        UNROLL for (int t = 0; t < taps; t++)
            UNROLL for (int l = 0; l < slot; l++)
                acc[t][l] = acc[t][l] + spread_slots(slot, from[t] + i, l) * d;
    }
    UNROLL for (int t = 0; t < taps; t++)
        UNROLL for (int l = 0; l < slot; l++) {
            float *to = dw + step[t].w + l * VL;
            store(to, load(to) + acc[t][l]);
        }
}

#define COUNTS_1(T, slot) T(slot, 1)
#define COUNTS_3(T, slot) COUNTS_1(T, slot) T(slot, 2) T(slot, 3)
#define COUNTS_6(T, slot) COUNTS_3(T, slot) T(slot, 4) T(slot, 5) T(slot, 6)
#define COUNTS_9(T, slot) COUNTS_6(T, slot) T(slot, 7) T(slot, 8) T(slot, 9)

#define ROW_FUNCTION(slot, width)                                                                             \
    static void grouped_row_##slot##_##width(const grouped_row *t) { grouped_products(slot, width, 0, t); }
#define TILE_IN_IMAGE(unused, width)                                                                          \
    static void tile_in_image_##width(const grouped_row *t) { grouped_products(1, width, 1, t); }
#define SUM_FUNCTION(slot, taps)                                                                              \
    static void grouped_sum_##slot##_##taps(const tap_run *step, const float *x, const float *dy, int64_t n, \
                                            float *dw)                                                        \
    {                                                                                                         \
        grouped_sum(slot, taps, step, x, dy, n, dw);                                                          \
    }
#define ROW_ENTRY(slot, width) grouped_row_##slot##_##width,
#define TILE_IN_IMAGE_ENTRY(unused, width) tile_in_image_##width,
#define SUM_ENTRY(slot, taps) grouped_sum_##slot##_##taps,

/* S(slot, taps whose gradients are summed at once: their accumulators fit into registers) */
#define SLOTS_4(S) S(1, 9) S(2, 6) S(4, 3)
#if VEC_BYTES == 16
#define SLOTS(S) SLOTS_4(S)
#elif VEC_BYTES == 32
#define SLOTS(S) SLOTS_4(S) S(8, 1)
#else
#define SLOTS(S) SLOTS_4(S) S(8, 1) S(16, 1)
#endif
#define SLOT_FUNCTIONS(slot, taps) COUNTS_9(ROW_FUNCTION, slot) ROW_FUNCTION(slot, 10) COUNTS_##taps(SUM_FUNCTION, slot)
SLOTS(SLOT_FUNCTIONS)

#define SLOT_ROWS(slot, taps) { COUNTS_9(ROW_ENTRY, slot) ROW_ENTRY(slot, 10) },
#define SLOT_SUMS(slot, taps) { COUNTS_##taps(SUM_ENTRY, slot) },
#define SLOT_TAPS(slot, taps) taps,
static const grouped_row_function grouped_rows[][TILE_PIXELS] = { SLOTS(SLOT_ROWS) };
static const grouped_sum_function grouped_sums[][TILE_PIXELS] = { SLOTS(SLOT_SUMS) };
static const int64_t grouped_taps[] = { SLOTS(SLOT_TAPS) };
COUNTS_9(TILE_IN_IMAGE, ) TILE_IN_IMAGE(, 10)
static const grouped_row_function tiles_in_image[] = { COUNTS_9(TILE_IN_IMAGE_ENTRY, ) TILE_IN_IMAGE_ENTRY(, 10) };

/* A row of an image's outputs, for the planes of a block. */
static void output_row(grouped_worker *t, const grouped_task *k, const float *in, const float *packed, float *out)
{
    const grouped_layout *s = t->s;
    const axis *v = &t->g->v, *h = &t->g->h;
    const int64_t pixel = t->g->groups * t->g->out;
    for (const row_phase *f = t->phases; f < t->phases + s->phases; f++) {
        const int64_t width = ceil_div(f->count, ceil_div(f->count, TILE_PIXELS));
        float *first = out + ((k->image * v->out + k->o) * h->out + f->first) * pixel;
        list_steps(t, k, in, f);
        for (int64_t i = 0; i < k->planes; i++) {
            const plane_part *p = t->out + i;
            const int64_t plane = k->block * s->block + i, step = f->step * pixel;
            const grouped_row row = {
                .steps = t->steps, .ends = t->ends, .x = t->ring + slot_start(s, i),
                .w = packed + plane * s->plane_floats, .bias = packed + s->packed + plane * VL,
                .inputs = MIN(VL, t->g->in), .pixels = f->count,
                .y = p->dense ? first + p->first : t->pixels, .y_step = p->dense ? step : VL,
                .lanes = p->dense ? p->pieces * p->floats : VL, .epilogue = t->g->epilogue,
            };
            for (int64_t o = 0; i % LINE_PLANES == 0 && o < f->count; o++) /* for the next row */
                __builtin_prefetch(first + h->out * pixel + o * step + p->first, 1, 2);
            grouped_rows[s->kind][width - 1](&row);
            for (int64_t o = 0; !p->dense && o < f->count; o++)
                copy_lanes(p, t->pixels + o * VL, s->slot, first + p->first + o * step, p->floats);
        }
    }
}

/* Rows of the input that a row of outputs is the first to read. */
INLINE int64_t rows_ahead(const grouped *g) { return g->v.backward ? 1 : g->v.stride; }

/* Some outputs of a row, tile by tile and each for all planes of the block. Of the rows that the next outputs are the
 * first to read, x_ahead floats further on, and of theirs, y_ahead further, the same pixels are called into L2. */
static void make_tiles(const grouped_worker *t, const grouped_task *k, const float *packed, grouped_row row,
                       int64_t outputs, int64_t x_ahead, int64_t y_ahead)
{
    const grouped_layout *s = t->s;
    const int64_t width = ceil_div(outputs, ceil_div(outputs, TILE_PIXELS)), line = t->g->h.in * row.y_step;
    const float *x = row.x;
    float *y = row.y;
    row.pixels = width;
    for (int64_t done = 0; done < outputs; done += width)
        for (int64_t i = 0; i < k->planes; i++) {
            const int64_t plane = k->block * s->block + i, at = MIN(done, outputs - width);
            row.x = x + at * row.x_step + i * VL;
            row.y = y + at * row.y_step + i * VL;
            row.w = packed + plane * s->plane_floats;
            row.bias = packed + s->packed + plane * VL;
            for (int64_t r = 0; i % LINE_PLANES == 0 && r < rows_ahead(t->g); r++)
                for (int64_t p = 0; p < width * s->step; p++)
                    __builtin_prefetch(row.x + x_ahead + r * line + p * row.y_step, 0, 2);
            for (int64_t p = 0; i % LINE_PLANES == 0 && p < width; p++)
                __builtin_prefetch(row.y + y_ahead + p * row.y_step, 1, 2);
            tiles_in_image[width - 1](&row);
        }
}

/* A row of an image's outputs, whose inputs are read where they lie. */
static void output_tiles(grouped_worker *t, const grouped_task *k, const float *in, const float *packed, float *out)
{
    const grouped_layout *s = t->s;
    const axis *v = &t->g->v, *h = &t->g->h;
    const int64_t pixel = t->g->groups, channel = k->block * s->block * VL;
    const int64_t last = v->backward ? k->o + v->pad : k->o * v->stride + (v->taps - 1) * v->dilation - v->pad;
    const int64_t below = MAX(0, MIN(last + 1, v->in - rows_ahead(t->g)));
    const int64_t x_ahead = ((k->image * v->in + below) * h->in + s->low) * pixel;
    float *y = out + (k->image * v->out + k->o) * h->out * pixel + channel;
    grouped_row row = { .steps = t->steps, .ends = t->ends, .x_step = s->step * pixel, .y_step = pixel, .lanes = VL,
                        .epilogue = t->g->epilogue };
    row.x = in + channel + s->lead * row.x_step;
    row.y = y + s->lead * row.y_step;
    list_steps(t, k, in, t->phases);
    make_tiles(t, k, packed, row, h->out - s->lead - s->trail, x_ahead, h->out * pixel);
    for (int64_t i = 0; i < s->lead + s->trail; i++) {
        const int64_t o = end_output(t, i);
        row.x = in + channel + o * row.x_step;
        row.y = y + o * pixel;
        list_steps(t, k, in, t->phases + s->phases + i);
        make_tiles(t, k, packed, row, 1, 0, 0);
    }
}

static void run_grouped(const grouped *g, float *out, const float *in, const float *w, const float *bias,
                        float *workspace)
{
    const grouped_layout s = lay_out(g);
    float *packed = workspace, *own = packed + line_floats(s.packed + s.planes * VL);
    grouped_worker t = start_worker(g, &s, LONGEST_RUN, own);
    pack_grouped(g, &s, w, bias, packed);
    const int64_t tasks = g->images * s.blocks;
    const int64_t parts = MAX(1, MIN(g->v.out / LEAST_ROWS, ceil_div(GROUPED_TASKS, tasks)));
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < tasks * parts; task++) {
        const int64_t part = task % parts, end = part_start(g->v.out, part + 1, parts);
        grouped_task k = { .block = task / parts % s.blocks, .image = task / parts / s.blocks };
        k.planes = take_block(&t, k.block);
        for (k.o = part_start(g->v.out, part, parts); k.o < end; k.o++)
            (s.in_image ? output_tiles : output_row)(&t, &k, in, packed, out);
    }
}

static int64_t run_grouped_bytes(const grouped *g, int64_t threads)
{
    const grouped_layout s = lay_out(g);
    return (line_floats(s.packed + s.planes * VL) + grouped_workers(threads, &s)) * (int64_t)sizeof(float);
}

static grouped forward_grouped(const pycnn_conv2d *d)
{
    return (grouped){
        .images = d->n, .groups = d->groups, .in = d->c / d->groups, .out = d->k / d->groups,
        .v = vertical(d), .h = horizontal(d),
        .w_tap = d->w_tap, .w_in = d->w_c, .w_out = d->w_k, .w_group = d->k / d->groups * d->w_k,
        .epilogue = d->epilogue,
    };
}

static grouped backward_grouped(const pycnn_conv2d *d)
{
    return (grouped){
        .images = d->n, .groups = d->groups, .in = d->k / d->groups, .out = d->c / d->groups,
        .v = reversed(vertical(d)), .h = reversed(horizontal(d)),
        .w_tap = d->w_tap, .w_in = d->w_k, .w_out = d->w_c, .w_group = d->k / d->groups * d->w_k,
    };
}

static int64_t grouped_conv2d_workspace(const void *desc, int64_t threads)
{
    const grouped g = forward_grouped(desc);
    return run_grouped_bytes(&g, threads);
}

/* y, x, w, bias or NULL */
static void grouped_conv2d(const void *desc, void *const *args)
{
    const grouped g = forward_grouped(desc);
    run_grouped(&g, args[0], args[1], args[2], args[3], args[4]);
}

static int64_t grouped_conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const grouped g = backward_grouped(desc);
    return run_grouped_bytes(&g, threads);
}

/* dx, dy, w */
static void grouped_conv2d_backward_data(const void *desc, void *const *args)
{
    const grouped g = backward_grouped(desc);
    run_grouped(&g, args[0], args[1], args[2], NULL, args[3]);
}

/* Enough for the threads, and more, which makes the sums more precise, where their partial sums are small. */
static int64_t grouped_slices(const grouped *g, const grouped_layout *s)
{
    const int64_t few = ceil_div(GROUPED_SLICES, s->blocks), many = MIN(GROUPED_SLICES, SLICES_FLOATS / s->packed);
    return MIN(g->images * g->v.out, MAX(few, many));
}

static int64_t grouped_conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    const grouped g = forward_grouped(desc);
    const grouped_layout s = lay_out(&g);
    return (line_floats(grouped_slices(&g, &s) * s.packed) + grouped_workers(threads, &s)) * (int64_t)sizeof(float);
}

/* Adds the products of a row of an image's outputs to dw, for the planes of a block. */
static void add_row_of_taps(grouped_worker *t, const grouped_task *k, const float *x, const float *dy, float *dw)
{
    const grouped_layout *s = t->s;
    const int64_t width = t->g->h.out, pixel = t->g->groups * t->g->out;
    list_steps(t, k, x, t->phases);
    copy_pixels(s, t->out, k->planes, t->g->out, dy + (k->image * t->g->v.out + k->o) * width * pixel, pixel,
                width * pixel, width, t->pixels, width * VL);
    const int64_t steps = t->ends[1], parts = ceil_div(steps, grouped_taps[s->kind]);
    for (int64_t i = 0; i < k->planes; i++) {
        const float *from = t->ring + slot_start(s, i), *d = t->pixels + i * width * VL;
        for (int64_t first = 0; first < width; first += SUM_PIXELS)
            for (int64_t part = 0; part < parts; part++) {
                const int64_t step = part_start(steps, part, parts), taps = part_start(steps, part + 1, parts) - step;
                grouped_sums[s->kind][taps - 1](t->steps + step, from + first * VL, d + first * VL,
                                                MIN(SUM_PIXELS, width - first),
                                                dw + (k->block * s->block + i) * s->plane_floats);
            }
    }
}

static void add_slices(const grouped *g, const grouped_layout *s, const float *partials, float *dw)
{
    const int64_t slices = grouped_slices(g, s);
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < s->planes; plane++) {
        const plane_part p = part_of(g, s, plane, g->out);
        float *first = dw + p.group * g->w_group + p.column * g->w_out;
        const float *from = partials + plane * s->plane_floats;
        for (int64_t tap = 0; tap < g->v.taps * g->h.taps; tap++)
            for (int64_t l = 0; l < s->slot; l++, from += VL) {
                float *to = first + tap * g->w_tap + l * g->w_in;
                vec sum = load(from);
                for (int64_t slice = 1; slice < slices; slice++)
                    sum = sum + load(from + slice * s->packed);
                for (int64_t i = 0; l < g->in && i < p.pieces; i++)
                    for (int64_t j = 0; j < p.floats; j++)
                        to[i * g->w_group + j * g->w_out] = sum[i * s->slot + j];
            }
    }
}

/* dw, x, dy */
static void grouped_conv2d_backward_weights(const void *desc, void *const *args)
{
    const grouped g = forward_grouped(desc);
    grouped_layout s = lay_out(&g);
    const int64_t slices = grouped_slices(&g, &s), rows = g.images * g.v.out;
    s.in_image = 0; /* its sums run over whole rows */
    float *partials = args[3];
    grouped_worker t = start_worker(&g, &s, 1, partials + line_floats(slices * s.packed));
#pragma omp for schedule(guided)
    for (int64_t task = 0; task < slices * s.blocks; task++) {
        const int64_t slice = task / s.blocks, end = part_start(rows, slice + 1, slices);
        grouped_task k = { .block = task % s.blocks };
        k.planes = take_block(&t, k.block);
        float *partial = partials + slice * s.packed;
        memset(partial + k.block * s.block * s.plane_floats, 0, sizeof(float) * (size_t)(k.planes * s.plane_floats));
        for (int64_t row = part_start(rows, slice, slices); row < end; row++) {
            k.image = row / g.v.out;
            k.o = row % g.v.out;
            add_row_of_taps(&t, &k, args[1], args[2], partial);
        }
    }
    add_slices(&g, &s, partials, args[0]);
}

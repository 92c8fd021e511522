/* Max pooling of contiguous planes (N, C, H, W), vectors along a row of outputs.
 *
 * Forward, windows of 2 x 2 side by side without padding: for each plane (shared among threads), row of outputs, vector
 *            of them: the even and the odd floats of two rows of x, in the order of the window.
 * Backward, whatever the windows were: for each plane (shared among threads): if it is twice as high and wide as dy, as
 *            if the windows had been those of forward; if an argmax was not in its window, from that plane on, or if
 *            sizes are others or rows leave most of a vector empty, the plane is cleared, and each gradient goes where
 *            its argmax says. */

/* A vector of windows covers 2 VL floats of each of two rows of x, of which the second VL begin `high` floats after the
 * first; `place`: where each window begins, from the first one's place. Where rows have as many floats as a vector lanes,
 * it has two rows of windows. */
typedef struct { int64_t rows, high; ivec place; } window_vectors;

static window_vectors vectors_of(const pycnn_pool2d *d)
{
    const int folds = d->w == VL && d->ow == VL / 2;
    window_vectors v = { .rows = folds ? 2 : 1, .high = folds ? 2 * d->w : VL };
    for (int i = 0; i < VL; i++)
        v.place[i] = folds && i >= VL / 2 ? 2 * i - VL + 2 * (int32_t)d->w : 2 * i;
    return v;
}

/* y, argmax (int32, h * W + w), x */
static void planar_max_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    const int32_t width = (int32_t)d->w;
    const window_vectors v = vectors_of(d);
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < d->n * d->c; plane++)
        for (int64_t oh = 0; oh < d->oh; oh += v.rows) {
            const float *top = (const float *)args[2] + (plane * d->h + 2 * oh) * d->w;
            const int64_t row = (plane * d->oh + oh) * d->ow, windows = MIN(v.rows, d->oh - oh) * d->ow;
            for (int64_t i = 0; i < windows; i += VL) {
                const int64_t n = MIN(VL, windows - i);
                const lane_pairs above = load_pairs(top + 2 * i, v.high, n);
                const lane_pairs below = load_pairs(top + d->w + 2 * i, v.high, n);
                const ivec first = v.place + (int32_t)(2 * oh * d->w + 2 * i);
                vec best = above.even;
                ivec place = first;
                take_greater(&best, &place, above.odd, first + 1);
                take_greater(&best, &place, below.even, first + width);
                take_greater(&best, &place, below.odd, first + width + 1);
                store_n((float *)args[0] + row + i, best, n);
                store_int_n((int32_t *)args[1] + row + i, place, n);
            }
        }
}

INLINE int any_lane(ivec mask)
{
    int any = 0;
    UNROLL for (int i = 0; i < VL; i++)
        any |= mask[i];
    return any;
}

/* A plane of dx from 2 x 2 windows; returns whether all places in argmax lie in theirs. */
INLINE int share_out_pairs(const pycnn_pool2d *d, const window_vectors *v, float *dx, const float *dy,
                           const int32_t *argmax)
{
    const int32_t width = (int32_t)d->w;
    ivec outside = splat_int(0);
    for (int64_t oh = 0; oh < d->oh; oh += v->rows) {
        float *top = dx + 2 * oh * d->w;
        const int64_t windows = MIN(v->rows, d->oh - oh) * d->ow;
        for (int64_t i = 0; i < windows; i += VL) {
            const int64_t at = oh * d->ow + i, n = MIN(VL, windows - i);
            const ivec first = v->place + (int32_t)(2 * oh * d->w + 2 * i);
            const ivec from = load_int_n(argmax + at, n) - first;
            const ivec gradient = (ivec)(0.0f + load_n(dy + at, n)); /* 0 of -0, as sums make it that begin at 0 */
            const ivec a = from == 0, b = from == 1, c = from == width, e = from == width + 1;
            outside |= ~(a | b | c | e) & lanes_below(n);
            store_pairs(top + 2 * i, v->high, (lane_pairs){ (vec)(a & gradient), (vec)(b & gradient) }, n);
            store_pairs(top + d->w + 2 * i, v->high, (lane_pairs){ (vec)(c & gradient), (vec)(e & gradient) }, n);
        }
        if (d->w > 2 * d->ow)
            top[2 * d->ow] = top[d->w + 2 * d->ow] = 0;
    }
    clear_floats(dx + 2 * d->oh * d->w, (d->h - 2 * d->oh) * d->w);
    return !any_lane(outside);
}

/* dx, dy, argmax */
static void planar_max_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    const int64_t inputs = d->h * d->w, outputs = d->oh * d->ow;
    const window_vectors v = vectors_of(d);
    int pairs = d->h / 2 == d->oh && d->w / 2 == d->ow && v.rows * d->ow >= VL / 2;
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < d->n * d->c; plane++) {
        float *dx = (float *)args[0] + plane * inputs;
        const float *dy = (const float *)args[1] + plane * outputs;
        const int32_t *argmax = (const int32_t *)args[2] + plane * outputs;
        if (pairs && share_out_pairs(d, &v, dx, dy, argmax))
            continue;
        pairs = 0;
        memset(dx, 0, sizeof(float) * (size_t)inputs);
        for (int64_t i = 0; i < outputs; i++)
            dx[argmax[i]] += dy[i];
    }
}

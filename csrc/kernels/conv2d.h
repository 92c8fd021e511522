/* 2-D convolution, forward and backward: which engine a shape gets, and how it describes its work to it.
 *
 * Few channels go by rows of filters, row_taps.h forward and outer.h for the gradient of the weights, both on an image
 * that is padded once. */

enum { FEW_CHANNELS = 16 };

static int uses_row_taps(const pycnn_conv2d *d)
{
    return d->groups == 1 && d->dilation_w == 1 && d->s > 1 && d->c < FEW_CHANNELS;
}

static int is_padded(const pycnn_conv2d *d) { return d->pad_top || d->pad_bottom || d->pad_left || d->pad_right; }
static int is_pointwise(const pycnn_conv2d *d)
{
    return d->r == 1 && d->s == 1 && d->stride_h == 1 && d->stride_w == 1 && !is_padded(d);
}
static int64_t padded_h(const pycnn_conv2d *d) { return d->h + d->pad_top + d->pad_bottom; }
static int64_t padded_w(const pycnn_conv2d *d) { return d->w + d->pad_left + d->pad_right; }

static int64_t padded_floats(const pycnn_conv2d *d)
{
    if (!uses_row_taps(d) || !is_padded(d))
        return 0;
    return line_floats(d->n * padded_h(d) * padded_w(d) * d->c);
}

static const float *pad_images(const pycnn_conv2d *d, const float *x, float *to)
{
    if (!is_padded(d))
        return x;
    const int64_t rows = padded_h(d), width = padded_w(d) * d->c, left = d->pad_left * d->c, inner = d->w * d->c;
#pragma omp for schedule(static)
    for (int64_t row = 0; row < d->n * rows; row++) {
        const int64_t n = row / rows, ih = row % rows - d->pad_top;
        float *out = to + row * width;
        if (ih < 0 || ih >= d->h) {
            clear_floats(out, width);
            continue;
        }
        clear_floats(out, left);
        copy_floats(out + left, x + (n * d->h + ih) * inner, inner);
        clear_floats(out + left + inner, width - left - inner);
    }
    return to;
}

static axis vertical(const pycnn_conv2d *d)
{
    return (axis){ d->h, d->oh, d->r, d->stride_h, d->dilation_h, d->pad_top, 0 };
}
static axis horizontal(const pycnn_conv2d *d)
{
    return (axis){ d->w, d->ow, d->s, d->stride_w, d->dilation_w, d->pad_left, 0 };
}
static axis reversed(axis a) { return (axis){ a.out, a.in, a.taps, a.stride, a.dilation, a.pad, 1 }; }

/* The axes and taps of an image with its padding copied around it, a filter's row being one tap. */
static void take_row_taps(const pycnn_conv2d *d, axis *v, axis *h)
{
    *v = (axis){ padded_h(d), d->oh, d->r, d->stride_h, d->dilation_h, 0, 0 };
    *h = (axis){ padded_w(d), d->ow, 1, d->stride_w, 1, 0, 0 };
}

/* From a group's weights to the next group's. */
static int64_t group_weights(const pycnn_conv2d *d) { return d->k / d->groups * d->w_k; }

static product conv2d_product(const pycnn_conv2d *d)
{
    product p = {
        .images = d->n, .groups = d->groups, .len = d->c / d->groups, .columns = d->k / d->groups,
        .v = vertical(d), .h = horizontal(d), .in_pixel = d->c, .in_channel = 1, .out_pixel = d->k,
        .w_tap = d->w_tap, .inner = d->c / d->groups, .w_inner = d->w_c, .w_column = d->w_k,
        .w_group = group_weights(d), .alpha = 1,
        .prepacked = d->prepacked, .epilogue = d->epilogue, .planes = d->planes,
    };
    if (uses_row_taps(d)) {
        take_row_taps(d, &p.v, &p.h);
        p.len = d->s * d->c;
        p.w_outer = d->w_tap;
        p.w_tap = d->s * d->w_tap;
    }
    return p;
}

/* Engines that make pixels only leave them in a workspace, and they are brought to planes as a whole. */
static int64_t pixels_floats(int64_t wanted, int64_t n, int64_t pixels, int64_t channels)
{
    return wanted ? line_floats(n * pixels * channels) : 0;
}
static void order_in_planes(const float *from, float *to, int64_t n, int64_t pixels, int64_t channels)
{
    const pycnn_transpose d = { .n = n, .rows = pixels, .columns = channels };
    transpose(&d, (void *[]){ to, (void *)(uintptr_t)from });
}

/* Forward that would leave lanes of a vector of filters empty, or that has so few channels that what a pixel costs
 * besides its sums counts: planar.h fills its vectors with pixels. */
static int is_planar(const pycnn_conv2d *d)
{
    const int is_thin = d->k < VL || (d->k < 2 * VL && d->c * d->k <= 4 * VL);
    return d->groups == 1 && is_thin && d->c * d->r * d->s <= PLANAR_TERMS && fits_planar(d);
}
/* The gradient of the weights gains by it if each float that is copied is read more than once. */
static int is_planar_gradient(const pycnn_conv2d *d)
{
    return is_planar(d) && d->k < VL && d->r * d->s >= 2 * d->stride_h * d->stride_w;
}

static int64_t pack_conv2d_workspace(const void *desc, int64_t threads)
{
    const product p = conv2d_product(desc);
    (void)threads;
    return is_planar(desc) ? 0 : packed_bytes(&p);
}

/* w, packed; planar.h brings its few weights into order on each call */
static void pack_conv2d(const void *desc, void *const *args)
{
    product p = conv2d_product(desc);
    if (is_planar(desc))
        return;
    p.w = args[0];
    pack_weights(&p, args[1]);
#pragma omp barrier
}

/* The slices of pixels whose moments are taken: the engine's own, as it makes them, or, planar.h, those of y. */
static int64_t conv2d_slices(const pycnn_conv2d *d)
{
    if (!d->measures)
        return 0;
    if (is_planar(d))
        return matrix_slices(d->n * d->oh * d->ow);
    const product p = conv2d_product(d);
    return uses_row_taps(d) && fits_row_taps(&p) ? row_tap_blocks(&p) : product_slices(&p);
}

static planar_conv planar_forward(const pycnn_conv2d *d) { return planar_of(d, group_weights(d), 0, (int)d->planes); }

static int64_t conv2d_workspace(const void *desc, int64_t threads)
{
    const pycnn_conv2d *d = desc;
    const int64_t own = moments_floats(conv2d_slices(d), d->k);
    if (is_planar(d)) {
        const planar_conv p = planar_forward(d);
        return own * (int64_t)sizeof(float) + planar_workspace(&p, threads);
    }
    const product p = conv2d_product(d);
    return (own + padded_floats(d)) * (int64_t)sizeof(float) + product_workspace(&p, threads);
}

static void run_product(const pycnn_conv2d *d, product p, const float *x, float *workspace)
{
    p.in = uses_row_taps(d) ? pad_images(d, x, workspace) : x;
    if (uses_row_taps(d) && fits_row_taps(&p))
        run_row_taps(&p, workspace + padded_floats(d));
    else
        product_run(&p, workspace + padded_floats(d));
}

/* y, mean, variance (both of y, which is no planes then, or NULL), x, w, bias or NULL, packed w or NULL */
static void conv2d(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    const int64_t slices = conv2d_slices(d);
    const moments m = moments_at(args[7], slices, d->k);
    float *y = args[0], *workspace = (float *)args[7] + moments_floats(slices, d->k);
    if (is_planar(d)) {
        const planar_conv p = planar_forward(d);
        planar_run(&p, y, args[3], args[4], args[5], workspace);
        if (d->measures)
            take_moments(&m, y, d->n * d->oh * d->ow);
    } else {
        product p = conv2d_product(d);
        p.out = y;
        p.w = args[4];
        p.bias = args[5];
        p.packed = args[6];
        p.moments = m;
        run_product(d, p, args[3], workspace);
    }
    if (d->measures)
        merge_moments(&m, args[1], args[2]);
}

static product backward_data_product(const pycnn_conv2d *d)
{
    return (product){
        .images = d->n, .groups = d->groups, .len = d->k / d->groups, .columns = d->c / d->groups,
        .v = reversed(vertical(d)), .h = reversed(horizontal(d)),
        .in_pixel = d->k, .in_channel = 1, .out_pixel = d->c,
        .w_tap = d->w_tap, .inner = d->k / d->groups, .w_inner = d->w_k, .w_column = d->w_c,
        .w_group = group_weights(d), .alpha = 1,
        .planes = d->planes && d->stride_h == 1 && d->stride_w == 1,
    };
}

/* Backward-data whose product would leave lanes of vectors empty, or have fewer sums in a tile than hide their latency:
 * few_channels.h fills its vectors with pixels. */
static int has_few_channels(const pycnn_conv2d *d)
{
    return d->groups == 1 && d->c < MIN(2 * VL, FEW_CHANNELS);
}

/* With stride 1, backward-data is a forward convolution of dy with the filters turned around. */
static pycnn_conv2d turned(const pycnn_conv2d *d)
{
    pycnn_conv2d t = *d;
    t.c = d->k, t.h = d->oh, t.w = d->ow;
    t.k = d->c, t.oh = d->h, t.ow = d->w;
    t.pad_top = (d->r - 1) * d->dilation_h - d->pad_top;
    t.pad_left = (d->s - 1) * d->dilation_w - d->pad_left;
    t.w_tap = -d->w_tap, t.w_c = d->w_k, t.w_k = d->w_c;
    return t;
}
static planar_conv planar_backward(const pycnn_conv2d *d, int from_planes, int to_planes)
{
    const pycnn_conv2d t = turned(d);
    return planar_of(&t, group_weights(d), from_planes, to_planes);
}
static const float *turned_weights(const pycnn_conv2d *d, const float *w) { return w + (d->r * d->s - 1) * d->w_tap; }

/* Of many filters, few_channels.h copies less. */
static int is_planar_data(const pycnn_conv2d *d)
{
    const pycnn_conv2d t = turned(d);
    return d->stride_h == 1 && d->stride_w == 1 && MAX(d->c, d->k) < VL && is_planar(&t);
}

static int64_t dx_floats(const pycnn_conv2d *d)
{
    const product p = backward_data_product(d);
    const int at_once = is_planar_data(d) || (p.planes && !has_few_channels(d));
    return pixels_floats(d->planes && !at_once, d->n, d->h * d->w, d->c);
}

static int64_t conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const pycnn_conv2d *d = desc;
    const int64_t own = dx_floats(d) * (int64_t)sizeof(float);
    if (is_planar_data(d)) {
        const planar_conv p = planar_backward(d, 0, (int)d->planes);
        return planar_workspace(&p, threads);
    }
    if (has_few_channels(d))
        return own + spread_workspace(d, threads);
    const product p = backward_data_product(d);
    return own + product_workspace(&p, threads);
}

/* dx, dy, w */
static void conv2d_backward_data(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    const int64_t own = dx_floats(d);
    float *dx = own > 0 ? args[3] : args[0], *workspace = (float *)args[3] + own;
    if (is_planar_data(d)) {
        const planar_conv p = planar_backward(d, 0, (int)d->planes);
        planar_run(&p, dx, args[1], turned_weights(d, args[2]), NULL, workspace);
    } else if (has_few_channels(d)) {
        const axis h = reversed(horizontal(d));
        spread_run(d, &h, dx, args[1], args[2], workspace);
    } else {
        product p = backward_data_product(d);
        p.out = dx;
        p.in = args[1];
        p.w = args[2];
        product_run(&p, workspace);
    }
    if (own > 0)
        order_in_planes(dx, args[0], d->n, d->h * d->w, d->c);
}

static outer backward_weights_outer(const pycnn_conv2d *d)
{
    outer p = {
        .images = d->n, .groups = d->groups, .len = d->c / d->groups, .columns = d->k / d->groups,
        .v = vertical(d), .h = horizontal(d), .x_pixel = d->c, .dy_pixel = d->k,
        .w_tap = d->w_tap, .inner = d->c / d->groups, .w_inner = d->w_c, .w_column = d->w_k,
        .w_group = group_weights(d),
    };
    if (uses_row_taps(d)) {
        take_row_taps(d, &p.v, &p.h);
        p.len = d->s * d->c;
        p.w_outer = d->w_tap;
        p.w_tap = d->s * d->w_tap;
    }
    if (is_pointwise(d)) { /* the batch is one row of pixels */
        p.images = 1;
        p.v = one_pixel();
        p.h.in = p.h.out = d->n * d->h * d->w;
    }
    return p;
}

static int64_t conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    if (is_planar_gradient(desc)) {
        const planar_conv p = planar_forward(desc);
        return planar_weights_workspace(&p, threads);
    }
    const outer p = backward_weights_outer(desc);
    return padded_floats(desc) * (int64_t)sizeof(float) + outer_workspace(&p, threads);
}

/* dw, x, dy */
static void conv2d_backward_weights(const void *desc, void *const *args)
{
    const pycnn_conv2d *d = desc;
    if (is_planar_gradient(d)) {
        const planar_conv p = planar_forward(d);
        planar_weights_run(&p, args[0], NULL, args[1], args[2], args[3]);
        return;
    }
    outer p = backward_weights_outer(d);
    float *workspace = args[3];
    p.dw = args[0];
    p.x = uses_row_taps(d) ? pad_images(d, args[1], workspace) : args[1];
    p.dy = args[2];
    outer_run(&p, workspace + padded_floats(d));
}

/* Convolution in groups of few channels and filters, or of short sums, on contiguous planes: planar.h takes and makes
 * them as they are. */

static planar_conv planes_forward(const pycnn_conv2d *d) { return planar_of(d, group_weights(d), 1, 1); }

static int64_t planar_conv2d_workspace(const void *desc, int64_t threads)
{
    const planar_conv p = planes_forward(desc);
    return planar_workspace(&p, threads);
}

/* y, x, w, bias or NULL */
static void planar_conv2d(const void *desc, void *const *args)
{
    const planar_conv p = planes_forward(desc);
    planar_run(&p, args[0], args[1], args[2], args[3], args[4]);
}

static int64_t planar_conv2d_backward_data_workspace(const void *desc, int64_t threads)
{
    const planar_conv p = planar_backward(desc, 1, 1);
    return planar_workspace(&p, threads);
}

/* dx, dy, w; of stride 1 */
static void planar_conv2d_backward_data(const void *desc, void *const *args)
{
    const planar_conv p = planar_backward(desc, 1, 1);
    planar_run(&p, args[0], args[1], turned_weights(desc, args[2]), NULL, args[3]);
}

static int64_t planar_conv2d_backward_weights_workspace(const void *desc, int64_t threads)
{
    const planar_conv p = planes_forward(desc);
    return planar_weights_workspace(&p, threads);
}

/* dw, db, x, dy */
static void planar_conv2d_backward_weights(const void *desc, void *const *args)
{
    const planar_conv p = planes_forward(desc);
    planar_weights_run(&p, args[0], args[1], args[2], args[3], args[4]);
}

/* Max, average and global average pooling, vectors over channels.
 *
 * Forward:   for each row of outputs (shared among threads), for each output pixel, for each vector of
 *            channels: go through the part of the window that lies inside the image.
 * Backward, windows that do not overlap: for each row of outputs (shared among threads), for each output pixel:
 *            write its cell, the input pixels from its window's start to the next one's.
 * Backward otherwise: for each row of inputs (shared among threads), for each input pixel: add up what it gets from
 *            each window that covers it, in the order of the windows.
 *
 * BY_WINDOW gives the common sizes of a window, BY_SIZE those of a cell or of the windows over a pixel, unrolled code
 * of their own.
 * Pixels of a row are written from left to right, so the last vector of a pixel's channels may run into the `room`
 * that the next ones overwrite. Descriptors are copied, or the compiler would read them again after each store. */

#define BY_WINDOW(rows, columns, function, ...)                   \
    do {                                                          \
        if ((rows) == 2 && (columns) == 2)                        \
            function(__VA_ARGS__, 2, 2);                          \
        else if ((rows) == 3 && (columns) == 3)                   \
            function(__VA_ARGS__, 3, 3);                          \
        else                                                      \
            function(__VA_ARGS__, rows, columns);                 \
    } while (0)

#define BY_SIZE(rows, columns, function, ...)                     \
    do {                                                          \
        if ((rows) == 1 && (columns) == 1)                        \
            function(__VA_ARGS__, 1, 1);                          \
        else if ((rows) == 1 && (columns) == 2)                   \
            function(__VA_ARGS__, 1, 2);                          \
        else if ((rows) == 2 && (columns) == 1)                   \
            function(__VA_ARGS__, 2, 1);                          \
        else                                                      \
            BY_WINDOW(rows, columns, function, __VA_ARGS__);      \
    } while (0)

/* The taps first..last-1 of a window that starts at `start` which lie inside 0..size-1. */
INLINE void window(int64_t start, int64_t taps, int64_t dilation, int64_t size, int64_t *first, int64_t *last)
{
    if (dilation == 1) { /* without the divisions */
        *first = MAX(0, -start);
        *last = MIN(taps, size - start);
        return;
    }
    *first = start < 0 ? ceil_div(-start, dilation) : 0;
    *last = MIN(taps, (size - 1 - start) / dilation + 1);
}

/* Moves on to the windows first..last-1 of `count` that reach `pixel`, which counts from the padding's start;
 * they were those of an earlier pixel, or none from 0. */
INLINE void covering(int64_t pixel, int64_t extent, int64_t stride, int64_t count, int64_t *first, int64_t *last)
{
    while (*first * stride + extent <= pixel)
        ++*first;
    while (*last < count && *last * stride <= pixel)
        ++*last;
}

/* Whether y, and an argmax of the same size, are streamed. */
INLINE int streams_outputs(const pycnn_pool2d *d, const float *y, const void *argmax)
{
    const int64_t moved = d->n * (d->h * d->w + (argmax ? 2 : 1) * d->oh * d->ow) * d->c;
    return streams(y, moved, d->c) && streams(argmax, moved, d->c);
}

/* n channels of one output: x at the first pixel of the window, which is `place` of its plane. The rows of the window
 * do not wait for each other. */
INLINE void max_vector(const pycnn_pool2d *d, float *y, int32_t *argmax, const float *x, int64_t place, int64_t n,
                       int64_t room, int past, int64_t rows, int64_t columns)
{
    vec best = splat(0);
    ivec at_best = splat_int(0);
    for (int64_t r = 0; r < rows; r++) {
        const int64_t row = r * d->dilation_h * d->w;
        vec row_best = load_n(x + row * d->c, n);
        ivec at_row_best = splat_int((int32_t)(place + row));
        for (int64_t s = 1; s < columns; s++) {
            const int64_t at = row + s * d->dilation_w;
            take_greater(&row_best, &at_row_best, load_n(x + at * d->c, n), splat_int((int32_t)(place + at)));
        }
        if (r == 0)
            best = row_best, at_best = at_row_best;
        else
            take_greater(&best, &at_best, row_best, at_row_best);
    }
    put_n(y, d->epilogue.rectifies ? rectify(best, d->epilogue.slope) : best, room, past);
    if (argmax)
        put_n((float *)argmax, (vec)at_best, room, past);
}

INLINE void max_pixel(const pycnn_pool2d *d, float *y, int32_t *argmax, const float *x, int64_t place, int64_t room,
                      int past, int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        max_vector(d, y + c, argmax ? argmax + c : NULL, x + c, place, VL, VL, past, rows, columns);
    if (c < d->c)
        max_vector(d, y + c, argmax ? argmax + c : NULL, x + c, place, d->c - c, room - c, 0, rows, columns);
}

INLINE void max_row(const pycnn_pool2d *d, float *y, int32_t *argmax, const float *x, int64_t row, int past)
{
    const float *image = x + row / d->oh * d->h * d->w * d->c;
    const int64_t top = row % d->oh * d->stride_h - d->pad_h;
    int64_t r0, r1, s0, s1;
    window(top, d->r, d->dilation_h, d->h, &r0, &r1);
    for (int64_t ow = 0; ow < d->ow; ow++) {
        const int64_t left = ow * d->stride_w - d->pad_w, out = (row * d->ow + ow) * d->c;
        window(left, d->s, d->dilation_w, d->w, &s0, &s1);
        const int64_t place = (top + r0 * d->dilation_h) * d->w + left + s0 * d->dilation_w;
        BY_WINDOW(r1 - r0, s1 - s0, max_pixel, d, y + out, argmax ? argmax + out : NULL, image + place * d->c, place,
                  (d->ow - ow) * d->c, past);
    }
}

/* y, argmax (int32, h * W + w) or NULL, x */
static void max_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    const int past = streams_outputs(d, args[0], args[1]);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->oh; row++)
        max_row(d, args[0], args[1], args[2], row, past);
    end_stream(past);
}

INLINE int windows_overlap(const pycnn_pool2d *d)
{
    return d->stride_h < (d->r - 1) * d->dilation_h + 1 || d->stride_w < (d->s - 1) * d->dilation_w + 1;
}

/* The inputs first..last-1 of window i of `count`: the cells share out all inputs. */
INLINE void cell(int64_t i, int64_t count, int64_t stride, int64_t pad, int64_t size, int64_t *first, int64_t *last)
{
    *first = i == 0 ? 0 : MIN(size, i * stride - pad);
    *last = i == count - 1 ? size : MIN(size, (i + 1) * stride - pad);
}

/* Whether dx is streamed, from dy and what else is as large: no vector runs into the next pixel then. */
INLINE int streams_inputs(const pycnn_pool2d *d, const float *dx, int read)
{
    return streams(dx, d->n * (d->h * d->w + read * d->oh * d->ow) * d->c, d->c);
}

/* Likewise by cells, whose pixels are written in turn: not by parts of lines, of which too many would wait. */
INLINE int streams_cells(const pycnn_pool2d *d, const float *dx, int read)
{
    return VEC_BYTES == LINE_BYTES && streams_inputs(d, dx, read);
}

/* n channels of a cell of rows by columns whose first pixel is `place`. */
INLINE void max_cell_vector(const pycnn_pool2d *d, float *dx, const float *dy, const int32_t *argmax, int64_t place,
                            int64_t n, int64_t room, int past, int64_t rows, int64_t columns)
{
    const vec gradient = load_n(dy, n);
    const ivec chosen = load_int_n(argmax, n);
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++) {
            const int64_t at = i * d->w + j;
            const ivec here = chosen == splat_int((int32_t)(place + at));
            put_n(dx + at * d->c, (vec)(here & (ivec)gradient), MAX(n, room - j * d->c), past);
        }
}

INLINE void max_cell(const pycnn_pool2d *d, float *dx, const float *dy, const int32_t *argmax, int64_t place,
                     int64_t room, int past, int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        max_cell_vector(d, dx + c, dy + c, argmax + c, place, VL, VL, past, rows, columns);
    if (c < d->c)
        max_cell_vector(d, dx + c, dy + c, argmax + c, place, d->c - c, c ? 0 : room, 0, rows, columns);
}

INLINE void max_backward_apart(const pycnn_pool2d *desc, float *dx, const float *dy, const int32_t *argmax,
                               const int past)
{
    const pycnn_pool2d own = *desc, *d = &own;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        float *image = dx + row / d->oh * d->h * d->w * d->c;
        int64_t h0, h1, w0, w1;
        cell(row % d->oh, d->oh, d->stride_h, d->pad_h, d->h, &h0, &h1);
        for (int64_t ow = 0; ow < d->ow; ow++) {
            cell(ow, d->ow, d->stride_w, d->pad_w, d->w, &w0, &w1);
            const int64_t place = h0 * d->w + w0, from = (row * d->ow + ow) * d->c;
            BY_SIZE(h1 - h0, w1 - w0, max_cell, d, image + place * d->c, dy + from, argmax + from, place,
                    (d->w - w0) * d->c, past);
        }
    }
    end_stream(past);
}

/* n channels of one input pixel: dy and argmax at the first of the windows that cover it. */
INLINE void max_backward_vector(const pycnn_pool2d *d, float *dx, const float *dy, const int32_t *argmax,
                                int64_t place, int64_t n, int64_t room, int past, int64_t rows, int64_t columns)
{
    vec sum = splat(0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < columns; s++) {
            const int64_t at = (r * d->ow + s) * d->c;
            const ivec here = load_int_n(argmax + at, n) == splat_int((int32_t)place);
            sum = sum + (vec)(here & (ivec)load_n(dy + at, n));
        }
    put_n(dx, sum, room, past);
}

INLINE void max_backward_pixel(const pycnn_pool2d *d, float *dx, const float *dy, const int32_t *argmax,
                               int64_t place, int64_t room, int past, int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        max_backward_vector(d, dx + c, dy + c, argmax + c, place, VL, VL, past, rows, columns);
    if (c < d->c)
        max_backward_vector(d, dx + c, dy + c, argmax + c, place, d->c - c, room - c, 0, rows, columns);
}

static void max_backward_overlapping(const pycnn_pool2d *desc, float *dx, const float *dy, const int32_t *argmax)
{
    const pycnn_pool2d own = *desc, *d = &own;
    const int64_t extent_h = (d->r - 1) * d->dilation_h + 1, extent_w = (d->s - 1) * d->dilation_w + 1;
    const int past = streams_inputs(d, dx, 2);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->h; row++) {
        const int64_t image = row / d->h * d->oh, h = row % d->h;
        int64_t oh0 = 0, oh1 = 0, ow0 = 0, ow1 = 0;
        covering(h + d->pad_h, extent_h, d->stride_h, d->oh, &oh0, &oh1);
        for (int64_t w = 0; w < d->w; w++) {
            covering(w + d->pad_w, extent_w, d->stride_w, d->ow, &ow0, &ow1);
            const int64_t from = ((image + oh0) * d->ow + ow0) * d->c;
            BY_SIZE(oh1 - oh0, ow1 - ow0, max_backward_pixel, d, dx + (row * d->w + w) * d->c, dy + from,
                    argmax + from, h * d->w + w, (d->w - w) * d->c, past);
        }
    }
    end_stream(past);
}

enum { SCATTER_STRIP = 4 * VL };

static void max_backward_anywhere(const pycnn_pool2d *d, float *dx, const float *dy, const int32_t *argmax)
{
    const int64_t channels = d->c, strips = ceil_div(channels, SCATTER_STRIP);
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, c0 = task % strips * SCATTER_STRIP;
        const int64_t c1 = MIN(channels, c0 + SCATTER_STRIP), first = image * d->oh * d->ow;
        float *to = dx + image * d->h * d->w * channels;
        for (int64_t pixel = 0; pixel < d->h * d->w; pixel++)
            clear_floats(to + pixel * channels + c0, c1 - c0);
        for (int64_t pixel = first; pixel < first + d->oh * d->ow; pixel++)
            for (int64_t c = c0; c < c1; c++)
                to[argmax[pixel * channels + c] * channels + c] += dy[pixel * channels + c];
    }
}

/* dx, dy, argmax. Where r is 0 the windows are not known: then each image (and strip of channels) is cleared, and
 * every gradient goes where its argmax says. */
static void max_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d *d = desc;
    if (!d->r)
        max_backward_anywhere(d, args[0], args[1], args[2]);
    else if (windows_overlap(d))
        max_backward_overlapping(d, args[0], args[1], args[2]);
    else if (streams_cells(d, args[0], 2))
        max_backward_apart(d, args[0], args[1], args[2], 1);
    else
        max_backward_apart(d, args[0], args[1], args[2], 0);
}

/* The divisor of the window at (top, left): its size with padding, cut at the padded edge, or what of it lies inside
 * the image. */
INLINE int64_t averaged(const pycnn_pool2d *d, int64_t top, int64_t left)
{
    int64_t rows = MIN(top + d->r, d->h + d->pad_h) - top, columns = MIN(left + d->s, d->w + d->pad_w) - left;
    if (!d->count_include_pad) {
        rows = MIN(top + d->r, d->h) - MAX(top, 0);
        columns = MIN(left + d->s, d->w) - MAX(left, 0);
    }
    return rows * columns;
}

INLINE float average_scale(const pycnn_pool2d *d, int64_t top, int64_t left)
{
    return 1.0f / (float)averaged(d, top, left);
}

INLINE void average_vector(const pycnn_pool2d *d, float *y, const float *x, float scale, int64_t n, int64_t room,
                           int past, int64_t rows, int64_t columns)
{
    vec sum = splat(0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < columns; s++)
            sum = sum + load_n(x + (r * d->w + s) * d->c, n);
    put_n(y, sum * scale, room, past);
}

/* One output: x at the first pixel of the window. */
INLINE void average_pixel(const pycnn_pool2d *d, float *y, const float *x, float scale, int64_t room, int past,
                          int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        average_vector(d, y + c, x + c, scale, VL, VL, past, rows, columns);
    if (c < d->c)
        average_vector(d, y + c, x + c, scale, d->c - c, room - c, 0, rows, columns);
}

/* y, x */
static void avg_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1];
    const int past = streams_outputs(d, y, NULL);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        const float *image = x + row / d->oh * d->h * d->w * d->c;
        const int64_t top = row % d->oh * d->stride_h - d->pad_h;
        int64_t r0, r1, s0, s1;
        window(top, d->r, 1, d->h, &r0, &r1);
        for (int64_t ow = 0; ow < d->ow; ow++) {
            const int64_t left = ow * d->stride_w - d->pad_w;
            window(left, d->s, 1, d->w, &s0, &s1);
            BY_WINDOW(r1 - r0, s1 - s0, average_pixel, d, y + (row * d->ow + ow) * d->c,
                      image + ((top + r0) * d->w + left + s0) * d->c, average_scale(d, top, left),
                      (d->ow - ow) * d->c, past);
        }
    }
    end_stream(past);
}

/* Adds dy * scale to dx, or writes it there first. */
INLINE void add_share(float *dx, const float *dy, float scale, int64_t channels, int64_t room, int first)
{
    int64_t c = 0;
    for (; c + VL <= channels; c += VL)
        store(dx + c, (first ? splat(0) : load(dx + c)) + load(dy + c) * scale);
    if (c < channels) {
        const vec before = first ? splat(0) : load_n(dx + c, room - c);
        store_n(dx + c, before + load_n(dy + c, channels - c) * scale, room - c);
    }
}

/* One input pixel under the windows oh0..oh1-1, ow0..ow1-1 of an image's dy, which may have different divisors. */
static void average_backward_edge(const pycnn_pool2d *d, float *dx, const float *dy, int64_t room, int64_t oh0,
                                  int64_t oh1, int64_t ow0, int64_t ow1)
{
    if (oh0 >= oh1 || ow0 >= ow1)
        clear_floats(dx, d->c);
    for (int64_t oh = oh0; oh < oh1; oh++)
        for (int64_t ow = ow0; ow < ow1; ow++) {
            const float scale = average_scale(d, oh * d->stride_h - d->pad_h, ow * d->stride_w - d->pad_w);
            add_share(dx, dy + (oh * d->ow + ow) * d->c, scale, d->c, room, oh == oh0 && ow == ow0);
        }
}

/* n channels of one input pixel: dy at the first of the windows that cover it, which all have the divisor 1 / scale. */
INLINE void average_backward_vector(const pycnn_pool2d *d, float *dx, const float *dy, float scale, int64_t n,
                                    int64_t room, int past, int64_t rows, int64_t columns)
{
    vec sum = splat(0);
    for (int64_t r = 0; r < rows; r++)
        for (int64_t s = 0; s < columns; s++)
            sum = sum + load_n(dy + (r * d->ow + s) * d->c, n);
    put_n(dx, sum * scale, room, past);
}

INLINE void average_backward_pixel(const pycnn_pool2d *d, float *dx, const float *dy, float scale, int64_t room,
                                   int past, int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        average_backward_vector(d, dx + c, dy + c, scale, VL, VL, past, rows, columns);
    if (c < d->c)
        average_backward_vector(d, dx + c, dy + c, scale, d->c - c, room - c, 0, rows, columns);
}

static void average_backward_overlapping(const pycnn_pool2d *desc, float *dx, const float *dy)
{
    const pycnn_pool2d own = *desc, *d = &own;
    const int64_t whole = d->r * d->s;
    const float scale = 1.0f / (float)whole;
    const int past = streams_inputs(d, dx, 1);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->h; row++) {
        const float *image = dy + row / d->h * d->oh * d->ow * d->c;
        int64_t oh0 = 0, oh1 = 0, ow0 = 0, ow1 = 0;
        covering(row % d->h + d->pad_h, d->r, d->stride_h, d->oh, &oh0, &oh1);
        const int64_t top = oh0 * d->stride_h - d->pad_h, last_top = (oh1 - 1) * d->stride_h - d->pad_h;
        for (int64_t w = 0; w < d->w; w++) {
            covering(w + d->pad_w, d->s, d->stride_w, d->ow, &ow0, &ow1);
            const int64_t left = ow0 * d->stride_w - d->pad_w, last_left = (ow1 - 1) * d->stride_w - d->pad_w;
            const int64_t room = (d->w - w) * d->c;
            float *to = dx + (row * d->w + w) * d->c;
            if (averaged(d, top, left) == whole && averaged(d, last_top, last_left) == whole)
                BY_SIZE(oh1 - oh0, ow1 - ow0, average_backward_pixel, d, to, image + (oh0 * d->ow + ow0) * d->c,
                        scale, room, past);
            else
                average_backward_edge(d, to, image, room, oh0, oh1, ow0, ow1);
        }
    }
    end_stream(past);
}

/* n channels of a cell of rows by columns; the window covers the first inner_rows by inner_columns of it. */
INLINE void average_cell_vector(const pycnn_pool2d *d, float *dx, vec share, int64_t n, int64_t room, int past,
                                int64_t inner_rows, int64_t inner_columns, int64_t rows, int64_t columns)
{
    for (int64_t i = 0; i < rows; i++)
        for (int64_t j = 0; j < columns; j++)
            put_n(dx + (i * d->w + j) * d->c, i < inner_rows && j < inner_columns ? share : splat(0),
                  MAX(n, room - j * d->c), past);
}

INLINE void average_cell(const pycnn_pool2d *d, float *dx, const float *dy, float scale, int64_t room, int past,
                         int64_t inner_rows, int64_t inner_columns, int64_t rows, int64_t columns)
{
    int64_t c = 0;
    for (; c + VL <= d->c; c += VL)
        average_cell_vector(d, dx + c, load(dy + c) * scale, VL, VL, past, inner_rows, inner_columns, rows, columns);
    if (c < d->c)
        average_cell_vector(d, dx + c, load_n(dy + c, d->c - c) * scale, d->c - c, c ? 0 : room, 0, inner_rows,
                            inner_columns, rows, columns);
}

INLINE void average_backward_apart(const pycnn_pool2d *desc, float *dx, const float *dy, const int past)
{
    const pycnn_pool2d own = *desc, *d = &own;
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->oh; row++) {
        float *image = dx + row / d->oh * d->h * d->w * d->c;
        const int64_t top = row % d->oh * d->stride_h - d->pad_h;
        int64_t h0, h1, w0, w1;
        cell(row % d->oh, d->oh, d->stride_h, d->pad_h, d->h, &h0, &h1);
        for (int64_t ow = 0; ow < d->ow; ow++) {
            const int64_t left = ow * d->stride_w - d->pad_w;
            cell(ow, d->ow, d->stride_w, d->pad_w, d->w, &w0, &w1);
            BY_SIZE(h1 - h0, w1 - w0, average_cell, d, image + (h0 * d->w + w0) * d->c, dy + (row * d->ow + ow) * d->c,
                    average_scale(d, top, left), (d->w - w0) * d->c, past, top + d->r - h0, left + d->s - w0);
        }
    }
    end_stream(past);
}

/* dx, dy */
static void avg_pool2d_backward(const void *desc, void *const *args)
{
    if (windows_overlap(desc))
        average_backward_overlapping(desc, args[0], args[1]);
    else if (streams_cells(desc, args[0], 1))
        average_backward_apart(desc, args[0], args[1], 1);
    else
        average_backward_apart(desc, args[0], args[1], 0);
}

enum { MEAN_STRIP = 8, MEAN_CHUNK = 16 };

/* The means of n channels in `vectors` vectors. The sum of each MEAN_CHUNK pixels is added to the total, which keeps
 * the sums short. */
INLINE void mean_of_pixels(float *y, const float *x, int64_t pixels, int64_t channels, int64_t n, int vectors)
{
    vec total[MEAN_STRIP] = { splat(0) };
    for (int64_t first = 0; first < pixels; first += MEAN_CHUNK) {
        vec sum[MEAN_STRIP] = { splat(0) };
        for (int64_t pixel = first; pixel < MIN(pixels, first + MEAN_CHUNK); pixel++)
            UNROLL for (int v = 0; v < vectors; v++)
                sum[v] = sum[v] + load_n(x + pixel * channels + v * VL, n - v * VL);
        UNROLL for (int v = 0; v < vectors; v++)
            total[v] = total[v] + sum[v];
    }
    UNROLL for (int v = 0; v < vectors; v++)
        store_n(y + v * VL, total[v] / (float)pixels, n - v * VL);
}

/* The same of a plane of one channel. */
static float mean_of_plane(const float *x, int64_t pixels)
{
    enum { CHUNK_FLOATS = MEAN_CHUNK * VL };
    vec total = splat(0);
    for (int64_t first = 0; first < pixels; first += CHUNK_FLOATS) {
        vec sum = splat(0);
        for (int64_t i = first; i < MIN(pixels, first + CHUNK_FLOATS); i += VL)
            sum = sum + load_n(x + i, pixels - i);
        total = total + sum;
    }
    return lane_sum(total) / (float)pixels;
}

/* Those of n planes. */
static void means_of_planes(float *y, const float *x, int64_t n, int64_t pixels)
{
#pragma omp for schedule(static)
    for (int64_t plane = 0; plane < n; plane++)
        y[plane] = mean_of_plane(x + plane * pixels, pixels);
}

/* y (N, C), x */
static void global_avg_pool2d(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    float *y = args[0];
    const float *x = args[1];
    const int64_t channels = d->c, pixels = d->h * d->w, strip = MEAN_STRIP * VL, strips = ceil_div(channels, strip);
    if (channels == 1) {
        means_of_planes(y, x, d->n, pixels);
        return;
    }
#pragma omp for schedule(static)
    for (int64_t task = 0; task < d->n * strips; task++) {
        const int64_t image = task / strips, first = task % strips * strip;
        const float *from = x + image * pixels * channels;
        float *to = y + image * channels;
        if (first + strip <= channels)
            mean_of_pixels(to + first, from + first, pixels, channels, strip, MEAN_STRIP);
        else
            for (int64_t c = first, n; c < channels; c += n) {
                n = MIN(channels - c, strip / 2);
                if (n == strip / 2)
                    mean_of_pixels(to + c, from + c, pixels, channels, strip / 2, MEAN_STRIP / 2);
                else
                    mean_of_pixels(to + c, from + c, pixels, channels, n = MIN(n, VL), 1);
            }
    }
}

/* dx, dy (N, C): the first pixel of each row is computed, the others are copies of those before, unless dx is
 * streamed or the pixels have one channel. */
static void global_avg_pool2d_backward(const void *desc, void *const *args)
{
    const pycnn_pool2d own = *(const pycnn_pool2d *)desc, *d = &own;
    float *dx = args[0];
    const float *dy = args[1];
    const int64_t channels = d->c, width = d->w * channels;
    const float pixels = (float)(d->h * d->w);
    const int past = streams(dx, d->n * d->h * width, channels == 1 ? width : channels);
#pragma omp for schedule(static) nowait
    for (int64_t row = 0; row < d->n * d->h; row++) {
        float *to = dx + row * width;
        const float *from = dy + row / d->h * channels;
        const int64_t computed = past ? width : channels;
        if (channels == 1) {
            const vec gradient = splat(*from / pixels);
            const int64_t n = MIN(VL, width);
            for (int64_t i = 0; i < width; i += VL)
                put_n(to + MIN(i, width - n), gradient, n, past);
            continue;
        }
        for (int64_t first = 0; first < computed; first += channels)
            for (int64_t c = 0; c < channels; c += VL)
                put_n(to + first + c, load_n(from + c, channels - c) / pixels, channels - c, past);
        for (int64_t done = computed; done < width; done *= 2)
            memcpy(to + done, to, sizeof(float) * (size_t)MIN(done, width - done));
    }
    end_stream(past);
}

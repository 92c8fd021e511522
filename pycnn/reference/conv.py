"""2-D convolution, in the sense of deep learning: cross-correlation, the kernel is not turned around."""

from collections.abc import Iterator, Sequence
from itertools import product

from pycnn import shapes
from pycnn.reference.lists import Nested, Pair, expect, flatten, shape_of, zeros

Padding = Pair | Sequence[Sequence[int]]


def _taps(g: shapes.Conv2D, oh: int, ow: int) -> Iterator[tuple[int, int, int, int]]:
    """(r, s, i, j): each kernel tap of the output pixel (oh, ow) and the input pixel under it.

    i = oh * stride - padding + r * dilation (Dumoulin & Visin 2016), likewise j; taps on padding meet zeros
    and are left out.
    """
    for r, s in product(range(g.r), range(g.s)):
        i = oh * g.stride_h - g.pad_top + r * g.dilation_h
        j = ow * g.stride_w - g.pad_left + s * g.dilation_w
        if 0 <= i < g.h and 0 <= j < g.w:
            yield r, s, i, j


def _first_channel(g: shapes.Conv2D, k: int) -> int:
    """The first input channel that filter k sees: filters and channels are cut into equal groups."""
    return k // (g.k // g.groups) * (g.c // g.groups)


def conv2d(
    x: Nested,
    w: Nested,
    b: Nested | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Nested:
    """y[n][k][oh][ow] = b[k] + sum over c, r, s of x[n][c][i][j] * w[k][c][r][s], i and j as in `_taps`.

    x (N, C, H, W), w (K, C/groups, R, S), b (K,) -> y (N, K, OH, OW). Report 000, section II.A.1, with
    strides, dilations and groups after Dumoulin & Visin 2016.
    """
    x_shape, w_shape = shape_of("conv2d", "x", x), shape_of("conv2d", "w", w)
    b_shape = None if b is None else shape_of("conv2d", "b", b)
    if x_shape == (0,):
        return []
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    g = shapes.conv2d("conv2d", x_shape, w_shape, b_shape, **options)
    y = zeros(g.y_shape)
    for n, oh, ow in product(range(g.n), range(g.oh), range(g.ow)):
        taps = list(_taps(g, oh, ow))
        for k in range(g.k):
            first = _first_channel(g, k)
            y[n][k][oh][ow] = (0.0 if b is None else b[k]) + sum(
                x[n][first + c][i][j] * w[k][c][r][s] for c in range(g.c // g.groups) for r, s, i, j in taps
            )
    return y


def conv2d_backward(
    dy: Nested,
    x: Nested,
    w: Nested,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Nested, Nested, Nested]:
    """(dx, dw, db): each product of the forward sum gives its share to both of its factors.

    Report 001: dw is equation 3, db[k] = sum over n, oh, ow of dy[n][k][oh][ow] is equation 4, dx is
    equation 5.
    """
    op = "conv2d_backward"
    x_shape, w_shape = shape_of(op, "x", x), shape_of(op, "w", w)
    dw, db = zeros(w_shape), zeros(w_shape[:1])
    if x_shape == (0,):
        expect(op, "dy", dy, (0,))
        return [], dw, db
    g = shapes.conv2d(op, x_shape, w_shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    expect(op, "dy", dy, g.y_shape)
    dx = zeros(x_shape)
    for n, oh, ow in product(range(g.n), range(g.oh), range(g.ow)):
        taps = list(_taps(g, oh, ow))
        for k in range(g.k):
            first = _first_channel(g, k)
            gradient = dy[n][k][oh][ow]
            db[k] += gradient
            for c in range(g.c // g.groups):
                for r, s, i, j in taps:
                    dx[n][first + c][i][j] += gradient * w[k][c][r][s]
                    dw[k][c][r][s] += gradient * x[n][first + c][i][j]
    return dx, dw, db


def conv_transpose2d(
    x: Nested,
    w: Nested,
    b: Nested | None = None,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> Nested:
    """y[n][k][i][j] = b[k] + sum of x[n][c][h][w] * w[c][k][r][s] over all c, h, w, r, s with

    i = h * stride - padding + r * dilation, likewise j: the transpose of the convolution that takes y to x
    (Dumoulin & Visin 2016, section 4).

    x (N, C, H, W), w (C, K/groups, R, S), b (K,) -> y (N, K, OH, OW) with
    OH = (H - 1) * stride - pads + dilation * (R - 1) + output_padding + 1.
    """
    op = "conv_transpose2d"
    x_shape, w_shape = shape_of(op, "x", x), shape_of(op, "w", w)
    b_shape = None if b is None else shape_of(op, "b", b)
    if x_shape == (0,):
        return []
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    g = shapes.conv_transpose2d(op, x_shape, w_shape, b_shape, output_padding=output_padding, **options)
    y = [[[[0.0 if b is None else b[k]] * g.w for _ in range(g.h)] for k in range(g.c)] for _ in range(g.n)]
    for n, h, v in product(range(g.n), range(g.oh), range(g.ow)):
        taps = list(_taps(g, h, v))
        for c in range(g.k):
            first = _first_channel(g, c)
            for k in range(g.c // g.groups):
                for r, s, i, j in taps:
                    y[n][first + k][i][j] += x[n][c][h][v] * w[c][k][r][s]
    return y


def conv_transpose2d_backward(
    dy: Nested,
    x: Nested,
    w: Nested,
    *,
    stride: Pair = 1,
    padding: Padding = 0,
    output_padding: Pair = 0,
    dilation: Pair = 1,
    groups: int = 1,
) -> tuple[Nested, Nested, Nested]:
    """(dx, dw, db): each product of the forward sum gives its share to both of its factors."""
    op = "conv_transpose2d_backward"
    x_shape, w_shape = shape_of(op, "x", x), shape_of(op, "w", w)
    dw = zeros(w_shape)
    if x_shape == (0,):
        expect(op, "dy", dy, (0,))
        return [], dw, zeros((w_shape[1] * groups,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    g = shapes.conv_transpose2d(op, x_shape, w_shape, output_padding=output_padding, **options)
    expect(op, "dy", dy, g.x_shape)
    dx = zeros(x_shape)
    for n, h, v in product(range(g.n), range(g.oh), range(g.ow)):
        taps = list(_taps(g, h, v))
        for c in range(g.k):
            first = _first_channel(g, c)
            for k in range(g.c // g.groups):
                for r, s, i, j in taps:
                    dx[n][c][h][v] += dy[n][first + k][i][j] * w[c][k][r][s]
                    dw[c][k][r][s] += dy[n][first + k][i][j] * x[n][c][h][v]
    return dx, dw, [sum(sum(flatten(sample[k])) for sample in dy) for k in range(g.c)]

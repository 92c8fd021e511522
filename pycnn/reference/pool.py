"""Pooling of images (N, C, H, W) over windows and over whole planes."""

from collections.abc import Sequence
from itertools import product

from pycnn import shapes
from pycnn.reference.lists import Nested, Pair, apply, expect, flatten, shape_of, zeros


def _window(g: shapes.Pool2D, oh: int, ow: int) -> list[tuple[int, int]]:
    """The input pixels (i, j) in the window of the output pixel (oh, ow), row by row, without padding."""
    rows = (oh * g.stride_h - g.pad_h + r * g.dilation_h for r in range(g.r))
    columns = [ow * g.stride_w - g.pad_w + s * g.dilation_w for s in range(g.s)]
    return [(i, j) for i in rows for j in columns if 0 <= i < g.h and 0 <= j < g.w]


def max_pool2d(
    x: Nested,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    dilation: Pair = 1,
    ceil_mode: bool = False,
) -> tuple[Nested, Nested]:
    """(y, argmax): each window's largest value and its place i * W + j in the plane.

    Report 000, section II.A.2. Padding never wins. The first of equals wins; a NaN beats every number, and
    an earlier NaN, as in PyTorch.
    """
    x_shape = shape_of("max_pool2d", "x", x)
    if x_shape == (0,):
        return [], []
    options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
    g = shapes.pool2d("max_pool2d", x_shape, kernel_size, **options)
    y, argmax = zeros(g.y_shape), zeros(g.y_shape)
    for n, c, oh, ow in product(range(g.n), range(g.c), range(g.oh), range(g.ow)):
        window = _window(g, oh, ow)
        top, left = window[0]
        for i, j in window:
            value = x[n][c][i][j]
            if value > x[n][c][top][left] or value != value:
                top, left = i, j
        y[n][c][oh][ow] = x[n][c][top][left]
        argmax[n][c][oh][ow] = top * g.w + left
    return y, argmax


def max_pool2d_backward(dy: Nested, argmax: Nested, input_shape: Sequence[int]) -> Nested:
    """dx[n][c][i][j] = sum of dy over the windows whose maximum is at (i, j); report 001, equation 6."""
    op = "max_pool2d_backward"
    input_shape = shapes.sizes(op, "input_shape", input_shape, 4)
    dx = zeros(input_shape)
    if input_shape[0] == 0:
        expect(op, "dy", dy, (0,))
        expect(op, "argmax", argmax, (0,))
        return dx
    dy_shape = shape_of(op, "dy", dy)
    if len(dy_shape) != 4:
        raise ValueError(f"[{op}] dy must have 4 axes (N, C, H, W), got shape {dy_shape}")
    shapes.max_pool_indices(op, argmax, dy_shape, input_shape)
    for n, c, oh, ow in product(*map(range, dy_shape)):
        i, j = divmod(argmax[n][c][oh][ow], input_shape[3])
        dx[n][c][i][j] += dy[n][c][oh][ow]
    return dx


def _divisor(g: shapes.Pool2D, oh: int, ow: int) -> int:
    """How many pixels an average counts.

    Without `count_include_pad` those of the input; with it also those of the padding, but not what
    `ceil_mode` lets a last window reach beyond the padding.
    """
    if not g.count_include_pad:
        return len(_window(g, oh, ow))
    top, left = oh * g.stride_h - g.pad_h, ow * g.stride_w - g.pad_w
    bottom, right = min(top + g.r, g.h + g.pad_h), min(left + g.s, g.w + g.pad_w)
    return (bottom - top) * (right - left)


def avg_pool2d(
    x: Nested,
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Nested:
    """y = the sum of each window's values over its number of pixels, see `_divisor`."""
    x_shape = shape_of("avg_pool2d", "x", x)
    if x_shape == (0,):
        return []
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    g = shapes.pool2d("avg_pool2d", x_shape, kernel_size, count_include_pad=count_include_pad, **options)
    y = zeros(g.y_shape)
    for n, c, oh, ow in product(range(g.n), range(g.c), range(g.oh), range(g.ow)):
        y[n][c][oh][ow] = sum(x[n][c][i][j] for i, j in _window(g, oh, ow)) / _divisor(g, oh, ow)
    return y


def avg_pool2d_backward(
    dy: Nested,
    input_shape: Sequence[int],
    kernel_size: Pair,
    *,
    stride: Pair | None = None,
    padding: Pair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Nested:
    """dx[n][c][i][j] = sum of dy / divisor over the windows around (i, j); report 001, equation 7."""
    op = "avg_pool2d_backward"
    input_shape = shapes.sizes(op, "input_shape", input_shape, 4)
    options = {"stride": stride, "padding": padding, "ceil_mode": ceil_mode}
    g = shapes.pool2d(op, input_shape, kernel_size, count_include_pad=count_include_pad, **options)
    expect(op, "dy", dy, g.y_shape)
    dx = zeros(input_shape)
    for n, c, oh, ow in product(range(g.n), range(g.c), range(g.oh), range(g.ow)):
        share = dy[n][c][oh][ow] / _divisor(g, oh, ow)
        for i, j in _window(g, oh, ow):
            dx[n][c][i][j] += share
    return dx


def global_avg_pool2d(x: Nested) -> Nested:
    """y[n][c] = the mean of the plane x[n][c] (Lin, Chen & Yan 2014, section 3.2)."""
    x_shape = shape_of("global_avg_pool2d", "x", x)
    if x_shape == (0,):
        return []
    shapes.global_pool2d("global_avg_pool2d", x_shape)
    return [[sum(flatten(plane)) / (x_shape[2] * x_shape[3]) for plane in sample] for sample in x]


def global_avg_pool2d_backward(dy: Nested, input_shape: Sequence[int]) -> Nested:
    """dx[n][c][i][j] = dy[n][c] / (H * W)."""
    op = "global_avg_pool2d_backward"
    input_shape = shapes.sizes(op, "input_shape", input_shape, 4)
    expect(op, "dy", dy, shapes.global_pool2d(op, input_shape))
    _, _, h, w = input_shape
    return apply(lambda gradient: [[gradient / (h * w)] * w for _ in range(h)], dy)

"""Images of other sizes: adaptive averages, upsampling, zero padding."""

from collections.abc import Sequence
from itertools import product
from typing import Any

from pycnn import shapes
from pycnn.reference.lists import Nested, Pair, expect, shape_of, zeros


def _adaptive_window(i: int, size: int, outputs: int) -> range:
    """The pixels that output i of `outputs` averages: from floor(i size / outputs) to below ceil((i+1) size / outputs),
    as in PyTorch."""
    return range(i * size // outputs, -(-(i + 1) * size // outputs))


def adaptive_avg_pool2d(x: Nested, output_size: Any) -> Nested:
    """y[n][c][oh][ow] = the mean of x[n][c][i][j] over the windows of oh and ow, see `_adaptive_window`."""
    n, c, h, w = shape_of("adaptive_avg_pool2d", "x", x)
    oh, ow = shapes.adaptive_pool2d("adaptive_avg_pool2d", (n, c, h, w), output_size)
    y = zeros((n, c, oh, ow))
    for a, b, i, j in product(range(n), range(c), range(oh), range(ow)):
        window = list(product(_adaptive_window(i, h, oh), _adaptive_window(j, w, ow)))
        y[a][b][i][j] = sum(x[a][b][k][v] for k, v in window) / len(window)
    return y


def adaptive_avg_pool2d_backward(dy: Nested, input_shape: Sequence[int], output_size: Any) -> Nested:
    """dx[n][c][i][j] = sum of dy / the number of its pixels over the windows around (i, j)."""
    op = "adaptive_avg_pool2d_backward"
    n, c, h, w = shapes.sizes(op, "input_shape", input_shape, 4)
    oh, ow = shapes.adaptive_pool2d(op, (n, c, h, w), output_size)
    expect(op, "dy", dy, (n, c, oh, ow))
    dx = zeros((n, c, h, w))
    for a, b, i, j in product(range(n), range(c), range(oh), range(ow)):
        window = list(product(_adaptive_window(i, h, oh), _adaptive_window(j, w, ow)))
        for k, v in window:
            dx[a][b][k][v] += dy[a][b][i][j] / len(window)
    return dx


def _sources(i: int, scale: int, size: int, mode: str) -> list[tuple[int, float]]:
    """The pixels, with their weights, that output i of a row of `size` pixels is made of.

    nearest: i // scale. bilinear: those on both sides of (i + 1/2) / scale - 1/2, which is not less than 0, as in
    PyTorch with align_corners=False.
    """
    if mode == "nearest":
        return [(i // scale, 1.0)]
    place = max((i + 0.5) / scale - 0.5, 0.0)
    first = int(place)
    return [(first, 1 - (place - first)), (min(first + 1, size - 1), place - first)]


def upsample2d(x: Nested, scale: Pair, mode: str = "nearest") -> Nested:
    """y[n][c][oh][ow] = sum of x[n][c][i][j] times both weights over the sources i of oh, j of ow, see `_sources`."""
    n, c, h, w = shape_of("upsample2d", "x", x)
    oh, ow = shapes.upsample2d("upsample2d", (n, c, h, w), scale, mode)
    y = zeros((n, c, oh, ow))
    for a, b, k, v in product(range(n), range(c), range(oh), range(ow)):
        sources = product(_sources(k, oh // h, h, mode), _sources(v, ow // w, w, mode))
        y[a][b][k][v] = sum(x[a][b][i][j] * p * q for (i, p), (j, q) in sources)
    return y


def upsample2d_backward(dy: Nested, scale: Pair, mode: str = "nearest") -> Nested:
    """dx[n][c][i][j] = sum of dy times both weights over the outputs that (i, j) is a source of."""
    op = "upsample2d_backward"
    n, c, oh, ow = shape_of(op, "dy", dy)
    down, across = shapes.pair(op, "scale", scale, 1)
    h, w = oh // down, ow // across
    expect(op, "dy", dy, (n, c, *shapes.upsample2d(op, (n, c, h, w), scale, mode)))
    dx = zeros((n, c, h, w))
    for a, b, k, v in product(range(n), range(c), range(oh), range(ow)):
        for (i, p), (j, q) in product(_sources(k, down, h, mode), _sources(v, across, w, mode)):
            dx[a][b][i][j] += dy[a][b][k][v] * p * q
    return dx


def zero_pad2d(x: Nested, padding: Any) -> Nested:
    """x with rows and columns of zeros: padding is an int, (height, width) or ((top, bottom), (left, right))."""
    n, c, h, w = shape_of("zero_pad2d", "x", x)
    top, _, left, _ = shapes.padding4("zero_pad2d", padding)
    y = zeros((n, c, *shapes.zero_pad2d("zero_pad2d", (n, c, h, w), padding)))
    for a, b, i, j in product(range(n), range(c), range(h), range(w)):
        y[a][b][top + i][left + j] = x[a][b][i][j]
    return y


def zero_pad2d_backward(dy: Nested, padding: Any) -> Nested:
    """dx: dy without its border."""
    op = "zero_pad2d_backward"
    _, _, oh, ow = shape_of(op, "dy", dy)
    top, bottom, left, right = shapes.padding4(op, padding)
    return [[[row[left : ow - right] for row in plane[top : oh - bottom]] for plane in sample] for sample in dy]

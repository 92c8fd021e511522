"""Operations on the channels of images, or on the features of rows."""

from collections.abc import Sequence
from itertools import accumulate

from pycnn import shapes
from pycnn.reference.lists import Nested, apply, flatten, shape_of


def concatenate(inputs: Sequence[Nested]) -> Nested:
    """The channels of all inputs, those of the first one first."""
    shapes.concatenate("concatenate", [shape_of("concatenate", f"input {i}", x)[1:] for i, x in enumerate(inputs)])
    return [[channel for sample in samples for channel in sample] for samples in zip(*inputs, strict=True)]


def concatenate_backward(dy: Nested, channels: Sequence[int]) -> list[Nested]:
    """dy cut into the inputs' channels, of which there are so many."""
    ends = list(accumulate(channels))
    return [[sample[end - count : end] for sample in dy] for end, count in zip(ends, channels, strict=True)]


def scale_channels(x: Nested, scale: Nested) -> Nested:
    """y[n][c][i][j] = x[n][c][i][j] * scale[n][c] (Hu, Shen & Sun 2018, equation 4)."""
    op = "scale_channels"
    shapes.scale_channels(op, shape_of(op, "x", x), shape_of(op, "scale", scale))
    return [
        [apply(lambda v, f=f: v * f, plane) for plane, f in zip(planes, factors, strict=True)]
        for planes, factors in zip(x, scale, strict=True)
    ]


def scale_channels_backward(dy: Nested, x: Nested, scale: Nested) -> tuple[Nested, Nested]:
    """(dx, dscale): dx = dy * scale, dscale[n][c] = sum over i, j of dy[n][c][i][j] * x[n][c][i][j]."""
    products = apply(lambda gradient, value: gradient * value, dy, x)
    return scale_channels(dy, scale), [[sum(flatten(plane)) for plane in planes] for planes in products]

"""Nested lists: their shape, and building, walking and flattening them.

An image batch of shape (N, C, H, W) is x[n][c][h][w]. A list cannot tell the sizes behind an empty axis:
(0, 3, 8, 8) is [], whose shape reads (0,).
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

from pycnn import shapes

# A number inside lists of any depth. Python has no type for "list of lists of equal lengths".
Nested = list[Any]
# One int for both axes, or (height, width).
Pair = int | Sequence[int]


def shape_of(op: str, name: str, value: Any) -> tuple[int, ...]:
    """The sizes of the axes; a ragged list is a ValueError, a leaf that is no number a TypeError."""
    if not isinstance(value, (list, tuple)):
        if not isinstance(value, (float, int, Real)):
            raise TypeError(f"[{op}] {name} must be nested lists of numbers, got {type(value).__name__}")
        return ()
    if not value:
        return (0,)
    first, *others = (shape_of(op, name, item) for item in value)
    for shape in others:
        if shape != first:
            raise ValueError(f"[{op}] {name} is ragged: it holds lists of shapes {first} and {shape}")
    return (len(value), *first)


def expect(op: str, name: str, value: Any, expected: Sequence[int]) -> None:
    """Refuses a nested list that is not of the expected shape, as far as an empty one shows it."""
    seen = tuple(expected)
    if 0 in seen:
        seen = seen[: seen.index(0) + 1]
    shapes.expect_shape(op, name, shape_of(op, name, value), seen)


def zeros(shape: Sequence[int]) -> Any:
    """Nested lists of 0.0; for the shape () the number itself."""
    return [zeros(shape[1:]) for _ in range(shape[0])] if shape else 0.0


def apply(f: Callable[..., Any], *values: Any) -> Any:
    """f of each element, or of the elements at the same place in several nested lists of one shape."""
    if isinstance(values[0], (list, tuple)):
        return [apply(f, *items) for items in zip(*values, strict=True)]
    return f(*values)


def flatten(value: Any) -> list[Any]:
    """The elements in C order: the last axis runs fastest."""
    if not isinstance(value, (list, tuple)):
        return [value]
    return [element for item in value for element in flatten(item)]


def reshape(elements: Sequence[Any], shape: Sequence[int]) -> Any:
    """Nested lists of the given shape from a flat list, in C order."""
    if not shape:
        return elements[0]
    step = math.prod(shape[1:])
    return [reshape(elements[i * step : (i + 1) * step], shape[1:]) for i in range(shape[0])]

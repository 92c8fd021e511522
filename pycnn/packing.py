"""Several inputs or outputs of a graph travel as one: rows of a matrix, in which each takes its columns.

So executors, batches and files know one array in and one out; only layers that take or give several know of it.
"""

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

import numpy as np

from pycnn import operators
from pycnn.graph import Graph, Shape, Value

if TYPE_CHECKING:
    from pycnn.layers.base import Layer


def add_inputs(graph: Graph, layer: "Layer", shapes: Sequence[Shape]) -> list[Value]:
    """The inputs of these shapes, cut out of the one that the graph gets."""
    sizes = [math.prod(shape) for shape in shapes]
    packed = graph.input((sum(sizes),))
    firsts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
    return [
        graph.add(operators.Slice(first, tuple(shape)), [packed], layer, {})
        for first, shape in zip(firsts, shapes, strict=True)
    ]


def add_outputs(graph: Graph, layer: "Layer", values: Sequence[Value]) -> None:
    """Makes these values the graph's one output."""
    rows = [graph.add(operators.Flatten(), [value], layer, {}) for value in values]
    graph.outputs = [graph.add(operators.Concatenate(), rows, layer, {})]
    graph.packed = list(values)


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """(N, ...) arrays as the columns of one (N, all)."""
    return np.concatenate([array.reshape(len(array), -1) for array in arrays], axis=1)


def split(packed: np.ndarray, shapes: Sequence[Shape]) -> list[np.ndarray]:
    """Arrays of their own, of these shapes without the batch axis, from the columns of one."""
    ends = list(accumulate(math.prod(shape) for shape in shapes))
    return [
        packed[:, end - math.prod(shape) : end].reshape(len(packed), *shape).copy()
        for end, shape in zip(ends, shapes, strict=True)
    ]

"""Layers that make one tensor of several."""

from functools import reduce

import numpy as np

from pycnn import operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer


class Add(Layer):
    """The sum of two or more inputs of one shape."""

    arity = None

    def emit(self, graph: Graph, x: list[Value]) -> Value:
        return reduce(lambda a, b: self._add(graph, operators.Add(), a, b), x)


class Concatenate(Layer):
    """The channels of two or more images (N, C, H, W), or the features of (N, F), one after another."""

    arity = None

    def create(self, input_shape: tuple[Shape, ...], generator: np.random.Generator) -> None:
        shapes.concatenate(self.name, input_shape)

    def emit(self, graph: Graph, x: list[Value]) -> Value:
        return self._add(graph, operators.Concatenate(), *x)

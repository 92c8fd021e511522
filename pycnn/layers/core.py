"""Dense and Dropout."""

from typing import Any

import numpy as np

from pycnn import initializers, operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers import activation as activations
from pycnn.layers.base import Layer


class Dense(Layer):
    """y = x weight + bias for x (N, in); parameters: weight (in, units), bias (units,)."""

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        bias: bool = True,
        init: str | initializers.Initializer = "he_normal",
        *,
        name: str | None = None,
        input_shape: Any = None,
    ):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(units=units, activation=activation, bias=bias, init=init)
        self.units = shapes.integer("Dense", "units", units, 1)
        self.bias = shapes.boolean("Dense", "bias", bias)
        activations.check("Dense", activation)
        self.activation = activation
        initializers.check("Dense", init)
        self.init = init

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        if len(input_shape) != 1:
            raise ValueError(f"[{self.name}] the input must be (N, in), got {('N', *input_shape)}; flatten it first")
        self._weight((input_shape[0], self.units), self.init, generator)
        if self.bias:
            self._parameter("bias", np.zeros(self.units))

    def emit(self, graph: Graph, x: Value) -> Value:
        y = self._add(graph, operators.Dense(), x)
        if self.activation is None:
            return y
        return graph.add(activations.operator(self.activation), [y], self, {})


class Dropout(Layer):
    """In training zeroes a share `rate` of the elements, 0 <= rate < 1, and scales the rest by 1 / (1 - rate)
    (Srivastava et al. 2014, section 4, scaled in training instead of after it).

    With `spatial`, whole channels of (N, C, H, W) are zeroed or kept (Tompson et al. 2015).
    """

    def __init__(self, rate: float, spatial: bool = False, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(rate=rate, spatial=spatial)
        self.rate = shapes.number("Dropout", "rate", rate)
        if not 0 <= self.rate < 1:
            raise ValueError(f"[Dropout] rate must be at least 0 and below 1, got {rate!r}")
        self.spatial = shapes.boolean("Dropout", "spatial", spatial)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, operators.Dropout(self.rate, self.spatial), x)

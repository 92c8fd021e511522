"""Attention over channels."""

from typing import Any

import numpy as np

from pycnn import initializers, operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer


class SqueezeExcite(Layer):
    """Each channel of (N, C, H, W) times a factor in 0..1 that depends on the means of all channels:

    x * sigmoid(relu(mean(x) reduce_weight + reduce_bias) expand_weight + expand_bias) (Hu, Shen and Sun 2018,
    equations 2 to 4). Parameters: reduce_weight (C, C / ratio), expand_weight (C / ratio, C) and their biases; there
    is at least one hidden unit.
    """

    def __init__(self, ratio: int = 16, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(ratio=ratio)
        self.ratio = shapes.integer("SqueezeExcite", "ratio", ratio, 1)

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        _, channels = shapes.global_pool2d(self.name, (1, *input_shape))
        hidden = max(channels // self.ratio, 1)
        for name, shape in (("reduce", (channels, hidden)), ("expand", (hidden, channels))):
            self._parameter(f"{name}_weight", initializers.draw(self.name, "he_normal", shape, generator))
            self._parameter(f"{name}_bias", np.zeros(shape[1]))

    def _dense(self, graph: Graph, x: Value, which: str, activation: str) -> Value:
        parameters = {role: self.parameters[f"{which}_{role}"] for role in ("weight", "bias")}
        y = graph.add(operators.Dense(), [x], self, parameters)
        return graph.add(operators.Activation(activation), [y], self, {})

    def emit(self, graph: Graph, x: Value) -> Value:
        means = graph.add(operators.GlobalAvgPool2D(), [x], self, {})
        factors = self._dense(graph, self._dense(graph, means, "reduce", "relu"), "expand", "sigmoid")
        return graph.add(operators.ScaleChannels(), [x, factors], self, {})

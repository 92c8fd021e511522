"""Batch normalisation."""

from typing import Any

import numpy as np

from pycnn import operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer


class BatchNorm(Layer):
    """Normalises each channel of (N, C) or (N, C, H, W); parameters gamma and beta (C,).

    `state` holds running_mean and running_var: running = momentum * running + (1 - momentum) * batch, the
    variance over N (Ioffe and Szegedy 2015).
    """

    def __init__(self, momentum: float = 0.9, eps: float = 1e-5, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(momentum=momentum, eps=eps)
        self.momentum = shapes.number("BatchNorm", "momentum", momentum, 0, 1)
        self.eps = shapes.float32("BatchNorm", "eps", eps, 0)

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        if len(input_shape) not in (1, 3):
            raise ValueError(f"[{self.name}] the input must be (N, C) or (N, C, H, W), got {('N', *input_shape)}")
        channels = input_shape[0]
        self._parameter("gamma", np.ones(channels))
        self._parameter("beta", np.zeros(channels))
        self._parameter("running_mean", np.zeros(channels), learned=False)
        self._parameter("running_var", np.ones(channels), learned=False)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, operators.BatchNorm(self.momentum, self.eps), x)

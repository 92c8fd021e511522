"""Convolution layers."""

from typing import Any

import numpy as np

from pycnn import initializers, operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers import activation as activations
from pycnn.layers.base import Layer

# Weights lie in memory as (R, S, C/groups, K) and are shown as (K, C/groups, R, S).
RSCK_AS_KCRS = (3, 2, 0, 1)


class Conv2D(Layer):
    """2-D convolution of (N, C, H, W) with `filters` filters.

    kernel_size, stride, dilation: int or (height, width). padding: "valid", "same" (output ceil(in / stride), the
    odd row or column at the bottom or right), an int, (ph, pw) or ((top, bottom), (left, right)).
    Parameters: weight (filters, C/groups, R, S), bias (filters,).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = "valid",
        dilation: Any = 1,
        groups: int = 1,
        bias: bool = True,
        activation: str | None = None,
        init: str | initializers.Initializer = "he_normal",
        input_shape: Any = None,
        *,
        name: str | None = None,
    ):
        op = type(self).__name__
        super().__init__(name=name, input_shape=input_shape)
        self._remember(filters=filters, kernel_size=kernel_size, stride=stride,
            padding=padding, dilation=dilation, groups=groups, bias=bias, activation=activation, init=init)  # fmt: skip
        self._take(op, kernel_size, stride, padding, dilation, bias, activation, init)
        self.filters = shapes.integer(op, "filters", filters, 1)
        self.groups = shapes.integer(op, "groups", groups, 1)
        if self.filters % self.groups:
            raise ValueError(f"[{op}] groups={self.groups} must divide filters={self.filters}")

    def _take(
        self,
        op: str,
        kernel_size: Any,
        stride: Any,
        padding: Any,
        dilation: Any,
        bias: Any,
        activation: Any,
        init: Any,
    ) -> None:
        self.kernel_size = shapes.pair(op, "kernel_size", kernel_size, 1)
        self.stride = shapes.pair(op, "stride", stride, 1)
        self.dilation = shapes.pair(op, "dilation", dilation, 1)
        if isinstance(padding, str) and padding not in ("valid", "same"):
            raise ValueError(f'[{op}] padding must be "valid", "same" or integers, got {padding!r}')
        self.padding = padding if isinstance(padding, str) else shapes.padding4(op, padding)
        self.bias = shapes.boolean(op, "bias", bias)
        activations.check(op, activation)
        self.activation = activation
        initializers.check(op, init)
        self.init = init

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        shapes.sizes(self.name, "input_shape", input_shape, 3)
        channels = input_shape[0]
        if channels % self.groups:
            raise ValueError(f"[{self.name}] groups={self.groups} must divide the input's {channels} channels")
        self._weight((self.filters, channels // self.groups, *self.kernel_size), self.init, generator, RSCK_AS_KCRS)
        if self.bias:
            self._parameter("bias", np.zeros(self.filters))

    def _padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":
            sizes = zip((height, width), self.kernel_size, self.stride, self.dilation, strict=True)
            vertical, horizontal = (shapes.same_padding(*size) for size in sizes)
            return vertical, horizontal
        top, bottom, left, right = self.padding
        return (top, bottom), (left, right)

    def emit(self, graph: Graph, x: Value) -> Value:
        if len(x.shape) != 3:
            raise ValueError(f"[{self.name}] the input must be (N, C, H, W), got {('N', *x.shape)}")
        padding = self._padding(*x.shape[1:])
        y = self._add(graph, operators.Conv2D(self.stride, padding, self.dilation, self.groups), x)
        if self.activation is None:
            return y
        return graph.add(activations.operator(self.activation), [y], self, {})


class DepthwiseConv2D(Conv2D):
    """One filter for each channel, or `multiplier` of them: weight (C * multiplier, 1, R, S)."""

    def __init__(
        self,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = "valid",
        dilation: Any = 1,
        multiplier: int = 1,
        bias: bool = True,
        activation: str | None = None,
        init: str | initializers.Initializer = "he_normal",
        input_shape: Any = None,
        *,
        name: str | None = None,
    ):
        op = type(self).__name__
        Layer.__init__(self, name=name, input_shape=input_shape)
        self._remember(kernel_size=kernel_size, stride=stride, padding=padding,
            dilation=dilation, multiplier=multiplier, bias=bias, activation=activation, init=init)  # fmt: skip
        self._take(op, kernel_size, stride, padding, dilation, bias, activation, init)
        self.multiplier = shapes.integer(op, "multiplier", multiplier, 1)

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        shapes.sizes(self.name, "input_shape", input_shape, 3)
        self.groups = input_shape[0]
        self.filters = self.groups * self.multiplier
        super().create(input_shape, generator)

"""Convolution layers."""

from typing import Any

import numpy as np

from pycnn import initializers, operators, shapes
from pycnn.graph import Graph, Shape, Value
from pycnn.layers import activation as activations
from pycnn.layers.base import Layer

# Weights lie in memory as (R, S, C/groups, K) and are shown as (K, C/groups, R, S).
RSCK_AS_KCRS = (3, 2, 0, 1)


class _Convolution(Layer):
    """What convolutions share: their options, `filters` and `groups` among them, and weights that lie as R, S, ..."""

    filters: int
    groups: int

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
        self.padding = padding if isinstance(padding, str) else shapes.padding4(op, padding)
        self.bias = shapes.boolean(op, "bias", bias)
        activations.check(op, activation)
        self.activation = activation
        initializers.check(op, init)
        self.init = init

    def _take_filters(self, op: str, filters: Any, groups: Any) -> None:
        self.filters = shapes.integer(op, "filters", filters, 1)
        self.groups = shapes.integer(op, "groups", groups, 1)
        if self.filters % self.groups:
            raise ValueError(f"[{op}] groups={self.groups} must divide filters={self.filters}")

    def _weight_shape(self, channels: int) -> Shape:
        raise NotImplementedError

    def _operator(self, height: int, width: int) -> operators.Operator:
        """The operation on images of this size."""
        raise NotImplementedError

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        shapes.sizes(self.name, "input_shape", input_shape, 3)
        channels = input_shape[0]
        if channels % self.groups:
            raise ValueError(f"[{self.name}] groups={self.groups} must divide the input's {channels} channels")
        self._weight(self._weight_shape(channels), self.init, generator, RSCK_AS_KCRS)
        if self.bias:
            self._parameter("bias", np.zeros(self.filters))

    def emit(self, graph: Graph, x: Value) -> Value:
        if len(x.shape) != 3:
            raise ValueError(f"[{self.name}] the input must be (N, C, H, W), got {('N', *x.shape)}")
        y = self._add(graph, self._operator(*x.shape[1:]), x)
        if self.activation is None:
            return y
        return graph.add(activations.operator(self.activation), [y], self, {})


class Conv2D(_Convolution):
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
        self._take_filters(op, filters, groups)

    def _take(self, op: str, kernel_size: Any, stride: Any, padding: Any, *others: Any) -> None:
        if isinstance(padding, str) and padding not in ("valid", "same"):
            raise ValueError(f'[{op}] padding must be "valid", "same" or integers, got {padding!r}')
        super()._take(op, kernel_size, stride, padding, *others)

    def _weight_shape(self, channels: int) -> Shape:
        return self.filters, channels // self.groups, *self.kernel_size

    def _padding(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        if self.padding == "valid":
            return (0, 0), (0, 0)
        if self.padding == "same":
            sizes = zip((height, width), self.kernel_size, self.stride, self.dilation, strict=True)
            vertical, horizontal = (shapes.same_padding(*size) for size in sizes)
            return vertical, horizontal
        top, bottom, left, right = self.padding
        return (top, bottom), (left, right)

    def _operator(self, height: int, width: int) -> operators.Operator:
        return operators.Conv2D(self.stride, self._padding(height, width), self.dilation, self.groups)


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


class ConvTranspose2D(_Convolution):
    """Transposed 2-D convolution of (N, C, H, W): the gradient of a `Conv2D` with C filters, as a layer.

    The output is (N, filters, OH, OW), OH = (H - 1) stride - pads + dilation (R - 1) + output_padding + 1.
    kernel_size, stride, dilation, output_padding: int or (height, width), output_padding smaller than stride or
    dilation; padding: an int, (ph, pw) or ((top, bottom), (left, right)), cut off the output.
    Parameters: weight (C, filters/groups, R, S), bias (filters,).
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Any,
        stride: Any = 1,
        padding: Any = 0,
        output_padding: Any = 0,
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
            padding=padding, output_padding=output_padding, dilation=dilation, groups=groups, bias=bias,
            activation=activation, init=init)  # fmt: skip
        if isinstance(padding, str):
            raise TypeError(f"[{op}] padding must be integers, got {padding!r}")
        self._take(op, kernel_size, stride, padding, dilation, bias, activation, init)
        self._take_filters(op, filters, groups)
        self.output_padding = shapes.pair(op, "output_padding", output_padding)

    def _weight_shape(self, channels: int) -> Shape:
        return channels, self.filters // self.groups, *self.kernel_size

    def _operator(self, height: int, width: int) -> operators.Operator:
        top, bottom, left, right = self.padding
        padding = (top, bottom), (left, right)
        return operators.ConvTranspose2D(self.stride, padding, self.output_padding, self.dilation, self.groups)

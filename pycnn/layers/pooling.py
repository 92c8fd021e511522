"""Pooling layers, of (N, C, H, W)."""

from typing import Any

from pycnn import operators, shapes
from pycnn.graph import Graph, Value
from pycnn.layers.base import Layer


def _check(op: str, pool_size: Any, **options: Any) -> None:
    """Refuses options that no input could be pooled with."""
    size = max(shapes.pair(op, "pool_size", pool_size, 1))
    extent = shapes.pair(op, "dilation", options.get("dilation", 1), 1)
    side = max(extent) * size
    shapes.pool2d(op, (1, 1, side, side), pool_size, **options)


class MaxPool2D(Layer):
    """The maximum of each window; stride None is pool_size."""

    def __init__(
        self,
        pool_size: Any = 2,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        *,
        name: str | None = None,
        input_shape: Any = None,
    ):
        options = {"stride": stride, "padding": padding, "dilation": dilation, "ceil_mode": ceil_mode}
        super().__init__(name=name, input_shape=input_shape)
        self._remember(pool_size=pool_size, **options)
        _check("MaxPool2D", pool_size, **options)
        self._operator = operators.MaxPool2D(pool_size, **options)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)


class AvgPool2D(Layer):
    """The mean of each window; stride None is pool_size."""

    def __init__(
        self,
        pool_size: Any = 2,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        *,
        name: str | None = None,
        input_shape: Any = None,
    ):
        options = {
            "stride": stride,
            "padding": padding,
            "ceil_mode": ceil_mode,
            "count_include_pad": count_include_pad,
        }
        super().__init__(name=name, input_shape=input_shape)
        self._remember(pool_size=pool_size, **options)
        _check("AvgPool2D", pool_size, **options)
        self._operator = operators.AvgPool2D(pool_size, **options)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)


class GlobalAvgPool2D(Layer):
    """The mean over all pixels: (N, C)."""

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, operators.GlobalAvgPool2D(), x)


class GlobalMaxPool2D(Layer):
    """The maximum over all pixels: (N, C)."""

    def emit(self, graph: Graph, x: Value) -> Value:
        shapes.global_pool2d(self.name, (1, *x.shape))
        plane = x.shape[1:]
        highest = graph.add(operators.MaxPool2D(plane, plane), [x], self, {})
        return self._add(graph, operators.Flatten(), highest)


class AdaptiveAvgPool2D(Layer):
    """Means over windows that share an image out to (N, C, *output_size).

    output_size: int or (height, width), of which None stays as it is. Output i of O along a side of S pixels averages
    those from floor(i S / O) to below ceil((i + 1) S / O), as in PyTorch.
    """

    def __init__(self, output_size: Any, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(output_size=output_size)
        shapes.adaptive_pool2d("AdaptiveAvgPool2D", (1, 1, 1, 1), output_size)
        self.output_size = tuple(output_size) if isinstance(output_size, (tuple, list)) else (output_size, output_size)

    def emit(self, graph: Graph, x: Value) -> Value:
        oh, ow = shapes.adaptive_pool2d(self.name, (1, *x.shape), self.output_size)
        _, h, w = x.shape
        if h % oh == 0 and w % ow == 0:
            window = (h // oh, w // ow)
            return self._add(graph, operators.AvgPool2D(window, window), x)
        return self._add(graph, operators.AdaptiveAvgPool2D((oh, ow)), x)

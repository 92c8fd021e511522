"""Layers that move elements, or put others between them: Flatten, Reshape, ZeroPad2D, UpSample2D."""

from typing import Any

from pycnn import operators, shapes
from pycnn.graph import Graph, Value
from pycnn.layers.base import Layer


class Flatten(Layer):
    """(N, C, H, W) to (N, C * H * W), in that order."""

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, operators.Flatten(), x)


class Reshape(Layer):
    """(N, ...) to (N, *shape), with the elements in the order (C, H, W); one size may be -1, what remains."""

    def __init__(self, shape: Any, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(shape=shape)
        if not isinstance(shape, (tuple, list)):
            raise TypeError(f"[Reshape] shape must be a tuple of integers, got {shape!r}")
        known = [size for size in shape if type(size) is not int or size != -1]
        if len(shape) - len(known) > 1:
            raise ValueError(f"[Reshape] shape may have one size -1, got {shape!r}")
        shapes.sizes("Reshape", "shape", known)
        self.shape = tuple(int(size) for size in shape)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, operators.Reshape(self.shape), x)


class ZeroPad2D(Layer):
    """Rows and columns of zeros around (N, C, H, W); padding: int, (ph, pw) or ((top, bottom), (left, right))."""

    def __init__(self, padding: Any, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(padding=padding)
        top, bottom, left, right = shapes.padding4("ZeroPad2D", padding)
        self._operator = operators.ZeroPad2D(((top, bottom), (left, right)))

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)


class UpSample2D(Layer):
    """(N, C, H, W) to (N, C, scale H, scale W); scale: int or (height, width).

    mode "nearest" repeats pixels; "bilinear" interpolates between the centres of pixels (align_corners=False).
    """

    def __init__(self, scale: Any = 2, mode: str = "nearest", *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(scale=scale, mode=mode)
        shapes.upsample2d("UpSample2D", (1, 1, 1, 1), scale, mode)
        self._operator = operators.UpSample2D(shapes.pair("UpSample2D", "scale", scale, 1), mode)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)

"""Layers made of layers."""

from typing import Any

import numpy as np

from pycnn import operators
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer, as_list, name_layers


def build_chain(layers: list[Layer], shape: Shape, generator: np.random.Generator) -> Shape:
    """Builds layers one after another; the shape that comes out."""
    for layer in layers:
        layer.build(shape, generator)
        shape = layer.output_shape(shape)
    return shape


def emit_chain(layers: list[Layer], graph: Graph, x: Value) -> Value:
    for layer in layers:
        x = layer.emit(graph, x)
    return x


class Residual(Layer):
    """body(x) + shortcut(x); each a layer or a list of layers, the shortcut x itself by default (He et al. 2016)."""

    def __init__(self, body: Any, shortcut: Any = None, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(body=body, shortcut=shortcut)
        self.body = as_list("Residual", "body", body)
        self.shortcut = [] if shortcut is None else as_list("Residual", "shortcut", shortcut)
        name_layers(self)

    @property
    def children(self) -> list[Layer]:
        return self.body + self.shortcut

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        shape = build_chain(self.body, input_shape, generator)
        other = build_chain(self.shortcut, input_shape, generator)
        if shape != other:
            raise ValueError(f"[{self.name}] the body gives {('N', *shape)}, the shortcut {('N', *other)}")

    def emit(self, graph: Graph, x: Value) -> Value:
        body = emit_chain(self.body, graph, x)
        return self._add(graph, operators.Add(), body, emit_chain(self.shortcut, graph, x))

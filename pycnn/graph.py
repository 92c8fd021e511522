"""The graph of a model: logical operations on named tensors, without a batch size.

Layers emit nodes; lowering makes plans of a graph, and the reference executor runs it as it is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from pycnn import shapes

if TYPE_CHECKING:
    from pycnn.layers.base import Layer
    from pycnn.operators import Operator

Shape = tuple[int, ...]


class Parameter:
    """An array of a layer that kernels read, with its gradient.

    `memory` has the kernels' layout; `view` shows the same memory in the public one, which is `memory`
    transposed by `axes` (convolution weights lie as R, S, C, K and are shown as K, C, R, S).

    Predictions keep what they have made of the parameters until `changes` differs: it is another number after each
    time that anybody may have written to any parameter. `shared` says that users hold the array and may write at any
    time.
    """

    changes: ClassVar[int] = 0
    _counter: ClassVar[Iterator[int]] = count(1)

    def __init__(self, name: str, value: np.ndarray, axes: tuple[int, ...] | None = None, learned: bool = True):
        self.name = name
        self.axes = axes or tuple(range(value.ndim))
        ordered = value.transpose(np.argsort(self.axes))
        self.memory = shapes.empty(name, ordered.shape)
        self.memory[...] = ordered
        self.learned = learned
        self.shared = False
        self._gradient: np.ndarray | None = None

    @classmethod
    def changed(cls) -> None:
        """To be called by those who write to `memory`."""
        Parameter.changes = next(cls._counter)

    @property
    def view(self) -> np.ndarray:
        """The array in its public shape, writable."""
        self.changed()
        return self.memory.transpose(self.axes)

    def share(self) -> np.ndarray:
        """The array in its public shape, for users to keep."""
        self.shared = True
        return self.view

    @property
    def shape(self) -> Shape:
        """The public shape."""
        return tuple(self.memory.shape[i] for i in self.axes)

    def __getstate__(self) -> tuple:
        return self.name, self.view, self.axes, self.learned, self._gradient

    def __setstate__(self, state: tuple) -> None:
        """A copy shows its own memory, which copying `view` and `memory` each for itself would not give."""
        *arguments, gradient = state
        self.__init__(*arguments)
        self._gradient = gradient

    @property
    def gradient(self) -> np.ndarray:
        """The gradient's memory, in the kernels' layout; zeros before the first backward."""
        if self._gradient is None:
            self._gradient = self.another(0.0)
        return self._gradient

    def another(self, value: float) -> np.ndarray:
        """New memory of the same layout."""
        memory = shapes.empty(self.name, self.memory.shape)
        memory[...] = value
        return memory

    @property
    def gradient_view(self) -> np.ndarray:
        return self.gradient.transpose(self.axes)


@dataclass(eq=False)
class Value:
    """A tensor between operations; `shape` is without the batch axis."""

    shape: Shape


@dataclass(eq=False)
class Node:
    """An operation with its inputs, its output and the parameters it reads."""

    operator: "Operator"
    inputs: list[Value]
    output: Value
    parameters: dict[str, Parameter]
    layer: "Layer"
    number: int  # its place in the graph that its layers emitted
    norm: "Node | None" = None  # the batch norm that a convolution does as well, when it only predicts

    @property
    def trained(self) -> dict[str, Parameter]:
        """The parameters that training updates, by role."""
        return {r: p for r, p in self.parameters.items() if p.learned} if self.layer.trainable else {}


@dataclass(eq=False)
class Graph:
    """Nodes in an order in which they can run, from `inputs` to `outputs`."""

    inputs: list[Value] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    packed: list[Value] = field(default_factory=list)  # several outputs that travel as one, see packing.py

    def input(self, shape: Shape) -> Value:
        self.inputs.append(Value(tuple(shape)))
        return self.inputs[-1]

    def add(
        self,
        operator: "Operator",
        inputs: Sequence[Value],
        layer: "Layer",
        parameters: dict[str, Parameter],
    ) -> Value:
        """Appends an operation of a layer and returns its output."""
        sizes = {name: p.shape for name, p in parameters.items()}
        output = Value(operator.output_shape([v.shape for v in inputs], sizes))
        self.nodes.append(Node(operator, list(inputs), output, parameters, layer, len(self.nodes)))
        return output

    def producer(self, value: Value) -> Node | None:
        """The node whose output this is; None for an input."""
        return next((node for node in reversed(self.nodes) if node.output is value), None)

    def prune(self) -> None:
        """Drops the nodes that no output depends on, and counts the others anew."""
        needed = set(self.outputs)
        for node in reversed(self.nodes):
            if node.output in needed:
                needed.update(node.inputs)
        self.nodes = [node for node in self.nodes if node.output in needed]
        for number, node in enumerate(self.nodes):
            node.number = number

    def parameters(self) -> dict[str, Parameter]:
        """Every parameter, by the name that plans bind it under."""
        return {
            bound_name(node.number, role): parameter
            for node in self.nodes
            for role, parameter in node.parameters.items()
        }


def bound_name(node: int, role: str) -> str:
    """The name of a node's parameter among a plan's outside arrays."""
    return f"{node}.{role}"

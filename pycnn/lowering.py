"""From a graph to a plan for one batch size, in passes.

Fusion: neighbours become one node (fusion.py). Layout: images lie channels-last between all operations; they are
transposed where a user's array enters or leaves. Forward: each operator appends its calls. Backward: in reverse
order, the gradients of a value with several readers being added up. Memory: the builder places every buffer by its
first and last use. Threads: the builder tells which calls have work enough for them.
"""

import math
from dataclasses import dataclass
from typing import Any

from pycnn import calls
from pycnn.fusion import fuse
from pycnn.graph import Graph, Node, Parameter, Shape, Value, bound_name
from pycnn.operators import Lowering
from pycnn.plan import Buffer, Plan, PlanBuilder


@dataclass(frozen=True)
class Options:
    """What a plan is made for besides its graph; part of the key it is kept under."""

    n: int
    channels_last: bool = False  # the memory of the input
    training: bool = False
    kept: bool = False  # whether the parameters stay the same from run to run
    weighted: bool = False  # each sample's loss has a weight, in the outside array "weights"


def gradient_name(node: int, role: str) -> str:
    return bound_name(node, role) + ".gradient"


def output_name(node: int) -> str:
    """The outside array that receives a node's output in a plan with `all_outputs`."""
    return f"{node}.output"


def _transposed(shape: Shape) -> bool:
    """Whether an image of this shape lies differently in (C, H, W) and (H, W, C) order."""
    return len(shape) == 3 and shape[0] > 1 and shape[1] * shape[2] > 1


class GraphLowering:
    """The state of lowering one graph: which buffer holds which value, and each node's context."""

    def __init__(self, graph: Graph, options: Options, differentiated: bool, all_outputs: bool = False):
        self.graph = graph
        self.options = options
        self.b = PlanBuilder()
        self.buffers: dict[Value, Buffer] = {}
        self.contexts: list[Lowering] = []
        self._moments: dict[Value, calls.Moments] = {}
        self._differentiated = differentiated
        self._all_outputs = all_outputs
        self.gradient_names = {p: gradient_name(*first) for p, first in _first_readers(graph).items()}

    def size(self, value: Value) -> int:
        return self.options.n * math.prod(value.shape)

    def load(self, name: str, value: Value, channels_last: bool) -> Buffer:
        """The outside array of this name, brought to channels-last order."""
        given = self.b.external(name)
        if channels_last or not _transposed(value.shape):
            return given
        c, h, w = value.shape
        buffer = self.b.arena(self.size(value))
        calls.transpose(self.b, self.options.n, c, h * w, buffer, given)
        return buffer

    def store(self, name: str, value: Value, buffer: Buffer) -> None:
        """Brings a value to the outside array of this name, in (N, C, H, W) order."""
        self.b.owner = ("output", "forward")
        wanted = self.b.external(name)
        if buffer is wanted:
            return
        if _transposed(value.shape):
            c, h, w = value.shape
            calls.transpose(self.b, self.options.n, h * w, c, wanted, buffer)
        else:
            calls.copy(self.b, self.size(value), wanted, buffer)

    def forward(self) -> None:
        (given,) = self.graph.inputs
        self.b.owner = ("input", "forward")
        self.buffers[given] = self.load("x", given, self.options.channels_last)
        for node in self.graph.nodes:
            context = Lowering(
                self.b,
                self.options.n,
                node.number,
                node,
                self.options.training,
                [self.buffers[v] for v in node.inputs],
                lambda shape: self.b.arena(self.options.n * math.prod(shape)),
                {
                    role: self.b.external(bound_name(part.number, role))
                    for part in (node, node.norm)
                    if part is not None
                    for role in part.parameters
                },
                kept=self.options.kept,
                differentiated=self._differentiated,
                moments=self._moments,
            )
            self.contexts.append(context)
            self.b.owner = (node.layer.name, "forward")
            context.output = self.buffers[node.output] = node.operator.lower(context)
            if self._all_outputs:
                self.store(output_name(node.number), node.output, context.output)

    def finish_forward(self) -> None:
        """Appends what the forward pass has put off until its loss is known."""
        for context in self.contexts:
            self.b.owner = (context.node.layer.name, "forward")
            for append in context.later:
                append()

    def _need_gradients(self, of_input: bool) -> set[Value]:
        """The values on a path from a trained parameter (or from the input, if its gradient is wanted)."""
        needed = set(self.graph.inputs) if of_input else set()
        for node in self.graph.nodes:
            if node.trained or any(v in needed for v in node.inputs):
                needed.add(node.output)
        return needed

    def backward(self, gradients: list[tuple[Value, Buffer]], of_input: bool) -> dict[Value, Buffer]:
        """Appends backward calls from the gradients of some values on; the gradients that remain."""
        needed = self._need_gradients(of_input)
        parts: dict[Value, list[Buffer]] = {}
        for value, gradient in gradients:
            parts.setdefault(value, []).append(gradient)
        written: set[Parameter] = set()
        for c in reversed(self.contexts):
            node = c.node
            if node.output not in parts or node.output not in needed:
                continue
            dy = parts.pop(node.output)
            if node.operator.adds_gradients and len(dy) > 1:
                c.second_dy = dy.pop()
            c.gradients = self._parameter_gradients(node, written)
            c.wanted = [v in needed for v in node.inputs]
            self.b.owner = (node.layer.name, "backward")
            dxs = node.operator.lower_backward(c, self._sum(node.output, dy))
            for v, dx in zip(node.inputs, dxs, strict=True):
                if dx is not None and v in needed:
                    parts.setdefault(v, []).append(dx)
            for role, p in node.trained.items():
                if p in written:
                    total = self.b.external(self.gradient_names[p])
                    calls.add(self.b, p.memory.size, total, total, c.gradients[role])
            written.update(node.trained.values())
        return {v: self._sum(v, buffers) for v, buffers in parts.items()}

    def _parameter_gradients(self, node: Node, written: set[Parameter]) -> dict[str, Buffer]:
        """Where a node's go: to their outside arrays, or, if another call of the layer has been there, beside them."""
        return {
            role: self.b.arena(p.memory.size) if p in written else self.b.external(self.gradient_names[p])
            for role, p in node.trained.items()
        }

    def _sum(self, value: Value, parts: list[Buffer]) -> Buffer:
        total, *others = parts
        for part in others:
            first, total = total, self.b.arena(self.size(value))
            calls.add(self.b, self.size(value), total, first, part)
        return total


def _first_readers(graph: Graph) -> dict[Parameter, tuple[int, str]]:
    """Each parameter that training updates, with (node, role) of the first node of those that share it."""
    found: dict[Parameter, tuple[int, str]] = {}
    for node in sorted(graph.nodes, key=lambda node: node.number):
        for role, parameter in node.trained.items():
            found.setdefault(parameter, (node.number, role))
    return found


def trained_parameters(graph: Graph) -> list[tuple[int, str]]:
    """(node, role) of every parameter that training updates, each once."""
    return list(_first_readers(graph).values())


def inference_plan(graph: Graph, options: Options, all_outputs: bool = False) -> Plan:
    """Outside arrays: x, y and the parameters; with `all_outputs` one for each node's output as well."""
    lowering = GraphLowering(graph if all_outputs else fuse(graph, (), True), options, False, all_outputs)
    lowering.forward()
    (output,) = graph.outputs
    lowering.store("y", output, lowering.buffers[output])
    return lowering.b.finish()


def layer_plan(graph: Graph, options: Options) -> Plan:
    """Forward from x to y, mark "backward", then from dy to dx and the gradients of the parameters."""
    lowering = GraphLowering(fuse(graph, (), False), options, True)
    lowering.forward()
    lowering.finish_forward()
    (given,), (output,) = graph.inputs, graph.outputs
    lowering.store("y", output, lowering.buffers[output])
    lowering.b.mark("backward")
    dy = lowering.load("dy", output, False)
    gradients = lowering.backward([(output, dy)], of_input=True)
    lowering.store("dx", given, gradients[given])
    return lowering.b.finish(repeatable="backward")


def loss_plan(
    graph: Graph,
    options: Options,
    loss: Any,
    kind: str,
    update_passes: tuple = (),
    updates: Any = None,
) -> Plan:
    """Forward to y and the loss; with `update_passes`, if it is finite, the gradients, mark "gradients", the passes.

    `loss` is a loss of pycnn.losses, `kind` its kind of labels. A pass is a function (updates, set(), b, node, role)
    that appends calls for one parameter: the norm of its gradient, its update. Outside arrays: x, y, labels, loss,
    the parameters, their gradients and what the passes bind.
    """
    (output,) = graph.outputs
    trains = bool(update_passes)
    lowering = GraphLowering(fuse(graph, loss.scored_values(graph), not trains), options, trains)
    lowering.forward()
    b = lowering.b
    lowering.store("y", output, lowering.buffers[output])
    b.owner = ("loss", "forward")
    gradients = loss.lower_scored(lowering, kind, trains)
    if trains:
        b.mark("backward")
        lowering.finish_forward()
        lowering.backward(gradients, of_input=False)
        b.mark("gradients")
        for update_pass in update_passes:
            seen: set[int] = set()
            for node, role in trained_parameters(graph):
                b.owner = (graph.nodes[node].layer.name, "update")
                update_pass(updates, seen, b, node, role)
    return b.finish()

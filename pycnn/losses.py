"""Losses: the mean over the batch, each with its gradient, from C or from the reference."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import calls, operators, reference, shapes
from pycnn.graph import Graph, Shape, Value

if TYPE_CHECKING:
    from pycnn.lowering import GraphLowering
    from pycnn.plan import Buffer

# The two kinds of labels: class numbers (N,) as int32, or an array of the output's shape as float32.
INDICES, TARGETS = "indices", "targets"


class Loss:
    """A loss; subclasses may take the input of the model's last operation instead of its output (`absorbs`)."""

    name = ""

    def key(self) -> tuple:
        """What plans with this loss depend on."""
        return (type(self), *vars(self).values())

    def absorbs(self, operator: operators.Operator) -> bool:
        """Whether the loss computes this last operation itself, in a stable form."""
        return False

    def scored_value(self, graph: Graph) -> Value:
        """The value that the loss is computed from: the graph's output, or what the absorbed node reads."""
        (output,) = graph.outputs
        last = graph.nodes[-1] if graph.nodes else None
        if last is not None and last.output is output and self.absorbs(last.operator):
            return last.inputs[0]
        return output

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        """(the kind of labels, the labels for the kernels) from what the user gave; checks everything."""
        targets = shapes.array(self.name, "y", y)
        if targets.ndim == 1 and output == (1,):
            targets = targets.reshape(-1, 1)
        shapes.expect_shape(self.name, "y", targets.shape, (n, *output))
        return TARGETS, np.ascontiguousarray(targets)

    def lower(self, lowering: "GraphLowering", value: Value, kind: str, gradient: "Buffer | None") -> None:
        """Appends the call that writes the loss and, if wanted, its gradient; labels have the outside name."""
        b, rows = lowering.b, lowering.options.n
        labels = lowering.load("labels", value, False)
        args = [b.external("loss"), gradient, lowering.buffers[value], labels]
        calls.by_rows(b, self.name, rows, math.prod(value.shape), args, stops=gradient is not None)

    def run(self, scored: Any, labels: Any) -> tuple[float, Any]:
        """(mean loss, gradient) of nested lists on the reference."""
        return getattr(reference, self.name)(scored, labels)


@dataclass
class CrossEntropy(Loss):
    """Softmax cross entropy of logits (N, classes); a model that ends in softmax is scored by its logits.

    Labels: integers (N,) in 0..classes-1, or one-hot rows (N, classes). Report 001, equations 16 and 17.
    """

    name = "cross_entropy"

    def absorbs(self, operator: operators.Operator) -> bool:
        return isinstance(operator, operators.Softmax)

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        if len(output) != 1:
            raise ValueError(f"[cross_entropy] the model's output must be (N, classes), got {('N', *output)}")
        indices, targets = shapes.class_labels(self.name, y, n, output[0])
        return (TARGETS, targets) if indices is None else (INDICES, indices)

    def lower(self, lowering: "GraphLowering", value: Value, kind: str, gradient: "Buffer | None") -> None:
        b = lowering.b
        labels = b.external("labels")
        args = [b.external("loss"), gradient, lowering.buffers[value]]
        args += [labels, None] if kind == INDICES else [None, labels]
        stops = gradient is not None
        calls.by_rows(b, "softmax_cross_entropy", lowering.options.n, value.shape[0], args, stops=stops)

    def run(self, scored: Any, labels: Any) -> tuple[float, Any]:
        return reference.softmax_cross_entropy(scored, labels)


@dataclass
class BinaryCrossEntropy(Loss):
    """Mean of max(z, 0) - z t + log(1 + exp(-|z|)) over logits z and targets t in 0..1, of any one shape.

    A model that ends in sigmoid is scored by its logits.
    """

    name = "binary_cross_entropy"

    def absorbs(self, operator: operators.Operator) -> bool:
        return isinstance(operator, operators.Activation) and operator.name == "sigmoid"

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        kind, targets = super().labels(y, n, output)
        if not np.all((targets >= 0) & (targets <= 1)):
            raise ValueError("[binary_cross_entropy] y must be in 0..1, got NaN or a value outside")
        return kind, targets


@dataclass
class MeanSquaredError(Loss):
    """Mean of (y - target)^2 over all elements."""

    name = "mse"

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        kind, targets = super().labels(y, n, output)
        if not np.all(np.isfinite(targets)):
            raise ValueError("[mse] y must be finite, got NaN or infinity")
        return kind, targets


LOSSES = {loss.name: loss for loss in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError)}


def get(loss: str | Loss) -> Loss:
    """A loss from its name or object."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"[compile] loss must be one of {', '.join(LOSSES)} or a loss object, got {loss!r}")
    return LOSSES[loss]()

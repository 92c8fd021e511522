"""Losses: the mean over the batch, each with its gradient, from C or from the reference."""

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import calls, operators, packing, reference, shapes
from pycnn.graph import Graph, Shape, Value

if TYPE_CHECKING:
    from pycnn.lowering import GraphLowering
    from pycnn.plan import Buffer

# The two kinds of labels: class numbers (N,) as int32, or an array of the output's shape as float32.
INDICES, TARGETS = "indices", "targets"


class Loss:
    """A loss; subclasses may take the input of the model's last operation instead of its output (`absorbs`)."""

    name = ""  # also that of its twin
    kernel = ""  # where it has another name

    def key(self) -> tuple:
        """What plans with this loss depend on."""
        return (type(self), *vars(self).values())

    def usual_kind(self) -> Any:
        """The kind of labels that it is mostly given."""
        return TARGETS

    def absorbs(self, operator: operators.Operator) -> bool:
        """Whether the loss computes this last operation itself, in a stable form."""
        return False

    def scored_value(self, graph: Graph, output: Value) -> Value:
        """The value that the loss of an output is computed from: itself, or what the absorbed node reads."""
        last = graph.producer(output)
        return last.inputs[0] if last is not None and self.absorbs(last.operator) else output

    def scored_values(self, graph: Graph) -> list[Value]:
        """What the loss of the whole graph is computed from."""
        return [self.scored_value(graph, graph.outputs[0])]

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        """(the kind of labels, the labels for the kernels) from what the user gave; checks everything."""
        targets = shapes.array(self.name, "y", y)
        if targets.ndim == 1 and output == (1,):
            targets = targets.reshape(-1, 1)
        shapes.expect_shape(self.name, "y", targets.shape, (n, *output))
        self.check_targets(targets)
        return TARGETS, np.ascontiguousarray(targets)

    def check_targets(self, targets: np.ndarray) -> None:
        """Refuses targets that the loss is not made for."""
        if not np.all(np.isfinite(targets)):
            raise ValueError(f"[{self.name}] y must be finite, got NaN or infinity")

    def lower_scored(
        self, lowering: "GraphLowering", kind: Any, wants_gradient: bool, output: Value | None = None
    ) -> "list[tuple[Value, Buffer | None]]":
        """Appends the loss of an output (or the only one); the gradients to go back from, with what they are of."""
        value = self.scored_value(lowering.graph, output or lowering.graph.outputs[0])
        gradient = lowering.b.arena(lowering.size(value)) if wants_gradient else None
        self.lower(lowering, value, kind, gradient)
        return [(value, gradient)]

    def options(self) -> dict[str, float]:
        """The loss's one number, by its name in the reference."""
        return {}

    def lower(self, lowering: "GraphLowering", value: Value, kind: str, gradient: "Buffer | None") -> None:
        """Appends the call that writes the loss and, if wanted, its gradient.

        The labels and, if the options say so, the weights of the samples have the outside names "labels", "weights".
        """
        b = lowering.b
        labels = self.label_arguments(lowering, value, kind)
        weights = b.external("weights") if lowering.options.weighted else None
        args = [b.external("loss"), gradient, lowering.buffers[value], *labels, weights]
        parameter = next(iter(self.options().values()), 0.0)
        count, stops = math.prod(value.shape), gradient is not None
        calls.loss(b, self.kernel or self.name, lowering.options.n, count, args, parameter, stops)

    def label_arguments(self, lowering: "GraphLowering", value: Value, kind: str) -> "list[Buffer | None]":
        """The labels as the kernel takes them."""
        return [lowering.load("labels", value, False)]

    def run(self, scored: Any, labels: Any, weights: Any = None) -> tuple[float, Any]:
        """(mean loss, gradient) of nested lists on the reference; `weights` are one a sample."""
        return getattr(reference, self.name)(scored, labels, weights=weights, **self.options())

    def run_scored(
        self,
        graph: Graph,
        values: dict[Value, Any],
        labels: Any,
        kind: Any,
        weights: Any = None,
        output: Value | None = None,
    ) -> tuple[float, list[tuple[Value, Any]]]:
        """(mean loss, the gradients to go back from) on the reference; `values` are the graph's, as nested lists."""
        scored = self.scored_value(graph, output or graph.outputs[0])
        loss, gradient = self.run(values[scored], labels, weights)
        return loss, [(scored, gradient)]


@dataclass
class CrossEntropy(Loss):
    """Softmax cross entropy of logits (N, classes); a model that ends in softmax is scored by its logits.

    Labels: integers (N,) in 0..classes-1, or one-hot rows (N, classes). Report 001, equations 16 and 17.
    With label_smoothing s in 0..1, the target probabilities t become (1 - s) t + s / classes (Szegedy et al. 2016).
    """

    label_smoothing: float = 0.0

    name = "cross_entropy"
    kernel = "softmax_cross_entropy"

    def __post_init__(self) -> None:
        self.label_smoothing = shapes.number(self.name, "label_smoothing", self.label_smoothing, 0, 1)

    def options(self) -> dict[str, float]:
        return {"label_smoothing": self.label_smoothing}

    def usual_kind(self) -> str:
        return INDICES

    def absorbs(self, operator: operators.Operator) -> bool:
        return isinstance(operator, operators.Softmax)

    def labels(self, y: Any, n: int, output: Shape) -> tuple[str, np.ndarray]:
        if len(output) != 1:
            raise ValueError(f"[cross_entropy] the model's output must be (N, classes), got {('N', *output)}")
        indices, targets = shapes.class_labels(self.name, y, n, output[0])
        return (TARGETS, targets) if indices is None else (INDICES, indices)

    def label_arguments(self, lowering: "GraphLowering", value: Value, kind: str) -> "list[Buffer | None]":
        labels = lowering.b.external("labels")
        return [labels, None] if kind == INDICES else [None, labels]


@dataclass
class BinaryCrossEntropy(Loss):
    """Mean of max(z, 0) - z t + log(1 + exp(-|z|)) over logits z and targets t in 0..1, of any one shape.

    A model that ends in sigmoid is scored by its logits.
    """

    name = "binary_cross_entropy"

    def absorbs(self, operator: operators.Operator) -> bool:
        return isinstance(operator, operators.Activation) and operator.name == "sigmoid"

    def check_targets(self, targets: np.ndarray) -> None:
        if not np.all((targets >= 0) & (targets <= 1)):
            raise ValueError("[binary_cross_entropy] y must be in 0..1, got NaN or a value outside")


@dataclass
class MeanSquaredError(Loss):
    """Mean of (y - target)^2 over all elements."""

    name = "mse"


@dataclass
class MeanAbsoluteError(Loss):
    """Mean of |y - target| over all elements; its derivative at y = target is 0."""

    name = "mae"


@dataclass
class Huber(Loss):
    """Mean over all elements e = y - target of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2); Huber 1964."""

    delta: float = 1.0

    name = "huber"

    def __post_init__(self) -> None:
        self.delta = shapes.float32(self.name, "delta", self.delta, 0)
        if not np.float32(self.delta) > 0:
            raise ValueError(f"[huber] delta must be above 0, got {self.delta}")

    def options(self) -> dict[str, float]:
        return {"delta": self.delta}


@dataclass
class OutputLosses(Loss):
    """The sum of the losses of a model's outputs, which travel as one (packing.py), as their labels do: each in its
    columns, class numbers as the bits of an int32."""

    losses: list[Loss]

    name = "sum of the outputs' losses"

    def labels(self, y: Any, n: int, outputs: list[Shape]) -> tuple[tuple[str, ...], np.ndarray]:
        each = [loss.labels(part, n, shape) for loss, part, shape in zip(self.losses, y, outputs, strict=True)]
        kinds = tuple(kind for kind, _ in each)
        return kinds, packing.join([labels.reshape(n, -1).view(np.float32) for _, labels in each])

    def key(self) -> tuple:
        return (type(self), *(loss.key() for loss in self.losses))

    def usual_kind(self) -> tuple[str, ...]:
        return tuple(loss.usual_kind() for loss in self.losses)

    def split(self, labels: np.ndarray, kinds: tuple[str, ...], outputs: list[Shape]) -> list[np.ndarray]:
        """The labels of each output, from what `labels` made."""
        shapes = [() if kind == INDICES else shape for kind, shape in zip(kinds, outputs, strict=True)]
        parts = packing.split(labels, shapes)
        return [part.view(np.int32) if kind == INDICES else part for kind, part in zip(kinds, parts, strict=True)]

    def scored_values(self, graph: Graph) -> list[Value]:
        return [loss.scored_value(graph, output) for loss, output in zip(self.losses, graph.packed, strict=True)]

    def lower_scored(
        self, lowering: "GraphLowering", kinds: tuple[str, ...], wants_gradient: bool, output: Value | None = None
    ) -> "list[tuple[Value, Buffer | None]]":
        b, n, outputs = lowering.b, lowering.options.n, lowering.graph.packed
        counts = [1 if kind == INDICES else math.prod(v.shape) for kind, v in zip(kinds, outputs, strict=True)]
        one, total, labels, first = b.external("loss"), b.arena(1), b.external("labels"), 0
        gradients = []
        for loss, kind, count, value in zip(self.losses, kinds, counts, outputs, strict=True):
            part = b.arena(n * count)
            calls.copy_columns(b, n, count, part, (0, count), labels, (first, sum(counts)))
            with b.standing_in(labels=part):
                gradients += loss.lower_scored(lowering, kind, wants_gradient, value)
            if first:
                calls.add(b, 1, total, total, one)
            else:
                calls.copy(b, 1, total, one)
            first += count
        calls.copy(b, 1, one, total)
        return gradients

    def run_scored(
        self,
        graph: Graph,
        values: dict[Value, Any],
        labels: Any,
        kinds: tuple[str, ...],
        weights: Any = None,
        output: Value | None = None,
    ) -> tuple[float, list[tuple[Value, Any]]]:
        parts = self.split(np.array(labels, np.float32), kinds, [value.shape for value in graph.packed])
        total, gradients = 0.0, []
        for loss, kind, part, value in zip(self.losses, kinds, parts, graph.packed, strict=True):
            one, found = loss.run_scored(graph, values, part.tolist(), kind, weights, value)
            total, gradients = total + one, gradients + found
        return total, gradients


LOSSES = {loss.name: loss for loss in (CrossEntropy, BinaryCrossEntropy, MeanSquaredError, MeanAbsoluteError, Huber)}


def to_config(loss: Loss) -> Any:
    """A loss as plain data; a list for several outputs."""
    if isinstance(loss, OutputLosses):
        return [to_config(each) for each in loss.losses]
    return {"name": loss.name, "config": asdict(loss)}


def from_config(config: Any) -> Any:
    """What `compile` takes for the loss that `to_config` described."""
    if isinstance(config, list):
        return [from_config(each) for each in config]
    return LOSSES[config["name"]](**config["config"])


def get(loss: str | Loss) -> Loss:
    """A loss from its name or object."""
    if isinstance(loss, Loss):
        return loss
    if not isinstance(loss, str) or loss not in LOSSES:
        raise ValueError(f"[compile] loss must be one of {', '.join(LOSSES)} or a loss object, got {loss!r}")
    return LOSSES[loss]()

"""Models: a layer made of layers that can be compiled, trained, evaluated and saved."""

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from pycnn import io, losses, metrics, optimizers, shapes
from pycnn.executor import Executor, Executors, NonFinite
from pycnn.graph import Graph, Shape, Value
from pycnn.layers.base import Layer, as_list, below, from_config, name_layers, to_config
from pycnn.layers.residual import build_chain, emit_chain
from pycnn.losses import Loss
from pycnn.optimizers import Optimizer, Updates
from pycnn.progress import Progress

FORMAT_VERSION = 1
EVALUATION_BATCH = 256


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; nothing was updated in that step."""


class History:
    """`history`: a dict of lists, one value an epoch: loss, the metrics, val_..., lr, seconds."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def append(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


class _Means:
    """Means over samples of values that come batch by batch."""

    def __init__(self) -> None:
        self._samples = 0
        self._sums: dict[str, float] = {}

    def add(self, samples: int, values: dict[str, float]) -> None:
        self._samples += samples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + samples * value

    def values(self) -> dict[str, float]:
        return {name: total / self._samples for name, total in self._sums.items()}


class _Batches:
    """Gathers batches into the same two arrays again and again."""

    def __init__(self, x: np.ndarray, labels: np.ndarray, batch_size: int):
        size = min(batch_size, len(x))
        self._pairs = [(a, np.empty((size, *a.shape[1:]), a.dtype)) for a in (x, labels)]

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """The samples of these rows and their labels, good until the next call."""
        # mode="clip" lets NumPy write to `out` directly; the rows are all valid.
        return [np.take(a, rows, axis=0, out=batch[: len(rows)], mode="clip") for a, batch in self._pairs]


class BaseModel(Layer):
    """What models share. Subclasses hold their layers in `layers` and emit them."""

    layers: list[Layer]

    def __init__(self, *, name: str | None = None, input_shape: Any = None, seed: int | None = None):
        super().__init__(name=name, input_shape=input_shape)
        self._seed = None if seed is None else shapes.integer(type(self).__name__, "seed", seed)
        self._optimizer: Optimizer | None = None
        self._updates: Updates | None = None

    @property
    def children(self) -> list[Layer]:
        return self.layers

    # --------------------------------------------------------------------------------- building

    def build(self, input_shape: Any, seed: int | np.random.Generator | None = None) -> None:
        """Creates the weights for `input_shape` (without the batch axis), drawn with `seed`."""
        super().build(input_shape, self._seed if seed is None else seed)

    def _ready(self, x: np.ndarray, seed: int | None = None) -> Executor:
        """The executor for inputs like x; builds the model if that is still to be done."""
        executors = self._executors.get(x.shape[1:])
        if executors is not None:
            return executors.current()
        if x.ndim < 2:
            raise ValueError(f"[{self.name}] x must have a batch axis and more, got shape {x.shape}")
        shape = self._shape_of(x)
        self.build(shape, seed if self._seed is None else None)
        self._executors[shape] = Executors(self._graph(shape), self._dropouts)
        return self._executors[shape].current()

    def _input_array(self, op: str, x: Any) -> np.ndarray:
        """x as the array that the executor takes; a model of several inputs joins them."""
        return shapes.array(op, "x", x)

    def _shape_of(self, x: np.ndarray) -> Any:
        """What the model is built for, given that array."""
        return x.shape[1:]

    def _result(self, executor: Executor, y: np.ndarray) -> Any:
        """What `predict` returns for the executor's output; a model of several outputs splits it."""
        return y

    def get_weights(self) -> list[np.ndarray]:
        """Copies of all arrays, layer by layer: weight, bias or gamma, beta, running_mean, running_var."""
        self._build_from_input_shape("get_weights")
        return [p.view.copy() for leaf in self.leaves() for p in leaf.parameters.values()]

    def set_weights(self, arrays: Any) -> None:
        """Takes what get_weights gave; all shapes are checked before anything is changed."""
        self._build_from_input_shape("set_weights")
        parameters = [(leaf, p) for leaf in self.leaves() for p in leaf.parameters.values()]
        arrays = [shapes.array("set_weights", f"array {i}", a) for i, a in enumerate(arrays)]
        if len(arrays) != len(parameters):
            raise ValueError(f"[set_weights] the model has {len(parameters)} arrays, got {len(arrays)}")
        for (leaf, p), array in zip(parameters, arrays, strict=True):
            shapes.expect_shape("set_weights", f"{p.name} of {leaf.name}", array.shape, p.shape)
        for (_, p), array in zip(parameters, arrays, strict=True):
            p.view[...] = array

    def _build_from_input_shape(self, op: str) -> None:
        if not self.built:
            first = next(self.leaves(), self)
            shape = self.input_shape if first.input_shape is None else first.input_shape
            if shape is None:
                raise RuntimeError(f"[{op}] the model is not built: call build(input_shape), fit or predict first")
            self.build(shape)

    # --------------------------------------------------------------------------------- training

    def compile(
        self,
        optimizer: str | Optimizer,
        loss: str | Loss,
        metrics: Any = (),
        optimizers: dict[str, str | Optimizer] | None = None,
    ) -> None:
        """Says how to train: an optimizer, a loss, metrics; `optimizers` overrides for layers by name."""
        if not isinstance(optimizers, (dict, type(None))):
            raise TypeError(f"[compile] optimizers must be a dict of optimizers by layer name, got {optimizers!r}")
        chosen = _optimizers.get(optimizer)
        by_layer = {name: _optimizers.get(o) for name, o in (optimizers or {}).items()}
        names = [layer.name for layer in below(self)]
        for name in by_layer:
            if name not in names:
                raise ValueError(f"[compile] optimizers names no layer {name!r}; the layers are {', '.join(names)}")
        self._loss = self._loss_of(loss)
        self._metrics = _metrics.check(metrics)
        self._optimizer, self._by_layer = chosen, by_layer
        self._updates = Updates(chosen, by_layer, self._leaf_optimizers())
        self._epoch = 0.0

    def _leaf_optimizers(self) -> dict[str, str]:
        """Which name in `optimizers` a leaf goes by: its own, or that of the innermost layer around it."""
        return {
            leaf.name: layer.name for layer in below(self) if layer.name in self._by_layer for leaf in layer.leaves()
        }

    def _loss_of(self, loss: Any) -> Loss:
        """The loss that `compile` was given; a model of several outputs takes one for each."""
        return losses.get(loss)

    def _compiled(self, op: str) -> None:
        if self._optimizer is None:
            raise RuntimeError(f"[{op}] call compile(optimizer, loss) first")

    def _score(
        self, executor: Executor, value: float, y: np.ndarray, labels: np.ndarray, kind: str
    ) -> dict[str, float]:
        """The loss and the metrics of a batch."""
        return {"loss": value} | self._metrics_of(
            executor.graph, executor.graph.outputs[0], self._loss, y, labels, kind
        )

    def _metrics_of(
        self, graph: Graph, output: Value, loss: Loss, y: np.ndarray, labels: np.ndarray, kind: str
    ) -> dict[str, float]:
        logits = loss.name == "binary_cross_entropy" and loss.scored_value(graph, output) is output
        return {name: _metrics.METRICS[name](y, labels, kind, logits) for name in self._metrics}

    def _data(self, op: str, x: Any, y: Any, seed: int | None = None) -> tuple[Executor, np.ndarray, np.ndarray, str]:
        """(executor, images, labels, kind of labels), checked."""
        x = self._input_array(op, x)
        if y is None:
            raise TypeError(f"[{op}] y must be the labels, got None")
        if x.ndim == 0 or len(x) == 0:
            raise ValueError(f"[{op}] x is empty")
        self._check_samples(op, y, len(x))
        executor = self._ready(x, seed)
        graph = executor.graph
        kind, labels = self._loss.labels(y, len(x), [v.shape for v in graph.packed] or graph.outputs[0].shape)
        return executor, x, labels, kind

    def _check_samples(self, op: str, y: Any, n: int) -> None:
        """Refuses labels that are not of n samples."""
        if np.ndim(y) == 0 or len(y) != n:
            raise ValueError(f"[{op}] x has {n} samples, y has {len(y) if np.ndim(y) else 'no batch axis'}")

    def train_on_batch(self, x: Any, y: Any) -> float:
        """One step of the optimizer on a batch; the loss before it."""
        self._compiled("train_on_batch")
        executor, x, labels, kind = self._data("train_on_batch", x, y)
        try:
            return executor.train(x, labels, self._loss, kind, self._updates, self._epoch)[0]
        except NonFinite as error:
            raise NonFiniteLossError(_explain(error, f"at step {self._updates.step + 1}")) from None

    def fit(
        self,
        x: Any,
        y: Any,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        seed: int | None = None,
        *,
        verbose: int = 1,
    ) -> History:
        """Trains for `epochs` epochs on x (N, ...) and labels y.

        `validation_split` takes the last part of x and y for validation. `seed` seeds shuffling, dropout, and the
        weights of a model that is not built yet. verbose: 0 nothing, 1 a progress bar, 2 a line an epoch.
        A loss that is NaN or infinite raises NonFiniteLossError before anything is changed by that step.
        """
        self._compiled("fit")
        epochs = shapes.integer("fit", "epochs", epochs)
        batch_size = shapes.integer("fit", "batch_size", batch_size, 1)
        seed = None if seed is None else shapes.integer("fit", "seed", seed)
        if verbose not in (0, 1, 2):
            raise ValueError(f"[fit] verbose must be 0, 1 or 2, got {verbose!r}")
        executor, x, labels, kind = self._data("fit", x, y, seed)
        x, labels, validation = self._validation(x, labels, kind, validation_data, validation_split)
        generator = np.random.default_rng(None if seed is None else [seed, 1])
        self._dropouts.reseed(seed)
        history, progress, batches = History(), Progress(verbose, epochs), _Batches(x, labels, batch_size)
        try:
            for epoch in range(epochs):
                order = generator.permutation(len(x)) if shuffle else np.arange(len(x))
                values = self._epoch_of(executor, batches, kind, order, batch_size, epoch, progress)
                if validation is not None:
                    scores = self._evaluate(*validation, EVALUATION_BATCH)
                    values |= {f"val_{name}": value for name, value in scores.items()}
                progress.end(epoch, values)
                history.append(values)
        finally:
            progress.close()
        return history

    def _epoch_of(
        self,
        executor: Executor,
        batches: _Batches,
        kind: str,
        order: np.ndarray,
        batch_size: int,
        epoch: int,
        progress: Progress,
    ) -> dict[str, float]:
        """Trains on every batch once; the means over the epoch."""
        began, means, steps = time.perf_counter(), _Means(), math.ceil(len(order) / batch_size)
        progress.begin(epoch, len(order))
        for step in range(steps):
            x, labels = batches.take(order[step * batch_size : (step + 1) * batch_size])
            self._epoch = epoch + step / steps
            try:
                value, outputs = executor.train(x, labels, self._loss, kind, self._updates, self._epoch)
            except NonFinite as error:
                raise NonFiniteLossError(_explain(error, f"in epoch {epoch + 1}, step {step + 1}")) from None
            means.add(len(x), self._score(executor, value, outputs, labels, kind))
            progress.step(len(x), means.values())
        lr = self._optimizer.lr_at(self._epoch)
        return means.values() | {"lr": lr, "seconds": time.perf_counter() - began}

    def _validation(self, x: np.ndarray, labels: np.ndarray, kind: str, data: Any, split: Any) -> tuple[Any, Any, Any]:
        """(x, labels, validation data or None) with (executor, x, labels, kind); the last part split off if asked."""
        split = shapes.number("fit", "validation_split", split, 0, 1)
        if data is not None:
            if not (isinstance(data, (tuple, list)) and len(data) == 2):
                raise ValueError("[fit] validation_data must be a pair (x, y)")
            return x, labels, self._data("fit's validation_data", *data)
        kept = math.floor(len(x) * (1 - split) + 1e-9)
        if not split or kept == len(x):
            return x, labels, None
        if kept == 0:
            raise ValueError(f"[fit] validation_split {split} leaves no samples to train on")
        executor, x_kept, labels_kept = self._ready(x), x[:kept], labels[:kept]
        return x_kept, labels_kept, (executor, x[kept:], labels[kept:], kind)

    def evaluate(self, x: Any, y: Any, batch_size: int = EVALUATION_BATCH) -> dict[str, float]:
        """{"loss": ..., and each metric} over x and y."""
        self._compiled("evaluate")
        batch_size = shapes.integer("evaluate", "batch_size", batch_size, 1)
        return self._evaluate(*self._data("evaluate", x, y), batch_size)

    def _evaluate(
        self, executor: Executor, x: np.ndarray, labels: np.ndarray, kind: str, batch_size: int
    ) -> dict[str, float]:
        means = _Means()
        for i in range(0, len(x), batch_size):
            batch = labels[i : i + batch_size]
            value, outputs = executor.evaluate(x[i : i + batch_size], batch, self._loss, kind)
            means.add(len(batch), self._score(executor, value, outputs, batch, kind))
        return means.values()

    def predict(self, x: Any, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
        """The output for x (N, ...)."""
        x = self._input_array("predict", x)
        batch_size = shapes.integer("predict", "batch_size", batch_size, 1)
        executor = self._ready(x)
        y = np.empty((len(x), *executor.graph.outputs[0].shape), np.float32)
        if 0 < len(x) <= batch_size:
            executor.predict(x, y)
            return y
        for i in range(0, len(x), batch_size):
            executor.predict(x[i : i + batch_size], y[i : i + batch_size])
        return self._result(executor, y)

    # ---------------------------------------------------------------------------------- looking

    def summary(self) -> str:
        """Layer, output shape and parameters, as a table; prints it, and returns the text."""
        rows = [("layer", "output shape", "parameters")]
        if not self.built:
            self._build_from_input_shape("summary")
        for layer, output in self._rows():
            text = ", ".join(str(("N", *shape)) for shape in (output if isinstance(output, list) else [output]))
            rows.append((f"{layer.name} ({type(layer).__name__})", text, f"{_count(layer):,}"))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        lines.insert(1, "-" * len(lines[0]))
        learned = sum(
            p.memory.size for leaf in self.leaves() if leaf.trainable for p in leaf.parameters.values() if p.learned
        )
        lines += [lines[1], f"{_count(self):,} parameters, {learned:,} of them trained"]
        text = "\n".join(lines).replace("'N'", "N")
        print(text)
        return text

    def _rows(self) -> list[tuple[Layer, Any]]:
        """(layer, the shape of its output, or those of its outputs), in order."""
        rows, shape = [], self._built_for
        for layer in self.layers:
            shape = layer.output_shape(shape)
            rows.append((layer, shape))
        return rows

    # ----------------------------------------------------------------------------------- saving

    def save(self, path: str | Path) -> None:
        """Writes architecture, weights and what compile was given to one safetensors file, atomically."""
        self._build_from_input_shape("save")
        tensors = {f"{leaf.name}.{p.name}": p.view for leaf in self.leaves() for p in leaf.parameters.values()}
        metadata = {
            "format": "pycnn",
            "format_version": str(FORMAT_VERSION),
            "architecture": _json("architecture", to_config(self) | {"input_shape": self._built_for}),
        }
        if self._optimizer is not None:
            metadata["compile"] = _json("compile", self._compile_config())
        io.save(path, tensors, metadata)

    def _compile_config(self) -> dict[str, Any]:
        return {
            "optimizer": _named(self._optimizer.name, self._optimizer.config()),
            "optimizers": {layer: _named(o.name, o.config()) for layer, o in self._by_layer.items()},
            "loss": losses.to_config(self._loss),
            "metrics": self._metrics,
        }


_optimizers, _metrics = optimizers, metrics  # compile has arguments of these names


def _count(layer: Layer) -> int:
    return sum(p.memory.size for leaf in layer.leaves() for p in leaf.parameters.values())


def _explain(error: NonFinite, where: str) -> str:
    return (
        f"the loss became {error.loss} {where}; the first value that is not finite came from {error.layer}. "
        "The weights are those from before this step; a smaller learning rate often helps."
    )


def _json(what: str, value: Any) -> str:
    try:
        return json.dumps(value, default=lambda number: number.item())
    except (TypeError, AttributeError) as error:
        raise ValueError(f"[save] the {what} holds something that cannot be saved: {error}") from None


def _named(name: str, config: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "config": config}


class Sequential(BaseModel):
    """Layers one after another. `seed` seeds the initial weights."""

    def __init__(
        self, layers: Any = None, seed: int | None = None, *, name: str | None = None, input_shape: Any = None
    ):
        super().__init__(name=name, input_shape=input_shape, seed=seed)
        self.layers = as_list("Sequential", "layers", layers or [])
        name_layers(self)

    @property
    def output_count(self) -> int:
        return self.layers[-1].output_count if self.layers else 1

    def add(self, layer: Layer) -> None:
        """Appends a layer; not once the model is built."""
        if self.built:
            raise RuntimeError("[add] the model is built already; add layers before its first use")
        before = self.layers
        self.layers = before + as_list("add", "layer", layer)
        try:
            name_layers(self)
        except ValueError:
            self.layers = before
            raise

    def get_config(self) -> dict[str, Any]:
        seed = {} if self._seed is None else {"seed": self._seed}
        return super().get_config() | {"layers": self.layers} | seed

    def create(self, input_shape: Shape, generator: np.random.Generator) -> None:
        if not self.layers:
            raise ValueError(f"[{self.name}] the model has no layers")
        build_chain(self.layers, input_shape, generator)

    def emit(self, graph: Graph, x: Value) -> Value:
        return emit_chain(self.layers, graph, x)


def load(path: str | Path) -> BaseModel:
    """A model from a file that `save` wrote: architecture, weights, and what compile was given."""
    tensors, metadata = io.load(path)
    if metadata.get("format") != "pycnn" or "architecture" not in metadata:
        raise ValueError(f"[load] {path} holds no pycnn model")
    if metadata.get("format_version") != str(FORMAT_VERSION):
        raise ValueError(
            f"[load] {path} has format version {metadata.get('format_version')}, known is {FORMAT_VERSION}"
        )
    try:
        config = json.loads(metadata["architecture"])
        model = from_config(config)
        if not isinstance(model, BaseModel):
            raise ValueError(f"its architecture is a {type(model).__name__}, not a model")
        model.build(tuple(config["input_shape"]), 0)
        _take_tensors(model, tensors)
        if "compile" in metadata:
            model.compile(**_compile_arguments(json.loads(metadata["compile"])))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(f"[load] {path} does not describe a model: {error}") from error
    return model


def _take_tensors(model: BaseModel, tensors: dict[str, np.ndarray]) -> None:
    parameters = {f"{leaf.name}.{p.name}": p for leaf in model.leaves() for p in leaf.parameters.values()}
    if parameters.keys() != tensors.keys():
        different = ", ".join(sorted(parameters.keys() ^ tensors.keys()))
        raise ValueError(f"the arrays are not those of the architecture: {different}")
    for name, p in parameters.items():
        shapes.expect_shape("load", name, tensors[name].shape, p.shape)
        p.view[...] = tensors[name]


def _compile_arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "optimizer": _restored(optimizers.OPTIMIZERS, config["optimizer"]),
        "optimizers": {k: _restored(optimizers.OPTIMIZERS, v) for k, v in config["optimizers"].items()},
        "loss": losses.from_config(config["loss"]),
        "metrics": config["metrics"],
    }


def _restored(known: dict[str, Any], named: dict[str, Any]) -> Any:
    return known[named["name"]](**named["config"])

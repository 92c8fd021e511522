"""Models: a layer made of layers that can be compiled, trained, evaluated and saved."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pycnn import io, losses, metrics, optimizers, profiler, shapes
from pycnn.callbacks import Callback
from pycnn.executor import Executor, Executors, NonFinite, backend
from pycnn.graph import Graph, Parameter, Shape, Value
from pycnn.layers.base import Layer, as_list, below, from_config, name_layers, to_config
from pycnn.layers.residual import build_chain, emit_chain
from pycnn.losses import Loss
from pycnn.optimizers import Optimizer, Updates
from pycnn.profiler import Profile
from pycnn.training import (
    AHEAD,
    EVALUATION_BATCH,
    PREFIX,
    ArrayBatches,
    Augment,
    Batch,
    GivenBatches,
    History,
    Means,
    Run,
    sample_weights,
)

FORMAT_VERSION = 1


class NonFiniteLossError(ArithmeticError):
    """The loss became NaN or infinite; nothing was updated in that step."""


class BaseModel(Layer):
    """What models share. Subclasses hold their layers in `layers` and emit them."""

    layers: list[Layer]

    def __init__(self, *, name: str | None = None, input_shape: Any = None, seed: int | None = None):
        super().__init__(name=name, input_shape=input_shape)
        self._seed = None if seed is None else shapes.integer(type(self).__name__, "seed", seed)
        self._optimizer: Optimizer | None = None
        self._updates: Updates | None = None
        self.stop_training = False

    @property
    def children(self) -> list[Layer]:
        return self.layers

    # --------------------------------------------------------------------------------- building

    def build(self, input_shape: Any, seed: int | np.random.Generator | None = None) -> None:
        """Creates the weights for `input_shape` (without the batch axis), drawn with `seed`."""
        super().build(input_shape, self._seed if seed is None else seed)

    def _ready(self, x: np.ndarray, seed: int | None = None) -> Executor:
        """The executor for inputs like x; builds the model if that is still to be done."""
        shape = self._shape_of(x)
        executors = self._executors.get(shape)
        if executors is not None:
            return executors.current()
        if x.ndim < 2:
            raise ValueError(f"[{self.name}] x must have a batch axis and more, got shape {x.shape}")
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
        if not isinstance(arrays, Iterable):
            raise TypeError(f"[set_weights] arrays must be a list of arrays, got {type(arrays).__name__}")
        arrays = [shapes.array("set_weights", f"array {i}", a) for i, a in enumerate(arrays)]
        if len(arrays) != len(parameters):
            raise ValueError(f"[set_weights] the model has {len(parameters)} arrays, got {len(arrays)}")
        for (leaf, p), array in zip(parameters, arrays, strict=True):
            shapes.expect_shape("set_weights", f"{p.name} of {leaf.name}", array.shape, p.shape)
        for (_, p), array in zip(parameters, arrays, strict=True):
            p.view[...] = array
        Parameter.changed()  # once more: a prediction in another thread may have read what was there before

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
        named = {layer.name: layer for layer in below(self)}
        for name in optimizers or {}:
            if name not in named:
                raise ValueError(f"[compile] optimizers names no layer {name!r}; the layers are {', '.join(named)}")
        by_layer = {named[name]: _optimizers.get(o) for name, o in (optimizers or {}).items()}
        self._loss = self._loss_of(loss)
        self._metrics = _metrics.check(metrics)
        self._optimizer, self._by_layer = chosen, by_layer
        self._updates = Updates(chosen, by_layer, self._leaf_optimizers())
        self._epoch = 0.0

    def _leaf_optimizers(self) -> dict[Layer, Layer]:
        """Whose entry in `optimizers` a leaf goes by: its own, or that of the innermost layer around it."""
        return {leaf: layer for layer in below(self) if layer in self._by_layer for leaf in layer.leaves()}

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
        y: Any = None,
        epochs: int = 1,
        batch_size: int = 32,
        validation_data: tuple[Any, Any] | None = None,
        validation_split: float = 0.0,
        shuffle: bool = True,
        seed: int | None = None,
        callbacks: Sequence[Callback] = (),
        augment: Augment | Sequence[Augment] | None = None,
        class_weight: dict[int, float] | None = None,
        sample_weight: Any = None,
        verbose: int = 1,
        resume: str | Path | None = None,
        *,
        accumulate: int = 1,
    ) -> History:
        """Trains for `epochs` epochs on x (N, ...) and labels y, and goes on from the weights that there are.

        Instead, x may be an iterable of batches (x, y), which is gone through once an epoch; batch_size, shuffle and
        validation_split then do not matter.

        `validation_split` takes the last part of x and y for validation. `seed` seeds shuffling, dropout, augmentation
        and the weights of a model that is not built yet. `augment(x, y, generator)`, or a list of such functions in
        turn, returns the (x, y) to train on for each batch; it runs in a thread ahead of the steps. `class_weight` (by
        class number) and `sample_weight` (N,) multiply the samples' losses, whose sum is still divided by N as in
        Keras; metrics and validation_data are not weighted. verbose: 0 nothing, 1 a progress bar, 2 a line an epoch.

        `callbacks` are told of epochs and batches (pycnn.callbacks), and may set `stop_training` to end the training.

        `resume` names a checkpoint of ModelCheckpoint's: training goes on after its last epoch, to the same bits as if
        it had not been interrupted, up to `epochs` in all. An absent file starts afresh; if it is damaged, PATH.prev
        is taken with a warning.

        `accumulate` adds up the gradients of so many batches for one step of the optimizer, on their mean over all
        samples; the batches left at an epoch's end make a step as well.

        A loss that is NaN or infinite raises NonFiniteLossError before anything is changed by that step.
        """
        self._compiled("fit")
        epochs = shapes.integer("fit", "epochs", epochs)
        batch_size = shapes.integer("fit", "batch_size", batch_size, 1)
        accumulate = shapes.integer("fit", "accumulate", accumulate, 1)
        shuffle = shapes.boolean("fit", "shuffle", shuffle)
        seed = None if seed is None else shapes.integer("fit", "seed", seed)
        if verbose not in (0, 1, 2):
            raise ValueError(f"[fit] verbose must be 0, 1 or 2, got {verbose!r}")
        if not isinstance(callbacks, (list, tuple)) or not all(isinstance(c, Callback) for c in callbacks):
            raise TypeError(f"[fit] callbacks must be a list of Callback objects, got {callbacks!r}")
        augmentations = _list_of_functions(augment)
        generators = [np.random.default_rng(None if seed is None else [seed, i]) for i in (1, 2)]
        if y is None and isinstance(x, Iterable) and not isinstance(x, (np.ndarray, str, bytes, dict)):
            _only_for_arrays(validation_split, sample_weight)
            ahead = accumulate > 1 or bool(augmentations)
            data, validation = GivenBatches(self, x, seed, class_weight, ahead), None
        else:
            arrays = self._data("fit", x, y, seed)
            arrays, weights, validation = self._split(arrays, validation_split, sample_weight, class_weight)
            places = AHEAD + 1 if augmentations else 1
            data = ArrayBatches(arrays, weights, batch_size, generators[0] if shuffle else None, places)
        if augmentations and self.arity > 1:
            raise ValueError(
                f"[fit] augment needs a model of one input, this has {self.arity}; "
                "x may be an iterable of batches that are augmented already"
            )
        if validation_data is not None:
            if not (isinstance(validation_data, (tuple, list)) and len(validation_data) == 2):
                raise ValueError("[fit] validation_data must be a pair (x, y)")
            validation = self._data("fit's validation_data", *validation_data)
        self._dropouts.reseed(seed)
        run = Run(self, data, validation, epochs, callbacks, augmentations, generators, verbose)
        self._updates.begin_gathering(accumulate)
        try:
            run.go(resume)
        except NonFinite as error:
            raise NonFiniteLossError(_explain(error, f"in epoch {run.epoch + 1}, step {run.step + 1}")) from None
        finally:
            self._updates.begin_gathering(1)
        return run.history

    def fit_loop(self, run: Run) -> None:
        """All epochs of a fit. A subclass may override it with a loop of its own, of the parts that `run` has."""
        for _ in run.epochs():
            for batch in run.batches():
                run.add(batch, *self.train_step(batch))
            run.end_epoch()

    def train_step(self, batch: Batch) -> tuple[float, np.ndarray]:
        """One step of the optimizer on a batch: (loss, outputs) before the update. A subclass may override it.

        The outputs are good until the next step.
        """
        executor, x, labels, kind, weights, last = batch
        self._updates.last = last
        return executor.train(x, labels, self._loss, kind, self._updates, self._epoch, weights)

    def _split(
        self, data: tuple, split: Any, sample_weight: Any, class_weight: Any
    ) -> tuple[tuple, np.ndarray | None, tuple | None]:
        """(data, weights, validation data or None) of (executor, x, labels, kind), the last part split off if asked."""
        split = shapes.number("fit", "validation_split", split, 0, 1)
        executor, x, labels, kind = data
        weights = sample_weights("fit", labels, kind, None, sample_weight)
        kept = math.floor(len(x) * (1 - split) + 1e-9)
        if kept == 0:
            raise ValueError(f"[fit] validation_split {split} leaves no samples to train on")
        validation = None
        if kept < len(x):
            validation = executor, x[kept:], labels[kept:], kind, None if weights is None else weights[kept:]
        data = executor, x[:kept], labels[:kept], kind
        weights = sample_weights("fit", labels[:kept], kind, class_weight, None if weights is None else weights[:kept])
        return data, weights, validation

    def evaluate(self, x: Any, y: Any, batch_size: int = EVALUATION_BATCH) -> dict[str, float]:
        """{"loss": ..., and each metric} over x and y."""
        self._compiled("evaluate")
        batch_size = shapes.integer("evaluate", "batch_size", batch_size, 1)
        return self._evaluate(*self._data("evaluate", x, y), batch_size=batch_size)

    def _evaluate(
        self,
        executor: Executor,
        x: np.ndarray,
        labels: np.ndarray,
        kind: str,
        weights: np.ndarray | None = None,
        batch_size: int = EVALUATION_BATCH,
    ) -> dict[str, float]:
        means = Means()
        for i in range(0, len(x), batch_size):
            batch = labels[i : i + batch_size]
            batch_weights = None if weights is None else weights[i : i + batch_size]
            value, outputs = executor.evaluate(x[i : i + batch_size], batch, self._loss, kind, batch_weights)
            means.add(len(batch), self._score(executor, value, outputs, batch, kind))
        return means.values()

    def predict(self, x: Any, batch_size: int = EVALUATION_BATCH) -> np.ndarray:
        """The output for x (N, ...)."""
        x = self._input_array("predict", x)
        batch_size = shapes.integer("predict", "batch_size", batch_size, 1)
        executor = self._ready(x)
        y = shapes.empty("predict", (len(x), *executor.graph.outputs[0].shape))
        if 0 < len(x) <= batch_size:
            executor.predict(x, y)
            return self._result(executor, y)
        for i in range(0, len(x), batch_size):
            executor.predict(x[i : i + batch_size], y[i : i + batch_size])
        return self._result(executor, y)

    # ---------------------------------------------------------------------------------- looking

    def summary(self, batch_size: int = 32) -> str:
        """Layer, output shape and parameters, as a table, and, once `compile` was called, the memory that a training
        step on a batch of this size needs; prints the text, and returns it."""
        batch_size = shapes.integer("summary", "batch_size", batch_size, 1)
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
        lines += self._memory_lines(batch_size)
        text = "\n".join(lines).replace("'N'", "N")
        print(text)
        return text

    def _memory_lines(self, n: int) -> list[str]:
        """What a training step needs; the arrays of a last smaller batch and of predictions come on top."""
        if self._optimizer is None:
            return []
        shape = self._built_for
        if shape not in self._executors:
            self._executors[shape] = Executors(self._graph(shape), self._dropouts)
        with backend("c"):
            executor = self._executors[shape].current()
        parts = executor.memory(n, self._loss, self._loss.usual_kind(), self._updates)
        names = ("parameters, gradients, optimizer", "activations", "workspace", "total")
        megabytes = [f"{name} {size / 1e6:,.1f}" for name, size in zip(names, (*parts, sum(parts)), strict=True)]
        return [f"memory of a training step of {n}, MB: {', '.join(megabytes)}"]

    def profile(self, x: Any, y: Any = None, sort: bool = False) -> Profile:
        """Where the time of a training step on x and labels y goes, or, without y, of a prediction.

        A row a layer: seconds forward, backward and in the update, the share of the whole, GFLOP/s (or GB/s where
        there is nothing to multiply) and their share of the machine's measured peak. print() shows it as a table, in
        the order of the layers or, with `sort`, the longest first; it has to_json(path) and plot(path). The model
        stays as it is.
        """
        return profiler.profile(self, x, y, shapes.boolean("profile", "sort", sort))

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
        name_layers(self)  # another model that shares layers may have renamed them
        io.save(path, self._tensors(), self._metadata())

    def _tensors(self) -> dict[str, np.ndarray]:
        return {f"{leaf.name}.{p.name}": p.view for leaf in self.leaves() for p in leaf.parameters.values()}

    def _metadata(self) -> dict[str, str]:
        metadata = {
            "format": "pycnn",
            "format_version": str(FORMAT_VERSION),
            "architecture": _json("architecture", to_config(self) | {"input_shape": self._built_for}),
        }
        if self._optimizer is not None:
            metadata["compile"] = _json("compile", self._compile_config())
        return metadata

    def _take_tensors(self, tensors: dict[str, np.ndarray]) -> None:
        """Sets all parameters from a file's arrays; those of a training's state are passed over."""
        own = self._tensors()
        given = {name: a for name, a in tensors.items() if name in own or not name.startswith(PREFIX)}
        if own.keys() != given.keys():
            different = ", ".join(sorted(own.keys() ^ given.keys()))
            raise ValueError(f"the arrays are not those of the architecture: {different}")
        for name, array in own.items():
            shapes.expect_shape("load", name, given[name].shape, array.shape)
        for name, array in own.items():
            array[...] = given[name]
        Parameter.changed()

    def _compile_config(self) -> dict[str, Any]:
        return {
            "optimizer": _named(self._optimizer.name, self._optimizer.config()),
            "optimizers": {layer.name: _named(o.name, o.config()) for layer, o in self._by_layer.items()},
            "loss": losses.to_config(self._loss),
            "metrics": self._metrics,
        }


_optimizers, _metrics = optimizers, metrics  # compile has arguments of these names


def _count(layer: Layer) -> int:
    return sum(p.memory.size for leaf in layer.leaves() for p in leaf.parameters.values())


def _list_of_functions(augment: Any) -> Sequence[Augment]:
    functions = [augment] if callable(augment) else [] if augment is None else augment
    if not isinstance(functions, (list, tuple)) or not all(map(callable, functions)):
        raise TypeError(f"[fit] augment must be a function of (x, y, generator) or a list of them, got {augment!r}")
    return functions


def _only_for_arrays(validation_split: Any, sample_weight: Any) -> None:
    if shapes.number("fit", "validation_split", validation_split, 0, 1):
        raise ValueError("[fit] validation_split needs arrays, x is an iterable of batches; give validation_data")
    if sample_weight is not None:
        raise ValueError("[fit] sample_weight needs arrays, x is an iterable of batches")


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
        model._take_tensors(tensors)
        if "compile" in metadata:
            model.compile(**_compile_arguments(json.loads(metadata["compile"])))
    except (KeyError, TypeError, AttributeError, ValueError, RuntimeError, MemoryError) as error:
        raise ValueError(f"[load] {path} does not describe a model: {error}") from error
    return model


def _compile_arguments(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "optimizer": optimizers.from_config(**config["optimizer"]),
        "optimizers": {k: optimizers.from_config(**v) for k, v in config["optimizers"].items()},
        "loss": losses.from_config(config["loss"]),
        "metrics": config["metrics"],
    }

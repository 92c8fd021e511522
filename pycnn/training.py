"""The parts of `fit`: batches, prepared ahead of the steps if they are augmented; epochs; what a checkpoint holds."""

import json
import math
import os
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from itertools import chain
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pycnn import io, shapes
from pycnn.callbacks import Callback, ModelCheckpoint
from pycnn.executor import Executor
from pycnn.layers.base import name_layers
from pycnn.losses import INDICES
from pycnn.progress import Progress

if TYPE_CHECKING:
    from pycnn.model import BaseModel

Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]
AHEAD = 2  # batches that the augmenting thread prepares before they are asked for
EVALUATION_BATCH = 256
# Arrays of a checkpoint that are not a model's; those of a model end with the name of a parameter.
PREFIX = "training/"


class History:
    """`history`: a dict of lists, one value an epoch: loss, the metrics, val_..., lr, seconds."""

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}

    def append(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.history.setdefault(name, []).append(value)


class Means:
    """Means over samples of values that come batch by batch."""

    def __init__(self) -> None:
        self.samples = 0
        self._sums: dict[str, float] = {}

    def add(self, samples: int, values: dict[str, float]) -> None:
        self.samples += samples
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + samples * value

    def values(self) -> dict[str, float]:
        return {name: total / self.samples for name, total in self._sums.items()}


# ----------------------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    """What a step takes: checked arrays, and the executor for their shape."""

    executor: Executor
    x: np.ndarray
    labels: np.ndarray
    kind: str  # of the labels: class numbers or targets, see pycnn.losses
    weights: np.ndarray | None  # of the samples' losses
    last: bool  # of its epoch, as far as that is known


class ArrayBatches:
    """Batches of arrays, in a new order each epoch; they lie in the same few places in memory again and again."""

    def __init__(self, data: tuple, weights: np.ndarray | None, batch_size: int, generator: Any, places: int):
        self._executor, x, labels, self._kind = data
        self._arrays = [x, labels] if weights is None else [x, labels, weights]
        self._generator = generator
        self.samples, self._size = len(x), min(batch_size, len(x))
        self.steps: int | None = math.ceil(self.samples / self._size)
        self._places = [[np.empty((self._size, *a.shape[1:]), a.dtype) for a in self._arrays] for _ in range(places)]

    def __iter__(self) -> Iterator[Batch]:
        generator, size = self._generator, self._size
        order = np.arange(self.samples) if generator is None else generator.permutation(self.samples)
        for step in range(self.steps):
            rows = order[step * size : (step + 1) * size]
            place = self._places[step % len(self._places)]
            if len(rows) < size:
                place = [to[: len(rows)] for to in place]
            # mode="clip" lets NumPy write to `out` directly; the rows are all valid.
            x, labels, *weights = [a.take(rows, 0, to, "clip") for a, to in zip(self._arrays, place, strict=True)]
            yield Batch(self._executor, x, labels, self._kind, weights[0] if weights else None, step == self.steps - 1)


class GivenBatches:
    """The pairs (x, y) that an iterable gives, checked one by one; a new iteration each epoch.

    It may give the same arrays with new contents again and again: with `ahead`, which makes the last batch known as
    such, batches are copied before the next one is asked for.
    """

    def __init__(self, model: "BaseModel", given: Iterable, seed: int | None, class_weight: Any, ahead: bool):
        self._model, self._given, self._class_weight, self._ahead = model, given, class_weight, ahead
        self._iterator: Iterator | None = iter(given)
        self._first = next(self._iterator, None)
        if self._first is None:
            raise ValueError("[fit] x is empty: it gave no batches")
        self.samples: int | None = None
        self.steps: int | None = len(given) if hasattr(given, "__len__") else None
        self._check(self._first, seed)  # builds the model

    def _check(self, pair: Any, seed: int | None = None) -> Batch:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2):
            raise TypeError(f"[fit] x, an iterable, must give pairs (x, y), got {type(pair).__name__}")
        executor, x, labels, kind = self._model._data("fit", *pair, seed)
        if self._ahead:
            x, labels = np.array(x, order="K"), np.array(labels)
        return Batch(executor, x, labels, kind, sample_weights("fit", labels, kind, self._class_weight, None), False)

    def __iter__(self) -> Iterator[Batch]:
        if self._iterator is None:
            pairs = iter(self._given)
        else:
            pairs, self._iterator = chain([self._first], self._iterator), None
        pair = next(pairs, None)
        if pair is None:
            raise ValueError(
                "[fit] x gave no batches in a later epoch: a generator can be gone through once only; "
                "give a list, or an object whose __iter__ begins anew"
            )
        while pair is not None:
            batch = self._check(pair)
            if self._ahead:
                pair = next(pairs, None)
                yield batch._replace(last=pair is None)
            else:
                yield batch
                pair = next(pairs, None)


def sample_weights(op: str, labels: np.ndarray, kind: Any, class_weight: Any, given: Any) -> np.ndarray | None:
    """One weight a sample, the product of what its class and what it itself was given; None without both."""
    weights = None
    if given is not None:
        weights = np.ascontiguousarray(shapes.array(op, "sample_weight", given))
        shapes.expect_shape(op, "sample_weight", weights.shape, (len(labels),))
        if not np.all((weights >= 0) & np.isfinite(weights)):
            raise ValueError(f"[{op}] sample_weight must hold finite numbers from 0 on")
    if class_weight is None:
        return weights
    if not isinstance(class_weight, dict):
        raise TypeError(f"[{op}] class_weight must be a dict of weights by class, got {class_weight!r}")
    if isinstance(kind, tuple):
        raise ValueError(f"[{op}] class_weight needs a model of one output, this has {len(kind)}; give sample_weight")
    if kind != INDICES and labels.ndim != 2:
        raise ValueError(f"[{op}] class_weight needs labels that are classes, got shape {labels.shape}")
    if kind != INDICES:
        labels = labels[:, 0] >= 0.5 if labels.shape[1] == 1 else labels.argmax(axis=1)
    classes, where = np.unique(labels.astype(np.int64), return_inverse=True)
    for label in classes.tolist():
        if label not in class_weight:
            raise ValueError(f"[{op}] class_weight has no class {label}, only {', '.join(map(str, class_weight))}")
    by_class = [shapes.number(op, "class_weight", class_weight[label], 0) for label in classes.tolist()]
    of_classes = np.array(by_class, np.float32)[where]
    return of_classes if weights is None else weights * of_classes


def augmented(
    model: "BaseModel", batches: Iterable[Batch], functions: Sequence[Augment], generator: np.random.Generator
) -> Iterator[Batch]:
    """The batches with what the functions make of them, one after the other, checked anew."""
    for batch in batches:
        x, y = batch.x, batch.labels
        for augment in functions:
            result = augment(x, y, generator)
            if not (isinstance(result, (tuple, list)) and len(result) == 2):
                raise TypeError(f"[fit] augment must return a pair (x, y), got {type(result).__name__}")
            x, y = shapes.array("fit", "x of augment", result[0]), result[1]
        if len(x) != len(batch.x):
            raise ValueError(f"[fit] augment must keep the number of samples, {len(batch.x)}, got {len(x)}")
        executor = batch.executor if x.shape == batch.x.shape else model._ready(x)
        if y is not batch.labels:
            if executor.graph.packed:
                raise ValueError("[fit] augment must leave the labels of a model of several outputs as they are")
            kind, labels = model._loss.labels(y, len(x), executor.graph.outputs[0].shape)
            batch = batch._replace(labels=labels, kind=kind)
        yield batch._replace(executor=executor, x=x)


def ahead(batches: Iterable[Batch]) -> Iterator[Batch]:
    """Goes through batches in a thread of its own, so that the next ones are made while a step runs."""
    iterator, context = iter(batches), copy_context()  # so that `backend` holds there as well
    with ThreadPoolExecutor(1) as thread:
        pending = deque(thread.submit(context.run, next, iterator, None) for _ in range(AHEAD))
        while (batch := pending.popleft().result()) is not None:
            pending.append(thread.submit(context.run, next, iterator, None))
            yield batch


# ---------------------------------------------------------------------------------------- epochs


class Run:
    """What a `fit` is at, and the parts that `fit_loop` puts together:

        for epoch in run.epochs():
            for batch in run.batches():
                run.add(batch, *self.train_step(batch))
            run.end_epoch()

    `epoch`, `step`: those under way, from 0. `history`: of the epochs so far.
    """

    def __init__(
        self,
        model: "BaseModel",
        data: ArrayBatches | GivenBatches,
        validation: tuple | None,
        epochs: int,
        callbacks: list[Callback],
        augmentations: Sequence[Augment],
        generators: list[np.random.Generator],
        verbose: int,
    ):
        self.model, self.history = model, History()
        self.epoch = self.step = 0
        self._data, self._validation, self._total = data, validation, epochs
        self._augmentations = augmentations
        self._shuffling, self._augmenting = self._generators = generators
        # Checkpoints come last, so that they hold the state of the others after this epoch.
        self._callbacks = sorted(callbacks, key=lambda c: isinstance(c, ModelCheckpoint))
        self._after_batch = [c.on_batch_end for c in callbacks if _overrides(c, "on_batch_end")]
        self._progress = Progress(verbose, epochs)
        self._logs: dict[str, float] = {}  # of the last epoch
        self._first = 0
        self._sound: set[str] = set()  # files that hold checkpoints for sure

    # What fit_loop uses.

    def epochs(self) -> Iterator[int]:
        """The numbers of the epochs that are left, until `model.stop_training`."""
        for epoch in range(self._first, self._total):
            if self.model.stop_training:
                return
            self.epoch, self._means, self._began = epoch, Means(), time.perf_counter()
            for callback in self._callbacks:
                callback.on_epoch_begin(epoch, {})
            self._progress.begin(epoch, self._data.samples)
            yield epoch

    def batches(self) -> Iterator[Batch]:
        """The epoch's batches, until `model.stop_training`."""
        batches: Iterable[Batch] = self._data
        if self._augmentations:
            batches = ahead(augmented(self.model, batches, self._augmentations, self._augmenting))
        model, steps, epoch, self.step = self.model, self._data.steps, self.epoch, -1
        for batch in batches:
            self.step += 1
            model._epoch = epoch + min(self.step / steps, 1.0) if steps else float(epoch)
            yield batch
            if model.stop_training:
                return
        self._data.steps = self.step + 1

    def add(self, batch: Batch, loss: float, outputs: np.ndarray) -> None:
        """Takes the result of a step into account."""
        scores = self.model._score(batch.executor, loss, outputs, batch.labels, batch.kind)
        self._means.add(len(batch.labels), scores)
        self._progress.step(len(batch.labels), self._means.values)
        for on_batch_end in self._after_batch:
            on_batch_end(self.step, self._means.values())

    def end_epoch(self) -> None:
        """Validation, history, callbacks."""
        model = self.model
        logs = self._means.values()
        logs |= {"lr": model._updates.lr(0, model._epoch), "seconds": time.perf_counter() - self._began}
        if self._validation is not None:
            scores = model._evaluate(*self._validation)
            logs |= {f"val_{name}": value for name, value in scores.items()}
        self._progress.end(self.epoch, logs)
        self.history.append(logs)
        self._logs = logs
        for callback in self._callbacks:
            callback.on_epoch_end(self.epoch, logs)

    # What fit uses.

    def go(self, resume: str | os.PathLike[str] | None) -> None:
        """The whole training, from a checkpoint if there is one of this name."""
        model = self.model
        model.stop_training = False
        model._updates.begin_fit(self._total)
        self._begin(None if resume is None else read_checkpoint(resume))
        try:
            model.fit_loop(self)
        finally:
            self._progress.close()
        for callback in self._callbacks:
            callback.on_train_end(self._logs)

    def _begin(self, resumed: tuple[dict, dict] | None) -> None:
        if resumed is not None:
            try:
                self._restore(*resumed)
            except (KeyError, TypeError, ValueError) as error:
                reason = f"the checkpoint is not one of this model and training: {error}"
                raise ValueError(f"[fit] resume: {reason}") from None
        for callback in self._callbacks:
            callback.model, callback.run = self.model, self
            callback.on_train_begin({})
        if resumed is not None:
            self._restore_callbacks(*resumed)

    # What callbacks use.

    def scale_lr(self, factor: float) -> None:
        """Multiplies the learning rates of all steps to come."""
        self.model._updates.scale *= factor

    def save(self, path: str) -> None:
        """Writes a checkpoint after an epoch's end; see ModelCheckpoint."""
        name_layers(self.model)  # another model that shares layers may have renamed them
        tensors, training = self._state()
        metadata = {"training": json.dumps(training, default=lambda number: number.item())}
        try:
            metadata |= self.model._metadata()
        except ValueError as error:
            warnings.warn(
                f"[ModelCheckpoint] fit can resume from {path}, but load cannot read it: {error}", stacklevel=4
            )
        previous = f"{path}.prev" if self._is_sound(path) else None
        try:
            io.save(path, self.model._tensors() | tensors, metadata, previous=previous, temporary=f"{path}.tmp")
        except OSError as error:
            error.add_note(f"[ModelCheckpoint] {path} could not be written; what it held before is still there")
            raise
        self._sound.add(path)

    def _is_sound(self, path: str) -> bool:
        """Whether a file is worth keeping as the one before."""
        if not os.path.exists(path):
            return False
        if path not in self._sound:
            try:
                io.load(path)
            except ValueError:
                return False
        return True

    # What a checkpoint holds besides the model.

    def _named_callbacks(self) -> dict[str, Callback]:
        """The callbacks by class and number among those of the class, which a resumed fit knows them by."""
        seen: Counter = Counter()
        named = {}
        for callback in self._callbacks:
            name = type(callback).__name__
            named[f"{name}.{seen[name]}"] = callback
            seen[name] += 1
        return named

    def _state(self) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """(arrays, plain data)."""
        updates, states = self.model._updates, {}
        tensors = {f"{PREFIX}dropout": self.model._dropouts.state}
        for leaf in self.model.leaves():
            for p in leaf.parameters.values():
                for i, slot in enumerate(updates.known_slots(p)):
                    tensors[f"{PREFIX}slots/{leaf.name}/{p.name}/{i}"] = slot.transpose(p.axes)
        for name, callback in self._named_callbacks().items():
            state = callback.get_state()
            arrays = {key: value for key, value in state.items() if _is_arrays(value)}
            for key, value in arrays.items():
                tensors |= {f"{PREFIX}callbacks/{name}/{key}/{i}": array for i, array in enumerate(value)}
            states[name] = {key: {} if key in arrays else {"value": value} for key, value in state.items()}
        return tensors, {
            "epoch": self.epoch + 1,
            "epochs": self._total,
            "stopped": self.model.stop_training,
            "steps": self._data.steps,
            "updates": [updates.step, updates.scale],
            "generators": [g.bit_generator.state for g in self._generators],
            "history": self.history.history,
            "callbacks": states,
        }

    def _restore(self, tensors: dict[str, np.ndarray], training: dict[str, Any]) -> None:
        model, updates = self.model, self.model._updates
        slots = [
            (leaf, p, _numbered(tensors, f"{PREFIX}slots/{leaf.name}/{p.name}/"))
            for leaf in model.leaves()
            for p in leaf.parameters.values()
        ]
        for parameter in slots:
            updates.check_slots(*parameter)
        model._take_tensors(tensors)
        for parameter in slots:
            updates.take_slots(*parameter)
        self._first = training["epoch"]
        # Where an early stop was decided, it holds; a fit of another length goes on.
        model.stop_training = training["stopped"] and training["epochs"] == self._total
        self._data.steps = self._data.steps or training["steps"]
        self.history.history = training["history"]
        model._dropouts.state[:] = tensors[f"{PREFIX}dropout"]
        updates.step, updates.scale = training["updates"]
        for generator, state in zip(self._generators, training["generators"], strict=True):
            generator.bit_generator.state = state

    def _restore_callbacks(self, tensors: dict[str, np.ndarray], training: dict[str, Any]) -> None:
        for name, callback in self._named_callbacks().items():
            if name in training["callbacks"]:
                state = {
                    key: kept["value"] if "value" in kept else _numbered(tensors, f"{PREFIX}callbacks/{name}/{key}/")
                    for key, kept in training["callbacks"][name].items()
                }
                callback.set_state(state)


def _overrides(callback: Callback, name: str) -> bool:
    method = getattr(callback, name)
    return getattr(method, "__func__", method) is not getattr(Callback, name)


def _numbered(tensors: dict[str, np.ndarray], start: str) -> list[np.ndarray]:
    """The arrays named start + 0, start + 1, ..."""
    arrays: list[np.ndarray] = []
    while f"{start}{len(arrays)}" in tensors:
        arrays.append(tensors[f"{start}{len(arrays)}"])
    return arrays


def _is_arrays(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, np.ndarray) for v in value)


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict, dict] | None:
    """(arrays, plain data) of a checkpoint, or of PATH.prev where the file is damaged; None where there is no file."""
    target = shapes.path("fit", "resume", path)
    if not os.path.exists(target):
        return None
    try:
        return _read(target)
    except ValueError as error:
        try:
            content = _read(f"{target}.prev")
        except (ValueError, FileNotFoundError) as other:
            raise ValueError(f"[fit] resume: {error}; nor is there one before it: {other}") from None
        warnings.warn(f"[fit] resume: {error}; going on from the checkpoint before, {target}.prev", stacklevel=4)
        return content


def _read(path: str) -> tuple[dict, dict]:
    tensors, metadata = io.load(path)
    if "training" not in metadata:
        raise ValueError(f"{path} is no checkpoint of a training; ModelCheckpoint writes those")
    return tensors, json.loads(metadata["training"])

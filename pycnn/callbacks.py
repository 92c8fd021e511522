"""What happens around the steps of `fit`: early stopping, checkpoints, logs, and what a subclass of Callback does."""

import csv
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import shapes

if TYPE_CHECKING:
    from pycnn.model import BaseModel
    from pycnn.training import Run

Logs = dict[str, float]


class Callback:
    """Subclasses override what they need; epochs and batches count from 0.

    During fit, `model` is the model and `run` what fit is at (training.Run); `self.model.stop_training = True` ends
    the training after this batch or epoch. `logs` are the loss and the metrics: means over the epoch so far, at an
    epoch's end also those of the validation data, the learning rate, and the seconds.
    """

    model: "BaseModel"
    run: "Run"

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Before the first epoch."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Before an epoch's first batch."""

    def on_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """After each step."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """After an epoch and its validation."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """After the last epoch; not if an error ended the training."""

    def get_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the callback: numbers, text, and lists of arrays, by name."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes what `get_state` gave, after on_train_begin of a resumed fit."""


class LambdaCallback(Callback):
    """Functions in place of methods: LambdaCallback(on_epoch_end=lambda epoch, logs: print(epoch, logs))."""

    def __init__(
        self,
        on_train_begin: Callable | None = None,
        on_epoch_begin: Callable | None = None,
        on_batch_end: Callable | None = None,
        on_epoch_end: Callable | None = None,
        on_train_end: Callable | None = None,
    ):
        given = {k: v for k, v in locals().items() if k.startswith("on_") and v is not None}
        for name, function in given.items():
            if not callable(function):
                raise TypeError(f"[LambdaCallback] {name} must be a function, got {function!r}")
            setattr(self, name, function)


class _Monitor(Callback):
    """Follows one of the logs (None: val_loss, or loss without validation data).

    Whether more of it is better is told by its name, or by `mode`.
    """

    def __init__(self, monitor: str | None, mode: str):
        name = type(self).__name__
        if not isinstance(monitor, (str, type(None))):
            raise TypeError(f"[{name}] monitor must be a name among the logs, got {monitor!r}")
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"[{name}] mode must be auto, min or max, got {mode!r}")
        self.monitor, self._mode = monitor, mode
        self.best: float | None = None
        self.wait = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        self.best, self.wait = None, 0

    def get_state(self) -> dict[str, Any]:
        return {"best": self.best, "wait": self.wait}

    def set_state(self, state: dict[str, Any]) -> None:
        self.best, self.wait = state["best"], state["wait"]

    def _value(self, logs: Logs) -> float:
        """The followed value, turned so that less is better."""
        name = self.monitor or ("val_loss" if "val_loss" in logs else "loss")
        if name not in logs:
            raise ValueError(f"[{type(self).__name__}] monitor must be among {', '.join(logs)}, got {name!r}")
        more = self._mode == "max" or (self._mode == "auto" and name.endswith(("accuracy", "top_5")))
        return -logs[name] if more else logs[name]

    def _improves(self, value: float, margin: float = 0.0) -> bool:
        """Whether a value is the best so far, by more than a margin; then keeps it. NaN never is."""
        better = not math.isnan(value) and (self.best is None or value < self.best - margin)
        if better:
            self.best = value
        return better


class EarlyStopping(_Monitor):
    """Stops when `monitor` has not become better by more than min_delta for `patience` epochs.

    restore_best: at the end, the model has the weights of its best epoch, whether or not it was stopped.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        patience: int = 5,
        restore_best: bool = True,
        *,
        min_delta: float = 0.0,
        mode: str = "auto",
    ):
        super().__init__(monitor, mode)
        self.patience = shapes.integer("EarlyStopping", "patience", patience)
        self.restore_best = shapes.boolean("EarlyStopping", "restore_best", restore_best)
        self.min_delta = shapes.number("EarlyStopping", "min_delta", min_delta, 0)
        self._weights: list[np.ndarray] = []

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._weights = []

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if self._improves(self._value(logs), self.min_delta):
            self.wait = 0
            if self.restore_best:
                self._weights = self.model.get_weights()
            return
        self.wait += 1
        if self.wait >= self.patience:
            self.model.stop_training = True

    def on_train_end(self, logs: Logs | None = None) -> None:
        if self._weights:
            self.model.set_weights(self._weights)

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"weights": self._weights}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._weights = state["weights"]


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by `factor` when `monitor` has not become better for more than `patience` epochs.

    As PyTorch's: better is by more than `threshold` of the best value; after a change, `cooldown` epochs do not count;
    the rate stays at min_lr or more. Schedules are scaled likewise, and so are the optimizers of single layers.
    """

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        *,
        threshold: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
        mode: str = "auto",
    ):
        super().__init__(monitor, mode)
        op = "ReduceLROnPlateau"
        self.factor = shapes.number(op, "factor", factor, 0, 1)
        self.patience = shapes.integer(op, "patience", patience)
        self.threshold = shapes.number(op, "threshold", threshold, 0)
        self.cooldown = shapes.integer(op, "cooldown", cooldown)
        self.min_lr = shapes.number(op, "min_lr", min_lr, 0)
        self._cooling = 0

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        self._cooling = 0

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        value = self._value(logs)
        margin = 0.0 if self.best is None else self.threshold * abs(self.best)
        self.wait = 0 if self._improves(value, margin) else self.wait + 1
        if self._cooling > 0:
            self._cooling -= 1
            self.wait = 0
        if self.wait > self.patience:
            lr = logs["lr"]
            if lr > self.min_lr:
                self.run.scale_lr(max(self.factor, self.min_lr / lr))
            self._cooling, self.wait = self.cooldown, 0

    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"cooling": self._cooling}

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        self._cooling = state["cooling"]


class ModelCheckpoint(_Monitor):
    """Writes a checkpoint to `path`, taken verbatim, after each epoch; with best_only after those that were the best.

    A checkpoint is a file that `cnn.load` takes and that `fit(resume=path)` goes on from to the same bits. It replaces
    the one before in one step; that one stays as PATH.prev. best_only follows `monitor`; None is val_loss, or loss
    without validation data. OSError where it cannot be written: the file then is the one before.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        best_only: bool = False,
        *,
        monitor: str | None = None,
        mode: str = "auto",
    ):
        super().__init__(monitor, mode)
        self.path = shapes.path("ModelCheckpoint", "path", path)
        self.best_only = shapes.boolean("ModelCheckpoint", "best_only", best_only)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        super().on_train_begin(logs)
        if not os.path.isdir(os.path.dirname(self.path) or "."):
            raise FileNotFoundError(f"[ModelCheckpoint] path: {self.path!r} is in a folder that does not exist")

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        if not self.best_only or self._improves(self._value(logs)):
            self.run.save(self.path)


class CSVLogger(Callback):
    """Writes a line an epoch to `path`: the epoch, and what History holds; a resumed fit begins with the lines before.

    The file is complete after each epoch.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = shapes.path("CSVLogger", "path", path)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        history = self.run.history.history
        with open(self.path, "w", newline="") as file:
            if history:
                csv.writer(file).writerow(["epoch", *history])
                csv.writer(file).writerows([i, *row] for i, row in enumerate(zip(*history.values(), strict=True)))

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        with open(self.path, "a", newline="") as file:
            if not file.tell():
                csv.writer(file).writerow(["epoch", *logs])
            csv.writer(file).writerow([epoch, *logs.values()])

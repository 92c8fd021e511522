"""Learning rates that change: callables of the epoch as a float, which counts from 0. Optimizers take them as `lr`.

Any other callable will do as well, but cannot be saved with a model.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, ClassVar

from pycnn import shapes

Rate = float | Callable[[float], float]


class Schedule:
    """What the schedules share; subclasses are dataclasses whose fields are saved."""

    _fit_epochs: int | None = None

    def __call__(self, epoch: float) -> float:
        """The learning rate at an epoch."""
        raise NotImplementedError

    def begin_fit(self, epochs: int) -> None:
        """Tells the number of epochs of the fit that begins."""
        self._fit_epochs = epochs

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        return {f.name: getattr(self, f.name) for f in fields(self)}

    def _check(self, *names: str) -> None:
        """These fields must be numbers from 0 on."""
        for name in names:
            setattr(self, name, shapes.number(type(self).__name__, name, getattr(self, name), 0))

    def _check_epochs(self) -> None:
        if self.epochs is not None:
            self.epochs = shapes.number(type(self).__name__, "epochs", self.epochs, 0)

    def _length(self) -> float:
        """`epochs`, or the whole fit's."""
        length = self._fit_epochs if self.epochs is None else self.epochs
        if length is None:
            raise ValueError(
                f"[{type(self).__name__}] epochs is None, which stands for the whole fit, but there was no fit; "
                "give the number of epochs"
            )
        return length


@dataclass
class StepDecay(Schedule):
    """lr factor^floor(epoch / every): multiplied by `factor` each `every` epochs."""

    lr: float
    every: float
    factor: float

    def __post_init__(self) -> None:
        self._check("lr", "every", "factor")
        if not self.every:
            raise ValueError("[StepDecay] every must be above 0, got 0")

    def __call__(self, epoch: float) -> float:
        return self.lr * self.factor ** math.floor(epoch / self.every)


@dataclass
class ExponentialDecay(Schedule):
    """lr factor^epoch, also between whole epochs."""

    lr: float
    factor: float

    def __post_init__(self) -> None:
        self._check("lr", "factor")

    def __call__(self, epoch: float) -> float:
        return self.lr * self.factor**epoch


def _cosine(start: float, end: float, share: float) -> float:
    """From start to end on half a period of the cosine, as share goes from 0 to 1."""
    return end + (start - end) * (1 + math.cos(math.pi * min(max(share, 0.0), 1.0))) / 2


@dataclass
class CosineDecay(Schedule):
    """Linear from 0 to lr over `warmup` epochs, then on a cosine to `floor` at `epochs`, where it stays.

    epochs=None is the whole fit. Loshchilov and Hutter 2017, equation 5, without restarts.
    """

    lr: float
    epochs: float | None = None
    warmup: float = 0
    floor: float = 0.0

    def __post_init__(self) -> None:
        self._check("lr", "warmup", "floor")
        self._check_epochs()

    def __call__(self, epoch: float) -> float:
        if epoch < self.warmup:
            return self.lr * epoch / self.warmup
        length = self._length() - self.warmup
        return _cosine(self.lr, self.floor, (epoch - self.warmup) / length if length > 0 else 1.0)


@dataclass
class OneCycle(Schedule):
    """From lr / 25 up to lr over the first 0.3 of `epochs`, then down to lr / 250,000, each on a cosine.

    epochs=None is the whole fit. Smith and Topin 2017, with the defaults of PyTorch's OneCycleLR.
    """

    lr: float
    epochs: float | None = None

    RISING: ClassVar[float] = 0.3
    FIRST: ClassVar[float] = 1 / 25
    LAST: ClassVar[float] = 1 / 25e4

    def __post_init__(self) -> None:
        self._check("lr")
        self._check_epochs()

    def __call__(self, epoch: float) -> float:
        length = self._length()
        share = epoch / length if length else 1.0
        if share < self.RISING:
            return _cosine(self.lr * self.FIRST, self.lr, share / self.RISING)
        return _cosine(self.lr, self.lr * self.LAST, (share - self.RISING) / (1 - self.RISING))


@dataclass
class PiecewiseConstant(Schedule):
    """{0: 0.1, 10: 0.01}: each rate from its epoch on, until the next one's."""

    rates: dict[float, float]

    def __post_init__(self) -> None:
        try:
            pairs = dict(self.rates).items()
        except (TypeError, ValueError):
            raise TypeError(f"[PiecewiseConstant] rates must be a dict of epoch: rate, got {self.rates!r}") from None
        name = type(self).__name__
        pairs = [(shapes.number(name, "epoch", e, 0), shapes.number(name, "rate", r, 0)) for e, r in pairs]
        self.rates = dict(sorted(pairs))
        if 0 not in self.rates:
            raise ValueError(f"[PiecewiseConstant] rates must begin with epoch 0, got {self.rates!r}")

    def config(self) -> dict[str, Any]:
        return {"rates": list(self.rates.items())}  # JSON has no numbers as keys

    def __call__(self, epoch: float) -> float:
        return [rate for start, rate in self.rates.items() if start <= max(epoch, 0)][-1]


SCHEDULES = {s.__name__: s for s in (StepDecay, ExponentialDecay, CosineDecay, OneCycle, PiecewiseConstant)}


def to_config(lr: Rate) -> Any:
    """A rate as plain data: a number, or a schedule's name and options."""
    if isinstance(lr, Schedule) and type(lr).__name__ in SCHEDULES:
        return {"schedule": type(lr).__name__, "config": lr.config()}
    if callable(lr):
        raise ValueError(f"[save] the schedule {lr!r} cannot be saved; take one of pycnn.schedules, or a number")
    return lr


def from_config(config: Any) -> Rate:
    """What `to_config` described."""
    return SCHEDULES[config["schedule"]](**config["config"]) if isinstance(config, dict) else config

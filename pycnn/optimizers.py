"""Optimizers: constants of an update, its slots (one array a parameter each), its kernel and its twin."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np

from pycnn import reference, shapes
from pycnn.plan import Buffer, PlanBuilder

Schedule = Callable[[float], float]


@dataclass
class Optimizer:
    """What all optimizers share. lr is a number or a callable of the epoch as a float."""

    kernel: ClassVar[str] = ""
    name: ClassVar[str] = ""

    def slots(self) -> int:
        """The number of arrays of a parameter's size that the update keeps."""
        raise NotImplementedError

    def constants(self) -> dict[str, float]:
        """The constants in the kernel's descriptor."""
        raise NotImplementedError

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        """The update on the reference: flat lists, in place."""
        raise NotImplementedError

    def corrections(self, step: int) -> tuple[float, float]:
        """Adam's two bias corrections at a step that counts from 1."""
        return 1.0, 1.0

    def lr_at(self, epoch: float) -> float:
        """The learning rate at an epoch, which counts from 0."""
        lr = self.lr(epoch) if callable(self.lr) else self.lr
        if type(lr) is float and 0 <= lr < math.inf:  # as quickly as possible, for it is asked at each step
            return lr
        return shapes.number(self.name, "lr", lr, 0)

    def check(self) -> None:
        if not callable(self.lr):
            shapes.number(self.name, "lr", self.lr, 0)
        shapes.number(self.name, "weight_decay", self.weight_decay, 0)
        for option in ("clip_norm", "clip_value"):
            if getattr(self, option) is not None:
                shapes.number(self.name, option, getattr(self, option), 0)

    def state(self, lr: float, step: int, factor: float) -> tuple[float, float, float, float]:
        """What the kernels read each step, in the order of optimizer.h."""
        return (lr, factor, *self.corrections(step))

    def clip_factor(self, squared_norm: float) -> float:
        """What gradients are multiplied by so that their norm is at most clip_norm."""
        if self.clip_norm is None:
            return 1.0
        return min(1.0, self.clip_norm / (math.sqrt(squared_norm) + 1e-6))

    def lower(self, b: PlanBuilder, size: int, w: Buffer, slots: list[Buffer], g: Buffer, state: Buffer) -> None:
        """Appends the update of one parameter."""
        clip = math.inf if self.clip_value is None else self.clip_value
        arguments = [w, *self._slot_arguments(slots), g, state]
        b.call(self.kernel, arguments, size, size=size, clip_value=clip, **self.descriptor())

    def descriptor(self) -> dict[str, float]:
        """The constants as the kernel takes them."""
        return self.constants()

    def _slot_arguments(self, slots: list[Buffer]) -> list[Buffer | None]:
        return list(slots)

    def config(self) -> dict[str, Any]:
        """The constructor's arguments, for saving."""
        config = asdict(self)
        if callable(config["lr"]):
            raise ValueError(f"[save] the schedule {config['lr']!r} cannot be saved; set lr to a number first")
        return config


@dataclass
class SGD(Optimizer):
    """v = momentum v + g;  w -= lr v, or with nesterov w -= lr (g + momentum v); g includes weight_decay w."""

    lr: float | Schedule = 0.01
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    kernel: ClassVar[str] = "sgd"
    name: ClassVar[str] = "sgd"

    def __post_init__(self) -> None:
        self.check()
        shapes.number(self.name, "momentum", self.momentum, 0, 1)
        if shapes.boolean(self.name, "nesterov", self.nesterov) and not self.momentum:
            raise ValueError("[sgd] nesterov needs a momentum above 0")

    def slots(self) -> int:
        return 1 if self.momentum else 0

    def constants(self) -> dict[str, float]:
        return {"momentum": self.momentum, "nesterov": self.nesterov, "weight_decay": self.weight_decay}

    def _slot_arguments(self, slots: list[Buffer]) -> list[Buffer | None]:
        return slots or [None]

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        velocity = slots[0] if slots else None
        reference.sgd_update(w, g, velocity, lr=lr, **self.constants())


@dataclass
class Adam(Optimizer):
    """Kingma and Ba 2015, algorithm 1; weight_decay is added to the gradient (L2)."""

    lr: float | Schedule = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    kernel: ClassVar[str] = "adam"
    name: ClassVar[str] = "adam"

    def __post_init__(self) -> None:
        self.check()
        if not isinstance(self.betas, (tuple, list)) or len(self.betas) != 2:
            raise ValueError(f"[adam] betas must be two numbers, got {self.betas!r}")
        self.betas = tuple(shapes.number(self.name, "betas", beta, 0, 1 - 1e-9) for beta in self.betas)
        shapes.number(self.name, "eps", self.eps, 0)

    def slots(self) -> int:
        return 2

    def constants(self) -> dict[str, float]:
        beta1, beta2 = self.betas
        return {"beta1": beta1, "beta2": beta2, "eps": self.eps, "weight_decay": self.weight_decay}

    def descriptor(self) -> dict[str, float]:
        # 1 - beta in double: in single precision 1 - 0.9999 has few digits left.
        return self.constants() | {f"rest{i}": 1 - beta for i, beta in enumerate(self.betas, 1)}

    def corrections(self, step: int) -> tuple[float, float]:
        beta1, beta2 = self.betas
        return 1 - beta1**step, math.sqrt(1 - beta2**step)

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        reference.adam_update(w, g, *slots, step=step, lr=lr, **self.constants())


OPTIMIZERS = {optimizer.name: optimizer for optimizer in (SGD, Adam)}


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer from its name or object."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ValueError(
            f"[compile] optimizer must be one of {', '.join(OPTIMIZERS)} or an optimizer object, got {optimizer!r}"
        )
    return OPTIMIZERS[optimizer]()


class Updates:
    """The optimizers of a compiled model at work: their slots, their steps, and what kernels read each step."""

    def __init__(self, optimizer: Optimizer, overrides: dict[str, Optimizer], by_leaf: dict[str, str]):
        self.optimizers = [optimizer, *overrides.values()]
        numbers = {name: 1 + i for i, name in enumerate(overrides)}
        self._by_leaf = {leaf: numbers[name] for leaf, name in by_leaf.items()}
        self.step = 0
        self.states = [np.zeros(4, np.float32) for _ in self.optimizers]
        self.norms = [np.zeros(1, np.float64) for _ in self.optimizers]
        self._slots: dict[Any, list[np.ndarray]] = {}

    def of(self, layer: str) -> int:
        """The number of the optimizer that a layer's parameters have."""
        return self._by_leaf.get(layer, 0)

    def slots(self, layer: str, parameter: Any) -> list[np.ndarray]:
        if parameter not in self._slots:
            count = self.optimizers[self.of(layer)].slots()
            self._slots[parameter] = [np.zeros_like(parameter.memory) for _ in range(count)]
        return self._slots[parameter]

    def begin(self, epoch: float) -> None:
        """Starts a step: counts it and writes what the kernels read."""
        rates = [optimizer.lr_at(epoch) for optimizer in self.optimizers]
        self.step += 1
        for optimizer, state, lr in zip(self.optimizers, self.states, rates, strict=True):
            state.data[0], state.data[1], state.data[2], state.data[3] = optimizer.state(lr, self.step, 1.0)

    def cancel(self) -> None:
        """Takes the last `begin` back."""
        self.step -= 1

"""Optimizers: constants of an update, its slots (one array a parameter each), its kernel and its twin."""

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from pycnn import reference, schedules, shapes
from pycnn.plan import Buffer, PlanBuilder
from pycnn.schedules import Rate, Schedule

if TYPE_CHECKING:
    from pycnn.layers.base import Layer


@dataclass
class Optimizer:
    """What all optimizers share. lr is a number or a callable of the epoch as a float."""

    kernel: ClassVar[str] = ""
    name: ClassVar[str] = ""

    def slots(self) -> int:
        """The number of arrays of a parameter's size that the update keeps."""
        raise NotImplementedError

    def first_slot_value(self) -> float:
        """What the first slot starts with; the others start with zeros."""
        return 0.0

    def constants(self) -> dict[str, float]:
        """The constants in the kernel's descriptor."""
        raise NotImplementedError

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        """The update on the reference: flat lists, in place."""
        raise NotImplementedError

    def rate(self, lr: float, step: int) -> float:
        """The learning rate of a step, which counts from 1."""
        return lr

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
        return (self.rate(lr, step), factor, *self.corrections(step))

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
        config = {f.name: getattr(self, f.name) for f in fields(self)}
        return config | {"lr": schedules.to_config(self.lr)}


@dataclass
class SGD(Optimizer):
    """v = momentum v + g;  w -= lr v, or with nesterov w -= lr (g + momentum v); g includes weight_decay w."""

    lr: Rate = 0.01
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
    """Kingma and Ba 2015, algorithm 1; weight_decay w is added to the gradient (L2)."""

    lr: Rate = 1e-3
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
            raise ValueError(f"[{self.name}] betas must be two numbers, got {self.betas!r}")
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


@dataclass
class AdamW(Adam):
    """Adam whose weight decay is not part of the gradient: w -= lr weight_decay w, besides Adam's step.

    Loshchilov and Hutter 2019, algorithm 2, as in PyTorch.
    """

    weight_decay: float = 0.01

    name: ClassVar[str] = "adamw"

    def constants(self) -> dict[str, float]:
        constants = super().constants()
        constants["decoupled_decay"] = constants.pop("weight_decay")
        return constants


@dataclass
class RMSprop(Optimizer):
    """s = alpha s + (1 - alpha) g^2;  v = momentum v + g / (sqrt(s) + eps);  w -= lr v; g includes weight_decay w.

    Tieleman and Hinton 2012; with `centered`, s less the square of the gradients' mean (Graves 2013).
    """

    lr: Rate = 0.01
    alpha: float = 0.99
    eps: float = 1e-8
    weight_decay: float = 0.0
    momentum: float = 0.0
    centered: bool = False
    clip_norm: float | None = None
    clip_value: float | None = None

    kernel: ClassVar[str] = "rmsprop"
    name: ClassVar[str] = "rmsprop"

    def __post_init__(self) -> None:
        self.check()
        self.alpha = shapes.number(self.name, "alpha", self.alpha, 0, 1 - 1e-9)
        shapes.number(self.name, "eps", self.eps, 0)
        shapes.number(self.name, "momentum", self.momentum, 0, 1)
        shapes.boolean(self.name, "centered", self.centered)

    def slots(self) -> int:
        return 1 + bool(self.centered) + bool(self.momentum)

    def constants(self) -> dict[str, float]:
        return {
            "alpha": self.alpha,
            "eps": self.eps,
            "weight_decay": self.weight_decay,
            "momentum": self.momentum,
        }

    def descriptor(self) -> dict[str, float]:
        constants = self.constants()
        return constants | {"beta2": constants.pop("alpha"), "rest2": 1 - self.alpha}

    def _slot_arguments(self, slots: list) -> list:
        """The mean of squares, that of gradients or None, the velocity or None."""
        rest = iter(slots[1:])
        return [slots[0], next(rest) if self.centered else None, next(rest) if self.momentum else None]

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        reference.rmsprop_update(w, g, *self._slot_arguments(slots), lr=lr, **self.constants())


@dataclass
class Adagrad(Optimizer):
    """s += g^2;  w -= lr g / (sqrt(s) + eps); g includes weight_decay w, s starts at initial_accumulator_value.

    Duchi, Hazan and Singer 2011. The rate falls with the steps: lr / (1 + lr_decay (step - 1)).
    """

    lr: Rate = 0.01
    lr_decay: float = 0.0
    weight_decay: float = 0.0
    initial_accumulator_value: float = 0.0
    eps: float = 1e-10
    clip_norm: float | None = None
    clip_value: float | None = None

    kernel: ClassVar[str] = "adagrad"
    name: ClassVar[str] = "adagrad"

    def __post_init__(self) -> None:
        self.check()
        for option in ("lr_decay", "initial_accumulator_value", "eps"):
            shapes.number(self.name, option, getattr(self, option), 0)

    def slots(self) -> int:
        return 1

    def first_slot_value(self) -> float:
        return self.initial_accumulator_value

    def constants(self) -> dict[str, float]:
        return {"eps": self.eps, "weight_decay": self.weight_decay}

    def rate(self, lr: float, step: int) -> float:
        return lr / (1 + self.lr_decay * (step - 1))

    def _slot_arguments(self, slots: list) -> list:
        return [*slots, None]

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        reference.adagrad_update(w, g, slots[0], None, lr=self.rate(lr, step), **self.constants())


@dataclass
class AdagradMomentum(Optimizer):
    """s += g^2;  v = momentum v + lr g / (sqrt(s) + eps);  w -= v: Adagrad's steps with momentum (report 003)."""

    lr: Rate = 0.01
    momentum: float = 0.9
    eps: float = 1e-10
    weight_decay: float = 0.0
    clip_norm: float | None = None
    clip_value: float | None = None

    kernel: ClassVar[str] = "adagrad"
    name: ClassVar[str] = "adagrad_momentum"

    def __post_init__(self) -> None:
        self.check()
        shapes.number(self.name, "momentum", self.momentum, 0, 1)
        shapes.number(self.name, "eps", self.eps, 0)

    def slots(self) -> int:
        return 2

    def constants(self) -> dict[str, float]:
        return {"momentum": self.momentum, "eps": self.eps, "weight_decay": self.weight_decay}

    def update_list(self, w: list, g: list, slots: list[list], lr: float, step: int) -> None:
        reference.adagrad_update(w, g, *slots, lr=lr, **self.constants())


OPTIMIZERS = {optimizer.name: optimizer for optimizer in (SGD, Adam, AdamW, RMSprop, Adagrad, AdagradMomentum)}


def get(optimizer: str | Optimizer) -> Optimizer:
    """An optimizer from its name or object."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if not isinstance(optimizer, str) or optimizer not in OPTIMIZERS:
        raise ValueError(
            f"[compile] optimizer must be one of {', '.join(OPTIMIZERS)} or an optimizer object, got {optimizer!r}"
        )
    return OPTIMIZERS[optimizer]()


def from_config(name: str, config: dict[str, Any]) -> Optimizer:
    """The optimizer of this name whose `config` it was."""
    return OPTIMIZERS[name](**config | ({"lr": schedules.from_config(config["lr"])} if "lr" in config else {}))


class Updates:
    """The optimizers of a compiled model at work: their slots, their steps, and what kernels read each step."""

    def __init__(self, optimizer: Optimizer, overrides: dict["Layer", Optimizer], by_leaf: dict["Layer", "Layer"]):
        self.optimizers = [optimizer, *overrides.values()]
        numbers = {layer: 1 + i for i, layer in enumerate(overrides)}
        self._by_leaf = {leaf: numbers[layer] for leaf, layer in by_leaf.items()}
        self.step = 0
        self.scale = 1.0  # of every learning rate; ReduceLROnPlateau's
        self.states = [np.zeros(4, np.float32) for _ in self.optimizers]
        self.norms = [np.zeros(1, np.float64) for _ in self.optimizers]
        self._slots: dict[Any, list[np.ndarray]] = {}
        self.last = False  # whether the step under way is an epoch's last
        self.begin_gathering(1)

    def of(self, layer: "Layer") -> int:
        """The number of the optimizer that a layer's parameters have."""
        return self._by_leaf.get(layer, 0)

    def slots(self, layer: "Layer", parameter: Any) -> list[np.ndarray]:
        if parameter not in self._slots:
            count = self.optimizers[self.of(layer)].slots()
            self._slots[parameter] = [parameter.another(0.0) for _ in range(count)]
            self._reset(layer, parameter)
        return self._slots[parameter]

    def _reset(self, layer: "Layer", parameter: Any) -> None:
        first = self.optimizers[self.of(layer)].first_slot_value()
        for i, slot in enumerate(self._slots[parameter]):
            slot[...] = 0.0 if i else first

    def known_slots(self, parameter: Any) -> list[np.ndarray]:
        """The slots of a parameter, none before its first update."""
        return self._slots.get(parameter, [])

    def check_slots(self, layer: "Layer", parameter: Any, saved: list[np.ndarray]) -> None:
        """Refuses saved slots that are not of this optimizer."""
        count = self.optimizers[self.of(layer)].slots()
        if saved and len(saved) != count:
            what = f"{parameter.name} of {layer.name}"
            raise ValueError(f"{what} has {len(saved)} arrays of an optimizer, expected {count}")
        for array in saved:
            shapes.expect_shape("fit", f"{parameter.name} of {layer.name}", array.shape, parameter.shape)

    def take_slots(self, layer: "Layer", parameter: Any, saved: list[np.ndarray]) -> None:
        """Sets the slots to saved ones, which are in the parameter's public shape; none means before any update."""
        if saved:
            for slot, array in zip(self.slots(layer, parameter), saved, strict=True):
                slot.transpose(parameter.axes)[...] = array
        elif parameter in self._slots:
            self._reset(layer, parameter)

    def begin_fit(self, epochs: int) -> None:
        """Tells the schedules how many epochs a fit has."""
        for optimizer in self.optimizers:
            if isinstance(optimizer.lr, Schedule):
                optimizer.lr.begin_fit(epochs)

    def lr(self, which: int, epoch: float) -> float:
        """The learning rate of an optimizer at an epoch."""
        return self.scale * self.optimizers[which].lr_at(epoch)

    def begin_gathering(self, batches: int) -> None:
        """From now on, gradients of so many batches make one update."""
        self.batches = batches
        self._sums: list[np.ndarray] = []
        self._gathered = self._samples = 0

    def gather(self, gradients: list[np.ndarray], samples: int) -> bool:
        """Adds a batch's gradients to those before it; True when they become the mean over the samples of all."""
        self._sums = self._sums or [np.zeros_like(g) for g in gradients]
        for total, gradient in zip(self._sums, gradients, strict=True):
            total += np.float32(samples) * gradient
        self._gathered += 1
        self._samples += samples
        if self._gathered < self.batches and not self.last:
            return False
        for total, gradient in zip(self._sums, gradients, strict=True):
            np.divide(total, np.float32(self._samples), out=gradient)
            total[...] = 0
        self._gathered = self._samples = 0
        return True

    def begin(self, epoch: float) -> None:
        """Starts a step: counts it and writes what the kernels read."""
        rates = [self.lr(i, epoch) for i in range(len(self.optimizers))]
        self.step += 1
        for optimizer, state, lr in zip(self.optimizers, self.states, rates, strict=True):
            state[0], state[1], state[2], state[3] = optimizer.state(lr, self.step, 1.0)

    def cancel(self) -> None:
        """Takes the last `begin` back."""
        self.step -= 1

"""Activation layers, and the `activation=` option of others."""

from typing import Any

from pycnn import operators, shapes
from pycnn.graph import Graph, Value
from pycnn.layers.base import Layer

NAMES = (*shapes.ACTIVATION_OPTIONS, "softmax")


def check(op: str, name: Any) -> None:
    """Refuses what is not the name of an activation, or None."""
    if name is not None and not (isinstance(name, str) and name in NAMES):
        raise ValueError(f"[{op}] activation must be None or one of {', '.join(NAMES)}, got {name!r}")


def operator(name: str, **options: float) -> operators.Operator:
    if name == "softmax":
        return operators.Softmax()
    return operators.Activation(*shapes.activation("activation", name, options))


class Activation(Layer):
    """An activation by name: relu, leaky_relu, sigmoid, tanh, elu, gelu, silu, hard_swish or softmax."""

    def __init__(self, activation: str | None = None, *, name: str | None = None, input_shape: Any = None):
        if activation is None and name in NAMES:
            activation, name = name, None  # Activation(name="relu")
        check("Activation", activation)
        if activation is None:
            raise ValueError(f"[Activation] activation must be one of {', '.join(NAMES)}, got None")
        super().__init__(name=name, input_shape=input_shape)
        self._remember(activation=activation)
        self._operator = operator(activation)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)


class _Named(Layer):
    """An activation that is a class of its own; `options` are those of the function."""

    activation = ""

    def __init__(self, *, name: str | None = None, input_shape: Any = None, **options: float):
        super().__init__(name=name, input_shape=input_shape)
        self._remember(**options)
        self._operator = operator(self.activation, **options)

    def emit(self, graph: Graph, x: Value) -> Value:
        return self._add(graph, self._operator, x)


class ReLU(_Named):
    """max(x, 0)."""

    activation = "relu"


class LeakyReLU(_Named):
    """x where x > 0, else alpha x."""

    activation = "leaky_relu"

    def __init__(self, alpha: float = 0.01, **named: Any):
        super().__init__(alpha=alpha, **named)


class Sigmoid(_Named):
    """1 / (1 + exp(-x))."""

    activation = "sigmoid"


class Tanh(_Named):
    """tanh x."""

    activation = "tanh"


class ELU(_Named):
    """x where x > 0, else alpha (exp(x) - 1)."""

    activation = "elu"

    def __init__(self, alpha: float = 1.0, **named: Any):
        super().__init__(alpha=alpha, **named)


class GELU(_Named):
    """x times the normal distribution function of x."""

    activation = "gelu"


class SiLU(_Named):
    """x sigmoid(x)."""

    activation = "silu"


class HardSwish(_Named):
    """x min(max(x + 3, 0), 6) / 6."""

    activation = "hard_swish"


class Softmax(_Named):
    """exp(x) / sum of exp(x), over the classes of (N, classes)."""

    activation = "softmax"

    def __init__(self, *, name: str | None = None, input_shape: Any = None):
        super().__init__(name=name, input_shape=input_shape)

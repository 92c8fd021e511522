"""Initial weights: callables (shape, generator) -> array, by name.

fan_in and fan_out are the inputs and outputs that one output and one input is connected to: C/groups R S and
K R S of convolution weights (K, C/groups, R, S); in and out of dense weights (in, out).
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from pycnn import shapes

Initializer = Callable[[tuple[int, ...], np.random.Generator], np.ndarray]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """(fan_in, fan_out) of weights."""
    if len(shape) == 2:
        return shape[0], shape[1]
    return math.prod(shape[1:]), shape[0] * math.prod(shape[2:])


def _normal(variance: Callable[[int, int], float]) -> Initializer:
    return lambda shape, generator: generator.normal(0.0, math.sqrt(variance(*fans(shape))), shape)


def _uniform(variance: Callable[[int, int], float]) -> Initializer:
    def draw(shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
        bound = math.sqrt(3 * variance(*fans(shape)))
        return generator.uniform(-bound, bound, shape)

    return draw


# He et al. 2015, equation 10; Glorot and Bengio 2010, equation 16; LeCun et al. 1998, equation 16; the plain
# uniform one is report 001's.
INITIALIZERS: dict[str, Initializer] = {
    "he_normal": _normal(lambda fan_in, fan_out: 2 / fan_in),
    "he_uniform": _uniform(lambda fan_in, fan_out: 2 / fan_in),
    "glorot_normal": _normal(lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "glorot_uniform": _uniform(lambda fan_in, fan_out: 2 / (fan_in + fan_out)),
    "lecun_normal": _normal(lambda fan_in, fan_out: 1 / fan_in),
    "normal": lambda shape, generator: generator.normal(0.0, 1.0, shape),
    "uniform": lambda shape, generator: generator.uniform(-0.5, 0.5, shape),
}


def check(op: str, init: str | Initializer) -> None:
    if not callable(init) and not (isinstance(init, str) and init in INITIALIZERS):
        raise ValueError(f"[{op}] init must be one of {', '.join(INITIALIZERS)} or a callable, got {init!r}")


def draw(op: str, init: str | Initializer, shape: tuple[int, ...], generator: np.random.Generator) -> np.ndarray:
    """Initial weights of this shape; a callable's result is checked."""
    shapes.check_size(op, "weight", shape)
    if not callable(init):
        return INITIALIZERS[init](shape, generator)
    value = shapes.array(op, "init(shape, generator)", init(shape, generator))
    shapes.expect_shape(op, "init(shape, generator)", value.shape, shape)
    return value

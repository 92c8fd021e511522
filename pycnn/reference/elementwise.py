"""Functions of one element: the activations and dropout."""

import math
from collections.abc import Callable
from typing import Any

from pycnn import shapes
from pycnn.reference.lists import Nested, apply, expect, flatten, reshape, shape_of
from pycnn.reference.softmax import softmax, softmax_backward

# ------------------------------------------------------------------------------------- activations
#
# Each function f(x, alpha) stands beside its backward(dy, x, alpha) = dy * f'(x). At a kink, and for a NaN,
# the comparisons are PyTorch's. `alpha` is 0 where a function has none.


def _relu(x: float, _: float) -> float:
    """max(0, x); report 001, equation 14. A NaN stays one."""
    return 0.0 if x <= 0 else x


def _relu_backward(dy: float, x: float, _: float) -> float:
    """Report 001, equation 15: nothing at 0."""
    return 0.0 if x <= 0 else dy


def _leaky_relu(x: float, alpha: float) -> float:
    """x where positive, else alpha * x (Maas, Hannun & Ng 2013)."""
    return x if x > 0 else alpha * x


def _leaky_relu_backward(dy: float, x: float, alpha: float) -> float:
    return dy if x > 0 else alpha * dy


def sigmoid(x: float) -> float:
    """1 / (1 + exp(-x)); report 001, equation 12. Written so that exp never overflows."""
    if x >= 0:
        return 1 / (1 + math.exp(-x))
    e = math.exp(x)
    return e / (1 + e)


def _sigmoid(x: float, _: float) -> float:
    return sigmoid(x)


def _sigmoid_backward(dy: float, x: float, _: float) -> float:
    """Report 001, equation 13; sigmoid(-x) = 1 - sigmoid(x), without the cancellation."""
    return dy * sigmoid(x) * sigmoid(-x)


def _tanh(x: float, _: float) -> float:
    return math.tanh(x)


def _tanh_backward(dy: float, x: float, _: float) -> float:
    return dy * (1 - math.tanh(x) * math.tanh(x))


def _elu(x: float, alpha: float) -> float:
    """x where positive, else alpha * (exp(x) - 1) (Clevert, Unterthiner & Hochreiter 2016)."""
    return alpha * math.expm1(x) if x <= 0 else x


def _elu_backward(dy: float, x: float, alpha: float) -> float:
    return dy * alpha * math.exp(x) if x <= 0 else dy


def _normal_cdf(x: float) -> float:
    """(1 + erf(x / sqrt 2)) / 2, the normal distribution function; erfc keeps the digits of its left tail."""
    return math.erfc(-x / math.sqrt(2)) / 2


def _gelu(x: float, _: float) -> float:
    """x times the normal distribution function (Hendrycks & Gimpel 2016), in its exact form; of minus infinity 0."""
    return 0.0 if x == -math.inf else x * _normal_cdf(x)


def _gelu_backward(dy: float, x: float, _: float) -> float:
    density = math.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    return dy * (_normal_cdf(x) + x * density)


def _silu(x: float, _: float) -> float:
    """x * sigmoid(x) (Elfwing, Uchibe & Doya 2018; Swish of Ramachandran, Zoph & Le 2017 with beta = 1)."""
    return x * sigmoid(x)


def _silu_backward(dy: float, x: float, _: float) -> float:
    return dy * sigmoid(x) * (1 + x * sigmoid(-x))


def _hard_swish(x: float, _: float) -> float:
    """x * ReLU6(x + 3) / 6 (Howard et al. 2019)."""
    return x * min(max(x + 3, 0.0), 6.0) / 6


def _hard_swish_backward(dy: float, x: float, _: float) -> float:
    if x <= -3:
        return 0.0
    return dy * (x / 3 + 0.5) if x < 3 else dy


_FORWARD: dict[str, Callable[[float, float], float]] = {
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "sigmoid": _sigmoid,
    "tanh": _tanh,
    "elu": _elu,
    "gelu": _gelu,
    "silu": _silu,
    "hard_swish": _hard_swish,
}
_BACKWARD: dict[str, Callable[[float, float, float], float]] = {
    "relu": _relu_backward,
    "leaky_relu": _leaky_relu_backward,
    "sigmoid": _sigmoid_backward,
    "tanh": _tanh_backward,
    "elu": _elu_backward,
    "gelu": _gelu_backward,
    "silu": _silu_backward,
    "hard_swish": _hard_swish_backward,
}


def activation(x: Nested, name: str, **options: float) -> Nested:
    """The activation `name` of every element (softmax: of the last axis); `options` is alpha for leaky_relu and elu."""
    shape_of("activation", "x", x)
    if name == "softmax" and not options:
        return softmax(x)
    name, alpha = shapes.activation("activation", name, options)
    return apply(lambda value: _FORWARD[name](value, alpha), x)


def activation_backward(dy: Nested, x: Nested, name: str, **options: float) -> Nested:
    """dx = dy times the derivative of the activation at x, for every element."""
    op = "activation_backward"
    expect(op, "dy", dy, shape_of(op, "x", x))
    if name == "softmax" and not options:
        return softmax_backward(dy, softmax(x))
    name, alpha = shapes.activation(op, name, options)
    return apply(lambda gradient, value: _BACKWARD[name](gradient, value, alpha), dy, x)


# ----------------------------------------------------------------------------------------- dropout

_MASK = 2**32 - 1
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85


def add(a: Nested, b: Nested) -> Nested:
    """The sum of two nested lists of one shape; its gradient goes to both unchanged."""
    return apply(lambda x, y: x + y, a, b)


def philox4x32(counter: tuple[int, int, int, int], key: tuple[int, int]) -> tuple[int, int, int, int]:
    """Four random 32-bit words, a function of counter and key alone.

    Philox-4x32-10 of Salmon, Moraes, Dror & Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    c0, c1, c2, c3 = (c & _MASK for c in counter)
    k0, k1 = (k & _MASK for k in key)
    for _ in range(10):
        high0, low0 = divmod(_MULTIPLIERS[0] * c0, 2**32)
        high1, low1 = divmod(_MULTIPLIERS[1] * c2, 2**32)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _dropout_factors(op: str, size: int, rate: Any, seed: int, step: int, entry: int) -> list[float]:
    """What each of `size` elements is multiplied by: 0, or 1 / (1 - rate) where it is kept.

    Element i is kept if word i % 4 of Philox at the counter (i // 4 as two words, step, entry), keyed with
    the two words of the seed, is at least floor(rate * 2^32).
    """
    rate = shapes.number(op, "rate", rate, 0.0, 1.0)
    if rate == 1:
        raise ValueError(f"[{op}] rate must be less than 1, got {rate:g}")
    threshold, kept = int(rate * 2**32), 1 / (1 - rate)
    words = (
        word
        for block in range(-(-size // 4))
        for word in philox4x32((block, block >> 32, step, entry), (seed, seed >> 32))
    )
    return [kept if word >= threshold else 0.0 for word, _ in zip(words, range(size), strict=False)]


def _dropped(value: float, factor: float) -> float:
    """A dropped element is 0 even where it was infinite or NaN."""
    return value * factor if factor else 0.0


def dropout(x: Nested, rate: float, *, seed: int, step: int, entry: int, spatial: bool = False) -> Nested:
    """Each element (spatial: each whole channel) dropped with probability `rate`, or else scaled by 1 / (1 - rate).

    Srivastava, Hinton, Krizhevsky, Sutskever & Salakhutdinov 2014, scaled while training; spatial: Tompson et al.
    2015. Elements count in C order; seed, step (of training) and entry (which dropout of the model) choose the mask.
    """
    shape = shape_of("dropout", "x", x)
    elements = flatten(x)
    each = math.prod(shape[2:]) if spatial else 1  # elements that share a draw
    factors = _dropout_factors("dropout", len(elements) // max(each, 1), rate, seed, step, entry)
    return reshape([_dropped(v, factors[i // each]) for i, v in enumerate(elements)], shape)


def dropout_backward(dy: Nested, rate: float, *, seed: int, step: int, entry: int, spatial: bool = False) -> Nested:
    """dx: dy under the mask of the forward pass with the same seed, step and entry."""
    return dropout(dy, rate, seed=seed, step=step, entry=entry, spatial=spatial)

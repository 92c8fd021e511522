"""Softmax, which `activation` and the losses share."""

import math

from pycnn.reference.lists import Nested, shape_of


def softmax(x: Nested) -> Nested:
    """y_i = exp(x_i) / sum over j of exp(x_j) over the last axis; report 000, section II.A.3."""
    shape = shape_of("softmax", "x", x)
    if not shape:
        raise ValueError(f"[softmax] x must have at least one axis, got the number {x!r}")
    return _softmax(x, len(shape))


def _softmax(x: Nested, rank: int) -> Nested:
    if rank > 1:
        return [_softmax(item, rank - 1) for item in x]
    if not x:
        return []
    m = max(x)
    exps = [math.exp(v - m) for v in x]
    return [e / sum(exps) for e in exps]


def softmax_backward(dy: Nested, y: Nested) -> Nested:
    """dx_i = y_i (dy_i - sum over j of dy_j y_j), from dy_i / dx_j = y_i ([i = j] - y_j), for y = softmax(x)."""
    if y and isinstance(y[0], (list, tuple)):
        return [softmax_backward(gradient, item) for gradient, item in zip(dy, y, strict=True)]
    return _softmax_row_backward(dy, y)


def _softmax_row_backward(dy: Nested, y: Nested) -> Nested:
    common = sum(gradient * p for gradient, p in zip(dy, y, strict=True))
    return [p * (gradient - common) for gradient, p in zip(dy, y, strict=True)]

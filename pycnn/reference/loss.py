"""Softmax and the losses; each loss is the mean and comes with its gradient."""

import math
from collections.abc import Callable

from pycnn import shapes
from pycnn.reference.elementwise import sigmoid
from pycnn.reference.lists import Nested, apply, expect, flatten, shape_of


def _log_softmax(z: Nested) -> Nested:
    """log p_c = z_c - m - log(sum over d of exp(z_d - m)), with m = max z: no exp can overflow."""
    m = max(z)
    log_sum = math.log(sum(math.exp(v - m) for v in z))
    return [v - m - log_sum for v in z]


def cross_entropy(
    logits: Nested, labels: Nested, *, weights: list[float] | None = None, label_smoothing: float = 0.0
) -> tuple[float, Nested]:
    """(loss, dlogits): loss = -1/N sum over n, c of w[n] t[n][c] * log softmax(z[n])[c]; report 001, equation 16.

    Labels are classes, or rows of probabilities t; smoothing makes them (1 - label_smoothing) t + label_smoothing / C
    (Szegedy et al. 2016, section 7). Through the logarithm of softmax, so there is no need of the report's epsilon.
    dlogits = w (softmax(z) * sum(t) - t) / N; equation 17 is the case w = sum(t) = 1.
    """
    op = "softmax_cross_entropy"
    shape = shape_of(op, "logits", logits)
    shape_of(op, "labels", labels)
    if shape == (0,):
        expect(op, "labels", labels, (0,))
        return 0.0, []
    n, classes = shapes.logits(op, shape)
    indices, _ = shapes.class_labels(op, labels, n, classes)
    weights = _weights(op, weights, n)
    loss, dlogits = 0.0, []
    for i, z in enumerate(logits):
        log_p = _log_softmax(z)
        t = labels[i] if indices is None else [float(c == indices[i]) for c in range(classes)]
        t = [(1 - label_smoothing) * p + label_smoothing / classes for p in t]
        # Without the terms of t = 0, so that a logit of minus infinity there is no 0 * inf.
        loss -= weights[i] * sum(t[c] * log_p[c] for c in range(classes) if t[c]) / n
        dlogits.append([weights[i] * (math.exp(log_p[c]) * sum(t) - t[c]) / n for c in range(classes)])
    return loss, dlogits


def softmax_cross_entropy(logits: Nested, labels: Nested) -> tuple[float, Nested]:
    """`cross_entropy` without its options, as ops has it."""
    return cross_entropy(logits, labels)


def _weights(op: str, weights: list[float] | None, n: int) -> list[float]:
    """One weight a sample; ones where there are none."""
    if weights is None:
        return [1.0] * n
    expect(op, "weights", weights, (n,))
    return weights


def _mean_of_elements(
    op: str, y: Nested, other: str, t: Nested, weights: list[float] | None, error: Callable, slope: Callable
) -> tuple[float, Nested]:
    """(loss, dy): the mean over all elements of w[n] error(y, t), and its gradient w[n] slope(y, t) / count."""
    expect(op, other, t, shape_of(op, "y", y))
    count = len(flatten(y))
    weights = _weights(op, weights, len(y))
    samples = list(zip(weights, y, t, strict=True))
    loss = sum(w * sum(flatten([apply(error, a, b)])) for w, a, b in samples) / count if count else 0.0
    return loss, [apply(lambda u, v, w=w: w * slope(u, v) / count, a, b) for w, a, b in samples]


def binary_cross_entropy(
    logits: Nested, targets: Nested, *, weights: list[float] | None = None
) -> tuple[float, Nested]:
    """(loss, dlogits): the mean of -t log p - (1 - t) log(1 - p) with p = sigmoid(z), over all elements.

    Written as max(z, 0) - z * t + log(1 + exp(-|z|)), where no exp overflows and no log meets 0.
    dlogits = (sigmoid(z) - t) / number of elements; `weights`, one a sample, multiply both.
    """
    return _mean_of_elements(
        "binary_cross_entropy", logits, "targets", targets, weights,
        lambda z, t: max(z, 0.0) - z * t + math.log1p(math.exp(-abs(z))),
        lambda z, t: sigmoid(z) - t,
    )  # fmt: skip


def mse(y: Nested, target: Nested, *, weights: list[float] | None = None) -> tuple[float, Nested]:
    """(loss, dy): the mean of (y - target)^2 over all elements, and 2 (y - target) / number of elements."""
    return _mean_of_elements(
        "mse", y, "target", target, weights, lambda v, t: (v - t) * (v - t), lambda v, t: 2 * (v - t)
    )


def mae(y: Nested, target: Nested, *, weights: list[float] | None = None) -> tuple[float, Nested]:
    """(loss, dy): the mean of |y - target| over all elements, and its sign, 0 at 0, / number of elements."""
    return _mean_of_elements("mae", y, "target", target, weights, lambda v, t: abs(v - t), lambda v, t: _sign(v - t))


def huber(y: Nested, target: Nested, *, delta: float = 1.0, weights: list[float] | None = None) -> tuple[float, Nested]:
    """(loss, dy): the mean over e = y - target of e^2 / 2 where |e| <= delta, else delta (|e| - delta / 2).

    Huber 1964; dy = e or delta sign(e), / number of elements.
    """

    def error(v: float, t: float) -> float:
        e = abs(v - t)
        return e * e / 2 if e <= delta else delta * (e - delta / 2)

    return _mean_of_elements("huber", y, "target", target, weights, error, lambda v, t: max(-delta, min(delta, v - t)))


def _sign(e: float) -> float:
    return float(e > 0) - float(e < 0)

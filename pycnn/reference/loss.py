"""Softmax and the losses; each loss is the mean and comes with its gradient."""

import math

from pycnn import shapes
from pycnn.reference.elementwise import sigmoid
from pycnn.reference.lists import Nested, apply, expect, flatten, shape_of


def _log_softmax(z: Nested) -> Nested:
    """log p_c = z_c - m - log(sum over d of exp(z_d - m)), with m = max z: no exp can overflow."""
    m = max(z)
    log_sum = math.log(sum(math.exp(v - m) for v in z))
    return [v - m - log_sum for v in z]


def softmax_cross_entropy(logits: Nested, labels: Nested) -> tuple[float, Nested]:
    """(loss, dlogits): loss = -1/N sum over n, c of t[n][c] * log softmax(z[n])[c]; report 001, equation 16.

    Labels are classes, or rows of probabilities t. Through the logarithm of softmax, so there is no need of
    the report's epsilon. dlogits = (softmax(z) * sum(t) - t) / N; equation 17 is the case sum(t) = 1.
    """
    op = "softmax_cross_entropy"
    shape = shape_of(op, "logits", logits)
    shape_of(op, "labels", labels)
    if shape == (0,):
        expect(op, "labels", labels, (0,))
        return 0.0, []
    n, classes = shapes.logits(op, shape)
    indices, _ = shapes.class_labels(op, labels, n, classes)
    loss, dlogits = 0.0, []
    for i, z in enumerate(logits):
        log_p = _log_softmax(z)
        if indices is None:
            t = labels[i]
            loss -= sum(t[c] * log_p[c] for c in range(classes) if t[c]) / n
        else:
            # The one term of the sum, so that a logit of minus infinity elsewhere is no 0 * inf.
            t = [float(c == indices[i]) for c in range(classes)]
            loss -= log_p[indices[i]] / n
        dlogits.append([(math.exp(log_p[c]) * sum(t) - t[c]) / n for c in range(classes)])
    return loss, dlogits


def binary_cross_entropy(logits: Nested, targets: Nested) -> tuple[float, Nested]:
    """(loss, dlogits): the mean of -t log p - (1 - t) log(1 - p) with p = sigmoid(z), over all elements.

    Written as max(z, 0) - z * t + log(1 + exp(-|z|)), where no exp overflows and no log meets 0.
    dlogits = (sigmoid(z) - t) / number of elements.
    """
    op = "binary_cross_entropy"
    expect(op, "targets", targets, shape_of(op, "logits", logits))
    terms = flatten(apply(lambda z, t: max(z, 0.0) - z * t + math.log1p(math.exp(-abs(z))), logits, targets))
    count = len(terms)
    loss = sum(terms) / count if count else 0.0
    return loss, apply(lambda z, t: (sigmoid(z) - t) / count, logits, targets)


def mse(y: Nested, target: Nested) -> tuple[float, Nested]:
    """(loss, dy): the mean of (y - target)^2 over all elements, and 2 (y - target) / number of elements."""
    expect("mse", "target", target, shape_of("mse", "y", y))
    terms = flatten(apply(lambda v, t: (v - t) * (v - t), y, target))
    count = len(terms)
    loss = sum(terms) / count if count else 0.0
    return loss, apply(lambda v, t: 2 * (v - t) / count, y, target)

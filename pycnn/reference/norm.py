"""Batch normalisation of (N, C) and of images (N, C, H, W), over all axes but the channels."""

import math
from dataclasses import dataclass

from pycnn import shapes
from pycnn.reference.lists import Nested, apply, expect, flatten, shape_of


@dataclass(frozen=True, slots=True)
class BatchNormCache:
    """What the backward pass needs of the forward pass."""

    x_hat: Nested
    gamma: list[float]
    inv_std: list[float]
    training: bool


def _channel(x: Nested, c: int) -> list[float]:
    """All values of channel c."""
    return flatten([sample[c] for sample in x])


def _inverse_sqrt(v: float) -> float:
    """1 / sqrt(v) with the values of IEEE arithmetic, where Python would raise."""
    if v <= 0:
        return math.inf if v == 0 else math.nan
    return 1 / math.sqrt(v)


def _batch_statistics(x: Nested, channels: int) -> tuple[list[float], list[float]]:
    """(mean, variance) of each channel, the variance biased: over the number of values.

    It takes a second pass, since E[x^2] - E[x]^2 loses its digits where the mean is large.
    """
    mean, var = [], []
    for c in range(channels):
        values = _channel(x, c)
        mu = sum(values) / len(values)
        mean.append(mu)
        var.append(sum((v - mu) * (v - mu) for v in values) / len(values))
    return mean, var


def batch_norm(
    x: Nested,
    gamma: Nested,
    beta: Nested,
    running_mean: Nested,
    running_var: Nested,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Nested, BatchNormCache]:
    """(y, cache): y = gamma * x_hat + beta with x_hat = (x - mean) / sqrt(variance + eps).

    Ioffe & Szegedy 2015, algorithm 1. In training with the batch's mean and biased variance, which also move
    the running lists, in place: running = momentum * running + (1 - momentum) * batch, as in ONNX.
    Otherwise with the running ones (algorithm 2, steps 10 and 11).
    """
    op = "batch_norm"
    x_shape = shape_of(op, "x", x)
    vectors = {"gamma": gamma, "beta": beta, "running_mean": running_mean, "running_var": running_var}
    sizes = {name: shape_of(op, name, value) for name, value in vectors.items()}
    if x_shape == (0,):
        # An empty batch has no statistics; it leaves the running ones alone.
        x_shape = (0, *sizes["gamma"])
    rows, channels = shapes.batch_norm(op, x_shape, sizes)
    training = shapes.boolean(op, "training", training)
    momentum = shapes.number(op, "momentum", momentum, 0.0, 1.0)
    eps = shapes.number(op, "eps", eps, 0.0)
    mean, var = running_mean, running_var
    if training and rows:
        mean, var = _batch_statistics(x, channels)
        for c in range(channels):
            running_mean[c] = momentum * running_mean[c] + (1 - momentum) * mean[c]
            running_var[c] = momentum * running_var[c] + (1 - momentum) * var[c]
    inv_std = [_inverse_sqrt(v + eps) for v in var]
    x_hat = [[apply(lambda v, c=c: (v - mean[c]) * inv_std[c], sample[c]) for c in range(channels)] for sample in x]
    y = [[apply(lambda v, c=c: gamma[c] * v + beta[c], sample[c]) for c in range(channels)] for sample in x_hat]
    return y, BatchNormCache(x_hat, list(gamma), inv_std, training)


def batch_norm_backward(dy: Nested, cache: BatchNormCache) -> tuple[Nested, Nested, Nested]:
    """(dx, dgamma, dbeta); Ioffe & Szegedy 2015, section 3, whose chain rule comes to

    dx = gamma / sqrt(variance + eps) * (dy - dbeta / m - x_hat * dgamma / m) over the m values of a channel.
    With running statistics mean and variance are constants, and the last two terms are absent.
    """
    op = "batch_norm_backward"
    if not isinstance(cache, BatchNormCache):
        raise TypeError(f"[{op}] cache must be what batch_norm returned, got {type(cache).__name__}")
    expect(op, "dy", dy, shape_of(op, "x", cache.x_hat))
    channels = range(len(cache.gamma))
    m = len(_channel(dy, 0))
    dbeta = [sum(_channel(dy, c)) for c in channels]
    dgamma = [sum(g * v for g, v in zip(_channel(dy, c), _channel(cache.x_hat, c), strict=True)) for c in channels]

    def dx_of(c: int, gradient: float, x_hat: float) -> float:
        if cache.training:
            gradient = gradient - dbeta[c] / m - x_hat * dgamma[c] / m
        return cache.gamma[c] * cache.inv_std[c] * gradient

    dx = [
        [apply(lambda g, v, c=c: dx_of(c, g, v), dy_n[c], x_hat_n[c]) for c in channels]
        for dy_n, x_hat_n in zip(dy, cache.x_hat, strict=True)
    ]
    return dx, dgamma, dbeta

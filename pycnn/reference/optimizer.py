"""One step of the optimizers, in place on flat lists; the formulas and their order are PyTorch's."""

import math

from pycnn import shapes


def _same_length(op: str, w: list[float], **others: list[float]) -> None:
    for name, values in others.items():
        shapes.expect_shape(op, name, (len(values),), (len(w),))


def sgd_update(
    w: list[float],
    g: list[float],
    v: list[float] | None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """v = momentum * v + g and w -= lr * v, with g including weight_decay * w; v starts at zero.

    The momentum of Sutskever, Martens, Dahl & Hinton 2013 with the learning rate outside of v; `nesterov`
    looks ahead: w -= lr * (g + momentum * v). Without momentum, v is neither read nor written.
    """
    _same_length("sgd_update", w, g=g, **({"v": v} if momentum else {}))
    for i in range(len(w)):
        step = g[i] + weight_decay * w[i]
        if momentum:
            v[i] = momentum * v[i] + step
            step = step + momentum * v[i] if nesterov else v[i]
        w[i] -= lr * step


def adam_update(
    w: list[float],
    g: list[float],
    m: list[float],
    v: list[float],
    *,
    step: int,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float = 0.0,
) -> None:
    """w -= lr * m_hat / (sqrt(v_hat) + eps); Kingma & Ba 2015, algorithm 1. `step` counts from 1.

    m and v are running means of g and g^2, m_hat and v_hat are freed of their start at zero. Weight decay is
    the L2 penalty's gradient weight_decay * w, added to g.
    """
    _same_length("adam_update", w, g=g, m=m, v=v)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    for i in range(len(w)):
        gradient = g[i] + weight_decay * w[i]
        m[i] = beta1 * m[i] + (1 - beta1) * gradient
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient
        w[i] -= lr * (m[i] / correction1) / (math.sqrt(v[i]) / math.sqrt(correction2) + eps)

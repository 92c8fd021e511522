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
    decoupled_decay: float = 0.0,
) -> None:
    """w -= lr * m_hat / (sqrt(v_hat) + eps); Kingma & Ba 2015, algorithm 1. `step` counts from 1.

    m and v are running means of g and g^2, m_hat and v_hat are freed of their start at zero. Weight decay is
    the L2 penalty's gradient weight_decay * w, added to g; decoupled decay takes lr * decoupled_decay * w off w
    before the step (AdamW; Loshchilov & Hutter 2019, algorithm 2).
    """
    _same_length("adam_update", w, g=g, m=m, v=v)
    correction1, correction2 = 1 - beta1**step, 1 - beta2**step
    for i in range(len(w)):
        gradient = g[i] + weight_decay * w[i]
        m[i] = beta1 * m[i] + (1 - beta1) * gradient
        v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient
        w[i] *= 1 - lr * decoupled_decay
        w[i] -= lr * (m[i] / correction1) / (math.sqrt(v[i]) / math.sqrt(correction2) + eps)


def rmsprop_update(
    w: list[float],
    g: list[float],
    s: list[float],
    m: list[float] | None,
    v: list[float] | None,
    *,
    lr: float,
    alpha: float,
    eps: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> None:
    """s = alpha * s + (1 - alpha) * g^2 and w -= lr * g / (sqrt(s) + eps); Tieleman & Hinton 2012, lecture 6.5.

    With m, the running mean of g, the root is that of the variance s - m^2 (Graves 2013, equations 38 to 45; no less
    than 0 in spite of rounding). With v, the step is v = momentum * v + g / (root + eps). All start at zero.
    """
    _same_length("rmsprop_update", w, g=g, s=s, **({"m": m} if m is not None else {}), **({"v": v} if momentum else {}))
    for i in range(len(w)):
        gradient = g[i] + weight_decay * w[i]
        s[i] = alpha * s[i] + (1 - alpha) * gradient * gradient
        variance = s[i]
        if m is not None:
            m[i] += (1 - alpha) * (gradient - m[i])
            variance = max(s[i] - m[i] * m[i], 0.0)
        step = gradient / (math.sqrt(variance) + eps)
        if momentum:
            step = v[i] = momentum * v[i] + step
        w[i] -= lr * step


def adagrad_update(
    w: list[float],
    g: list[float],
    s: list[float],
    v: list[float] | None,
    *,
    lr: float,
    eps: float,
    weight_decay: float = 0.0,
    momentum: float = 0.0,
) -> None:
    """s += g^2 and w -= lr * g / (sqrt(s) + eps); Duchi, Hazan & Singer 2011, with the diagonal alone.

    With v, which starts at zero, momentum is on the whole step: v = momentum * v + lr * g / (sqrt(s) + eps), w -= v.
    """
    _same_length("adagrad_update", w, g=g, s=s, **({"v": v} if v is not None else {}))
    for i in range(len(w)):
        gradient = g[i] + weight_decay * w[i]
        s[i] += gradient * gradient
        step = lr * gradient / (math.sqrt(s[i]) + eps)
        if v is not None:
            step = v[i] = momentum * v[i] + step
        w[i] -= step

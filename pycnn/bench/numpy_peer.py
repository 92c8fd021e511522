"""The cases in NumPy as one would write them well: windows by stride tricks, products by BLAS.

Run as a module, with the seconds to spend on each case, it verifies and times itself and prints JSON.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from pycnn.bench import cases


def windows(x: np.ndarray) -> np.ndarray:
    """The 3x3 windows of x padded by 1: (N * H * W, C * 9)."""
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    view = sliding_window_view(padded, (3, 3), axis=(2, 3))
    return view.transpose(0, 2, 3, 1, 4, 5).reshape(-1, x.shape[1] * 9)


def conv2d(x: np.ndarray, w: np.ndarray, b: np.ndarray) -> np.ndarray:
    n, _, height, width = x.shape
    y = windows(x) @ w.reshape(len(w), -1).T + b
    return y.reshape(n, height, width, len(w)).transpose(0, 3, 1, 2)


def conv2d_backward(dy: np.ndarray, x: np.ndarray, w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flat = dy.transpose(0, 2, 3, 1).reshape(-1, len(w))
    dw = (flat.T @ windows(x)).reshape(w.shape)
    flipped = w[:, :, ::-1, ::-1].transpose(1, 0, 2, 3)
    return conv2d(dy, flipped, np.zeros(1, np.float32)), dw, flat.sum(axis=0)


def max_pool2d(x: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).max(axis=(3, 5))


def max_pool2d_backward(dy: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    n, c, h, w = x.shape
    blocks = x.reshape(n, c, h // 2, 2, w // 2, 2)
    mask = blocks == y[:, :, :, None, :, None]
    return (mask * dy[:, :, :, None, :, None]).reshape(x.shape)


def training_step(inputs: dict[str, np.ndarray], weights: list[np.ndarray]) -> float:
    """One step of gradient descent on the digits' network; the loss before it."""
    x, labels = inputs["x"], inputs["labels"]
    w, b, dense_w, dense_b = weights
    n = len(x)
    z = conv2d(x, w, b)
    a = np.maximum(z, 0)
    pooled = max_pool2d(a)
    flat = pooled.reshape(n, -1)
    logits = flat @ dense_w + dense_b
    shifted = logits - logits.max(axis=1, keepdims=True)
    p = np.exp(shifted)
    p /= p.sum(axis=1, keepdims=True)
    loss = -np.log(p[np.arange(n), labels]).mean()
    p[np.arange(n), labels] -= 1
    p /= n
    d_dense_w, d_dense_b = flat.T @ p, p.sum(axis=0)
    d_pooled = (p @ dense_w.T).reshape(pooled.shape)
    dz = max_pool2d_backward(d_pooled, a, pooled) * (z > 0)
    flat_dz = dz.transpose(0, 2, 3, 1).reshape(-1, len(w))
    dw, db = (flat_dz.T @ windows(x)).reshape(w.shape), flat_dz.sum(axis=0)
    for weight, gradient in zip(weights, (dw, db, d_dense_w, d_dense_b), strict=True):
        weight -= cases.RATE * gradient
    return float(loss)


def functions(inputs: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """A function a case; a training step returns the loss."""
    i = inputs
    weights = [i[name].copy() for name in ("w", "b", "dense_w", "dense_b")]
    return {
        "conv2d forward": lambda: conv2d(i["x"], i["w"], i["b"]),
        "conv2d backward": lambda: conv2d_backward(i["dy"], i["x"], i["w"])[1],
        "max_pool2d": lambda: max_pool2d(i["maps"]),
        "gemm": lambda: i["gemm_a"] @ i["gemm_b"],
        "training step": lambda: training_step(i, weights),
    }


def main() -> None:
    from pycnn.bench import _verify, best_time, kernel_peer

    inputs = cases.inputs()
    ours, mine = kernel_peer.functions(inputs), functions(inputs)
    for case in cases.NAMES:
        for _ in range(2):  # the second step verifies the update of the first
            _verify("NumPy", case, mine[case](), np.asarray(ours[case](), np.float64))
    seconds = float(sys.argv[1])
    times = {case: best_time({case: functions(inputs)[case]}, seconds)[case] for case in cases.NAMES}
    print(json.dumps(times))


if __name__ == "__main__":
    main()

"""The cases on the pure-Python reference."""

from collections.abc import Callable
from typing import Any

import numpy as np

import pycnn as cnn
from pycnn import reference
from pycnn.bench import kernel_peer


def functions(inputs: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """A function a case; a training step returns the loss."""
    i = {name: array.tolist() for name, array in inputs.items()}
    model = kernel_peer.network(inputs)

    def step() -> float:
        with cnn.backend("reference"):
            return model.train_on_batch(inputs["x"], inputs["labels"])

    return {
        "conv2d forward": lambda: reference.conv2d(i["x"], i["w"], i["b"], padding=1),
        "conv2d backward": lambda: reference.conv2d_backward(i["dy"], i["x"], i["w"], padding=1)[1],
        "max_pool2d": lambda: reference.max_pool2d(i["maps"], 2)[0],
        "gemm": lambda: reference.gemm(i["gemm_a"], i["gemm_b"]),
        "training step": step,
    }

"""The cases in PyTorch, which is imported here alone, in each of its memory formats."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from pycnn.bench import cases

MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels-last": torch.channels_last}


def functions(inputs: dict[str, np.ndarray], memory_format: str) -> dict[str, Callable[[], Any]]:
    """A function a case, on images and filters in this memory format; a training step returns the loss."""
    i = {name: torch.from_numpy(array.copy()) for name, array in inputs.items()}
    chosen = MEMORY_FORMATS[memory_format]
    i = {name: t.contiguous(memory_format=chosen) if t.ndim == 4 else t for name, t in i.items()}
    weights = [i[name].clone().requires_grad_() for name in ("w", "b", "dense_w", "dense_b")]
    w, b, dense_w, dense_b = weights
    optimizer = torch.optim.SGD(weights, lr=cases.RATE)
    options = ([cases.FILTERS], [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [True, True, True])

    @torch.no_grad()
    def backward() -> torch.Tensor:
        return torch.ops.aten.convolution_backward(i["dy"], i["x"], i["w"], *options)[1]

    def step() -> float:
        optimizer.zero_grad()
        h = functional.max_pool2d(functional.relu(functional.conv2d(i["x"], w, b, padding=1)), 2)
        loss = functional.cross_entropy(h.flatten(1) @ dense_w + dense_b, i["labels"])
        loss.backward()
        optimizer.step()
        return loss.item()

    return {
        "conv2d forward": torch.no_grad()(lambda: functional.conv2d(i["x"], i["w"], i["b"], padding=1)),
        "conv2d backward": backward,
        "max_pool2d": torch.no_grad()(lambda: functional.max_pool2d(i["maps"], 2, return_indices=True)[0]),
        "gemm": torch.no_grad()(lambda: i["gemm_a"] @ i["gemm_b"]),
        "training step": step,
    }

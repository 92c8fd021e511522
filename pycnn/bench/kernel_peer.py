"""The cases on these kernels, and two larger ones for the share of peak."""

from collections.abc import Callable
from typing import Any

import numpy as np

import pycnn as cnn
from pycnn import calls, native, plan, shapes
from pycnn.bench import cases


def network(inputs: dict[str, np.ndarray]) -> cnn.Sequential:
    """The digits' network with the given weights, compiled."""
    model = cnn.Sequential(
        [
            cnn.Conv2D(cases.FILTERS, 3, padding="same", activation="relu"),
            cnn.MaxPool2D(2),
            cnn.Flatten(),
            cnn.Dense(cases.CLASSES),
        ]
    )
    model.build((1, 8, 8))
    model.set_weights([inputs[name] for name in ("w", "b", "dense_w", "dense_b")])
    model.compile(cnn.SGD(cases.RATE), "cross_entropy")
    return model


def functions(inputs: dict[str, np.ndarray]) -> dict[str, Callable[[], Any]]:
    """A function a case; a training step returns the loss."""
    i = inputs
    model = network(i)
    return {
        "conv2d forward": lambda: cnn.ops.conv2d(i["x"], i["w"], i["b"], padding=1),
        "conv2d backward": lambda: cnn.ops.conv2d_backward(i["dy"], i["x"], i["w"], padding=1)[1],
        "max_pool2d": lambda: cnn.ops.max_pool2d(i["maps"], 2)[0],
        "gemm": lambda: cnn.ops.gemm(i["gemm_a"], i["gemm_b"]),
        "training step": lambda: model.train_on_batch(i["x"], i["labels"]),
    }


def large_functions() -> dict[str, tuple[Callable[[], Any], float]]:
    """(function, its floating-point operations) of the kernels whose share of peak is stated."""
    generator = np.random.default_rng(0)
    g = shapes.conv2d("bench", (8, 128, 28, 28), (128, 128, 3, 3), padding=1)
    builder = plan.PlanBuilder()
    winograd = native.config()["winograd"]
    native.config(winograd=False)  # whose products are fewer than the operations counted here
    try:
        calls.conv2d(builder, g, calls.rsck_strides(g), *map(builder.external, ("y", "x", "w")), None)
    finally:
        native.config(winograd=winograd)
    built = builder.finish()
    arrays = {
        "x": generator.standard_normal((8, 28, 28, 128), np.float32),
        "w": generator.standard_normal((3, 3, 128, 128), np.float32),
        "y": np.empty((8, 28, 28, 128), np.float32),
    }
    binding = built.bind(arrays, plan.Arena(built.arena_bytes))
    size = 1024
    a, b = (generator.standard_normal((size, size), np.float32) for _ in range(2))
    out = np.empty((size, size), np.float32)
    return {
        "direct conv2d 3x3 128>128 @28, batch 8": (binding.run, 2.0 * 8 * 28 * 28 * 128 * 128 * 9),
        "gemm 1024 x 1024 x 1024": (lambda: cnn.ops.gemm(a, b, out=out), 2.0 * size**3),
    }

"""The cases that every contestant computes, and their inputs: the digits' network and its parts, batch 64."""

import numpy as np

NAMES = ("conv2d forward", "conv2d backward", "max_pool2d", "gemm", "training step")
BATCH, FILTERS, CLASSES, GEMM_SIZE, RATE = 64, 16, 10, 96, 0.1


def inputs() -> dict[str, np.ndarray]:
    """x (N, 1, 8, 8) with labels, the network's weights, and what the single operations take."""
    generator = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (generator.standard_normal(shape) * scale).astype(np.float32)

    return {
        "x": normal(BATCH, 1, 8, 8),
        "labels": generator.integers(0, CLASSES, BATCH),
        "w": normal(FILTERS, 1, 3, 3, scale=0.5),
        "b": normal(FILTERS),
        "dense_w": normal(FILTERS * 16, CLASSES, scale=0.1),
        "dense_b": normal(CLASSES),
        "dy": normal(BATCH, FILTERS, 8, 8),
        "maps": normal(BATCH, FILTERS, 8, 8),
        "gemm_a": normal(GEMM_SIZE, GEMM_SIZE),
        "gemm_b": normal(GEMM_SIZE, GEMM_SIZE),
    }

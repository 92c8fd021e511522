"""Outputs beyond the caches are streamed, where they begin at a vector's multiple or by rows: to the same bits as plain
stores."""

import math
import re
from pathlib import Path

import numpy as np
import pytest
from helpers import VL, normal, run_shared

from pycnn import calls, ops, shapes

FLOATS = 10 << 20  # STREAM_FLOATS of vector.h: what a kernel reads and writes
COLUMNS = 4 * VL


def test_the_sizes_here_are_streamed():
    header = Path(__file__).resolve().parent.parent / "csrc" / "kernels" / "vector.h"
    if not header.exists():
        pytest.skip("no C sources here")
    assert re.search(r"STREAM_FLOATS = (\d+) << (\d+)", header.read_text()).groups() == ("10", "20")


def images(channels, side, floats):
    return -(-floats // (channels * side * side)), channels, side, side


def activation(name, arrays):
    def build(b):
        args = [b.external("out"), *map(b.external, arrays)]
        if len(arrays) == 1:
            calls.activation(b, FLOATS // 2, name, 0.0, *args)
        else:
            calls.activation_backward(b, FLOATS // 2, name, 0.0, *args)

    return build, {a: normal(FLOATS // 2, a) for a in arrays}, (FLOATS // 2,)


def add():
    def build(b):
        calls.add(b, FLOATS // 3 + 1, *map(b.external, ("out", "a", "b")))

    return build, {a: normal(FLOATS // 3 + 1, a) for a in "ab"}, (FLOATS // 3 + 1,)


def batch_norm(backward):
    rows = FLOATS // 2 // COLUMNS + 1
    inputs = {"x": normal((rows, COLUMNS))} | {
        name: 1 + normal(COLUMNS, name) ** 2 for name in ("gamma", "mean", "rstd")
    }
    if backward:
        inputs["dy"] = normal((rows, COLUMNS), "dy")

    def build(b):
        if backward:
            args = [b.external("out"), b.arena(COLUMNS), b.arena(COLUMNS), None, b.external("dy"), None, None]
            args += map(b.external, ("x", "mean", "rstd", "gamma"))
            calls.batch_norm(b, "batch_norm_backward", rows, COLUMNS, args, training=True, eps=1e-5)
        else:
            args = [b.external("out"), *(b.arena(COLUMNS) for _ in range(3))]
            args += [*map(b.external, ("x", "gamma", "mean")), None, None, None]
            calls.batch_norm(b, "batch_norm", rows, COLUMNS, args, training=True, eps=1e-5)

    return build, inputs, (rows, COLUMNS)


def planar_batch_norm(backward):
    n, c, h, w = shape = images(3, 64, FLOATS // 2)
    inputs = {"x": normal(shape)} | {name: 1 + normal(c, name) ** 2 for name in ("gamma", "mean", "rstd")}
    if backward:
        inputs["dy"] = normal(shape, "dy")

    def build(b):
        options = {"training": True, "eps": 1e-5, "plane": h * w}
        if backward:
            args = [b.external("out"), b.arena(c), b.arena(c), *map(b.external, ("dy", "x", "mean", "rstd", "gamma"))]
            calls.batch_norm(b, "planar_batch_norm_backward", n * h * w, c, args, **options)
        else:
            args = [b.external("out"), *(b.arena(c) for _ in range(3)), *map(b.external, ("x", "gamma", "mean"))]
            calls.batch_norm(b, "planar_batch_norm", n * h * w, c, [*args, None, None], **options)

    return build, inputs, shape


def pool(kernel, out="y"):
    """`out`: which of the kernel's results is compared."""
    shape = images(COLUMNS, 60, FLOATS)
    g = shapes.pool2d("max_pool2d", shape, 3, stride=2, padding=1)
    results = ["y", "argmax"] if kernel == "max_pool2d" else ["y"]

    def build(b):
        args = [b.external("out") if name == out else b.arena(math.prod(g.y_shape)) for name in results]
        calls.pool2d(b, kernel, g, [*args, b.external("x")])

    return build, {"x": normal((shape[0], 60, 60, COLUMNS))}, (shape[0], *g.y_shape[2:], COLUMNS)


def pool_backward(kernel, window=3, padding=1):
    shape = images(COLUMNS, 60, FLOATS)
    g = shapes.pool2d("max_pool2d", shape, window, stride=2, padding=padding)
    out = (g.y_shape[0], g.y_shape[2], g.y_shape[3], COLUMNS)
    inputs = {"dy": normal(out)}
    if kernel == "max_pool2d_backward":
        pixels = np.arange(out[1] * out[2]).reshape(1, out[1], out[2], 1)
        rows, columns = 2 * (pixels // out[2]), 2 * (pixels % out[2])  # in the middles of windows of 3, the first of 2
        inputs["argmax"] = np.ascontiguousarray(np.broadcast_to(rows * 60 + columns, out)).astype(np.int32)

    def build(b):
        calls.pool2d(b, kernel, g, [b.external("out"), *map(b.external, inputs)])

    return build, inputs, (shape[0], 60, 60, COLUMNS)


def global_pool_backward(channels, side=60):
    shape = images(channels, side, FLOATS)

    def build(b):
        calls.global_pool2d(b, "global_avg_pool2d_backward", shape, [b.external("out"), b.external("dy")])

    return build, {"dy": normal(shape[:2])}, (shape[0], side, side, channels)


def by_rows(kernel, columns):
    rows = FLOATS // 2 // columns + 1
    inputs = {"x": 3 * normal((rows, columns))}
    if kernel == "softmax_cross_entropy":
        inputs["labels"] = np.arange(rows, dtype=np.int32) % columns

    def build(b):
        if kernel == "softmax":
            calls.by_rows(b, kernel, rows, columns, [b.external("out"), b.external("x")])
        else:
            args = [b.arena(1), *map(b.external, ("out", "x", "labels")), None, None]
            calls.loss(b, kernel, rows, columns, args)

    return build, inputs, (rows, columns)


def transposition(rows, columns):
    n = 2 * FLOATS // (rows * columns) + 1

    def build(b):
        calls.transpose(b, n, rows, columns, b.external("out"), b.external("x"))

    return build, {"x": normal((n, rows, columns))}, (n, columns, rows)


CASES = {
    "transposition of few rows": lambda: transposition(48, 1323),
    "transposition of many rows": lambda: transposition(400, 21),
    "relu": lambda: activation("relu", ["x"]),
    "relu backward": lambda: activation("relu", ["dy", "x", "y"]),
    "tanh backward": lambda: activation("tanh", ["dy", "x", "y"]),
    "add": add,
    "batch norm": lambda: batch_norm(False),
    "batch norm backward": lambda: batch_norm(True),
    "batch norm of planes": lambda: planar_batch_norm(False),
    "batch norm of planes backward": lambda: planar_batch_norm(True),
    "max pool": lambda: pool("max_pool2d"),
    "places of max pool": lambda: pool("max_pool2d", "argmax"),
    "average pool": lambda: pool("avg_pool2d"),
    "max pool backward": lambda: pool_backward("max_pool2d_backward"),
    "average pool backward": lambda: pool_backward("avg_pool2d_backward"),
    "max pool backward by cells": lambda: pool_backward("max_pool2d_backward", 2, 0),
    "average pool backward by cells": lambda: pool_backward("avg_pool2d_backward", 2, 0),
    "global average pool backward": lambda: global_pool_backward(COLUMNS),
    "global average pool of planes backward": lambda: global_pool_backward(1, 64),
    "softmax": lambda: by_rows("softmax", 16 * VL),
    "softmax of rows that begin anywhere": lambda: by_rows("softmax", 16 * VL + 5),
    "softmax of few columns": lambda: by_rows("softmax", 10),
    "cross entropy": lambda: by_rows("softmax_cross_entropy", 16 * VL),
    "cross entropy of rows that begin anywhere": lambda: by_rows("softmax_cross_entropy", 16 * VL + 5),
    "cross entropy of few columns": lambda: by_rows("softmax_cross_entropy", 10),
}


def misaligned(shape):
    memory = shapes.empty("test", int(np.prod(shape)) + 1)
    return memory[1:].reshape(shape)


@pytest.mark.parametrize("case", CASES)
def test_streamed_outputs_are_those_of_plain_stores(case):
    build, inputs, shape = CASES[case]()
    results = []
    for out, threads in ((shapes.empty("test", shape), 3), (misaligned(shape), 1)):
        out.fill(np.nan)
        run_shared(build, inputs | {"out": out}, threads)
        results.append(out)
    assert not np.isnan(results[0]).any()
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("columns", [16 * VL, 16 * VL + 5])
def test_streamed_rows_are_those_of_few(columns):
    """Rows are streamed wherever they begin, so each is compared with itself among too few to be streamed."""
    rows = FLOATS // 2 // columns + 1
    logits, labels, some = 3 * normal((rows, columns)), np.arange(rows) % columns, slice(3, 40)
    np.testing.assert_array_equal(ops.softmax(logits)[some], ops.softmax(logits[some]))
    gradient, few = (ops.softmax_cross_entropy(logits[part], labels[part])[1] for part in (slice(None), some))
    np.testing.assert_allclose(rows * gradient[some], len(few) * few, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(("rows", "columns"), [(48, 1323), (400, 21), (48, 323), (49, 130), (2100, 33), (129, 1024)])
def test_streamed_transpositions(rows, columns):
    """By lines and by rows, whole ones and parts of them, wherever these begin."""
    build, inputs, shape = transposition(rows, columns)
    for out in (shapes.empty("test", shape), misaligned(shape)):
        out.fill(np.nan)
        run_shared(build, inputs | {"out": out}, 3)
        np.testing.assert_array_equal(out, inputs["x"].transpose(0, 2, 1))

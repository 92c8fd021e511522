"""Operations that memory bounds: pooling, batch norm, activations, losses, updates, changes of layout.

    python benchmarks/elementwise.py [--filter SUBSTR] [--seconds S] [--json FILE]

Each result is compared with PyTorch's in double precision before it is timed; a difference ends the script with an
error. The first table has the sizes of typical networks: ours against PyTorch, in turn in one process, the best of
many runs, in which what fits into the caches is there. Neither side allocates or records gradients: ours run as plans
on kept arrays, as in a network; PyTorch writes to given tensors where its functions can (it may as well allocate,
where that is faster). "best" is the better memory format of each side, "contiguous" has (N, C, H, W) memory on both
sides, which ours transposes on the way in and out. A ratio above 1 means that ours take less time.

The second table has arrays of four times the last-level cache: GB/s of the bytes that must move, and their share of
what a plain copy reaches, which is measured in turn with each operation and counted by the same rule. Every input is
counted once and every output once; batch norm's inputs count twice, since no output is known before all of them were
read. A line that is written without having been read first is fetched from memory all the same: that traffic is
counted for nobody. Some kernels use non-temporal stores, which spare it, and so may pass the copy, which does not.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    sys.exit("benchmarks/elementwise.py compares with PyTorch, which is not installed: pip install torch")

import pycnn as cnn
from pycnn import calls, native, optimizers, shapes
from pycnn.bench import aligned, best_time, geometric_mean
from pycnn.plan import Arena, Buffer, PlanBuilder

TOLERANCE = 2e-5  # of the largest element of a result
ROUNDS = 4
aten = torch.ops.aten
Tensors = dict[str, torch.Tensor]


class Ours:
    """A plan on kept arrays. Its images are channels-last, or contiguous: `image` and `new_image` transpose these on
    the way in and out, as `ops` does where no kernel takes planes as they are."""

    def __init__(self, inputs: dict[str, np.ndarray], channels_last: bool):
        self.builder = PlanBuilder()
        self.results: list[np.ndarray] = []
        self.channels_last = channels_last
        self._inputs = inputs
        self._arrays: dict[str, np.ndarray] = {}
        self._after: list[Callable[[], None]] = []

    def given(self, name: str, result: bool = False) -> Buffer:
        """An input as it is; one that is changed in place is a result as well."""
        self._arrays[name] = aligned(self._inputs[name])
        if result:
            self.results.append(self._arrays[name])
        return self.builder.external(name)

    def image(self, name: str) -> Buffer:
        """An input image in the order of the kernels."""
        x = self._inputs[name]
        n, c, h, w = x.shape
        if self.channels_last:
            self._arrays[name] = aligned(x.transpose(0, 2, 3, 1))
            return self.builder.external(name)
        given, nhwc = self.given(name), self.builder.arena(x.size)
        calls.transpose(self.builder, n, c, h * w, nhwc, given)
        return nhwc

    def new(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        """A result."""
        self._arrays[name] = aligned(np.zeros(shape, dtype))
        self.results.append(self._arrays[name])
        return self.builder.external(name)

    def new_image(self, name: str, shape: tuple[int, ...], dtype: Any = np.float32) -> Buffer:
        """A resulting image, to be written in the order of the kernels."""
        n, c, h, w = shape
        if self.channels_last:
            buffer = self.new(name, (n, h, w, c), dtype)
            self.results[-1] = self.results[-1].transpose(0, 3, 1, 2)
            return buffer
        wanted, nhwc = self.new(name, shape, dtype), self.builder.arena(math.prod(shape))
        self._after.append(lambda: calls.transpose(self.builder, n, h * w, c, wanted, nhwc))
        return nhwc

    def function(self) -> Callable[[], None]:
        for finish in self._after:
            finish()
        plan = self.builder.finish()
        return plan.bind(self._arrays, Arena(plan.arena_bytes)).run


@dataclass
class Operation:
    """`ours` builds the plan; `torch` makes functions of tensors that return the same results in the same order, one or
    more ways to compute them, the first of them in any precision."""

    name: str
    size: str
    inputs: dict[str, np.ndarray]
    ours: Callable[[Ours], None]
    torch: Callable[[Tensors], list[Callable[[], tuple[torch.Tensor, ...]]]]
    moved: int
    has_images: bool = True


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape, np.float32)


def nbytes(*arrays: np.ndarray) -> int:
    return sum(array.nbytes for array in arrays)


def text(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


# ------------------------------------------------------------------------------------------ operations


def max_pool(shape: tuple[int, ...], kernel: int = 2, stride: int = 2, padding: int = 0) -> Operation:
    g = shapes.pool2d("max_pool2d", shape, kernel, stride=stride, padding=padding)
    x = normal(*shape)

    def ours(o: Ours) -> None:
        if o.channels_last or kernel != 2:
            image, y = o.image("x"), o.new_image("y", g.y_shape)
            calls.pool2d(o.builder, "max_pool2d", g, [y, o.new_image("argmax", g.y_shape, np.int32), image])
        else:
            y, argmax = o.new("y", g.y_shape), o.new("argmax", g.y_shape, np.int32)
            assert calls.planar_max_pool2d(o.builder, g, y, argmax, o.given("x"))

    def peer(t: Tensors) -> list:
        args = (t["x"], kernel, stride, padding)
        y, argmax = aten.max_pool2d_with_indices(*args)
        return [
            lambda: aten.max_pool2d_with_indices(*args),
            lambda: aten.max_pool2d_with_indices.out(*args, out=y, indices=argmax),
        ]

    name = f"max_pool {kernel}x{kernel}"
    return Operation(name, text(shape), {"x": x}, ours, peer, nbytes(x) + 8 * math.prod(g.y_shape))


def max_pool_backward(shape: tuple[int, ...], kernel: int = 2, stride: int = 2, padding: int = 0) -> Operation:
    g = shapes.pool2d("max_pool2d", shape, kernel, stride=stride, padding=padding)
    x, dy = normal(*shape), normal(*g.y_shape)
    _, argmax = cnn.ops.max_pool2d(x, kernel, stride=stride, padding=padding)

    def ours(o: Ours) -> None:
        if o.channels_last:
            args = [o.image("dy"), o.image("argmax")]
            calls.pool2d(o.builder, "max_pool2d_backward", g, [o.new_image("dx", shape), *args])
        else:
            args = [o.new("dx", shape), o.given("dy"), o.given("argmax")]
            calls.max_pool2d_backward_of_argmax(o.builder, shape, (g.oh, g.ow), args, planes=True)

    def peer(t: Tensors) -> list:
        x = t["x"]
        args = (t["dy"], x, [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False, t["argmax"].long())
        dx = torch.empty_like(x)
        return [
            lambda: (aten.max_pool2d_with_indices_backward(*args),),
            lambda: (aten.max_pool2d_with_indices_backward.grad_input(*args, grad_input=dx),),
        ]

    inputs, moved = {"x": x, "dy": dy, "argmax": argmax}, nbytes(dy, argmax, x)
    return Operation(f"max_pool {kernel}x{kernel} backward", text(shape), inputs, ours, peer, moved)


def avg_pool(shape: tuple[int, ...], kernel: int = 2, stride: int = 2, padding: int = 0) -> Operation:
    g = shapes.pool2d("avg_pool2d", shape, kernel, stride=stride, padding=padding)
    x = normal(*shape)

    def ours(o: Ours) -> None:
        calls.pool2d(o.builder, "avg_pool2d", g, [o.new_image("y", g.y_shape), o.image("x")])

    def peer(t: Tensors) -> list:
        args = (t["x"], kernel, stride, padding)
        y = aten.avg_pool2d(*args)
        return [lambda: (aten.avg_pool2d(*args),), lambda: (aten.avg_pool2d.out(*args, out=y),)]

    name = f"avg_pool {kernel}x{kernel}"
    return Operation(name, text(shape), {"x": x}, ours, peer, nbytes(x) + 4 * math.prod(g.y_shape))


def avg_pool_backward(shape: tuple[int, ...], kernel: int = 2, stride: int = 2, padding: int = 0) -> Operation:
    g = shapes.pool2d("avg_pool2d", shape, kernel, stride=stride, padding=padding)
    dy, x = normal(*g.y_shape), normal(*shape)

    def ours(o: Ours) -> None:
        calls.pool2d(o.builder, "avg_pool2d_backward", g, [o.new_image("dx", shape), o.image("dy")])

    def peer(t: Tensors) -> list:
        args = (t["dy"], t["x"], [kernel] * 2, [stride] * 2, [padding] * 2, False, True, None)
        dx = torch.empty_like(t["x"])
        return [
            lambda: (aten.avg_pool2d_backward(*args),),
            lambda: (aten.avg_pool2d_backward.grad_input(*args, grad_input=dx),),
        ]

    name = f"avg_pool {kernel}x{kernel} backward"
    return Operation(name, text(shape), {"dy": dy, "x": x}, ours, peer, nbytes(dy, x))


def global_avg_pool(shape: tuple[int, ...]) -> Operation:
    x = normal(*shape)

    def ours(o: Ours) -> None:
        args = [o.new("y", shape[:2]), o.image("x") if o.channels_last else o.given("x")]
        calls.global_pool2d(o.builder, "global_avg_pool2d", shape, args, planes=not o.channels_last)

    def peer(t: Tensors) -> list:
        y = aten.mean(t["x"], [2, 3])
        return [lambda: (aten.mean(t["x"], [2, 3]),), lambda: (aten.mean.out(t["x"], [2, 3], out=y),)]

    return Operation("global_avg_pool", text(shape), {"x": x}, ours, peer, nbytes(x))


def global_avg_pool_backward(shape: tuple[int, ...]) -> Operation:
    dy = normal(*shape[:2])

    def ours(o: Ours) -> None:
        args = [o.new_image("dx", shape) if o.channels_last else o.new("dx", shape), o.given("dy")]
        calls.global_pool2d(o.builder, "global_avg_pool2d_backward", shape, args, planes=not o.channels_last)

    def peer(t: Tensors) -> list:
        share = t["dy"][:, :, None, None]
        formats = (torch.contiguous_format, torch.channels_last)
        outs = [torch.empty(shape, dtype=share.dtype).contiguous(memory_format=f) for f in formats]
        expanded, pixels = share.expand(shape), shape[2] * shape[3]
        return [lambda out=out: (torch.div(expanded, pixels, out=out),) for out in outs]

    return Operation("global_avg_pool backward", text(shape), {"dy": dy}, ours, peer, nbytes(dy) + 4 * math.prod(shape))


def batch_norm(shape: tuple[int, ...]) -> Operation:
    n, c, h, w = shape
    inputs = {"x": normal(*shape), "gamma": normal(c), "beta": normal(c, seed=1)}
    inputs |= {"running_mean": normal(c), "running_var": normal(c) ** 2}

    def ours(o: Ours) -> None:
        last = o.channels_last
        x, y = (o.image("x"), o.new_image("y", shape)) if last else (o.given("x"), o.new("y", shape))
        mean, rstd, variance = o.new("mean", (c,)), o.new("rstd", (c,)), o.builder.arena(c)
        gamma, beta, *running = map(o.given, ("gamma", "beta", "running_mean", "running_var"))
        args, options = [y, mean, rstd, variance, x, gamma, beta, *running], {"training": True, "eps": 1e-5}
        if last:
            calls.batch_norm(o.builder, "batch_norm", n * h * w, c, [*args, None], momentum=0.9, **options)
        else:
            calls.batch_norm(o.builder, "planar_batch_norm", n * h * w, c, args, plane=h * w, **options)
        calls.running_statistics(o.builder, c, 0.9, [*running, mean, variance])

    def peer(t: Tensors) -> list:
        args = (*(t[name] for name in ("x", "gamma", "beta", "running_mean", "running_var")), True, 0.1, 1e-5)
        y, mean, rstd = aten.native_batch_norm(*args)
        return [
            lambda: aten.native_batch_norm(*args),
            lambda: aten.native_batch_norm.out(*args, out=y, save_mean=mean, save_invstd=rstd),
        ]

    return Operation("batch_norm", text(shape), inputs, ours, peer, 3 * nbytes(inputs["x"]))


def batch_norm_backward(shape: tuple[int, ...]) -> Operation:
    n, c, h, w = shape
    x = normal(*shape)
    mean, rstd = x.mean((0, 2, 3), np.float64), 1 / np.sqrt(x.var((0, 2, 3), np.float64) + 1e-5)
    inputs = {"dy": normal(*shape, seed=1), "x": x, "gamma": normal(c)}
    inputs |= {"mean": mean.astype(np.float32), "rstd": rstd.astype(np.float32)}

    def ours(o: Ours) -> None:
        last = o.channels_last
        dx = o.new_image("dx", shape) if last else o.new("dx", shape)
        dgamma, dbeta = o.new("dgamma", (c,)), o.new("dbeta", (c,))
        dy, x = map(o.image if last else o.given, ("dy", "x"))
        vectors, options = [*map(o.given, ("mean", "rstd", "gamma"))], {"training": True, "eps": 1e-5}
        if last:
            args = [dx, dgamma, dbeta, None, dy, None, None, x, *vectors]
            calls.batch_norm(o.builder, "batch_norm_backward", n * h * w, c, args, **options)
        else:
            args = [dx, dgamma, dbeta, dy, x, *vectors]
            calls.batch_norm(o.builder, "planar_batch_norm_backward", n * h * w, c, args, plane=h * w, **options)

    def peer(t: Tensors) -> list:
        args = (t["dy"], t["x"], t["gamma"], None, None, t["mean"], t["rstd"], True, 1e-5, [True] * 3)
        dx, dgamma, dbeta = aten.native_batch_norm_backward(*args)
        return [
            lambda: aten.native_batch_norm_backward(*args),
            lambda: aten.native_batch_norm_backward.out(*args, out0=dx, out1=dgamma, out2=dbeta),
        ]

    return Operation("batch_norm backward", text(shape), inputs, ours, peer, 5 * nbytes(x))


# PyTorch's function and derivative of each activation; y is the function's value, which some derivatives take.
ACTIVATIONS: dict[str, tuple[Callable, Callable]] = {
    "relu": (aten.relu, lambda dy, x, y, dx: aten.threshold_backward.grad_input(dy, x, 0, grad_input=dx)),
    "leaky_relu": (
        aten.leaky_relu,
        lambda dy, x, y, dx: aten.leaky_relu_backward.grad_input(dy, x, 0.01, False, grad_input=dx),
    ),
    "sigmoid": (aten.sigmoid, lambda dy, x, y, dx: aten.sigmoid_backward.grad_input(dy, y, grad_input=dx)),
    "tanh": (aten.tanh, lambda dy, x, y, dx: aten.tanh_backward.grad_input(dy, y, grad_input=dx)),
    "elu": (aten.elu, lambda dy, x, y, dx: aten.elu_backward.grad_input(dy, 1, 1, 1, False, x, grad_input=dx)),
    "gelu": (aten.gelu, lambda dy, x, y, dx: aten.gelu_backward.grad_input(dy, x, grad_input=dx)),
    "silu": (aten.silu, lambda dy, x, y, dx: aten.silu_backward.grad_input(dy, x, grad_input=dx)),
    "hard_swish": (aten.hardswish, lambda dy, x, y, dx: aten.hardswish_backward.out(dy, x, out=dx)),
}


def activation(name: str, shape: tuple[int, ...]) -> Operation:
    x = normal(*shape)
    alpha = shapes.ACTIVATION_OPTIONS[name].get("alpha", 0.0)

    def ours(o: Ours) -> None:
        calls.activation(o.builder, x.size, name, alpha, o.new("y", shape), o.given("x"))

    def peer(t: Tensors) -> list:
        function = ACTIVATIONS[name][0]
        y = function(t["x"])
        return [lambda: (function(t["x"]),), lambda: (function.out(t["x"], out=y),)]

    return Operation(name, text(shape), {"x": x}, ours, peer, 2 * nbytes(x), has_images=False)


def activation_backward(name: str, shape: tuple[int, ...]) -> Operation:
    dy, x = normal(*shape, seed=1), normal(*shape)
    alpha = shapes.ACTIVATION_OPTIONS[name].get("alpha", 0.0)
    inputs = {"dy": dy, "x": x, "y": cnn.ops.activation(x, name)}

    def ours(o: Ours) -> None:
        given = [o.given(name) for name in inputs]
        calls.activation_backward(o.builder, x.size, name, alpha, o.new("dx", shape), *given)

    def peer(t: Tensors) -> list:
        derivative, dx = ACTIVATIONS[name][1], torch.empty_like(t["x"])
        return [lambda: (derivative(t["dy"], t["x"], t["y"], dx),)]

    return Operation(f"{name} backward", text(shape), inputs, ours, peer, 3 * nbytes(x), has_images=False)


def add(shape: tuple[int, ...]) -> Operation:
    a, b = normal(*shape), normal(*shape, seed=1)

    def ours(o: Ours) -> None:
        calls.add(o.builder, a.size, o.new("y", shape), o.given("a"), o.given("b"))

    def peer(t: Tensors) -> list:
        y = torch.empty_like(t["a"])
        return [lambda: (torch.add(t["a"], t["b"], out=y),)]

    return Operation("add", text(shape), {"a": a, "b": b}, ours, peer, 3 * nbytes(a), has_images=False)


def cross_entropy(rows: int, classes: int) -> Operation:
    logits = normal(rows, classes)
    labels = np.random.default_rng(rows).integers(0, classes, rows).astype(np.int32)

    def ours(o: Ours) -> None:
        args = [o.new("loss", ()), o.new("dlogits", (rows, classes)), o.given("logits"), o.given("labels"), None]
        calls.loss(o.builder, "softmax_cross_entropy", rows, classes, [*args, None])

    def peer(t: Tensors) -> list:
        z, target = t["logits"], t["labels"].long()
        log_p, dlog_p, dz = (torch.empty_like(z) for _ in range(3))
        loss, total, one = (torch.ones((), dtype=z.dtype) for _ in range(3))

        def run() -> tuple[torch.Tensor, ...]:
            aten._log_softmax.out(z, 1, False, out=log_p)
            aten.nll_loss_forward.output(log_p, target, None, 1, -100, output=loss, total_weight=total)
            aten.nll_loss_backward.grad_input(one, log_p, target, None, 1, -100, total, grad_input=dlog_p)
            aten._log_softmax_backward_data.out(dlog_p, log_p, 1, z.dtype, out=dz)
            return loss, dz

        return [run]

    inputs = {"logits": logits, "labels": labels}
    return Operation("cross_entropy", f"{rows}x{classes}", inputs, ours, peer, 2 * nbytes(logits), has_images=False)


def softmax(rows: int, classes: int) -> Operation:
    x = normal(rows, classes)

    def ours(o: Ours) -> None:
        calls.by_rows(o.builder, "softmax", rows, classes, [o.new("y", (rows, classes)), o.given("x")])

    def peer(t: Tensors) -> list:
        y = torch.empty_like(t["x"])
        return [lambda: (aten._softmax.out(t["x"], 1, False, out=y),)]

    return Operation("softmax", f"{rows}x{classes}", {"x": x}, ours, peer, 2 * nbytes(x), has_images=False)


def update(kind: str, name: str, sizes: list[int]) -> Operation:
    """One step of all parameters of these sizes."""
    options = {"lr": 1e-3, "momentum": 0.9, "weight_decay": 1e-4} if kind == "sgd" else {"lr": 1e-3}
    optimizer = {"sgd": optimizers.SGD, "adam": optimizers.Adam}[kind](**options)
    inputs = {"state": np.array(optimizer.state(1e-3, 5, 1.0), np.float32)}
    slots = optimizer.slots()
    for i, size in enumerate(sizes):
        inputs |= {f"w{i}": normal(size), f"g{i}": normal(size, seed=1)}
        inputs |= {f"slot{j}.{i}": np.abs(normal(size, seed=2 + j)) for j in range(slots)}

    def ours(o: Ours) -> None:
        state = o.given("state")
        for i, size in enumerate(sizes):
            w = o.given(f"w{i}", result=True)
            optimizer.lower(
                o.builder, size, w, [o.given(f"slot{j}.{i}", result=True) for j in range(slots)],
                o.given(f"g{i}"), state,
            )  # fmt: skip

    def peer(t: Tensors) -> list:
        lists = [
            [t[f"{name}{i}"] for i in range(len(sizes))] for name in ("w", "g", *(f"slot{j}." for j in range(slots)))
        ]
        results = tuple(t for own in zip(lists[0], *lists[2:], strict=True) for t in own)
        steps = [torch.tensor(4.0) for _ in sizes]
        w, g, *slot = lists

        def run() -> tuple[torch.Tensor, ...]:
            if kind == "sgd":
                aten._fused_sgd_(
                    w, g, *slot, weight_decay=1e-4, momentum=0.9, lr=1e-3, dampening=0, nesterov=False,
                    maximize=False, is_first_step=False,
                )  # fmt: skip
            else:
                torch._foreach_add_(steps, 1)
                aten._fused_adam_(
                    w, g, *slot, [], steps, lr=1e-3, beta1=0.9, beta2=0.999, weight_decay=0, eps=1e-8,
                    amsgrad=False, maximize=False,
                )  # fmt: skip
            return results

        return [run]

    moved = 4 * sum(sizes) * (3 + 2 * slots)
    return Operation(kind, name, inputs, ours, peer, moved, has_images=False)


def to_channels_last(shape: tuple[int, ...]) -> Operation:
    n, c, h, w = shape
    x = normal(*shape)

    def ours(o: Ours) -> None:
        calls.transpose(o.builder, n, c, h * w, o.new("y", (n, h, w, c)), o.given("x"))

    def peer(t: Tensors) -> list:
        y, source = torch.empty((n, h, w, c), dtype=t["x"].dtype), t["x"].permute(0, 2, 3, 1)
        return [lambda: (y.copy_(source),)]

    return Operation("to channels-last", text(shape), {"x": x}, ours, peer, 2 * nbytes(x), has_images=False)


def to_contiguous(shape: tuple[int, ...]) -> Operation:
    n, c, h, w = shape
    x = normal(n, h, w, c)

    def ours(o: Ours) -> None:
        calls.transpose(o.builder, n, h * w, c, o.new("y", shape), o.given("x"))

    def peer(t: Tensors) -> list:
        y, source = torch.empty(shape, dtype=t["x"].dtype), t["x"].permute(0, 3, 1, 2)
        return [lambda: (y.copy_(source),)]

    return Operation("to contiguous", text(shape), {"x": x}, ours, peer, 2 * nbytes(x), has_images=False)


# --------------------------------------------------------------------------------------------- the sizes

# Images between the layers of: a network for 8x8 digits, LeNet, VGG and ResNet-20 on CIFAR, ResNet-18/50.
POOLED = [
    (64, 16, 8, 8), (64, 6, 24, 24), (64, 16, 32, 32), (64, 32, 32, 32), (64, 64, 16, 16), (64, 128, 8, 8),
]  # fmt: skip
NORMALISED = [
    (64, 16, 8, 8), (64, 16, 32, 32), (64, 32, 16, 16), (64, 64, 8, 8), (64, 64, 32, 32),
    (8, 64, 112, 112), (8, 64, 56, 56), (8, 256, 56, 56), (8, 256, 14, 14), (8, 512, 7, 7),
]  # fmt: skip
STEM = ((8, 64, 112, 112), 3, 2, 1)
LAYOUTS = [
    (64, 3, 32, 32), (8, 3, 224, 224), (64, 6, 24, 24), (64, 16, 32, 32), (64, 17, 15, 15), (64, 64, 16, 16),
    (8, 64, 112, 112), (8, 64, 56, 56), (8, 256, 14, 14), (8, 512, 7, 7), (8, 1024, 14, 14),
]  # fmt: skip
RESNET_20 = [432, *[16] * 14, *[2304] * 6, 4608, *[32] * 12, *[9216] * 5, 18432, *[64] * 12, *[36864] * 5, 640, 10]


def in_networks() -> Iterator[Callable[[], Operation]]:
    """What makes the operations of the first table, one after another, so that one at a time is in memory."""
    for make in (max_pool, max_pool_backward, avg_pool, avg_pool_backward):
        for shape in POOLED:
            yield lambda make=make, shape=shape: make(shape)
        yield lambda make=make: make(*STEM)
    for make in (global_avg_pool, global_avg_pool_backward):
        for shape in ((64, 64, 8, 8), (8, 512, 7, 7)):
            yield lambda make=make, shape=shape: make(shape)
    for make in (batch_norm, batch_norm_backward):
        for shape in NORMALISED:
            yield lambda make=make, shape=shape: make(shape)
    for name in ACTIVATIONS:
        some = NORMALISED if name == "relu" else NORMALISED[1::4]
        for make in (activation, activation_backward):
            for shape in some:
                yield lambda make=make, name=name, shape=shape: make(name, shape)
    for shape in NORMALISED[1::4]:
        yield lambda shape=shape: add(shape)
    for make in (softmax, cross_entropy):
        for rows, classes in ((64, 10), (128, 100), (64, 1000), (256, 1000)):
            yield lambda make=make, rows=rows, classes=classes: make(rows, classes)
    for kind in ("sgd", "adam"):
        for size in (640, 36_864, 2_359_296):
            yield lambda kind=kind, size=size: update(kind, f"{size:,}", [size])
        yield lambda kind=kind: update(kind, "ResNet-20", RESNET_20)
    for make in (to_channels_last, to_contiguous):
        for shape in LAYOUTS:
            yield lambda make=make, shape=shape: make(shape)


def beyond_caches(floats: int) -> Iterator[Callable[[], Operation]]:
    """What makes the operations of the second table, on images of at least so many floats."""
    images = -(-floats // (64 * 112 * 112))
    shape = (images, 64, 112, 112)
    for make in (max_pool, max_pool_backward, avg_pool, avg_pool_backward):
        yield lambda make=make: make(shape)
        yield lambda make=make: make(shape, 3, 2, 1)
    for make in (global_avg_pool, global_avg_pool_backward, batch_norm, batch_norm_backward):
        yield lambda make=make: make(shape)
    for name in ACTIVATIONS:
        for make in (activation, activation_backward):
            yield lambda make=make, name=name: make(name, shape)
    yield lambda: add(shape)
    for make in (softmax, cross_entropy):
        for classes in (10, 1000):
            yield lambda make=make, classes=classes: make(-(-floats // classes), classes)
    for kind in ("sgd", "adam"):
        yield lambda kind=kind: update(kind, f"{floats:,}", [floats])
    for make in (to_channels_last, to_contiguous):
        for c, side in ((3, 224), (16, 32), (64, 112), (256, 14), (512, 7), (1024, 7)):
            n = -(-floats // (c * side * side))
            yield lambda make=make, n=n, c=c, side=side: make((n, c, side, side))


# ------------------------------------------------------------------------------------------ measuring


def ours_of(operation: Operation, channels_last: bool) -> tuple[Callable[[], None], list[np.ndarray]]:
    ours = Ours(operation.inputs, channels_last)
    operation.ours(ours)
    return ours.function(), ours.results


def torch_of(operation: Operation, channels_last: bool, dtype: torch.dtype = torch.float32) -> list[Callable]:
    chosen = torch.channels_last if channels_last else torch.contiguous_format
    tensors = {}
    for name, array in operation.inputs.items():
        tensor = torch.from_numpy(array).clone()
        tensor = tensor.to(dtype) if tensor.is_floating_point() else tensor
        tensors[name] = tensor.contiguous(memory_format=chosen) if tensor.ndim == 4 else tensor
    return operation.torch(tensors)


def verify(who: str, operation: Operation, results: Any, expected: list[np.ndarray]) -> None:
    if len(results) != len(expected):
        sys.exit(f"{who} has {len(results)} results of {operation.name}, not {len(expected)}")
    for result, wanted in zip(results, expected, strict=True):
        difference = np.asarray(result, np.float64).reshape(wanted.shape)
        difference -= wanted
        error = np.abs(difference, out=difference).max() / np.abs(wanted).max()
        if not error <= TOLERANCE:
            sys.exit(f"{who}: {operation.name} {operation.size} differs by {error:.1e} of the largest element")


def contestants(operation: Operation, formats: list[bool], peers: bool) -> dict[str, Callable[[], Any]]:
    """Verified functions by the names "ours" or "torch", their memory format and a number."""
    expected = [r.numpy().copy() for r in torch_of(operation, False, torch.float64)[0]()]
    found = {}
    for last in formats:
        label = "channels-last" if last else "contiguous"
        function, results = ours_of(operation, last)
        function()
        verify(f"ours ({label})", operation, results, expected)
        found[f"ours {label}"] = function
        for i, peer in enumerate(torch_of(operation, last) if peers else []):
            # An update changes its tensors, so what is compared is not what will be timed.
            verify(f"PyTorch ({label})", operation, torch_of(operation, last)[i](), expected)
            found[f"torch {label} {i}"] = peer
    return found


def in_turn(functions: dict[str, Callable[[], Any]], seconds: float) -> dict[str, float]:
    """The shortest time of each function. One runs several times before the next one does, so that what fits into the
    caches is there."""
    rounds = [
        {name: best_time({name: function}, seconds / ROUNDS)[name] for name, function in functions.items()}
        for _ in range(ROUNDS)
    ]
    return {name: min(times[name] for times in rounds) for name in functions}


def best_of(times: dict[str, float], start: str) -> float:
    return min(seconds for name, seconds in times.items() if name.startswith(start))


@torch.no_grad()
def against_torch(operation: Operation, seconds: float) -> dict[str, Any]:
    formats = [True, False] if operation.has_images else [False]
    times = in_turn(contestants(operation, formats, peers=True), seconds)
    row = {"operation": operation.name, "size": operation.size}
    row |= {"ours": best_of(times, "ours"), "torch": best_of(times, "torch")}
    if operation.has_images:
        row |= {"ours_contiguous": best_of(times, "ours contiguous")}
        row |= {"torch_contiguous": best_of(times, "torch contiguous")}
    return row | {"times": times}


@torch.no_grad()
def against_copy(operation: Operation, copy: Callable[[], None], copied: int, seconds: float) -> dict[str, Any]:
    functions = contestants(operation, [True], peers=False)
    times = in_turn(functions | {"copy": copy}, seconds)
    rates = {"ours": operation.moved / best_of(times, "ours"), "copy": copied / times["copy"]}
    return {"operation": operation.name, "size": operation.size} | {k: v * 1e-9 for k, v in rates.items()}


def copying(floats: int) -> Callable[[], None]:
    builder = PlanBuilder()
    calls.copy(builder, floats, builder.external("out"), builder.external("x"))
    plan = builder.finish()
    return plan.bind({"out": aligned(np.zeros(floats, np.float32)), "x": aligned(normal(floats))}, Arena(0)).run


def last_level_cache() -> int:
    """Its bytes; 32 MB where the system does not tell."""
    sizes = [p.read_text().strip() for p in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")]
    return max((int(size[:-1]) * 1024 for size in sizes if size.endswith("K")), default=32 * 2**20)


def print_networks(operations: Iterator[Callable[[], Operation]], wanted: str, seconds: float) -> list[dict[str, Any]]:
    print(f"{'':46}{'best memory format':^30}{'contiguous':^30}")
    print(f"{'':46}" + 2 * f"{'ours us':>10}{'torch us':>10}{'ratio':>8}  ")
    rows = []
    for make in operations:
        operation = make()
        if wanted not in f"{operation.name} {operation.size}":
            continue
        row = against_torch(operation, seconds)
        rows.append(row)
        line = f"{row['operation']:24} {row['size']:>20} "
        for end in ("", "_contiguous"):
            if "ours" + end in row:
                own, other = row["ours" + end], row["torch" + end]
                line += f"{own * 1e6:10.1f}{other * 1e6:10.1f}{other / own:8.2f}  "
        print(line, flush=True)
    for title, end in (("best memory format", ""), ("contiguous", "_contiguous")):
        ratios = [row["torch" + end] / row["ours" + end] for row in rows if "ours" + end in row]
        if ratios:
            print(f"{title}: geometric mean {geometric_mean(ratios):.2f}, least {min(ratios):.2f}")
    return rows


def print_bandwidths(
    operations: Iterator[Callable[[], Operation]], wanted: str, floats: int, seconds: float
) -> list[dict[str, Any]]:
    print(f"\n{'beyond the caches':46}{'GB/s':>8}{'copy':>8}{'share':>8}")
    copy, rows = copying(floats), []
    for make in operations:
        operation = make()
        if wanted not in f"{operation.name} {operation.size}":
            continue
        row = against_copy(operation, copy, 8 * floats, seconds)
        rows.append(row)
        share = f"{row['ours'] / row['copy']:8.0%}"
        print(f"{row['operation']:24} {row['size']:>20} {row['ours']:8.1f}{row['copy']:8.1f}{share}", flush=True)
    if rows:
        print(f"least share of a copy: {min(row['ours'] / row['copy'] for row in rows):.0%}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--filter", default="", metavar="SUBSTR", help="only operations whose name and size have this")
    parser.add_argument("--seconds", type=float, default=0.2, help="for each contestant of each case")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results to this file as well")
    parser.add_argument("--only", choices=("networks", "bandwidth"), help="one of the two tables")
    options = parser.parse_args()
    torch.set_num_threads(native.get_num_threads())
    info = native.info()
    print(f"{info['isa']}, {info['threads']} thread(s), PyTorch {torch.__version__}\n")
    floats = last_level_cache()  # 4 bytes each
    results: dict[str, Any] = {"info": info}
    if options.only != "bandwidth":
        results["networks"] = print_networks(in_networks(), options.filter, options.seconds)
    if options.only != "networks":
        results["bandwidth"] = print_bandwidths(
            beyond_caches(floats), options.filter, floats, max(options.seconds, 0.5)
        )
    if options.json:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

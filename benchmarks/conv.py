"""Convolution, forward and backward, against PyTorch in both memory formats, on the layers of well-known networks.

    python benchmarks/conv.py [--filter resnet] [--threads 2] [--seconds 0.5] [--no-winograd] [--json FILE]

Ours are `ops.conv2d` and `ops.conv2d_backward` (dx, dw and db in one call), on contiguous arrays and on channels-last
ones; PyTorch's are its own operators without autograd, input, gradient and filters in its default format and in
channels-last. All four run in turn in one process and the best of many runs counts. Before a layer is timed, each of
its results is compared with PyTorch's in double precision.

A ratio is PyTorch's time over ours. "best" is our better layout against PyTorch's better one, "NCHW" contiguous
arrays, with the conversions that ours need, against PyTorch's default.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    sys.exit("benchmarks/conv.py compares with PyTorch, which is not installed: pip install torch")

import pycnn as cnn
from pycnn import native
from pycnn.bench import best_time, geometric_mean

# Of the largest result. Winograd's algorithm keeps 5e-6, and 1e-5 for the gradient of the weights.
TOLERANCE = {"y": 5e-6, "dx": 5e-6, "dw": 1e-5, "db": 5e-6}
DIRECTIONS = ("forward", "backward")


@dataclass(frozen=True)
class Layer:
    """Batch n of (c, h, w) images, k filters of r x r."""

    name: str
    n: int
    c: int
    h: int
    k: int
    r: int
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    groups: int = 1

    def __str__(self) -> str:
        more = f" s{self.stride}" * (self.stride > 1) + f" d{self.dilation}" * (self.dilation > 1)
        more += f" g{self.groups}" * (self.groups > 1)
        return f"{self.name} {self.n},{self.c}x{self.h}x{self.h} {self.k},{self.r}x{self.r}{more}"

    def is_dense_3x3(self) -> bool:
        return (self.r, self.stride, self.dilation, self.groups) == (3, 1, 1, 1) and self.c >= 64

    def options(self) -> dict[str, int]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


LAYERS = [
    Layer("digits", 64, 1, 8, 4, 3, 1, 1),
    Layer("mnist", 64, 1, 28, 16, 6),
    Layer("lenet", 64, 6, 14, 16, 5),
    Layer("catdog", 32, 3, 50, 16, 10, 2),
    Layer("cifar", 64, 3, 32, 32, 3, 1, 1),
    Layer("cifar", 64, 32, 32, 64, 3, 1, 1),
    Layer("cifar", 64, 64, 16, 64, 3, 1, 1),
    Layer("cifar", 64, 128, 8, 128, 3, 1, 1),
    Layer("resnet50", 8, 3, 224, 64, 7, 2, 3),
    Layer("resnet50", 8, 64, 56, 64, 3, 1, 1),
    Layer("resnet50", 8, 64, 56, 256, 1),
    Layer("resnet50", 8, 256, 56, 64, 1),
    Layer("resnet50", 8, 128, 56, 128, 3, 2, 1),
    Layer("resnet50", 8, 128, 28, 128, 3, 1, 1),
    Layer("resnet50", 8, 512, 28, 128, 1),
    Layer("resnet50", 8, 256, 14, 256, 3, 1, 1),
    Layer("resnet50", 8, 1024, 14, 256, 1),
    Layer("resnet50", 8, 512, 7, 512, 3, 1, 1),
    Layer("resnet50", 8, 1024, 14, 2048, 1, 2),
    Layer("vgg", 4, 256, 56, 256, 3, 1, 1),
    Layer("vgg", 4, 512, 28, 512, 3, 1, 1),
    Layer("mobilenet", 8, 32, 112, 32, 3, 1, 1, groups=32),
    Layer("mobilenet", 8, 144, 56, 144, 3, 2, 1, groups=144),
    Layer("mobilenet", 8, 384, 14, 384, 3, 1, 1, groups=384),
    Layer("dilated", 4, 256, 28, 256, 3, 1, 2, 2),
    Layer("grouped", 4, 256, 28, 256, 3, 1, 1, groups=32),
]


def channels_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def torch_functions(layer: Layer, x: Any, w: Any, b: Any, dy: Any) -> dict[str, Callable[[], Any]]:
    """PyTorch's forward and backward on these tensors."""
    two = [layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2
    return {
        "forward": lambda: torch.ops.aten.convolution(x, w, b, *two, False, [0, 0], layer.groups),
        "backward": lambda: torch.ops.aten.convolution_backward(
            dy, x, w, [layer.k], *two, False, [0, 0], layer.groups, [True] * 3
        ),
    }


def contestants(layer: Layer) -> tuple[dict[str, dict[str, Callable[[], Any]]], dict[str, Callable[[], Any]]]:
    """{contestant: {direction: function}}, and PyTorch's functions in double precision."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((layer.n, layer.c, layer.h, layer.h), np.float32)
    w = rng.standard_normal((layer.k, layer.c // layer.groups, layer.r, layer.r), np.float32)
    w /= math.sqrt(w[0].size)
    b = rng.standard_normal(layer.k, np.float32)
    out = (layer.h + 2 * layer.padding - layer.dilation * (layer.r - 1) - 1) // layer.stride + 1
    dy = rng.standard_normal((layer.n, layer.k, out, out), np.float32)
    functions = {}
    for name, order in (("ours NCHW", np.ascontiguousarray), ("ours NHWC", channels_last)):
        image, gradient = order(x), order(dy)
        functions[name] = {
            "forward": lambda image=image: cnn.ops.conv2d(image, w, b, **layer.options()),
            "backward": lambda image=image, gradient=gradient: cnn.ops.conv2d_backward(
                gradient, image, w, **layer.options()
            ),
        }
    tensors = [torch.from_numpy(a) for a in (x, w, b, dy)]
    for name, chosen in (("torch NCHW", torch.contiguous_format), ("torch NHWC", torch.channels_last)):
        given = [t.contiguous(memory_format=chosen) if t.ndim == 4 else t for t in tensors]
        functions[name] = torch_functions(layer, *given)
    return functions, torch_functions(layer, *(t.double() for t in tensors))


def as_results(value: Any) -> dict[str, np.ndarray]:
    """Results by name, of one direction of any contestant."""
    names, values = (("dx", "dw", "db"), value) if isinstance(value, tuple) else (("y",), (value,))
    return {n: np.asarray(v, np.float64) for n, v in zip(names, values, strict=True)}


def verify(layer: Layer, results: dict[str, np.ndarray], exact: dict[str, np.ndarray]) -> dict[str, float]:
    """The error of each result, of the largest; exits where one is too large."""
    errors = {n: float(np.abs(results[n] - exact[n]).max() / np.abs(exact[n]).max()) for n in exact}
    for name, error in errors.items():
        if not error < TOLERANCE[name]:
            sys.exit(f"{layer}: {name} differs from PyTorch in double precision by {error:.1e} of the largest")
    return errors


def measure(layer: Layer, seconds: float, threads: int) -> list[dict[str, Any]]:
    """A row a direction."""
    functions, exact = contestants(layer)
    out = (layer.h + 2 * layer.padding - layer.dilation * (layer.r - 1) - 1) // layer.stride + 1
    flops = 2 * layer.n * layer.k * out**2 * layer.c // layer.groups * layer.r**2
    rows = []
    for direction in DIRECTIONS:
        expected = as_results(exact[direction]())
        errors: dict[str, float] = {}
        for name in ("ours NCHW", "ours NHWC"):
            found = verify(layer, as_results(functions[name][direction]()), expected)
            errors = {n: max(e, errors.get(n, 0.0)) for n, e in found.items()}
        peak = native.peak_gflops(threads)
        times = best_time({name: functions[name][direction] for name in functions}, seconds)
        peak = max(peak, native.peak_gflops(threads))  # the clock drifts with the load
        ours = min(times["ours NCHW"], times["ours NHWC"])
        theirs = min(times["torch NCHW"], times["torch NHWC"])
        gflops = flops * (1 if direction == "forward" else 2) / ours * 1e-9
        rows.append({
            "layer": str(layer), "direction": direction, "dense_3x3": layer.is_dense_3x3(), "seconds": times,
            "errors": errors, "gflops": gflops, "share": gflops / peak, "best": theirs / ours,
            "nchw": times["torch NCHW"] / times["ours NCHW"],
        })  # fmt: skip
    return rows


def line(row: dict[str, Any]) -> str:
    times = "".join(f"{row['seconds'][name] * 1e3:10.3f}" for name in TIMES)
    error = max(row["errors"].values())
    return (
        f"{row['layer']:<37}{row['direction']:<9}{times}{row['gflops']:8.0f}{row['share']:7.0%}"
        f"{row['best']:8.2f}{row['nchw']:7.2f}{error:9.0e}"
    )


TIMES = ("ours NCHW", "ours NHWC", "torch NCHW", "torch NHWC")
HEADER = (
    f"{'':<46}{'milliseconds':^40}{'':8}{'of':>7}{'ratio':>8}{'ratio':>7}\n"
    f"{'layer: batch,CxHxW filters,kernel':<46}" + "".join(f"{name:>10}" for name in TIMES)
    + f"{'GFLOP/s':>8}{'peak':>7}{'best':>8}{'NCHW':>7}{'error':>9}"
)  # fmt: skip


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean and least of the ratios, of all layers and of the dense 3x3 ones."""
    groups = {
        "forward, best against best": [r["best"] for r in rows if r["direction"] == "forward"],
        "backward, best against best": [r["best"] for r in rows if r["direction"] == "backward"],
        "both, NCHW against NCHW": [r["nchw"] for r in rows],
        "dense 3x3 of C >= 64, best against best": [r["best"] for r in rows if r["dense_3x3"]],
    }
    return {name: {"mean": geometric_mean(ratios), "least": min(ratios)} for name, ratios in groups.items() if ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="only layers whose name or shape contains this")
    parser.add_argument("--threads", type=int, default=native.get_num_threads())
    parser.add_argument("--seconds", type=float, default=0.5, help="spent on each contestant of each case")
    parser.add_argument("--no-winograd", action="store_true", help="direct sums only")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args()
    cnn.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    cnn.config(winograd=not args.no_winograd)
    print(f"{native.info()}\nPyTorch {torch.__version__}\n{HEADER}", flush=True)
    rows = []
    with torch.no_grad():
        for layer in LAYERS:
            if args.filter in str(layer):
                for row in measure(layer, args.seconds, args.threads):
                    rows.append(row)
                    print(line(row), flush=True)
    print(f"\n{'ratio: time of PyTorch / ours':<42}{'geometric mean':>16}{'least':>8}")
    for name, ratios in summary(rows).items():
        print(f"{name:<42}{ratios['mean']:16.2f}{ratios['least']:8.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"info": native.info(), "rows": rows, "summary": summary(rows)}, file, indent=2)


if __name__ == "__main__":
    main()

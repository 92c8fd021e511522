"""Whole networks, from a digit's to ResNet-18, against PyTorch, torch.compile, JAX, ONNX Runtime and OpenVINO.

    python benchmarks/networks.py [--filter resnet] [--threads 2] [--seconds 1] [--compile] [--json FILE]

PyTorch's networks are made of ours, layer by layer, with the same weights. Before anything is timed, both are trained
for twenty steps of SGD with momentum, and their losses and outputs compared. Then a training step, a prediction of
one image and one of the batch run in turn in one process, each contestant for a few runs at a stretch after a short
rest, so that no one's waiting threads disturb the next; the best of all runs counts. PyTorch runs in both memory
formats with its fused optimizer; torch.compile is slow to start and asked for by --compile; JAX takes
part where it is installed and all of the machine's processors are used, which it always does; ONNX Runtime and OpenVINO
in predictions where they are installed.

A ratio is the time of the better of the opponents named in the column over ours. --memory tells instead by how much
three training steps raise the most memory that a process has used, each contestant in a process of its own.
"""

import argparse
import copy
import importlib.util
import io
import json
import math
import os
import resource
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

try:
    import torch
except ImportError:
    sys.exit("benchmarks/networks.py compares with PyTorch, which is not installed: pip install torch")

import pycnn as cnn
from pycnn import native
from pycnn.bench import geometric_mean

STEPS, TOLERANCE = 20, 0.02
RATE, MOMENTUM = 0.01, 0.9
REST = 0.01  # seconds: longer than the threads of OpenMP and ONNX Runtime spin for more work
FORMATS = {"torch NCHW": torch.contiguous_format, "torch NHWC": torch.channels_last}
PREDICTIONS = ("one image", "batch")
Functions = dict[str, Callable[[], Any]]


@dataclass(frozen=True)
class Network:
    """Layers for a batch of images of a shape."""

    name: str
    batch: int
    shape: tuple[int, int, int]
    layers: Callable[[], list[cnn.layers.Layer]]
    classes: int = 10
    large: bool = False


def conv_norm(filters: int, stride: int = 1) -> list[cnn.layers.Layer]:
    return [cnn.Conv2D(filters, 3, stride, padding=1, bias=False), cnn.BatchNorm()]


def vgg() -> list[cnn.layers.Layer]:
    layers = []
    for filters in (32, 64, 128):
        layers += [*conv_norm(filters), cnn.ReLU(), *conv_norm(filters), cnn.ReLU(), cnn.MaxPool2D(2)]
    return [*layers, cnn.Flatten(), cnn.Dense(10)]


def residual(filters: int, stride: int) -> list[cnn.layers.Layer]:
    """Two convolutions and a shortcut, which is a 1x1 convolution where the shape changes (He et al. 2016)."""
    shortcut = [cnn.Conv2D(filters, 1, stride, bias=False), cnn.BatchNorm()] if stride > 1 else None
    return [cnn.Residual([*conv_norm(filters, stride), cnn.ReLU(), *conv_norm(filters)], shortcut), cnn.ReLU()]


def residual_stages(blocks: int, widths: tuple[int, ...]) -> list[cnn.layers.Layer]:
    return [
        layer
        for stage, filters in enumerate(widths)
        for block in range(blocks)
        for layer in residual(filters, 2 if stage and not block else 1)
    ]


def resnet20() -> list[cnn.layers.Layer]:
    stages = residual_stages(3, (16, 32, 64))
    return [*conv_norm(16), cnn.ReLU(), *stages, cnn.GlobalAvgPool2D(), cnn.Dense(10)]


def resnet18() -> list[cnn.layers.Layer]:
    stem = [cnn.Conv2D(64, 7, 2, padding=3, bias=False), cnn.BatchNorm(), cnn.ReLU(), cnn.MaxPool2D(3, 2, padding=1)]
    return [*stem, *residual_stages(2, (64, 128, 256, 512)), cnn.GlobalAvgPool2D(), cnn.Dense(1000)]


def dense(*units: int) -> list[cnn.layers.Layer]:
    """Dense layers after Flatten, with ReLU between them."""
    return [cnn.Flatten(), *(cnn.Dense(n, activation="relu") for n in units[:-1]), cnn.Dense(units[-1])]


def conv(filters: int, kernel: int, **options: Any) -> cnn.layers.Layer:
    return cnn.Conv2D(filters, kernel, activation="relu", **options)


NETWORKS = [
    Network("report 000", 9, (3, 120, 120), lambda: [conv(4, 3), cnn.MaxPool2D(2), *dense(12, 3)], 3),
    Network("report 001", 64, (1, 8, 8), lambda: [conv(4, 3, padding=1), cnn.MaxPool2D(2), *dense(32, 10)]),
    Network("report 002", 32, (1, 28, 28), lambda: [conv(16, 6), cnn.MaxPool2D(2), *dense(160, 10)]),
    Network("report 003", 64, (1, 28, 28), lambda: [conv(1, 2, stride=3), *dense(30, 20, 10)]),
    Network("report 004", 64, (1, 28, 28), lambda: [conv(1, 10), conv(1, 10), cnn.MaxPool2D(2), *dense(10)]),
    Network(
        "LeNet-5", 64, (1, 28, 28),
        lambda: [conv(6, 5, padding=2), cnn.MaxPool2D(2), conv(16, 5), cnn.MaxPool2D(2), *dense(120, 84, 10)],
    ),
    Network(
        "report 002 deep", 32, (1, 28, 28),
        lambda: [conv(16, 4), conv(32, 6), cnn.MaxPool2D(2), conv(64, 8), *dense(320, 128, 10)], large=True,
    ),
    Network("VGG", 64, (3, 32, 32), vgg, large=True),
    Network("ResNet-20", 64, (3, 32, 32), resnet20, large=True),
    Network("ResNet-18", 8, (3, 224, 224), resnet18, 1000, large=True),
]  # fmt: skip


class ResidualModule(torch.nn.Module):
    def __init__(self, body: torch.nn.Module, shortcut: torch.nn.Module):
        super().__init__()
        self.body, self.shortcut = body, shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(x) + self.shortcut(x)


def tensor(array: np.ndarray) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.from_numpy(np.array(array, order="C")))


def with_activation(module: torch.nn.Module, layer: cnn.layers.Layer) -> torch.nn.Module:
    return module if layer.activation is None else torch.nn.Sequential(module, torch.nn.ReLU())


def torch_conv(layer: cnn.Conv2D) -> torch.nn.Module:
    weight = layer.params["weight"]
    padding = 0 if layer.padding == "valid" else layer.padding[0]
    module = torch.nn.Conv2d(weight.shape[1], *weight.shape[::2], layer.stride, padding, bias=layer.bias)
    module.weight = tensor(weight)
    if layer.bias:
        module.bias = tensor(layer.params["bias"])
    return with_activation(module, layer)


def torch_dense(layer: cnn.Dense) -> torch.nn.Module:
    weight = layer.params["weight"]
    module = torch.nn.Linear(*weight.shape)
    module.weight, module.bias = tensor(weight.T), tensor(layer.params["bias"])
    return with_activation(module, layer)


def torch_norm(layer: cnn.BatchNorm) -> torch.nn.Module:
    module = torch.nn.BatchNorm2d(len(layer.params["gamma"]), layer.eps, 1 - layer.momentum)
    module.weight, module.bias = tensor(layer.params["gamma"]), tensor(layer.params["beta"])
    module.running_mean.copy_(torch.from_numpy(layer.state["running_mean"]))
    module.running_var.copy_(torch.from_numpy(layer.state["running_var"]))
    return module


def torch_pool(layer: cnn.MaxPool2D) -> torch.nn.Module:
    options = layer.get_config()
    return torch.nn.MaxPool2d(options["pool_size"], options["stride"], options["padding"])


class GlobalAverage(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3))


MODULES: dict[type, Callable[[Any], torch.nn.Module]] = {
    cnn.Conv2D: torch_conv,
    cnn.Dense: torch_dense,
    cnn.BatchNorm: torch_norm,
    cnn.ReLU: lambda layer: torch.nn.ReLU(),
    cnn.MaxPool2D: torch_pool,
    cnn.GlobalAvgPool2D: lambda layer: GlobalAverage(),
    cnn.Flatten: lambda layer: torch.nn.Flatten(),
    cnn.Residual: lambda layer: ResidualModule(torch_chain(layer.body), torch_chain(layer.shortcut)),
}


def torch_chain(layers: list[cnn.layers.Layer]) -> torch.nn.Module:
    """The same layers in PyTorch, with copies of the weights."""
    return torch.nn.Sequential(*(MODULES[type(layer)](layer) for layer in layers))


@dataclass
class Contest:
    """One network in all forms, with a batch to work on."""

    network: Network
    ours: cnn.Sequential
    x: np.ndarray
    labels: np.ndarray

    def module(self, memory: torch.memory_format) -> torch.nn.Module:
        return torch_chain(self.ours.layers).to(memory_format=memory)

    def images(self, memory: torch.memory_format, n: int) -> torch.Tensor:
        return torch.from_numpy(self.x[:n]).contiguous(memory_format=memory)


def contest(network: Network) -> Contest:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((network.batch, *network.shape), np.float32)
    ours = cnn.Sequential(network.layers())
    ours.build(network.shape, seed=0)
    ours.compile(cnn.SGD(RATE, momentum=MOMENTUM), "cross_entropy")
    return Contest(network, ours, x, rng.integers(0, network.classes, network.batch))


def torch_step(module: torch.nn.Module, x: torch.Tensor, labels: np.ndarray) -> Callable[[], torch.Tensor]:
    """A function that trains the module for one step and returns the loss."""
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.SGD(module.parameters(), lr=RATE, momentum=MOMENTUM, fused=True)

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(module(x), targets)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def check_losses(c: Contest, theirs: list[float]) -> None:
    """Exits where ours of the first steps are not the same."""
    weights = c.ours.get_weights()
    c.ours.compile(cnn.SGD(RATE, momentum=MOMENTUM), "cross_entropy")  # without momentum from before
    ours = [c.ours.train_on_batch(c.x, c.labels) for _ in range(STEPS)]
    c.ours.set_weights(weights)
    worst = max(abs(a - b) / max(abs(b), 1e-2) for a, b in zip(ours, theirs, strict=True))
    if not worst < TOLERANCE:
        sys.exit(f"{c.network.name}: the losses of {STEPS} steps differ by {worst:.1%}: {ours} and {theirs}")


def verify(c: Contest) -> None:
    step = torch_step(c.module(FORMATS["torch NCHW"]), c.images(torch.contiguous_format, c.network.batch), c.labels)
    check_losses(c, [float(step()) for _ in range(STEPS)])


def with_jax(threads: int) -> bool:
    """Whether JAX takes part."""
    return threads == len(os.sched_getaffinity(0)) and importlib.util.find_spec("jax") is not None


def training(c: Contest, compiled: bool, threads: int = 0, only: str | None = None) -> Functions:
    functions: Functions = {"ours": lambda: c.ours.train_on_batch(c.x, c.labels)}
    for name, memory in FORMATS.items():
        if only not in (None, name):
            continue
        x = c.images(memory, c.network.batch)
        functions[name] = torch_step(c.module(memory), x, c.labels)
        if compiled:
            functions[f"compiled {name}"] = torch_step(torch.compile(c.module(memory)), x, c.labels)
    if only is None and with_jax(threads):
        import jax_networks

        functions["JAX"] = jax_networks.training_step(c.ours, c.x, c.labels, RATE, MOMENTUM)
        check_losses(c, [float(functions["JAX"]()) for _ in range(STEPS)])
    return functions


def onnx_file(c: Contest, n: int) -> bytes:
    file = io.BytesIO()
    module = c.module(torch.contiguous_format).eval()
    torch.onnx.export(module, (c.images(torch.contiguous_format, n),), file, dynamo=False)
    return file.getvalue()


def onnx_runtime(model: bytes, x: np.ndarray, threads: int) -> Functions:
    try:
        import onnxruntime
    except ImportError:
        return {}
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return {"ONNX Runtime": lambda: session.run(None, {name: x})[0]}


def openvino(model: bytes, x: np.ndarray, threads: int) -> Functions:
    try:
        import openvino
    except ImportError:
        return {}
    core = openvino.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(core.read_model(io.BytesIO(model)), "CPU", options).create_infer_request()
    return {"OpenVINO": lambda: request.infer([x], share_inputs=True, share_outputs=True)[0]}


def predictions(c: Contest, n: int, threads: int) -> Functions:
    x, ours = c.x[:n], copy.deepcopy(c.ours)  # whose weights nobody else holds, so that they may be kept packed
    functions: Functions = {"ours": lambda: ours.predict(x)}
    for name, memory in FORMATS.items():
        module, images = c.module(memory).eval(), c.images(memory, n)
        functions[name] = lambda module=module, images=images: module(images)
    if with_jax(threads):
        import jax_networks

        functions["JAX"] = jax_networks.prediction(c.ours, x)
    try:
        model = onnx_file(c, n)
        functions |= onnx_runtime(model, x, threads) | openvino(model, x, threads)
    except ImportError:
        pass
    expected = np.asarray(functions["torch NCHW"]())
    for name, function in functions.items():
        error = float(np.abs(np.asarray(function()) - expected).max() / np.abs(expected).max())
        if not error < 1e-4:
            sys.exit(f"{c.network.name}: the output of {name} differs by {error:.1e} of the largest")
    return functions


def best_times(functions: Functions, seconds: float) -> dict[str, float]:
    """The shortest time of each function; they take turns in stretches of a fifth of the time that each has."""
    best = dict.fromkeys(functions, math.inf)
    for _ in range(5):
        for name, function in functions.items():
            time.sleep(REST)
            end = time.perf_counter() + seconds / 5
            while (began := time.perf_counter()) < end:
                function()
                best[name] = min(best[name], time.perf_counter() - began)
    return best


def memory_of_steps(network: Network, contestant: str) -> float:
    """MB by which three training steps raise the process's peak."""
    c = contest(network)
    step = training(c, compiled=False, only=contestant)[contestant]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(3):
        step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def compare_memory(network: Network) -> None:
    command = [sys.executable, __file__, "--filter", network.name, "--memory"]
    runs = {name: subprocess.run([*command, name], capture_output=True, text=True) for name in ("ours", *FORMATS)}
    print(f"{network.name:<16} MB of three training steps: " + "  ".join(f"{n} {r.stdout}" for n, r in runs.items()))


def print_overhead(seconds: float) -> None:
    """What a step and a prediction cost besides the kernels: all of a call's time, less that of its plan alone."""
    model = cnn.Sequential([cnn.Conv2D(1, 1), cnn.Flatten(), cnn.Dense(2)], seed=0)
    x, y = np.zeros((1, 1, 2, 2), np.float32), np.zeros(1, np.int64)
    model.compile(cnn.SGD(RATE, momentum=MOMENTUM), "cross_entropy")
    calls = {"training step": lambda: model.train_on_batch(x, y), "prediction": lambda: model.predict(x)}
    for name, call in calls.items():
        call()
        (executors,) = model._executors.values()
        plan = executors.current().last_binding()
        functions = {"call": call, "plan": plan.run}
        times = best_times({n: lambda f=f: [f() for _ in range(100)] for n, f in functions.items()}, seconds)
        call_time, plan_time = (times[n] * 1e4 for n in ("call", "plan"))
        print(
            f"three layers with hardly any work, {name}: {call_time:.1f} us, {call_time - plan_time:.1f} of it overhead"
        )


OPPONENTS = {
    "training step": {"torch": list(FORMATS), "compiled": [f"compiled {name}" for name in FORMATS], "JAX": ["JAX"]},
    "one image": {"torch": list(FORMATS), "engines": ["ONNX Runtime", "OpenVINO"], "JAX": ["JAX"]},
    "batch": {"torch": list(FORMATS), "engines": ["ONNX Runtime", "OpenVINO"], "JAX": ["JAX"]},
}


def row(c: Contest, work: str, functions: Functions, seconds: float) -> dict[str, Any]:
    times = best_times(functions, seconds)
    ratios = {
        group: min(times[n] for n in names if n in times) / times["ours"]
        for group, names in OPPONENTS[work].items()
        if any(n in times for n in names)
    }
    return {"network": c.network.name, "large": c.network.large, "work": work, "seconds": times, "ratios": ratios}


def measure(network: Network, seconds: float, threads: int, compiled: bool, work: str) -> list[dict[str, Any]]:
    c = contest(network)
    verify(c)
    rows = []
    if work in "training step":
        rows.append(row(c, "training step", training(c, compiled, threads), seconds))
    with torch.inference_mode():
        for name, n in zip(PREDICTIONS, (1, network.batch), strict=True):
            if work in name:
                rows.append(row(c, name, predictions(c, n, threads), seconds))
    return rows


def line(r: dict[str, Any]) -> str:
    times = "  ".join(f"{name} {t * 1e3:.4g}" for name, t in r["seconds"].items())
    ratios = "  ".join(f"{ratio:.2f} {name}" for name, ratio in r["ratios"].items())
    return f"{r['network']:<16} {r['work']:<14} {ratios:<28} {times}"


def summary(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Geometric mean and least of the ratios of each kind of work."""
    groups: dict[str, list[float]] = {}
    for r in rows:
        for opponents, ratio in r["ratios"].items():
            size = ("large" if r["large"] else "small") + " networks, " if r["work"] == "training step" else ""
            groups.setdefault(f"{size}{r['work']}, against {opponents}", []).append(ratio)
    return {name: {"mean": geometric_mean(ratios), "least": min(ratios)} for name, ratios in groups.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--filter", default="", help="only networks whose name contains this")
    parser.add_argument(
        "--work", default="", help="only work whose name contains this: training step, one image, batch"
    )
    parser.add_argument("--threads", type=int, default=native.get_num_threads())
    parser.add_argument("--seconds", type=float, default=1.0, help="spent on each contestant of each case")
    parser.add_argument("--compile", action="store_true", help="torch.compile takes part in training")
    parser.add_argument("--memory", nargs="?", const="all", help="compare memory; a contestant's name: its MB alone")
    parser.add_argument("--overhead", action="store_true", help="measure only what a call costs besides its kernels")
    parser.add_argument("--json", metavar="FILE", help="also write the figures to a file")
    args = parser.parse_args()
    cnn.set_num_threads(args.threads)
    torch.set_num_threads(args.threads)
    if args.overhead:
        print_overhead(args.seconds)
        return
    if args.memory:
        for network in (n for n in NETWORKS if n.large and args.filter.lower() in n.name.lower()):
            if args.memory == "all":
                compare_memory(network)
            else:
                print(f"{memory_of_steps(network, args.memory):.0f}", end="")
        return
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    print(f"{native.info()}\nPyTorch {torch.__version__}\n{'':<32}{'ratios':<29}milliseconds", flush=True)
    rows = []
    for network in NETWORKS:
        if args.filter.lower() in network.name.lower():
            for r in measure(network, args.seconds, args.threads, args.compile, args.work):
                rows.append(r)
                print(line(r), flush=True)
    print(f"\n{'ratio: time of the opponent / ours':<50}{'geometric mean':>16}{'least':>8}")
    for name, ratios in summary(rows).items():
        print(f"{name:<50}{ratios['mean']:16.2f}{ratios['least']:8.2f}")
    if args.json:
        with open(args.json, "w") as file:
            json.dump({"info": native.info(), "rows": rows, "summary": summary(rows)}, file, indent=2)


if __name__ == "__main__":
    main()

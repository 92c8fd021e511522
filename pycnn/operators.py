"""The logical operations of a graph: shape, lowering to kernel calls, and execution on the reference.

An operator is written once for all executors. `lower` and `lower_backward` append kernel calls through a
`Lowering`; `run` and `run_backward` do the same on nested lists with the twins of `pycnn.reference`.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from pycnn import calls, reference, shapes
from pycnn.graph import Node, Shape, Value
from pycnn.plan import Buffer, PlanBuilder
from pycnn.reference import lists

Lists = Any  # nested lists of floats


@dataclass
class Lowering:
    """What an operator lowers with: the plan's builder, its own node, and its buffers."""

    b: PlanBuilder
    n: int
    index: int
    node: Node
    training: bool
    x: list[Buffer]
    new: Callable[[Shape], Buffer]
    weights: dict[str, Buffer]
    output: Buffer | None = None
    gradients: dict[str, Buffer] | None = None  # where the wanted gradients of parameters go
    wanted: Sequence[bool] = ()  # which inputs' gradients are wanted
    moments: dict[Value, calls.Moments] = field(default_factory=dict)  # of outputs, by the convolutions that take them
    second_dy: Buffer | None = None  # to be added to dy, for an operator that `adds_gradients`
    kept: bool = False  # whether the parameters stay the same from run to run
    differentiated: bool = False  # whether backward calls will follow
    later: list[Callable[[], None]] = field(default_factory=list)  # appends calls for after the loss
    saved: Any = None

    def shape(self, i: int = 0) -> Shape:
        """An input's shape with the batch axis."""
        return (self.n, *self.node.inputs[i].shape)

    def size(self) -> int:
        return math.prod(self.shape())


@dataclass
class Run:
    """What an operator runs with on the reference: nested lists."""

    node: Node
    index: int
    training: bool
    x: list[Lists]
    weights: dict[str, Lists]
    seed: int
    step: int
    output: Lists = None
    saved: Any = None


class Operator:
    """A logical operation. Subclasses with parameters name their gradients as the parameters."""

    adds_gradients: ClassVar[bool] = False  # whether lower_backward takes a second part of dy

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return inputs[0]

    def lower(self, c: Lowering) -> Buffer:
        """Appends the forward calls; returns the output's buffer."""
        raise NotImplementedError

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        """Appends the backward calls; returns the gradient of each input that is wanted."""
        raise NotImplementedError

    def run(self, r: Run) -> Lists:
        raise NotImplementedError

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        """(the gradient of each input, the gradient of each parameter by name)."""
        raise NotImplementedError


def _epilogue(rectifier: "Activation | None") -> calls.Epilogue | None:
    return None if rectifier is None else rectifier.epilogue()


def _before_rectifier(c: Lowering, rectifier: "Activation | None", dy: Buffer) -> Buffer:
    """The gradient of what a fused rectifier has read, told from what it has made."""
    if rectifier is None:
        return dy
    dx = c.new(c.node.output.shape)
    size = c.n * math.prod(c.node.output.shape)
    calls.activation_backward(c.b, size, rectifier.name, rectifier.alpha, dx, dy, c.output)
    return dx


@dataclass
class Conv2D(Operator):
    """2-D convolution; parameters weight (K, C/groups, R, S) and perhaps bias (K,). Fusion may add a rectifier, and
    that it measures: takes the moments of its output in training, for a batch norm."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1
    rectifier: "Activation | None" = None
    measures: bool = False

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def _geometry(self, n: int, x: Shape, w: Shape) -> shapes.Conv2D:
        return shapes.conv2d("conv2d", (n, *x), w, **self._options())

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return self._geometry(1, inputs[0], parameters["weight"]).y_shape[1:]

    def lower(self, c: Lowering) -> Buffer:
        g = self._geometry(c.n, c.node.inputs[0].shape, c.node.parameters["weight"].shape)
        c.saved = g
        y = c.new(g.y_shape[1:])
        weight, bias = self._folded(c, g) if c.node.norm else (c.weights["weight"], c.weights.get("bias"))
        options = {"epilogue": _epilogue(self.rectifier), "kept": c.kept}
        if self.measures and c.training and not calls.stores_pixels(g):
            options["moments"] = c.moments[c.node.output] = c.b.arena(g.k), c.b.arena(g.k)
        calls.conv2d(c.b, g, calls.rsck_strides(g), y, c.x[0], weight, bias, **options)
        return y

    def _folded(self, c: Lowering, g: shapes.Conv2D) -> tuple[Buffer, Buffer]:
        """Weights and bias with the batch norm that fusion has added."""
        names = ("weight", "bias", "gamma", "beta", "running_mean", "running_var")
        args = [c.weights.get(name) for name in names]
        return calls.fold_batch_norm(c.b, g.k, c.node.parameters["weight"].memory.size, c.node.norm.operator.eps, args)

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        g, strides = c.saved, calls.rsck_strides(c.saved)
        dy = _before_rectifier(c, self.rectifier, dy)
        if "weight" in c.gradients:
            calls.conv2d_backward_weights(c.b, g, strides, c.gradients["weight"], c.x[0], dy)
        if "bias" in c.gradients:
            calls.column_sums(c.b, g.n * g.oh * g.ow, g.k, c.gradients["bias"], dy)
        if not c.wanted[0]:
            return [None]
        dx = c.new(g.x_shape[1:])
        calls.conv2d_backward_data(c.b, g, strides, dx, dy, c.weights["weight"])
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.conv2d(r.x[0], r.weights["weight"], r.weights.get("bias"), **self._options())

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        dx, dw, db = reference.conv2d_backward(dy, r.x[0], r.weights["weight"], **self._options())
        return [dx], {"weight": dw, "bias": db}


@dataclass
class ConvTranspose2D(Operator):
    """Transposed 2-D convolution; parameters weight (C, K/groups, R, S) and perhaps bias (K,)."""

    stride: tuple[int, int] = (1, 1)
    padding: tuple[tuple[int, int], tuple[int, int]] = ((0, 0), (0, 0))
    output_padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    groups: int = 1

    def _geometry(self, n: int, x: Shape, w: Shape) -> shapes.Conv2D:
        return shapes.conv_transpose2d("conv_transpose2d", (n, *x), w, **asdict(self))

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return self._geometry(1, inputs[0], parameters["weight"]).x_shape[1:]

    def lower(self, c: Lowering) -> Buffer:
        c.saved = g = self._geometry(c.n, c.node.inputs[0].shape, c.node.parameters["weight"].shape)
        y = c.new(g.x_shape[1:])
        calls.conv_transpose2d(c.b, g, calls.rsck_strides(g), y, c.x[0], c.weights["weight"], c.weights.get("bias"))
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        g, strides = c.saved, calls.rsck_strides(c.saved)
        if "weight" in c.gradients:
            calls.conv2d_backward_weights(c.b, g, strides, c.gradients["weight"], dy, c.x[0])
        if "bias" in c.gradients:
            calls.column_sums(c.b, g.n * g.h * g.w, g.c, c.gradients["bias"], dy)
        if not c.wanted[0]:
            return [None]
        dx = c.new(g.y_shape[1:])
        calls.conv2d(c.b, g, strides, dx, dy, c.weights["weight"], None)
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.conv_transpose2d(r.x[0], r.weights["weight"], r.weights.get("bias"), **asdict(self))

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        dx, dw, db = reference.conv_transpose2d_backward(dy, r.x[0], r.weights["weight"], **asdict(self))
        return [dx], {"weight": dw, "bias": db}


@dataclass
class Dense(Operator):
    """y = x weight + bias; parameters weight (in, out) and perhaps bias (out,). Fusion may add a rectifier."""

    rectifier: "Activation | None" = None

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return shapes.dense("dense", (1, *inputs[0]), parameters["weight"])[2:]

    def _sizes(self, c: Lowering) -> tuple[int, int, int]:
        return shapes.dense("dense", c.shape(), c.node.parameters["weight"].shape)

    def lower(self, c: Lowering) -> Buffer:
        n, inputs, outputs = self._sizes(c)
        y = c.new((outputs,))
        options = {"epilogue": _epilogue(self.rectifier), "kept": c.kept}
        calls.gemm(c.b, n, outputs, inputs, y, c.x[0], c.weights["weight"], c.weights.get("bias"), **options)
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        n, inputs, outputs = self._sizes(c)
        dy = _before_rectifier(c, self.rectifier, dy)
        if "weight" in c.gradients:
            calls.dense_backward_weights(c.b, n, inputs, outputs, c.gradients["weight"], c.x[0], dy)
        if "bias" in c.gradients:
            calls.column_sums(c.b, n, outputs, c.gradients["bias"], dy)
        if not c.wanted[0]:
            return [None]
        dx = c.new((inputs,))
        calls.gemm(c.b, n, inputs, outputs, dx, dy, c.weights["weight"], trans_b=True)
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.dense(r.x[0], r.weights["weight"], r.weights.get("bias"))

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        dx, dw, db = reference.dense_backward(dy, r.x[0], r.weights["weight"])
        return [dx], {"weight": dw, "bias": db}


@dataclass
class MaxPool2D(Operator):
    """Maxima of windows. Fusion may add a rectifier."""

    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)
    ceil_mode: bool = False
    rectifier: "Activation | None" = None

    def _geometry(self, n: int, x: Shape) -> shapes.Pool2D:
        g = shapes.pool2d("max_pool2d", (n, *x), self.kernel_size, **self._options())
        shapes.check_plane("max_pool2d", g.x_shape)
        return g

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "ceil_mode": self.ceil_mode,
        }

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return self._geometry(1, inputs[0]).y_shape[1:]

    def lower(self, c: Lowering) -> Buffer:
        g = self._geometry(c.n, c.node.inputs[0].shape)
        y, argmax = c.new(g.y_shape[1:]), c.b.arena(math.prod(g.y_shape)) if c.differentiated else None
        c.saved = g, argmax
        calls.pool2d(c.b, "max_pool2d", g, [y, argmax, c.x[0]], epilogue=_epilogue(self.rectifier))
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        g, argmax = c.saved
        dy = _before_rectifier(c, self.rectifier, dy)
        dx = c.new(g.x_shape[1:])
        calls.pool2d(c.b, "max_pool2d_backward", g, [dx, dy, argmax])
        return [dx]

    def run(self, r: Run) -> Lists:
        y, r.saved = reference.max_pool2d(r.x[0], self.kernel_size, **self._options())
        return y

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        shape = (len(r.x[0]), *r.node.inputs[0].shape)
        return [reference.max_pool2d_backward(dy, r.saved, shape)], {}


@dataclass
class AvgPool2D(Operator):
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)
    ceil_mode: bool = False
    count_include_pad: bool = True

    def _options(self) -> dict[str, Any]:
        return {
            "stride": self.stride,
            "padding": self.padding,
            "ceil_mode": self.ceil_mode,
            "count_include_pad": self.count_include_pad,
        }

    def _geometry(self, n: int, x: Shape) -> shapes.Pool2D:
        return shapes.pool2d("avg_pool2d", (n, *x), self.kernel_size, **self._options())

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return self._geometry(1, inputs[0]).y_shape[1:]

    def lower(self, c: Lowering) -> Buffer:
        c.saved = g = self._geometry(c.n, c.node.inputs[0].shape)
        y = c.new(g.y_shape[1:])
        calls.pool2d(c.b, "avg_pool2d", g, [y, c.x[0]])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.saved.x_shape[1:])
        calls.pool2d(c.b, "avg_pool2d_backward", c.saved, [dx, dy])
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.avg_pool2d(r.x[0], self.kernel_size, **self._options())

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        shape = (len(r.x[0]), *r.node.inputs[0].shape)
        return [reference.avg_pool2d_backward(dy, shape, self.kernel_size, **self._options())], {}


@dataclass
class GlobalAvgPool2D(Operator):
    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return shapes.global_pool2d("global_avg_pool2d", (1, *inputs[0]))[1:]

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.global_pool2d(c.b, "global_avg_pool2d", c.shape(), [y, c.x[0]])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.inputs[0].shape)
        calls.global_pool2d(c.b, "global_avg_pool2d_backward", c.shape(), [dx, dy])
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.global_avg_pool2d(r.x[0])

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [reference.global_avg_pool2d_backward(dy, (len(dy), *r.node.inputs[0].shape))], {}


@dataclass
class AdaptiveAvgPool2D(Operator):
    """Averages of windows that share an image out evenly; a side None stays as it is."""

    output_size: tuple[int | None, int | None]

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        x = (1, *inputs[0])
        size = shapes.adaptive_pool2d("adaptive_avg_pool2d", x, self.output_size)
        return inputs[0][0], *size

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.resize(c.b, "adaptive_avg_pool2d", c.shape(), c.node.output.shape[1:], [y, c.x[0]])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.inputs[0].shape)
        calls.resize(c.b, "adaptive_avg_pool2d_backward", c.shape(), c.node.output.shape[1:], [dx, dy])
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.adaptive_avg_pool2d(r.x[0], self.output_size)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        shape = (len(dy), *r.node.inputs[0].shape)
        return [reference.adaptive_avg_pool2d_backward(dy, shape, self.output_size)], {}


@dataclass
class UpSample2D(Operator):
    """Images `scale` times as high and wide; mode nearest or bilinear."""

    scale: tuple[int, int]
    mode: str = "nearest"

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return inputs[0][0], *shapes.upsample2d("upsample2d", (1, *inputs[0]), self.scale, self.mode)

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.resize(c.b, "upsample2d", c.shape(), c.node.output.shape[1:], [y, c.x[0]], self.mode)
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.inputs[0].shape)
        calls.resize(c.b, "upsample2d_backward", c.shape(), c.node.output.shape[1:], [dx, dy], self.mode)
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.upsample2d(r.x[0], self.scale, self.mode)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [reference.upsample2d_backward(dy, self.scale, self.mode)], {}


@dataclass
class ZeroPad2D(Operator):
    """Images with rows and columns of zeros around them."""

    padding: tuple[tuple[int, int], tuple[int, int]]

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return inputs[0][0], *shapes.zero_pad2d("zero_pad2d", (1, *inputs[0]), self.padding)

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.pad2d(c.b, c.shape(), (*self.padding[0], *self.padding[1]), y, c.x[0])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.inputs[0].shape)
        (top, bottom), (left, right) = self.padding
        calls.pad2d(c.b, (c.n, *c.node.output.shape), (-top, -bottom, -left, -right), dx, dy)
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.zero_pad2d(r.x[0], self.padding)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [reference.zero_pad2d_backward(dy, self.padding)], {}


@dataclass
class Reshape(Operator):
    """(N, ...) to (N, *shape), the elements in (C, H, W) order, whatever the order in memory; a size may be -1."""

    shape: Shape

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return shapes.reshape("reshape", inputs[0], self.shape)

    def _lower(self, c: Lowering, x: Buffer, source: Shape, target: Shape) -> Buffer:
        return _from_planes(c, target, _to_planes(c, source, x))

    def lower(self, c: Lowering) -> Buffer:
        return self._lower(c, c.x[0], c.node.inputs[0].shape, c.node.output.shape)

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        return [self._lower(c, dy, c.node.output.shape, c.node.inputs[0].shape)]

    def run(self, r: Run) -> Lists:
        return [lists.reshape(lists.flatten(sample), r.node.output.shape) for sample in r.x[0]]

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [[lists.reshape(lists.flatten(sample), r.node.inputs[0].shape) for sample in dy]], {}


@dataclass
class Flatten(Reshape):
    """(C, H, W) to (C * H * W,)."""

    shape: Shape = (-1,)


@dataclass
class Slice(Operator):
    """Some columns of (all,), from `first` on, as a tensor of `shape`; of rows that hold several inputs."""

    first: int
    shape: Shape

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return self.shape

    def _row(self, c: Lowering) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """(rows of the slice as images of one row, the pads that make them as long as they were)."""
        size, total = math.prod(self.shape), c.node.inputs[0].shape[0]
        return (c.n, 1, 1, size), (0, 0, self.first, total - self.first - size)

    def lower(self, c: Lowering) -> Buffer:
        _, pads = self._row(c)
        row = c.new(self.shape)
        calls.pad2d(c.b, (c.n, 1, 1, c.node.inputs[0].shape[0]), tuple(-pad for pad in pads), row, c.x[0])
        return _from_planes(c, self.shape, row)

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.inputs[0].shape)
        calls.pad2d(c.b, *self._row(c), dx, _to_planes(c, self.shape, dy))
        return [dx]

    def run(self, r: Run) -> Lists:
        end = self.first + math.prod(self.shape)
        return [lists.reshape(row[self.first : end], self.shape) for row in r.x[0]]

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        rest = r.node.inputs[0].shape[0] - self.first - math.prod(self.shape)
        return [[[0.0] * self.first + lists.flatten(sample) + [0.0] * rest for sample in dy]], {}


def _transposes(shape: Shape) -> bool:
    return len(shape) == 3 and shape[0] > 1 and shape[1] * shape[2] > 1


def _to_planes(c: Lowering, shape: Shape, x: Buffer) -> Buffer:
    """The elements of x in the order of `shape`, whose images lie channels-last in x."""
    if not _transposes(shape):
        return x
    y = c.new(shape)
    calls.transpose(c.b, c.n, shape[1] * shape[2], shape[0], y, x)
    return y


def _from_planes(c: Lowering, shape: Shape, x: Buffer) -> Buffer:
    """The reverse of `_to_planes`."""
    if not _transposes(shape):
        return x
    y = c.new(shape)
    calls.transpose(c.b, c.n, shape[0], shape[1] * shape[2], y, x)
    return y


@dataclass
class Activation(Operator):
    """One of shapes.ACTIVATION_OPTIONS."""

    name: str
    alpha: float = 0.0

    def _options(self) -> dict[str, float]:
        return dict.fromkeys(shapes.ACTIVATION_OPTIONS[self.name], self.alpha)

    def epilogue(self) -> calls.Epilogue | None:
        """What another kernel does to its results to be this activation as well, if it can."""
        return calls.rectifier(self.name, self.alpha)

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.activation(c.b, c.size(), self.name, self.alpha, y, c.x[0])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.output.shape)
        calls.activation_backward(c.b, c.size(), self.name, self.alpha, dx, dy, c.x[0], c.output)
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.activation(r.x[0], self.name, **self._options())

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [reference.activation_backward(dy, r.x[0], self.name, **self._options())], {}


@dataclass
class Softmax(Operator):
    """Over the last axis of (N, classes)."""

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        if len(inputs[0]) != 1:
            raise ValueError(f"[softmax] the input must be (N, classes), got {('N', *inputs[0])}; flatten it first")
        return inputs[0]

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.by_rows(c.b, "softmax", *c.shape(), [y, c.x[0]])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        dx = c.new(c.node.output.shape)
        calls.by_rows(c.b, "softmax_backward", *c.shape(), [dx, dy, c.output])
        return [dx]

    def run(self, r: Run) -> Lists:
        return reference.softmax(r.x[0])

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [reference.softmax_backward(dy, r.output)], {}


@dataclass
class Dropout(Operator):
    """Zeroes a share `rate` of the elements (spatial: channels) in training and scales the rest by 1 / (1 - rate)."""

    rate: float
    spatial: bool = False

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        if self.spatial and len(inputs[0]) not in (1, 3):
            raise ValueError(f"[dropout] the input must be (N, C) or (N, C, H, W) if spatial, got {('N', *inputs[0])}")
        return inputs[0]

    def _active(self, c: Lowering | Run) -> bool:
        return c.training and self.rate > 0

    def _lower(self, c: Lowering, x: Buffer) -> Buffer:
        if not self._active(c):
            return x
        y = c.new(c.node.output.shape)
        calls.dropout(c.b, c.shape(), self.rate, self.spatial, c.index, y, x, c.b.external("dropout_state"))
        return y

    def lower(self, c: Lowering) -> Buffer:
        return self._lower(c, c.x[0])

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        return [self._lower(c, dy)]

    def _run(self, r: Run, x: Lists) -> Lists:
        if not self._active(r):
            return x
        return reference.dropout(x, self.rate, seed=r.seed, step=r.step, entry=r.index, spatial=self.spatial)

    def run(self, r: Run) -> Lists:
        return self._run(r, r.x[0])

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [self._run(r, dy)], {}


@dataclass
class BatchNorm(Operator):
    """Parameters gamma, beta, running_mean, running_var, each (C,). Fusion may add a second input, which is added to
    the result, and a rectifier of the sum."""

    momentum: float = 0.9
    eps: float = 1e-5
    rectifier: "Activation | None" = None

    adds_gradients: ClassVar[bool] = True

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        shapes.batch_norm("batch_norm", (1, *inputs[0]), parameters)
        return inputs[0]

    def _options(self, c: Lowering) -> dict[str, Any]:
        epilogue = _epilogue(self.rectifier)
        return {"training": c.training, "eps": self.eps, "momentum": self.momentum, "epilogue": epilogue}

    def lower(self, c: Lowering) -> Buffer:
        rows, columns = shapes.batch_norm("batch_norm", c.shape(), {})
        y, rstd = c.new(c.node.output.shape), c.b.arena(columns)
        measured = c.moments.get(c.node.inputs[0])
        mean, variance = measured or (c.b.arena(columns), c.b.arena(columns))
        c.saved = rows, columns, mean, rstd
        running = [c.weights["running_mean"], c.weights["running_var"]]
        residual = c.x[1] if len(c.x) > 1 else None
        args = [y, mean, rstd, variance, c.x[0], c.weights["gamma"], c.weights["beta"], *running, residual]
        options = self._options(c) | {"measured": int(measured is not None)}
        calls.batch_norm(c.b, "batch_norm", rows, columns, args, **options)
        if c.training:
            args = [*running, mean, variance]
            c.later.append(lambda: calls.running_statistics(c.b, columns, self.momentum, args))
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        rows, columns, mean, rstd = c.saved
        dx = c.new(c.node.inputs[0].shape)
        dgamma, dbeta = (c.gradients.get(name) or c.b.arena(columns) for name in ("gamma", "beta"))
        changed = self.rectifier is not None or c.second_dy is not None
        of_residual = c.new(c.node.output.shape) if changed and any(c.wanted[1:]) else None
        args = [dx, dgamma, dbeta, of_residual, dy, c.second_dy, c.output if self.rectifier else None]
        args += [c.x[0], mean, rstd, c.weights["gamma"]]
        calls.batch_norm(c.b, "batch_norm_backward", rows, columns, args, **self._options(c))
        return [dx, of_residual or dy][: len(c.x)]

    def run(self, r: Run) -> Lists:
        names = ("gamma", "beta", "running_mean", "running_var")
        y, r.saved = reference.batch_norm(
            r.x[0], *(r.weights[n] for n in names), training=r.training, momentum=self.momentum, eps=self.eps
        )
        return y

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        dx, dgamma, dbeta = reference.batch_norm_backward(dy, r.saved)
        return [dx], {"gamma": dgamma, "beta": dbeta}


@dataclass
class Add(Operator):
    """The sum of two tensors of one shape."""

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        if inputs[0] != inputs[1]:
            raise ValueError(f"[add] the shapes differ: {inputs[0]} and {inputs[1]}, without the batch axis")
        return inputs[0]

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.add(c.b, c.size(), y, *c.x)
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        return [dy, dy]

    def run(self, r: Run) -> Lists:
        return reference.add(*r.x)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return [dy, dy], {}


@dataclass
class Concatenate(Operator):
    """The channels of images, or the features of rows, of several tensors one after another."""

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        return shapes.concatenate("concatenate", inputs)

    def _parts(self, c: Lowering) -> tuple[int, int, list[tuple[int, int]]]:
        """(rows, columns in all, (first column, columns) of each input) of the matrices that are joined."""
        shape = c.node.output.shape
        pixels = math.prod(shape[1:]) if len(shape) == 3 else 1  # lie in rows of channels
        columns = [math.prod(v.shape) // pixels for v in c.node.inputs]
        parts = [(sum(columns[:i]), count) for i, count in enumerate(columns)]
        return c.n * pixels, sum(columns), parts

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        rows, total, parts = self._parts(c)
        for x, (first, columns) in zip(c.x, parts, strict=True):
            calls.copy_columns(c.b, rows, columns, y, (first, total), x, (0, columns))
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        rows, total, parts = self._parts(c)
        gradients: list[Buffer | None] = []
        for v, wanted, (first, columns) in zip(c.node.inputs, c.wanted, parts, strict=True):
            gradients.append(c.new(v.shape) if wanted else None)
            if wanted:
                calls.copy_columns(c.b, rows, columns, gradients[-1], (0, columns), dy, (first, total))
        return gradients

    def run(self, r: Run) -> Lists:
        return reference.concatenate(r.x)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return reference.concatenate_backward(dy, [v.shape[0] for v in r.node.inputs]), {}


@dataclass
class ScaleChannels(Operator):
    """Images (C, H, W) times one factor a channel, (C,)."""

    def output_shape(self, inputs: list[Shape], parameters: dict[str, Shape]) -> Shape:
        shapes.scale_channels("scale_channels", (1, *inputs[0]), (1, *inputs[1]))
        return inputs[0]

    def lower(self, c: Lowering) -> Buffer:
        y = c.new(c.node.output.shape)
        calls.global_pool2d(c.b, "scale_channels", c.shape(), [y, *c.x])
        return y

    def lower_backward(self, c: Lowering, dy: Buffer) -> list[Buffer | None]:
        gradients = [c.new(v.shape) for v in c.node.inputs]
        calls.global_pool2d(c.b, "scale_channels_backward", c.shape(), [*gradients, dy, *c.x])
        return gradients

    def run(self, r: Run) -> Lists:
        return reference.scale_channels(*r.x)

    def run_backward(self, r: Run, dy: Lists) -> tuple[list[Lists], dict[str, Lists]]:
        return list(reference.scale_channels_backward(dy, *r.x)), {}

"""Output shapes and every check of what a user passes in.

One function per family computes the geometry of an operation; the C kernels' descriptors, the layers, the
plan and the pure-Python reference all use the same numbers. The C code trusts its caller, so nothing
reaches it that did not pass through here. Messages name the operation, the argument, what it got and what
was expected.
"""

import math
import operator
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, wraps
from typing import Any, TypeVar

import numpy as np

from pycnn._kernels import ffi

INT_MAX = 2**31 - 1
UNSIGNED = {np.dtype(f"i{size}"): np.dtype(f"u{size}") for size in (1, 2, 4, 8)}
FLOAT32, INT64 = np.dtype(np.float32), np.dtype(np.int64)
FLOAT32_MAX = float(np.finfo(np.float32).max)
LINE = 64  # bytes
ALIGNED_BYTES = 4096  # arrays from here on begin at a cache line
# Bytes of one array; far beyond any machine's memory, far below an overflow of int64 address arithmetic.
BYTES_MAX = 2**46


def integer(op: str, name: str, value: Any, minimum: int = 0) -> int:
    """`value` as an int in minimum..2^31-1; a bool or a float is a TypeError."""
    if type(value) is int and minimum <= value <= INT_MAX:
        return value
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"[{op}] {name} must be an integer, got {value!r}")
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"[{op}] {name} must be an integer, got {value!r}") from None
    if not minimum <= number <= INT_MAX:
        raise ValueError(f"[{op}] {name} must be in {minimum}..{INT_MAX}, got {number}")
    return number


def pair(op: str, name: str, value: Any, minimum: int = 0) -> tuple[int, int]:
    """(height, width) from an int or two ints."""
    if _is_sequence(value):
        if len(value) != 2:
            raise ValueError(f"[{op}] {name} must be an integer or two, got {value!r}")
        return integer(op, name, value[0], minimum), integer(op, name, value[1], minimum)
    number = integer(op, name, value, minimum)
    return number, number


def padding4(op: str, value: Any) -> tuple[int, int, int, int]:
    """(top, bottom, left, right) from an int, (height, width) or ((top, bottom), (left, right))."""
    if _is_sequence(value) and len(value) == 2 and all(_is_sequence(v) for v in value):
        return (*pair(op, "padding", value[0]), *pair(op, "padding", value[1]))
    height, width = pair(op, "padding", value)
    return height, height, width, width


def _is_sequence(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes, bytearray, memoryview))


def boolean(op: str, name: str, value: Any) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"[{op}] {name} must be True or False, got {value!r}")
    return bool(value)


def path(op: str, name: str, value: Any) -> str:
    """The name of a file; a number, which open() would take as a file descriptor, is refused."""
    try:
        return os.fsdecode(value)
    except TypeError:
        raise TypeError(f"[{op}] {name} must be the name of a file, got {value!r}") from None


def number(op: str, name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """A finite real number in low..high."""
    if isinstance(value, (bool, np.bool_, str, bytes, complex, np.complexfloating)):
        raise TypeError(f"[{op}] {name} must be a number, got {value!r}")
    try:
        result = float(value)
    except (TypeError, ValueError):
        raise TypeError(f"[{op}] {name} must be a number, got {value!r}") from None
    except OverflowError:
        raise ValueError(f"[{op}] {name} must be a finite number, got an integer beyond all floats") from None
    if not (math.isfinite(result) and low <= result <= high):
        raise ValueError(f"[{op}] {name} must be a finite number in {low:g}..{high:g}, got {value!r}")
    return result


def float32(op: str, name: str, value: Any, low: float = -FLOAT32_MAX) -> float:
    """A number that is finite in single precision as well."""
    return number(op, name, value, low, FLOAT32_MAX)


def sizes(op: str, name: str, shape: Any, rank: int | None = None) -> tuple[int, ...]:
    """A shape argument, such as `input_shape`, as a tuple of ints."""
    if not _is_sequence(shape):
        raise TypeError(f"[{op}] {name} must be a tuple of integers, got {shape!r}")
    if rank is not None and len(shape) != rank:
        raise ValueError(f"[{op}] {name} must have {rank} axes, got {tuple(shape)}")
    result = tuple(integer(op, name, s) for s in shape)
    check_size(op, name, result)
    return result


def check_size(op: str, name: str, shape: Sequence[int]) -> None:
    """Refuses a shape that no machine could hold, before anything multiplies it in C."""
    if 0 < math.prod(shape) <= INT_MAX:  # the common case, as quickly as possible
        return
    if math.prod(max(s, 1) for s in shape) * 4 > BYTES_MAX or any(s > INT_MAX for s in shape):
        raise ValueError(f"[{op}] {name} of shape {tuple(shape)} is too large")


def expect_shape(op: str, name: str, shape: Sequence[int], expected: Sequence[int]) -> None:
    if tuple(shape) != tuple(expected):
        raise ValueError(f"[{op}] {name} has shape {tuple(shape)}, expected {tuple(expected)}")


def _expect_rank(op: str, name: str, shape: Sequence[int], rank: int, axes: str) -> None:
    if len(shape) != rank:
        raise ValueError(f"[{op}] {name} must have {rank} axes {axes}, got shape {tuple(shape)}")


# ---------------------------------------------------------------------------------------- geometry

Geometry = TypeVar("Geometry", bound=Callable[..., Any])
KEPT_GEOMETRIES = 1024


def _is_plain(value: Any) -> bool:
    kind = type(value)
    return kind is int or kind is bool or value is None or (kind is tuple and set(map(type, value)) <= {int})


def _remembered(geometry: Geometry) -> Geometry:
    """Keeps a geometry for its arguments, since all the checks take longer than a small kernel.

    True and 1.0 equal 1, but must be refused where 1 is not. So the types of arguments count as well, and what is
    neither a plain number nor a tuple of plain integers is checked each time.
    """
    kept = lru_cache(KEPT_GEOMETRIES, typed=True)(geometry)

    @wraps(geometry)
    def remembered(op: str, *args: Any, **options: Any) -> Any:
        plain = all(map(_is_plain, args)) and all(map(_is_plain, options.values()))
        return (kept if plain else geometry)(op, *args, **options)

    return remembered


@dataclass(frozen=True, slots=True)
class Conv2D:
    """Sizes of a 2-D convolution; the field names are those of the C descriptor."""

    n: int
    c: int
    h: int
    w: int
    k: int
    r: int
    s: int
    oh: int
    ow: int
    stride_h: int
    stride_w: int
    pad_top: int
    pad_bottom: int
    pad_left: int
    pad_right: int
    dilation_h: int
    dilation_w: int
    groups: int

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.k, self.oh, self.ow


@dataclass(frozen=True, slots=True)
class Pool2D:
    """Sizes of a 2-D pooling; the field names are those of the C descriptor."""

    n: int
    c: int
    h: int
    w: int
    r: int
    s: int
    oh: int
    ow: int
    stride_h: int
    stride_w: int
    pad_h: int
    pad_w: int
    dilation_h: int
    dilation_w: int
    count_include_pad: int

    @property
    def x_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.h, self.w

    @property
    def y_shape(self) -> tuple[int, int, int, int]:
        return self.n, self.c, self.oh, self.ow


def conv_axis(op: str, axis: str, size: int, kernel: int, stride: int, pad: int, dilation: int) -> int:
    """floor((size + pad - dilation * (kernel - 1) - 1) / stride) + 1, refused when not positive."""
    span = size + pad - dilation * (kernel - 1) - 1
    if span < 0:
        raise ValueError(
            f"[{op}] leaves no output: {axis} {size} with padding {pad} in all is smaller than the kernel's "
            f"extent {dilation * (kernel - 1) + 1} (kernel_size {kernel}, dilation {dilation})"
        )
    return span // stride + 1


@_remembered
def conv2d(
    op: str,
    x: Sequence[int],
    w: Sequence[int],
    b: Sequence[int] | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Conv2D:
    """Geometry of a convolution of x (N, C, H, W) with w (K, C/groups, R, S) and b (K,)."""
    steps, groups = _conv_steps(op, x, w, "(K, C/groups, R, S)", stride, padding, dilation, groups)
    n, c, h, width = x
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w = steps
    k, w_c, r, s = w
    if w_c * groups != c:
        raise ValueError(f"[{op}] w has {w_c} input channels, x has {c} (groups={groups})")
    if k % groups:
        raise ValueError(f"[{op}] w has {k} filters, which groups={groups} does not divide")
    _check_bias(op, b, k)
    oh = conv_axis(op, "height", h, r, stride_h, top + bottom, dilation_h)
    ow = conv_axis(op, "width", width, s, stride_w, left + right, dilation_w)
    check_size(op, "the padded x", (max(n, 1), c, h + top + bottom, width + left + right))
    check_size(op, "the output", (max(n, 1), k, oh, ow))
    return _conv_geometry((n, c, h, width), w, (oh, ow), steps, groups)


Steps = tuple[int, ...]  # stride (2), padding (4), dilation (2)


def _conv_steps(
    op: str,
    x: Sequence[int],
    w: Sequence[int],
    w_axes: str,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> tuple[Steps, int]:
    """The options of a convolution as plain numbers, and groups; checks the sizes of x and w as well."""
    _expect_rank(op, "x", x, 4, "(N, C, H, W)")
    _expect_rank(op, "w", w, 4, w_axes)
    steps = *pair(op, "stride", stride, 1), *padding4(op, padding), *pair(op, "dilation", dilation, 1)
    groups = integer(op, "groups", groups, 1)
    if min(x[1:]) < 1:
        raise ValueError(f"[{op}] x must have at least one channel, row and column, got shape {tuple(x)}")
    if min(w) < 1:
        raise ValueError(f"[{op}] w must have no axis of size 0, got shape {tuple(w)}")
    check_size(op, "w", w)
    return steps, groups


def _check_bias(op: str, b: Sequence[int] | None, k: int) -> None:
    if b is not None and tuple(b) != (k,):
        raise ValueError(f"[{op}] b has shape {tuple(b)}, expected {(k,)}, one value a filter")


def _conv_geometry(
    x: tuple[int, int, int, int], w: Sequence[int], output: tuple[int, int], steps: Steps, groups: int
) -> Conv2D:
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w = steps
    height, width = x[2] + top + bottom, x[3] + left + right
    # A stride beyond the padded image, and the dilation of a single tap, change nothing but could overflow in C.
    strides, dilations = (
        (min(vertical, height), min(horizontal, width))
        for vertical, horizontal in ((stride_h, stride_w), (dilation_h, dilation_w))
    )
    return Conv2D(*x, w[0], w[2], w[3], *output, *strides, top, bottom, left, right, *dilations, groups)


@_remembered
def conv_transpose2d(
    op: str,
    x: Sequence[int],
    w: Sequence[int],
    b: Sequence[int] | None = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: Any = 1,
) -> Conv2D:
    """Geometry of the convolution whose transpose takes x (N, C, H, W), w (C, K/groups, R, S) and b (K,) to the output.

    So its own input is the output here, of shape `x_shape` (N, K, OH, OW), and `y_shape` is x's.
    """
    steps, groups = _conv_steps(op, x, w, "(C, K/groups, R, S)", stride, padding, dilation, groups)
    n, c, h, width = x
    stride_h, stride_w, top, bottom, left, right, dilation_h, dilation_w = steps
    extra = pair(op, "output_padding", output_padding)
    if w[0] != c:
        raise ValueError(f"[{op}] w has {w[0]} input channels, x has {c}")
    if c % groups:
        raise ValueError(f"[{op}] x has {c} channels, which groups={groups} does not divide")
    k = w[1] * groups
    _check_bias(op, b, k)
    sizes = []
    for axis, size, kernel, step, pad, gap, more in (
        ("height", h, w[2], stride_h, top + bottom, dilation_h, extra[0]),
        ("width", width, w[3], stride_w, left + right, dilation_w, extra[1]),
    ):
        if more >= max(step, gap):
            raise ValueError(
                f"[{op}] output_padding must be smaller than stride or dilation, got {more} for the {axis} "
                f"with stride {step}, dilation {gap}"
            )
        sizes.append((size - 1) * step - pad + gap * (kernel - 1) + more + 1)
        if sizes[-1] < 1:
            raise ValueError(f"[{op}] leaves no output: the {axis} {size} would become {sizes[-1]} with padding {pad}")
    oh, ow = sizes
    check_size(op, "the padded output", (max(n, 1), k, oh + top + bottom, ow + left + right))
    return _conv_geometry((n, k, oh, ow), w, (h, width), steps, groups)


def same_padding(size: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """(before, after) so that the output is ceil(size / stride); the odd one comes after."""
    total = max((-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    return total // 2, total - total // 2


def pool_axis(op: str, axis: str, size: int, kernel: int, stride: int, pad: int, dilation: int, ceil_mode: bool) -> int:
    """Output size of a pooling; ceil_mode adds a window that reaches past the end, unless it begins there."""
    if not ceil_mode:
        return conv_axis(op, axis, size, kernel, stride, 2 * pad, dilation)
    out = -(-(size + 2 * pad - dilation * (kernel - 1) - 1) // stride) + 1
    if (out - 1) * stride >= size + pad:
        out -= 1
    if out < 1:
        raise ValueError(f"[{op}] leaves no output: {axis} {size} with padding {pad} for a window of {kernel}")
    return out


@_remembered
def pool2d(
    op: str,
    x: Sequence[int],
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: Any = False,
    count_include_pad: Any = True,
) -> Pool2D:
    """Geometry of a pooling of x (N, C, H, W); stride None is the kernel size."""
    _expect_rank(op, "x", x, 4, "(N, C, H, W)")
    r, s = pair(op, "kernel_size", kernel_size, 1)
    stride_h, stride_w = (r, s) if stride is None else pair(op, "stride", stride, 1)
    pad_h, pad_w = pair(op, "padding", padding)
    dilation_h, dilation_w = pair(op, "dilation", dilation, 1)
    ceil_mode = boolean(op, "ceil_mode", ceil_mode)
    include = boolean(op, "count_include_pad", count_include_pad)
    n, c, h, w = x
    if min(c, h, w) < 1:
        raise ValueError(f"[{op}] x must have at least one channel, row and column, got shape {tuple(x)}")
    if 2 * pad_h > r or 2 * pad_w > s:
        raise ValueError(
            f"[{op}] padding must be at most half of kernel_size, got padding {(pad_h, pad_w)} for {(r, s)}"
        )
    oh = pool_axis(op, "height", h, r, stride_h, pad_h, dilation_h, ceil_mode)
    ow = pool_axis(op, "width", w, s, stride_w, pad_w, dilation_w, ceil_mode)
    stride_h, stride_w = min(stride_h, h + 2 * pad_h + r), min(stride_w, w + 2 * pad_w + s)  # as in conv2d
    check_size(op, "x", (max(n, 1), c, h + 2 * pad_h, w + 2 * pad_w))
    for axis, size, out, pad, step, gap in (
        ("height", h, oh, pad_h, stride_h, dilation_h),
        ("width", w, ow, pad_w, stride_w, dilation_w),
    ):
        # The first tap inside the input of a window that starts at p < 0 is at p modulo the dilation.
        starts = range(-pad, min(0, -pad + out * step), step)
        if gap > size and any(p % gap >= size for p in starts):
            raise ValueError(f"[{op}] leaves a window without input: {axis} {size}, padding {pad}, dilation {gap}")
    return Pool2D(n, c, h, w, r, s, oh, ow, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w, int(include))


def global_pool2d(op: str, x: Sequence[int]) -> tuple[int, int]:
    """(N, C) of x (N, C, H, W)."""
    _expect_rank(op, "x", x, 4, "(N, C, H, W)")
    if min(x[1:]) < 1:
        raise ValueError(f"[{op}] x must have at least one channel, row and column, got shape {tuple(x)}")
    return x[0], x[1]


def adaptive_pool2d(op: str, x: Sequence[int], output_size: Any) -> tuple[int, int]:
    """(OH, OW) of a pooling of x (N, C, H, W) to `output_size`, in which None is x's own size."""
    global_pool2d(op, x)
    both = tuple(output_size) if _is_sequence(output_size) else (output_size, output_size)
    if len(both) != 2:
        raise ValueError(f"[{op}] output_size must be an integer or two, got {output_size!r}")
    oh, ow = (
        size if wanted is None else integer(op, "output_size", wanted, 1)
        for size, wanted in zip(x[2:], both, strict=True)
    )
    check_size(op, "the output", (max(x[0], 1), x[1], oh, ow))
    return oh, ow


def zero_pad2d(op: str, x: Sequence[int], padding: Any) -> tuple[int, int]:
    """(OH, OW) of x (N, C, H, W) with `padding` zeros around it."""
    global_pool2d(op, x)
    top, bottom, left, right = padding4(op, padding)
    oh, ow = x[2] + top + bottom, x[3] + left + right
    check_size(op, "the output", (max(x[0], 1), x[1], oh, ow))
    return oh, ow


UPSAMPLING_MODES = ("nearest", "bilinear")


def upsample2d(op: str, x: Sequence[int], scale: Any, mode: Any) -> tuple[int, int]:
    """(OH, OW) of x (N, C, H, W), each side `scale` times as long."""
    global_pool2d(op, x)
    if mode not in UPSAMPLING_MODES:
        raise ValueError(f"[{op}] mode must be one of {', '.join(UPSAMPLING_MODES)}, got {mode!r}")
    down, across = pair(op, "scale", scale, 1)
    oh, ow = x[2] * down, x[3] * across
    check_size(op, "the output", (max(x[0], 1), x[1], oh, ow))
    return oh, ow


def reshape(op: str, x: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """`shape` for the elements of a sample of shape x, both without the batch axis; the size -1 is what remains."""
    size, known = math.prod(x), math.prod(s for s in shape if s != -1)
    result = tuple(size // max(known, 1) if s == -1 else s for s in shape)
    if math.prod(result) != size:
        raise ValueError(f"[{op}] {('N', *x)} does not fit into shape {('N', *shape)}")
    return result


def concatenate(op: str, inputs: Sequence[Sequence[int]]) -> tuple[int, ...]:
    """The inputs' shapes joined along the channels, the first axis; all without the batch axis."""
    first = inputs[0]
    for shape in inputs[1:]:
        if len(shape) != len(first) or tuple(shape[1:]) != tuple(first[1:]):
            raise ValueError(f"[{op}] the inputs differ in more than channels: {('N', *first)} and {('N', *shape)}")
    return sum(shape[0] for shape in inputs), *first[1:]


def scale_channels(op: str, x: Sequence[int], scale: Sequence[int]) -> None:
    """Checks that scale is (N, C) of x (N, C, H, W)."""
    expect_shape(op, "scale", scale, global_pool2d(op, x))


def gemm(op: str, a: Sequence[int], b: Sequence[int], trans_a: Any, trans_b: Any) -> tuple[int, int, int]:
    """(m, n, k) of op(a) (m, k) times op(b) (k, n)."""
    _expect_rank(op, "a", a, 2, "(rows, columns)")
    _expect_rank(op, "b", b, 2, "(rows, columns)")
    m, k = reversed(a) if boolean(op, "trans_a", trans_a) else a
    b_k, n = reversed(b) if boolean(op, "trans_b", trans_b) else b
    if k != b_k:
        raise ValueError(
            f"[{op}] the inner sizes differ: a is {tuple(a)} (trans_a={trans_a}), b is {tuple(b)} (trans_b={trans_b})"
        )
    check_size(op, "the output", (m, n))
    return m, n, k


def dense(op: str, x: Sequence[int], w: Sequence[int], b: Sequence[int] | None = None) -> tuple[int, int, int]:
    """(n, inputs, outputs) of x (N, in), w (in, out) and b (out,)."""
    _expect_rank(op, "x", x, 2, "(N, in)")
    _expect_rank(op, "w", w, 2, "(in, out)")
    if min(w) < 1:
        raise ValueError(f"[{op}] w must have no axis of size 0, got shape {tuple(w)}")
    if x[1] != w[0]:
        raise ValueError(f"[{op}] w has {w[0]} inputs, x has {x[1]}")
    if b is not None and tuple(b) != (w[1],):
        raise ValueError(f"[{op}] b has shape {tuple(b)}, expected {(w[1],)}")
    check_size(op, "the output", (max(x[0], 1), w[1]))
    return x[0], w[0], w[1]


def batch_norm(op: str, x: Sequence[int], vectors: dict[str, Sequence[int]]) -> tuple[int, int]:
    """(rows, channels): x is (N, C) or (N, C, H, W); each of `vectors` must have shape (C,)."""
    if len(x) not in (2, 4):
        raise ValueError(f"[{op}] x must have 2 axes (N, C) or 4 axes (N, C, H, W), got shape {tuple(x)}")
    if min(x[1:]) < 1:
        raise ValueError(f"[{op}] x must have no axis of size 0 but the batch, got shape {tuple(x)}")
    for name, shape in vectors.items():
        if tuple(shape) != (x[1],):
            raise ValueError(f"[{op}] {name} has shape {tuple(shape)}, expected {(x[1],)}, one value a channel")
    return math.prod(x) // x[1], x[1]


def logits(op: str, shape: Sequence[int]) -> tuple[int, int]:
    """(N, classes) of logits."""
    _expect_rank(op, "logits", shape, 2, "(N, classes)")
    if shape[1] < 1:
        raise ValueError(f"[{op}] logits must have at least one class, got shape {tuple(shape)}")
    return shape[0], shape[1]


# ------------------------------------------------------------------------------ activation options

ACTIVATION_OPTIONS = {
    "relu": {},
    "leaky_relu": {"alpha": 0.01},
    "sigmoid": {},
    "tanh": {},
    "elu": {"alpha": 1.0},
    "gelu": {},
    "silu": {},
    "hard_swish": {},
}


def activation(op: str, name: Any, options: dict[str, Any]) -> tuple[str, float]:
    """(name, alpha); alpha is 0 where the function has none."""
    if not isinstance(name, str):
        raise TypeError(f"[{op}] name must be a string, got {name!r}")
    if name not in ACTIVATION_OPTIONS:
        raise ValueError(f"[{op}] name must be one of {', '.join(ACTIVATION_OPTIONS)}, got {name!r}")
    known = ACTIVATION_OPTIONS[name]
    for option in options:
        if option not in known:
            raise TypeError(f"[{op}] {name} has no option {option!r}; it takes {', '.join(known) or 'none'}")
    return name, float32(op, "alpha", options.get("alpha", known.get("alpha", 0.0)))


# ------------------------------------------------------------------------------------------ arrays


def array(op: str, name: str, value: Any, rank: int | None = None) -> np.ndarray:
    """`value` as a float32 array: float and integer arrays and nested lists are converted.

    Channels-last memory is kept where the array is already float32; see `layout`.
    """
    if type(value) is np.ndarray:
        flags = value.flags
        usual = value.dtype is FLOAT32 and flags.c_contiguous and flags.aligned and value.size
        if usual and (rank is None or value.ndim == rank):
            return value  # by the shortest way
    else:
        if value is None or isinstance(value, (str, bytes, dict, set)):
            raise TypeError(f"[{op}] {name} must be an array of numbers, got {type(value).__name__}")
        value = _as_array(op, name, value)
    if value.dtype != FLOAT32:
        if value.dtype.kind not in "fiub":
            raise TypeError(f"[{op}] {name} must hold real numbers, got dtype {value.dtype}")
        check_size(op, name, value.shape)
        with np.errstate(over="ignore"):
            value = value.astype(np.float32)
    if not (value.dtype.isnative and value.flags.aligned):
        value = np.array(value, dtype=np.float32)
    if rank is not None and value.ndim != rank:
        raise ValueError(f"[{op}] {name} must have {rank} axes, got shape {value.shape}")
    check_size(op, name, value.shape)
    return value


def _as_array(op: str, name: str, value: Any) -> np.ndarray:
    """`value` as some array; nested lists that are not regular are a ValueError."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError, RuntimeError) as error:
        raise ValueError(f"[{op}] {name} is not a regular array of numbers: {error}") from None


def empty(op: str, shape: int | tuple[int, ...], dtype: Any = np.float32) -> np.ndarray:
    """A new array, or a ValueError where the machine has not the memory.

    But for small ones it begins at a cache line: vectors that cross two cost a GEMM up to a fifth of its speed.
    """
    try:
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize if isinstance(shape, tuple) else 0
        if nbytes < ALIGNED_BYTES:
            return np.empty(shape, dtype)
        memory = np.empty(nbytes + LINE, np.uint8)
        start = -int(ffi.cast("intptr_t", ffi.from_buffer(memory))) % LINE
        return np.ndarray(shape, dtype, memory, start)
    except MemoryError:
        raise ValueError(f"[{op}] an array of shape {shape} does not fit into memory") from None


def layout(value: np.ndarray) -> tuple[np.ndarray, bool]:
    """(array whose memory the kernels read, whether that memory is channels-last).

    A contiguous array is taken as it is, also one that is both; a channels-last one as its NHWC transpose;
    any other is copied to contiguous memory.
    """
    if value.flags.c_contiguous:
        return value, False
    if value.ndim == 4:
        nhwc = value.transpose(0, 2, 3, 1)
        if nhwc.flags.c_contiguous:
            return nhwc, True
    try:
        return np.ascontiguousarray(value), False
    except MemoryError:
        raise ValueError(f"a contiguous copy of an array of shape {value.shape} does not fit into memory") from None


def class_labels(op: str, value: Any, n: int, classes: int) -> tuple[np.ndarray | None, np.ndarray | None]:
    """(int32 indices (N,), None) or (None, float32 probabilities (N, classes)).

    Labels are integers 0..classes-1 of shape (N,), or one row of probabilities a sample (one-hot).
    """
    if type(value) is np.ndarray and value.dtype is INT64 and value.shape == (n,) and n and _all_below(value, classes):
        return value.astype(np.int32), None  # by the shortest way
    labels = _as_array(op, "labels", value)
    if labels.dtype.kind not in "fiub":
        raise TypeError(f"[{op}] labels must be numbers, got dtype {labels.dtype}")
    if labels.ndim == 2 and labels.shape == (n, classes) and not (classes == 1 and labels.dtype.kind in "iu"):
        return None, probabilities(op, labels)
    if labels.shape not in ((n,), (n, 1)):
        raise ValueError(
            f"[{op}] labels have shape {labels.shape}, expected {(n,)} classes or {(n, classes)} one-hot rows"
        )
    labels = labels.reshape(n)
    if labels.dtype.kind == "f" and not np.array_equal(labels, np.floor(labels)):
        raise ValueError(f"[{op}] labels must be whole numbers, got NaN or a fraction")
    if n and not _all_below(labels, classes):
        raise ValueError(f"[{op}] labels must be in 0..{classes - 1}, got {labels.min()}..{labels.max()}")
    return labels.astype(np.int32), None


def _all_below(numbers: np.ndarray, end: int) -> bool:
    """Whether all are in 0..end-1; a negative integer is a large one without its sign, so one pass tells."""
    if numbers.size <= 32:
        few = numbers.ravel().tolist()
        return min(few) >= 0 and max(few) < end
    unsigned = UNSIGNED.get(numbers.dtype)
    if unsigned is not None:
        return int(np.maximum.reduce(numbers.view(unsigned), None)) < min(end, 2 ** (8 * numbers.itemsize - 1))
    return bool(numbers.min() >= 0 and numbers.max() < end)


def probabilities(op: str, labels: np.ndarray) -> np.ndarray:
    """Rows of target probabilities as float32: each 0..1, each row's sum 1."""
    rows = np.ascontiguousarray(labels, dtype=np.float32)
    if not np.all((rows >= 0) & (rows <= 1)):
        raise ValueError(f"[{op}] one-hot labels must be in 0..1, got NaN or a value outside")
    if rows.size and not np.allclose(rows.sum(axis=1), 1.0, atol=1e-3):
        raise ValueError(f"[{op}] each row of one-hot labels must sum to 1")
    return rows


def check_plane(op: str, x: Sequence[int]) -> None:
    """Refuses images whose pixels an int32 argmax cannot number."""
    if x[2] * x[3] > INT_MAX:
        raise ValueError(
            f"[{op}] a plane of {x[2]} x {x[3]} has more than {INT_MAX} pixels, too many for an int32 argmax"
        )


def max_pool_indices(op: str, value: Any, dy: Sequence[int], x: Sequence[int]) -> np.ndarray:
    """argmax as int32, of dy's shape, each in 0..H*W-1 of the input plane."""
    indices = _as_array(op, "argmax", value)
    if indices.dtype.kind not in "iu":
        raise TypeError(f"[{op}] argmax must hold integers, got dtype {indices.dtype}")
    expect_shape(op, "argmax", indices.shape, dy)
    expect_shape(op, "dy", (dy[0], dy[1]), (x[0], x[1]))
    plane = x[2] * x[3]
    check_plane(op, x)
    if indices.size and not _all_below(indices, plane):
        raise ValueError(
            f"[{op}] argmax must be in 0..{plane - 1}, a place in its plane, got {indices.min()}..{indices.max()}"
        )
    return indices if indices.dtype == np.int32 and indices.flags.aligned else indices.astype(np.int32)

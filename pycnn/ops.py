"""Functions on NumPy arrays, each one the C kernel of the same name.

Images are (N, C, H, W), float32. Contiguous arrays and channels-last ones (shape (N, C, H, W), memory order of
NHWC) are taken without a copy, and the result has the layout of x (of dy, where there is no x). Other real arrays and
nested lists are converted. Wrong arguments raise ValueError or TypeError.
"""

import math
from collections.abc import Callable
from functools import lru_cache, wraps
from typing import Any

import numpy as np

from pycnn import calls, native, shapes
from pycnn.plan import Buffer, Plan, PlanBuilder, run_once

Array = np.ndarray
CACHED_PLANS = 256


def _plan(build: Callable[..., None]) -> Callable[..., Plan]:
    """Makes a plan builder's function return the finished plan, kept for the arguments and the settings."""

    @lru_cache(maxsize=CACHED_PLANS)
    def cached(settings: tuple[int, bool], *args: Any) -> Plan:
        builder = PlanBuilder()
        build(builder, *args)
        return builder.finish()

    @wraps(build)
    def plan(*args: Any) -> Plan:
        return cached(native.plan_settings(), *args)

    return plan


def _image(op: str, name: str, value: Any) -> tuple[Array, Array, bool]:
    """(the array, its memory for the kernels, whether that is channels-last)."""
    image = shapes.array(op, name, value, 4)
    memory, last = shapes.layout(image)
    return image, memory, last


def _like(memory: Array, last: bool) -> Array:
    """The array of the same memory layout as another: as given, or in channels-last memory."""
    return np.ascontiguousarray(memory.transpose(0, 2, 3, 1)) if last else np.ascontiguousarray(memory)


def _empty(op: str, shape: tuple[int, ...], last: bool, dtype: Any = np.float32) -> tuple[Array, Array]:
    """A new image of `shape` (N, C, H, W): (the array, its memory)."""
    if not last:
        array = shapes.empty(op, shape, dtype)
        return array, array
    n, c, h, w = shape
    memory = shapes.empty(op, (n, h, w, c), dtype)
    return memory.transpose(0, 3, 1, 2), memory


def _load(b: PlanBuilder, name: str, shape: tuple[int, ...], last: bool) -> Buffer:
    """The named image in channels-last order, transposed first where its memory is not."""
    n, c, h, w = shape
    given = b.external(name)
    if last or c == 1 or h * w == 1:
        return given
    nhwc = b.arena(n * c * h * w)
    calls.transpose(b, n, c, h * w, nhwc, given)
    return nhwc


def _stored(b: PlanBuilder, name: str, shape: tuple[int, ...], last: bool) -> tuple[Buffer, Callable[[], None]]:
    """(where to write the named image in channels-last order, what then brings it to its own order)."""
    n, c, h, w = shape
    wanted = b.external(name)
    if last or c == 1 or h * w == 1:
        return wanted, lambda: None
    nhwc = b.arena(n * c * h * w)
    return nhwc, lambda: calls.transpose(b, n, h * w, c, wanted, nhwc)


# ------------------------------------------------------------------------------------- convolution


@_plan
def _conv2d_plan(b: PlanBuilder, g: shapes.Conv2D, last: bool, bias: bool) -> None:
    strides, w, shift = calls.kcrs_strides(g), b.external("w"), b.external("b") if bias else None
    if not last and calls.planes_conv2d(b, g, strides, b.external("y"), b.external("x"), w, shift):
        return
    from_planes = not last and calls.reads_planes(g)
    x = _load(b, "x", g.x_shape, last or from_planes)
    planes = not last and not calls.stores_pixels(g)
    y, finish = _stored(b, "y", g.y_shape, last or planes)
    calls.conv2d(b, g, strides, y, x, w, shift, planes=planes, from_planes=from_planes)
    finish()


def conv2d(
    x: Any, w: Any, b: Any = None, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> Array:
    """2-D convolution (cross-correlation, as in every framework) of x (N, C, H, W) with w (K, C/groups, R, S).

    stride, dilation: int or (height, width); padding: int, (height, width) or ((top, bottom), (left, right)).
    Returns y (N, K, OH, OW), OH = floor((H + pads - dilation (R - 1) - 1) / stride) + 1
    (Dumoulin and Visin 2016, relationship 15).
    """
    x, memory, last = _image("conv2d", "x", x)
    w = np.ascontiguousarray(shapes.array("conv2d", "w", w, 4))
    b = None if b is None else np.ascontiguousarray(shapes.array("conv2d", "b", b, 1))
    g = shapes.conv2d(
        "conv2d", x.shape, w.shape, None if b is None else b.shape,
        stride=stride, padding=padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    y, y_memory = _empty("conv2d", g.y_shape, last)
    if y.size:
        arrays = {"x": memory, "w": w, "y": y_memory} | ({} if b is None else {"b": b})
        run_once(_conv2d_plan(g, last, b is not None), arrays)
    return y


@_plan
def _conv2d_backward_plan(b: PlanBuilder, g: shapes.Conv2D, last: bool) -> None:
    strides = calls.kcrs_strides(g)
    outside = map(b.external, ("dx", "dw", "db", "dy", "x", "w"))
    if not last and calls.planes_conv2d_backward(b, g, strides, *outside):
        return
    from_planes = not last and calls.backward_reads_planes(g)
    x, dy = (_load(b, *image, last or from_planes) for image in (("x", g.x_shape), ("dy", g.y_shape)))
    planes = not last and not calls.stores_pixels(g)
    dx, finish = _stored(b, "dx", g.x_shape, last or planes)
    calls.conv2d_backward_data(b, g, strides, dx, dy, b.external("w"), planes=planes, from_planes=from_planes)
    finish()
    calls.conv2d_backward_weights(b, g, strides, b.external("dw"), x, dy, from_planes=from_planes)
    if from_planes:
        calls.planar_column_sums(b, g.y_shape, b.external("db"), dy)
    else:
        calls.column_sums(b, g.n * g.oh * g.ow, g.k, b.external("db"), dy)


def conv2d_backward(
    dy: Any, x: Any, w: Any, *, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1
) -> tuple[Array, Array, Array]:
    """Gradients (dx, dw, db) of `conv2d` for the gradient dy (N, K, OH, OW) of its output.

    dw is the correlation of x with dy, dx the convolution of dy with the flipped filters, db the sum of dy over
    batch and pixels (report 001, equations 3 to 5).
    """
    op = "conv2d_backward"
    x, memory, last = _image(op, "x", x)
    w = np.ascontiguousarray(shapes.array(op, "w", w, 4))
    dy = shapes.array(op, "dy", dy, 4)
    g = shapes.conv2d(op, x.shape, w.shape, stride=stride, padding=padding, dilation=dilation, groups=groups)
    shapes.expect_shape(op, "dy", dy.shape, g.y_shape)
    if not x.size:
        return _empty("conv2d_backward", x.shape, last)[0], np.zeros_like(w), np.zeros(g.k, np.float32)
    dx, dx_memory = _empty("conv2d_backward", x.shape, last)
    dw, db = shapes.empty(op, w.shape), shapes.empty(op, g.k)
    arrays = {"x": memory, "dy": _like(dy, last), "w": w, "dx": dx_memory, "dw": dw, "db": db}
    run_once(_conv2d_backward_plan(g, last), arrays)
    return dx, dw, db


@_plan
def _conv_transpose2d_plan(b: PlanBuilder, g: shapes.Conv2D, last: bool, bias: bool) -> None:
    x = _load(b, "x", g.y_shape, last)
    y, finish = _stored(b, "y", g.x_shape, last)
    calls.conv_transpose2d(b, g, calls.kcrs_strides(g), y, x, b.external("w"), b.external("b") if bias else None)
    finish()


def conv_transpose2d(
    x: Any,
    w: Any,
    b: Any = None,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Array:
    """Transposed 2-D convolution of x (N, C, H, W) with w (C, K/groups, R, S), b (K,).

    Options as in `conv2d`, whose gradient of x this is; output_padding (int or (height, width), smaller than stride
    or dilation) adds rows at the bottom and columns at the right. Returns y (N, K, OH, OW),
    OH = (H - 1) stride - pads + dilation (R - 1) + output_padding + 1 (Dumoulin and Visin 2016, relationship 14).
    """
    op = "conv_transpose2d"
    x, memory, last = _image(op, "x", x)
    w = np.ascontiguousarray(shapes.array(op, "w", w, 4))
    b = None if b is None else np.ascontiguousarray(shapes.array(op, "b", b, 1))
    g = shapes.conv_transpose2d(
        op, x.shape, w.shape, None if b is None else b.shape,
        stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    y, y_memory = _empty(op, g.x_shape, last)
    if y.size:
        arrays = {"x": memory, "w": w, "y": y_memory} | ({} if b is None else {"b": b})
        run_once(_conv_transpose2d_plan(g, last, b is not None), arrays)
    return y


@_plan
def _conv_transpose2d_backward_plan(b: PlanBuilder, g: shapes.Conv2D, last: bool) -> None:
    strides = calls.kcrs_strides(g)
    x, dy = _load(b, "x", g.y_shape, last), _load(b, "dy", g.x_shape, last)
    planes = not last and not calls.stores_pixels(g)
    dx, finish = _stored(b, "dx", g.y_shape, last or planes)
    calls.conv2d(b, g, strides, dx, dy, b.external("w"), None, planes=planes)
    finish()
    calls.conv2d_backward_weights(b, g, strides, b.external("dw"), dy, x)
    calls.column_sums(b, g.n * g.h * g.w, g.c, b.external("db"), dy)


def conv_transpose2d_backward(
    dy: Any,
    x: Any,
    w: Any,
    *,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> tuple[Array, Array, Array]:
    """Gradients (dx, dw, db) of `conv_transpose2d` for the gradient dy (N, K, OH, OW) of its output.

    dx is the convolution of dy with w, dw that convolution's gradient of the weights where x is the gradient of its
    output.
    """
    op = "conv_transpose2d_backward"
    x, memory, last = _image(op, "x", x)
    w = np.ascontiguousarray(shapes.array(op, "w", w, 4))
    dy = shapes.array(op, "dy", dy, 4)
    g = shapes.conv_transpose2d(
        op, x.shape, w.shape,
        stride=stride, padding=padding, output_padding=output_padding, dilation=dilation, groups=groups,
    )  # fmt: skip
    shapes.expect_shape(op, "dy", dy.shape, g.x_shape)
    if not x.size:
        return _empty(op, x.shape, last)[0], np.zeros_like(w), np.zeros(g.c, np.float32)
    dx, dx_memory = _empty(op, x.shape, last)
    dw, db = shapes.empty(op, w.shape), shapes.empty(op, g.c)
    arrays = {"x": memory, "dy": _like(dy, last), "w": w, "dx": dx_memory, "dw": dw, "db": db}
    run_once(_conv_transpose2d_backward_plan(g, last), arrays)
    return dx, dw, db


# ----------------------------------------------------------------------------------------- pooling


@_plan
def _max_pool2d_plan(b: PlanBuilder, g: shapes.Pool2D, last: bool) -> None:
    if not last and calls.planar_max_pool2d(b, g, *map(b.external, ("y", "argmax", "x"))):
        return
    x = _load(b, "x", g.x_shape, last)
    y, finish_y = _stored(b, "y", g.y_shape, last)
    argmax, finish_argmax = _stored(b, "argmax", g.y_shape, last)
    calls.pool2d(b, "max_pool2d", g, [y, argmax, x])
    finish_y()
    finish_argmax()


def max_pool2d(
    x: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    dilation: Any = 1,
    ceil_mode: bool = False,
) -> tuple[Array, Array]:
    """Maximum of each window of x (N, C, H, W): (y, argmax), both (N, C, OH, OW).

    argmax is int32, the place h * W + w in its plane; the first of equal values. stride None is kernel_size.
    """
    x, memory, last = _image("max_pool2d", "x", x)
    g = shapes.pool2d(
        "max_pool2d", x.shape, kernel_size,
        stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode,
    )  # fmt: skip
    shapes.check_plane("max_pool2d", x.shape)
    y, y_memory = _empty("max_pool2d", g.y_shape, last)
    argmax, argmax_memory = _empty("max_pool2d", g.y_shape, last, np.int32)
    if y.size:
        run_once(_max_pool2d_plan(g, last), {"x": memory, "y": y_memory, "argmax": argmax_memory})
    return y, argmax


@_plan
def _max_pool2d_backward_plan(b: PlanBuilder, x_shape: tuple[int, ...], y_shape: tuple[int, ...], last: bool) -> None:
    args = [*map(b.external, ("dx", "dy", "argmax"))]
    calls.max_pool2d_backward_of_argmax(b, x_shape, y_shape[2:], args, planes=not last)


def max_pool2d_backward(dy: Any, argmax: Any, input_shape: Any) -> Array:
    """dx of shape `input_shape` (N, C, H, W): each of dy goes to its argmax, and overlapping windows add up."""
    op = "max_pool2d_backward"
    dy, memory, last = _image(op, "dy", dy)
    shape = shapes.sizes(op, "input_shape", input_shape, 4)
    argmax = shapes.max_pool_indices(op, argmax, dy.shape, shape)
    if not dy.size:
        dx, memory = _empty("max_pool2d_backward", shape, last)
        memory.fill(0)
        return dx
    dx, dx_memory = _empty("max_pool2d_backward", shape, last)
    arrays = {"dy": memory, "argmax": _like(argmax, last), "dx": dx_memory}
    run_once(_max_pool2d_backward_plan(shape, dy.shape, last), arrays)
    return dx


@_plan
def _avg_pool2d_plan(b: PlanBuilder, g: shapes.Pool2D, last: bool) -> None:
    x = _load(b, "x", g.x_shape, last)
    y, finish = _stored(b, "y", g.y_shape, last)
    calls.pool2d(b, "avg_pool2d", g, [y, x])
    finish()


def avg_pool2d(
    x: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """Mean of each window of x (N, C, H, W); the divisor counts the padding or not, as in PyTorch."""
    x, memory, last = _image("avg_pool2d", "x", x)
    g = shapes.pool2d(
        "avg_pool2d", x.shape, kernel_size,
        stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
    )  # fmt: skip
    y, y_memory = _empty("avg_pool2d", g.y_shape, last)
    if y.size:
        run_once(_avg_pool2d_plan(g, last), {"x": memory, "y": y_memory})
    return y


@_plan
def _avg_pool2d_backward_plan(b: PlanBuilder, g: shapes.Pool2D, last: bool) -> None:
    dy = _load(b, "dy", g.y_shape, last)
    dx, finish = _stored(b, "dx", g.x_shape, last)
    calls.pool2d(b, "avg_pool2d_backward", g, [dx, dy])
    finish()


def avg_pool2d_backward(
    dy: Any,
    input_shape: Any,
    kernel_size: Any,
    *,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
) -> Array:
    """dx of shape `input_shape`: each of dy shared equally among its window (report 001, equation 7)."""
    op = "avg_pool2d_backward"
    dy, memory, last = _image(op, "dy", dy)
    shape = shapes.sizes(op, "input_shape", input_shape, 4)
    g = shapes.pool2d(
        op, shape, kernel_size,
        stride=stride, padding=padding, ceil_mode=ceil_mode, count_include_pad=count_include_pad,
    )  # fmt: skip
    shapes.expect_shape(op, "dy", dy.shape, g.y_shape)
    dx, dx_memory = _empty("avg_pool2d_backward", shape, last)
    if dx.size:
        run_once(_avg_pool2d_backward_plan(g, last), {"dy": memory, "dx": dx_memory})
    return dx


@_plan
def _global_avg_pool2d_plan(b: PlanBuilder, shape: tuple[int, ...], last: bool) -> None:
    calls.global_pool2d(b, "global_avg_pool2d", shape, [b.external("y"), b.external("x")], planes=not last)


def global_avg_pool2d(x: Any) -> Array:
    """Mean over all pixels of x (N, C, H, W): (N, C)."""
    x, memory, last = _image("global_avg_pool2d", "x", x)
    y = shapes.empty("global_avg_pool2d", shapes.global_pool2d("global_avg_pool2d", x.shape))
    if y.size:
        run_once(_global_avg_pool2d_plan(x.shape, last), {"x": memory, "y": y})
    return y


@_plan
def _global_avg_pool2d_backward_plan(b: PlanBuilder, shape: tuple[int, ...]) -> None:
    args = [b.external("dx"), b.external("dy")]
    calls.global_pool2d(b, "global_avg_pool2d_backward", shape, args, planes=True)


def global_avg_pool2d_backward(dy: Any, input_shape: Any) -> Array:
    """dx of shape `input_shape` (N, C, H, W) for dy (N, C): dy / (H W) at every pixel."""
    op = "global_avg_pool2d_backward"
    dy = np.ascontiguousarray(shapes.array(op, "dy", dy, 2))
    shape = shapes.sizes(op, "input_shape", input_shape, 4)
    shapes.expect_shape(op, "dy", dy.shape, shapes.global_pool2d(op, shape))
    dx = shapes.empty("global_avg_pool2d_backward", shape)
    if dx.size:
        run_once(_global_avg_pool2d_backward_plan(shape), {"dy": dy, "dx": dx})
    return dx


# ---------------------------------------------------------------------------------- matrix products


@_plan
def _gemm_plan(b: PlanBuilder, m: int, n: int, k: int, trans_a: bool, trans_b: bool, alpha: float, beta: float) -> None:
    calls.gemm(
        b, m, n, k, b.external("c"), b.external("a"), b.external("b"),
        trans_a=trans_a, trans_b=trans_b, alpha=alpha, beta=beta,
    )  # fmt: skip


@lru_cache(maxsize=CACHED_PLANS, typed=True)
def _gemm_arguments(
    a: tuple[int, ...], b: tuple[int, ...], trans_a: Any, trans_b: Any, alpha: Any, beta: Any
) -> tuple[int, int, int, float, float]:
    """(m, n, k, alpha, beta), checked; done each time, it would be a quarter of the time of 64 x 64 x 10."""
    m, n, k = shapes.gemm("gemm", a, b, trans_a, trans_b)
    return m, n, k, shapes.float32("gemm", "alpha", alpha), shapes.float32("gemm", "beta", beta)


def gemm(
    a: Any,
    b: Any,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    out: Array | None = None,
) -> Array:
    """c (m, n) = alpha op(a) op(b) + beta out, op(x) = x or its transpose (BLAS SGEMM).

    `out`, a float32 array (m, n), is written and returned; with beta 0 it is not read.
    """
    a = np.ascontiguousarray(shapes.array("gemm", "a", a, 2))
    b = np.ascontiguousarray(shapes.array("gemm", "b", b, 2))
    arguments = (a.shape, b.shape, trans_a, trans_b, alpha, beta)
    try:
        m, n, k, alpha, beta = _gemm_arguments(*arguments)
    except TypeError:  # also of a number that cannot be hashed
        m, n, k, alpha, beta = _gemm_arguments.__wrapped__(*arguments)
    c = _gemm_output(out, (m, n), beta, (a, b))
    if c.size and k:
        run_once(_gemm_plan(m, n, k, bool(trans_a), bool(trans_b), alpha, beta), {"a": a, "b": b, "c": c})
    elif beta:
        c *= beta
    else:
        c.fill(0)
    if out is None:
        return c
    if c is not out:
        out[...] = c
    return out


def _gemm_output(out: Array | None, shape: tuple[int, int], beta: float, inputs: tuple[Array, Array]) -> Array:
    """Contiguous memory for the result: `out` itself where that can be, or a copy of it."""
    if out is None:
        if beta:
            raise ValueError(f"[gemm] beta is {beta}, which needs out, the matrix to be scaled and added")
        return _cleared(shape, inputs)
    if not isinstance(out, np.ndarray) or out.dtype != shapes.FLOAT32:
        raise TypeError(f"[gemm] out must be a float32 array, got {getattr(out, 'dtype', type(out).__name__)}")
    shapes.expect_shape("gemm", "out", out.shape, shape)
    flags, (a, b) = out.flags, inputs
    if not flags.writeable:
        raise ValueError("[gemm] out must be writable")
    shared = np.may_share_memory(out, a) or np.may_share_memory(out, b)
    usable = flags.c_contiguous and flags.aligned and not shared
    return out if usable else (np.array(out, order="C") if beta else _cleared(shape, inputs))


def _cleared(shape: tuple[int, int], inputs: tuple[Array, Array]) -> Array:
    """Memory for a product, which is zeros if there is nothing to be summed up."""
    c = shapes.empty("gemm", shape)
    if not inputs[0].size:
        c[...] = 0
    return c


@_plan
def _dense_plan(b: PlanBuilder, n: int, inputs: int, outputs: int, bias: bool) -> None:
    calls.gemm(
        b,
        n,
        outputs,
        inputs,
        b.external("y"),
        b.external("x"),
        b.external("w"),
        b.external("b") if bias else None,
    )


def dense(x: Any, w: Any, b: Any = None) -> Array:
    """y (N, out) = x w + b for x (N, in), w (in, out), b (out,)."""
    x = np.ascontiguousarray(shapes.array("dense", "x", x, 2))
    w = np.ascontiguousarray(shapes.array("dense", "w", w, 2))
    b = None if b is None else np.ascontiguousarray(shapes.array("dense", "b", b, 1))
    n, inputs, outputs = shapes.dense("dense", x.shape, w.shape, None if b is None else b.shape)
    y = shapes.empty("dense", (n, outputs))
    if n:
        arrays = {"x": x, "w": w, "y": y} | ({} if b is None else {"b": b})
        run_once(_dense_plan(n, inputs, outputs, b is not None), arrays)
    return y


@_plan
def _dense_backward_plan(b: PlanBuilder, n: int, inputs: int, outputs: int) -> None:
    dy = b.external("dy")
    calls.gemm(b, n, inputs, outputs, b.external("dx"), dy, b.external("w"), trans_b=True)
    calls.dense_backward_weights(b, n, inputs, outputs, b.external("dw"), b.external("x"), dy)
    calls.column_sums(b, n, outputs, b.external("db"), dy)


def dense_backward(dy: Any, x: Any, w: Any) -> tuple[Array, Array, Array]:
    """(dx, dw, db) = (dy w^T, x^T dy, sum of dy over the batch)."""
    op = "dense_backward"
    x = np.ascontiguousarray(shapes.array(op, "x", x, 2))
    w = np.ascontiguousarray(shapes.array(op, "w", w, 2))
    dy = np.ascontiguousarray(shapes.array(op, "dy", dy, 2))
    n, inputs, outputs = shapes.dense(op, x.shape, w.shape)
    shapes.expect_shape(op, "dy", dy.shape, (n, outputs))
    if not n:
        return np.empty_like(x), np.zeros_like(w), np.zeros(outputs, np.float32)
    dx, dw, db = (shapes.empty(op, shape) for shape in (x.shape, w.shape, outputs))
    arrays = {"dy": dy, "x": x, "w": w, "dx": dx, "dw": dw, "db": db}
    run_once(_dense_backward_plan(n, inputs, outputs), arrays)
    return dx, dw, db


# ------------------------------------------------------------------------------------- element-wise


@_plan
def _activation_plan(b: PlanBuilder, size: int, name: str, alpha: float) -> None:
    calls.activation(b, size, name, alpha, b.external("y"), b.external("x"))


def activation(x: Any, name: str, **options: float) -> Array:
    """relu, leaky_relu (alpha=0.01), sigmoid, tanh, elu (alpha=1.0), gelu (erf), silu or hard_swish of x, any rank;
    softmax over its last axis."""
    if isinstance(name, str) and name == "softmax" and not options:
        return softmax(x)
    x = shapes.array("activation", "x", x)
    memory, last = shapes.layout(x)
    name, alpha = shapes.activation("activation", name, options)
    y = shapes.empty("activation", memory.shape)
    if y.size:
        run_once(_activation_plan(y.size, name, alpha), {"x": memory, "y": y})
    return y.transpose(0, 3, 1, 2) if last else y


@_plan
def _activation_backward_plan(b: PlanBuilder, size: int, name: str, alpha: float) -> None:
    calls.activation_backward(b, size, name, alpha, b.external("dx"), b.external("dy"), b.external("x"))


def activation_backward(dy: Any, x: Any, name: str, **options: float) -> Array:
    """dx = dy f'(x); at kinks PyTorch's value, so relu'(0) is 0."""
    op = "activation_backward"
    x, dy = shapes.array(op, "x", x), shapes.array(op, "dy", dy)
    shapes.expect_shape(op, "dy", dy.shape, x.shape)
    if isinstance(name, str) and name == "softmax" and not options:
        return _softmax_backward(dy, softmax(x))
    memory, last = shapes.layout(x)
    name, alpha = shapes.activation(op, name, options)
    dx = shapes.empty(op, memory.shape)
    if dx.size:
        run_once(_activation_backward_plan(dx.size, name, alpha), {"x": memory, "dy": _like(dy, last), "dx": dx})
    return dx.transpose(0, 3, 1, 2) if last else dx


# ------------------------------------------------------------------------------------------- losses


@_plan
def _softmax_plan(b: PlanBuilder, rows: int, columns: int) -> None:
    calls.by_rows(b, "softmax", rows, columns, [b.external("y"), b.external("x")])


def softmax(x: Any) -> Array:
    """exp(x - max) / sum over the last axis, any rank from 1."""
    x = shapes.array("softmax", "x", x)
    if x.ndim == 0:
        raise ValueError(f"[softmax] x must have at least one axis, got the number {x}")
    _, last = shapes.layout(x)
    x = np.ascontiguousarray(x)
    y = shapes.empty("softmax", x.shape)
    if y.size:
        run_once(_softmax_plan(x.size // x.shape[-1], x.shape[-1]), {"x": x, "y": y})
    return _like(y, True).transpose(0, 3, 1, 2) if last else y


@_plan
def _softmax_backward_plan(b: PlanBuilder, rows: int, columns: int) -> None:
    calls.by_rows(b, "softmax_backward", rows, columns, [b.external("dx"), b.external("dy"), b.external("y")])


def _softmax_backward(dy: Array, y: Array) -> Array:
    """dx for y = softmax(x); in the layout of y."""
    _, last = shapes.layout(y)
    y = np.ascontiguousarray(y)
    dx = shapes.empty("activation_backward", y.shape)
    if dx.size:
        arrays = {"dx": dx, "dy": np.ascontiguousarray(dy), "y": y}
        run_once(_softmax_backward_plan(y.size // y.shape[-1], y.shape[-1]), arrays)
    return _like(dx, True).transpose(0, 3, 1, 2) if last else dx


@_plan
def _softmax_cross_entropy_plan(b: PlanBuilder, rows: int, columns: int, indices: bool) -> None:
    labels = b.external("labels")
    args = [b.external("loss"), b.external("dlogits"), b.external("logits")]
    args += [labels, None] if indices else [None, labels]
    calls.loss(b, "softmax_cross_entropy", rows, columns, [*args, None])


def softmax_cross_entropy(logits: Any, labels: Any) -> tuple[float, Array]:
    """(mean loss, dlogits) of logits (N, classes) and labels: (N,) integers or (N, classes) one-hot.

    loss = mean of log(sum exp z) - z[label]; dlogits = (softmax(z) - one_hot) / N (report 001, equations 16, 17).
    """
    op = "softmax_cross_entropy"
    logits = np.ascontiguousarray(shapes.array(op, "logits", logits, 2))
    rows, columns = shapes.logits(op, logits.shape)
    indices, targets = shapes.class_labels(op, labels, rows, columns)
    dlogits, loss = shapes.empty(op, logits.shape), np.zeros(1, np.float32)
    if rows:
        chosen = targets if indices is None else indices
        run_once(
            _softmax_cross_entropy_plan(rows, columns, indices is not None),
            {"logits": logits, "labels": chosen, "dlogits": dlogits, "loss": loss},
        )
    return float(loss[0]), dlogits


# --------------------------------------------------------------------------------------- batch norm


class BatchNormCache:
    """What `batch_norm_backward` needs of the forward pass: x, gamma, the mean and 1 / std that it used."""

    __slots__ = ("eps", "gamma", "mean", "rstd", "training", "x")

    def __init__(self, x: Array, gamma: Array, mean: Array, rstd: Array, training: bool, eps: float):
        self.x, self.gamma, self.mean, self.rstd = x, gamma, mean, rstd
        self.training, self.eps = training, eps


def _running(name: str, value: Any, training: bool) -> tuple[Array, Array | None]:
    """(contiguous float32 memory of a running statistic, the array to copy it back to or None)."""
    if training and not (isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.flags.writeable):
        kind = value.dtype if isinstance(value, np.ndarray) else type(value).__name__
        raise TypeError(f"[batch_norm] {name} must be a writable float array, updated in place in training, got {kind}")
    memory = np.ascontiguousarray(shapes.array("batch_norm", name, value, 1))
    return memory, value if training and memory is not value else None


# Smaller planes have so few floats side by side that transpositions cost less than going plane by plane.
LEAST_PLANE = 32


def _goes_by_planes(shape: tuple[int, ...], last: bool) -> bool:
    return not last and len(shape) == 4 and shape[1] > 1 and math.prod(shape[2:]) >= LEAST_PLANE


@_plan
def _batch_norm_plan(
    b: PlanBuilder, shape: tuple[int, ...], last: bool, training: bool, momentum: float, eps: float
) -> None:
    rows, columns = shapes.batch_norm("batch_norm", shape, {})
    mean, rstd, *vectors = map(b.external, ("mean", "rstd", "gamma", "beta", "running_mean", "running_var"))
    variance = b.arena(columns)
    options = {"training": training, "eps": eps, "momentum": momentum}
    if _goes_by_planes(shape, last):
        args = [b.external("y"), mean, rstd, variance, b.external("x"), *vectors]
        calls.batch_norm(b, "planar_batch_norm", rows, columns, args, plane=math.prod(shape[2:]), **options)
    else:
        x, (y, finish) = _load(b, "x", _pixels(shape), last), _stored(b, "y", _pixels(shape), last)
        calls.batch_norm(b, "batch_norm", rows, columns, [y, mean, rstd, variance, x, *vectors, None], **options)
        finish()
    if training:
        calls.running_statistics(b, columns, momentum, [*vectors[2:], mean, variance])


def _pixels(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Rows are images of one pixel."""
    return shape if len(shape) == 4 else (*shape, 1, 1)


def batch_norm(
    x: Any,
    gamma: Any,
    beta: Any,
    running_mean: Array,
    running_var: Array,
    *,
    training: bool,
    momentum: float = 0.9,
    eps: float = 1e-5,
) -> tuple[Array, BatchNormCache]:
    """(y, cache): y = gamma (x - mean) / sqrt(var + eps) + beta a channel of x, (N, C) or (N, C, H, W).

    In training mean and variance (over N, biased) are the batch's, and the running arrays are updated in place:
    running = momentum * running + (1 - momentum) * batch. Otherwise the running ones are used
    (Ioffe and Szegedy 2015, algorithms 1 and 2).
    """
    op = "batch_norm"
    x = shapes.array(op, "x", x)
    gamma = np.array(shapes.array(op, "gamma", gamma, 1), order="C")
    beta = np.ascontiguousarray(shapes.array(op, "beta", beta, 1))
    training = shapes.boolean(op, "training", training)
    mean_memory, mean_back = _running("running_mean", running_mean, training)
    var_memory, var_back = _running("running_var", running_var, training)
    vectors = {"gamma": gamma, "beta": beta, "running_mean": mean_memory, "running_var": var_memory}
    _, columns = shapes.batch_norm(op, x.shape, {name: v.shape for name, v in vectors.items()})
    momentum = shapes.number(op, "momentum", momentum, 0, 1)
    eps = shapes.float32(op, "eps", eps, 0)
    memory, last = shapes.layout(x)
    y, y_memory = _empty("batch_norm", x.shape, last)
    mean, rstd = shapes.empty("batch_norm", columns, np.float32), shapes.empty("batch_norm", columns)
    if x.size:
        arrays = {"x": memory, "y": y_memory, "mean": mean, "rstd": rstd, **vectors}
        run_once(_batch_norm_plan(x.shape, last, training, momentum, eps), arrays)
        for changed, back in ((mean_memory, mean_back), (var_memory, var_back)):
            if back is not None:
                back[...] = changed
    return y, BatchNormCache(np.array(x, order="K"), gamma, mean, rstd, training, eps)


@_plan
def _batch_norm_backward_plan(b: PlanBuilder, shape: tuple[int, ...], last: bool, training: bool, eps: float) -> None:
    rows, columns = shapes.batch_norm("batch_norm_backward", shape, {})
    dgamma, dbeta, *vectors = map(b.external, ("dgamma", "dbeta", "mean", "rstd", "gamma"))
    options = {"training": training, "eps": eps}
    if _goes_by_planes(shape, last):
        args = [b.external("dx"), dgamma, dbeta, b.external("dy"), b.external("x"), *vectors]
        plane = math.prod(shape[2:])
        calls.batch_norm(b, "planar_batch_norm_backward", rows, columns, args, plane=plane, **options)
    else:
        x, dy = (_load(b, name, _pixels(shape), last) for name in ("x", "dy"))
        dx, finish = _stored(b, "dx", _pixels(shape), last)
        args = [dx, dgamma, dbeta, None, dy, None, None, x, *vectors]
        calls.batch_norm(b, "batch_norm_backward", rows, columns, args, **options)
        finish()


def batch_norm_backward(dy: Any, cache: BatchNormCache) -> tuple[Array, Array, Array]:
    """(dx, dgamma, dbeta) for the forward pass that gave `cache`."""
    op = "batch_norm_backward"
    if not isinstance(cache, BatchNormCache):
        raise TypeError(f"[{op}] cache must be what batch_norm returned, got {type(cache).__name__}")
    dy = shapes.array(op, "dy", dy)
    shapes.expect_shape(op, "dy", dy.shape, cache.x.shape)
    memory, last = shapes.layout(cache.x)
    dx, dx_memory = _empty("batch_norm_backward", cache.x.shape, last)
    dgamma, dbeta = np.zeros_like(cache.gamma), np.zeros_like(cache.gamma)
    if dy.size:
        arrays = {"x": memory, "dy": _like(dy, last), "dx": dx_memory, "dgamma": dgamma, "dbeta": dbeta}
        arrays |= {"mean": cache.mean, "rstd": cache.rstd, "gamma": cache.gamma}
        run_once(_batch_norm_backward_plan(cache.x.shape, last, cache.training, cache.eps), arrays)
    return dx, dgamma, dbeta

"""The kernel calls of each operation, on channels-last buffers; for `ops` and for lowered graphs alike.

Each function appends to a plan what computes its outputs (first arguments) from its inputs. This is where a
path is chosen for a shape.
"""

import math
from dataclasses import asdict
from typing import Any, NamedTuple

from pycnn import native, shapes
from pycnn.plan import ELEMENT_WORK, Buffer, PlanBuilder

Optional = Buffer | None


class WinogradCosts(NamedTuple):
    """In multiply-adds, those of the direct sums being 1; measured, in round numbers."""

    products: int  # of a patch, for each pair of channel and filter
    channel: int  # of a patch, for each channel: its window is transformed
    filter: int  # of a patch, for each filter: its outputs are transformed, or their gradients
    weights: int  # for each pair of channel and filter


WINOGRAD = WinogradCosts(36, 220, 160, 1000)
# For the gradient of the weights.
WINOGRAD_WEIGHTS = WinogradCosts(40, 450, 350, 800)

# a^T b with a larger result is faster with the rows of a^T copied side by side than summed up row by row of a.
OUTER_OUTPUTS = 1 << 18

# Strides of convolution weights in floats, as the C descriptor wants them.
Strides = dict[str, int]
# What a kernel does to its results as it stores them; see `rectifier`.
Epilogue = dict[str, float]
# The mean and variance of each channel, over the batch and all pixels.
Moments = tuple[Buffer, Buffer]
# Kernels that take weights packed beforehand, by a kernel of their own.
PACKED = ("gemm", "conv2d", "winograd_conv2d")


def rectifier(name: str, alpha: float) -> Epilogue | None:
    """The epilogue of an activation, if it is one: relu, or leaky_relu that keeps the signs."""
    if name == "relu" or (name == "leaky_relu" and alpha > 0):
        return {"rectifies": 1, "slope": 0.0 if name == "relu" else alpha}
    return None


def kcrs_strides(g: shapes.Conv2D) -> Strides:
    """Of a contiguous (K, C/groups, R, S) array."""
    taps = g.r * g.s
    return {"w_tap": 1, "w_c": taps, "w_k": g.c // g.groups * taps}


def rsck_strides(g: shapes.Conv2D) -> Strides:
    """Of a contiguous (R, S, C/groups, K) array, as layers keep them."""
    return {"w_tap": g.c // g.groups * g.k, "w_c": g.k, "w_k": 1}


def _is_grouped(g: shapes.Conv2D) -> bool:
    """Whether grouped.h convolves: few channels in and out a group, whose sums are no longer than product.h's."""
    channels = max(g.c, g.k) // g.groups
    return g.groups > 1 and channels <= 32 and channels * g.r * g.s <= 576


def _whole(count: int, vector: int) -> int:
    return -(-count // vector) * vector


def _uses_winograd(g: shapes.Conv2D, costs: WinogradCosts, height: int, width: int, inputs: int, outputs: int) -> bool:
    """Whether Winograd's F(4x4, 3x3) is the cheaper way from `inputs` channels to (outputs, height, width).

    Its patches of 4x4 outputs, of which the last of a row or column may hang over, are counted against the direct
    sums' multiply-adds, those with padding left out. A kernel larger than 3x3 counts as so many times the channels as
    it takes 3x3 segments.
    """
    if not native.config()["winograd"] or (g.stride_h, g.stride_w, g.groups) != (1, 1, 1):
        return False
    vector = max(8, native.vector_floats())
    c, k = -(-g.r // 3) * -(-g.s // 3) * _whole(inputs, vector), _whole(outputs, vector)
    a_patch = costs.products * c * k + costs.channel * c + costs.filter * k
    winograd = _patches(g, height, width) * a_patch + costs.weights * c * k
    rows = _inside(g.oh, g.h, g.r, g.dilation_h, g.pad_top)
    return winograd < rows * _inside(g.ow, g.w, g.s, g.dilation_w, g.pad_left) * g.n * inputs * outputs


def _inside(outputs: int, size: int, taps: int, dilation: int, pad: int) -> int:
    """How many pairs of an output and a tap of stride 1 do not meet padding."""
    starts = (t * dilation - pad for t in range(taps))
    return sum(max(0, min(outputs, size - start) - max(0, -start)) for start in starts)


def _patches(g: shapes.Conv2D, height: int, width: int) -> int:
    """A dilated convolution has patches of every dilation-th row and column."""
    down, across = (-(-extent // (4 * apart)) for extent, apart in ((height, g.dilation_h), (width, g.dilation_w)))
    return g.n * g.dilation_h * g.dilation_w * down * across


def _path(g: shapes.Conv2D, is_winograd: bool, winograd: str, grouped: str, other: str) -> str:
    """The kernel that a convolution gets of the three that compute the same."""
    if is_winograd:
        return winograd
    return grouped if _is_grouped(g) else other


def _conv_work(g: shapes.Conv2D) -> int:
    outputs = math.prod(g.y_shape)
    return outputs * g.c // g.groups * g.r * g.s + ELEMENT_WORK * (outputs + math.prod(g.x_shape))


def conv2d(
    b: PlanBuilder,
    g: shapes.Conv2D,
    strides: Strides,
    y: Buffer,
    x: Buffer,
    w: Buffer,
    bias: Optional,
    *,
    epilogue: Epilogue | None = None,
    kept: bool = False,
    moments: Moments | None = None,
    planes: bool = False,
    from_planes: bool = False,
) -> None:
    """kept: the weights stay the same from run to run, so that they are packed only once; moments: where those of each
    filter's outputs go; planes: y is contiguous, in (N, K, OH, OW) order; a convolution in groups `stores_pixels`
    only, and takes neither. from_planes: so is x, where the convolution `reads_planes`."""
    is_winograd = _uses_winograd(g, WINOGRAD, g.oh, g.ow, g.c, g.k)
    kernel = _path(g, is_winograd, "winograd_conv2d", "grouped_conv2d", "conv2d")
    # With fewer patches than filters, winograd.h transforms the weights where it uses them.
    kept = kept and (not is_winograd or _patches(g, g.oh, g.ow) >= g.k)
    outputs = [y] if _is_grouped(g) else [y, *(moments or (None, None))]
    layout = {"planes": int(planes), "from_planes": int(from_planes)}
    desc = asdict(g) | strides | {"measures": int(moments is not None)} | layout
    _with_weights(b, kernel, [*outputs, x, w, bias], w, _conv_work(g), epilogue, kept, desc)


def reads_planes(g: shapes.Conv2D) -> bool:
    """Whether `conv2d` takes contiguous planes (N, C, H, W) as well as pixels."""
    is_winograd = _uses_winograd(g, WINOGRAD, g.oh, g.ow, g.c, g.k)
    return is_winograd and (g.dilation_h, g.dilation_w) == (1, 1) and _patches(g, g.oh, g.ow) >= g.k


def backward_reads_planes(g: shapes.Conv2D) -> bool:
    """Whether its gradients do."""
    data = _uses_winograd(g, WINOGRAD, g.h, g.w, g.k, g.c) and _patches(g, g.h, g.w) >= g.c
    weights = _uses_winograd(g, WINOGRAD_WEIGHTS, g.oh, g.ow, g.c, g.k)
    return data and weights and (g.dilation_h, g.dilation_w) == (1, 1)


def stores_pixels(g: shapes.Conv2D) -> bool:
    """Whether the kernels do nothing with their outputs but store them in channels-last order."""
    return _is_grouped(g)


def _with_weights(
    b: PlanBuilder,
    kernel: str,
    args: list[Optional],
    w: Buffer,
    work: float,
    epilogue: Epilogue | None,
    kept: bool,
    desc: dict[str, Any],
) -> None:
    """A call that may take packed weights as its last argument."""
    if epilogue:
        desc["epilogue"] = epilogue
    if kernel in PACKED:
        desc["prepacked"] = int(kept)
        args = [*args, b.prepare(f"pack_{kernel}", [w], **desc) if kept else None]
    b.call(kernel, args, work, **desc)


def conv2d_backward_data(
    b: PlanBuilder, g: shapes.Conv2D, strides: Strides, dx: Buffer, dy: Buffer, w: Buffer, *, planes: bool = False,
    from_planes: bool = False,
) -> None:  # fmt: skip
    """planes: dx is contiguous, as y of `conv2d`; from_planes: so is dy, where `backward_reads_planes`."""
    is_winograd = _uses_winograd(g, WINOGRAD, g.h, g.w, g.k, g.c)
    kernel = _path(
        g, is_winograd, "winograd_conv2d_backward_data", "grouped_conv2d_backward_data", "conv2d_backward_data"
    )
    layout = {"planes": int(planes), "from_planes": int(from_planes)}
    b.call(kernel, [dx, dy, w], _conv_work(g), **asdict(g), **strides, **layout)


def conv2d_backward_weights(
    b: PlanBuilder, g: shapes.Conv2D, strides: Strides, dw: Buffer, x: Buffer, dy: Buffer, *, from_planes: bool = False
) -> None:
    """from_planes: x and dy are contiguous, where `backward_reads_planes`."""
    is_winograd = _uses_winograd(g, WINOGRAD_WEIGHTS, g.oh, g.ow, g.c, g.k)
    kernel = _path(
        g, is_winograd, "winograd_conv2d_backward_weights", "grouped_conv2d_backward_weights", "conv2d_backward_weights"
    )
    b.call(kernel, [dw, x, dy], _conv_work(g), **asdict(g), **strides, from_planes=int(from_planes))


def conv_transpose2d(
    b: PlanBuilder, g: shapes.Conv2D, strides: Strides, y: Buffer, x: Buffer, w: Buffer, bias: Optional
) -> None:
    """g is the convolution from y to x, whose transpose this is."""
    conv2d_backward_data(b, g, strides, y, x, w)
    if bias is not None:
        rows = g.n * g.h * g.w
        b.call("add_bias", [y, bias], ELEMENT_WORK * rows * g.c, rows=rows, columns=g.c)


# From this many outputs on, planes are convolved as they are: sooner, bringing x to pixels costs less.
PLANE_PIXELS = 64


def _is_depthwise(g: shapes.Conv2D) -> bool:
    return 1 < g.groups == g.c == g.k


def _is_thin(g: shapes.Conv2D) -> bool:
    """Whether sums are so short that bringing pixels to planes would cost as much: a small network's first layer."""
    short = g.groups == 1 and g.c <= 4 and g.k <= 32 and g.r * g.s <= 9
    return short and (g.stride_h, g.stride_w) == (1, 1) and g.ow % 8 == 0


def _is_pointwise(g: shapes.Conv2D) -> bool:
    padding = (g.pad_top, g.pad_bottom, g.pad_left, g.pad_right)
    return (g.r, g.s, g.groups) == (1, 1, 1) and not any(padding) and g.n * g.oh * g.ow >= PLANE_PIXELS


def _fills_panels(pixels: int) -> bool:
    """Whether an image's last panel, of two vectors, is full but for an eighth of the pixels."""
    return pixels >= PLANE_PIXELS and 8 * _whole(pixels, 16) <= 9 * pixels


def _planes_path(g: shapes.Conv2D, depthwise: str, planar: str, pointwise: str) -> str | None:
    """The kernel of three that convolves contiguous planes (N, C, H, W) as they are; None: all need others."""
    if _is_depthwise(g):
        return depthwise
    if g.oh * g.ow >= PLANE_PIXELS and (_is_grouped(g) or _is_thin(g)):
        return planar
    return pointwise if _is_pointwise(g) else None


def planes_conv2d(
    b: PlanBuilder, g: shapes.Conv2D, strides: Strides, y: Buffer, x: Buffer, w: Buffer, bias: Optional
) -> bool:
    """`conv2d` on contiguous planes; False, and no call, where only transposed ones can be convolved."""
    kernel = _planes_path(g, "depthwise_conv2d", "planar_conv2d", "pointwise_conv2d")
    if kernel is not None:
        b.call(kernel, [y, x, w, bias], _conv_work(g), **asdict(g), **strides)
    return kernel is not None


def planes_conv2d_backward(
    b: PlanBuilder, g: shapes.Conv2D, strides: Strides, dx: Buffer, dw: Buffer, db: Buffer,
    dy: Buffer, x: Buffer, w: Buffer,
) -> bool:  # fmt: skip
    """All gradients on contiguous planes; False as in `planes_conv2d`, with a stride where not depthwise, and of 1x1
    filters on planes that do not fill vectors but for an eighth."""
    if not _is_depthwise(g) and (g.stride_h, g.stride_w) != (1, 1):
        return False
    if _is_pointwise(g) and not _fills_panels(g.oh * g.ow):
        return False
    kernel = _planes_path(
        g, "depthwise_conv2d_backward_data", "planar_conv2d_backward_data", "pointwise_conv2d_backward_data"
    )
    if kernel is not None:
        b.call(kernel, [dx, dy, w], _conv_work(g), **asdict(g), **strides)
        kernel = _planes_path(
            g,
            "depthwise_conv2d_backward_weights",
            "planar_conv2d_backward_weights",
            "pointwise_conv2d_backward_weights",
        )
        b.call(kernel, [dw, db, x, dy], _conv_work(g), **asdict(g), **strides)
    return kernel is not None


def column_sums(b: PlanBuilder, rows: int, columns: int, out: Buffer, x: Buffer) -> None:
    b.call("column_sums", [out, x], ELEMENT_WORK * rows * columns, rows=rows, columns=columns)


def planar_column_sums(b: PlanBuilder, shape: tuple[int, ...], out: Buffer, x: Buffer) -> None:
    """The sums of each channel of contiguous x (N, C, H, W)."""
    n, c, h, w = shape
    b.call("planar_column_sums", [out, x], ELEMENT_WORK * math.prod(shape), n=n, c=c, h=h, w=w)


def gemm(
    b: PlanBuilder,
    m: int,
    n: int,
    k: int,
    c: Buffer,
    a: Buffer,
    other: Buffer,
    bias: Optional = None,
    *,
    trans_a: bool = False,
    trans_b: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    epilogue: Epilogue | None = None,
    kept: bool = False,
) -> None:
    """kept: `other` stays the same from run to run, so that it is packed only once."""
    is_plain = beta == 0 and bias is None and epilogue is None and not kept
    if is_plain and trans_a and not trans_b and alpha == 1 and m * n <= OUTER_OUTPUTS:
        dense_backward_weights(b, k, m, n, c, a, other)
        return
    a_row, a_col = (1, m) if trans_a else (k, 1)
    b_row, b_col = (1, k) if trans_b else (n, 1)
    planes = is_plain and trans_b and _turned_floats(m, n, k, trans_a) < 0
    if planes:
        m, n, a, other = n, m, other, a
        a_row, a_col, b_row, b_col = b_col, b_row, a_col, a_row
    desc = {"m": m, "n": n, "k": k, "alpha": alpha, "beta": beta, "planes": int(planes)}
    desc |= {"a_row": a_row, "a_col": a_col, "b_row": b_row, "b_col": b_col}
    _with_weights(b, "gemm", [c, a, other, bias], other, m * n * k, epilogue, kept, desc)


def _turned_floats(m: int, n: int, k: int, trans_a: bool) -> int:
    """How many floats more are moved across for c^T = b^T a^T, with c transposed as it is stored, than for c = a b^T,
    with b transposed as it is packed, and a^T copied by rows."""
    return m * n - n * k + (-m * k if trans_a else m * k)


def dense_backward_weights(
    b: PlanBuilder, n: int, inputs: int, outputs: int, dw: Buffer, x: Buffer, dy: Buffer
) -> None:
    b.call("gemm_backward_weights", [dw, x, dy], n * inputs * outputs, m=n, n=outputs, k=inputs)


def pool2d(
    b: PlanBuilder, kernel: str, g: shapes.Pool2D, args: list[Optional], *, epilogue: Epilogue | None = None
) -> None:
    """`kernel` is a pooling of pool.h, forward or backward, with its arguments; an epilogue is for max_pool2d.

    max_pool2d_backward goes through the windows of each pixel, unless r is 0: then argmax alone says where they are.
    """
    desc = asdict(g) | ({"epilogue": epilogue} if epilogue else {})
    elements = math.prod(g.y_shape) * g.r * g.s or math.prod(g.x_shape)
    b.call(kernel, args, ELEMENT_WORK * elements, **desc)


def planar_max_pool2d(b: PlanBuilder, g: shapes.Pool2D, y: Buffer, argmax: Buffer, x: Buffer) -> bool:
    """Max pooling of contiguous planes; False, and no call, where windows are not of 2 x 2 side by side."""
    windows = (g.r, g.s, g.stride_h, g.stride_w, g.dilation_h, g.dilation_w, g.pad_h, g.pad_w)
    fits = windows == (2, 2, 2, 2, 1, 1, 0, 0) and 2 * g.oh <= g.h and 2 * g.ow <= g.w
    if fits:
        pool2d(b, "planar_max_pool2d", g, [y, argmax, x])
    return fits


def max_pool2d_backward_of_argmax(
    b: PlanBuilder, x: tuple[int, ...], size: tuple[int, int], args: list[Buffer], *, planes: bool
) -> None:
    """dx, of shape x (N, C, H, W), from dy and argmax of `size`; planes: all are contiguous, else channels-last."""
    # The windows are in argmax, so of the geometry only the sizes count.
    g = shapes.Pool2D(*x, 0, 0, *size, 1, 1, 0, 0, 1, 1, 1)
    pool2d(b, "planar_max_pool2d_backward" if planes else "max_pool2d_backward", g, args)


def global_pool2d(
    b: PlanBuilder, kernel: str, shape: tuple[int, ...], args: list[Buffer], *, planes: bool = False
) -> None:
    """planes: the images, of this shape, are contiguous; each of their planes is then an image of one channel."""
    n, c, h, w = shape
    if planes:
        n, c, h, w = n * c, 1, 1, h * w
    b.call(kernel, args, ELEMENT_WORK * math.prod(shape), n=n, c=c, h=h, w=w)


def resize(
    b: PlanBuilder, kernel: str, x: tuple[int, ...], size: tuple[int, int], args: list[Buffer], mode: str = ""
) -> None:
    """A kernel of resize.h, forward or backward; x is the shape (N, C, H, W) of the images that become `size`."""
    n, c, h, w = x
    oh, ow = size
    work = ELEMENT_WORK * n * c * max(h * w, oh * ow)
    b.call(kernel, args, work, n=n, c=c, h=h, w=w, oh=oh, ow=ow, bilinear=int(mode == "bilinear"))


def pad2d(b: PlanBuilder, x: tuple[int, ...], pads: tuple[int, int, int, int], y: Buffer, given: Buffer) -> None:
    """Images of shape x with `pads` (top, bottom, left, right) zeros around them; less than none cut off."""
    (n, c, h, w), (top, bottom, left, right) = x, pads
    work = ELEMENT_WORK * n * c * (h + top + bottom) * (w + left + right)
    b.call("pad2d", [y, given], work, n=n, c=c, h=h, w=w, top=top, bottom=bottom, left=left, right=right)


def copy_columns(
    b: PlanBuilder, rows: int, columns: int, out: Buffer, to: tuple[int, int], x: Buffer, source: tuple[int, int]
) -> None:
    """`to` and `source`: the first column, and how many columns the matrix has in all."""
    where = {"to": to[0], "to_row": to[1], "from": source[0], "from_row": source[1]}
    b.call("copy_columns", [out, x], ELEMENT_WORK * rows * columns, rows=rows, columns=columns, **where)


def transpose(b: PlanBuilder, n: int, rows: int, columns: int, out: Buffer, x: Buffer) -> None:
    b.call("transpose", [out, x], ELEMENT_WORK * n * rows * columns, n=n, rows=rows, columns=columns)


def _elementwise(b: PlanBuilder, kernel: str, size: int, args: list[Optional], kind: int = 0, alpha: float = 0) -> None:
    b.call(kernel, args, ELEMENT_WORK * size, size=size, kind=kind, alpha=alpha)


def copy(b: PlanBuilder, size: int, out: Buffer, x: Buffer) -> None:
    _elementwise(b, "copy", size, [out, x])


def add(b: PlanBuilder, size: int, y: Buffer, first: Buffer, second: Buffer) -> None:
    _elementwise(b, "add", size, [y, first, second])


def activation(b: PlanBuilder, size: int, name: str, alpha: float, y: Buffer, x: Buffer) -> None:
    _elementwise(b, "activation", size, [y, x], _kind(name), alpha)


def activation_backward(
    b: PlanBuilder, size: int, name: str, alpha: float, dx: Buffer, dy: Buffer, x: Buffer, y: Optional = None
) -> None:
    """y, where it is at hand, is taken instead of x by the functions whose derivative then costs less."""
    if y is not None and name in ("sigmoid", "tanh"):
        _elementwise(b, "activation_backward_of_y", size, [dx, dy, y], _kind(name))
    else:
        _elementwise(b, "activation_backward", size, [dx, dy, x], _kind(name), alpha)


def _kind(name: str) -> int:
    return list(shapes.ACTIVATION_OPTIONS).index(name)


def dropout(
    b: PlanBuilder,
    shape: tuple[int, ...],
    rate: float,
    spatial: bool,
    entry: int,
    y: Buffer,
    x: Buffer,
    state: Buffer,
) -> None:
    """Forward and, with dy for x, backward. Spatial: of whole channels; shape is (N, C) or (N, C, H, W) then."""
    n, c, h, w = shape if len(shape) == 4 else (shape[0], 1, 1, math.prod(shape[1:]))
    b.call(
        "dropout", [y, x, state], 4 * ELEMENT_WORK * math.prod(shape),
        n=n, c=c, h=h, w=w, entry=entry, threshold=math.floor(rate * 2**32), scale=1 / (1 - rate),
        spatial=int(spatial and len(shape) == 4),
    )  # fmt: skip


def batch_norm(
    b: PlanBuilder, kernel: str, rows: int, columns: int, args: list[Optional], *, epilogue: Epilogue | None = None,
    **options: Any,
) -> None:  # fmt: skip
    """`kernel` is batch_norm or batch_norm_backward, or planar_ of these; options: training, eps, momentum, plane."""
    if epilogue:
        options["epilogue"] = epilogue
    b.call(kernel, args, 2 * ELEMENT_WORK * rows * columns, rows=rows, columns=columns, **options)


def running_statistics(b: PlanBuilder, columns: int, momentum: float, args: list[Buffer]) -> None:
    b.call("running_statistics", args, ELEMENT_WORK * columns, columns=columns, momentum=momentum)


def fold_batch_norm(
    b: PlanBuilder, columns: int, w_size: int, eps: float, args: list[Optional]
) -> tuple[Buffer, Buffer]:
    """Weights and bias of a convolution with the batch norm after it; args: w, bias, gamma, beta, mean, variance."""
    w, bias = b.arena(w_size), b.arena(columns)
    b.prepare("fold_batch_norm", [w, bias, *args], rows=w_size // columns, columns=columns, eps=eps)
    return w, bias


def by_rows(b: PlanBuilder, kernel: str, rows: int, columns: int, args: list[Optional]) -> None:
    """Softmax, or its gradient."""
    b.call(kernel, args, 2 * ELEMENT_WORK * rows * columns, rows=rows, columns=columns)


def loss(
    b: PlanBuilder,
    kernel: str,
    rows: int,
    columns: int,
    args: list[Optional],
    parameter: float = 0,
    stops: bool = False,
) -> None:
    """A loss of loss.h; args end with the weights of the rows or None."""
    work = 2 * ELEMENT_WORK * rows * columns
    b.call(kernel, args, work, stops=stops, rows=rows, columns=columns, parameter=parameter)

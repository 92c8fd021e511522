"""Kernels called alone, where ops take only some of their paths: each on one thread and on three, which must give the
same bits, and each between stretches of memory that it must leave alone."""

import math

import numpy as np
import pytest
from helpers import VL, assert_close, channels_last, generator, normal, pool2d_cases, run_shared

import pycnn as cnn
from pycnn import calls, shapes
from pycnn.plan import Arena, PlanBuilder

GAP = 64
UNTOUCHED = 77


def guarded(shape, dtype=np.float32):
    """(an array of NaN or its like, the memory it lies in, with a stretch before and behind)."""
    size = math.prod(shape)
    memory = np.full(size + 2 * GAP, UNTOUCHED, dtype)
    array = memory[GAP : GAP + size].reshape(shape)
    array[...] = -1 if np.issubdtype(dtype, np.integer) else np.nan
    return array, memory


def run_alone(build, inputs, outputs):
    """The arrays that the calls of `build` write, by the names and shapes (with dtypes) of `outputs`."""
    results = []
    for threads in (1, 3):
        memories = {
            name: guarded(*shape) if isinstance(shape[0], tuple) else guarded(shape) for name, shape in outputs.items()
        }
        arrays = {name: array for name, (array, _) in memories.items()}
        run_shared(build, inputs | arrays, threads)
        for name, (_, memory) in memories.items():
            assert (memory[:GAP] == UNTOUCHED).all() and (memory[-GAP:] == UNTOUCHED).all(), name
        results.append(arrays)
    for name, array in results[0].items():
        np.testing.assert_array_equal(array, results[1][name])
    return results[0]


# --------------------------------------------------------------------------------------- transpositions

SIDES = [1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 66]
# More than one block of 64 by 256, or of 16,384 where the other side is thin.
LARGE = [(1, 64, 512), (2, 79, 531), (2, 531, 79), (1, 3, 40_001), (1, 40_001, 2), (1, 33_000, 4), (1, 5, 700)]


@pytest.mark.parametrize(("n", "rows", "columns"), [*((3, r, c) for r in SIDES for c in SIDES), *LARGE])
def test_transpose(n, rows, columns):
    x = np.arange(n * rows * columns, dtype=np.float32).reshape(n, rows, columns)

    def build(b):
        calls.transpose(b, n, rows, columns, b.external("out"), b.external("x"))

    out = run_alone(build, {"x": x}, {"out": (n, columns, rows)})["out"]
    np.testing.assert_array_equal(out, x.transpose(0, 2, 1))


# --------------------------------------------------------------------------------------------- pooling


def nhwc(x):
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1))


def check_pooling(shape, kernel_size, **options):
    """Forward and backward of max and average pooling: windows that are known give the gradients that `ops` gives,
    which for max pooling only knows where the maxima were."""
    g = shapes.pool2d("max_pool2d", shape, kernel_size, **options)
    n, c, oh, ow = g.y_shape
    y_memory, x_memory = (n, oh, ow, c), (n, *shape[2:], c)
    x, dy = channels_last(normal(shape)), channels_last(normal(g.y_shape, "dy"))
    y, argmax = ops_results = cnn.ops.max_pool2d(x, kernel_size, **options)
    outputs = {"y": y_memory, "argmax": (y_memory, np.int32)}
    found = run_alone(
        lambda b: calls.pool2d(b, "max_pool2d", g, [*map(b.external, ("y", "argmax", "x"))]), {"x": nhwc(x)}, outputs
    )
    for name, expected in zip(outputs, ops_results, strict=True):
        np.testing.assert_array_equal(found[name], nhwc(expected))

    inputs = {"dy": nhwc(dy), "argmax": nhwc(argmax)}
    dx = run_alone(
        lambda b: calls.pool2d(b, "max_pool2d_backward", g, [*map(b.external, ("dx", "dy", "argmax"))]),
        inputs, {"dx": x_memory},
    )["dx"]  # fmt: skip
    np.testing.assert_array_equal(dx, nhwc(cnn.ops.max_pool2d_backward(dy, argmax, shape)))

    if (g.dilation_h, g.dilation_w) != (1, 1):
        return
    y = run_alone(
        lambda b: calls.pool2d(b, "avg_pool2d", g, [b.external("y"), b.external("x")]), {"x": nhwc(x)}, {"y": y_memory}
    )["y"]
    dx = run_alone(
        lambda b: calls.pool2d(b, "avg_pool2d_backward", g, [b.external("dx"), b.external("dy")]),
        {"dy": nhwc(dy)}, {"dx": x_memory},
    )["dx"]  # fmt: skip
    # Backward is the transpose of forward.
    assert_close((dx * nhwc(x)).sum(dtype=np.float64), (y * nhwc(dy)).sum(dtype=np.float64), 1e-5, floor=1)


@pytest.mark.parametrize("channels", [1, 3, 6, VL - 1, VL, VL + 1, 2 * VL, 3 * VL + 1])
@pytest.mark.parametrize(
    ("kernel_size", "options"),
    [
        (2, {}),
        (3, {}),
        ((2, 1), {}),
        (2, {"ceil_mode": True, "padding": 1}),
        (2, {"stride": 3}),
        (2, {"stride": (3, 2), "dilation": (3, 1), "padding": 1}),
        (3, {"stride": 2, "padding": 1}),
        (3, {"stride": 1, "padding": 1}),
        ((3, 2), {"stride": (1, 2)}),
        (2, {"stride": 1, "dilation": 2}),
        (5, {"stride": 1, "padding": 2}),
    ],
    ids=str,
)
def test_pooling_with_known_windows(channels, kernel_size, options):
    check_pooling((2, channels, 7, 8), kernel_size, **options)
    check_pooling((1, channels, 5, 5), kernel_size, **options)


@pytest.mark.parametrize(("shape", "kernel_size", "options"), pool2d_cases(60, seed=3), ids=str)
def test_pooling_with_known_windows_at_random_shapes(shape, kernel_size, options):
    check_pooling(shape, kernel_size, **options)


@pytest.mark.parametrize("channels", [1, 3, VL + 1, 4 * VL, 9 * VL + 2])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 17), (4, 4), (6, 7), (3, 11), (23, 29)])
def test_global_pooling(channels, h, w):
    shape = (3, channels, h, w)
    x, dy = normal(shape), normal(shape[:2], "dy")
    y = run_alone(
        lambda b: calls.global_pool2d(b, "global_avg_pool2d", shape, [b.external("y"), b.external("x")]),
        {"x": nhwc(x)}, {"y": shape[:2]},
    )["y"]  # fmt: skip
    assert_close(y, x.mean((2, 3), np.float64))
    dx = run_alone(
        lambda b: calls.global_pool2d(b, "global_avg_pool2d_backward", shape, [b.external("dx"), b.external("dy")]),
        {"dy": dy}, {"dx": (3, h, w, channels)},
    )["dx"]  # fmt: skip
    expected = np.broadcast_to((dy / np.float32(h * w))[:, None, None, :], dx.shape)
    np.testing.assert_array_equal(dx, expected)


# ------------------------------------------------------------------------------------ images of other sizes

channels_around_vectors = pytest.mark.parametrize("channels", [1, 3, 17, VL - 1, VL, 2 * VL + 1])


def check_both_ways(forward, backward, x, y_shape, expected, expected_backward):
    """A kernel y, x and its backward dx, dy on channels-last memory, against what the twins make of x and of dy.

    `forward` and `backward` are functions of a builder, the buffer to write and the one to read.
    """
    dy = normal(y_shape, "dy")
    n, c, h, w = x.shape
    y = run_alone(lambda b: forward(b, b.external("y"), b.external("x")), {"x": nhwc(x)}, {"y": (n, *y_shape[2:], c)})[
        "y"
    ]
    assert_close(y, nhwc(np.array(expected(x.tolist()))))
    dx = run_alone(lambda b: backward(b, b.external("dx"), b.external("dy")), {"dy": nhwc(dy)}, {"dx": (n, h, w, c)})[
        "dx"
    ]
    assert_close(dx, nhwc(np.array(expected_backward(dy.tolist()))), floor=1)


@channels_around_vectors
@pytest.mark.parametrize(("size", "output"), [((1, 1), (1, 1)), ((5, 7), (2, 3)), ((3, 2), (4, 5)), ((7, 6), (5, 6))])
def test_adaptive_avg_pool2d(channels, size, output):
    x = normal((2, channels, *size))
    check_both_ways(
        lambda b, y, x_: calls.resize(b, "adaptive_avg_pool2d", x.shape, output, [y, x_]),
        lambda b, dx, dy: calls.resize(b, "adaptive_avg_pool2d_backward", x.shape, output, [dx, dy]),
        x, (2, channels, *output),
        lambda lists: cnn.reference.adaptive_avg_pool2d(lists, output),
        lambda lists: cnn.reference.adaptive_avg_pool2d_backward(lists, x.shape, output),
    )  # fmt: skip


@channels_around_vectors
@pytest.mark.parametrize("mode", shapes.UPSAMPLING_MODES)
@pytest.mark.parametrize(("size", "scale"), [((1, 1), (3, 2)), ((2, 3), (1, 4)), ((4, 3), (2, 3)), ((3, 5), (5, 1))])
def test_upsample2d(channels, mode, size, scale):
    x = normal((2, channels, *size))
    output = size[0] * scale[0], size[1] * scale[1]
    check_both_ways(
        lambda b, y, x_: calls.resize(b, "upsample2d", x.shape, output, [y, x_], mode),
        lambda b, dx, dy: calls.resize(b, "upsample2d_backward", x.shape, output, [dx, dy], mode),
        x, (2, channels, *output),
        lambda lists: cnn.reference.upsample2d(lists, scale, mode),
        lambda lists: cnn.reference.upsample2d_backward(lists, scale, mode),
    )  # fmt: skip


@channels_around_vectors
@pytest.mark.parametrize("pads", [(0, 0, 0, 0), (1, 0, 0, 2), (0, 3, 1, 0), (2, 2, 2, 2)])
def test_pad2d(channels, pads):
    x = normal((2, channels, 3, 4))
    padding = pads[:2], pads[2:]
    check_both_ways(
        lambda b, y, x_: calls.pad2d(b, x.shape, pads, y, x_),
        lambda b, dx, dy: calls.pad2d(b, y_shape, tuple(-pad for pad in pads), dx, dy),
        x, y_shape := (2, channels, 3 + sum(pads[:2]), 4 + sum(pads[2:])),
        lambda lists: cnn.reference.zero_pad2d(lists, padding),
        lambda lists: cnn.reference.zero_pad2d_backward(lists, padding),
    )  # fmt: skip


@channels_around_vectors
@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 7), (5, 5)])
def test_scale_channels(channels, h, w):
    shape = (3, channels, h, w)
    x, dy, scale = normal(shape, "x"), normal(shape, "dy"), normal(shape[:2], "scale")
    inputs = {"dy": nhwc(dy), "x": nhwc(x), "scale": scale}

    def forward(b):
        calls.global_pool2d(b, "scale_channels", shape, [b.external(name) for name in ("y", "x", "scale")])

    y = run_alone(forward, inputs, {"y": (3, h, w, channels)})["y"]
    assert_close(y, nhwc(np.array(cnn.reference.scale_channels(x.tolist(), scale.tolist()))))

    def backward(b):
        names = ("dx", "dscale", "dy", "x", "scale")
        calls.global_pool2d(b, "scale_channels_backward", shape, [b.external(name) for name in names])

    found = run_alone(backward, inputs, {"dx": (3, h, w, channels), "dscale": shape[:2]})
    dx, dscale = cnn.reference.scale_channels_backward(dy.tolist(), x.tolist(), scale.tolist())
    assert_close(found["dx"], nhwc(np.array(dx)))
    assert_close(found["dscale"], dscale, floor=1)


@pytest.mark.parametrize(("rows", "counts"), [(1, (1, 1)), (5, (3, 17)), (4, (VL, 1, 2 * VL + 1))])
def test_copy_columns(rows, counts):
    parts = {f"x{i}": normal((rows, count), i) for i, count in enumerate(counts)}
    whole, firsts = np.concatenate(list(parts.values()), 1), np.cumsum([0, *counts])

    def join(b):
        for i, count in enumerate(counts):
            to = int(firsts[i]), whole.shape[1]
            calls.copy_columns(b, rows, count, b.external("y"), to, b.external(f"x{i}"), (0, count))

    def split(b):
        for i, count in enumerate(counts):
            source = int(firsts[i]), whole.shape[1]
            calls.copy_columns(b, rows, count, b.external(f"x{i}"), (0, count), b.external("y"), source)

    np.testing.assert_array_equal(run_alone(join, parts, {"y": whole.shape})["y"], whole)
    found = run_alone(split, {"y": whole}, {name: part.shape for name, part in parts.items()})
    for name, part in parts.items():
        np.testing.assert_array_equal(found[name], part)


# ------------------------------------------------------------------------------------------ batch norm


@pytest.mark.parametrize("rows", [1, 5, 64, 127, 128, 129, 1000])
@pytest.mark.parametrize("columns", [1, VL + 1, 4 * VL, 5 * VL + 3])
@pytest.mark.parametrize("slope", [None, 0.0, 0.25], ids=["alone", "relu", "leaky"])
def test_batch_norm_over_slices_of_rows(rows, columns, slope):
    """Rows are cut into slices of 64 to 127, whose means and variances are merged; a far mean must not matter. With a
    slope, a residual is added and the sum rectified, and the gradient comes in two parts."""
    x, dy, dy2, residual = (normal((rows, columns), name) for name in ("x", "dy", "dy2", "residual"))
    x += np.linspace(-50, 50, columns, dtype=np.float32)
    x += np.linspace(0, 3, rows, dtype=np.float32)[:, None]
    gamma, beta = normal(columns, "gamma"), normal(columns, "beta")
    fused = slope is not None
    options = {"training": True, "eps": 1e-3, "epilogue": {"rectifies": 1, "slope": slope} if fused else None}

    def forward(b):
        outputs = [b.external(name) for name in ("y", "mean", "rstd", "variance")]
        args = [b.external(name) for name in ("x", "gamma", "beta")]
        args += [None, None, b.external("residual") if fused else None]
        calls.batch_norm(b, "batch_norm", rows, columns, outputs + args, **options)

    outputs = {"y": x.shape, "mean": (columns,), "rstd": (columns,), "variance": (columns,)}
    found = run_alone(forward, {"x": x, "gamma": gamma, "beta": beta, "residual": residual}, outputs)
    exact = x.astype(np.float64)
    mean, var = exact.mean(0), exact.var(0)
    rstd = 1 / np.sqrt(var + 1e-3)
    normal_x = (exact - mean) * rstd
    assert_close(found["mean"], mean, 1e-6)
    assert_close(found["rstd"], rstd, 1e-5)
    assert_close(found["variance"], var, 1e-5, floor=1e-3)
    y = normal_x * gamma + beta
    if fused:
        y += residual
        y = np.where(y > 0, y, slope * y)
    if rows > 1:
        assert_close(found["y"], y, 2e-5)

    used = {"x": x, "mean": mean.astype(np.float32), "rstd": rstd.astype(np.float32), "gamma": gamma}
    y = found["y"]

    def backward(b):
        args = [b.external(name) for name in ("dx", "dgamma", "dbeta")]
        optional = [b.external(name) if fused else None for name in ("dr", "dy2", "y")]
        args += [optional[0], b.external("dy"), *optional[1:], *map(b.external, used)]
        calls.batch_norm(b, "batch_norm_backward", rows, columns, args, **options)

    outputs = {"dx": x.shape, "dgamma": (columns,), "dbeta": (columns,)} | ({"dr": x.shape} if fused else {})
    found = run_alone(backward, used | {"dy": dy, "dy2": dy2, "y": y}, outputs)
    if fused:
        dy = (dy + dy2) * np.where(y > 0, np.float32(1), np.float32(slope))
        np.testing.assert_array_equal(found["dr"], dy)
    normal_x = (exact - used["mean"]) * used["rstd"]
    dgamma, dbeta = (dy * normal_x).sum(0), dy.sum(0, dtype=np.float64)
    assert_close(found["dgamma"], dgamma, 2e-5, floor=math.sqrt(rows))
    assert_close(found["dbeta"], dbeta, 2e-6, floor=math.sqrt(rows))
    dx = gamma * used["rstd"] * (dy - dbeta / rows - normal_x * dgamma / rows)
    assert_close(found["dx"], dx, 2e-5, floor=np.abs(gamma * rstd).max())


# Input, filters, kernel and options, one for each way through the engines; which of them run Winograd's algorithm.
MEASURED = {
    "planar": ((3, 1, 9, 8), 1, 3, {"padding": 1}),
    "rows of taps": ((2, 3, 11, 13), VL + 3, 3, {"padding": 1, "stride": 2}),
    "one pixel": ((1, 20, 1, 1), 5, 1, {}),
    "panels of one and two vectors": ((3, 20, 7, 9), 5 * VL + 1, 1, {}),
    "several chunks, stride 2": ((2, 600, 7, 7), VL, 3, {"padding": 1, "stride": 2}),
    "rows far apart": ((2, 256, 8, 8), 2 * VL, 1, {}),
    "groups": ((2, 80, 5, 6), 2 * 40, 1, {"groups": 2}),
    "tiles of images": ((29, 24, 3, 2), VL + 1, 3, {"padding": 1}),
    "winograd, blocks of patches": ((4, 17, 14, 9), 2 * VL + 3, 3, {"padding": 1}),
    "winograd, panels of filters": ((1, 40, 6, 6), 5 * VL, 3, {"padding": 1}),
    "winograd, dilated": ((1, 24, 9, 5), 3, 3, {"padding": 3, "dilation": 3}),
    "winograd, segments": ((2, 16, 9, 9), 24, 5, {"padding": 2}),
}


@pytest.mark.parametrize("case", MEASURED)
@pytest.mark.parametrize("slope", [None, 0.25], ids=["plain", "leaky"])
def test_a_convolution_takes_the_moments_of_its_outputs(case, slope, monkeypatch):
    x_shape, k, size, options = MEASURED[case]
    monkeypatch.setattr(calls, "_uses_winograd", lambda *_: case.startswith("winograd"))
    g = shapes.conv2d("conv2d", x_shape, (k, x_shape[1] // options.get("groups", 1), size, size), **options)
    x = normal((g.n, g.h, g.w, g.c), "x")
    w = normal((size, size, g.c // g.groups, k), "w") / np.float32(math.sqrt(size * size * g.c))
    bias = np.linspace(-40, 40, k, dtype=np.float32)

    def build(b):
        moments = b.external("mean"), b.external("variance")
        epilogue = None if slope is None else {"rectifies": 1, "slope": slope}
        args = [b.external(name) for name in ("y", "x", "w", "bias")]
        calls.conv2d(b, g, calls.rsck_strides(g), *args, epilogue=epilogue, moments=moments)

    outputs = {"y": (g.n, g.oh, g.ow, k), "mean": (k,), "variance": (k,)}
    found = run_alone(build, {"x": x, "w": w, "bias": bias}, outputs)
    rows = found["y"].reshape(-1, k).astype(np.float64)
    assert_close(found["mean"], rows.mean(0), 1e-6)
    assert_close(found["variance"], rows.var(0), 1e-5)


# The ways through the engines that store planes; "groups" is a product's; grouped.h stores pixels only.
IN_PLANES = {
    "planar": ((3, 1, 9, 8), 2, 3, {"padding": 1}),
    "rows of taps": ((2, 3, 11, 13), 2 * VL + 3, 3, {"padding": 1}),
    "few channels": ((2, 3, 11, 13), VL + 3, 5, {"padding": 2, "dilation": (1, 2)}),
    "one pixel": ((2, 20, 1, 1), 5, 1, {}),
    "panels of one and two vectors": ((3, 20, 7, 9), 5 * VL + 1, 1, {}),
    "several chunks, stride 2": ((2, 600, 7, 7), VL, 3, {"padding": 1, "stride": 2}),
    "several groups of panels": ((2, 520, 5, 5), 11 * 2 * VL, 1, {}),
    "rows far apart": ((2, 2048, 3, 3), 20 * 2 * VL, 1, {}),
    "groups": ((2, 80, 5, 6), 2 * 40, 1, {"groups": 2}),
    "images of padding": ((29, 24, 3, 2), VL + 1, 3, {"padding": 1}),
    "winograd, blocks of patches": ((4, 17, 14, 9), 2 * VL + 3, 3, {"padding": 1}),
    "winograd, panels of filters": ((1, 40, 8, 8), 5 * VL, 3, {"padding": 1}),
    "winograd, dilated": ((1, 24, 9, 5), 3, 3, {"padding": 3, "dilation": 3}),
}


@pytest.mark.parametrize("case", IN_PLANES)
def test_a_convolution_stores_planes(case, monkeypatch):
    """The same sums as pixels, which a tile that leaves padding out takes in another order, and for which Winograd's
    transforms, compiled once more, may fuse other multiplications and additions."""
    x_shape, k, size, options = IN_PLANES[case]
    monkeypatch.setattr(calls, "_uses_winograd", lambda *_: case.startswith("winograd"))
    g = shapes.conv2d("conv2d", x_shape, (k, x_shape[1] // options.get("groups", 1), size, size), **options)
    inputs = {"x": normal((g.n, g.h, g.w, g.c), "x"), "dy": normal((g.n, g.oh, g.ow, k), "dy"), "b": normal(k, "b")}
    inputs["w"] = normal((k, g.c // g.groups, size, size), "w")

    def build(b):
        x, dy, w, bias = (b.external(name) for name in ("x", "dy", "w", "b"))
        for planes in (False, True):
            y, dx = b.external(f"y{planes:d}"), b.external(f"dx{planes:d}")
            calls.conv2d(b, g, calls.kcrs_strides(g), y, x, w, bias, planes=planes)
            calls.conv2d_backward_data(b, g, calls.kcrs_strides(g), dx, dy, w, planes=planes)

    pixels = {"y0": (g.n, g.oh, g.ow, k), "dx0": (g.n, g.h, g.w, g.c)}
    found = run_alone(build, inputs, pixels | {"y1": g.y_shape, "dx1": g.x_shape})
    for name in ("y", "dx"):
        planes, expected = found[f"{name}1"], found[f"{name}0"].transpose(0, 3, 1, 2)
        if case == "images of padding" or case.startswith("winograd"):
            assert_close(planes, expected, 2e-6, floor=1)
        else:
            np.testing.assert_array_equal(planes, expected)


def test_running_statistics():
    running = {name: np.full(5, 2, np.float32) for name in ("running_mean", "running_var")}
    batch = {"mean": normal(5), "variance": normal(5) ** 2}
    builder = PlanBuilder()
    calls.running_statistics(builder, 5, 0.75, [builder.external(name) for name in (*running, *batch)])
    plan = builder.finish()
    plan.bind(running | batch, Arena(plan.arena_bytes)).run()
    for name, of_batch in zip(running, batch.values(), strict=True):
        assert_close(running[name], 0.75 * 2 + 0.25 * of_batch.astype(np.float64))


# ---------------------------------------------------------------------------- activations from their value


@pytest.mark.parametrize("name", list(shapes.ACTIVATION_OPTIONS))
@pytest.mark.parametrize("size", [1, VL, VL + 1, 5001])
def test_derivatives_of_activations_whose_value_is_at_hand(name, size):
    x, dy = 3 * normal(size, "x"), normal(size, "dy")
    alpha = shapes.ACTIVATION_OPTIONS[name].get("alpha", 0.0)
    arrays = {"dy": dy, "x": x, "y": cnn.ops.activation(x, name)}

    def build(b):
        calls.activation_backward(b, size, name, alpha, b.external("dx"), *map(b.external, arrays))

    dx = run_alone(build, arrays, {"dx": (size,)})["dx"]
    assert_close(dx, cnn.ops.activation_backward(dy, x, name), 2e-7, floor=1)


# -------------------------------------------------------------------------------- losses and gradient norm


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("wants_gradient", [True, False])
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, VL - 1), (63, 3), (64, VL), (200, 2 * VL + 3), (1, 500)])
def test_losses_over_slices_of_rows(rows, columns, wants_gradient, weighted):
    """Losses are added up in 64 slices; without a gradient cross entropy works in memory of each thread."""
    z, t = 3 * normal((rows, columns)), generator(rows, columns).random((rows, columns)).astype(np.float32)
    labels = generator("labels", rows).integers(0, columns, rows).astype(np.int32)
    weights = generator("weights", rows).random(rows).astype(np.float32)
    weights[2::3] = 0
    exact = z.astype(np.float64)
    log_p = exact - exact.max(1, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(1, keepdims=True))
    one_hot, e, delta = np.eye(columns)[labels], exact - t, 1.5
    smooth = 0.8 * one_hot + 0.2 / columns
    # By name and parameter: the losses of the elements (or rows) and the gradients of their sum.
    losses = {
        ("softmax_cross_entropy", 0): (-log_p[np.arange(rows), labels][:, None], np.exp(log_p) - one_hot),
        ("softmax_cross_entropy", 0.2): (-(smooth * log_p).sum(1, keepdims=True), np.exp(log_p) - smooth),
        ("binary_cross_entropy", 0): (
            np.maximum(exact, 0) - exact * t + np.log1p(np.exp(-np.abs(exact))),
            1 / (1 + np.exp(-exact)) - t,
        ),
        ("mse", 0): (e**2, 2 * e),
        ("mae", 0): (np.abs(e), np.sign(e)),
        ("huber", delta): (
            np.where(np.abs(e) <= delta, e * e / 2, delta * (np.abs(e) - delta / 2)),
            np.clip(e, -delta, delta),
        ),
    }
    for (kernel, parameter), (values, slopes) in losses.items():

        def build(b, kernel=kernel, parameter=parameter):
            args = [b.external("loss"), b.external("gradient") if wants_gradient else None, b.external("z")]
            args += [b.external("labels"), None] if kernel == "softmax_cross_entropy" else [b.external("t")]
            args += [b.external("weights") if weighted else None]
            calls.loss(b, kernel, rows, columns, args, parameter)

        outputs = {"loss": (1,)} | ({"gradient": z.shape} if wants_gradient else {})
        found = run_alone(build, {"z": z, "t": t, "labels": labels, "weights": weights}, outputs)
        share = (weights.astype(np.float64) if weighted else np.ones(rows))[:, None] / values.size
        assert_close(found["loss"][0], (share * values).sum(), 1e-6)
        if wants_gradient:
            assert_close(found["gradient"], share * slopes, 1e-6, floor=1 / rows)


@pytest.mark.parametrize("size", [1, 7, 8, 9, 64, 515, 64 * 8 + 64 * 7, 100_003])
def test_gradient_norm_and_one_that_is_added(size):
    g = normal(size)

    def build(b):
        for kind in (0, 1):
            b.call("gradient_norm", [b.external("total"), b.external("g")], size, size=size, kind=kind)

    total = run_alone(build, {"g": g}, {"total": ((1,), np.float64)})["total"]
    assert_close(total[0], 2 * (g.astype(np.float64) ** 2).sum(), 1e-14)


# --------------------------------------------------------------------------------------- small products


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("n", [1, 3, 8, 9, 10, 12, 16, 17, 33, 64])
def test_small_products_on_one_thread_are_those_of_three(n, trans_b):
    """One thread makes a product of one panel without the cuts that several take."""
    for m in (1, 7, 9, 200):
        for k in (1, 3, 17, 64):
            a, b, bias, c = normal((m, k)), normal((n, k) if trans_b else (k, n)), normal(n), normal((m, n), "c")

            def build(builder, m=m, k=k):
                buffers = list(map(builder.external, ("c", "a", "b", "bias")))
                calls.copy(builder, m * n, buffers[0], builder.external("before"))
                calls.gemm(builder, m, n, k, *buffers, trans_b=trans_b, alpha=1.5, beta=0.5)
                calls.gemm(builder, m, n, k, builder.external("plain"), *buffers[1:3], trans_b=trans_b)

            outputs = {"c": (m, n), "plain": (m, n)}
            found = run_alone(build, {"a": a, "b": b, "bias": bias, "before": c}, outputs)
            product = a.astype(np.float64) @ (b.T if trans_b else b)
            assert_close(found["plain"], product, 2e-6)
            assert_close(found["c"], 1.5 * product + bias + 0.5 * c, 2e-6)


# ------------------------------------------------------------------------------------------- updates

UPDATES = {
    "adam": cnn.Adam(0.01, eps=1e-3, weight_decay=0.1),
    "adamw": cnn.AdamW(0.01, eps=1e-3, weight_decay=0.1),
    "rmsprop": cnn.RMSprop(0.01, eps=1e-3, weight_decay=0.1),
    "rmsprop centered": cnn.RMSprop(0.01, alpha=0.9, eps=1e-3, centered=True),
    "rmsprop momentum": cnn.RMSprop(0.01, alpha=0.9, eps=1e-3, momentum=0.8, centered=True),
    "adagrad": cnn.Adagrad(0.1, lr_decay=0.5, weight_decay=0.1, initial_accumulator_value=0.2),
    "adagrad momentum": cnn.AdagradMomentum(0.1, weight_decay=0.1, clip_value=0.5),
    "sgd": cnn.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
}


@pytest.mark.parametrize("name", UPDATES)
@pytest.mark.parametrize("size", [1, VL - 1, VL, 2 * VL + 3, 5000])
def test_updates_equal_their_twins(size, name):
    """Three steps, beyond the size that a task takes as well."""
    optimizer = UPDATES[name]
    w, slots = normal(size, name), [np.zeros(size, np.float32) for _ in range(optimizer.slots())]
    slots[0][...] = optimizer.first_slot_value()
    expected, lists = w.tolist(), [slot.tolist() for slot in slots]
    for step in (1, 2, 3):
        g, state = normal(size, step), np.array(optimizer.state(optimizer.lr, step, 1.0), np.float32)
        arrays = {"w": w, **{f"slot{i}": slot for i, slot in enumerate(slots)}}
        inputs = {f"{key}'s": value for key, value in arrays.items()} | {"g": g, "state": state}

        def build(b, arrays=arrays):
            for key in arrays:
                calls.copy(b, size, b.external(key), b.external(f"{key}'s"))
            places = [b.external(key) for key in arrays]
            optimizer.lower(b, size, places[0], places[1:], b.external("g"), b.external("state"))

        w, *slots = run_alone(build, inputs, {key: (size,) for key in arrays}).values()
        limit = optimizer.clip_value or math.inf
        optimizer.update_list(expected, np.clip(g, -limit, limit).tolist(), lists, optimizer.lr, step)
    assert_close(w, expected, 1e-6)
    for slot, values in zip(slots, lists, strict=True):
        assert_close(slot, values, 1e-6)

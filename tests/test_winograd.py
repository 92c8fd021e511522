"""Winograd's convolution: its three kernels in both loop nests and weight layouts against double precision, the rule
that chooses them, the switch, and the error that they promise."""

import itertools
from dataclasses import asdict

import numpy as np
import pytest
from helpers import VL, assert_close, conv2d_backward_double, conv2d_double, error, normal, winograd

import pycnn as cnn
from pycnn import calls, shapes
from pycnn.plan import Arena, PlanBuilder, run_once

TILE_ROWS = {"avx512": 14, "avx2": 6, "neon": 12, "baseline": 6}[cnn.info()["isa"]]


def has_patches(g, height, width, columns):
    """Whether images may come in planes: what `calls.reads_planes` asks for besides the rule of costs."""
    return (g.dilation_h, g.dilation_w) == (1, 1) and calls._patches(g, height, width) >= columns


def run_kernels(x, w, b, dy, padding, dilation, weights, planes):
    """y, dx, dw of the three kernels, whatever the rule says; weights in (K, C, R, S) or (R, S, C, K) memory; images in
    planes (N, C, H, W), where a kernel takes them, or pixels."""
    g = shapes.conv2d("test", x.shape, w.shape, padding=padding, stride=1, dilation=dilation, groups=1)
    order = (0, 1, 2, 3) if weights == "KCRS" else (2, 3, 1, 0)
    strides = calls.kcrs_strides(g) if weights == "KCRS" else calls.rsck_strides(g)
    kernels = {
        "winograd_conv2d": (("y", None, None, "x", "w", "b", None), has_patches(g, g.oh, g.ow, g.k)),
        "winograd_conv2d_backward_data": (("dx", "dy", "w"), has_patches(g, g.h, g.w, g.c)),
        "winograd_conv2d_backward_weights": (("dw", "x", "dy"), g.dilation_h == g.dilation_w == 1),
    }
    results = []
    for kernel, (names, takes_planes) in kernels.items():
        in_planes = planes and takes_planes
        axes = (0, 1, 2, 3) if in_planes else (0, 2, 3, 1)
        arrays = {name: np.ascontiguousarray(a.transpose(axes)) for name, a in (("x", x), ("dy", dy))}
        arrays |= {"w": np.ascontiguousarray(w.transpose(order)), "b": b}
        like = {"y": "dy", "dx": "x", "dw": "w"}[names[0]]
        made = arrays[names[0]] = np.full_like(arrays[like], np.nan)
        builder = PlanBuilder()
        args = [name and builder.external(name) for name in names]
        builder.call(kernel, args, 1e9, **asdict(g), **strides, planes=in_planes, from_planes=in_planes)
        run_once(builder.finish(), arrays)
        results.append(made.transpose(np.argsort(order if like == "w" else axes)))
    return results


def check_kernels(n, c, h, w, k, padding=1, kernel=(3, 3), dilation=1):
    x, filters, b = normal((n, c, h, w), "x"), normal((k, c, *kernel), "w"), normal(k, "b")
    expected_y = conv2d_double(x, filters, b, padding=padding, dilation=dilation)
    dy = normal(expected_y.shape, "dy")
    dx, dw, _ = conv2d_backward_double(dy, x, filters, padding=padding, dilation=dilation)
    for weights, planes in (("KCRS", False), ("RSCK", False), ("RSCK", True)):
        actual = run_kernels(x, filters, b, dy, padding, dilation, weights, planes)
        for result, wanted, tolerance in zip(actual, (expected_y, dx, dw), (5e-6, 5e-6, 1e-5), strict=True):
            assert_close(result, wanted, tolerance, floor=1)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 9, 7), (3, VL + 1, 8, 8), (20, 2 * VL, 14, 13)])
@pytest.mark.parametrize(("filters", "kernel", "winograd_on"), [(VL + 3, 3, True), (VL + 3, 3, False), (2, 2, False)])
def test_weights_packed_beforehand_give_the_same_bits(shape, filters, kernel, winograd_on):
    x, w, b = normal(shape, "x"), normal((filters, shape[1], kernel, kernel), "w"), normal(filters, "b")
    g = shapes.conv2d("test", x.shape, w.shape, padding=1, stride=1, dilation=1, groups=1)
    given = {"x": np.ascontiguousarray(x.transpose(0, 2, 3, 1)), "w": np.ascontiguousarray(w), "b": b}
    results = []
    for kept in (False, True):
        builder = PlanBuilder()
        buffers = [builder.external(name) for name in ("y", "x", "w", "b")]
        with winograd(winograd_on):
            calls.conv2d(builder, g, calls.kcrs_strides(g), *buffers, kept=kept)
        y = np.full((g.n, g.oh, g.ow, g.k), np.nan, np.float32)
        plan = builder.finish()
        binding = plan.bind(given | {"y": y}, Arena(plan.arena_bytes))
        binding.run()
        y[...] = np.nan
        binding.run(plan.marks["prepared"])
        results.append(y)
    np.testing.assert_array_equal(*results)


@pytest.mark.parametrize("channels", [1, 3, VL - 1, VL, VL + 1, 17, 2 * VL + 1])
@pytest.mark.parametrize("filters", [1, 3, VL - 1, VL, VL + 1, 2 * VL, 2 * VL + 1])
def test_channels_and_filters_around_the_vector_width(channels, filters):
    check_kernels(2, channels, 5, 6, filters)


@pytest.mark.parametrize(("h", "w"), [(1, 1), (1, 9), (2, 3), (3, 3), (4, 4), (4, 5), (5, 4), (7, 8), (9, 13)])
@pytest.mark.parametrize("padding", [1, 2, ((1, 3), (2, 1)), ((4, 1), (1, 5))])
def test_odd_sizes_and_paddings(h, w, padding):
    check_kernels(1, 5, h, w, VL + 3, padding)


@pytest.mark.parametrize(("h", "w"), [(3, 3), (6, 6), (7, 3), (10, 11)])
def test_without_padding(h, w):
    check_kernels(3, VL + 1, h, w, 6, 0)


@pytest.mark.parametrize("patches", [1, TILE_ROWS - 1, TILE_ROWS, TILE_ROWS + 1, 2 * TILE_ROWS + 1, 5 * TILE_ROWS - 1])
@pytest.mark.parametrize("filters", [2, 3 * VL, 200])
def test_patches_around_the_rows_of_the_micro_kernel(patches, filters):
    """Fewer patches than filters take the loop nest over panels, otherwise that over blocks of patches."""
    check_kernels(patches, VL, 4, 3, filters)


@pytest.mark.parametrize(
    "kernel", [(1, 1), (2, 2), (1, 3), (3, 2), (4, 4), (5, 5), (6, 6), (3, 7), (7, 3), (8, 5), (10, 10)], ids=str
)
@pytest.mark.parametrize("shape", [(2, 3, 13, 11, VL + 3), (3, VL + 1, 12, 10, 5), (1, 2 * VL, 10, 14, 3 * VL)])
def test_segments_of_other_kernels(kernel, shape):
    """A kernel of any size in segments of 3x3 taps; with more padding than the kernel reaches as well."""
    check_kernels(*shape, 0, kernel)
    check_kernels(*shape, ((0, 2), (kernel[0], 1)), kernel)


@pytest.mark.parametrize("h", [1, 5, 9])
def test_lines_of_patches_that_are_cut(h):
    """Of planes, windows are brought to pixels for boxes of some lines, or of a part of a line that is too long."""
    check_kernels(2, 3, h, 190, VL + 2)
    check_kernels(1, VL + 1, h, 345, 3, 2, (5, 4))


def test_a_kernel_as_large_as_the_image():
    check_kernels(2, 5, 7, 8, 6, 0, (7, 8))
    check_kernels(2, 5, 3, 4, 6, ((4, 3), (2, 5)), (9, 10))


@pytest.mark.parametrize("dilation", [2, 3, (1, 4), (5, 2)])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (4, 9), (14, 13)])
def test_dilation(dilation, h, w):
    """Also by more than the image has rows."""
    pad = [2 * d for d in np.broadcast_to(dilation, 2).tolist()]
    check_kernels(2, VL + 1, h, w, 7, tuple(pad), (3, 3), dilation)
    check_kernels(1, 3, h, w, VL + 2, tuple(2 * p for p in pad), (5, 4), dilation)


def test_segments_in_several_chunks_and_parts():
    check_kernels(1, 100, 11, 9, 70, 1, (5, 4))
    check_kernels(9, 20, 23, 25, 12, 2, (6, 6))


def test_several_chunks_of_channels_and_parts_of_patches():
    check_kernels(1, 300, 9, 9, 70)
    check_kernels(5, 130, 8, 8, 21)


@pytest.mark.parametrize(("n", "c", "k"), [(3, 300, 60), (5, 260, 228)])
def test_several_chunks_of_patches(n, c, k):
    """Backward-weights of so many channels and filters that all threads sum up one chunk after the other."""
    check_kernels(n, c, 28, 25, k)


@pytest.mark.parametrize(
    ("n", "c", "h", "k"),
    [(1, 12, 25, 20), (2, 20, 28, 12), (9, 20, 23, 12), (8, 60, 31, 64), (5, 70, 25, 130), (8, 120, 31, 130)],
)
def test_slices_of_patches(n, c, h, k):
    """Backward-weights of fewer, whose sums each thread makes of its own slices: one, several, and several of several
    chunks each; and those of parts of the filters."""
    check_kernels(n, c, h, 25, k)


@pytest.mark.parametrize(("n", "c", "h", "k"), [(2, 64, 28, 64), (1, 256, 14, 256), (1, 512, 7, 512)])
def test_the_error_at_the_channels_of_real_networks(n, c, h, k):
    x, w = normal((n, c, h, h), "x"), normal((k, c, 3, 3), "w")
    y = conv2d_double(x, w, padding=1)
    dy = normal(y.shape, "dy")
    expected = y, *conv2d_backward_double(dy, x, w, padding=1)
    with winograd(True):
        actual = cnn.ops.conv2d(x, w, padding=1), *cnn.ops.conv2d_backward(dy, x, w, padding=1)
    for result, wanted, limit in zip(actual, expected, (5e-6, 5e-6, 1e-5, 5e-6), strict=True):
        assert_close(result, wanted, limit)


def kernels_of(x_shape, w_shape, **options):
    """The names of the kernels that forward, backward-data and backward-weights take."""
    options = {"stride": 1, "padding": 1, "dilation": 1, "groups": 1} | options
    g = shapes.conv2d("test", x_shape, w_shape, **options)
    builder = PlanBuilder()
    x, y, w = (builder.external(name) for name in "xyw")
    calls.conv2d(builder, g, calls.kcrs_strides(g), y, x, w, None)
    calls.conv2d_backward_data(builder, g, calls.kcrs_strides(g), x, y, w)
    calls.conv2d_backward_weights(builder, g, calls.kcrs_strides(g), w, x, y)
    return [name for name, _ in builder.finish().kernels]


def test_the_rule_takes_dense_3x3_layers_of_stride_1():
    names = ["winograd_conv2d", "winograd_conv2d_backward_data", "winograd_conv2d_backward_weights"]
    for c, size in ((64, 56), (128, 28), (256, 14), (512, 7), (32, 32)):
        assert kernels_of((8, c, size, size), (c, c, 3, 3)) == names, (c, size)


def test_the_rule_takes_larger_and_dilated_kernels():
    names = ["winograd_conv2d", "winograd_conv2d_backward_data", "winograd_conv2d_backward_weights"]
    assert kernels_of((8, 64, 56, 56), (64, 64, 5, 5)) == names
    assert kernels_of((32, 16, 25, 25), (32, 16, 6, 6), padding=0) == names
    assert kernels_of((8, 256, 28, 28), (256, 256, 3, 3), dilation=2) == names


def test_the_gradient_of_the_weights_has_a_rule_of_its_own():
    """Of few channels, or few patches for many weights, direct sums are faster."""
    for n, c, size in ((8, 8, 32), (1, 512, 7)):
        assert kernels_of((n, c, size, size), (c, c, 3, 3))[2] == "conv2d_backward_weights", (n, c, size)
    assert kernels_of((8, 16, 32, 32), (16, 16, 3, 3))[2] == "winograd_conv2d_backward_weights"


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), {"stride": 2}),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"stride": (1, 2)}),
        ((8, 64, 56, 56), (64, 64, 3, 3), {"dilation": 28}),
        ((8, 64, 56, 56), (64, 64, 1, 1), {}),
        ((8, 64, 56, 56), (64, 32, 3, 3), {"groups": 2}),
        ((8, 64, 56, 56), (64, 64, 1, 7), {}),
        ((8, 64, 1, 1), (64, 64, 5, 5), {"padding": 2}),
        ((64, 3, 32, 32), (32, 3, 3, 3), {}),
        ((64, 1, 8, 8), (4, 1, 3, 3), {}),
        ((8, 64, 1, 1), (64, 64, 3, 3), {}),
    ],
)
def test_the_rule_leaves_other_layers_to_other_kernels(x_shape, w_shape, options):
    assert not any("winograd" in name for name in kernels_of(x_shape, w_shape, **options))


def test_config_switches_it_off_and_on_for_ops_and_models():
    x, w = normal((4, 32, 16, 16), "x"), normal((32, 32, 3, 3), "w")
    model = cnn.Sequential([cnn.Conv2D(32, 3)], seed=0)
    model.build((32, 16, 16))
    results = {}
    for on in (True, False, True):
        with winograd(on):
            assert cnn.config() == {"winograd": on}
            assert any("winograd" in name for name in kernels_of(x.shape, w.shape)) == on
            found = cnn.ops.conv2d(x, w), model.predict(x)
            for one, other in zip(found, results.setdefault(on, found), strict=True):
                np.testing.assert_array_equal(one, other)
    for one, other in zip(results[True], results[False], strict=True):
        assert 0 < error(one, other) < 5e-6


@pytest.mark.parametrize("value", [1, 0, "off", np.array([True])])
def test_config_takes_booleans_only(value):
    with pytest.raises(TypeError, match=r"\[config\] winograd must be True or False"):
        cnn.config(winograd=value)
    assert cnn.config() == {"winograd": True}


def test_a_nan_stays_in_the_patches_whose_windows_hold_it():
    x, w = normal((1, 32, 16, 16), "x"), normal((32, 32, 3, 3), "w")
    x[0, 7, 9, 9] = np.nan
    with winograd(True):
        y = cnn.ops.conv2d(x, w, padding=1)
    for i, j in itertools.product(range(0, 16, 4), repeat=2):
        block = y[:, :, i : i + 4, j : j + 4]
        assert np.isnan(block).all() if (i, j) == (8, 8) else np.isfinite(block).all()

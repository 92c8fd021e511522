"""Every function of cnn.ops against its twin in cnn.reference, or, where the twin would take too long, against
double precision in NumPy, at shapes on both sides of each limit that the kernels have."""

import itertools
import math

import numpy as np
import pytest
from helpers import (
    LAYOUTS,
    VL,
    assert_close,
    assert_layout,
    channels_last,
    check,
    conv2d_backward_double,
    conv2d_cases,
    conv2d_double,
    conv2d_output,
    error,
    generator,
    normal,
    pool2d_cases,
    run,
    strided,
    winograd,
)

import pycnn as cnn
from pycnn import calls, shapes
from pycnn.plan import PlanBuilder, run_once

ops = cnn.ops
NAN, INF = math.nan, math.inf
layouts = pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)


def label(value):
    """A short test id of shapes and options."""
    if isinstance(value, dict):
        return ",".join(f"{k}={v}" for k, v in value.items()).replace(" ", "") or "plain"
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


# ------------------------------------------------------------------------------------- convolution

CONV2D_SMALL = [
    # one pixel, one channel, one filter
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 1, 1), (5, 3, 1, 1), {}),
    ((1, 3, 1, 1), (2, 3, 3, 3), {"padding": 1}),
    # a kernel as large as the image, and as the padded image
    ((2, 3, 4, 5), (3, 3, 4, 5), {}),
    ((1, 2, 3, 2), (3, 2, 5, 4), {"padding": 1}),
    # strides, also beyond the kernel and beyond the image
    ((1, 2, 7, 8), (3, 2, 3, 3), {"stride": 2}),
    ((1, 2, 7, 8), (3, 2, 3, 2), {"stride": (3, 2), "padding": (1, 0)}),
    ((2, 3, 7, 7), (2, 3, 1, 1), {"stride": 3}),
    ((1, 2, 8, 7), (2, 2, 2, 2), {"stride": 3, "padding": 1}),
    ((1, 2, 3, 3), (2, 2, 2, 2), {"stride": 9}),
    # padding on one side only, and more than the kernel
    ((1, 2, 4, 4), (3, 2, 3, 3), {"padding": ((1, 0), (0, 2))}),
    ((1, 2, 4, 4), (3, 2, 3, 3), {"padding": ((0, 2), (1, 0)), "stride": (1, 2)}),
    ((1, 1, 2, 3), (2, 1, 2, 2), {"padding": ((0, 3), (4, 0)), "stride": 2}),
    ((1, 2, 2, 2), (2, 2, 1, 1), {"padding": 2}),
    # dilations, with strides that some taps never meet
    ((1, 2, 7, 6), (3, 2, 3, 2), {"dilation": (2, 3), "padding": 1}),
    ((1, 2, 8, 8), (3, 2, 3, 3), {"dilation": 2, "stride": 2, "padding": ((2, 1), (1, 2))}),
    ((1, 3, 9, 8), (2, 3, 2, 3), {"dilation": (3, 2), "stride": (2, 3), "padding": 2}),
    # groups; depthwise; depthwise with a multiplier
    ((2, 4, 4, 5), (6, 2, 3, 3), {"groups": 2, "padding": 1}),
    ((1, 6, 5, 4), (3, 2, 2, 2), {"groups": 3, "stride": 2}),
    ((1, 6, 3, 3), (9, 2, 1, 1), {"groups": 3}),
    ((2, 5, 6, 5), (5, 1, 3, 3), {"groups": 5, "padding": 1}),
    ((1, 3, 7, 6), (3, 1, 3, 2), {"groups": 3, "stride": (2, 3), "dilation": (1, 2), "padding": ((2, 0), (1, 3))}),
    ((1, 2, 5, 5), (2, 1, 1, 1), {"groups": 2, "stride": 3}),
    ((1, 3, 5, 5), (6, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
]


def conv2d_arrays(x_shape, w_shape, options):
    y_shape = conv2d_output(x_shape, w_shape, **options)
    return (
        normal(x_shape, "x"),
        normal(w_shape, "w"),
        normal(w_shape[:1], "b"),
        normal(y_shape, "dy"),
    )


@layouts
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONV2D_SMALL, ids=label)
def test_conv2d_and_its_twin(x_shape, w_shape, options, layout):
    x, w, b, dy = conv2d_arrays(x_shape, w_shape, options)
    x, w, dy = layout(x), layout(w), layout(dy)
    assert_layout(check("conv2d", x, w, b, **options), x)
    assert_layout(check("conv2d", x, w, **options), x)
    dx, dw, db = check("conv2d_backward", dy, x, w, **options)
    assert_layout(dx, x)
    assert dw.flags.c_contiguous


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), conv2d_cases(40, seed=1), ids=label)
def test_conv2d_and_its_twin_at_random_shapes(x_shape, w_shape, options):
    x, w, b, dy = conv2d_arrays(x_shape, w_shape, options)
    layout = list(LAYOUTS.values())[math.prod(x_shape) % 3]
    assert_layout(check("conv2d", layout(x), w, b, **options), layout(x))
    # dy in another layout than x, whose order dx has.
    assert_layout(check("conv2d_backward", dy, layout(x), w, **options)[0], layout(x))
    check("conv2d_backward", layout(dy), x, layout(w), **options)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONV2D_SMALL[5:] + conv2d_cases(5, seed=2), ids=label)
def test_convolution_in_double_precision_is_the_twin(x_shape, w_shape, options):
    """The yardstick of the larger shapes is itself measured."""
    x, w, b, dy = conv2d_arrays(x_shape, w_shape, options)
    expected = cnn.reference.conv2d(x.tolist(), w.tolist(), b.tolist(), **options)
    assert_close(conv2d_double(x, w, b, **options), expected, 1e-13)
    expected = cnn.reference.conv2d_backward(dy.tolist(), x.tolist(), w.tolist(), **options)
    for actual, wanted in zip(conv2d_backward_double(dy, x, w, **options), expected, strict=True):
        assert_close(actual, wanted, 1e-13)


def check_conv2d(x_shape, w_shape, **options):
    """Forward and backward, in both layouts, against double precision, by direct sums; tests/test_winograd.py has
    the rest."""
    x, w, b, dy = conv2d_arrays(x_shape, w_shape, options)
    expected = conv2d_double(x, w, b, **options), *conv2d_backward_double(dy, x, w, **options)
    with winograd(False):
        compare_conv2d(x, w, b, dy, options, expected)


def compare_conv2d(x, w, b, dy, options, expected):
    for layout in (LAYOUTS["contiguous"], channels_last):
        y = ops.conv2d(layout(x), w, b, **options)
        gradients = ops.conv2d_backward(layout(dy), layout(x), w, **options)
        assert_layout(y, layout(x))
        assert_layout(gradients[0], layout(x))
        of_pixels = math.sqrt(max(1, dy.size // dy.shape[1]))  # terms in a gradient of the filters
        for actual, wanted, floor in zip((y, *gradients), expected, (1, 1, of_pixels, of_pixels), strict=True):
            # Outputs are sums of products near 1; where there is but one of them, it may happen to cancel.
            assert_close(actual, wanted, floor=floor)


@pytest.mark.parametrize("filters", [1, VL - 1, VL, VL + 1, 2 * VL - 1, 2 * VL, 2 * VL + 1, 3 * VL])
@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17, 2 * VL + 1])
def test_conv2d_filters_around_the_vector_width(filters, channels):
    """15 channels are the last to be read as rows of taps, 16 the first to be read tap by tap."""
    check_conv2d((2, channels, 5, 4), (filters, channels, 3, 3), padding=((1, 0), (2, 1)))
    check_conv2d((1, channels, 6, 5), (filters, channels, 3, 2), stride=2)
    check_conv2d((1, channels, 3, 4), (filters, channels, 1, 1))


@pytest.mark.parametrize("channels", [1, 3, 15, 16, 17])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"padding": ((0, 2), (0, 0))},
        {"padding": ((0, 0), (0, 1))},
        {"stride": (2, 3), "padding": 1},
        {"dilation": (2, 1), "padding": 2},
        {"dilation": (1, 2), "padding": 2},
    ],
    ids=label,
)
def test_conv2d_rows_of_taps(channels, options):
    for kernel in ((3, 4), (1, 3), (4, 1)):
        check_conv2d((2, channels, 7, 9), (5, channels, *kernel), **options)


@pytest.mark.parametrize(
    ("channels", "kernel", "options"),
    [
        # The chunks of channels are 64 at 9 taps, 144 at 4, 32 at 16, 16 at 25, 256 at 1.
        *((c, (3, 3), {"padding": 1}) for c in (63, 64, 65, 80, 129)),
        *((c, (2, 2), {}) for c in (144, 145)),
        *((c, (4, 4), {"padding": 2}) for c in (32, 33)),
        *((c, (5, 5), {"padding": 2, "stride": 2}) for c in (16, 17, 33)),
        *((c, (1, 1), {}) for c in (255, 256, 257, 520)),
        # One tap from far apart pixels is copied from 512 channels on; padding and strides with it.
        *((c, (1, 1), {"padding": 1, "stride": 2}) for c in (511, 512, 513)),
        (512, (1, 1), {"padding": ((0, 7), (7, 0))}),
        # Rows of taps in more than one chunk.
        (15, (9, 7), {"padding": 4}),
        # More than 128 taps leave one tile a block.
        (17, (12, 12), {"padding": 6}),
        (3, (130, 1), {"padding": ((64, 65), (0, 0))}),
    ],
    ids=label,
)
def test_conv2d_over_chunks_of_channels(channels, kernel, options):
    check_conv2d((2, channels, 3, 4), (channels % 7 + 2, channels, *kernel), **options)
    # Backward sums over the filters instead.
    check_conv2d((2, channels % 5 + 1, 3, 4), (channels, channels % 5 + 1, *kernel), **options)


@pytest.mark.parametrize("filters", [16 * VL, 16 * VL + 1, 17 * VL + 3])
def test_conv2d_of_many_panels_of_filters(filters):
    check_conv2d((1, 3, 4, 4), (filters, 3, 2, 2))
    check_conv2d((1, filters, 2, 3), (2, filters, 1, 1))


@pytest.mark.parametrize("filters", [1, 2, 3, 4, 5, VL - 1, VL + 1, 2 * VL])
@pytest.mark.parametrize(
    ("x_shape", "kernel", "options"),
    [
        # Rows of outputs that begin vectors, and rows that follow each other.
        ((3, 1, 2 * VL, 2 * VL), (3, 3), {"padding": 1}),
        ((2, 3, 9, VL + 3), (2, 3), {}),
        ((2, 5, 7, 3), (3, 2), {"padding": ((1, 0), (0, 1))}),
        # Columns in phases, of which the last taps reach one or none.
        ((2, 1, 11, 40), (4, 3), {"stride": (2, 3), "padding": ((2, 0), (0, 3))}),
        ((1, 2, 9, 33), (2, 2), {"stride": (1, 4)}),
        ((1, 4, 12, 33), (2, 3), {"stride": (3, 2), "dilation": (3, 2), "padding": 2}),
        ((1, 1, 13, 20), (3, 3), {"dilation": (1, 3), "padding": ((0, 7), (5, 0))}),
        # A kernel as large as the image, one column, one pixel.
        ((3, 2, 5, 6), (5, 6), {}),
        ((1, 3, 40, 1), (3, 1), {"padding": ((1, 1), (0, 0))}),
        ((2, 17, 1, 1), (3, 3), {"padding": 1}),
        # More padding than the kernel reaches, which crops the gradient.
        ((2, 2, 3, 4), (2, 3), {"padding": ((4, 1), (3, 5))}),
        # Bands of different length, of one row, and the sums of several slices.
        ((2, 1, 90, 101), (3, 3), {"padding": 1}),
        ((1, 3, 7, 1500), (2, 3), {"stride": (2, 1)}),
        ((7, 2, 70, 60), (3, 2), {"padding": ((0, 1), (0, 1))}),
    ],
    ids=label,
)
def test_conv2d_of_few_filters(filters, x_shape, kernel, options):
    check_conv2d(x_shape, (filters, x_shape[1], *kernel), **options)


@pytest.mark.parametrize("filters", [2 * VL + 1, 4 * VL, 5 * VL + 3])
@pytest.mark.parametrize(
    ("x_shape", "kernel", "options"),
    [
        ((1, 3, 3, 2), (3, 2), {}),
        ((3, 1, 9, 15), (3, 3), {"padding": 1}),
        # Blocks of several tiles that end within a line, at its end, within another image.
        ((5, 3, 12, 16), (3, 3), {"padding": 1}),
        ((2, 3, 7, 113), (1, 5), {"padding": ((0, 0), (3, 1))}),
        ((40, 2, 3, 4), (2, 2), {}),
        ((2, 3, 23, 21), (7, 7), {"padding": 3, "stride": 2}),
        ((2, 15, 14, 9), (4, 3), {"stride": (3, 1), "dilation": (2, 1), "padding": ((5, 0), (0, 2))}),
        # The last for which one running sum takes all terms, and beyond.
        ((1, 12, 9, 9), (6, 8), {"padding": 2}),
        ((1, 13, 9, 9), (6, 8), {"padding": 2}),
    ],
    ids=label,
)
def test_conv2d_of_few_channels_to_many_filters(filters, x_shape, kernel, options):
    check_conv2d(x_shape, (filters, x_shape[1], *kernel), **options)


@pytest.mark.parametrize("pixels", [5, 6, 7, 11, 12, 13, 14, 15, 49, 97, 113, 225])
def test_conv2d_pixels_around_the_tiles(pixels):
    check_conv2d((1, 16, 1, pixels), (VL + 2, 16, 1, 3), padding=((0, 0), (1, 1)))
    check_conv2d((pixels, 17, 1, 1), (3, 17, 1, 1))


@pytest.mark.parametrize("images", [3, 6, 7, 13, 15, 29])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((5, 4), (3, 4), {"padding": (2, 1)}),
        ((3, 6), (3, 3), {"padding": 1, "stride": (2, 1)}),
        ((7, 7), (2, 3), {"padding": 2, "dilation": 2, "groups": 2}),
    ],
    ids=label,
)
def test_conv2d_of_images_with_much_padding(images, shape, kernel, options):
    """Forward and backward, tiles of images: their taps in the padding are left out."""
    groups = options.get("groups", 1)
    check_conv2d((images, 2 * VL * groups, *shape), ((VL + 1) * groups, 2 * VL, *kernel), **options)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        # Rows wider than 256 pixels are cut; 9 images are more than the slices of a sum.
        ((9, 2, 2, 300), (3, 2, 1, 3), {"padding": ((0, 0), (1, 1))}),
        ((1, 17, 3, 517), (2, 17, 2, 2), {}),
        ((3, 5, 9, 29), (VL, 5, 1, 1), {}),
        # Rows so long that few or one fit into a chunk.
        ((1, 300, 16, 16), (3, 300, 3, 1), {}),
        ((2, 64, 41, 40), (3, 64, 2, 2), {"stride": (40, 3)}),
        ((20, 3, 4, 4), (4 * VL + 1, 3, 3, 3), {"padding": 1}),
        ((3, 16, 40, 30), (2 * VL, 16, 3, 3), {"padding": ((1, 0), (0, 1))}),
    ],
    ids=label,
)
def test_conv2d_chunks_of_pixels(x_shape, w_shape, options):
    check_conv2d(x_shape, w_shape, **options)


def check_backward_of_layers(x_shape, w_shape, **options):
    """conv2d_backward on channels-last memory and on weights (R, S, C, K), as layers call it."""
    x, w, _, dy = conv2d_arrays(x_shape, w_shape, options)
    g = shapes.conv2d("conv2d", x_shape, w_shape, **options)
    strides, b = calls.rsck_strides(g), PlanBuilder()
    calls.conv2d_backward_data(b, g, strides, b.external("dx"), b.external("dy"), b.external("w"))
    calls.conv2d_backward_weights(b, g, strides, b.external("dw"), b.external("x"), b.external("dy"))
    arrays = {name: np.ascontiguousarray(a.transpose(0, 2, 3, 1)) for name, a in (("x", x), ("dy", dy))}
    arrays["w"] = np.ascontiguousarray(w.transpose(2, 3, 1, 0))
    arrays |= {"dx": np.full_like(arrays["x"], NAN), "dw": np.full_like(arrays["w"], NAN)}
    run_once(b.finish(), arrays)
    dx, dw, _ = conv2d_backward_double(dy, x, w, **options)
    assert_close(arrays["dx"].transpose(0, 3, 1, 2), dx, floor=1)
    assert_close(arrays["dw"].transpose(3, 2, 0, 1), dw, floor=1)


@pytest.mark.parametrize("channels", [1, 2, 3, VL - 1, VL, VL + 1, 2 * VL - 1, 2 * VL])
@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 9, 10), (3, 3), {"padding": 1}),
        ((1, 11, 8), (3, 4), {"stride": (2, 3), "padding": ((2, 0), (0, 3))}),
        ((1, 12, 13), (2, 3), {"dilation": (3, 2), "stride": (1, 2), "padding": 2}),
        ((2, 7, 6), (2, 2), {"stride": 4}),
        ((1, 5, 5), (1, 1), {"stride": 3, "padding": 1}),
        ((1, 2, 3), (2, 2), {"stride": 9, "padding": ((0, 0), (0, 8))}),
        ((1, 1, 1), (3, 3), {"padding": 6}),
    ],
    ids=label,
)
def test_conv2d_backward_of_few_channels(channels, shape, kernel, options):
    n, h, w = shape
    check_backward_of_layers((n, channels, h, w), (VL + 2, channels, *kernel), **options)


@pytest.mark.parametrize(
    ("x_shape", "w_shape", "options"),
    [
        # Rows of several blocks of pixels, filters in several chunks, and both.
        ((1, 2, 3, 1100), (5, 2, 2, 3), {"padding": 1}),
        ((1, 3, 5, 7), (601, 3, 2, 3), {"padding": 1}),
        ((1, 1, 2, 130), (300, 1, 2, 4), {"stride": (1, 2), "padding": ((0, 1), (2, 0))}),
        # Pixels of x so far apart that they are copied, for all taps together or one by one.
        ((1, 300, 7, 8), (VL + 3, 300, 3, 3), {"padding": 1}),
        ((2, 260, 9, 9), (3, 260, 2, 3), {"dilation": (8, 4), "padding": 1}),
        ((3, 270, 7, 7), (2 * VL + 1, 270, 1, 1), {"stride": 2}),
        ((1, 520, 20, 30), (4, 260, 2, 2), {"stride": (2, 1), "groups": 2}),
        # Sums of one slice, which go straight to dw, over chunks with and without pixels that a tap reaches.
        ((1, 20, 40, 30), (3 * VL, 20, 3, 3), {"padding": ((30, 0), (0, 25))}),
        ((1, 3, 40, 30), (VL, 3, 5, 5), {"padding": 2}),
        # Slices, and images of which several make a chunk.
        ((40, 18, 8, 8), (VL + 1, 18, 3, 3), {"padding": 1}),
        ((9, 2, 40, 41), (3, 2, 3, 2), {"stride": 2}),
    ],
    ids=label,
)
def test_conv2d_backward_of_layers(x_shape, w_shape, options):
    check_backward_of_layers(x_shape, w_shape, **options)


@pytest.mark.parametrize("stride", [2, 3, (2, 3), (5, 1), (1, 2)], ids=label)
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (1, 4), (5, 2)], ids=label)
@pytest.mark.parametrize("channels", [3, 19])
def test_conv2d_strides(channels, kernel, stride):
    """Backward-data runs phase by phase; a stride beyond the kernel has phases without any tap."""
    for padding, dilation in ((0, 1), (((2, 0), (1, 1)), 1), (1, 2), (((0, 1), (2, 0)), (1, 3))):
        options = {"stride": stride, "padding": padding, "dilation": dilation}
        check_conv2d((2, channels, 10, 11), (VL + 1, channels, *kernel), **options)


@pytest.mark.parametrize(
    ("groups", "channels", "filters"),
    [
        (2, 1, 1),
        (2, 2, VL + 1),
        (3, 17, 5),
        (2, VL, 2 * VL),
        (2, 65, 2 * VL + 1),
        (5, 3, 3),
        (VL + 3, 2, 1),
        (2, 260, 3),
    ],
)
def test_conv2d_groups(groups, channels, filters):
    for kernel, options in (
        ((3, 3), {"padding": ((1, 0), (0, 1))}),
        ((2, 3), {"stride": (2, 3), "padding": 1}),
        ((1, 1), {}),
        ((2, 2), {"dilation": (1, 2)}),
    ):
        check_conv2d((2, groups * channels, 5, 6), (groups * filters, channels, *kernel), groups=groups, **options)


@pytest.mark.parametrize("channels", [2, 3, VL - 1, VL, VL + 1, 2 * VL + 1, 4 * VL + 3])
@pytest.mark.parametrize("multiplier", [1, 2, 5])
def test_conv2d_depthwise(channels, multiplier):
    for kernel, options in (
        ((3, 3), {"padding": 1}),
        ((3, 3), {"padding": ((0, 1), (2, 0)), "stride": 2}),
        ((2, 5), {"padding": 3, "stride": (3, 1), "dilation": (1, 2)}),
        ((1, 1), {"stride": (1, 3)}),
        ((7, 6), {}),
    ):
        check_conv2d((3, channels, 7, 9), (channels * multiplier, 1, *kernel), groups=channels, **options)


@pytest.mark.parametrize(
    ("channels", "filters"),
    [(1, 1), (2, 2), (1, 2), (3, 1), (3, 3), (4, 4), (4, 8), (7, 5), (8, 8), (8, 3), (16, 16), (12, 20), (24, 24)]
    + [(32, 32), (17, 32), (33, 32), (1, 33)],
)
def test_conv2d_of_small_groups(channels, filters):
    """Slots of each size, full or not; rows of one tile, of two and of many; all lengths of runs of taps; the last
    two take the path of large groups."""
    for groups, width, kernel, options in (
        (2, 10, (3, 3), {"padding": 1}),
        (VL + 1, 11, (3, 3), {"padding": 1, "stride": 2}),
        (3, 23, (1, 5), {"padding": ((0, 0), (2, 1))}),
        (2, 21, (2, 4), {"padding": 3, "stride": (2, 3), "dilation": (2, 1)}),
        (5, 9, (3, 3), {"padding": 2, "dilation": 2}),
        (2, 13, (3, 4), {"padding": 1, "stride": 4, "dilation": 2}),
    ):
        shape = (2, groups * channels, 6, width)
        check_conv2d(shape, (groups * filters, channels, *kernel), groups=groups, **options)


def test_conv2d_of_groups_with_wide_rows():
    """Rows longer than the running sums of the weights' gradients."""
    check_conv2d((1, VL + 2, 3, 600), (VL + 2, 1, 3, 3), groups=VL + 2, padding=1)
    check_conv2d((1, 16, 2, 521), (16, 8, 1, 3), groups=2, stride=2)


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("filters", [1, 4, 17, 32])
def test_conv2d_of_short_sums_on_planes(channels, filters):
    """A first layer on contiguous planes: rows of whole vectors, made in place, and rows that follow each other."""
    for n, plane, kernel, options in (
        (3, (8, 8), (3, 3), {"padding": 1}),
        (2, (9, 32), (3, 3), {"padding": 1}),
        (1, (70, 66), (3, 3), {}),
        (1, (5, 14), (1, 3), {"padding": ((0, 0), (4, 0))}),
        (2, (20, 44), (3, 3), {"padding": (0, 1), "dilation": (1, 3)}),
    ):
        check_conv2d((n, channels, *plane), (filters, channels, *kernel), **options)


@pytest.mark.parametrize("channels", [16, 32, 64])
@pytest.mark.parametrize("width", [40, 41, 60])
def test_conv2d_depthwise_rows_read_where_they_lie(channels, width):
    """Wide rows of few channels: one and several tiles of each length, no output at the ends that sees padding and
    many, on one side alone, and windows that see nothing else."""
    for kernel, options in (
        ((3, 3), {"padding": 1}),
        ((1, 1), {}),
        ((2, 4), {"padding": ((0, 1), (3, 0))}),
        ((3, 5), {"padding": (1, 4), "dilation": (1, 2)}),
        ((5, 3), {"padding": ((2, 2), (0, 9)), "dilation": (2, 1)}),
    ):
        check_conv2d((2, channels, 7, width), (channels, 1, *kernel), groups=channels, **options)


@pytest.mark.parametrize("channels", [16, 48, 256])
def test_conv2d_depthwise_rows_of_a_stride_read_where_they_lie(channels):
    """Twenty outputs a row and more: taps that read neighbours and taps that do not, outputs at the ends that see
    padding alone, columns that no output reads, and as many channels as are read so, or are not."""
    for width, kernel, options in (
        (40, (3, 3), {"padding": 1, "stride": 2}),
        (45, (3, 3), {"stride": 2}),
        (41, (5, 5), {"padding": 2, "stride": 2}),
        (63, (2, 4), {"padding": ((0, 1), (5, 0)), "stride": (1, 3)}),
        (44, (3, 3), {"padding": (2, 6), "stride": (3, 2), "dilation": (1, 2)}),
        (64, (3, 1), {"padding": ((0, 0), (0, 8)), "stride": 3}),
    ):
        for more in (0, 16):
            check_conv2d(
                (1, channels + more, 7, width), (channels + more, 1, *kernel), groups=channels + more, **options
            )


@pytest.mark.parametrize(("channels", "filters"), [(1, 2), (3, 1), (1, 5), (4, 4), (5, 7), (8, 8), (17, 3), (32, 18)])
def test_conv2d_of_small_groups_on_planes(channels, filters):
    """Contiguous planes of 64 outputs and more: rows that follow each other and rows that begin a vector, one band of
    rows and several, several slices of a sum, padding beyond the kernel, and strides, which only forward takes."""
    for n, groups, plane, kernel, options in (
        (2, 3, (16, 17), (3, 3), {"padding": 1}),
        (1, VL + 1, (9, 4 * VL), (2, 3), {"padding": ((0, 1), (2, 0))}),
        (1, 2, (1, 300), (1, 5), {"padding": (0, 2)}),
        (1, 2, (60, 70), (3, 3), {"padding": 2, "dilation": 2}),
        (1, 2, (17, 15), (1, 1), {"padding": 3}),
        (1, 2, (5, 4 * VL), (3, 3), {"padding": 1}),
        (1, 3, (40, 33), (3, 3), {"padding": 1, "stride": (2, 1)}),
        (2, 2, (33, 40), (3, 2), {"padding": 1, "stride": (1, 2)}),
    ):
        shape = (n, groups * channels, *plane)
        check_conv2d(shape, (groups * filters, channels, *kernel), groups=groups, **options)


def test_conv2d_of_groups_lets_a_nan_out_only_where_its_window_reaches():
    for channels in (1, 4, 16):
        x, w = np.zeros((1, 5 * channels, 6, 6), np.float32), normal((5 * channels, channels, 3, 3))
        x[0, channels, 2, 2] = NAN
        reached = np.zeros((1, 5 * channels, 6, 6), bool)
        reached[:, channels : 2 * channels, 1:4, 1:4] = True
        assert (np.isnan(ops.conv2d(x, w, groups=5, padding=1)) == reached).all()


@pytest.mark.parametrize("width", [1, VL - 1, VL, VL + 1, 2 * VL + 3, 3 * VL, 4 * VL + 1, 7 * VL, 8 * VL, 8 * VL + 1])
def test_conv2d_depthwise_rows_around_the_vector_width(width):
    """Contiguous planes: several rows at once up to 4 vectors, then blocks of 8; of one, two and three phases."""
    for kernel, stride in (((3, 3), 1), ((2, 3), 2), ((3, 4), 3)):
        check_conv2d((2, 3, 11, stride * width), (3, 1, *kernel), groups=3, stride=stride, padding=kernel[1] // 2)


@pytest.mark.parametrize(
    ("x_shape", "kernel", "options"),
    [
        # Several bands of rows, forward and in phases; rows too long for one.
        ((1, 2, 300, 130), (3, 3), {"padding": 1}),
        ((1, 2, 301, 131), (5, 3), {"padding": 2, "stride": 2}),
        ((2, 2, 300, 130), (3, 2), {"padding": ((70, 0), (0, 9)), "dilation": (30, 3), "stride": (3, 1)}),
        ((1, 2, 20, 2000), (3, 3), {"padding": ((1, 1), (2, 0)), "stride": (1, 2)}),
        # Bands and rows that read padding alone; strides beyond the kernel and the image.
        ((1, 2, 3, 3), (3, 3), {"padding": 40}),
        ((2, 3, 7, 9), (2, 2), {"stride": 5, "padding": ((4, 0), (0, 6))}),
        ((1, 3, 2, 3), (2, 2), {"stride": 9, "padding": 1}),
    ],
    ids=label,
)
def test_conv2d_depthwise_bands(x_shape, kernel, options):
    check_conv2d(x_shape, (x_shape[1], 1, *kernel), groups=x_shape[1], **options)


@pytest.mark.parametrize(
    "plane",
    [
        (1, 63),
        (8, 8),
        (9, 8),
        (11, 11),
        (1, 255),
        (1, 256),
        (5, 53),
        (1, 256 + 6 * VL - 1),
        (1, 256 + 6 * VL),
        (64, VL + 1),
        (1, 256 + 8 * VL + 1),
        (31, 33),
    ],
)
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (1, 5), (3, 17), (17, 3), (VL, 2 * VL), (2 * VL + 1, 23)])
def test_conv2d_pointwise(channels, filters, plane):
    """Contiguous planes: panels that are full, of one vector and part of one; blocks and chunks of pixels; and planes
    so small that their gradients go another way."""
    check_conv2d((3, channels, *plane), (filters, channels, 1, 1))


@pytest.mark.parametrize(
    ("n", "channels", "filters", "plane"),
    [
        # Sums in one, two and three chunks, forward and backward; many tiles of filters.
        (1, 512, 7, (16, 18)),
        (2, 513, 5, (16, 18)),
        (1, 6, 1030, (13, 20)),
        # More chunks of pixels and images than slices, for few weights and many.
        (11, 4, 3, (13, 20)),
        (5, 260, 270, (13, 20)),
        (3, 2, 3, (40, 70)),
    ],
)
def test_conv2d_pointwise_chunks(n, channels, filters, plane):
    check_conv2d((n, channels, *plane), (filters, channels, 1, 1))


@pytest.mark.parametrize(
    ("n", "plane", "stride"),
    [
        # Panels of several images, up to one a pixel; of whole images; and of images whose ends lie within panels.
        (64, (1, 1), 1),
        (65, (1, 1), 1),
        (9, (3, 3), 1),
        (8, (2 * VL, 1), 1),
        (5, (2 * VL + 1, 3), 1),
        (8, (7, 7), 1),
        # Strides, of rows whose last pixels are left out or not, and beyond the image.
        (4, (14, 14), 2),
        (5, (9, 8), 2),
        (3, (13, 20), (1, 3)),
        (3, (20, 13), (3, 1)),
        (1, (40, 70), (2, 4)),
        (70, (3, 2), 9),
    ],
)
@pytest.mark.parametrize(("channels", "filters"), [(1, 1), (3, 17), (513, 5), (VL, 3 * VL)])
def test_conv2d_pointwise_across_images(n, plane, stride, channels, filters):
    x_shape, w_shape = (n, channels, *plane), (filters, channels, 1, 1)
    check_conv2d(x_shape, w_shape, stride=stride)
    x, w, _, _ = conv2d_arrays(x_shape, w_shape, {"stride": stride})
    without_bias = ops.conv2d(x, w, stride=stride)
    np.testing.assert_array_equal(without_bias, ops.conv2d(x, w, np.zeros(filters, np.float32), stride=stride))


def test_conv2d_1x1_of_many_wide_outputs():
    """Few tiles at a time, the last of which is alone, go through all panels."""
    for n, channels in ((3, 5), (1, 3)):
        check_conv2d((n, channels, 27, 28 * 3 // n), (256, channels, 1, 1))


def test_conv2d_depthwise_of_many_rows():
    """More rows of outputs than the slices of a sum."""
    for channels in (5, 9 * VL + 1):
        check_conv2d((3, channels, 30, 11), (channels, 1, 3, 3), groups=channels, padding=1)


def test_conv2d_groups_of_several_blocks_of_planes():
    """Slots of three vectors, of which a block has to hold whole ones."""
    check_conv2d((1, 30 * VL, 56, 56), (30 * VL, 3 * VL, 3, 3), groups=10, padding=1)


def test_conv2d_random_shapes_in_double_precision():
    rng = generator("conv2d in double precision")
    for _ in range(40):
        groups = int(rng.choice([1, 1, 1, 2, 3]))
        c, k = (int(v) for v in rng.choice([1, 2, 5, 15, 16, VL, 2 * VL + 1, 40], 2))
        kernel = rng.integers(1, 6, 2)
        options = {
            "stride": tuple(map(int, rng.integers(1, 4, 2))),
            "padding": tuple(tuple(map(int, rng.integers(0, 4, 2))) for _ in range(2)),
            "dilation": tuple(map(int, rng.integers(1, 3, 2))),
            "groups": groups,
        }
        image = (kernel - 1) * options["dilation"] + rng.integers(1, 12, 2)
        shape = (int(rng.integers(1, 4)), groups * c, *map(int, image))
        check_conv2d(shape, (groups * k, c, *map(int, kernel)), **options)


@layouts
def test_conv2d_accepts_a_batch_of_none(layout):
    x, w, b = layout(np.zeros((0, 4, 5, 6), np.float32)), normal((6, 2, 3, 3)), normal(6)
    assert ops.conv2d(x, w, b, groups=2).shape == (0, 6, 3, 4)
    dx, dw, db = ops.conv2d_backward(np.zeros((0, 6, 3, 4)), x, w, groups=2)
    assert dx.shape == x.shape and not dw.any() and not db.any()
    assert (dw.shape, db.shape) == (w.shape, b.shape)


def test_conv2d_lets_a_nan_out_only_where_its_window_reaches():
    x, w = np.zeros((1, 20, 6, 6), np.float32), normal((3, 20, 3, 3))
    x[0, 7, 2, 2] = NAN
    with winograd(False):
        y = ops.conv2d(x, w)
    assert np.isnan(y[:, :, :3, :3]).all() and np.isfinite(y[:, :, 3:]).all() and np.isfinite(y[:, :, :, 3:]).all()


# ------------------------------------------------------------------------------ transposed convolution

TRANSPOSED = [
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 1, 1), (3, 17, 2, 3), {"stride": 7}),
    ((1, 17, 4, 3), (17, 3, 3, 3), {"padding": 1}),
    ((2, 3, 5, 4), (3, 1, 3, 2), {"stride": 2, "padding": (1, 0), "output_padding": 1}),
    ((1, 2, 4, 3), (2, 5, 2, 2), {"stride": (3, 2), "padding": ((1, 0), (0, 2)), "output_padding": (2, 1)}),
    ((1, 3, 3, 4), (3, 4, 3, 2), {"dilation": (2, 3), "output_padding": (1, 2)}),
    ((1, 2, 3, 3), (2, 3, 2, 3), {"stride": 2, "dilation": 3, "padding": 2, "output_padding": (2, 0)}),
    ((2, 4, 3, 5), (4, 3, 3, 3), {"groups": 2, "stride": 2, "padding": 1}),
    ((1, 5, 4, 4), (5, 1, 3, 3), {"groups": 5, "stride": 2, "output_padding": 1}),
    ((1, 3, 4, 5), (3, 2, 2, 2), {"groups": 3}),
    ((1, 2, 4, 4), (2, 1, 1, 2), {"padding": (1, 2)}),
    # what Winograd computes
    ((1, 16, 9, 8), (16, 18, 3, 3), {"padding": 1}),
]


def transposed_arrays(x_shape, w_shape, options):
    y_shape = shapes.conv_transpose2d("test", x_shape, w_shape, **options).x_shape
    return normal(x_shape, "x"), normal(w_shape, "w"), normal(y_shape[1], "b"), normal(y_shape, "dy")


@layouts
@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TRANSPOSED, ids=label)
def test_conv_transpose2d_and_its_twin(x_shape, w_shape, options, layout):
    x, w, b, dy = transposed_arrays(x_shape, w_shape, options)
    x, w, dy = layout(x), layout(w), layout(dy)
    assert_layout(check("conv_transpose2d", x, w, b, floor=1, **options), x)
    assert_layout(check("conv_transpose2d", x, w, floor=1, **options), x)
    dx, dw, db = check("conv_transpose2d_backward", dy, x, w, floor=1, **options)
    assert_layout(dx, x)
    assert dw.flags.c_contiguous


@pytest.mark.parametrize("filters", [1, 2, 3, VL - 1, VL, VL + 1, 3 * VL + 2])
@pytest.mark.parametrize("pixels", [1, 5, VL, 2 * VL + 3])
def test_the_bias_of_a_transposed_convolution(filters, pixels):
    """A kernel of one tap that is 0 leaves the bias alone."""
    x, w, b = normal((2, 3, 1, pixels)), np.zeros((3, filters, 1, 1), np.float32), normal(filters)
    y = ops.conv_transpose2d(channels_last(x), w, b)
    np.testing.assert_array_equal(y, np.broadcast_to(b[:, None, None], y.shape))


# ----------------------------------------------------------------------------------------- pooling

POOL_SMALL = [
    ((1, 1, 1, 1), 1, {}),
    ((2, 3, 1, 1), 1, {"stride": 3}),
    ((2, 3, 4, 5), (4, 5), {}),
    ((1, 2, 4, 6), 2, {}),
    ((1, 2, 5, 7), 2, {"ceil_mode": True}),
    ((1, 2, 5, 7), 3, {"stride": 2, "padding": 1}),
    ((1, 2, 6, 7), (3, 2), {"stride": (2, 3), "padding": (1, 0), "ceil_mode": True}),
    ((1, 2, 6, 6), (2, 3), {"stride": 1, "padding": (1, 1)}),
    ((1, 2, 4, 4), 2, {"stride": 5}),
    ((1, 2, 7, 7), 2, {"stride": 3, "ceil_mode": True}),
    ((1, 3, 3, 3), 4, {"stride": 2, "padding": 2, "ceil_mode": True}),
    ((1, 1, 4, 4), 6, {"stride": 6, "padding": 3}),
    ((1, 1, 2, 2), 3, {"stride": 3, "ceil_mode": True}),
]


@layouts
@pytest.mark.parametrize(("shape", "kernel_size", "options"), POOL_SMALL, ids=label)
def test_pooling_and_its_twin(shape, kernel_size, options, layout):
    check_max_pool(layout(normal(shape)), kernel_size, options)
    for count_include_pad in (True, False):
        check_avg_pool(layout(normal(shape)), kernel_size, options | {"count_include_pad": count_include_pad})


def check_max_pool(x, kernel_size, options):
    y, argmax = check("max_pool2d", x, kernel_size, tolerance=0, **options)
    assert_layout(y, x)
    assert_layout(argmax, x)
    dy = y.copy(order="K")
    dy[...] = normal(y.shape, "dy")
    assert_layout(check("max_pool2d_backward", dy, argmax, x.shape), dy)


def check_avg_pool(x, kernel_size, options):
    y = check("avg_pool2d", x, kernel_size, **options)
    assert_layout(y, x)
    dy = y.copy(order="K")
    dy[...] = normal(y.shape, "dy")
    assert_layout(check("avg_pool2d_backward", dy, x.shape, kernel_size, **options), dy)


@pytest.mark.parametrize(("shape", "kernel_size", "options"), pool2d_cases(40, seed=1), ids=label)
def test_pooling_and_its_twin_at_random_shapes(shape, kernel_size, options):
    layout = list(LAYOUTS.values())[math.prod(shape) % 3]
    check_max_pool(layout(normal(shape)), kernel_size, options)
    del options["dilation"]
    options["count_include_pad"] = bool(shape[1] % 2)
    check_avg_pool(layout(normal(shape)), kernel_size, options)


# Backward pooling shares its channels out in strips of 4 VL.
@pytest.mark.parametrize("channels", [VL - 1, VL, VL + 1, 2 * VL + 1, 4 * VL, 4 * VL + 1, 9 * VL + 2])
def test_pooling_channels_around_the_vector_width(channels):
    for layout in LAYOUTS.values():
        x = layout(normal((2, channels, 4, 3)))
        check_max_pool(x, 2, {"stride": 1, "padding": 1})
        check_avg_pool(x, (3, 2), {"stride": 2, "padding": (1, 1), "count_include_pad": False, "ceil_mode": True})
        y = check("global_avg_pool2d", x)
        check("global_avg_pool2d_backward", layout(normal(y.shape)), x.shape)


@layouts
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 1), (1, 17, 3, 5), (3, 2, 7, 9), (2, 5, 1, 8)], ids=label)
def test_global_pooling_and_its_twin(shape, layout):
    y = check("global_avg_pool2d", layout(normal(shape)))
    assert y.shape == shape[:2]
    assert check("global_avg_pool2d_backward", layout(normal(shape[:2])), shape).shape == shape


@layouts
def test_max_pooling_of_ties_takes_the_first(layout):
    x = layout(np.round(normal((2, 3, 6, 7))))
    check_max_pool(x, 3, {"stride": 1, "padding": 1})
    _, argmax = ops.max_pool2d(layout(np.ones((1, 2, 4, 4), np.float32)), 2)
    np.testing.assert_array_equal(argmax, [[[[0, 2], [8, 10]]] * 2])
    # 0 and -0 are equal.
    _, argmax = ops.max_pool2d(np.array([[[[-0.0, 0.0]]]], np.float32), (1, 2))
    assert argmax.item() == 0


@layouts
@pytest.mark.parametrize("channels", [1, 3, VL + 1])
def test_max_pooling_of_nan_and_infinities(channels, layout):
    """A NaN beats every number; a window of -inf alone has its first place; padding never wins."""
    x = np.round(normal((1, channels, 7, 8)))
    pick = generator("special").random(x.shape)
    x[pick < 0.4] = -INF
    x[pick < 0.1] = NAN
    x[(pick > 0.4) & (pick < 0.45)] = INF
    x[0, 0, :3, :3] = -INF
    check_max_pool(layout(x), (3, 2), {"stride": 1, "padding": 1})
    check_max_pool(layout(x), 2, {"stride": 2, "dilation": 2, "ceil_mode": True, "padding": 1})
    y, argmax = ops.max_pool2d(layout(np.full((1, channels, 3, 3), -INF, np.float32)), 3, padding=1, stride=2)
    assert (y == -INF).all()
    np.testing.assert_array_equal(argmax[0, 0], [[0, 1], [3, 4]])


@layouts
@pytest.mark.parametrize("width", [2, 3, VL, 2 * VL - 2, 2 * VL, 2 * VL + 1, 5 * VL + 2])
@pytest.mark.parametrize("height", [2, 5, 6])
def test_windows_of_two_by_two_side_by_side(height, width, layout):
    """Contiguous planes go through kernels of their own. Rounded values have ties; NaN beats every number."""
    x = np.round(normal((2, 3, height, width)))
    check_max_pool(layout(x), 2, {})
    x[generator("NaN").random(x.shape) < 0.2] = NAN
    check_max_pool(layout(x), 2, {"stride": 2})


@layouts
@pytest.mark.parametrize("changed", [(0, 0), (0, -1), (-1, 0), (-1, -1)], ids=label)
@pytest.mark.parametrize("width", [VL, 2 * VL + 6])
def test_max_pool_backward_where_one_place_is_not_in_its_window(width, changed, layout):
    """The sizes are those of 2 x 2 windows, which all others keep to; two gradients meet in one place."""
    x = normal((2, 3, 6, width))
    y, argmax = ops.max_pool2d(x, 2)
    argmax[1, 2, *changed] = argmax[1, 2, 1, 1]
    check("max_pool2d_backward", layout(normal(y.shape, "dy")), argmax, x.shape)


def test_max_pool_backward_adds_up_overlapping_windows():
    dy, argmax = np.ones((1, 1, 2, 2), np.float32), np.full((1, 1, 2, 2), 4, np.int32)
    dx = ops.max_pool2d_backward(dy, argmax, (1, 1, 3, 3))
    assert dx[0, 0, 1, 1] == 4 and dx.sum() == 4


@pytest.mark.parametrize("dtype", [np.int8, np.int64, np.uint64, ">i4"])
def test_max_pool_backward_takes_any_integer_argmax(dtype):
    x = normal((2, 3, 6, 6))
    _, argmax = ops.max_pool2d(x, 2)
    dy = normal(argmax.shape, "dy")
    expected = ops.max_pool2d_backward(dy, argmax, x.shape)
    np.testing.assert_array_equal(ops.max_pool2d_backward(dy, argmax.astype(dtype), x.shape), expected)
    np.testing.assert_array_equal(ops.max_pool2d_backward(dy, argmax.tolist(), x.shape), expected)
    np.testing.assert_array_equal(ops.max_pool2d_backward(dy, channels_last(argmax), x.shape), expected)
    np.testing.assert_array_equal(ops.max_pool2d_backward(channels_last(dy), argmax, x.shape), expected)


def test_pooling_accepts_a_batch_of_none():
    x = np.zeros((0, 3, 5, 4), np.float32)
    y, argmax = ops.max_pool2d(x, 2)
    assert y.shape == argmax.shape == (0, 3, 2, 2) and argmax.dtype == np.int32
    assert ops.max_pool2d_backward(y, argmax, x.shape).shape == x.shape
    assert ops.avg_pool2d(x, 2, padding=1).shape == (0, 3, 3, 3)
    assert ops.avg_pool2d_backward(y, x.shape, 2).shape == x.shape
    assert ops.global_avg_pool2d(x).shape == (0, 3)
    assert ops.global_avg_pool2d_backward(np.zeros((0, 3)), x.shape).shape == x.shape


# ---------------------------------------------------------------------------------- matrix products

GEMM_SIZES = sorted({1, 2, VL - 1, VL, VL + 1, 2 * VL + 1, 14, 15, 100, 257})


def gemm_double(a, b, trans_a=False, trans_b=False, alpha=1.0, beta=0.0, out=None):
    a, b = (v.astype(np.float64) for v in (a, b))
    c = alpha * ((a.T if trans_a else a) @ (b.T if trans_b else b))
    return c if out is None or beta == 0 else c + beta * out


def gemm_arrays(m, n, k, trans_a, trans_b):
    return normal((k, m) if trans_a else (m, k), "a"), normal((n, k) if trans_b else (k, n), "b")


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("trans_a", [False, True])
def test_gemm_sizes(trans_a, trans_b):
    large = {100, 257}
    for m, n, k in itertools.product(GEMM_SIZES, repeat=3):
        if len(large & {m, n, k}) == 2 and (m + n + k) % 2:  # half of the slow ones
            continue
        a, b = gemm_arrays(m, n, k, trans_a, trans_b)
        c = ops.gemm(a, b, trans_a=trans_a, trans_b=trans_b)
        # A single product may cancel, so the measure is what k normal terms come to.
        found = error(c, gemm_double(a, b, trans_a, trans_b), floor=3 * math.sqrt(k))
        assert found < 1.5e-6, (m, n, k, found)


@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (3, 2, 4), (5, VL + 1, 7), (16, 3, 2)])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("trans_a", [False, True])
def test_gemm_and_its_twin(m, n, k, trans_a, trans_b):
    a, b = gemm_arrays(m, n, k, trans_a, trans_b)
    check("gemm", a, b, trans_a=trans_a, trans_b=trans_b)
    check("gemm", strided(a), strided(b), trans_a=trans_a, trans_b=trans_b, alpha=-2.5)
    for alpha, beta in ((1, 1), (0.5, -2), (0, 3), (2, 0)):
        out = normal((m, n), "out")
        expected = out.tolist()
        options = {"trans_a": trans_a, "trans_b": trans_b, "alpha": alpha, "beta": beta}
        cnn.reference.gemm(a.tolist(), b.tolist(), out=expected, **options)
        assert ops.gemm(a, b, out=out, **options) is out
        assert_close(out, expected)


def beginning_at(array, floats):
    """A copy that begins so many floats after a cache line."""
    memory = np.zeros(array.size + 32, np.float32)
    start = -memory.ctypes.data // 4 % 16 + floats
    copy = memory[start : start + array.size].reshape(array.shape)
    copy[...] = array
    return copy


@pytest.mark.parametrize("floats", [0, 1, 4, 8, 15])
@pytest.mark.parametrize("shape", [(13, 90, 3 * VL + 1), (40, 530, 2 * VL), (61, 7, 5 * VL), (200, 65, 33)], ids=label)
def test_gemm_of_matrices_that_begin_anywhere(shape, floats):
    """Where b is read where it lies, panels of vectors that cross cache lines are copied; to the same bits."""
    m, k, n = shape
    a, b = gemm_arrays(m, n, k, False, False)
    assert_close(ops.gemm(a, b), gemm_double(a, b))
    np.testing.assert_array_equal(ops.gemm(beginning_at(a, floats), beginning_at(b, floats)), ops.gemm(a, b))


def test_results_begin_at_a_cache_line():
    x, w = normal((2, 3, 40, 40), "x"), normal((9, 3, 3, 3), "w")
    results = [ops.conv2d(x, w), *ops.max_pool2d(x, 2), ops.activation(x, "relu"), ops.gemm(x[0, 0], x[0, 1])]
    model = cnn.Sequential([cnn.Conv2D(64, 3), cnn.Flatten(), cnn.Dense(10)], seed=0)
    results += [model.predict(np.repeat(x, 60, 0)), *(layer.params["weight"] for layer in model.layers[::2])]
    for array in results:
        assert array.nbytes >= 4096 and array.ctypes.data % 64 == 0


@pytest.mark.parametrize("k", [511, 512, 513, 768])
def test_gemm_of_long_rows(k):
    """Rows are summed in chunks of 512, or 128 where b has long rows, each added to the last. With few rows b is read
    where it lies, except for the columns of a last panel that is not full, or copied panel by panel where its rows lie
    512 or 2048 floats apart: both sides of that limit, in tiles of 6, 12 and 14 rows."""
    shapes_of_c = [(15, VL + 1), (72, 4 * VL), (50, 512), (30, 522), (15, 2048), (73, 5), (7, 17 * VL + 1)]
    for m, n in (*shapes_of_c, (144, 3 * VL), (169, 2 * VL + 1)):
        a, b = gemm_arrays(m, n, k, False, False)
        out = normal((m, n), "out")
        expected = gemm_double(a, b, alpha=0.5, beta=-1, out=out)
        assert_close(ops.gemm(a, b, alpha=0.5, beta=-1, out=out), expected)
        turned = np.ascontiguousarray(a.T)
        assert_close(ops.gemm(turned, b, trans_a=True), gemm_double(a, b))
        assert_close(ops.gemm(turned, b, trans_a=True, alpha=2), gemm_double(a, b, alpha=2))


@pytest.mark.parametrize("trans_a", [False, True])
def test_gemm_with_a_transposed_b_larger_than_what_it_makes(trans_a):
    """c is turned as it is stored, in blocks of its columns, and b is read where it lies: shapes of one and more blocks
    and panels, sums of one and more chunks."""
    for m, n, k in ((1, 300, 20), (3, 57, 513), (VL, 200, 600), (4 * VL + 1, 130, 700), (90, 128, 1030)):
        a, b = gemm_arrays(m, n, k, trans_a, True)
        assert_close(ops.gemm(a, b, trans_a=trans_a, trans_b=True), gemm_double(a, b, trans_a, True))
        out = normal((m, n), "out")
        expected = gemm_double(a, b, trans_a, True, alpha=0.5)
        assert_close(ops.gemm(a, b, trans_a=trans_a, trans_b=True, alpha=0.5, out=out), expected)


@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3, 4, 5, 6, 7, 30, 84, 510, 513, 515])
def test_gemm_of_few_columns(k, trans_b):
    """Up to a vector of them may be summed by four terms at a time; the terms beyond the last are not read, nor is a
    product of them and zero added: the row behind is infinite."""
    for n in range(1, VL + 1):
        a, b = gemm_arrays(16, n, k, False, trans_b)
        a[5::7] = INF
        rows = np.isfinite(a[:, 0])
        with np.errstate(invalid="ignore"):
            c = ops.gemm(a, b, trans_b=trans_b)
        assert_close(c[rows], gemm_double(a[rows], b, trans_b=trans_b), floor=1)
        assert not np.isfinite(c[~rows]).any()


@pytest.mark.parametrize(("channels", "groups"), [(5, 1), (12, 1), (15, 2), (18, 2), (67, 1), (161, 1)])
def test_conv2d_as_products_of_few_columns(channels, groups):
    """As products of few columns, whose sums go over several taps, chunks of channels and groups."""
    for filters in (1, 4, 7, 10, VL):
        shapes = (2, channels * groups, 6, 5), (filters * groups, channels, 3, 3)
        check_conv2d(*shapes, padding=1, groups=groups)
        check_conv2d(*shapes, stride=2, groups=groups)


@pytest.mark.parametrize("shape", [(1, 1025, 4099), (73, 1025, 4099), (100, 2048, 2080), (145, 2053, 2048)], ids=label)
def test_gemm_of_few_rows_with_weights_beyond_the_caches(shape):
    """One block of tiles, up to 24 of them, copies four panels of b at a time; for more rows b is packed."""
    m, k, n = shape
    a, b = gemm_arrays(m, n, k, False, False)
    out = normal((m, n), "out")
    expected = gemm_double(a, b, alpha=0.5, beta=-1, out=out)
    assert_close(ops.gemm(a, b, alpha=0.5, beta=-1, out=out), expected)


@pytest.mark.parametrize("c", [1, 3, 17, VL - 1, VL, VL + 1])
@pytest.mark.parametrize(("k", "groups"), [(VL, 1), (2 * VL, 1), (4 * VL, 2), (4 * VL + 3, 1), (512, 1)])
def test_conv2d_with_the_weights_of_layers(c, k, groups):
    """Few pixels and weights (R, S, C/groups, K), whose filters lie side by side: they are read where they lie."""
    x, w, b = normal((1, 5, 4, c * groups), "x"), normal((3, 3, c, k), "w"), normal(k, "b")
    g = shapes.conv2d("conv2d", (1, c * groups, 5, 4), (k, c, 3, 3), stride=1, padding=1, dilation=1, groups=groups)
    y = np.empty((1, g.oh, g.ow, k), np.float32)
    builder = PlanBuilder()
    calls.conv2d(builder, g, calls.rsck_strides(g), *(builder.external(name) for name in "yxwb"))
    run_once(builder.finish(), {"x": x, "y": y, "w": w, "b": b})
    padded = np.pad(x[0].astype(np.float64), ((1, 1), (1, 1), (0, 0))).reshape(7, 6, groups, c)
    weights = w.astype(np.float64).reshape(3, 3, c, groups, k // groups)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))
    assert_close(y[0], np.einsum("hwgcrs,rscgk->hwgk", windows, weights).reshape(5, 4, k) + b)


def outs():
    """Arrays (12, 12) with different memory, each given float32 values to hold."""
    return {
        "contiguous": lambda v: v.copy(),
        "transposed": lambda v: v.T.copy().T,
        "strided": strided,
        "backwards": lambda v: v[::-1].copy()[::-1],
        "part": lambda v: np.pad(v, 3)[3:-3, 3:-3],
    }


@pytest.mark.parametrize("make", outs().values(), ids=outs())
@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5])
def test_gemm_writes_out_of_any_memory(make, beta):
    a, b, values = normal((12, 5), "a"), normal((5, 12), "b"), normal((12, 12), "out")
    out = make(values)
    assert ops.gemm(a, b, alpha=2, beta=beta, out=out) is out
    assert_close(out, gemm_double(a, b, alpha=2, beta=beta, out=values))


def test_gemm_writes_only_inside_out():
    whole = np.full((14, 20), 7, np.float32)
    ops.gemm(normal((10, 3), "a"), normal((3, 12), "b"), out=whole[2:12, 4:16])
    whole[2:12, 4:16] = 7
    assert (whole == 7).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, 0.25])
def test_gemm_where_out_is_an_input(beta):
    for view in (lambda v: v, lambda v: v.T, lambda v: v[::-1]):
        a, b = normal((33, 33), "a"), normal((33, 33), "b")
        expected = gemm_double(a, b, beta=beta, out=view(a).copy())
        assert_close(ops.gemm(a, b, beta=beta, out=view(a)), expected)
        a, b = normal((33, 33), "a"), normal((33, 33), "b")
        expected = gemm_double(a, b, beta=beta, out=view(b).copy())
        assert_close(ops.gemm(a, b, beta=beta, out=view(b)), expected)
    a = normal((33, 33), "a")
    expected = gemm_double(a, a, trans_b=True, beta=beta, out=a)
    assert_close(ops.gemm(a, a, trans_b=True, beta=beta, out=a), expected)
    # The middle rows of one array are a factor, rows that overlap them the result.
    whole = normal((40, 9), "whole")
    a, b = whole[:30], normal((9, 9), "b")
    expected = gemm_double(a, b, beta=beta, out=whole[10:].copy())
    assert_close(ops.gemm(a, b, beta=beta, out=whole[10:]), expected)


@pytest.mark.parametrize("k", [0, 1, 300])
def test_gemm_with_beta_0_does_not_read_out(k):
    a, b = normal((3, k), "a"), normal((k, 5), "b")
    for make in outs().values():
        out = make(np.full((3, 5), NAN, np.float32))
        assert_close(ops.gemm(a, b, out=out), gemm_double(a, b))
    assert_close(ops.gemm(a, b), gemm_double(a, b))


def test_gemm_takes_numbers_of_any_kind_each_time():
    a, b = normal((3, 4), "a"), normal((4, 5), "b")
    for alpha in (2, 2.0, np.float32(2), np.array(2.0), np.array(2)):
        assert_close(ops.gemm(a, b, alpha=alpha, trans_a=False), 2 * gemm_double(a, b))
    with pytest.raises(TypeError, match="trans_a"):
        ops.gemm(a, b, alpha=2, trans_a=0)
    with pytest.raises(TypeError, match="alpha"):
        ops.gemm(a, b, alpha=[2])


def test_gemm_of_nothing():
    assert ops.gemm(np.zeros((0, 3)), np.zeros((3, 4))).shape == (0, 4)
    assert ops.gemm(np.zeros((2, 3)), np.zeros((3, 0))).shape == (2, 0)
    out = np.ones((2, 4), np.float32)
    assert ops.gemm(np.zeros((2, 0)), np.zeros((0, 4)), beta=3, out=out) is out
    assert (out == 3).all()


@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 1, 1), (2, 3, 4), (3, VL + 1, 5), (4, 2, 2 * VL + 1)])
def test_dense_and_its_twin(n, inputs, outputs):
    x, w, b = normal((n, inputs), "x"), normal((inputs, outputs), "w"), normal(outputs, "b")
    dy = normal((n, outputs), "dy")
    for layout in (LAYOUTS["contiguous"], strided):
        check("dense", layout(x), layout(w), layout(b))
        check("dense", layout(x), layout(w))
        check("dense_backward", layout(dy), layout(x), layout(w))


@pytest.mark.parametrize("n", [1, 7, 65, 300])
@pytest.mark.parametrize("inputs", [1, 14, 257, 600])
@pytest.mark.parametrize("outputs", [1, 10, 2 * VL + 1, 100])
def test_dense_sizes(n, inputs, outputs):
    x, w, b = (normal(shape).astype(np.float64) for shape in ((n, inputs), (inputs, outputs), (outputs,)))
    dy = normal((n, outputs), "dy").astype(np.float64)
    assert error(ops.dense(x, w, b), x @ w + b, floor=3 * math.sqrt(inputs)) < 1e-6
    dx, dw, db = ops.dense_backward(dy, x, w)
    assert error(dx, dy @ w.T, floor=3 * math.sqrt(outputs)) < 1e-6
    assert error(dw, x.T @ dy, floor=3 * math.sqrt(n)) < 1e-6
    assert error(db, dy.sum(axis=0), floor=3 * math.sqrt(n)) < 1e-6


def test_dense_accepts_a_batch_of_none():
    x, w, dy = np.zeros((0, 3)), normal((3, 4)), np.zeros((0, 4))
    assert ops.dense(x, w, normal(4)).shape == (0, 4)
    dx, dw, db = ops.dense_backward(dy, x, w)
    assert dx.shape == (0, 3) and dw.shape == (3, 4) and db.shape == (4,) and not dw.any() and not db.any()


# ------------------------------------------------------------------------------------- element-wise

ACTIVATIONS = [
    *((name, {}) for name in ("relu", "leaky_relu", "sigmoid", "tanh", "elu", "gelu", "silu", "hard_swish")),
    ("leaky_relu", {"alpha": 0.3}),
    ("leaky_relu", {"alpha": -1.5}),
    ("elu", {"alpha": 2.5}),
]
activations = pytest.mark.parametrize(("name", "options"), ACTIVATIONS, ids=label)


@activations
@pytest.mark.parametrize(
    "shape", [(), (1,), (VL - 1,), (VL,), (VL + 1,), (3, 5), (2, 3, 4), (2, 3, 4, 5), (2, 1, 3, 2, 2)], ids=label
)
def test_activations_and_their_twins(name, options, shape):
    for layout in LAYOUTS.values() if shape else [np.array]:
        x, dy = layout(3 * normal(shape, "x")), layout(normal(shape, "dy"))
        assert_layout(check("activation", x, name, floor=1, **options), x)
        assert_layout(check("activation_backward", dy, x, name, floor=1, **options), x)
        # dy in another layout than x.
        assert_layout(check("activation_backward", np.array(dy, order="F"), x, name, floor=1, **options), x)


@activations
def test_activations_of_more_than_a_block(name, options):
    """Threads share out blocks of 4096 elements."""
    x, dy = normal((2, 4099), "x"), normal((2, 4099), "dy")
    for part in (slice(0, 60), slice(4090, 4099)):
        assert_close(
            ops.activation(x, name, **options)[:, part], cnn.reference.activation(x[:, part].tolist(), name, **options)
        )
        assert_close(
            ops.activation_backward(dy, x, name, **options)[:, part],
            cnn.reference.activation_backward(dy[:, part].tolist(), x[:, part].tolist(), name, **options),
        )


# |actual - exact| <= relative |exact| + absolute, forward and backward. In units of the last place (6e-8 to
# 1.2e-7): 4 for exp and its combinations. The erf of gelu is a polynomial with an absolute error of 0.75e-7 times
# x, and derivatives cancel where they go to zero.
ACCURACY = {
    "relu": (0, 0, 0, 0),
    "leaky_relu": (1.2e-7, 0, 1.2e-7, 0),
    "sigmoid": (5e-7, 1e-37, 5e-7, 1e-7),
    "tanh": (5e-7, 0, 5e-7, 3e-7),
    "elu": (5e-7, 0, 5e-7, 1e-37),
    "gelu": (3e-7, 4e-7, 5e-7, 5e-7),
    "silu": (6e-7, 1e-36, 1e-6, 2e-7),
    "hard_swish": (3e-7, 1e-7, 3e-7, 1e-7),
}


@activations
def test_activations_are_accurate_over_a_dense_range(name, options):
    """20,000 points evenly from -100 to 100 and from -4 to 4, and 2,000 of every size from 1e-30 to 1e30."""
    options = {k: float(np.float32(v)) for k, v in options.items()}
    sizes = np.logspace(-30, 30, 1000)
    x = np.concatenate([np.linspace(-100, 100, 10_000), np.linspace(-4, 4, 10_000), sizes, -sizes]).astype(np.float32)
    dy = np.ones_like(x)
    exact = np.array(cnn.reference.activation(x.tolist(), name, **options))
    exact_backward = np.array(cnn.reference.activation_backward(dy.tolist(), x.tolist(), name, **options))
    relative, absolute, relative_backward, absolute_backward = ACCURACY[name]
    for actual, wanted, r, a in (
        (ops.activation(x, name, **options), exact, relative, absolute),
        (ops.activation_backward(dy, x, name, **options), exact_backward, relative_backward, absolute_backward),
    ):
        excess = np.abs(actual - wanted) - (r * np.abs(wanted) + a)
        worst = int(excess.argmax())
        assert excess[worst] <= 0, (x[worst], actual[worst], wanted[worst])


@activations
def test_activations_at_kinks_and_beyond_numbers(name, options):
    x = np.array([0.0, -0.0, 3.0, -3.0, INF, -INF, NAN, 1e-45, -1e-45, 1e38, -1e38], np.float32)
    dy = np.full_like(x, 2)
    check("activation", x, name, **options)
    check("activation_backward", dy, x, name, **options)
    # Each alone, since the error is relative to the largest.
    for value, gradient in zip(x, dy, strict=True):
        check("activation", value[None], name, tolerance=5e-7, floor=1, **options)
        check("activation_backward", gradient[None], value[None], name, tolerance=5e-7, floor=1, **options)


def test_an_infinite_or_nan_gradient_goes_through_relu_only_where_open():
    dy, x = np.array([NAN, NAN, INF, INF], np.float32), np.array([-1, 1, 0, 2], np.float32)
    np.testing.assert_array_equal(ops.activation_backward(dy, x, "relu"), [0, NAN, 0, INF])


def test_activations_of_nothing():
    for shape in ((0,), (0, 3, 4, 5), (2, 0)):
        x = np.zeros(shape, np.float32)
        assert ops.activation(x, "gelu").shape == shape
        assert ops.activation_backward(x, x, "gelu").shape == shape


# --------------------------------------------------------------------------------- softmax and loss


@pytest.mark.parametrize(
    "shape",
    [
        (1,),
        (7,),
        (3, 1),
        (5, 10),
        (4, VL),
        (2, 3, VL + 1),
        (1, 2, 3, 2 * VL - 1),
        (3 * VL, 1),
        (3 * VL, 3),
        (2 * VL, 4),
        (3 * VL + 1, 5),
        (2 * VL + 3, 10),
        (5 * VL + 1, 32),
        (5 * VL + 1, 33),
    ],
    ids=label,
)
def test_softmax_and_its_twin(shape):
    for layout in (LAYOUTS["contiguous"], strided):
        y = check("softmax", layout(3 * normal(shape)), tolerance=5e-7)
        assert_close(y.sum(axis=-1), np.ones(shape[:-1]), 5e-7)


def test_softmax_keeps_channels_last_memory():
    x = channels_last(normal((2, 3, 4, 5)))
    assert_layout(check("softmax", x), x)


LARGE_LOGITS = np.array([[3000, -3000, 2999], [-3000, -3000, -3000], [3e38, 0, -3e38], [0, -INF, 1]], np.float32)


def test_softmax_of_large_logits():
    check("softmax", LARGE_LOGITS, tolerance=5e-7)
    check("softmax", np.tile(LARGE_LOGITS, (VL, 1)), tolerance=5e-7)


@pytest.mark.parametrize("rows", [1, VL, 2 * VL + 1])
def test_the_mean_of_losses_near_the_largest_number(rows):
    """Their sum is beyond single precision."""
    loss, _ = ops.softmax_cross_entropy(np.tile(np.array([[0, 1, 3e38]], np.float32), (rows, 1)), np.ones(rows, int))
    assert loss == np.float32(3e38)


def test_cross_entropy_of_large_logits():
    """The loss depends on differences of logits, so it keeps its digits where the logits are large."""
    for row, label in itertools.product(LARGE_LOGITS, range(3)):
        # Label and logit of the last row's middle would be infinite.
        if row[label] > -INF:
            loss, gradient = run("softmax_cross_entropy", row[None], np.array([label]))[0]
            expected, expected_gradient = cnn.reference.softmax_cross_entropy([row.tolist()], [label])
            with np.errstate(over="ignore"):
                expected = float(np.float32(expected))
            assert loss == expected or abs(loss - expected) <= 1e-6 * expected, (row, label, loss, expected)
            assert_close(gradient, expected_gradient, 1e-6)


def test_softmax_spreads_a_nan_over_its_own_row():
    x = normal((3, 20))
    x[1, 7] = NAN
    y = ops.softmax(x)
    assert np.isnan(y[1]).all() and np.isfinite(y[[0, 2]]).all()
    loss, gradient = ops.softmax_cross_entropy(x, [0, 1, 2])
    assert math.isnan(loss) and np.isnan(gradient[1]).all() and np.isfinite(gradient[[0, 2]]).all()


@pytest.mark.parametrize("row", [0, VL - 1, VL, 2 * VL, 3 * VL])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_what_is_not_finite_stays_in_its_row(row, value):
    """Of few columns, several rows are in the lanes of two vectors, of one, or alone."""
    x = normal((3 * VL + 1, 10))
    expected = ops.softmax(x)
    x[row, 3] = value
    labels = np.zeros(len(x), int)
    actual, (loss, gradient) = ops.softmax(x), ops.softmax_cross_entropy(x, labels)
    others = np.arange(len(x)) != row
    np.testing.assert_allclose(actual[others], expected[others], rtol=1e-6)
    assert np.isfinite(gradient[others]).all()
    if value == -INF:
        assert actual[row, 3] == gradient[row, 3] == 0 and math.isfinite(loss)
    else:
        assert np.isnan(actual[row]).all() and np.isnan(gradient[row]).all() and math.isnan(loss)


def test_softmax_of_nothing():
    assert ops.softmax(np.zeros((0, 3))).shape == (0, 3)
    assert ops.softmax(np.zeros((3, 0))).shape == (3, 0)
    loss, gradient = ops.softmax_cross_entropy(np.zeros((0, 3)), np.zeros(0, int))
    assert loss == 0 and gradient.shape == (0, 3)


@pytest.mark.parametrize(
    ("n", "classes"),
    [
        (1, 1),
        (1, 2),
        (5, 10),
        (3, VL),
        (5, VL - 1),
        (7, 2 * VL + 1),
        (70, 3),
        (3 * VL, 1),
        (3 * VL, 3),
        (2 * VL, 4),
        (3 * VL + 1, 5),
        (2 * VL + 3, 10),
        (5 * VL + 1, 32),
        (5 * VL + 1, 33),
    ],
)
def test_cross_entropy_and_its_twin(n, classes):
    logits = 3 * normal((n, classes))
    labels = generator(n, classes).integers(0, classes, n)
    rows = generator("rows", n, classes).random((n, classes)) + 0.01
    rows = (rows / rows.sum(axis=1, keepdims=True)).astype(np.float32)
    loss, _ = check("softmax_cross_entropy", logits, labels)
    assert isinstance(loss, float)
    check("softmax_cross_entropy", strided(logits), rows)
    check("softmax_cross_entropy", logits, np.eye(classes, dtype=np.float32)[labels])


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int64, np.uint64, np.float32, np.float64, np.float16])
def test_cross_entropy_takes_labels_of_any_number_type(dtype):
    logits, labels = normal((6, 5)), np.array([0, 4, 2, 2, 1, 3])
    expected_loss, expected = ops.softmax_cross_entropy(logits, labels)
    for given in (labels.astype(dtype), labels.astype(dtype)[:, None], labels.astype(dtype).tolist()):
        loss, gradient = ops.softmax_cross_entropy(logits, given)
        assert loss == expected_loss
        np.testing.assert_array_equal(gradient, expected)
    loss, gradient = ops.softmax_cross_entropy(logits, np.eye(5)[labels].astype(dtype))
    assert_close(loss, expected_loss, 1e-6)
    assert_close(gradient, expected, 1e-6)


# --------------------------------------------------------------------------------------- batch norm


def batch_norm_arrays(shape, mean=0.0, spread=1.0):
    c = shape[1]
    x = (normal(shape, "x") * spread + mean).astype(np.float32)
    return x, normal(c, "gamma"), normal(c, "beta"), normal(c, "mean"), np.abs(normal(c, "var")) + 0.1


def check_batch_norm(x, gamma, beta, running_mean, running_var, tolerance=2e-6, **options):
    """Forward, running statistics and backward against the twin."""
    lists = [v.tolist() for v in (x, gamma, beta, running_mean, running_var)]
    y, cache = ops.batch_norm(x, gamma, beta, running_mean, running_var, **options)
    expected, expected_cache = cnn.reference.batch_norm(*lists, **options)
    assert_layout(y, x)
    assert_close(y, expected, tolerance)
    assert_close(running_mean, lists[3])
    assert_close(running_var, lists[4])
    dy = y.copy(order="K")
    dy[...] = normal(y.shape, "dy")
    dx, dgamma, dbeta = ops.batch_norm_backward(dy, cache)
    expected = cnn.reference.batch_norm_backward(dy.tolist(), expected_cache)
    assert_layout(dx, x)
    # Where a channel has few values, dx is a small difference of terms of the size gamma / deviation.
    terms = max(abs(g * s) for g, s in zip(expected_cache.gamma, expected_cache.inv_std, strict=True))
    assert_close(dx, expected[0], tolerance, floor=terms)
    assert_close(dgamma, expected[1], tolerance, floor=1)
    assert_close(dbeta, expected[2], tolerance, floor=1)


@layouts
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    "shape",
    [
        (2, 1),
        (5, 3),
        (70, VL + 1),
        (2, 1, 1, 1),
        (2, 3, 4, 5),
        (3, VL - 1, 3, 1),
        (1, 2 * VL + 1, 5, 7),
        (4, 2, 13, 11),
        (3, 2, 34, 33),
        (2, 3, 8, 4 * VL),
        (6, 2 * VL + 1, 1, 1),
        (7, VL + 1, 3, 5),
        (150, 4 * VL + 1),
    ],
    ids=label,
)
def test_batch_norm_and_its_twin(shape, training, layout):
    x, *vectors = batch_norm_arrays(shape)
    check_batch_norm(layout(x), *vectors, training=training)
    x, *vectors = batch_norm_arrays(shape)
    check_batch_norm(layout(x), *vectors, training=training, momentum=0.25, eps=0.1)


@pytest.mark.parametrize("training", [True, False])
@layouts
def test_batch_norm_of_a_large_mean(training, layout):
    """At mean 100 and deviation 1, x itself carries a rounding error of 4e-6."""
    x, gamma, beta, _, _ = batch_norm_arrays((8, 5, 9, 8), mean=100.0)
    running = np.full(5, 100, np.float32), np.ones(5, np.float32)
    check_batch_norm(layout(x), gamma, beta, *running, training=training, tolerance=1e-5)


def test_batch_norm_of_equal_values():
    """The variance is 0, so y is beta; so it is for a batch of one row."""
    for x in (np.full((4, 3, 2, 2), 0.1, np.float32), normal((1, 3))):
        _, gamma, beta, mean, var = batch_norm_arrays(x.shape)
        y, cache = ops.batch_norm(x, gamma, beta, mean, var, training=True)
        np.testing.assert_allclose(y, np.broadcast_to(beta.reshape(1, 3, *[1] * (x.ndim - 2)), x.shape), atol=1e-4)
        dx, _, dbeta = ops.batch_norm_backward(np.ones_like(x), cache)
        assert np.isfinite(dx).all() and (dbeta == x.size // 3).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_batch_norm_updates_running_arrays_in_place(dtype):
    x, gamma, beta, mean, var = batch_norm_arrays((6, 4))
    whole = np.zeros((4, 3), dtype)
    whole[:, 0], whole[:, 2] = mean, var
    lists = whole[:, 0].tolist(), whole[:, 2].tolist()
    ops.batch_norm(x, gamma, beta, whole[:, 0], whole[:, 2], training=True)
    cnn.reference.batch_norm(x.tolist(), gamma.tolist(), beta.tolist(), *lists, training=True)
    tolerance = 1e-3 if dtype == np.float16 else 1e-6
    assert_close(whole[:, 0], lists[0], tolerance)
    assert_close(whole[:, 2], lists[1], tolerance)
    assert not whole[:, 1].any()


def test_batch_norm_does_not_touch_running_arrays_otherwise():
    x, gamma, beta, mean, var = batch_norm_arrays((6, 4))
    kept = mean.copy(), var.copy()
    mean.flags.writeable = var.flags.writeable = False
    ops.batch_norm(x, gamma, beta, mean, var, training=False)
    mean.flags.writeable = var.flags.writeable = True
    y, cache = ops.batch_norm(np.zeros((0, 4)), gamma, beta, mean, var, training=True)
    dx, dgamma, dbeta = ops.batch_norm_backward(y, cache)
    assert y.shape == dx.shape == (0, 4) and not dgamma.any() and not dbeta.any()
    np.testing.assert_array_equal((mean, var), kept)


def test_batch_norm_backward_does_not_see_later_changes():
    """The cache is the forward pass's own."""
    x, gamma, beta, mean, var = batch_norm_arrays((6, 4))
    dy = normal((6, 4), "dy")
    y, cache = ops.batch_norm(x, gamma, beta, mean, var, training=False)
    expected = ops.batch_norm_backward(dy, cache)
    for array in (x, y, gamma, beta, mean, var):
        array[...] = 9
    for actual, wanted in zip(ops.batch_norm_backward(dy, cache), expected, strict=True):
        np.testing.assert_array_equal(actual, wanted)


# ------------------------------------------------------------------------------ inputs of every kind

CALLS = {
    "conv2d": lambda f, a: f(a((2, 3, 5, 5)), a((4, 3, 3, 3)), a((4,)), padding=1),
    "conv2d_backward": lambda f, a: f(a((2, 4, 3, 3)), a((2, 3, 5, 5)), a((4, 3, 3, 3))),
    "max_pool2d": lambda f, a: f(a((2, 3, 4, 4)), 2),
    "max_pool2d_backward": lambda f, a: f(a((2, 3, 1, 1)), [[[[3]]] * 3] * 2, (2, 3, 2, 2)),
    "avg_pool2d": lambda f, a: f(a((2, 3, 4, 4)), 2),
    "avg_pool2d_backward": lambda f, a: f(a((2, 3, 2, 2)), (2, 3, 4, 4), 2),
    "global_avg_pool2d": lambda f, a: f(a((2, 3, 4, 4))),
    "global_avg_pool2d_backward": lambda f, a: f(a((2, 3)), (2, 3, 4, 4)),
    "gemm": lambda f, a: f(a((3, 4)), a((4, 5))),
    "dense": lambda f, a: f(a((3, 4)), a((4, 5)), a((5,))),
    "dense_backward": lambda f, a: f(a((3, 5)), a((3, 4)), a((4, 5))),
    "activation": lambda f, a: f(a((2, 3, 4, 4)), "gelu"),
    "activation_backward": lambda f, a: f(a((2, 3, 4, 4)), a((2, 3, 4, 4)), "gelu"),
    "softmax": lambda f, a: f(a((3, 4))),
    "softmax_cross_entropy": lambda f, a: f(a((3, 4)), [0, 3, 2]),
    "batch_norm": lambda f, a: f(a((2, 3, 4, 4)), a((3,)), a((3,)), np.zeros(3), np.ones(3), training=True)[:1],
}

every_op = pytest.mark.parametrize("name", CALLS)


def arrays_of(results):
    return [r for r in (results if isinstance(results, tuple) else (results,)) if isinstance(r, np.ndarray)]


def whole_numbers(shape):
    """Small integers, which every number type holds."""
    return generator("whole", shape).integers(0, 9, shape)


@every_op
@pytest.mark.parametrize(
    "convert",
    [
        lambda v: v.astype(np.float64),
        lambda v: v.astype(np.float16),
        lambda v: v.astype(np.int8),
        lambda v: v.astype(np.uint64),
        lambda v: v.astype(">f4"),
        lambda v: v.tolist(),
        lambda v: tuple(v.tolist()),
        lambda v: np.frombuffer(b"-" + v.astype(np.float32).tobytes(), np.float32, offset=1).reshape(v.shape),
        lambda v: np.asfortranarray(v.astype(np.float32)),
        lambda v: np.broadcast_to(v.astype(np.float32), v.shape),
    ],
    ids=["float64", "float16", "int8", "uint64", "big endian", "lists", "tuples", "unaligned", "Fortran", "read-only"],
)
def test_inputs_of_other_kinds_are_converted(name, convert):
    f = getattr(ops, name)
    expected = arrays_of(CALLS[name](f, lambda shape: whole_numbers(shape).astype(np.float32)))
    actual = arrays_of(CALLS[name](f, lambda shape: convert(whole_numbers(shape))))
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == e.dtype and a.flags.writeable
        np.testing.assert_array_equal(a, e)


@every_op
def test_results_are_the_callers_own(name):
    """Writing into results changes neither the inputs nor what the next call returns."""
    given = {}

    def array(shape):
        return given.setdefault((shape, len(given)), normal(shape, len(given)))

    f = getattr(ops, name)
    first = arrays_of(CALLS[name](f, array))
    kept = [v.copy() for v in given.values()]
    results = [v.copy() for v in first]
    for result in first:
        assert not any(np.shares_memory(result, v) for v in given.values())
        result[...] = 77
    for value, copy in zip(given.values(), kept, strict=True):
        np.testing.assert_array_equal(value, copy)
    remaining = iter(list(given.values()))
    for actual, wanted in zip(arrays_of(CALLS[name](f, lambda _: next(remaining))), results, strict=True):
        np.testing.assert_array_equal(actual, wanted)


@pytest.mark.parametrize("shape", [(2, 1, 3, 4), (2, 3, 1, 1), (1, 1, 1, 1)], ids=label)
def test_an_array_that_is_both_layouts_counts_as_contiguous(shape):
    x = channels_last(normal(shape))
    assert x.flags.c_contiguous
    assert ops.conv2d(x, normal((5, shape[1], 1, 1)), padding=1).flags.c_contiguous
    y, argmax = ops.max_pool2d(x, 1)
    assert y.flags.c_contiguous and argmax.flags.c_contiguous
    assert ops.activation(x, "relu").flags.c_contiguous


def test_inputs_may_share_memory():
    x = normal((4, 4, 3, 3))
    y, expected = run("conv2d", x, x, padding=1)
    assert_close(y[0], expected[0])
    a = normal((6, 6))
    assert_close(ops.gemm(a, a.T), gemm_double(a, a.T))


@pytest.mark.parametrize("shape", [(7,), (3, 5), (2, 3, 4, 5), (0, 4)])
def test_softmax_is_an_activation_as_well(shape):
    generator = np.random.default_rng(0)
    x, dy = (generator.standard_normal(shape).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(ops.activation(x, "softmax"), ops.softmax(x))
    dx = ops.activation_backward(dy, x, "softmax")
    expected = np.array(cnn.reference.activation_backward(dy.tolist(), x.tolist(), "softmax"), np.float64)
    np.testing.assert_allclose(dx, expected.reshape(shape), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError if shape == (7,) else (TypeError, ValueError)):
        ops.activation(x, "relu", alpha=1.0)

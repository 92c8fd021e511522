"""Wrong arguments of every op, and of its twin: a ValueError or TypeError that names the op and the argument and
says what it got; never a crash, another exception, or an attempt to allocate what no machine has."""

import copy
import math
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import generator, is_channels_last, normal

import pycnn as cnn
from pycnn import shapes

NAN, INF = math.nan, math.inf
BIG = 2**31 - 1

# A right call of each op; the wrong ones below change one argument of it, the random ones several.
VALID = {
    "conv2d": {
        "x": normal((2, 4, 5, 6)), "w": normal((6, 2, 3, 3)), "b": normal(6),
        "stride": 1, "padding": 1, "dilation": 1, "groups": 2,
    },
    "conv2d_backward": {
        "dy": normal((2, 6, 5, 6)), "x": normal((2, 4, 5, 6)), "w": normal((6, 2, 3, 3)),
        "stride": 1, "padding": 1, "dilation": 1, "groups": 2,
    },
    "conv_transpose2d": {
        "x": normal((2, 4, 3, 2)), "w": normal((4, 3, 3, 3)), "b": normal(6),
        "stride": 2, "padding": 1, "output_padding": 1, "dilation": 1, "groups": 2,
    },
    "conv_transpose2d_backward": {
        "dy": normal((2, 6, 6, 4)), "x": normal((2, 4, 3, 2)), "w": normal((4, 3, 3, 3)),
        "stride": 2, "padding": 1, "output_padding": 1, "dilation": 1, "groups": 2,
    },
    "max_pool2d": {
        "x": normal((2, 3, 5, 6)), "kernel_size": 2,
        "stride": 2, "padding": 1, "dilation": 1, "ceil_mode": False,
    },
    "max_pool2d_backward": {
        "dy": normal((2, 3, 2, 2)), "argmax": np.full((2, 3, 2, 2), 5, np.int32), "input_shape": (2, 3, 4, 4),
    },
    "avg_pool2d": {
        "x": normal((2, 3, 5, 6)), "kernel_size": 2,
        "stride": 2, "padding": 1, "ceil_mode": False, "count_include_pad": True,
    },
    "avg_pool2d_backward": {
        "dy": normal((2, 3, 2, 2)), "input_shape": (2, 3, 4, 4), "kernel_size": 2,
        "stride": 2, "padding": 0, "ceil_mode": False, "count_include_pad": True,
    },
    "global_avg_pool2d": {"x": normal((2, 3, 5, 6))},
    "global_avg_pool2d_backward": {"dy": normal((2, 3)), "input_shape": (2, 3, 4, 4)},
    "gemm": {
        "a": normal((3, 4)), "b": normal((4, 5)), "trans_a": False, "trans_b": False,
        "alpha": 1.0, "beta": 0.5, "out": normal((3, 5)),
    },
    "dense": {"x": normal((3, 4)), "w": normal((4, 5)), "b": normal(5)},
    "dense_backward": {"dy": normal((3, 5)), "x": normal((3, 4)), "w": normal((4, 5))},
    "activation": {"x": normal((2, 3)), "name": "elu", "alpha": 1.0},
    "activation_backward": {"dy": normal((2, 3)), "x": normal((2, 3)), "name": "elu", "alpha": 1.0},
    "softmax": {"x": normal((2, 3))},
    "softmax_cross_entropy": {"logits": normal((4, 3)), "labels": np.array([0, 2, 1, 1])},
    "batch_norm": {
        "x": normal((2, 3, 4, 4)), "gamma": normal(3), "beta": normal(3),
        "running_mean": normal(3), "running_var": np.ones(3, np.float32),
        "training": True, "momentum": 0.9, "eps": 1e-5,
    },
    "batch_norm_backward": {"dy": normal((2, 3, 4, 4)), "cache": None},
}  # fmt: skip
OPTIONAL = {("conv2d", "b"), ("conv_transpose2d", "b"), ("dense", "b"), ("gemm", "out")}
OPTIONAL |= {("max_pool2d", "stride"), ("avg_pool2d", "stride")}
IN_PLACE = {("gemm", "out"), ("batch_norm", "running_mean"), ("batch_norm", "running_var")}


def for_reference(value):
    """The same argument as the twin takes it."""
    return value.tolist() if isinstance(value, np.ndarray) else value


def arguments(module, op):
    """A fresh copy of the right arguments."""
    given = {name: copy.deepcopy(value) for name, value in VALID[op].items()}
    if module is cnn.reference:
        given = {name: for_reference(value) for name, value in given.items()}
    if op == "batch_norm_backward":
        given["cache"] = module.batch_norm(**arguments(module, "batch_norm"))[1]
    return given


def pytest_ids(entry):
    return repr(entry)[:60] if not isinstance(entry, np.ndarray) else f"{entry.dtype}{entry.shape}"


modules = pytest.mark.parametrize("module", [cnn.ops, cnn.reference], ids=["ops", "reference"])
every_op = pytest.mark.parametrize("op", VALID)


def of_kind(*names):
    """A test for each op and each of its arguments of these names."""
    pairs = [(op, name) for op, given in VALID.items() for name in given if name in names]
    return pytest.mark.parametrize(("op", "name"), pairs, ids=[f"{op}-{name}" for op, name in pairs])


def assert_refused(module, op, changed, *words):
    given = arguments(module, op) | changed
    with warnings.catch_warnings(), pytest.raises((ValueError, TypeError)) as caught:
        warnings.simplefilter("ignore")
        getattr(module, op)(**given)
    message = str(caught.value)
    for word in (f"[{op}]", *words):
        assert word in message, message


@modules
@every_op
def test_the_right_arguments_are_right(module, op):
    getattr(module, op)(**arguments(module, op))


# ------------------------------------------------------------------------------------------ arrays

array_arguments = pytest.mark.parametrize(
    ("op", "name"),
    [(op, name) for op, given in VALID.items() for name, v in given.items() if isinstance(v, np.ndarray)],
)


def with_first(value, element):
    """Nested lists with another first element."""
    lists = value.tolist()
    inner = lists
    while isinstance(inner[0], list):
        inner = inner[0]
    inner[0] = element
    return lists


@array_arguments
def test_arrays_of_the_wrong_type(op, name):
    value = VALID[op][name]
    structure = [("a", np.float32), ("b", np.int8)]
    for dtype in (complex, np.complex64, object, "<U5", "S5", "datetime64[s]", structure):
        given = np.empty(value.shape, dtype)
        if dtype is object:
            given[...] = value
        assert_refused(cnn.ops, op, {name: given}, name, str(np.dtype(dtype)))


@array_arguments
def test_arguments_that_are_no_arrays(op, name):
    for wrong, word in ((object(), "object"), ("text", "str"), ({1: 2}, "dict"), (iter([1]), ""), (b"text", "")):
        assert_refused(cnn.ops, op, {name: wrong}, name)
        assert_refused(cnn.reference, op, {name: wrong}, name, word if name != "argmax" else "")
    if (op, name) not in OPTIONAL:
        assert_refused(cnn.ops, op, {name: None}, name, "None" if name not in ("labels", "argmax") else "")
        assert_refused(cnn.reference, op, {name: None}, name, "None" if name != "argmax" else "")


@array_arguments
def test_lists_with_a_wrong_element(op, name):
    value = VALID[op][name]
    for wrong in (1j, None, "1", object(), {}):
        for module in (cnn.ops, cnn.reference):
            assert_refused(module, op, {name: with_first(value, wrong)}, name)


@array_arguments
@modules
def test_ragged_lists(module, op, name):
    """A list in the place of a number, and a row longer than the others."""
    value = VALID[op][name]
    assert_refused(module, op, {name: with_first(value, [1.0, 2.0])}, name)
    if value.ndim > 1:
        lists = value.tolist()
        lists[-1].append(lists[-1][0])
        assert_refused(module, op, {name: lists}, name)


@array_arguments
def test_arrays_of_the_wrong_shape(op, name):
    """One axis more, one less, and each axis one longer: none of the right calls allows it."""
    value = VALID[op][name]
    wrong = [value[None], np.zeros(value.shape[1:], value.dtype)]
    wrong += [np.concatenate([value, value.take([0], axis)], axis) for axis in range(value.ndim)]
    for given in wrong:
        if not free_shape(op, name, given.shape):
            # Where the rank is right, it may be another argument that does not match this one.
            words = (name, str(given.shape)) if given.ndim != value.ndim and op != "activation_backward" else ()
            assert_refused(cnn.ops, op, {name: given}, *words)
            assert_refused(cnn.reference, op, {name: given.tolist()}, *words)


def free_shape(op, name, shape):
    """Whether the op takes this shape as well, since nothing else in the call depends on it."""
    if op in ("activation", "softmax"):
        return len(shape) > 0
    right = VALID[op][name].shape
    axis = next((i for i in range(len(right)) if shape[i : i + 1] != right[i : i + 1]), None)
    if len(shape) != len(right):
        return False
    free = {
        "conv2d": {"x": (0, 2, 3), "w": (2, 3)},
        "conv_transpose2d": {"x": (0, 2, 3), "w": (2, 3)},
        "max_pool2d": {"x": (0, 1, 2, 3)},
        "avg_pool2d": {"x": (0, 1, 2, 3)},
        "global_avg_pool2d": {"x": (0, 1, 2, 3)},
        "dense": {"x": (0,)},
        "softmax_cross_entropy": {"logits": (1,)},
        "batch_norm": {"x": (0, 2, 3)},
    }
    return axis in free.get(op, {}).get(name, ())


@pytest.mark.parametrize(
    ("op", "changed", "words"),
    [
        ("conv2d", {"w": normal((6, 3, 3, 3))}, ["w has 3 input channels", "x has 4", "groups=2"]),
        ("conv2d", {"w": normal((5, 2, 3, 3))}, ["w has 5 filters", "groups=2"]),
        ("conv2d", {"groups": 3}, ["w", "x has 4", "groups=3"]),
        ("conv2d", {"b": normal(5)}, ["b has shape (5,)", "(6,)"]),
        ("conv2d", {"b": normal((6, 1))}, ["b", "(6, 1)"]),
        ("conv2d", {"x": np.zeros((2, 0, 5, 6))}, ["x", "(2, 0, 5, 6)"]),
        ("conv2d", {"x": np.zeros((2, 4, 5, 0))}, ["x", "(2, 4, 5, 0)"]),
        ("conv2d", {"w": np.zeros((0, 2, 3, 3))}, ["w", "(0, 2, 3, 3)"]),
        ("conv2d", {"w": np.zeros((6, 2, 3, 0))}, ["w", "(6, 2, 3, 0)"]),
        ("conv2d", {"x": normal((2, 4, 0 + 1, 6)), "padding": 0}, ["height 1", "padding 0", "kernel_size 3"]),
        ("conv2d", {"x": normal((2, 4, 6, 2)), "padding": 0}, ["width 2", "padding 0", "kernel_size 3"]),
        ("conv2d", {"dilation": 4}, ["height 5", "dilation 4"]),
        ("conv2d", {"dilation": BIG}, ["height 5", f"dilation {BIG}"]),
        ("conv2d_backward", {"dy": normal((2, 6, 5, 5))}, ["dy", "(2, 6, 5, 5)", "(2, 6, 5, 6)"]),
        ("conv2d_backward", {"dy": normal((1, 6, 5, 6))}, ["dy", "(1, 6, 5, 6)", "(2, 6, 5, 6)"]),
        ("conv2d_backward", {"stride": 2}, ["dy", "(2, 6, 5, 6)", "(2, 6, 3, 3)"]),
        ("conv_transpose2d", {"w": normal((3, 3, 3, 3))}, ["w has 3 input channels", "x has 4"]),
        ("conv_transpose2d", {"groups": 3}, ["x has 4 channels", "groups=3"]),
        ("conv_transpose2d", {"b": normal(3)}, ["b has shape (3,)", "(6,)"]),
        ("conv_transpose2d", {"output_padding": 2}, ["output_padding", "got 2", "stride 2", "dilation 1"]),
        ("conv_transpose2d", {"output_padding": (0, 3)}, ["output_padding", "got 3", "width"]),
        ("conv_transpose2d", {"padding": 4}, ["no output", "height 3"]),
        ("conv_transpose2d", {"x": np.zeros((2, 4, 0, 2))}, ["x", "(2, 4, 0, 2)"]),
        ("conv_transpose2d", {"w": np.zeros((4, 0, 3, 3))}, ["w", "(4, 0, 3, 3)"]),
        ("conv_transpose2d", {"stride": BIG}, ["output", "too large"]),
        ("conv_transpose2d_backward", {"dy": normal((2, 6, 5, 4))}, ["dy", "(2, 6, 5, 4)", "(2, 6, 6, 4)"]),
        ("max_pool2d", {"padding": 2}, ["padding", "(2, 2)", "kernel_size"]),
        ("max_pool2d", {"kernel_size": 3, "padding": (0, 2)}, ["padding", "(0, 2)", "(3, 3)"]),
        ("max_pool2d", {"kernel_size": (8, 1), "padding": 0}, ["height 5", "kernel_size 8"]),
        ("max_pool2d", {"kernel_size": BIG}, ["height 5", str(BIG)]),
        ("max_pool2d", {"dilation": 8}, ["height 5", "dilation 8"]),
        ("max_pool2d", {"x": np.zeros((2, 3, 0, 6))}, ["x", "(2, 3, 0, 6)"]),
        ("avg_pool2d", {"padding": (2, 1)}, ["padding", "(2, 1)", "kernel_size"]),
        ("avg_pool2d", {"kernel_size": (2, 9)}, ["width 6", "kernel_size 9"]),
        ("avg_pool2d_backward", {"padding": 2}, ["padding", "(2, 2)", "kernel_size"]),
        ("avg_pool2d_backward", {"stride": 1}, ["dy", "(2, 3, 2, 2)", "(2, 3, 3, 3)"]),
        ("avg_pool2d_backward", {"input_shape": (2, 3, 4, 6)}, ["dy", "(2, 3, 2, 2)", "(2, 3, 2, 3)"]),
        ("global_avg_pool2d", {"x": np.zeros((2, 3, 0, 0))}, ["x", "(2, 3, 0, 0)"]),
        ("global_avg_pool2d_backward", {"input_shape": (2, 4, 4, 4)}, ["dy", "(2, 3)", "(2, 4)"]),
        ("gemm", {"a": normal((3, 5))}, ["a", "(3, 5)", "b", "(4, 5)"]),
        ("gemm", {"trans_a": True}, ["a", "(3, 4)", "trans_a=True"]),
        ("gemm", {"trans_b": True}, ["b", "(4, 5)", "trans_b=True"]),
        ("gemm", {"out": normal((5, 3))}, ["out", "(5, 3)", "(3, 5)"]),
        ("gemm", {"out": None}, ["out", "beta", "0.5"]),
        ("dense", {"w": normal((5, 4))}, ["w has 5 inputs", "x has 4"]),
        ("dense", {"b": normal(4)}, ["b has shape (4,)", "(5,)"]),
        ("dense", {"w": np.zeros((4, 0)), "b": None}, ["w", "(4, 0)"]),
        ("dense_backward", {"dy": normal((3, 4))}, ["dy", "(3, 4)", "(3, 5)"]),
        ("activation_backward", {"dy": normal((3, 2))}, ["dy", "(3, 2)", "(2, 3)"]),
        ("softmax", {"x": 1.0}, ["x"]),
        ("softmax_cross_entropy", {"logits": normal(4)}, ["logits", "(4,)"]),
        ("softmax_cross_entropy", {"logits": np.zeros((4, 0))}, ["logits", "(4, 0)"]),
        ("batch_norm", {"x": normal((2, 3, 4))}, ["x", "(2, 3, 4)"]),
        ("batch_norm", {"x": normal((2, 4, 3, 3))}, ["gamma", "(3,)", "(4,)"]),
        ("batch_norm", {"running_var": np.ones(4, np.float32)}, ["running_var", "(4,)", "(3,)"]),
        ("batch_norm_backward", {"dy": normal((2, 3, 4, 5))}, ["dy", "(2, 3, 4, 5)", "(2, 3, 4, 4)"]),
    ],
    ids=pytest_ids,
)  # fmt: skip
def test_shapes_that_do_not_match(op, changed, words):
    assert_refused(cnn.ops, op, changed, *words)
    # Nested lists do not tell the axes behind an empty one.
    if not any(isinstance(v, np.ndarray) and 0 in v.shape[:-1] for v in changed.values()):
        assert_refused(cnn.reference, op, {k: for_reference(v) for k, v in changed.items()}, *words)


def test_in_place_arrays_of_ops():
    for wrong, word in ((np.zeros((3, 5)), "float64"), ([[0.0] * 5] * 3, "list"), (np.zeros((3, 5), ">f4"), "f4")):
        assert_refused(cnn.ops, "gemm", {"out": wrong}, "out", word)
    for op, name in sorted(IN_PLACE):
        array = VALID[op][name].copy()
        array.flags.writeable = False
        assert_refused(cnn.ops, op, {name: array}, name, "writ")
    assert_refused(cnn.ops, "batch_norm", {"running_mean": [0.0] * 3}, "running_mean", "list")


@modules
def test_the_cache_of_batch_norm(module):
    for wrong in (None, 3, (1, 2), "cache"):
        assert_refused(module, "batch_norm_backward", {"cache": wrong}, "cache", type(wrong).__name__)


# ----------------------------------------------------------------------------------------- scalars

NOT_INTEGERS = [1.5, 2.0, NAN, True, np.True_, "2", 1j, {}, np.float32(2), object()]
NOT_INTEGERS += [(1, 1.5), (1, True), (None, 1), ("1", "1"), (1,), (1, 2, 3), (), np.array([1, 2])]
OUT_OF_RANGE = [-1, 2**31, 2**63, -(2**63), 10**30, (1, -1), (2**31, 1), np.int64(-3)]


@modules
@of_kind("stride", "padding", "dilation", "kernel_size", "groups")
def test_integers(module, op, name):
    for wrong in [*NOT_INTEGERS, *OUT_OF_RANGE, *([0, (1, 0)] if name != "padding" else [])]:
        got = wrong
        if isinstance(wrong, tuple) and len(wrong) == 2 and name != "groups":
            got = next(v for v in wrong if isinstance(v, bool) or not isinstance(v, int) or not 1 <= v < 2**31)
        shown = str(got) if isinstance(got, (int, np.integer)) and not isinstance(got, bool) else repr(got)
        assert_refused(module, op, {name: wrong}, name, shown)
    if (op, name) not in OPTIONAL and name != "stride":
        assert_refused(module, op, {name: None}, name, "None")
    if name == "groups":
        assert_refused(module, op, {name: (1, 1)}, name, "(1, 1)")


@modules
@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward"])
@pytest.mark.parametrize(
    "wrong", [((1, 1), (1, -1)), ((1, 1), (1, 1.0)), ((1, 1), (1,)), ((1, 1), 1), ((1, 1), (1, 2**31)), "same"]
)
def test_paddings_of_four_sides(module, op, wrong):
    assert_refused(module, op, {"padding": wrong}, "padding")


@modules
@of_kind("trans_a", "trans_b", "ceil_mode", "count_include_pad", "training")
def test_booleans(module, op, name):
    for wrong in (None, "yes", 2, NAN, [], [True], object()):
        assert_refused(module, op, {name: wrong}, name, repr(wrong))


@pytest.mark.parametrize("right", [1, (1, 1)])
@pytest.mark.parametrize("name", ["stride", "padding", "dilation"])
def test_what_only_equals_an_argument_that_was_right_is_refused(name, right):
    """Geometries are kept for their arguments, and 1 == 1.0 == True."""
    geometries = [
        lambda value: shapes.conv2d("conv2d", (1, 2, 5, 5), (2, 2, 3, 3), **{name: value}),
        lambda value: shapes.pool2d("max_pool2d", (1, 2, 5, 5), 3, **{name: value}),
    ]
    for geometry in geometries:
        assert geometry(right) == geometry(right)
        for wrong in (1.0, True, np.float64(1), (1.0, 1), (1, True), [1, True]):
            with pytest.raises(TypeError, match=name):
                geometry(wrong)


numbers = pytest.mark.parametrize(
    ("op", "name"),
    [("gemm", "alpha"), ("gemm", "beta"), ("activation", "alpha"), ("activation_backward", "alpha"),
     ("batch_norm", "momentum"), ("batch_norm", "eps")],
)  # fmt: skip


@modules
@numbers
def test_numbers(module, op, name):
    for wrong in (None, "1", b"1", True, NAN, INF, -INF, 1j, [1.0], object()):
        assert_refused(module, op, {name: wrong}, name, repr(wrong))
    if op == "batch_norm":
        assert_refused(module, op, {name: -0.1}, name, "-0.1")
    if name == "momentum":
        assert_refused(module, op, {name: 1.5}, name, "1.5")


@modules
@numbers
def test_an_integer_beyond_all_floats(module, op, name):
    """float() of it is an OverflowError."""
    assert_refused(module, op, {name: 10**400}, name)


@modules
@numbers
def test_a_complex_number_of_numpy(module, op, name):
    """float() of it warns, and drops the imaginary part."""
    assert_refused(module, op, {name: np.complex64(0.5)}, name)


@modules
@of_kind("stride", "padding", "dilation", "kernel_size", "input_shape")
def test_bytes_are_no_sizes(module, op, name):
    """They are a sequence of integers."""
    assert_refused(module, op, {name: b"\2\3\4\4" if name == "input_shape" else b"\1\1"}, name)


@modules
@pytest.mark.parametrize("op", ["activation", "activation_backward"])
def test_names_and_options_of_activations(module, op):
    for wrong in (None, 3, "ReLU", "softmax", "", ["relu"], object()):
        assert_refused(module, op, {"name": wrong}, "name", repr(wrong))
    assert_refused(module, op, {"name": "relu"}, "relu", "alpha")
    assert_refused(module, op, {"beta": 1.0}, "elu", "beta", "alpha")


# --------------------------------------------------------------------------------- labels and argmax


@modules
@pytest.mark.parametrize(
    ("labels", "word"),
    [
        ([0, 1, 2, 3], "3"),
        ([0, 1, 2, -1], "-1"),
        ([0, 1, 2, 2**31], str(2**31)),
        ([0, 1, 2, 2**32], str(2**32)),
        ([0, 1, 2, -(2**63)], ""),
        ([0.0, 1.0, 2.0, NAN], "NaN"),
        ([0.0, 1.0, 2.0, INF], "inf"),
        ([0.0, 1.0, 2.0, -INF], "inf"),
        ([0.0, 1.0, 2.0, 0.5], "fraction"),
        ([0.0, 1.0, 2.0, 1e30], "1e+30"),
        ([0, 1, 2], "(3,)"),
        ([0, 1, 2, 1, 0], "(5,)"),
        ([[0, 1, 2, 1]], "(1, 4)"),
        ([[[0]], [[1]], [[2]], [[0]]], "(4, 1, 1)"),
        (1, "()"),
        ([[1.0, 0.0]] * 4, "(4, 2)"),
        ([[1.0, 0.0, NAN]] * 4, "NaN"),
        ([[1.5, -0.5, 0.0]] * 4, ""),
        ([[0.3, 0.3, 0.3]] * 4, "sum"),
        ([[0.0, 0.0, 0.0]] * 4, "sum"),
    ],
    ids=pytest_ids,
)  # fmt: skip
def test_labels(module, labels, word):
    assert_refused(module, "softmax_cross_entropy", {"labels": labels}, "labels", word)
    if module is cnn.ops:
        assert_refused(module, "softmax_cross_entropy", {"labels": np.array(labels)}, "labels", word)


@modules
@pytest.mark.parametrize("place", [-1, 16, 2**31 - 1, 2**31, 2**32, 2**32 + 5, -(2**32), -(2**63), 0.0, NAN, 1.5])
def test_argmax_out_of_its_plane(module, place):
    """2^32 would wrap to a place inside when it was cut to 32 bits."""
    argmax = VALID["max_pool2d_backward"]["argmax"].tolist()
    argmax[1][2][1][0] = place
    word = str(place) if isinstance(place, int) else "float"
    assert_refused(module, "max_pool2d_backward", {"argmax": argmax}, "argmax", word)
    if module is cnn.ops:
        assert_refused(module, "max_pool2d_backward", {"argmax": np.array(argmax)}, "argmax", word)


def test_argmax_of_an_empty_plane():
    for shape in ((2, 3, 0, 4), (2, 3, 4, 0), (2, 3, 0, 0)):
        assert_refused(cnn.ops, "max_pool2d_backward", {"input_shape": shape}, "argmax")


# ---------------------------------------------------------------------------------- shapes as arguments


@modules
@of_kind("input_shape")
def test_input_shapes(module, op, name):
    for wrong in (None, 3, "2344", {}, 1.5):
        assert_refused(module, op, {name: wrong}, name, repr(wrong))
    for wrong in ((2, 3, 4), (2, 3, 4, 4, 1), (), [2, 3]):
        assert_refused(module, op, {name: wrong}, name, str(tuple(wrong)))
    for wrong in (-1, 2**31, 10**30, 4.0, True, "4", None, NAN):
        assert_refused(module, op, {name: (2, 3, 4, wrong)}, name, repr(wrong))
    for wrong in ((1, 3, 4, 4), (2, 1, 4, 4), (2, 3, 0, 4)):
        assert_refused(module, op, {name: wrong})


# Products of these overflow 32 or 64 bits, or would be terabytes.
HUGE_SHAPES = [
    (2**20, 2**20, 2**20, 1), (2, 3, 2**20, BIG), (2, 3, BIG, BIG), (BIG, BIG, BIG, BIG), (2**16,) * 4,
    (BIG, 3, BIG, BIG), (2**22, 2**22, 2**20, 1),
]  # fmt: skip


@modules
@of_kind("input_shape")
@pytest.mark.parametrize("shape", HUGE_SHAPES, ids=pytest_ids)
def test_huge_input_shapes(module, op, name, shape):
    assert_refused(module, op, {name: shape}, name, str(shape))


@modules
@pytest.mark.parametrize("op", ["conv2d", "conv2d_backward"])
@pytest.mark.parametrize(
    "padding",
    [BIG, (BIG, 0), (0, BIG), (2**30, 2**30), ((BIG, 0), (0, 0)), ((0, BIG), (0, 0)), ((0, 0), (BIG, 0)),
     ((0, 0), (0, BIG)), ((2**24, 2**24), (2**24, 2**24))],
    ids=pytest_ids,
)  # fmt: skip
def test_huge_paddings(module, op, padding):
    assert_refused(module, op, {"padding": padding}, "too large")


def test_huge_arrays_without_memory_of_their_own():
    """They are refused before they are copied or converted."""
    for dtype in (np.float32, np.float64, np.int8):
        huge = np.broadcast_to(dtype(1), (2**15, 2**15, 2**15, 2**13))
        for op in ("conv2d", "max_pool2d", "avg_pool2d", "global_avg_pool2d", "activation", "softmax", "batch_norm"):
            assert_refused(cnn.ops, op, {"x": huge}, "x", "(32768, 32768, 32768, 8192)")
        assert_refused(cnn.ops, "gemm", {"a": np.broadcast_to(dtype(1), (2**28, 2**28))}, "a", str(2**28))
        assert_refused(
            cnn.ops, "softmax_cross_entropy", {"logits": np.broadcast_to(dtype(1), (2**28, 2**28))}, "logits"
        )


# The numbers of a plane's places are int32. The limit on memory keeps a wrong answer from taking all there is.
LARGE_PLANE = """
import resource
import numpy as np
resource.setrlimit(resource.RLIMIT_AS, (8 * 2**30, 8 * 2**30))
import pycnn as cnn
dy, argmax = np.ones((1, 1, 1, 1), np.float32), np.full((1, 1, 1, 1), 2**31)
try:
    cnn.ops.max_pool2d_backward(dy, argmax, (1, 1, 2**16, 2**16))
except ValueError as error:
    assert "[max_pool2d_backward]" in str(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory")
@pytest.mark.skipif("asan" in os.environ.get("LD_PRELOAD", ""), reason="AddressSanitizer needs much memory")
def test_max_pooling_refuses_planes_beyond_32_bits():
    done = subprocess.run([sys.executable, "-c", LARGE_PLANE], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_huge_strides_and_windows_that_leave_an_output_are_right():
    x, w = normal((1, 2, 4, 5)), normal((3, 2, 2, 2))
    y = cnn.ops.conv2d(x, w, stride=BIG)
    # A convolution of another path, which adds up in another order.
    np.testing.assert_allclose(y, cnn.ops.conv2d(x, w)[:, :, :1, :1], rtol=1e-5)
    dx, _, _ = cnn.ops.conv2d_backward(np.ones_like(y), x, w, stride=BIG, dilation=(1, 1))
    assert dx[..., 2:].any() == 0 and dx[..., :2, :2].all()
    assert cnn.ops.max_pool2d(x, 2, stride=BIG)[0].shape == (1, 2, 1, 1)
    assert cnn.ops.avg_pool2d(x, 2, stride=BIG).shape == (1, 2, 1, 1)
    y, argmax = cnn.ops.max_pool2d(x, 1, dilation=BIG)
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal(argmax, np.broadcast_to(np.arange(20).reshape(4, 5), x.shape))
    assert cnn.ops.conv2d(x, normal((3, 2, 1, 1)), dilation=BIG).shape == (1, 3, 4, 5)


def test_empty_batches_of_huge_planes():
    """Nothing to store, yet the sizes are still refused."""
    for op in ("avg_pool2d_backward", "max_pool2d_backward", "global_avg_pool2d_backward"):
        given = {"dy": np.zeros((0, 3) if op.startswith("global") else (0, 3, 2, 2)), "input_shape": (0, 3, BIG, BIG)}
        if op == "max_pool2d_backward":
            given["argmax"] = np.zeros((0, 3, 2, 2), int)
        assert_refused(cnn.ops, op, given)


@pytest.mark.parametrize("wrong", [0, -1, 1025, 2**31, 1.5, "2", None, True, NAN, [2]])
def test_set_num_threads(wrong):
    before = cnn.get_num_threads()
    with pytest.raises((ValueError, TypeError), match=r"\[set_num_threads\] n "):
        cnn.set_num_threads(wrong)
    assert cnn.get_num_threads() == before


# ---------------------------------------------------------------------------------------- wild calls


class Wild:
    """Draws arguments, right and wrong. Sizes are small, or too large for any array."""

    def __init__(self, *seed):
        self.rng = generator("wild", *seed)

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def integer(self):
        wild = (None, -1, BIG, 2**31, 2**63, -(2**63), 10**30, 1.5, NAN, True, "2", b"2", 1j, object(), (), [1])
        small = [int(v) for v in self.rng.integers(0, 5, 12)]
        return self.pick(*wild, *small, *small, *small, np.int8(2), np.uint64(2), np.array(2), np.float32(2), BIG)

    def integers(self):
        one, two = (self.integer(), self.integer()), [self.integer(), self.integer()]
        return self.pick(self.integer(), self.integer(), one, one, two, (one, two), (one, one, one), {}, range(1, 3))

    def number(self):
        return self.pick(0, 1, -1, 0.5, 1e-30, 1e30, NAN, INF, -0.0, None, "1", 10**400, 1j, np.float16(2), [1.0])

    def boolean(self):
        return self.pick(True, False, True, False, np.True_, 1, 0, None, "True", NAN)

    def shape(self):
        small = tuple(int(v) for v in self.rng.integers(0, 5, self.rng.integers(0, 6)))
        right = self.pick((2, 3, 4, 4), (2, 3, 5, 4), [2, 3, 4, 4], (0, 3, 4, 4), (2, 3, 0, 4))
        wild = self.pick(-1, 2**31, 10**30, 2.0, True, "4", None, 3, 4)
        return self.pick(small, right, right, right, *HUGE_SHAPES[:4], (wild,) * 4, (2, 3, 4, wild), wild, {})

    def array(self, like):
        """Of `like`'s shape more often than not; of any type, memory order and values."""
        shape = like.shape
        if self.rng.random() < 0.4:
            shape = list(shape)
            shape[self.rng.integers(len(shape))] = int(self.rng.integers(0, 4))
        if self.rng.random() < 0.2:
            shape = self.rng.integers(0, 4, self.rng.integers(0, 6))
        values = np.asarray(self.rng.standard_normal(tuple(map(int, shape)))) * self.pick(1, 1, 1e-3, 1e30, 1e300)
        values = self.pick(values, values, np.round(values), np.abs(np.round(values)))
        if values.size and self.rng.random() < 0.2:
            values.flat[self.rng.integers(values.size)] = self.pick(NAN, INF, -INF)
        dtypes = (np.float32, np.float32, np.float32, np.float64, np.float16, np.int8, np.uint64, bool, complex, object)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            values = np.asarray(values).astype(self.pick(*dtypes, "U8", ">f4", np.longdouble))
        memory = self.pick(
            "C", "C", "F", "last", "strided", "backwards", "broadcast", "lists", "none", "nested", "mask"
        )
        if memory == "last" and values.ndim == 4:
            values = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
            assert is_channels_last(values) or values.flags.c_contiguous
        elif memory == "strided" and values.ndim:
            values = np.repeat(values, 2, axis=-1)[..., ::2]
        elif memory == "backwards":
            values = values[::-1] if values.ndim else values
        elif memory == "broadcast" and values.ndim and values.shape[0]:
            values = np.broadcast_to(values[:1], values.shape)
        elif memory == "mask":
            values = np.ma.masked_array(values)
        others = {"lists": values.tolist, "none": lambda: self.pick(None, 3, {}, "x", [], [[]], [[1], [2, 3]])}
        others |= {"nested": lambda: [[[[[[values.tolist()]]]]]], "F": lambda: np.asfortranarray(values)}
        return others.get(memory, lambda: values)()

    def argument(self, op, name):
        value = VALID[op][name]
        if isinstance(value, np.ndarray):
            return self.array(value)
        if name == "name":
            return self.pick("relu", "gelu", "elu", "leaky_relu", "tanh", "Relu", "", None, 3, ["relu"])
        if name == "cache":
            return self.pick(None, 1, "cache", (1, 2, 3))
        if name == "input_shape":
            return self.shape()
        if isinstance(value, bool):
            return self.boolean()
        return self.number() if isinstance(value, float) else self.integers()


def call_wildly(module, op, wild):
    """A call with one to all arguments changed: True if it was right. Any exception but the two goes on up."""
    given = arguments(module, op)
    names = [n for n in given if n != "name" or wild.rng.random() < 0.3]
    for name in wild.rng.choice(names, wild.rng.integers(1, min(len(names), 4) + 1), replace=False):
        value = wild.argument(op, str(name))
        given[str(name)] = for_reference(value) if module is cnn.reference else value
    try:
        result = getattr(module, op)(**given)
    except (ValueError, TypeError) as error:
        assert str(error).startswith(f"[{op}]"), (given, error)
        return False
    except BaseException as error:
        raise AssertionError(f"{op} raised {error!r} for {given}") from error
    for part in result if isinstance(result, tuple) else (result,):
        if isinstance(part, np.ndarray):
            assert part.size < 10**6
            part.sum()
    return True


@every_op
def test_wild_calls(op):
    wild = Wild(op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = sum(call_wildly(cnn.ops, op, wild) for _ in range(600))
    assert 5 < right < 595, right


@every_op
def test_wild_calls_of_the_twins(op):
    wild = Wild("twin", op)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        right = sum(call_wildly(cnn.reference, op, wild) for _ in range(150))
    assert 0 < right < 150, right


def test_strides_that_would_overflow_are_those_of_one_output():
    """The kernels multiply strides by sizes; a stride beyond the image has one output, as the image's size has."""
    g = shapes.conv2d("conv2d", (1, 16, 1, 2**30), (1, 16, 1, 1), stride=(2**30, 1), dilation=2**31 - 1)
    assert (g.oh, g.stride_h, g.dilation_h) == (1, 1, 1)
    x, w = np.arange(12, dtype=np.float32).reshape(1, 1, 3, 4), np.ones((1, 1, 2, 2), np.float32)
    far = {"stride": 2**31 - 1}
    np.testing.assert_array_equal(cnn.ops.conv2d(x, w, **far), [[[[0 + 1 + 4 + 5]]]])
    dx, dw, _ = cnn.ops.conv2d_backward(np.full((1, 1, 1, 1), 2, np.float32), x, w, **far)
    np.testing.assert_array_equal(dx[0, 0], [[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(dw[0, 0], [[0, 2], [8, 10]])
    y, _ = cnn.ops.max_pool2d(x, 2, **far)
    np.testing.assert_array_equal(y, [[[[5]]]])


def test_max_pooling_layers_refuse_planes_beyond_32_bits_as_well():
    with pytest.raises(ValueError, match="argmax"):
        cnn.MaxPool2D(2).output_shape((1, 65536, 65536))

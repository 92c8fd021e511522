"""The pure-Python reference: its gradients against central differences, its values against PyTorch.

Gradients are tested for the scalar sum(y * dy) with a random cotangent dy: one of all ones would hide errors
that cancel in a sum.
"""

import inspect
import math
import random

import pytest

import pycnn as cnn
from pycnn.reference.lists import apply, flatten, reshape, shape_of, zeros

ref = cnn.reference
NAN, INF = math.nan, math.inf


def draw(shape, seed=0, mean=0.0):
    """Nested lists of normal numbers."""
    rng = random.Random(f"{shape} {seed}")
    return reshape([rng.gauss(mean, 1.0) for _ in range(math.prod(shape))], shape)


def distinct(shape, seed=0):
    """Nested lists of numbers at least 0.1 apart, so that a small step changes no maximum."""
    numbers = [0.1 * i for i in range(math.prod(shape))]
    random.Random(seed).shuffle(numbers)
    return reshape(numbers, shape)


def shape(value):
    return shape_of("test", "value", value)


def assert_close(actual, expected, tolerance=1e-10):
    """Same shape, and each difference below the tolerance (relative above 1); a NaN only meets a NaN."""
    assert shape(actual) == shape(expected)
    for a, e in zip(flatten(actual), flatten(expected), strict=True):
        assert a == e or abs(a - e) <= tolerance * max(1.0, abs(e)) or (math.isnan(a) and math.isnan(e)), (
            a,
            e,
        )


def check_gradient(f, value, dy, gradient, step=1e-5, tolerance=1e-6):
    """`gradient` against (g(value + step) - g(value - step)) / (2 step) with g = sum(f(value) * dy)."""

    def g(elements):
        y = f(reshape(elements, shape(value)))
        return sum(a * b for a, b in zip(flatten(y), flatten(dy), strict=True))

    elements = flatten(value)
    numeric = []
    for i, element in enumerate(elements):
        up, down = (g([*elements[:i], moved, *elements[i + 1 :]]) for moved in (element + step, element - step))
        numeric.append((up - down) / (2 * step))
    assert_close(gradient, reshape(numeric, shape(value)), tolerance)


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


def tensor(torch, value, **options):
    return torch.tensor(value, dtype=torch.float64, **options)


# ------------------------------------------------------------------------------------- convolution

# x shape, w shape, options
CONVOLUTIONS = [
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 5, 4), (2, 3, 3, 3), {}),
    ((1, 1, 5, 3), (3, 1, 5, 3), {}),
    ((1, 3, 1, 1), (2, 3, 3, 3), {"padding": 1}),
    ((2, 1, 4, 5), (2, 1, 2, 3), {"stride": 2, "padding": (1, 2)}),
    ((1, 3, 5, 4), (1, 3, 3, 2), {"stride": (3, 1), "padding": ((0, 2), (1, 0))}),
    ((1, 1, 6, 7), (2, 1, 3, 2), {"dilation": (2, 3), "padding": 1}),
    ((1, 4, 4, 3), (6, 2, 2, 2), {"groups": 2, "stride": (1, 2)}),
    ((2, 3, 4, 4), (6, 1, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    ((1, 2, 5, 5), (2, 1, 3, 1), {"groups": 2, "dilation": 2, "padding": ((3, 0), (0, 1)), "stride": 2}),
    ((1, 1, 2, 2), (1, 1, 2, 2), {"padding": 3, "stride": 2}),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONVOLUTIONS)
def test_conv2d_gradients(x_shape, w_shape, options):
    x, w, b = draw(x_shape), draw(w_shape, 1), draw(w_shape[:1], 2)
    dy = draw(shape(ref.conv2d(x, w, b, **options)), 3)
    dx, dw, db = ref.conv2d_backward(dy, x, w, **options)
    check_gradient(lambda v: ref.conv2d(v, w, b, **options), x, dy, dx)
    check_gradient(lambda v: ref.conv2d(x, v, b, **options), w, dy, dw)
    check_gradient(lambda v: ref.conv2d(x, w, v, **options), b, dy, db)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), CONVOLUTIONS)
def test_conv2d_against_torch(torch, x_shape, w_shape, options):
    x, w, b = draw(x_shape), draw(w_shape, 1), draw(w_shape[:1], 2)
    top, bottom, left, right = cnn.shapes.padding4("test", options.get("padding", 0))
    others = {name: value for name, value in options.items() if name != "padding"}
    tx, tw, tb = (tensor(torch, v, requires_grad=True) for v in (x, w, b))
    padded = torch.nn.functional.pad(tx, (left, right, top, bottom))
    ty = torch.nn.functional.conv2d(padded, tw, tb, **others)
    y = ref.conv2d(x, w, b, **options)
    assert_close(y, ty.tolist())
    dy = draw(shape(y), 3)
    ty.backward(tensor(torch, dy))
    for ours, theirs in zip(ref.conv2d_backward(dy, x, w, **options), (tx, tw, tb), strict=True):
        assert_close(ours, theirs.grad.tolist())


def test_conv2d_without_bias_and_of_an_empty_batch():
    x, w = draw((1, 2, 3, 3)), draw((2, 2, 2, 2), 1)
    assert_close(ref.conv2d(x, w), ref.conv2d(x, w, [0.0, 0.0]))
    assert ref.conv2d([], w) == []
    assert ref.conv2d_backward([], [], w) == ([], zeros((2, 2, 2, 2)), [0.0, 0.0])


# x shape, w shape (C, K/groups, R, S), options
TRANSPOSED = [
    ((1, 1, 1, 1), (1, 1, 1, 1), {}),
    ((2, 3, 3, 2), (3, 2, 3, 3), {}),
    ((1, 3, 1, 1), (3, 2, 2, 3), {"stride": 9}),
    ((2, 1, 3, 4), (1, 2, 2, 3), {"stride": 2, "padding": (1, 0), "output_padding": 1}),
    ((1, 2, 3, 2), (2, 3, 3, 2), {"stride": (3, 1), "padding": ((0, 2), (1, 0)), "output_padding": (2, 0)}),
    ((1, 1, 3, 3), (1, 2, 3, 2), {"dilation": (2, 3), "padding": 1, "output_padding": (1, 2)}),
    ((1, 4, 3, 2), (4, 3, 2, 2), {"groups": 2, "stride": (1, 2)}),
    ((2, 3, 2, 3), (3, 2, 3, 3), {"groups": 3, "padding": 1, "stride": 2}),
    ((1, 2, 4, 4), (2, 1, 1, 2), {"padding": (1, 2)}),
]


def transposed_arrays(x_shape, w_shape, options):
    return draw(x_shape), draw(w_shape, 1), draw((w_shape[1] * options.get("groups", 1),), 2)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TRANSPOSED)
def test_conv_transpose2d_gradients(x_shape, w_shape, options):
    x, w, b = transposed_arrays(x_shape, w_shape, options)
    dy = draw(shape(ref.conv_transpose2d(x, w, b, **options)), 3)
    dx, dw, db = ref.conv_transpose2d_backward(dy, x, w, **options)
    check_gradient(lambda v: ref.conv_transpose2d(v, w, b, **options), x, dy, dx)
    check_gradient(lambda v: ref.conv_transpose2d(x, v, b, **options), w, dy, dw)
    check_gradient(lambda v: ref.conv_transpose2d(x, w, v, **options), b, dy, db)


@pytest.mark.parametrize(("x_shape", "w_shape", "options"), TRANSPOSED)
def test_conv_transpose2d_against_torch(torch, x_shape, w_shape, options):
    """Uneven padding cuts more off one side of what is there without any."""
    x, w, b = transposed_arrays(x_shape, w_shape, options)
    top, bottom, left, right = cnn.shapes.padding4("test", options.get("padding", 0))
    others = {name: value for name, value in options.items() if name != "padding"}
    tx, tw, tb = (tensor(torch, v, requires_grad=True) for v in (x, w, b))
    ty = torch.nn.functional.conv_transpose2d(tx, tw, tb, **others)
    ty = torch.nn.functional.pad(ty, (-left, -right, -top, -bottom))
    y = ref.conv_transpose2d(x, w, b, **options)
    assert_close(y, ty.tolist())
    dy = draw(shape(y), 3)
    ty.backward(tensor(torch, dy))
    for ours, theirs in zip(ref.conv_transpose2d_backward(dy, x, w, **options), (tx, tw, tb), strict=True):
        assert_close(ours, theirs.grad.tolist())


def test_conv_transpose2d_without_bias_and_of_an_empty_batch():
    x, w = draw((1, 2, 3, 3)), draw((2, 3, 2, 2), 1)
    assert_close(ref.conv_transpose2d(x, w), ref.conv_transpose2d(x, w, [0.0] * 3))
    assert ref.conv_transpose2d([], w) == []
    assert ref.conv_transpose2d_backward([], [], w) == ([], zeros((2, 3, 2, 2)), [0.0] * 3)


# ----------------------------------------------------------------------------------------- pooling

# x shape, kernel size, options of both poolings
POOLINGS = [
    ((1, 1, 1, 1), 1, {}),
    ((2, 3, 4, 4), 2, {}),
    ((1, 1, 5, 7), (5, 7), {}),
    ((1, 3, 1, 1), 2, {"padding": 1}),
    ((1, 1, 5, 5), 3, {"stride": 1}),
    ((1, 2, 5, 6), (3, 2), {"stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 4, 5), 2, {"stride": 3, "ceil_mode": True}),
    ((2, 1, 6, 6), 3, {"stride": 2, "padding": 1, "ceil_mode": True}),
    ((1, 1, 5, 4), 2, {"padding": 1, "ceil_mode": True}),
    ((1, 1, 7, 7), (3, 1), {"stride": (2, 3), "padding": (1, 0)}),
]


# Also with dilation, which only max pooling has.
DILATED = [
    ((1, 1, 5, 5), 2, {"dilation": 2, "stride": 1}),
    ((2, 2, 6, 7), (2, 3), {"dilation": (3, 2), "padding": 1, "stride": (1, 2)}),
    ((1, 1, 7, 6), 3, {"dilation": 2, "padding": 1, "stride": 2, "ceil_mode": True}),
    ((1, 3, 8, 8), 2, {"dilation": (1, 3), "padding": (1, 0), "ceil_mode": True}),
]


@pytest.mark.parametrize(("x_shape", "kernel_size", "options"), POOLINGS + DILATED)
def test_max_pool2d(torch, x_shape, kernel_size, options):
    x = distinct(x_shape)
    tx = tensor(torch, x, requires_grad=True)
    ty, indices = torch.nn.functional.max_pool2d(tx, kernel_size, return_indices=True, **options)
    y, argmax = ref.max_pool2d(x, kernel_size, **options)
    assert_close(y, ty.tolist())
    assert argmax == indices.tolist()
    dy = draw(shape(y), 1)
    dx = ref.max_pool2d_backward(dy, argmax, x_shape)
    check_gradient(lambda v: ref.max_pool2d(v, kernel_size, **options)[0], x, dy, dx)
    ty.backward(tensor(torch, dy))
    assert_close(dx, tx.grad.tolist())


@pytest.mark.parametrize("count_include_pad", [True, False])
@pytest.mark.parametrize(("x_shape", "kernel_size", "options"), POOLINGS)
def test_avg_pool2d(torch, x_shape, kernel_size, options, count_include_pad):
    options = {**options, "count_include_pad": count_include_pad}
    x = draw(x_shape)
    y = ref.avg_pool2d(x, kernel_size, **options)
    tx = tensor(torch, x, requires_grad=True)
    ty = torch.nn.functional.avg_pool2d(tx, kernel_size, **options)
    assert_close(y, ty.tolist())
    dy = draw(shape(y), 1)
    dx = ref.avg_pool2d_backward(dy, x_shape, kernel_size, **options)
    check_gradient(lambda v: ref.avg_pool2d(v, kernel_size, **options), x, dy, dx)
    ty.backward(tensor(torch, dy))
    assert_close(dx, tx.grad.tolist())


def test_max_pool2d_ties_infinities_and_nans():
    first = ref.max_pool2d([[[[1.0, 7.0], [7.0, 7.0]]]], 2)
    assert first == ([[[[7.0]]]], [[[[1]]]])
    assert ref.max_pool2d([[[[-INF] * 3] * 3]], 3, padding=1, stride=3)[1] == [[[[0]]]]
    with pytest.raises(ValueError, match="window without input"):
        ref.max_pool2d([[[[1.0]]]], 2, padding=1, dilation=2)
    y, argmax = ref.max_pool2d([[[[1.0, NAN, 2.0], [NAN, INF, 0.0]]]], (2, 3))
    assert math.isnan(y[0][0][0][0])
    # The last NaN of the window: the one whose comparison comes last, as in PyTorch.
    assert argmax == [[[[3]]]]


def test_max_pool2d_overlapping_windows_add_up():
    x = [[[[0.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 0.0, 0.0]]]]
    _, argmax = ref.max_pool2d(x, 2, stride=1)
    dx = ref.max_pool2d_backward([[[[1.0, 2.0], [4.0, 8.0]]]], argmax, (1, 1, 3, 3))
    assert dx == [[[[0.0, 0.0, 0.0], [0.0, 15.0, 0.0], [0.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("x_shape", [(1, 1, 1, 1), (2, 3, 4, 5)])
def test_global_avg_pool2d(x_shape):
    x, dy = draw(x_shape), draw(x_shape[:2], 1)
    check_gradient(ref.global_avg_pool2d, x, dy, ref.global_avg_pool2d_backward(dy, x_shape))
    assert_close(ref.global_avg_pool2d(x), [[p[0][0] for p in s] for s in ref.avg_pool2d(x, x_shape[2:])])


def test_pooling_of_an_empty_batch():
    assert ref.max_pool2d([], 2) == ([], [])
    assert ref.max_pool2d_backward([], [], (0, 3, 4, 4)) == []
    assert ref.avg_pool2d([], 2) == []
    assert ref.avg_pool2d_backward([], (0, 3, 4, 4), 2) == []
    assert ref.global_avg_pool2d([]) == []
    assert ref.global_avg_pool2d_backward([], (0, 3, 4, 4)) == []


# ------------------------------------------------------------------------------------------- gemm


@pytest.mark.parametrize("trans_a", [False, True])
@pytest.mark.parametrize("trans_b", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 1, 1), (2, 3, 4), (5, 1, 3)])
def test_gemm(m, n, k, trans_a, trans_b):
    a = draw((k, m) if trans_a else (m, k))
    b = draw((n, k) if trans_b else (k, n), 1)
    expected = [
        [sum((a[p][i] if trans_a else a[i][p]) * (b[j][p] if trans_b else b[p][j]) for p in range(k)) for j in range(n)]
        for i in range(m)
    ]
    assert_close(ref.gemm(a, b, trans_a=trans_a, trans_b=trans_b), expected)
    out = draw((m, n), 2)
    combined = apply(lambda c, o: 2.0 * c - 0.5 * o, expected, out)
    assert ref.gemm(a, b, trans_a=trans_a, trans_b=trans_b, alpha=2.0, beta=-0.5, out=out) is out
    assert_close(out, combined)


def test_gemm_does_not_read_out_with_beta_0():
    out = [[NAN]]
    assert ref.gemm([[2.0]], [[3.0]], out=out) is out
    assert out == [[6.0]]
    with pytest.raises(ValueError, match="out"):
        ref.gemm([[2.0]], [[3.0]], beta=1.0)


def test_gemm_writes_out_over_an_operand():
    a = [[1.0, 2.0], [3.0, 4.0]]
    ref.gemm(a, a, out=a)
    assert a == [[7.0, 10.0], [15.0, 22.0]]


def test_gemm_of_no_rows():
    assert ref.gemm([], [[1.0], [2.0]]) == []
    with pytest.raises(ValueError, match="inner sizes"):
        ref.gemm([], [[1.0], [2.0]], trans_a=True)


@pytest.mark.parametrize(("n", "inputs", "outputs"), [(1, 1, 1), (2, 3, 5), (4, 7, 1)])
def test_dense(n, inputs, outputs):
    x, w, b, dy = draw((n, inputs)), draw((inputs, outputs), 1), draw((outputs,), 2), draw((n, outputs), 3)
    dx, dw, db = ref.dense_backward(dy, x, w)
    check_gradient(lambda v: ref.dense(v, w, b), x, dy, dx)
    check_gradient(lambda v: ref.dense(x, v, b), w, dy, dw)
    check_gradient(lambda v: ref.dense(x, w, v), b, dy, db)
    assert_close(ref.dense(x, w), ref.gemm(x, w))


def test_dense_of_an_empty_batch():
    assert ref.dense([], [[1.0], [2.0]]) == []
    assert ref.dense_backward([], [], [[1.0], [2.0]]) == ([], [[0.0], [0.0]], [0.0])


# ------------------------------------------------------------------------------------ activations

ACTIVATIONS = [
    ("relu", {}),
    ("leaky_relu", {}),
    ("leaky_relu", {"alpha": 0.3}),
    ("sigmoid", {}),
    ("tanh", {}),
    ("elu", {}),
    ("elu", {"alpha": 0.5}),
    ("gelu", {}),
    ("silu", {}),
    ("hard_swish", {}),
]


def test_every_activation_is_tested():
    assert {name for name, _ in ACTIVATIONS} == set(cnn.shapes.ACTIVATION_OPTIONS)


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS)
@pytest.mark.parametrize("x_shape", [(), (5,), (2, 3), (1, 2, 3, 4)])
def test_activation_gradients(name, options, x_shape):
    x = apply(lambda v: 3 * v, draw(x_shape))
    dy = draw(x_shape, 1)
    dx = ref.activation_backward(dy, x, name, **options)
    check_gradient(lambda v: ref.activation(v, name, **options), x, dy, dx)


@pytest.mark.parametrize(("name", "options"), ACTIVATIONS)
def test_activations_against_torch_at_kinks_and_extremes(torch, name, options):
    functions = torch.nn.functional
    f = {
        "relu": functions.relu,
        "leaky_relu": lambda v: functions.leaky_relu(v, options.get("alpha", 0.01)),
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "elu": lambda v: functions.elu(v, options.get("alpha", 1.0)),
        "gelu": functions.gelu,
        "silu": functions.silu,
        "hard_swish": functions.hardswish,
    }[name]
    x = [0.0, -0.0, -3.0, 3.0, 1e-30, -1e-30, 0.7, -0.7, 40.0, -40.0, 3000.0, -3000.0, NAN]
    tx = tensor(torch, x, requires_grad=True)
    ty = f(tx)
    assert_close(ref.activation(x, name, **options), ty.tolist())
    dy = draw((len(x),), 1)
    ty.backward(tensor(torch, dy))
    assert_close(ref.activation_backward(dy, x, name, **options), tx.grad.tolist())


def test_relu_passes_nothing_back_where_it_is_0():
    assert ref.activation_backward([INF, NAN], [0.0, -1.0], "relu") == [0.0, 0.0]


def test_activation_of_an_empty_batch():
    assert ref.activation([], "relu") == []
    assert ref.activation_backward([], [], "gelu") == []


# ------------------------------------------------------------------------------- images of other sizes

SIZES = [((1, 1), (1, 1)), ((5, 7), (2, 3)), ((3, 2), (4, 5)), ((4, 6), (4, 1))]


def check_against_torch(torch, f, backward, theirs, x):
    """Values and gradients of f; `theirs` is the same function in PyTorch."""
    tx = tensor(torch, x, requires_grad=True)
    ty = theirs(tx)
    assert_close(f(x), ty.tolist())
    dy = draw(tuple(ty.shape), 3)
    ty.backward(tensor(torch, dy))
    assert_close(backward(dy), tx.grad.tolist())


@pytest.mark.parametrize(("size", "output"), SIZES)
def test_adaptive_avg_pool2d(torch, size, output):
    x = draw((2, 3, *size))
    check_against_torch(
        torch,
        lambda v: ref.adaptive_avg_pool2d(v, output),
        lambda dy: ref.adaptive_avg_pool2d_backward(dy, (2, 3, *size), output),
        lambda v: torch.nn.functional.adaptive_avg_pool2d(v, output),
        x,
    )


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
@pytest.mark.parametrize(("size", "scale"), [((1, 1), (2, 3)), ((3, 2), (2, 2)), ((2, 4), (3, 1)), ((3, 3), (4, 5))])
def test_upsample2d(torch, size, scale, mode):
    options = {} if mode == "nearest" else {"align_corners": False}
    check_against_torch(
        torch,
        lambda v: ref.upsample2d(v, scale, mode),
        lambda dy: ref.upsample2d_backward(dy, scale, mode),
        lambda v: torch.nn.functional.interpolate(v, scale_factor=scale, mode=mode, **options),
        draw((2, 3, *size)),
    )


@pytest.mark.parametrize("padding", [0, (1, 2), ((0, 2), (3, 1))])
def test_zero_pad2d(torch, padding):
    top, bottom, left, right = cnn.shapes.padding4("test", padding)
    check_against_torch(
        torch,
        lambda v: ref.zero_pad2d(v, padding),
        lambda dy: ref.zero_pad2d_backward(dy, padding),
        lambda v: torch.nn.functional.pad(v, (left, right, top, bottom)),
        draw((2, 3, 2, 4)),
    )


def test_concatenate_and_its_gradient():
    parts = [draw((2, c, 2, 3), c) for c in (1, 3, 2)]
    dy = draw((2, 6, 2, 3))
    for i, dx in enumerate(ref.concatenate_backward(dy, [1, 3, 2])):
        check_gradient(lambda v, i=i: ref.concatenate([*parts[:i], v, *parts[i + 1 :]]), parts[i], dy, dx)
    assert ref.concatenate([[[1, 2], [5, 6]], [[3], [7]]]) == [[1, 2, 3], [5, 6, 7]]
    with pytest.raises(ValueError, match=r"\[concatenate\].*channels"):
        ref.concatenate([parts[0], draw((2, 1, 3, 3))])


def test_scale_channels_gradients():
    x, scale, dy = draw((2, 3, 2, 2)), draw((2, 3), 1), draw((2, 3, 2, 2), 2)
    dx, dscale = ref.scale_channels_backward(dy, x, scale)
    check_gradient(lambda v: ref.scale_channels(v, scale), x, dy, dx)
    check_gradient(lambda v: ref.scale_channels(x, v), scale, dy, dscale)


# ----------------------------------------------------------------------------------------- dropout


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_known_answers(counter, key, words):
    assert " ".join(f"{word:08x}" for word in ref.philox4x32(counter, key)) == words


def test_dropout_follows_its_definition():
    seed, step, entry, rate = 2**40 + 17, 2**32 + 5, 3, 0.4
    x = draw((3, 7))
    y = flatten(ref.dropout(x, rate, seed=seed, step=step, entry=entry))
    for i, value in enumerate(flatten(x)):
        word = ref.philox4x32((i // 4, 0, 5, entry), (17, 2**8))[i % 4]
        expected = value / (1 - rate) if word >= math.floor(rate * 2**32) else 0.0
        assert y[i] == pytest.approx(expected, rel=1e-15)


def test_dropout_keeps_an_element_whose_word_is_the_threshold():
    words = ref.philox4x32((0, 0, 0, 0), (0, 0))
    rate = words[0] / 2**32
    assert ref.dropout([1.0], rate, seed=0, step=0, entry=0) == [1 / (1 - rate)]
    assert ref.dropout([1.0], rate + 2**-32, seed=0, step=0, entry=0) == [0.0]


def test_dropout_backward_has_the_mask_of_forward():
    x, dy, options = draw((4, 5)), draw((4, 5), 1), {"seed": 1, "step": 2, "entry": 3}
    dx = ref.dropout_backward(dy, 0.5, **options)
    check_gradient(lambda v: ref.dropout(v, 0.5, **options), x, dy, dx)


def test_spatial_dropout_draws_once_a_channel():
    options = {"seed": 5, "step": 1, "entry": 2}
    x = draw((3, 4, 2, 3))
    factors = ref.dropout([[1.0] * 4] * 3, 0.5, **options)
    expected = [
        [apply(lambda v, f=f: v * f, plane) for plane, f in zip(planes, row, strict=True)]
        for planes, row in zip(x, factors, strict=True)
    ]
    assert_close(ref.dropout(x, 0.5, spatial=True, **options), expected)
    assert ref.dropout_backward(x, 0.5, spatial=True, **options) == ref.dropout(x, 0.5, spatial=True, **options)


def test_dropout_rate_and_independence():
    ones = [1.0] * 20000
    y = ref.dropout(ones, 0.3, seed=0, step=0, entry=0)
    assert sum(v == 0 for v in y) / len(y) == pytest.approx(0.3, abs=0.02)
    assert sum(y) / len(y) == pytest.approx(1.0, abs=0.02)
    for other in ({"seed": 1}, {"step": 1}, {"entry": 1}):
        assert ref.dropout(ones, 0.3, **{"seed": 0, "step": 0, "entry": 0, **other}) != y
    assert ref.dropout(ones, 0.0, seed=0, step=0, entry=0) == ones
    assert ref.dropout([], 0.5, seed=0, step=0, entry=0) == []
    with pytest.raises(ValueError, match="rate"):
        ref.dropout(ones, 1.0, seed=0, step=0, entry=0)


# ------------------------------------------------------------------------------------------ losses


@pytest.mark.parametrize("x_shape", [(1,), (3,), (2, 4), (2, 1, 3)])
def test_softmax(torch, x_shape):
    x = draw(x_shape)
    assert_close(ref.softmax(x), tensor(torch, x).softmax(-1).tolist())
    shifted = apply(lambda v: v + 3000, x)
    assert_close(ref.softmax(shifted), ref.softmax(x))


def test_softmax_of_large_logits_and_empty_batches():
    assert ref.softmax([3000.0, 0.0, -3000.0]) == [1.0, 0.0, 0.0]
    assert ref.softmax([]) == []
    with pytest.raises(ValueError, match="axis"):
        ref.softmax(1.0)


@pytest.mark.parametrize("scale", [1.0, 3000.0])
@pytest.mark.parametrize(("n", "classes"), [(1, 1), (1, 3), (4, 5)])
def test_softmax_cross_entropy(torch, n, classes, scale):
    logits = apply(lambda v: scale * v, draw((n, classes)))
    labels = [(3 * i + 1) % classes for i in range(n)]
    one_hot = [[float(c == label) for c in range(classes)] for label in labels]
    soft = ref.softmax(draw((n, classes), 1))
    # Not quite 1 in all, as rounding leaves it.
    uneven = apply(lambda v: 1.0005 * v, soft)
    for target in (labels, one_hot, soft) + ((uneven,) if classes > 1 else ()):
        loss, dlogits = ref.softmax_cross_entropy(logits, target)
        tz = tensor(torch, logits, requires_grad=True)
        t = torch.tensor(target) if target is labels else tensor(torch, target)
        expected = torch.nn.functional.cross_entropy(tz, t)
        expected.backward()
        assert_close(loss, expected.item())
        assert_close(dlogits, tz.grad.tolist())
        if scale == 1:
            check_gradient(lambda v, t=target: ref.softmax_cross_entropy(v, t)[0], logits, 1.0, dlogits)


def test_softmax_cross_entropy_extremes():
    loss, dlogits = ref.softmax_cross_entropy([[3000.0, 0.0]], [1])
    assert (loss, dlogits) == (3000.0, [[1.0, -1.0]])
    loss, _ = ref.softmax_cross_entropy([[1.0, -INF, 2.0]], [0])
    assert loss == pytest.approx(math.log(1 + math.e))
    assert ref.softmax_cross_entropy([], []) == (0.0, [])


@pytest.mark.parametrize("labels", [[3], [-1], [0.5], [NAN], [[0.5, 0.6, 0.2]], [[1.0, 0.0]], [0, 1]])
def test_softmax_cross_entropy_refuses_bad_labels(labels):
    with pytest.raises(ValueError, match="label"):
        ref.softmax_cross_entropy([[1.0, 2.0, 3.0]], labels)


@pytest.mark.parametrize("x_shape", [(1,), (5,), (2, 3), (2, 1, 2)])
def test_binary_cross_entropy(torch, x_shape):
    z = apply(lambda v: 4 * v, draw(x_shape))
    t = apply(lambda v: 1 / (1 + math.exp(-v)), draw(x_shape, 1))
    loss, dz = ref.binary_cross_entropy(z, t)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(tensor(torch, z), tensor(torch, t))
    assert_close(loss, expected.item())
    check_gradient(lambda v: ref.binary_cross_entropy(v, t)[0], z, 1.0, dz)


def test_binary_cross_entropy_extremes():
    assert ref.binary_cross_entropy([3000.0, -3000.0], [0.0, 1.0]) == (3000.0, [0.5, -0.5])
    assert ref.binary_cross_entropy([3000.0, -3000.0], [1.0, 0.0]) == (0.0, [0.0, 0.0])
    assert ref.binary_cross_entropy([], []) == (0.0, [])


@pytest.mark.parametrize("x_shape", [(1,), (2, 3), (2, 1, 2, 2)])
def test_mse(x_shape):
    y, target = draw(x_shape), draw(x_shape, 1)
    loss, dy = ref.mse(y, target)
    check_gradient(lambda v: ref.mse(v, target)[0], y, 1.0, dy)
    assert loss == pytest.approx(
        sum((a - b) ** 2 for a, b in zip(flatten(y), flatten(target), strict=True)) / math.prod(x_shape)
    )
    assert ref.mse([], []) == (0.0, [])


@pytest.mark.parametrize("x_shape", [(1,), (2, 3), (2, 1, 2, 2)])
def test_mae_and_huber(torch, x_shape):
    y, target = apply(lambda v: 2 * v, draw(x_shape)), draw(x_shape, 1)
    functions = torch.nn.functional
    for ours, theirs in (
        (lambda v: ref.mae(v, target), functions.l1_loss),
        (lambda v: ref.huber(v, target), functions.huber_loss),
        (lambda v: ref.huber(v, target, delta=0.3), lambda a, b: functions.huber_loss(a, b, delta=0.3)),
    ):
        loss, dy = ours(y)
        ty = tensor(torch, y, requires_grad=True)
        expected = theirs(ty, tensor(torch, target))
        expected.backward()
        assert_close(loss, expected.item())
        assert_close(dy, ty.grad.tolist())
        check_gradient(lambda v, f=ours: f(v)[0], y, 1.0, dy)
    assert ref.mae([1.0], [1.0]) == (0.0, [0.0]) and ref.huber([], []) == (0.0, [])


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing(torch, smoothing):
    logits, labels = draw((4, 5)), [3, 0, 4, 4]
    for target in (labels, ref.softmax(draw((4, 5), 1))):
        loss, dlogits = ref.cross_entropy(logits, target, label_smoothing=smoothing)
        tz = tensor(torch, logits, requires_grad=True)
        t = torch.tensor(target) if target is labels else tensor(torch, target)
        expected = torch.nn.functional.cross_entropy(tz, t, label_smoothing=smoothing)
        expected.backward()
        assert_close(loss, expected.item())
        assert_close(dlogits, tz.grad.tolist())


@pytest.mark.parametrize("name", ["cross_entropy", "binary_cross_entropy", "mse", "mae", "huber"])
def test_weights_of_samples(name):
    """The weighted loss is the sum of the samples' own losses by weight, over their number."""
    y, target, weights = draw((3, 4)), ref.softmax(draw((3, 4), 1)), [0.5, 0.0, 2.0]
    f = getattr(ref, name)
    loss, dy = f(y, target, weights=weights)
    alone = [f([a], [b]) for a, b in zip(y, target, strict=True)]
    assert loss == pytest.approx(sum(w * value for w, (value, _) in zip(weights, alone, strict=True)) / 3)
    assert_close(dy, [[w * v / 3 for v in rows[0]] for w, (_, rows) in zip(weights, alone, strict=True)])
    with pytest.raises(ValueError, match="weights has shape"):
        f(y, target, weights=[1.0])


# ------------------------------------------------------------------------------------- batch norm


def norm_arguments(x_shape, mean=0.0):
    channels = x_shape[1]
    positive = apply(abs, draw((channels,), 4))
    return {
        "x": draw(x_shape, mean=mean),
        "gamma": draw((channels,), 1),
        "beta": draw((channels,), 2),
        "running_mean": draw((channels,), 3, mean=mean),
        "running_var": apply(lambda v: v + 0.5, positive),
    }


def fresh(arguments):
    """A copy, since training changes the running lists."""
    return {name: apply(lambda v: v, value) for name, value in arguments.items()}


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("x_shape", [(3, 1), (4, 3), (1, 1, 2, 2), (2, 3, 2, 1), (2, 1, 1, 1)])
def test_batch_norm_gradients(x_shape, training):
    arguments = norm_arguments(x_shape)
    dy = draw(x_shape, 5)
    _, cache = ref.batch_norm(**fresh(arguments), training=training, eps=0.01)
    for name, gradient in zip(("x", "gamma", "beta"), ref.batch_norm_backward(dy, cache), strict=True):

        def forward(value, name=name):
            return ref.batch_norm(**{**fresh(arguments), name: value}, training=training, eps=0.01)[0]

        check_gradient(forward, arguments[name], dy, gradient)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("mean", [0.0, 100.0])
@pytest.mark.parametrize("x_shape", [(4, 3), (2, 3, 3, 2)])
def test_batch_norm_against_torch(torch, x_shape, mean, training):
    arguments = norm_arguments(x_shape, mean)
    t = {name: tensor(torch, value) for name, value in arguments.items()}
    leaves = [t[name].requires_grad_() for name in ("x", "gamma", "beta")]
    ty = torch.nn.functional.batch_norm(
        t["x"], t["running_mean"], t["running_var"], t["gamma"], t["beta"], training=training, momentum=0.25
    )
    before = list(arguments["running_var"])
    y, cache = ref.batch_norm(**arguments, training=training, momentum=0.75)
    assert_close(y, ty.tolist())
    assert_close(arguments["running_mean"], t["running_mean"].tolist())
    if training:
        # PyTorch's running variance is over N - 1, this one over N.
        var = t["x"].var(dim=[axis for axis in range(len(x_shape)) if axis != 1], unbiased=False).tolist()
        expected = [0.75 * b + 0.25 * v for b, v in zip(before, var, strict=True)]
        assert_close(arguments["running_var"], expected)
    else:
        assert arguments["running_var"] == before
    dy = draw(x_shape, 5)
    ty.backward(tensor(torch, dy))
    for ours, leaf in zip(ref.batch_norm_backward(dy, cache), leaves, strict=True):
        assert_close(ours, leaf.grad.tolist(), 1e-9)


def test_batch_norm_cache_outlives_an_update():
    arguments = norm_arguments((3, 2))
    dy = draw((3, 2), 5)
    _, cache = ref.batch_norm(**arguments, training=True)
    before = ref.batch_norm_backward(dy, cache)
    arguments["gamma"][:] = [0.0, 0.0]
    assert ref.batch_norm_backward(dy, cache) == before


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_of_batches_of_0_and_1(training):
    mean, var = [0.5, 0.25], [1.0, 2.0]
    y, cache = ref.batch_norm([], [1.0, 2.0], [3.0, 4.0], mean, var, training=training)
    assert (y, mean, var) == ([], [0.5, 0.25], [1.0, 2.0])
    assert ref.batch_norm_backward([], cache) == ([], [0.0, 0.0], [0.0, 0.0])
    y, cache = ref.batch_norm([[7.0, 8.0]], [1.0, 2.0], [3.0, 4.0], mean, var, training=training)
    if training:
        assert y == [[3.0, 4.0]]
        assert ref.batch_norm_backward([[1.0, -1.0]], cache)[0] == [[0.0, 0.0]]


# -------------------------------------------------------------------------------------- optimizers


def test_sgd_closed_forms():
    w, v = [1.0], [0.0]
    for _ in range(3):
        ref.sgd_update(w, [2.0], v, lr=0.1)
    assert w == pytest.approx([1.0 - 3 * 0.2])
    w, v = [1.0], [0.0]
    for _ in range(3):
        ref.sgd_update(w, [2.0], v, lr=0.1, momentum=0.5)
    # v is 2, 3, 3.5.
    assert (w, v) == (pytest.approx([1.0 - 0.85]), pytest.approx([3.5]))
    w, v = [1.0], [0.0]
    for _ in range(2):
        ref.sgd_update(w, [2.0], v, lr=0.1, momentum=0.5, nesterov=True)
    # Steps of 2 + 0.5 * 2 and 2 + 0.5 * 3.
    assert w == pytest.approx([1.0 - 0.3 - 0.35])
    w = [1.0]
    for _ in range(4):
        ref.sgd_update(w, [0.0], None, lr=0.5, weight_decay=0.1)
    assert w == pytest.approx([0.95**4])


def test_adam_closed_forms():
    w, m, v = [1.0], [0.0], [0.0]
    for step in range(1, 6):
        ref.adam_update(w, [-3.0], m, v, step=step, lr=0.1, beta1=0.9, beta2=0.999, eps=0.0)
        # With a constant gradient m_hat / sqrt(v_hat) is its sign at every step.
        assert w == pytest.approx([1.0 + 0.1 * step])
    assert m == pytest.approx([-3.0 * (1 - 0.9**5)])
    assert v == pytest.approx([9.0 * (1 - 0.999**5)])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9}, {"momentum": 0.9, "nesterov": True}])
def test_sgd_against_torch(torch, settings, weight_decay):
    w, v = draw((5,)), [0.0] * 5
    tw = tensor(torch, w, requires_grad=True)
    optimizer = torch.optim.SGD([tw], lr=0.1, weight_decay=weight_decay, **settings)
    for step in range(4):
        g = draw((5,), step + 1)
        tw.grad = tensor(torch, g)
        optimizer.step()
        ref.sgd_update(w, g, v, lr=0.1, weight_decay=weight_decay, **settings)
        assert_close(w, tw.tolist(), 1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adam_against_torch(torch, weight_decay):
    w, m, v = draw((5,)), [0.0] * 5, [0.0] * 5
    tw = tensor(torch, w, requires_grad=True)
    optimizer = torch.optim.Adam([tw], lr=0.01, betas=(0.8, 0.95), eps=1e-3, weight_decay=weight_decay)
    for step in range(1, 6):
        g = draw((5,), step)
        tw.grad = tensor(torch, g)
        optimizer.step()
        settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "weight_decay": weight_decay}
        ref.adam_update(w, g, m, v, step=step, lr=0.01, **settings)
        assert_close(w, tw.tolist(), 1e-13)


def run_torch(torch, w, optimizer, steps=5):
    """w after steps of a PyTorch optimizer with gradients that depend on the step alone."""
    tw = tensor(torch, w, requires_grad=True)
    optimizer = optimizer([tw])
    for step in range(1, steps + 1):
        tw.grad = tensor(torch, draw((len(w),), step))
        optimizer.step()
    return tw.tolist()


def test_adamw_against_torch(torch):
    w, m, v = draw((5,)), [0.0] * 5, [0.0] * 5
    expected = run_torch(torch, w, lambda p: torch.optim.AdamW(p, 0.01, (0.8, 0.95), 1e-3, weight_decay=0.1))
    for step in range(1, 6):
        settings = {"beta1": 0.8, "beta2": 0.95, "eps": 1e-3, "decoupled_decay": 0.1}
        ref.adam_update(w, draw((5,), step), m, v, step=step, lr=0.01, **settings)
    assert_close(w, expected, 1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("centered", [False, True])
def test_rmsprop_against_torch(torch, centered, momentum, weight_decay):
    settings = {"lr": 0.01, "alpha": 0.9, "eps": 1e-3, "weight_decay": weight_decay, "momentum": momentum}
    w, s, m, v = draw((5,)), [0.0] * 5, [0.0] * 5 if centered else None, [0.0] * 5 if momentum else None
    expected = run_torch(torch, w, lambda p: torch.optim.RMSprop(p, centered=centered, **settings))
    for step in range(1, 6):
        ref.rmsprop_update(w, draw((5,), step), s, m, v, **settings)
    assert_close(w, expected, 1e-13)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_adagrad_against_torch(torch, weight_decay):
    w, s = draw((5,)), [0.2] * 5
    options = {"weight_decay": weight_decay, "initial_accumulator_value": 0.2, "eps": 1e-3}
    expected = run_torch(torch, w, lambda p: torch.optim.Adagrad(p, 0.1, **options))
    for step in range(1, 6):
        ref.adagrad_update(w, draw((5,), step), s, None, lr=0.1, eps=1e-3, weight_decay=weight_decay)
    assert_close(w, expected, 1e-13)


def test_adagrad_with_momentum_by_hand():
    """g = 3, then 4: steps of 3 / 3, then of 0.5 * 1 + 4 / 5, each times lr."""
    w, s, v = [1.0], [0.0], [0.0]
    for g in (3.0, 4.0):
        ref.adagrad_update(w, [g], s, v, lr=0.1, eps=0.0, momentum=0.5)
    assert (w, s, v) == (pytest.approx([1 - 0.1 - 0.13]), [25.0], pytest.approx([0.13]))


def test_optimizers_refuse_lists_of_different_lengths():
    with pytest.raises(ValueError, match="g has shape"):
        ref.sgd_update([1.0, 2.0], [1.0], None, lr=0.1)
    with pytest.raises(ValueError, match="v has shape"):
        ref.adam_update([1.0], [1.0], [0.0], [], step=1, lr=0.1, beta1=0.9, beta2=0.999, eps=1e-8)


# ------------------------------------------------------------------------------------------ errors

X, W = zeros((1, 2, 4, 4)), zeros((2, 2, 3, 3))
ARGMAX = apply(lambda _: 0, zeros((1, 2, 2, 2)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ref.conv2d([[[[1.0, 2.0], [3.0]]]], W), r"\[conv2d\] x is ragged"),
        (lambda: ref.conv2d(X, [[[[1.0], 2.0]]]), r"\[conv2d\] w is ragged"),
        (lambda: ref.conv2d(X, zeros((2, 3, 3, 3))), "w has 3 input channels, x has 2"),
        (lambda: ref.conv2d(X, W, [0.0]), "b has shape"),
        (lambda: ref.conv2d(X, zeros((2, 2, 5, 5))), "leaves no output"),
        (lambda: ref.conv2d(X, W, stride=0), "stride"),
        (lambda: ref.conv2d_backward(zeros((1, 2, 3, 2)), X, W), r"\[conv2d_backward\] dy has shape"),
        (lambda: ref.conv2d_backward(zeros((1, 2, 2, 2)), [], W), "dy has shape"),
        (lambda: ref.max_pool2d(X, 2, padding=2), "padding"),
        (lambda: ref.max_pool2d(X[0], 2), "x must have 4 axes"),
        (lambda: ref.max_pool2d_backward([1.0], [0], (1, 2, 4, 4)), "dy must have 4 axes"),
        (lambda: ref.max_pool2d_backward(zeros((1, 2, 2, 2)), ARGMAX, (1, 3, 4, 4)), "dy has shape"),
        (lambda: ref.max_pool2d_backward(zeros((1, 2, 2, 1)), ARGMAX, (1, 2, 4, 4)), "argmax has shape"),
        (lambda: ref.max_pool2d_backward([[[[1.0]]]], [[[[16]]]], (1, 1, 4, 4)), "argmax must be in 0..15"),
        (lambda: ref.avg_pool2d_backward(zeros((1, 2, 2, 2)), (1, 2, 5, 5), 1), "dy has shape"),
        (lambda: ref.global_avg_pool2d([[1.0]]), "x must have 4 axes"),
        (lambda: ref.gemm([[1.0]], [[1.0], [2.0]]), "inner sizes differ"),
        (lambda: ref.gemm([[1.0]], [[1.0]], out=[[1.0, 2.0]]), "out has shape"),
        (lambda: ref.dense([[1.0]], [[1.0], [2.0]]), "w has 2 inputs"),
        (lambda: ref.activation([1.0], "relux"), "name must be one of"),
        (lambda: ref.activation([1.0, [2.0]], "relu"), "ragged"),
        (lambda: ref.activation_backward([1.0], [1.0, 2.0], "relu"), "dy has shape"),
        (lambda: ref.batch_norm([[1.0]], [1.0, 2.0], [0.0], [0.0], [1.0], training=True), "gamma has shape"),
        (lambda: ref.mse([1.0], [1.0, 2.0]), "target has shape"),
        (lambda: ref.binary_cross_entropy([1.0], [[1.0]]), "targets has shape"),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: ref.conv2d("image", W),
        lambda: ref.conv2d(X, W, stride=1.5),
        lambda: ref.conv2d(X, None),
        lambda: ref.activation([1.0], "relu", alpha=0.1),
        lambda: ref.activation([1j], "relu"),
        lambda: ref.batch_norm([[1.0]], [1.0], [0.0], [0.0], [1.0], training=1),
    ],
)
def test_wrong_types_are_refused(call):
    with pytest.raises(TypeError, match=r"\["):
        call()


def test_options_are_keyword_only():
    """As the contract has it: no option of an operation can be taken for another by its position."""
    for name in ("conv2d", "conv2d_backward", "max_pool2d", "avg_pool2d", "gemm", "batch_norm", "dropout"):
        for parameter in inspect.signature(getattr(ref, name)).parameters.values():
            if parameter.name in {"stride", "padding", "dilation", "groups", "alpha", "beta", "eps", "seed"}:
                positional = name == "batch_norm" and parameter.name == "beta"
                assert positional or parameter.kind is parameter.KEYWORD_ONLY, (name, parameter.name)

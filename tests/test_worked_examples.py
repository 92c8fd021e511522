"""The examples and equations that the reports work out, on the kernels and on the reference."""

import math
import random

import pytest

import pycnn as cnn
from pycnn.reference.lists import flatten, reshape

Tensor = cnn.reference.Tensor


@pytest.fixture(params=["reference", "ops"])
def functions(request):
    """The module under test; both hold the same names with the same arguments."""
    return getattr(cnn, request.param)


def lists(value):
    """Nested lists of a result, an array or nested lists already."""
    return value.tolist() if hasattr(value, "tolist") else value


def close(expected):
    """To compare flat lists: single precision is enough."""
    return pytest.approx(flatten(expected), rel=1e-5, abs=1e-5)


def same(actual, expected):
    return flatten(lists(actual)) == close(expected)


def draw(*shape, seed=0):
    rng = random.Random(f"{shape} {seed}")
    return reshape([rng.gauss(0, 1) for _ in range(math.prod(shape))], shape)


def distinct(*shape):
    """Numbers that differ, so that no window has two maxima."""
    numbers = [float(i) for i in range(math.prod(shape))]
    random.Random(1).shuffle(numbers)
    return reshape(numbers, shape)


# ------------------------------------------------------------------------------------- report 000


def test_report_000_convolution_of_5x5_with_3x3_and_padding_1(functions):
    """Section II.A.1: the output is 5 x 5, and y11 and y12 are the sums written out there."""
    x, w = draw(5, 5), draw(3, 3, seed=1)
    y = lists(functions.conv2d([[x]], [[w]], padding=1))[0][0]
    assert [len(row) for row in y] == [5] * 5
    y11 = x[0][0] * w[1][1] + x[0][1] * w[1][2] + x[1][0] * w[2][1] + x[1][1] * w[2][2]
    y12 = (
        x[0][0] * w[1][0] + x[0][1] * w[1][1] + x[0][2] * w[1][2]
        + x[1][0] * w[2][0] + x[1][1] * w[2][1] + x[1][2] * w[2][2]
    )  # fmt: skip
    assert y[0][:2] == close([y11, y12])


def test_report_000_convolution_gradients(functions):
    """Section II.B.1: x11 reaches y11, y12, y21 and y22; w11 all but the first row and column."""
    x, w, dy = draw(5, 5), draw(3, 3, seed=1), draw(5, 5, seed=2)
    dx, dw, _ = (lists(v)[0] for v in functions.conv2d_backward([[dy]], [[x]], [[w]], padding=1))
    dx11 = dy[0][0] * w[1][1] + dy[0][1] * w[1][0] + dy[1][0] * w[0][1] + dy[1][1] * w[0][0]
    dw11 = sum(dy[i][j] * x[i - 1][j - 1] for i in range(1, 5) for j in range(1, 5))
    assert [dx[0][0][0], dw[0][0][0]] == close([dx11, dw11])


@pytest.mark.parametrize(("size", "kernel", "pad", "stride"), [(5, 3, 1, 1), (7, 3, 0, 2), (8, 5, 2, 3), (4, 4, 0, 1)])
def test_report_000_output_size(functions, size, kernel, pad, stride):
    """Section II.A.1: floor(1 + (H + 2 pad - HH) / stride)."""
    y = functions.conv2d([[draw(size, size)]], [[draw(kernel, kernel)]], padding=pad, stride=stride)
    expected = math.floor(1 + (size + 2 * pad - kernel) / stride)
    assert [len(row) for row in lists(y)[0][0]] == [expected] * expected


def test_report_000_max_pooling_of_4x4(functions):
    """Section II.A.2 and II.B.2, with the maxima where the report has them: x12, x23, x31, x34."""
    x = [
        [1.0, 9.0, 2.0, 3.0],
        [4.0, 5.0, 8.0, 6.0],
        [7.0, 0.0, 1.0, 6.0],
        [2.0, 3.0, 4.0, 5.0],
    ]
    y, argmax = functions.max_pool2d([[x]], 2, stride=2)
    assert lists(y) == [[[[9.0, 8.0], [7.0, 6.0]]]]
    assert lists(argmax) == [[[[1, 6], [8, 11]]]]
    dx = functions.max_pool2d_backward([[[[11.0, 12.0], [21.0, 22.0]]]], argmax, (1, 1, 4, 4))
    assert lists(dx)[0][0] == [
        [0.0, 11.0, 0.0, 0.0],
        [0.0, 0.0, 12.0, 0.0],
        [21.0, 0.0, 0.0, 22.0],
        [0.0, 0.0, 0.0, 0.0],
    ]


def test_report_000_softmax(functions):
    """Section II.A.3: exp(z_i) over the sum of all exp(z_j)."""
    z = draw(3, 4)
    sums = [sum(math.exp(v) for v in row) for row in z]
    assert same(functions.softmax(z), [[math.exp(v) / s for v in row] for row, s in zip(z, sums, strict=True)])


# ------------------------------------------------------------------------------------- report 003


def test_report_003_low_pass_filter(functions):
    """Equations 8 to 12; the report gives two decimals."""
    f = [
        [4, 1, 2, 9, 8, 6],
        [9, 5, 9, 5, 8, 5],
        [1, 5, 9, 7, 6, 4],
        [2, 9, 8, 3, 7, 1],
        [8, 1, 6, 4, 2, 2],
        [1, 0, 5, 7, 8, 2],
    ]
    result = [
        [5, 5.78, 7, 6.44],
        [6.33, 6.67, 6.89, 5.11],
        [5.44, 5.78, 5.78, 4],
        [4.44, 4.78, 5.56, 4],
    ]
    y = lists(functions.conv2d([[f]], [[[[1 / 9] * 3] * 3]]))[0][0]
    assert [[round(v, 2) for v in row] for row in y] == result


# ------------------------------------------------------------------------------------- report 001

# x shape, w shape, padding, stride; with and without rows at the end that no window reaches
CONVOLUTIONS = [
    ((2, 3, 5, 5), (4, 3, 3, 3), 1, 1),
    ((1, 1, 4, 6), (2, 1, 2, 3), 0, 1),
    ((1, 2, 3, 3), (1, 2, 3, 3), 0, 1),
    ((2, 3, 7, 5), (2, 3, 3, 3), 1, 2),
    ((1, 2, 6, 8), (3, 2, 3, 3), 0, 2),
    ((2, 1, 6, 6), (3, 1, 3, 2), 1, 2),
]


@pytest.mark.parametrize(("x_shape", "w_shape", "pad", "stride"), CONVOLUTIONS)
def test_report_001_equations_3_to_5_convolution_gradients(functions, x_shape, w_shape, pad, stride):
    x, w = draw(*x_shape), draw(*w_shape, seed=1)
    h, width = (x_shape[axis] + 2 * pad for axis in (2, 3))
    r, s = w_shape[2:]
    # Rows and columns that the last window, for its stride, leaves over.
    rest_h, rest_w = (h - r) % stride, (width - s) % stride
    dy = draw(x_shape[0], w_shape[0], (h - r) // stride + 1, (width - s) // stride + 1, seed=2)
    dx, dw, db = functions.conv2d_backward(dy, x, w, padding=pad, stride=stride)

    # (3) dW = pad(X, p) * dY, with batch and channels exchanged and dY dilated by the stride.
    dilated = Tensor(dy).dilate(stride)
    used = Tensor(x).add_pad(pad).unpad(((0, rest_h), (0, rest_w)))
    assert same(dw, used.T().conv(dilated.T()).T().data)

    # (4) db_c = sum of dY over batch, rows and columns.
    assert same(db, [sum(flatten(channel)) for channel in Tensor(dy).T().data])

    # (5) dX = unpad(pad(dilate(dY, s), K - 1) * flip(W)), with filters and channels exchanged.
    padded = dilated.add_pad(((r - 1, r - 1 + rest_h), (s - 1, s - 1 + rest_w)))
    assert same(dx, padded.conv(Tensor(w).flip().T()).unpad(pad).data)


@pytest.mark.parametrize(("size", "kernel", "stride"), [(4, 2, 2), (6, 3, 3), (5, 3, 1), (5, 2, 1), (7, 3, 2)])
def test_report_001_equations_6_and_7_pooling_gradients(functions, size, kernel, stride):
    """A pixel's gradient is the sum over its windows: of dY where it is the maximum, and of dY / K^2."""
    x = distinct(1, 2, size, size)
    out = (size - kernel) // stride + 1
    dy = draw(1, 2, out, out)
    maximum = [[[[0.0] * size for _ in range(size)] for _ in range(2)]]
    average = [[[[0.0] * size for _ in range(size)] for _ in range(2)]]
    for c in range(2):
        for p in range(out):
            for q in range(out):
                window = [(p * stride + i, q * stride + j) for i in range(kernel) for j in range(kernel)]
                largest = max(x[0][c][i][j] for i, j in window)
                for i, j in window:
                    maximum[0][c][i][j] += dy[0][c][p][q] * (x[0][c][i][j] == largest)
                    average[0][c][i][j] += dy[0][c][p][q] / kernel**2
    _, argmax = functions.max_pool2d(x, kernel, stride=stride)
    assert same(functions.max_pool2d_backward(dy, argmax, (1, 2, size, size)), maximum)
    assert same(functions.avg_pool2d_backward(dy, (1, 2, size, size), kernel, stride=stride), average)


@pytest.mark.parametrize(("size", "kernel"), [(4, 2), (6, 3)])
def test_report_001_equation_6_with_the_masks_of_max_pool(functions, size, kernel):
    """Where windows do not overlap, dX is each window's dY times the mask."""
    x = distinct(2, 1, size, size)
    pooled, masks = Tensor(x).max_pool(kernel, kernel)
    dy = Tensor(draw(*pooled.shape))
    # Each dY over its window: dilated, then summed by a kernel of ones.
    ones = Tensor.fill(1, 1, kernel, kernel, val=1.0)
    spread = dy.dilate(kernel).add_pad(kernel - 1).conv(ones)
    y, argmax = functions.max_pool2d(x, kernel)
    assert same(y, pooled.data)
    assert same(functions.max_pool2d_backward(dy.data, argmax, masks.shape), (spread * masks).data)


def test_report_001_equations_10_and_11_dense_gradients(functions):
    """With a column of ones in X and the bias as the last row of W."""
    x, w, b, dy = draw(3, 4), draw(4, 2, seed=1), draw(2, seed=2), draw(3, 2, seed=3)
    x_concat = Tensor([[*row, 1.0] for row in x])
    w_concat = Tensor([*w, b])
    assert same(functions.dense(x, w, b), x_concat.dot(w_concat).data)
    dx, dw, db = functions.dense_backward(dy, x, w)
    dw_concat = x_concat.T().dot(Tensor(dy)).data
    assert same(dw, dw_concat[:-1])
    assert same(db, dw_concat[-1])
    assert same(dx, [row[:-1] for row in Tensor(dy).dot(w_concat.T()).data])


def test_report_001_equations_12_to_15_activations(functions):
    x, dy = [-2.0, -0.5, 0.0, 0.5, 2.0], [1.0, -2.0, 3.0, -4.0, 5.0]
    sigma = [1 / (1 + math.exp(-v)) for v in x]
    assert same(functions.activation(x, "sigmoid"), sigma)
    expected = [g * s * (1 - s) for g, s in zip(dy, sigma, strict=True)]
    assert same(functions.activation_backward(dy, x, "sigmoid"), expected)
    assert same(functions.activation(x, "relu"), [0.0, 0.0, 0.0, 0.5, 2.0])
    assert same(functions.activation_backward(dy, x, "relu"), [0.0, 0.0, 0.0, -4.0, 5.0])


def test_report_001_equations_16_and_17_cross_entropy(functions):
    logits, labels = draw(4, 3), [2, 0, 1, 2]
    p = lists(functions.softmax(logits))
    loss, dlogits = functions.softmax_cross_entropy(logits, labels)
    assert loss == pytest.approx(-sum(math.log(p[i][label]) for i, label in enumerate(labels)) / 4, rel=1e-5)
    assert same(dlogits, [[(p[i][c] - (c == label)) / 4 for c in range(3)] for i, label in enumerate(labels)])

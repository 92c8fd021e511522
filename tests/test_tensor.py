"""Report 001's Tensor and the reports' generator."""

import math

import pytest

import pycnn as cnn

Tensor, LCG = cnn.reference.Tensor, cnn.reference.LCG


def count(*dims):
    """1, 2, 3 ... in row-major order."""
    return Tensor(list(range(1, math.prod(dims) + 1))).reshape(*dims)


def test_shape_fill_equality_and_repr():
    assert Tensor([[1, 2, 3], [4, 5, 6]]).shape == (2, 3)
    assert Tensor(5.0).shape == ()
    assert Tensor([]).shape == (0,)
    assert Tensor.fill(2, 1, val=7.0) == Tensor([[7.0], [7.0]])
    assert Tensor.fill(2).data == [0.0, 0.0]
    assert Tensor([1, 2]) == Tensor([1.0, 2.0])
    assert Tensor([1, 2]) != Tensor([[1, 2]])
    assert Tensor([1]) != [1]
    assert repr(Tensor([[1, 2]])) == "Tensor([[1, 2]])"


def test_fill_shares_no_rows_and_data_is_a_copy():
    filled = Tensor.fill(2, 2)
    filled.data[0][0] = 1.0
    assert filled.data == [[1.0, 0.0], [0.0, 0.0]]
    data = [[1, 2]]
    copied = Tensor(data)
    data[0][0] = 9
    assert copied.data == [[1, 2]]


def test_flatten_and_reshape_keep_the_row_major_order():
    t = Tensor([[[1, 2], [3, 4]], [[5, 6], [7, 8]]])
    assert t.flatten() == Tensor([1, 2, 3, 4, 5, 6, 7, 8])
    assert t.reshape(4, 2) == Tensor([[1, 2], [3, 4], [5, 6], [7, 8]])
    assert t.flatten().reshape(2, 2, 2) == t


def test_arithmetic():
    a, b = Tensor([[1, 2], [3, 4]]), Tensor([[10, 20], [30, 40]])
    assert a + b == Tensor([[11, 22], [33, 44]])
    assert b - a == Tensor([[9, 18], [27, 36]])
    assert a * b == Tensor([[10, 40], [90, 160]])
    assert a + 1 == 1 + a == Tensor([[2, 3], [4, 5]])
    assert a * 2 == 2 * a == Tensor([[2, 4], [6, 8]])
    assert a - 1 == Tensor([[0, 1], [2, 3]])
    assert 1 - a == Tensor([[0, -1], [-2, -3]])
    assert a == Tensor([[1, 2], [3, 4]])


def test_activate():
    assert Tensor([[-1, 2]]).activate(lambda v: max(0, v)) == Tensor([[0, 2]])


def test_dot():
    assert Tensor([1, 2, 3]).dot(Tensor([4, 5, 6])) == 32
    a, b = count(2, 3), count(3, 2)
    product = Tensor([[22, 28], [49, 64]])
    assert a.dot(b) == product
    batch = Tensor([a.data, (a * 2).data]).dot(Tensor([b.data, b.data]))
    assert batch == Tensor([product.data, (product * 2).data])


def test_transpose_exchanges_the_first_two_axes():
    assert count(2, 3).T() == Tensor([[1, 4], [2, 5], [3, 6]])
    images = count(2, 3, 1, 2)
    assert images.T().shape == (3, 2, 1, 2)
    assert images.T().data[2][1] == images.data[1][2]
    assert images.T().T() == images


def test_pad_and_unpad():
    t = Tensor([[1, 2]])
    assert t.add_pad(1) == Tensor([[0, 0, 0, 0], [0, 1, 2, 0], [0, 0, 0, 0]])
    assert t.add_pad((0, 1), 9) == Tensor([[9, 1, 2, 9]])
    assert t.add_pad(((1, 0), (0, 2)), -1) == Tensor([[-1] * 4, [1, 2, -1, -1]])
    images = count(2, 1, 2, 3)
    assert images.add_pad(2, 5).shape == (2, 1, 6, 7)
    for size in (0, 2, (1, 0), ((0, 3), (1, 0))):
        assert images.add_pad(size).unpad(size) == images


def test_padding_rows_are_not_shared():
    padded = Tensor([[1]]).add_pad(2)
    padded.data[0][0] = 7
    assert padded.data[1][0] == 0


def test_flip():
    assert Tensor([[1, 2], [3, 4], [5, 6]]).flip() == Tensor([[6, 5], [4, 3], [2, 1]])
    images = count(2, 2, 1, 3)
    assert images.flip().data[1][0] == [[9, 8, 7]]
    assert images.flip().flip() == images


def test_dilate():
    t = Tensor([[1, 2], [3, 4]])
    assert t.dilate(1) == t
    assert t.dilate(2) == Tensor([[1, 0, 2], [0, 0, 0], [3, 0, 4]])
    assert t.dilate((1, 3)) == Tensor([[1, 0, 0, 2], [3, 0, 0, 4]])
    assert Tensor([[5]]).dilate(4) == Tensor([[5]])


def test_conv():
    image, kernel = count(3, 3), Tensor([[1, 0], [0, -1]])
    assert image.conv(kernel) == Tensor([[-4, -4], [-4, -4]])
    assert image.add_pad(1).conv(kernel, 2) == Tensor([[-1, -3], [-7, -4]])
    x, w = count(2, 3, 4, 4), count(5, 3, 2, 2)
    assert x.conv(w, stride=2).data == cnn.reference.conv2d(x.data, w.data, stride=2)


def test_max_pool():
    t = Tensor([[1, 5, 2, 2], [3, 4, 2, 2]])
    pooled, masks = t.max_pool(2)
    assert pooled == Tensor([[5, 2]])
    assert masks == Tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    pooled, masks = t.max_pool(2, stride=1)
    assert pooled == Tensor([[5, 5, 2]])
    assert masks == Tensor([[0, 1, 1, 0], [0, 0, 0, 0]])
    pooled, masks = count(2, 3, 4, 4).max_pool()
    assert (pooled.shape, masks.shape) == ((2, 3, 2, 2), (2, 3, 4, 4))
    assert masks.data[1][2] == [[0, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0], [0, 1, 0, 1]]


def test_avg_pool():
    assert count(2, 4).avg_pool() == Tensor([[3.5, 5.5]])
    assert count(2, 3).avg_pool(2, 1) == Tensor([[3.0, 4.0]])
    assert count(1, 1, 2, 2).avg_pool(2) == Tensor([[[[2.5]]]])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Tensor([[1, 2], [3]]), "ragged"),
        (lambda: Tensor([1, [2]]), "ragged"),
        (lambda: Tensor([1, 2]) + Tensor([1, 2, 3]), "has shape"),
        (lambda: Tensor([1, 2]) * Tensor([[1, 2]]), "has shape"),
        (lambda: count(2, 3).reshape(4, 2), "has not as many elements"),
        (lambda: count(2, 3).dot(count(2, 3)), "inner sizes differ"),
        (lambda: count(2).dot(count(3)), "has shape"),
        (lambda: count(2, 1).dot(count(2)), "axes"),
        (lambda: count(2, 1, 1).dot(count(3, 1, 1)), "has shape"),
        (lambda: count(3).T(), "two axes"),
        (lambda: count(3).flip(), "two axes"),
        (lambda: count(3).add_pad(1), "two axes"),
        (lambda: count(2, 2).add_pad(-1), "padding"),
        (lambda: count(2, 3).unpad(1), "leaves nothing"),
        (lambda: count(2, 2).dilate(0), "dilation"),
        (lambda: count(2, 2).conv(count(1, 1, 2, 2)), "as many axes"),
        (lambda: count(2, 2, 2).max_pool(), "needs"),
        (lambda: count(2, 2).conv(count(3, 3)), "leaves no output"),
        (lambda: Tensor.fill(-1), "dims"),
    ],
)
def test_wrong_values_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "call",
    [
        lambda: Tensor("text"),
        lambda: Tensor([None]),
        lambda: Tensor([1]) + [1],
        lambda: Tensor([1]) - "1",
        lambda: Tensor([1]).dot([1]),
        lambda: count(2, 2).conv([[1]]),
        lambda: count(4).reshape(2.0, 2),
        lambda: hash(Tensor([1])),
    ],
)
def test_wrong_types_are_refused(call):
    with pytest.raises(TypeError):
        call()


# --------------------------------------------------------------------------------------------- LCG


def test_lcg_follows_its_recurrence():
    generator, state = LCG(42), 42
    for _ in range(5):
        state = (1664525 * state + 1013904223) % 2**32
        assert generator.random() == state / 2**32


def test_lcg_first_states():
    """The sequence that Numerical Recipes prints for a start at 0."""
    generator = LCG(0)
    states = " ".join(f"{int(generator.random() * 2**32):08X}" for _ in range(6))
    assert states == "3C6EF35F 47502932 D1CCF6E9 AAF95334 6252E503 9F2EC686"


def test_lcg_repeats_with_its_seed():
    assert [LCG(3).random() for _ in range(2)] == [LCG(3).random()] * 2
    assert LCG(3).random() != LCG(4).random()
    assert LCG(2**32 + 3).random() == LCG(3).random()
    with pytest.raises(TypeError):
        LCG("3")


def test_lcg_uniform():
    generator = LCG(1)
    numbers = [generator.uniform(-0.5, 0.5) for _ in range(5000)]
    assert -0.5 <= min(numbers) < -0.49
    assert 0.49 < max(numbers) < 0.5
    assert sum(numbers) / len(numbers) == pytest.approx(0.0, abs=0.02)


def test_lcg_normal():
    generator = LCG(1)
    numbers = [generator.normal() for _ in range(10000)]
    mean = sum(numbers) / len(numbers)
    assert mean == pytest.approx(0.0, abs=0.05)
    assert sum((v - mean) ** 2 for v in numbers) / len(numbers) == pytest.approx(1.0, abs=0.05)
    assert sum(abs(v) < 1 for v in numbers) / len(numbers) == pytest.approx(math.erf(math.sqrt(0.5)), abs=0.02)


def test_lcg_normal_of_a_draw_of_0():
    """The logarithm of 0 must not be taken; this seed is the one whose first draw is 0."""
    seed = -1013904223 * pow(1664525, -1, 2**32) % 2**32
    assert LCG(seed).random() == 0
    assert LCG(seed).normal() == 0

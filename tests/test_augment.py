"""Augmentation of batches."""

import math

import numpy as np
import pytest

import pycnn as cnn
from pycnn import augment
from pycnn.augment import Brightness, Compose, Crop, Cutout, Flip, Mixup, Rotation, Shift

ALL = [
    Flip(),
    Flip(0.5, 0.5),
    Crop(),
    Crop(size=(2, 1), padding=0),
    Shift(1),
    Shift((0, 3), fill=0.5),
    Rotation(15),
    Brightness(0.3),
    Cutout(3),
    Mixup(0.4, classes=10),
    Compose(Flip(), Crop(padding=1), Rotation(5), Mixup(classes=10)),
]
SHAPES = [(0, 3, 4, 4), (1, 1, 2, 1), (5, 3, 7, 6), (4, 17, 3, 8)]


def batch(shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.random(shape, dtype=np.float32), rng.integers(0, 10, shape[0])


class Fixed(np.random.Generator):
    """A generator whose uniform numbers are given."""

    def __init__(self, value):
        super().__init__(np.random.PCG64(0))
        self.value = value

    def uniform(self, low, high, size):
        assert low <= self.value <= high
        return np.full(size, self.value)


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
@pytest.mark.parametrize("shape", SHAPES)
def test_each_leaves_its_arguments_and_follows_the_generator(augmentation, shape):
    x, y = batch(shape)
    x_before, y_before = x.copy(), y.copy()
    x.setflags(write=False)
    y.setflags(write=False)
    first, again, other = (augmentation(x, y, np.random.default_rng(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(x, x_before)
    np.testing.assert_array_equal(y, y_before)
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert first[0].dtype == np.float32 and len(first[0]) == len(first[1]) == shape[0]
    assert not np.shares_memory(first[0], x)
    if shape[0] > 3:
        assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize("augmentation", ALL, ids=repr)
def test_memory_order_does_not_matter(augmentation):
    x, y = batch((5, 3, 7, 6))
    channels_last = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    expected, _ = augmentation(x, y, np.random.default_rng(3))
    np.testing.assert_array_equal(augmentation(channels_last, y, np.random.default_rng(3))[0], expected)


def test_flip():
    x, y = batch((200, 2, 3, 5))
    generator = np.random.default_rng(0)
    np.testing.assert_array_equal(Flip(1.0)(x, y, generator)[0], x[..., ::-1])
    np.testing.assert_array_equal(Flip(0, 1)(x, y, generator)[0], x[:, :, ::-1])
    np.testing.assert_array_equal(Flip(1, 1)(x, y, generator)[0], x[:, :, ::-1, ::-1])
    np.testing.assert_array_equal(Flip(0)(x, y, generator)[0], x)
    flipped, labels = Flip(0.3)(x, y, generator)
    chosen = (flipped == x[..., ::-1]).all((1, 2, 3))
    assert ((flipped == x).all((1, 2, 3)) != chosen).all()
    assert 40 <= chosen.sum() <= 80
    np.testing.assert_array_equal(labels, y)


def windows(x, out, padding, fill):
    """Where in each padded image its window lies: (top, left) of every image."""
    padded = np.pad(x, [(0, 0), (0, 0), *((p, p) for p in padding)], constant_values=fill)
    h, w = out.shape[2:]
    for image, window in zip(padded, out, strict=True):
        places = [
            (top, left)
            for top in range(image.shape[1] - h + 1)
            for left in range(image.shape[2] - w + 1)
            if np.array_equal(image[:, top : top + h, left : left + w], window)
        ]
        assert len(places) == 1
        yield places[0]


@pytest.mark.parametrize(
    ("augmentation", "size", "padding", "fill"),
    [
        (Crop(padding=1), (3, 4), (1, 1), 0),
        (Crop(2, padding=1), (2, 2), (1, 1), 0),
        (Crop((3, 2), (0, 1), fill=0.5), (3, 2), (0, 1), 0.5),
        (Shift(1), (3, 4), (1, 1), 0),
        (Shift((1, 2), fill=-1), (3, 4), (1, 2), -1),
    ],
    ids=repr,
)
def test_windows_lie_at_every_place(augmentation, size, padding, fill):
    x, y = batch((300, 3, 3, 4))
    x += 1  # so that no pixel is the fill
    out, labels = augmentation(x, y, np.random.default_rng(0))
    assert out.shape == (300, 3, *size)
    found = set(windows(x, out, padding, fill))
    assert len(found) == math.prod(e + 2 * p - s + 1 for e, p, s in zip((3, 4), padding, size, strict=True))
    np.testing.assert_array_equal(labels, y)


def bilinear(image, row, column, fill):
    """A plane between its pixels: the sum over all pixels, each with its hat function (the definition)."""
    total, weights = 0.0, 0.0
    for i in range(math.floor(row), math.floor(row) + 2):
        for j in range(math.floor(column), math.floor(column) + 2):
            weight = (1 - abs(row - i)) * (1 - abs(column - j))
            inside = 0 <= i < image.shape[0] and 0 <= j < image.shape[1]
            total += weight * (image[i, j] if inside else fill)
            weights += weight
    assert weights == pytest.approx(1)
    return total


@pytest.mark.parametrize("degrees", [0, 10, -37.5, 90, 135, -180])
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 5, 5), (2, 1, 4, 7)])
def test_rotation(degrees, shape):
    x, y = batch(shape)
    out, _ = Rotation(180, fill=0.25)(x, y, Fixed(degrees))
    angle = math.radians(degrees)
    (h, w), expected = shape[2:], np.empty_like(x)
    for n, c, i, j in np.ndindex(*shape):
        u, v = i - (h - 1) / 2, j - (w - 1) / 2
        row = math.cos(angle) * u + math.sin(angle) * v + (h - 1) / 2
        column = -math.sin(angle) * u + math.cos(angle) * v + (w - 1) / 2
        expected[n, c, i, j] = bilinear(x[n, c], row, column, 0.25)
    np.testing.assert_allclose(out, expected, atol=2e-6)


def test_rotation_turns_the_picture():
    x, y = batch((2, 3, 6, 6))
    np.testing.assert_allclose(Rotation(90)(x, y, Fixed(90))[0], np.rot90(x, 1, (2, 3)), atol=1e-6)
    np.testing.assert_allclose(Rotation(90)(x, y, Fixed(0))[0], x, atol=1e-6)


def test_each_image_has_an_angle_of_its_own():
    x = np.repeat(batch((1, 1, 8, 8))[0], 20, axis=0)
    out, _ = Rotation(20)(x, np.zeros(20), np.random.default_rng(0))
    assert len(np.unique(out.reshape(20, -1), axis=0)) == 20


def test_brightness():
    x, y = batch((300, 2, 3, 3))
    out, _ = Brightness(0.5, clip=False)(x, y, np.random.default_rng(0))
    factors = (out / x).reshape(300, -1)
    np.testing.assert_allclose(factors, np.broadcast_to(factors[:, :1], factors.shape), rtol=1e-5)
    assert 0.5 <= factors.min() < 0.55 and 1.45 < factors.max() <= 1.5
    clipped, _ = Brightness(0.5)(x, y, np.random.default_rng(0))
    np.testing.assert_array_equal(clipped, np.minimum(out, 1))


@pytest.mark.parametrize("size", [1, 2, 3, 20])
def test_cutout(size):
    x, y = batch((400, 3, 6, 5))
    x += 1
    out, _ = Cutout(size, fill=0.5)(x, y, np.random.default_rng(0))
    covered = out == 0.5
    np.testing.assert_array_equal(out, np.where(covered, 0.5, x))
    assert (covered == covered[:, :1]).all()  # the same pixels in every channel
    hit = np.zeros((6, 5), bool)
    for plane in covered[:, 0]:
        rows, columns = plane.any(1), plane.any(0)
        np.testing.assert_array_equal(plane, np.outer(rows, columns))
        assert 1 <= rows.sum() <= size and 1 <= columns.sum() <= size
        hit |= plane
    assert hit.all()
    if size <= 3:
        assert (covered[:, 0].sum((1, 2)) == size**2).any()


@pytest.mark.parametrize("labels", ["integers", "one-hot", "numbers"])
def test_mixup(labels):
    x, integers = batch((6, 2, 3, 3))
    one_hot = np.eye(10)[integers]
    y = {"integers": integers, "one-hot": one_hot, "numbers": integers * 0.5}[labels]
    out, mixed = Mixup(1.0, classes=10)(x, y, np.random.default_rng(5))
    generator = np.random.default_rng(5)
    other, lam = generator.permutation(6), generator.beta(1.0, 1.0)
    assert 0.05 < lam < 0.95
    rows = one_hot if labels != "numbers" else y
    np.testing.assert_allclose(out, lam * x + (1 - lam) * x[other], atol=1e-6)
    np.testing.assert_allclose(mixed, lam * rows + (1 - lam) * rows[other], atol=1e-6)
    assert mixed.dtype == np.float32


def test_mixed_labels_train():
    (x, y), _ = cnn.datasets.digits()
    model = cnn.Sequential([cnn.Flatten(), cnn.Dense(10)])
    model.compile(cnn.SGD(0.1), "cross_entropy")
    x, y = Mixup(classes=10)(x[:32], y[:32], np.random.default_rng(0))
    assert math.isfinite(model.train_on_batch(x, y))


def test_compose_applies_in_turn():
    x, y = batch((8, 3, 6, 6))
    steps = (Flip(), Crop(padding=2), Mixup(classes=10))
    generator, expected = np.random.default_rng(0), (x, y)
    for step in steps:
        expected = step(*expected, generator)
    for a, b in zip(Compose(*steps)(x, y, np.random.default_rng(0)), expected, strict=True):
        np.testing.assert_array_equal(a, b)
    assert repr(Compose(Flip(), Shift(1))) == "Compose(Flip(horizontal=0.5, vertical=0.0), Shift(pixels=1, fill=0.0))"
    twice = Compose(lambda x, y, generator: (2 * x, y))
    np.testing.assert_array_equal(twice(x, y, generator)[0], 2 * x)


@pytest.mark.parametrize(
    ("make", "error", "match"),
    [
        (lambda: Flip(1.5), ValueError, r"\[Flip\] horizontal must be a finite number in 0..1"),
        (lambda: Flip(0, "1"), TypeError, r"\[Flip\] vertical must be a number"),
        (lambda: Crop(0), ValueError, r"\[Crop\] size must be"),
        (lambda: Crop(4, -1), ValueError, r"\[Crop\] padding must be"),
        (lambda: Crop(fill=math.nan), ValueError, r"\[Crop\] fill must be"),
        (lambda: Shift(0.5), TypeError, r"\[Shift\] pixels must be"),
        (lambda: Rotation(-1), ValueError, r"\[Rotation\] degrees must be"),
        (lambda: Brightness(2), ValueError, r"\[Brightness\] amount must be"),
        (lambda: Brightness(0.1, clip=1), TypeError, r"\[Brightness\] clip must be True or False"),
        (lambda: Cutout(0), ValueError, r"\[Cutout\] size must be"),
        (lambda: Mixup(0), ValueError, r"\[Mixup\] alpha must be positive"),
        (lambda: Mixup(classes=0), ValueError, r"\[Mixup\] classes must be"),
        (lambda: Compose([Flip()]), TypeError, r"\[Compose\] takes callables"),
    ],
)
def test_options_are_checked(make, error, match):
    with pytest.raises(error, match=match):
        make()


@pytest.mark.parametrize(
    ("augmentation", "x", "y", "error", "match"),
    [
        (Flip(), np.zeros((2, 3, 4)), [0, 1], ValueError, r"\[Flip\] x must have 4 axes"),
        (Flip(), "x", [0], TypeError, r"\[Flip\] x must be an array"),
        (
            Crop(9, 1),
            np.zeros((2, 3, 4, 4)),
            [0, 1],
            ValueError,
            r"size \(9, 9\) is larger than the padded image \(6, 6\)",
        ),
        (Mixup(), np.zeros((2, 1, 1, 1)), [0, 1], ValueError, r"say how many classes there are, Mixup\(classes=...\)"),
        (Mixup(classes=2), np.zeros((2, 1, 1, 1)), [0, 2], ValueError, r"\[Mixup\] labels must be in 0..1"),
        (Mixup(classes=2), np.zeros((2, 1, 1, 1)), [0], ValueError, r"\[Mixup\] y has 1 labels, x has 2 images"),
    ],
)
def test_batches_are_checked(augmentation, x, y, error, match):
    with pytest.raises(error, match=match):
        augmentation(x, y, np.random.default_rng(0))


def test_the_generator_is_checked():
    with pytest.raises(TypeError, match=r"\[Shift\] generator must be a numpy.random.Generator, got 3"):
        augment.Shift(1)(*batch((1, 1, 2, 2)), 3)

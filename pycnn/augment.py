"""Augmentation: images changed by chance, each time anew, so that a model learns what does not matter.

An augmentation is a callable (x, y, generator) -> (x, y) on a batch, x float32 (N, C, H, W). It leaves its arguments
as they are, and the same generator gives the same result. `fit(augment=...)` takes one, or a list to apply in turn; so
does `Compose`. Any function of this form will do as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pycnn import shapes

Batch = tuple[np.ndarray, np.ndarray]
Augment = Callable[[np.ndarray, np.ndarray, np.random.Generator], Batch]


class Augmentation:
    """What the augmentations here share; a subclass defines `images`, or `apply` if it changes labels, too."""

    def __call__(self, x: Any, y: Any, generator: np.random.Generator) -> Batch:
        op = type(self).__name__
        if not isinstance(generator, np.random.Generator):
            raise TypeError(f"[{op}] generator must be a numpy.random.Generator, got {generator!r}")
        return self.apply(shapes.array(op, "x", x, 4), y, generator)

    def apply(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        return self.images(x, generator), y

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        raise NotImplementedError


class Compose(Augmentation):
    """Augmentations one after another."""

    def __init__(self, *augmentations: Augment):
        for augmentation in augmentations:
            if not callable(augmentation):
                raise TypeError(f"[Compose] takes callables (x, y, generator) -> (x, y), got {augmentation!r}")
        self.augmentations = augmentations

    def __repr__(self) -> str:
        return f"Compose({', '.join(map(repr, self.augmentations))})"

    def apply(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        for augmentation in self.augmentations:
            x, y = augmentation(x, y, generator)
        return x, y


@dataclass(frozen=True)
class Flip(Augmentation):
    """Mirrors an image left to right with the probability `horizontal`, and upside down with `vertical`."""

    horizontal: float = 0.5
    vertical: float = 0.0

    def __post_init__(self) -> None:
        shapes.number("Flip", "horizontal", self.horizontal, 0, 1)
        shapes.number("Flip", "vertical", self.vertical, 0, 1)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        y = x.copy()
        for probability, axis in ((self.horizontal, 3), (self.vertical, 2)):
            if probability:
                chosen = generator.random(len(x)) < probability
                y[chosen] = np.flip(y[chosen], axis)
        return y


@dataclass(frozen=True)
class Crop(Augmentation):
    """A window at a random place of the image with `padding` pixels of `fill` around it.

    `size` and `padding` are ints or (rows, columns); size None is the image's own.
    """

    size: int | tuple[int, int] | None = None
    padding: int | tuple[int, int] = 4
    fill: float = 0.0

    def __post_init__(self) -> None:
        if self.size is not None:
            shapes.pair("Crop", "size", self.size, 1)
        shapes.pair("Crop", "padding", self.padding)
        shapes.float32("Crop", "fill", self.fill)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        size = x.shape[2:] if self.size is None else shapes.pair("Crop", "size", self.size)
        return _windows("Crop", x, size, shapes.pair("Crop", "padding", self.padding), self.fill, generator)


@dataclass(frozen=True)
class Shift(Augmentation):
    """Moves an image by a whole number of pixels up to `pixels` (an int or (rows, columns)) in each direction."""

    pixels: int | tuple[int, int]
    fill: float = 0.0

    def __post_init__(self) -> None:
        shapes.pair("Shift", "pixels", self.pixels)
        shapes.float32("Shift", "fill", self.fill)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        return _windows("Shift", x, x.shape[2:], shapes.pair("Shift", "pixels", self.pixels), self.fill, generator)


def _windows(
    op: str, x: np.ndarray, size: Sequence[int], padding: Sequence[int], fill: float, generator: np.random.Generator
) -> np.ndarray:
    """A window of each padded image, at a place of its own."""
    (n, c, *image), (rows, columns) = x.shape, padding
    extents = [extent + 2 * pad for extent, pad in zip(image, padding, strict=True)]
    if size[0] > extents[0] or size[1] > extents[1]:
        raise ValueError(f"[{op}] size {tuple(size)} is larger than the padded image {tuple(extents)}")
    padded = np.full((n, c, *extents), fill, np.float32)
    padded[:, :, rows : rows + image[0], columns : columns + image[1]] = x
    places = [generator.integers(0, extent - length + 1, n) for extent, length in zip(extents, size, strict=True)]
    windows = np.lib.stride_tricks.sliding_window_view(padded, tuple(size), axis=(2, 3))
    return windows[np.arange(n), :, *places]


@dataclass(frozen=True)
class Rotation(Augmentation):
    """Turns an image around its centre by an angle of up to `degrees` either way, interpolating linearly.

    What comes from outside the image is `fill`.
    """

    degrees: float
    fill: float = 0.0

    def __post_init__(self) -> None:
        shapes.number("Rotation", "degrees", self.degrees, 0, 180)
        shapes.float32("Rotation", "fill", self.fill)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        n, c, h, w = x.shape
        angles = np.radians(generator.uniform(-self.degrees, self.degrees, (n, 1, 1)))
        cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
        # A pixel of the result, as seen from the centre, comes from where turning back takes it.
        i = np.arange(h, dtype=np.float32)[:, np.newaxis] - (h - 1) / 2
        j = np.arange(w, dtype=np.float32) - (w - 1) / 2
        return _interpolated(x, cos * i + sin * j + (h - 1) / 2, cos * j - sin * i + (w - 1) / 2, self.fill)


def _interpolated(x: np.ndarray, rows: np.ndarray, columns: np.ndarray, fill: float) -> np.ndarray:
    """x between its pixels, at rows and columns (N, H', W'), linearly; beyond the borders lies `fill`."""
    n, c, h, w = x.shape
    # With a row and a column of fill before and two after, each place from -1 to h has neighbours on all sides.
    padded = np.full((n, c, h + 3, w + 3), fill, np.float32)
    padded[:, :, 1:-2, 1:-2] = x
    rows, columns = np.clip(rows, -1, h) + 1, np.clip(columns, -1, w) + 1
    top, left = np.floor(rows), np.floor(columns)
    down, right = (rows - top)[:, np.newaxis], (columns - left)[:, np.newaxis]
    planes = np.arange(n * c).reshape(n, c, 1, 1) * ((h + 3) * (w + 3))
    first = planes + (top.astype(np.intp) * (w + 3) + left.astype(np.intp))[:, np.newaxis]

    def along(index: np.ndarray) -> np.ndarray:
        """Between the pixel at `index` and its right neighbour."""
        near, far = padded.take(index), padded.take(index + 1)
        return near + right * (far - near)

    above = along(first)
    return above + down * (along(first + (w + 3)) - above)


@dataclass(frozen=True)
class Brightness(Augmentation):
    """Multiplies an image by a number between 1 - amount and 1 + amount, and keeps it in 0..1.

    clip=False does not keep it there, for images that are normalised otherwise.
    """

    amount: float
    clip: bool = True

    def __post_init__(self) -> None:
        shapes.number("Brightness", "amount", self.amount, 0, 1)
        shapes.boolean("Brightness", "clip", self.clip)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        factors = generator.uniform(1 - self.amount, 1 + self.amount, (len(x), 1, 1, 1))
        y = x * factors.astype(np.float32)
        return np.clip(y, 0, 1, out=y) if self.clip else y


@dataclass(frozen=True)
class Cutout(Augmentation):
    """Covers a square of `size` pixels around a random pixel with `fill`; what reaches past the border is cut off.

    DeVries and Taylor 2017, Improved Regularization of Convolutional Neural Networks with Cutout.
    """

    size: int
    fill: float = 0.0

    def __post_init__(self) -> None:
        shapes.integer("Cutout", "size", self.size, 1)
        shapes.float32("Cutout", "fill", self.fill)

    def images(self, x: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        y = x.copy()
        tops, lefts = (generator.integers(0, max(extent, 1), len(x)) - self.size // 2 for extent in x.shape[2:])
        for image, top, left in zip(y, tops.tolist(), lefts.tolist(), strict=True):
            image[:, max(top, 0) : top + self.size, max(left, 0) : left + self.size] = self.fill
        return y


@dataclass(frozen=True)
class Mixup(Augmentation):
    """lam x + (1 - lam) x' for each image x and another x' of the batch, and the same of their labels.

    lam is drawn from Beta(alpha, alpha), once for a batch. Labels become float32: those of `classes` classes rows of
    probabilities (N, classes), which integer labels need; other labels keep their shape.
    Zhang et al. 2018, mixup: Beyond Empirical Risk Minimization.
    """

    alpha: float = 0.2
    classes: int | None = None

    def __post_init__(self) -> None:
        if not shapes.number("Mixup", "alpha", self.alpha, 0) > 0:
            raise ValueError(f"[Mixup] alpha must be positive, got {self.alpha!r}")
        if self.classes is not None:
            shapes.integer("Mixup", "classes", self.classes, 1)

    def apply(self, x: np.ndarray, y: np.ndarray, generator: np.random.Generator) -> Batch:
        y = self._mixable(y, len(x))
        other = generator.permutation(len(x))
        lam = np.float32(generator.beta(self.alpha, self.alpha))
        return lam * x + (1 - lam) * x[other], lam * y + (1 - lam) * y[other]

    def _mixable(self, y: Any, n: int) -> np.ndarray:
        labels = np.asarray(y)
        if len(labels) != n:
            raise ValueError(f"[Mixup] y has {len(labels)} labels, x has {n} images")
        if labels.ndim == 1 and labels.dtype.kind in "iu":
            if self.classes is None:
                raise ValueError("[Mixup] y holds integers: say how many classes there are, Mixup(classes=...)")
            indices, _ = shapes.class_labels("Mixup", labels, n, self.classes)
            return np.eye(self.classes, dtype=np.float32)[indices]
        return labels.astype(np.float32)

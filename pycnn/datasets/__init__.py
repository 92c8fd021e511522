"""Data to learn from: each data set as ((x, y), (x_test, y_test)).

x is float32 in 0..1 of shape (N, C, H, W), y is int64 of shape (N,). `digits` ships with the package. The
others are read from files, which are looked for in the folder `path` if it is given, else in the data set's
folder (`optdigits/`, `mnist/`, `fashion_mnist/`, `cifar-10-batches-bin/`) under the environment variable PYCNN_DATA,
else under ~/.cache/pycnn; `download=True` fetches what is missing. `per_class=k` keeps the first k of each class (all,
where there are fewer) in both parts. Files that are not found are a FileNotFoundError, damaged ones a ValueError.

A new data set is a row in `sources.SOURCES` and a function of two lines.
"""

import os
from pathlib import Path

import numpy as np

from pycnn.datasets import parts, sources
from pycnn.datasets.images import image_folder
from pycnn.datasets.parts import Parts, split

__all__ = ["cifar10", "digits", "fashion_mnist", "image_folder", "mnist", "optdigits", "split"]


def digits(per_class: int | None = None) -> Parts:
    """1,797 handwritten digits, x (N, 1, 8, 8), from a file in the package: 1,442 for training, 355 to test.

    The test part is every fifth image of each class, in the order of the original file. The split thus is
    always the same, stratified, and both parts hold digits of all 13 writers; `optdigits` is the harder test,
    with writers that the training part does not know.
    """
    with np.load(Path(__file__).parents[1] / "data" / "digits.npz", allow_pickle=False) as data:
        x, y = data["x"][:, np.newaxis], data["y"]
    test = np.zeros(len(y), bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    per_class = parts.checked_per_class("digits", per_class)
    return tuple(parts.scaled(parts.first((x[own], y[own]), per_class), 16) for own in (~test, test))


def optdigits(
    path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None
) -> Parts:
    """Handwritten digits of the UCI repository, x (N, 1, 8, 8): 3,823 for training, 1,797 to test."""
    return sources.load("optdigits", path, download, per_class)


def mnist(path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None) -> Parts:
    """The MNIST digits, x (N, 1, 28, 28): 60,000 for training, 10,000 to test; files gzipped or not."""
    return sources.load("mnist", path, download, per_class)


def fashion_mnist(
    path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None
) -> Parts:
    """Zalando's pictures of clothes, x (N, 1, 28, 28): 60,000 for training, 10,000 to test; files gzipped or not.

    Classes: T-shirt or top, trousers, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot
    (Xiao et al. 2017).
    """
    return sources.load("fashion_mnist", path, download, per_class)


def cifar10(path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None) -> Parts:
    """CIFAR-10, x (N, 3, 32, 32): 50,000 for training, 10,000 to test.

    Classes: airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck (Krizhevsky 2009). Reads the binary
    layout (`cifar-10-batches-bin/`), and the Python layout (`cifar-10-batches-py/`) without unpickling it.
    """
    return sources.load("cifar10", path, download, per_class)

"""The file formats of the data sets: files in, uint8 images (N, C, H, W) and labels (N,) out.

A damaged file is a ValueError that names it.
"""

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pycnn.datasets import python_layout
from pycnn.datasets.parts import Part, Parts
from pycnn.datasets.python_layout import Call, SetUp


def read_text(files: list[Path]) -> Parts:
    training, test = files
    return _text(training), _text(test)


def _text(path: Path) -> Part:
    """Lines of 64 pixels of 0..16 and the class."""
    rows = []
    for number, line in enumerate(path.read_text("ascii", errors="replace").splitlines(), 1):
        try:
            row = [int(value) for value in line.split(",")]
        except ValueError:
            raise ValueError(f"{path}: line {number} is not integers between commas: {line!r:.80}") from None
        if len(row) != 65:
            raise ValueError(f"{path}: line {number} has {len(row)} values, expected 65")
        if not (all(0 <= value <= 16 for value in row) and row[64] <= 9):
            raise ValueError(f"{path}: line {number} has values out of range, expected pixels in 0..16, class in 0..9")
        rows.append(row)
    if not rows:
        raise ValueError(f"{path}: the file is empty")
    table = np.array(rows, np.uint8)
    return table[:, :64].reshape(-1, 1, 8, 8), table[:, 64]


def read_idx(files: list[Path]) -> Parts:
    images, labels, test_images, test_labels = files
    return _idx_part(images, labels), _idx_part(test_images, test_labels)


def _idx_part(images: Path, labels: Path) -> Part:
    x, y = _idx(images, 3), _idx(labels, 1)
    if x.shape[1:] != (28, 28):
        raise ValueError(f"{images}: images are {x.shape[1]} x {x.shape[2]}, expected 28 x 28")
    if len(x) != len(y):
        raise ValueError(f"{labels}: the file holds {len(y)} labels for {len(x)} images in {images}")
    if y.max() > 9:
        raise ValueError(f"{labels}: a label is {y.max()}, expected 0..9")
    return x[:, np.newaxis], y


def _idx(path: Path, axes: int) -> np.ndarray:
    """A uint8 array from an IDX file: 0, 0, 8 for bytes, the number of axes, their sizes, the data."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"  # by contents: some tools unpack and keep the name
    try:
        with gzip.open(path) if packed else path.open("rb") as file:
            magic, sizes = _at_most(file, 4), _at_most(file, 4 * axes)
            if magic != bytes([0, 0, 8, axes]):
                raise ValueError(f"{path}: magic number is {magic.hex()}, expected {bytes([0, 0, 8, axes]).hex()}")
            shape = [int.from_bytes(sizes[i : i + 4], "big") for i in range(0, 4 * axes, 4)]
            expected = int(np.prod(shape, dtype=object))
            if len(sizes) < 4 * axes or expected == 0:
                raise ValueError(f"{path}: the header is cut off or holds a size of 0, sizes are {shape}")
            data = _at_most(file, expected + 1)  # one more, to notice a tail, and to reach gzip's checksum
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path}: the gzip file is damaged: {error}") from None
    if len(data) != expected:
        found = "more" if len(data) > expected else len(data)
        raise ValueError(f"{path}: sizes {shape} need {expected} bytes of data, found {found}")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _at_most(file: BinaryIO | gzip.GzipFile, size: int) -> bytes:
    """Up to `size` bytes; by pieces, since file.read(size) takes the memory before it knows what is there."""
    pieces = []
    while size > 0 and (piece := file.read(min(size, 1 << 20))):
        pieces.append(piece)
        size -= len(piece)
    return b"".join(pieces)


_CIFAR_IMAGE = (3, 32, 32)  # red, green and blue plane


def read_cifar(files: list[Path]) -> Parts:
    """CIFAR-10's binary layout: the last file is the test part."""
    return _cifar_parts([_cifar_records(path) for path in files])


def read_cifar_python(files: list[Path]) -> Parts:
    """CIFAR-10's Python layout: the last file is the test part."""
    return _cifar_parts([_cifar_python(path) for path in files])


def _cifar_parts(batches: list[Part]) -> Parts:
    *training, test = batches
    images, labels = zip(*training, strict=True)
    return (np.concatenate(images), np.concatenate(labels)), test


def _cifar_records(path: Path) -> Part:
    """Records of a class byte and the pixels of an image."""
    raw = np.fromfile(path, np.uint8)
    size = 1 + math.prod(_CIFAR_IMAGE)
    if len(raw) == 0 or len(raw) % size:
        raise ValueError(f"{path}: the file has {len(raw)} bytes, expected a multiple of {size}, and not 0")
    records = raw.reshape(-1, size)
    return _cifar_part(path, records[:, 1:], records[:, 0])


def _cifar_python(path: Path) -> Part:
    """A pickled dict of an array (N, 3072) and a list of classes, as NumPy of Python 2 wrote it."""
    unreadable = f"{path}: the file is not of CIFAR-10's Python layout; cifar10(download=True) takes the binary layout"
    try:
        content = python_layout.contents(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{unreadable} ({error})") from None
    match content:
        case {
            "data": SetUp(
                Call("numpy.core.multiarray _reconstruct"),
                (_, (int(n), int(pixels)), SetUp(Call("numpy dtype", ("u1", *_))), False, str(text)),
            ),
            "labels": list(labels),
        } if len(text) == n * pixels and pixels == math.prod(_CIFAR_IMAGE) and len(labels) == n > 0:
            if not all(type(label) is int and 0 <= label <= 9 for label in labels):
                raise ValueError(f"{path}: the labels are not all integers in 0..9")
            data = np.frombuffer(text.encode("latin-1"), np.uint8).reshape(n, pixels)
            return _cifar_part(path, data, np.array(labels, np.uint8))
    raise ValueError(unreadable)


def _cifar_part(path: Path, pixels: np.ndarray, labels: np.ndarray) -> Part:
    if labels.max() > 9:
        raise ValueError(f"{path}: a label is {labels.max()}, expected 0..9")
    return pixels.reshape(-1, *_CIFAR_IMAGE), labels

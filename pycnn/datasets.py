"""Data to learn from: each dataset as ((x, y), (x_test, y_test)).

x is float32 in 0..1 of shape (N, C, H, W), y is int64 of shape (N,). `digits` ships with the package. The
others are read from files, which are looked for in the folder `path` if it is given, else in the dataset's
folder (`optdigits/`, `mnist/`) under the environment variable PYCNN_DATA, else under ~/.cache/pycnn;
`download=True` fetches what is missing. A new dataset is a row in `_SOURCES` and a function of two lines.
"""

import gzip
import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from . import shapes
from .io import replacing

Part = tuple[np.ndarray, np.ndarray]
Parts = tuple[Part, Part]


def digits(per_class: int | None = None) -> Parts:
    """1,797 handwritten digits, x (N, 1, 8, 8), from a file in the package: 1,442 for training, 355 to test.

    The test part is every fifth image of each class, in the order of the original file. The split thus is
    always the same, stratified, and both parts hold digits of all 13 writers; `optdigits` is the harder test,
    with writers that the training part does not know. `per_class=k` keeps the first k of each class in both parts.
    """
    with np.load(Path(__file__).with_name("data") / "digits.npz", allow_pickle=False) as data:
        x, y = data["x"][:, np.newaxis], data["y"]
    test = np.zeros(len(y), bool)
    for label in range(10):
        test[np.flatnonzero(y == label)[4::5]] = True
    parts = (x[~test], y[~test]), (x[test], y[test])
    return tuple(_scaled(_first(part, _checked_per_class("digits", per_class)), 16) for part in parts)


def optdigits(
    path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None
) -> Parts:
    """Handwritten digits of the UCI repository, x (N, 1, 8, 8): 3,823 for training, 1,797 to test.

    `per_class=k` keeps the first k of each class (all, where there are fewer) in both parts.
    FileNotFoundError if the files are not found, ValueError if they are damaged.
    """
    return _load("optdigits", path, download, per_class)


def mnist(path: str | os.PathLike[str] | None = None, download: bool = False, per_class: int | None = None) -> Parts:
    """The MNIST digits, x (N, 1, 28, 28): 60,000 for training, 10,000 to test; files gzipped or not.

    `per_class=k` keeps the first k of each class (all, where there are fewer) in both parts.
    FileNotFoundError if the files are not found, ValueError if they are damaged.
    """
    return _load("mnist", path, download, per_class)


def split(x: Any, y: Any, fractions: Sequence[float] = (0.7, 0.2, 0.1), seed: int | None = 0) -> list[Part]:
    """Shuffled parts of (x, y), one for each fraction, each with the classes in the same proportions.

    x is of shape (N, ...), y holds N integer labels. No sample is in two parts; with fractions that sum to 1,
    each is in one. `seed=None` gives another split each time. ValueError if a part would be empty.
    """
    x, y = np.asarray(x), np.asarray(y)
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ValueError(f"[split] y must be integer labels of shape (N,), got {y.dtype} of shape {y.shape}")
    if x.ndim == 0 or len(x) != len(y):
        raise ValueError(f"[split] x has shape {x.shape}, expected ({len(y)}, ...) as y holds {len(y)} labels")
    shares = _checked_fractions(fractions)
    rng = np.random.default_rng(None if seed is None else shapes.integer("split", "seed", seed))

    # Spread each class evenly over 0..1, by chance within its spacing: any cut of that line is stratified.
    position = np.empty(len(y))
    for label in np.unique(y):
        members = rng.permutation(np.flatnonzero(y == label))
        position[members] = (np.arange(len(members)) + rng.random()) / len(members)
    order = np.argsort(position, kind="stable")

    stops = [round(float(total) * len(y)) for total in np.cumsum(shares)]
    parts = []
    for share, start, stop in zip(shares, [0, *stops], stops, strict=False):
        if start == stop:
            raise ValueError(f"[split] fractions: {share:g} of {len(y)} samples leaves a part empty")
        chosen = rng.permutation(order[start:stop])
        parts.append((x[chosen], y[chosen]))
    return parts


def _checked_fractions(fractions: Any) -> list[float]:
    if not isinstance(fractions, (Sequence, np.ndarray)) or isinstance(fractions, str) or len(fractions) == 0:
        raise TypeError(f"[split] fractions must be a sequence of numbers, got {fractions!r}")
    shares = [shapes.number("split", f"fractions[{i}]", share, 0, 1) for i, share in enumerate(fractions)]
    # The margin is for rounding: 0.7 + 0.2 + 0.1 and the like need not be exactly 1.
    if 0 in shares or sum(shares) > 1 + 1e-9:
        raise ValueError(f"[split] fractions must be positive and sum to at most 1, got {fractions!r}")
    return shares


# Finding and fetching


@dataclass(frozen=True)
class _Source:
    """Where a dataset comes from. Its name in `_SOURCES` is also its folder's."""

    url: str  # of the folder the files are in
    files: dict[str, str]  # name: SHA-256, in the order `read` expects
    read: Callable[[list[Path]], Parts]  # to uint8 (N, C, H, W) and uint8 (N,)
    white: int  # the pixel value that becomes 1.0


def _load(name: str, path: Any, download: Any, per_class: Any) -> Parts:
    source = _SOURCES[name]
    per_class = _checked_per_class(name, per_class)
    files = _find(name, source, _folders(name, path), shapes.boolean(name, "download", download))
    try:
        training, test = source.read(files)
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None
    # Chosen before scaled: float32 takes four times the memory.
    return _scaled(_first(training, per_class), source.white), _scaled(_first(test, per_class), source.white)


def _folders(name: str, path: Any) -> list[Path]:
    """The places to look in; a download goes to the first."""
    if path is not None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"[{name}] path must be the folder of the files, got {path!r}")
        return [Path(path)]
    data = os.environ.get("PYCNN_DATA")
    roots = ([Path(data)] if data else []) + [Path.home() / ".cache" / "pycnn"]
    return [root / name for root in roots]


def _find(name: str, source: _Source, folders: list[Path], download: bool) -> list[Path]:
    for folder in folders:
        found = [path for file in source.files if (path := _existing(folder, file))]
        if len(found) == len(source.files):
            return found
    if not download:
        places = " or ".join(map(str, folders))
        raise FileNotFoundError(
            f"[{name}] {', '.join(source.files)} were not found together in {places}: "
            f"set PYCNN_DATA to a folder that holds {name}/ with these files, pass their folder as path, "
            "or pass download=True"
        )
    folder = folders[0]
    return [
        _existing(folder, file) or _fetch(name, source.url + file, folder / file, sha256)
        for file, sha256 in source.files.items()
    ]


def _existing(folder: Path, file: str) -> Path | None:
    """The file, or the same one unpacked, if it is there."""
    candidates = (folder / file, folder / file.removesuffix(".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _fetch(name: str, url: str, target: Path, sha256: str) -> Path:
    """Download `url` to `target`, which appears only if its contents have the expected hash."""
    import http.client  # these two take as long to import as all of pycnn
    import urllib.error
    import urllib.request

    target.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with replacing(target) as file:
        try:
            with urllib.request.urlopen(url, timeout=60) as response:
                while chunk := response.read(1 << 20):
                    digest.update(chunk)
                    file.write(chunk)
        except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
            raise OSError(f"[{name}] {url} could not be downloaded: {error}") from error
        if digest.hexdigest() != sha256:
            raise ValueError(f"[{name}] {url} has SHA-256 {digest.hexdigest()}, expected {sha256}; it was not kept")
    return target


def _checked_per_class(name: str, per_class: Any) -> int | None:
    return None if per_class is None else shapes.integer(name, "per_class", per_class, 1)


def _first(part: Part, per_class: int | None) -> Part:
    """The first `per_class` samples of each class, in their order."""
    x, y = part
    if per_class is None:
        return part
    kept = np.sort(np.concatenate([np.flatnonzero(y == label)[:per_class] for label in np.unique(y)]))
    return x[kept], y[kept]


def _scaled(part: Part, white: int) -> Part:
    x, y = part
    return np.divide(x, np.float32(white), dtype=np.float32), y.astype(np.int64)


# Reading


def _read_text(files: list[Path]) -> Parts:
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


def _read_idx(files: list[Path]) -> Parts:
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


_SOURCES = {
    "optdigits": _Source(
        url="https://archive.ics.uci.edu/ml/machine-learning-databases/optdigits/",
        files={
            "optdigits.tra": "e1b683cc211604fe8fd8c4417e6a69f31380e0c61d4af22e93cc21e9257ffedd",
            "optdigits.tes": "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
        },
        read=_read_text,
        white=16,
    ),
    "mnist": _Source(
        url="https://ossci-datasets.s3.amazonaws.com/mnist/",
        files={
            "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
            "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
            "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
            "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
        },
        read=_read_idx,
        white=255,
    ),
}

"""Where data sets come from: finding their files, fetching them, and the table of them."""

import hashlib
import os
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pycnn import shapes
from pycnn.datasets import formats
from pycnn.datasets.parts import Parts, checked_per_class, first, scaled
from pycnn.io import replacing


@dataclass(frozen=True)
class Source:
    """A form in which a data set is published."""

    folder: str  # its name under PYCNN_DATA
    read: Callable[[list[Path]], Parts]  # to uint8 (N, C, H, W) and uint8 (N,)
    white: int  # the pixel value that becomes 1.0
    url: str = ""  # of the folder that `downloads` are in
    downloads: dict[str, str] | None = None  # name: SHA-256
    archived: tuple[str, ...] = ()  # the files, where the download is an archive that holds them

    @property
    def files(self) -> tuple[str, ...]:
        """What `read` expects, in its order."""
        return self.archived or tuple(self.downloads)


def load(name: str, path: Any, download: Any, per_class: Any) -> Parts:
    """The data set `name`: found, or downloaded if asked, read, the first `per_class` of each class, scaled."""
    per_class = checked_per_class(name, per_class)
    source, files = _find(name, path, shapes.boolean(name, "download", download))
    try:
        training, test = source.read(files)
    except ValueError as error:
        raise ValueError(f"[{name}] {error}") from None
    # Chosen before scaled: float32 takes four times the memory.
    return scaled(first(training, per_class), source.white), scaled(first(test, per_class), source.white)


def _find(name: str, path: Any, download: bool) -> tuple[Source, list[Path]]:
    """The form that was found, and its files."""
    forms = SOURCES[name]
    for source in forms:
        for folder in _folders(name, source, path):
            found = [file for wanted in source.files if (file := _existing(folder, wanted))]
            if len(found) == len(source.files):
                return source, found
    source = forms[0]
    if not download:
        looked_for = "; nor ".join(
            f"{', '.join(form.files)} together in {' or '.join(map(str, _folders(name, form, path)))}" for form in forms
        )
        raise FileNotFoundError(
            f"[{name}] did not find {looked_for}: set PYCNN_DATA to a folder that holds {source.folder}/ "
            "with these files, pass their folder as path, or pass download=True"
        )
    return source, _download(name, source, _folders(name, source, path)[0])


def _folders(name: str, source: Source, path: Any) -> list[Path]:
    """The places to look in; a download goes to the first."""
    if path is not None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"[{name}] path must be the folder of the files, got {path!r}")
        return [Path(path)]
    data = os.environ.get("PYCNN_DATA")
    roots = ([Path(data)] if data else []) + [Path.home() / ".cache" / "pycnn"]
    return [root / source.folder for root in roots]


def _existing(folder: Path, file: str) -> Path | None:
    """The file, or the same one unpacked, if it is there."""
    candidates = (folder / file, folder / file.removesuffix(".gz"))
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def _download(name: str, source: Source, folder: Path) -> list[Path]:
    """Fetches what is missing."""
    if not source.archived:
        return [
            _existing(folder, file) or _fetch(name, source.url + file, folder / file, sha256)
            for file, sha256 in source.downloads.items()
        ]
    ((file, sha256),) = source.downloads.items()
    archive = _fetch(name, source.url + file, folder / file, sha256)
    try:
        return _unpack(name, archive, source)
    finally:
        archive.unlink()


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


def _unpack(name: str, archive: Path, source: Source) -> list[Path]:
    """Writes the files that the source names, and no others, next to the archive."""
    targets = [archive.with_name(file) for file in source.archived]
    with tarfile.open(archive) as members:
        for target in targets:
            member = members.extractfile(f"{source.folder}/{target.name}")
            if member is None:
                raise ValueError(f"[{name}] {archive}: {source.folder}/{target.name} is not a file")
            with replacing(target) as file:
                shutil.copyfileobj(member, file)
    return targets


_CIFAR10 = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")

# The forms of each data set; the first is the one to download.
SOURCES = {
    "optdigits": [
        Source(
            folder="optdigits",
            url="https://archive.ics.uci.edu/ml/machine-learning-databases/optdigits/",
            downloads={
                "optdigits.tra": "e1b683cc211604fe8fd8c4417e6a69f31380e0c61d4af22e93cc21e9257ffedd",
                "optdigits.tes": "6ebb3d2fee246a4e99363262ddf8a00a3c41bee6014c373ed9d9216ba7f651b8",
            },
            read=formats.read_text,
            white=16,
        )
    ],
    "mnist": [
        Source(
            folder="mnist",
            url="https://ossci-datasets.s3.amazonaws.com/mnist/",
            downloads={
                "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
                "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
                "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
            },
            read=formats.read_idx,
            white=255,
        )
    ],
    "fashion_mnist": [
        Source(
            folder="fashion_mnist",
            url="https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            downloads={
                "train-images-idx3-ubyte.gz": "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                "train-labels-idx1-ubyte.gz": "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
                "t10k-images-idx3-ubyte.gz": "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
                "t10k-labels-idx1-ubyte.gz": "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            },
            read=formats.read_idx,
            white=255,
        )
    ],
    "cifar10": [
        Source(
            folder="cifar-10-batches-bin",
            url="https://www.cs.toronto.edu/~kriz/",
            downloads={"cifar-10-binary.tar.gz": "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
            archived=tuple(f"{file}.bin" for file in _CIFAR10),
            read=formats.read_cifar,
            white=255,
        ),
        Source(folder="cifar-10-batches-py", archived=_CIFAR10, read=formats.read_cifar_python, white=255),
    ],
}

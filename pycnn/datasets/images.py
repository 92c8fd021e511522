"""Images in folders, a folder a class."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pycnn import shapes
from pycnn.datasets.parts import checked_per_class
from pycnn.progress import tqdm

if TYPE_CHECKING:
    from PIL import Image

OP = "image_folder"
MODES = {"RGB": 3, "L": 1}


def image_folder(
    path: str | os.PathLike[str],
    size: int | tuple[int, int],
    classes: list[str] | None = None,
    per_class: int | None = None,
    *,
    mode: str = "RGB",
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """x (N, C, H, W) in 0..1, y (N,) and the class names from the images in the folders path/CLASS.

    `size` is (H, W), or an int for both; each image is resized to it (bilinear, without keeping its proportions). The
    classes are the folders' names in order, or those in `classes`, in that order. In a folder the images are taken in
    the order of their names, all, or the first `per_class`; files without the suffix of an image are passed over.
    mode "RGB" gives three channels, "L" grey in one, whatever the files hold: 16 bits become 8, transparency is
    dropped, of an animation the first image is taken. Needs Pillow (pip install pycnn[images]).

    FileNotFoundError if the folder is not there, ValueError for a broken image (it names the file), an absent class
    or a class without images.
    """
    try:
        from PIL import Image
    except ImportError:
        raise ImportError(f"[{OP}] images need Pillow: pip install pycnn[images]") from None
    height, width = shapes.pair(OP, "size", size, 1)
    per_class = checked_per_class(OP, per_class)
    if mode not in MODES:
        raise ValueError(f"[{OP}] mode must be one of {', '.join(MODES)}, got {mode!r}")
    folder = _checked_folder(path)
    names = _class_names(folder, classes)
    suffixes = frozenset(suffix for suffix, form in Image.registered_extensions().items() if form in Image.OPEN)
    files = [_images(folder / name, suffixes)[:per_class] for name in names]

    x = shapes.empty(OP, (sum(map(len, files)), MODES[mode], height, width))
    y = np.repeat(np.arange(len(names)), [len(paths) for paths in files])
    paths = [file for of_class in files for file in of_class]
    bar = paths if tqdm is None else tqdm(paths, desc=str(folder), unit=" images", disable=None)
    for image, file in zip(x, bar, strict=True):
        pixels = _read(file, mode, (width, height))
        image[...] = pixels.reshape(height, width, -1).transpose(2, 0, 1)
    x /= np.float32(255)
    return x, y, names


def _checked_folder(path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"[{OP}] path must be a folder, got {path!r}")
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"[{OP}] path: there is no folder {str(folder)!r}")
    return folder


def _class_names(folder: Path, classes: Any) -> list[str]:
    found = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not found:
        raise ValueError(f"[{OP}] path: {folder} holds no folders, expected one for each class")
    if classes is None:
        return found
    if not (isinstance(classes, (list, tuple)) and all(isinstance(name, str) for name in classes)):
        raise TypeError(f"[{OP}] classes must be a list of folder names, got {classes!r}")
    if not classes or len(set(classes)) < len(classes) or not set(classes) <= set(found):
        raise ValueError(
            f"[{OP}] classes must be different names among the folders {', '.join(found)}, got {list(classes)}"
        )
    return list(classes)


def _images(folder: Path, suffixes: frozenset[str]) -> list[Path]:
    images = [file for file in folder.iterdir() if file.suffix.lower() in suffixes and not file.name.startswith(".")]
    if not images:
        raise ValueError(f"[{OP}] {folder} holds no images")
    return sorted(images)


def _read(file: Path, mode: str, size: tuple[int, int]) -> np.ndarray:
    """The pixels of an image file, uint8 (height, width) or (height, width, 3)."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(_eight_bits(image).convert(mode).resize(size, Image.Resampling.BILINEAR))
    except Exception as error:  # Pillow's decoders raise whatever a broken file makes them stumble over
        raise ValueError(f"[{OP}] {file} cannot be read as an image: {error}") from error


def _eight_bits(image: "Image.Image") -> "Image.Image":
    """Grey of 16 bits as grey of 8; conversion alone would cut off all above 255."""
    from PIL import Image

    if not image.mode.startswith("I"):
        return image
    return Image.fromarray((np.asarray(image) >> 8).clip(0, 255).astype(np.uint8))

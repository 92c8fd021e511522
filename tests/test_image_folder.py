"""Images in folders."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from pycnn.datasets import image_folder

Image = pytest.importorskip("PIL.Image")
RNG = np.random.default_rng(0)


def save(path, pixels, mode=None, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(np.asarray(pixels))
    (image if mode is None else image.convert(mode)).save(path, **options)


@pytest.fixture
def folder(tmp_path):
    """Two classes of 4x6 images, whose red is 10 times the class, and green the number in it."""
    for label, (name, count) in enumerate([("ant", 3), ("bee", 2)]):
        for number in range(count):
            pixels = np.full((4, 6, 3), (10 * label, number, 255), np.uint8)
            save(tmp_path / name / f"{number}.png", pixels)
    (tmp_path / "notes.txt").write_text("no class")
    (tmp_path / "ant" / "Thumbs.db").write_text("no image")
    (tmp_path / "ant" / "scan.pdf").write_text("Pillow writes these, but does not read them")
    (tmp_path / "ant" / ".hidden.png").write_text("no image")
    (tmp_path / ".cache").mkdir()
    return tmp_path


def test_classes_order_and_values(folder):
    x, y, names = image_folder(folder, (4, 6))
    assert names == ["ant", "bee"]
    assert x.shape == (5, 3, 4, 6) and x.dtype == np.float32 and x.flags.c_contiguous
    assert y.tolist() == [0, 0, 0, 1, 1] and y.dtype == np.int64
    np.testing.assert_array_equal(x[:, 0, 0, 0], np.float32([0, 0, 0, 10, 10]) / np.float32(255))
    np.testing.assert_array_equal(x[:, 1, 3, 5], np.float32([0, 1, 2, 0, 1]) / np.float32(255))
    assert (x[:, 2] == 1).all()


def test_classes_and_per_class_choose(folder):
    x, y, names = image_folder(str(folder), 4, classes=("bee", "ant"), per_class=2)
    assert names == ["bee", "ant"] and y.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(x[:, 1, 0, 0] * 255, [0, 1, 0, 1], rtol=1e-6)
    x, y, names = image_folder(folder, 4, ["bee"])
    assert names == ["bee"] and y.tolist() == [0, 0] and x.shape == (2, 3, 4, 4)


def test_rows_and_columns_are_not_exchanged(tmp_path):
    pixels = RNG.integers(0, 256, (5, 7, 3)).astype(np.uint8)
    save(tmp_path / "a" / "a.png", pixels)
    x, _, _ = image_folder(tmp_path, (5, 7))
    np.testing.assert_array_equal(x[0], pixels.transpose(2, 0, 1) / np.float32(255))
    assert image_folder(tmp_path, (3, 9))[0].shape == (1, 3, 3, 9)


def test_resizing_averages(tmp_path):
    board = np.indices((64, 64)).sum(axis=0) % 2 * 255
    save(tmp_path / "a" / "a.png", board.astype(np.uint8))
    np.testing.assert_allclose(image_folder(tmp_path, 8)[0], 0.5, atol=0.05)


GREY = RNG.integers(0, 256, (6, 6)).astype(np.uint8)
COLOURS = RNG.integers(0, 256, (6, 6, 4)).astype(np.uint8)


@pytest.mark.parametrize(
    ("file", "pixels", "mode", "expected"),
    [
        ("a.png", GREY, None, GREY),
        ("a.bmp", GREY, "1", None),
        ("a.png", GREY, "LA", GREY),
        ("a.gif", GREY, "P", GREY),
        ("a.png", COLOURS, None, COLOURS[..., :3]),
        ("a.tif", COLOURS[..., :3], "CMYK", None),
        ("a.jpeg", COLOURS[..., :3], "CMYK", None),
        ("a.jpg", COLOURS[..., :3], "YCbCr", None),
        ("a.PNG", GREY.astype(np.uint16) * 257, None, GREY),
        ("a.tif", GREY.astype(np.int32) * 256, None, GREY),
        ("a.tif", GREY.astype(np.float32), None, GREY),
    ],
)
def test_any_mode(tmp_path, file, pixels, mode, expected):
    save(tmp_path / "a" / file, pixels, mode)
    x, _, _ = image_folder(tmp_path, 6)
    grey, _, _ = image_folder(tmp_path, 6, mode="L")
    assert x.shape == (1, 3, 6, 6) and grey.shape == (1, 1, 6, 6)
    assert 0 <= x.min() < x.max() <= 1
    if expected is not None:
        rgb = np.broadcast_to(expected.reshape(6, 6, -1), (6, 6, 3)).transpose(2, 0, 1)
        np.testing.assert_array_equal(x[0], rgb / np.float32(255))
    if expected is GREY:
        np.testing.assert_array_equal(grey[0, 0], GREY / np.float32(255))


def test_the_first_image_of_an_animation(tmp_path):
    frames = [Image.new("L", (4, 4), value) for value in (51, 255)]
    (tmp_path / "a").mkdir()
    frames[0].save(tmp_path / "a" / "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(image_folder(tmp_path, 4)[0], np.full((1, 3, 4, 4), np.float32(51) / 255))


@pytest.mark.parametrize("file", ["2.png", "2.jpg"])
@pytest.mark.parametrize("kept", [0, 3, 60, 0.5, 0.8])
def test_a_broken_image_is_named(folder, file, kept):
    path = folder / "bee" / file
    save(path, RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8))
    raw = path.read_bytes()
    path.write_bytes(raw[: kept if isinstance(kept, int) else int(kept * len(raw))])
    with pytest.raises(ValueError, match=rf"\[image_folder\] .*bee.{file} cannot be read as an image"):
        image_folder(folder, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "match"),
    [
        ((4,), {"classes": ["cat"]}, ValueError, "different names among the folders ant, bee, got .'cat'."),
        ((4,), {"classes": ["ant", "ant"]}, ValueError, "different names"),
        ((4,), {"classes": []}, ValueError, "different names"),
        ((4,), {"classes": "ant"}, TypeError, "classes must be a list of folder names, got 'ant'"),
        ((4,), {"classes": [1]}, TypeError, "classes must be a list"),
        ((4,), {"per_class": 0}, ValueError, "per_class must be"),
        ((4,), {"mode": "RGBA"}, ValueError, "mode must be one of RGB, L, got 'RGBA'"),
        ((0,), {}, ValueError, "size must be"),
        ((2.5,), {}, TypeError, "size must be"),
        (((1, 2, 3),), {}, ValueError, "size must be an integer or two"),
    ],
)
def test_arguments_are_checked(folder, arguments, options, error, match):
    with pytest.raises(error, match=rf"\[image_folder\] .*{match}"):
        image_folder(folder, *arguments, **options)


def test_folders_are_checked(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\[image_folder\] path: there is no folder .*absent"):
        image_folder(tmp_path / "absent", 4)
    with pytest.raises(TypeError, match="path must be a folder, got 3"):
        image_folder(3, 4)
    with pytest.raises(ValueError, match="holds no folders, expected one for each class"):
        image_folder(tmp_path, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty holds no images"):
        image_folder(tmp_path, 4)


def test_without_pillow(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match=r"pycnn\[images\]"):
        image_folder(folder, 4)


@pytest.mark.parametrize("bar", [True, False])
def test_progress(folder, monkeypatch, bar):
    shown = []
    module = sys.modules["pycnn.datasets.images"]
    monkeypatch.setattr(module, "tqdm", (lambda files, **_: shown.append(len(files)) or files) if bar else None)
    assert len(image_folder(folder, 4)[1]) == 5
    assert shown == ([5] if bar else [])


DATA = Path(os.environ.get("PYCNN_DATA", "absent")) / "cats_dogs"


@pytest.mark.skipif(not DATA.is_dir(), reason="PYCNN_DATA names no folder that holds cats_dogs/")
def test_cats_and_dogs():
    x, y, names = image_folder(DATA / "test", 50, per_class=20)
    assert names == ["cats", "dogs"] and x.shape == (40, 3, 50, 50)
    assert np.bincount(y).tolist() == [20, 20]
    assert 0.3 < x.mean() < 0.6 and x.std() > 0.1

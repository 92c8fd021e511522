import functools
import gzip
import hashlib
import http.server
import io
import os
import struct
import tarfile
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import pycnn as cnn
from pycnn import datasets
from pycnn.datasets import sources

RNG = np.random.default_rng(0)


def in_data(name):
    """Skips a test of real data where there is none; whether it is sound is the test's business."""
    data = os.environ.get("PYCNN_DATA")
    found = bool(data) and (Path(data) / name).is_dir()
    return pytest.mark.skipif(not found, reason=f"PYCNN_DATA names no folder that holds {name}/")


def check_part(part, count, size):
    x, y = part
    assert x.shape == (count, 1, size, size)
    assert x.dtype == np.float32 and x.flags.c_contiguous and x.flags.writeable
    assert x.min() == 0 and x.max() == 1
    assert y.shape == (count,) and y.dtype == np.int64
    np.testing.assert_array_equal(np.unique(y), np.arange(10))


# Small files of the real formats


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + b"".join(size.to_bytes(4, "big") for size in array.shape) + array.tobytes()


def mnist_files(count=30, test_count=20):
    files = {}
    for part, n in (("train", count), ("t10k", test_count)):
        files[f"{part}-images-idx3-ubyte"] = RNG.integers(0, 256, (n, 28, 28)).astype(np.uint8)
        files[f"{part}-labels-idx1-ubyte"] = (np.arange(n) * 7 % 10).astype(np.uint8)
    return files


@pytest.fixture
def mnist_folder(tmp_path):
    for name, array in mnist_files().items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(idx(array), 1))
    return tmp_path


def optdigits_rows(count):
    return np.column_stack([RNG.integers(0, 17, (count, 64)), np.arange(count) * 3 % 10])


def csv(rows):
    return "".join(",".join(map(str, row)) + "\n" for row in rows)


@pytest.fixture
def optdigits_folder(tmp_path):
    (tmp_path / "optdigits.tra").write_text(csv(optdigits_rows(30)))
    (tmp_path / "optdigits.tes").write_text(csv(optdigits_rows(20)))
    return tmp_path


CIFAR_FILES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
CIFAR_ARCHIVE = "cifar-10-binary.tar.gz"


def cifar_batch(count=7):
    return RNG.integers(0, 256, (count, 3072)).astype(np.uint8), (np.arange(count) * 3 % 10).astype(np.uint8)


def cifar_binary(pixels, labels):
    return np.column_stack([labels, pixels]).tobytes()


def short(text):
    return b"U" + bytes([len(text)]) + text


def cifar_pickle(pixels, labels):
    """The instructions of the published files, which NumPy of Python 2 wrote."""
    dtype = b"cnumpy\ndtype\nq\x0a" + short(b"u1") + b"K\x00K\x01\x87Rq\x0b(K\x03" + short(b"|")
    dtype += b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
    array = b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85" + short(b"b") + b"\x87Rq\x09"
    array += b"(K\x01M" + struct.pack("<H", len(pixels)) + b"M\x00\x0c\x86" + dtype + b"\x89"
    array += b"T" + struct.pack("<I", pixels.size) + pixels.tobytes() + b"tb"
    items = short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
    items += short(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    items += short(b"data") + b"q\x06" + array
    items += short(b"filenames") + b"q\x0c]q\x0d(" + b"".join(short(b"a.png") for _ in labels) + b"e"
    return b"\x80\x02}q\x01(" + items + b"u."


CIFAR_LAYOUTS = {"cifar-10-batches-bin": (".bin", cifar_binary), "cifar-10-batches-py": ("", cifar_pickle)}


def write_cifar(folder, layout, batches):
    folder.mkdir(parents=True, exist_ok=True)
    suffix, encode = CIFAR_LAYOUTS[layout]
    for name, batch in zip(CIFAR_FILES, batches, strict=True):
        (folder / (name + suffix)).write_bytes(encode(*batch))


def cifar_archive(folder):
    """Writes what is published, files that nobody asks for among them; its SHA-256."""
    with tarfile.open(folder / CIFAR_ARCHIVE, "w:gz") as archive:
        for name in (*CIFAR_FILES, "../outside"):
            content = cifar_binary(*cifar_batch(2))
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return hashlib.sha256((folder / CIFAR_ARCHIVE).read_bytes()).hexdigest()


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    """A machine without any data."""
    monkeypatch.delenv("PYCNN_DATA", raising=False)
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    return tmp_path


# digits


def test_digits():
    training, test = cnn.datasets.digits()
    check_part(training, 1442, 8)
    check_part(test, 355, 8)
    counts, test_counts = np.bincount(training[1]), np.bincount(test[1])
    np.testing.assert_array_equal(test_counts, (counts + test_counts) // 5)


def test_digits_are_scikit_learns():
    load_digits = pytest.importorskip("sklearn.datasets").load_digits
    (x, y), (x_test, y_test) = datasets.digits()
    original = load_digits()
    expected = {(*image.ravel(), label) for image, label in zip(original.images, original.target, strict=True)}
    images, labels = np.concatenate([x, x_test]) * 16, np.concatenate([y, y_test])
    assert len(labels) == len(original.target)
    assert {(*image.ravel(), label) for image, label in zip(images, labels, strict=True)} == expected
    np.testing.assert_array_equal(x[0, 0] * 16, original.images[0])


def test_digits_are_the_callers_own():
    (x, y), _ = datasets.digits()
    x[:] = 2
    y[:] = 2
    (x, y), _ = datasets.digits()
    assert x.max() == 1 and y.max() == 9


def test_the_file_in_the_package_is_small_and_attributed():
    data = Path(cnn.__file__).with_name("data")
    assert (data / "digits.npz").stat().st_size < 50_000
    assert "CC BY 4.0" in (data / "README.md").read_text()


# The real files


@in_data("optdigits")
def test_optdigits():
    training, test = datasets.optdigits()
    check_part(training, 3823, 8)
    check_part(test, 1797, 8)
    assert list(training[1][:5]) == [0, 0, 7, 4, 6]
    (x, y), (x_test, y_test) = datasets.digits()
    # The package's digits are this test part.
    np.testing.assert_array_equal(np.sort(np.concatenate([y, y_test])), np.sort(test[1]))
    assert np.concatenate([x, x_test]).sum(dtype=float) == test[0].sum(dtype=float)


@in_data("mnist")
def test_mnist():
    training, test = datasets.mnist()
    check_part(training, 60000, 28)
    check_part(test, 10000, 28)
    assert list(training[1][:5]) == [5, 0, 4, 1, 9]
    assert list(test[1][:5]) == [7, 2, 1, 0, 4]
    assert round(float(training[0].mean(dtype=float)), 4) == 0.1307  # the mean everyone normalises with


@in_data("mnist")
def test_mnist_per_class():
    training, test = datasets.mnist(per_class=100)
    for x, y in (training, test):
        assert x.shape == (1000, 1, 28, 28)
        np.testing.assert_array_equal(np.bincount(y), 100)
    assert list(training[1][:5]) == [5, 0, 4, 1, 9]


@in_data("cifar-10-batches-bin")
def test_cifar10():
    for (x, y), count in zip(datasets.cifar10(), (50000, 10000), strict=True):
        assert x.shape == (count, 3, 32, 32) and x.dtype == np.float32 and x.min() == 0 and x.max() == 1
        np.testing.assert_array_equal(np.bincount(y), count // 10)
        # Red, green and blue of CIFAR-10 have the means 0.491, 0.482 and 0.447.
        np.testing.assert_allclose(x.mean((0, 2, 3), dtype=float), [0.491, 0.482, 0.447], atol=0.01)


# Reading


def test_optdigits_values(optdigits_folder):
    rows = np.arange(65) % 17
    rows[64] = 9
    (optdigits_folder / "optdigits.tra").write_text(",".join(map(str, rows)))  # no newline at the end
    (x, y), (x_test, y_test) = datasets.optdigits(optdigits_folder)
    np.testing.assert_array_equal(x, (rows[:64] / 16).reshape(1, 1, 8, 8).astype(np.float32))
    assert y.tolist() == [9] and y.dtype == np.int64
    assert x_test.shape == (20, 1, 8, 8) and y_test.shape == (20,)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("suffix", [".gz", ""])
def test_mnist_packed_or_not(tmp_path, packed, suffix):
    files = mnist_files()
    for name, array in files.items():
        (tmp_path / (name + suffix)).write_bytes(gzip.compress(idx(array)) if packed else idx(array))
    (x, y), (x_test, y_test) = datasets.mnist(str(tmp_path))
    np.testing.assert_array_equal(x[:, 0], files["train-images-idx3-ubyte"] / np.float32(255))
    np.testing.assert_array_equal(y, files["train-labels-idx1-ubyte"])
    np.testing.assert_array_equal(x_test[:, 0], files["t10k-images-idx3-ubyte"] / np.float32(255))
    np.testing.assert_array_equal(y_test, files["t10k-labels-idx1-ubyte"])
    assert x.dtype == x_test.dtype == np.float32 and y.dtype == y_test.dtype == np.int64


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "the file is empty"),
        (csv(optdigits_rows(2)) + "\n", "line 3 is not integers"),
        (csv(optdigits_rows(3))[:-10], "line 3 has .* values, expected 65"),
        (csv(optdigits_rows(1))[:-1] + ",1\n", "line 1 has 66 values"),
        (csv(optdigits_rows(1)).replace(",", ";"), "line 1 is not integers"),
        (csv([[17] + [0] * 64]), "line 1 has values out of range"),
        (csv([[-1] + [0] * 64]), "line 1 has values out of range"),
        (csv([[10**30] + [0] * 64]), "line 1 has values out of range"),
        (csv([[0] * 64 + [10]]), "line 1 has values out of range"),
        (csv([["nan"] + [0] * 64]), "line 1 is not integers"),
        (csv([[1.5] + [0] * 64]), "line 1 is not integers"),
        ("é" * 100, "line 1 is not integers"),
    ],
)
@pytest.mark.parametrize("name", ["optdigits.tra", "optdigits.tes"])
def test_damaged_optdigits(optdigits_folder, name, text, match):
    (optdigits_folder / name).write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"\[optdigits\] .*{name}: {match}"):
        datasets.optdigits(optdigits_folder)


IMAGES, LABELS = "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
SOUND = mnist_files()
HUGE = bytes([0, 0, 8, 3]) + b"\xff" * 12


@pytest.mark.parametrize(
    ("name", "raw", "match"),
    [
        (IMAGES, b"", "magic number is , expected 00000803"),
        (IMAGES, b"\x00\x00\x08", "magic number is 000008, expected 00000803"),
        (IMAGES, idx(SOUND[IMAGES])[:10], "header is cut off"),
        (IMAGES, idx(SOUND[LABELS]), "magic number is 00000801, expected 00000803"),
        (IMAGES, b"\x00\x00\x0d\x03" + idx(SOUND[IMAGES])[4:], "magic number is 00000d03"),
        (IMAGES, b"<html>not found</html>", "magic number is 3c68746d"),
        (IMAGES, idx(SOUND[IMAGES])[:-1], "need 15680 bytes of data, found 15679"),
        (IMAGES, idx(SOUND[IMAGES])[:16], "need 15680 bytes of data, found 0"),
        (IMAGES, idx(SOUND[IMAGES]) + b"\0", "need 15680 bytes of data, found more"),
        (IMAGES, HUGE, "need 79228162458924105385300197375 bytes of data, found 0"),
        (IMAGES, idx(np.zeros((0, 28, 28), np.uint8)), "size of 0"),
        (IMAGES, idx(np.zeros((20, 27, 28), np.uint8)), "images are 27 x 28, expected 28 x 28"),
        (LABELS, idx(np.zeros(19, np.uint8)), "holds 19 labels for 20 images in .*t10k-images"),
        (LABELS, idx(np.full(20, 10, np.uint8)), r"a label is 10, expected 0\.\.9"),
        (LABELS, idx(SOUND[IMAGES]), "magic number is 00000803, expected 00000801"),
    ],
)
@pytest.mark.parametrize("packed", [True, False])
def test_damaged_mnist(mnist_folder, name, raw, match, packed):
    (mnist_folder / f"{name}.gz").write_bytes(gzip.compress(raw) if packed else raw)
    with pytest.raises(ValueError, match=rf"\[mnist\] .*{name}\.gz: .*{match}"):
        datasets.mnist(mnist_folder)


def test_damaged_gzip(mnist_folder):
    path = mnist_folder / f"{LABELS}.gz"
    sound = path.read_bytes()
    checksum = sound[:-8] + bytes([sound[-8] ^ 1]) + sound[-7:]
    stream = sound[:12] + b"\xff" * 8 + sound[20:]
    for raw in (*(sound[:size] for size in range(2, len(sound), 3)), checksum, stream, sound + b"tail"):
        path.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"\[mnist\] .*{LABELS}\.gz: the gzip file is damaged"):
            datasets.mnist(mnist_folder)


def test_fashion_mnist_has_mnists_format(mnist_folder):
    expected = datasets.mnist(mnist_folder)
    for part, expected_part in zip(datasets.fashion_mnist(mnist_folder), expected, strict=True):
        for array, expected_array in zip(part, expected_part, strict=True):
            np.testing.assert_array_equal(array, expected_array)


@pytest.mark.parametrize("layout", CIFAR_LAYOUTS)
def test_cifar10_layouts(nowhere, monkeypatch, layout):
    batches = [cifar_batch() for _ in CIFAR_FILES]
    write_cifar(nowhere / "data" / layout, layout, batches)
    monkeypatch.setenv("PYCNN_DATA", str(nowhere / "data"))
    for (x, y), (x_test, y_test) in (datasets.cifar10(), datasets.cifar10(nowhere / "data" / layout)):
        expected = np.concatenate([pixels for pixels, _ in batches[:5]]).reshape(35, 3, 32, 32)
        np.testing.assert_array_equal(x, expected / np.float32(255))
        np.testing.assert_array_equal(y, np.concatenate([labels for _, labels in batches[:5]]))
        np.testing.assert_array_equal(x_test, batches[5][0].reshape(7, 3, 32, 32) / np.float32(255))
        assert y_test.tolist() == batches[5][1].tolist()
        assert x.dtype == np.float32 and y.dtype == np.int64
    assert len(datasets.cifar10(per_class=1)[0][1]) == 7


PIXELS, CIFAR_LABELS = cifar_batch(2)
PICKLE = cifar_pickle(PIXELS, CIFAR_LABELS)


@pytest.mark.parametrize(
    ("layout", "raw", "match"),
    [
        ("cifar-10-batches-bin", b"", "the file has 0 bytes"),
        ("cifar-10-batches-bin", b"1" * 3072, "the file has 3072 bytes, expected a multiple of 3073"),
        ("cifar-10-batches-bin", b"\x0a" + b"1" * 3072, r"a label is 10, expected 0\.\.9"),
        ("cifar-10-batches-py", b"", "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE[:-1], "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE[:3000], r"download=True\) takes the binary layout"),
        ("cifar-10-batches-py", b"\x80\x02}q\x01.", "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", b"ccivil\nwar\n.", "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", b"I01\n.", "the instruction INT has no place in it"),
        ("cifar-10-batches-py", b"R.", "does not find what it needs"),
        ("cifar-10-batches-py", b"h\x07.", "does not find what it needs"),
        ("cifar-10-batches-py", b"K\x01K\x02K\x03s.", "does not find what it needs"),
        ("cifar-10-batches-py", PICKLE.replace(b"_reconstruct", b"_reconstruc_"), "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE.replace(b"U\x02u1", b"U\x02f1"), "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE.replace(b"M\x00\x0c", b"M\x01\x0c"), "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE.replace(b"(K\x00K\x03e", b"(K\x00e"), "not of CIFAR-10's Python layout"),
        ("cifar-10-batches-py", PICKLE.replace(b"(K\x00K\x03e", b"(K\x00K\x0ae"), "labels are not all integers"),
        ("cifar-10-batches-py", PICKLE.replace(b"(K\x00K\x03e", b"(K\x00Ne"), "labels are not all integers"),
    ],
)
def test_damaged_cifar10(tmp_path, layout, raw, match):
    write_cifar(tmp_path, layout, [cifar_batch(2) for _ in CIFAR_FILES])
    path = tmp_path / ("data_batch_3" + CIFAR_LAYOUTS[layout][0])
    assert path.read_bytes() != raw
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=rf"\[cifar10\] .*{path.name}: .*{match}"):
        datasets.cifar10(tmp_path)


def test_cifar10_runs_no_program(tmp_path):
    """A pickle that would write a file, were it unpickled."""
    victim = tmp_path / "written"
    program = b"cpathlib\nPath.touch\n(cpathlib\nPath\n(U" + bytes([len(str(victim))]) + str(victim).encode() + b"tRtR."
    write_cifar(tmp_path, "cifar-10-batches-py", [cifar_batch(2) for _ in CIFAR_FILES])
    (tmp_path / "test_batch").write_bytes(program)
    with pytest.raises(ValueError, match="not of CIFAR-10's Python layout"):
        datasets.cifar10(tmp_path)
    assert not victim.exists()


# per_class


def test_per_class_takes_the_first_of_each(optdigits_folder):
    everything = datasets.optdigits(optdigits_folder)
    for k in (1, 2, 100):
        for (x, y), (x_all, y_all) in zip(datasets.optdigits(optdigits_folder, per_class=k), everything, strict=True):
            kept = [i for i in range(len(y_all)) if np.count_nonzero(y_all[:i] == y_all[i]) < k]
            np.testing.assert_array_equal(x, x_all[kept])
            np.testing.assert_array_equal(y, y_all[kept])


def test_per_class_where_a_class_is_absent(mnist_folder):
    (mnist_folder / f"{LABELS}.gz").write_bytes(idx(np.array([3] * 15 + [8] * 5, np.uint8)))
    _, (x, y) = datasets.mnist(mnist_folder, per_class=np.int64(2))
    assert y.tolist() == [3, 3, 8, 8] and len(x) == 4


@pytest.mark.parametrize(
    ("k", "error"), [(0, ValueError), (-1, ValueError), (1.0, TypeError), (True, TypeError), ("1", TypeError)]
)
@pytest.mark.parametrize("load", [datasets.optdigits, datasets.mnist])
def test_per_class_is_checked(load, k, error):
    with pytest.raises(error, match=r"per_class must be .*got"):
        load("anywhere", per_class=k)


# Finding


@pytest.mark.parametrize("name", ["optdigits", "mnist", "fashion_mnist", "cifar-10-batches-bin"])
def test_not_found(nowhere, monkeypatch, name):
    load = getattr(datasets, name, datasets.cifar10)
    cache = nowhere / "home" / ".cache" / "pycnn" / name
    with pytest.raises(FileNotFoundError) as caught:
        load()
    assert str(cache) in str(caught.value)
    monkeypatch.setenv("PYCNN_DATA", str(nowhere / "data"))
    with pytest.raises(FileNotFoundError) as caught:
        load()
    for text in (name, str(nowhere / "data" / name), str(cache), "PYCNN_DATA", "download=True"):
        assert text in str(caught.value)
    with pytest.raises(FileNotFoundError) as caught:
        load(nowhere / "given")
    assert str(nowhere / "given") in str(caught.value) and str(cache) not in str(caught.value)
    assert os.listdir(nowhere) == []


def test_places_in_order(nowhere, monkeypatch):
    def place(folder, count):
        folder.mkdir(parents=True)
        for name in ("optdigits.tra", "optdigits.tes"):
            (folder / name).write_text(csv(optdigits_rows(count)))

    place(nowhere / "home" / ".cache" / "pycnn" / "optdigits", 11)
    monkeypatch.setenv("PYCNN_DATA", "")
    assert len(datasets.optdigits()[0][1]) == 11
    monkeypatch.setenv("PYCNN_DATA", str(nowhere / "data"))
    assert len(datasets.optdigits()[0][1]) == 11
    place(nowhere / "data" / "optdigits", 12)
    assert len(datasets.optdigits()[0][1]) == 12
    place(nowhere / "given", 13)
    assert len(datasets.optdigits(nowhere / "given")[0][1]) == 13
    (nowhere / "data" / "optdigits" / "optdigits.tes").unlink()  # an incomplete folder is passed over
    assert len(datasets.optdigits()[0][1]) == 11


def test_arguments_are_checked():
    with pytest.raises(TypeError, match=r"\[mnist\] path must be the folder of the files, got 3"):
        datasets.mnist(3)
    with pytest.raises(TypeError, match=r"\[mnist\] download must be True or False, got 1"):
        datasets.mnist(download=1)


# Downloading, from this machine to itself


class Handler(http.server.SimpleHTTPRequestHandler):
    requests: list[str] = []

    def log_message(self, *args):
        self.requests.append(self.path)


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """The table with an address on this machine: (folder behind it, paths asked for)."""
    root = tmp_path / "mirror"
    root.mkdir()
    monkeypatch.setattr(Handler, "requests", [])
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=root))
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    files = {}
    for name, text in (
        ("optdigits.tra", csv(optdigits_rows(30))),
        ("optdigits.tes", csv(optdigits_rows(20))),
    ):
        (root / name).write_text(text)
        files[name] = hashlib.sha256(text.encode()).hexdigest()
    url = f"http://127.0.0.1:{server.server_port}/"
    source = replace(sources.SOURCES["optdigits"][0], url=url, downloads=files)
    monkeypatch.setitem(sources.SOURCES, "optdigits", [source])
    cifar = replace(sources.SOURCES["cifar10"][0], url=url, downloads={CIFAR_ARCHIVE: cifar_archive(root)})
    monkeypatch.setitem(sources.SOURCES, "cifar10", [cifar])
    yield root, Handler.requests
    server.shutdown()
    server.server_close()
    thread.join()


def test_download(mirror, nowhere):
    _, requests = mirror
    (x, _), (x_test, _) = datasets.optdigits(download=True)
    assert len(x) == 30 and len(x_test) == 20
    cache = nowhere / "home" / ".cache" / "pycnn" / "optdigits"
    assert sorted(os.listdir(cache)) == ["optdigits.tes", "optdigits.tra"]
    assert sorted(requests) == ["/optdigits.tes", "/optdigits.tra"]
    datasets.optdigits()
    datasets.optdigits(download=True)
    assert len(requests) == 2  # what is there is not fetched again


def test_download_of_an_archive(mirror, tmp_path):
    root, requests = mirror
    folder = tmp_path / "given" / "deep"
    (x, _), (x_test, _) = datasets.cifar10(folder, download=True)
    assert (len(x), len(x_test)) == (10, 2)
    assert sorted(os.listdir(folder)) == [f"{name}.bin" for name in CIFAR_FILES]
    assert os.listdir(folder.parent) == ["deep"]
    assert requests == ["/" + CIFAR_ARCHIVE]
    (root / CIFAR_ARCHIVE).write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"\[cifar10\] .*has SHA-256"):
        datasets.cifar10(tmp_path / "other", download=True)
    assert os.listdir(tmp_path / "other") == []


def test_download_to_the_first_place(mirror, nowhere, monkeypatch):
    monkeypatch.setenv("PYCNN_DATA", str(nowhere / "data"))
    datasets.optdigits(nowhere / "given" / "deep", download=True)
    assert len(os.listdir(nowhere / "given" / "deep")) == 2
    datasets.optdigits(download=True)
    assert len(os.listdir(nowhere / "data" / "optdigits")) == 2
    assert not (nowhere / "home").exists()


def test_download_fetches_only_what_is_missing(mirror, tmp_path):
    root, requests = mirror
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "optdigits.tra").write_bytes((root / "optdigits.tra").read_bytes())
    datasets.optdigits(folder, download=True)
    assert requests == ["/optdigits.tes"]


def test_download_with_a_wrong_hash(mirror, tmp_path):
    root, _ = mirror
    (root / "optdigits.tra").write_text(csv(optdigits_rows(30)))
    with pytest.raises(ValueError, match=r"\[optdigits\] http://.*optdigits.tra has SHA-256 \w{64}, expected \w{64}"):
        datasets.optdigits(tmp_path / "given", download=True)
    assert os.listdir(tmp_path / "given") == []


def test_download_that_fails(mirror, tmp_path):
    root, _ = mirror
    (root / "optdigits.tes").unlink()
    with pytest.raises(OSError, match=r"\[optdigits\] http://.*optdigits.tes could not be downloaded: .*404"):
        datasets.optdigits(tmp_path / "given", download=True)
    assert os.listdir(tmp_path / "given") == ["optdigits.tra"]


def test_the_table_is_complete():
    for source, *_ in sources.SOURCES.values():
        assert source.url.startswith("https://") and source.url.endswith("/")
        assert all(len(bytes.fromhex(sha256)) == 32 for sha256 in source.downloads.values())


@in_data("optdigits")
def test_the_hashes_are_those_of_the_originals():
    folder = Path(os.environ["PYCNN_DATA"]) / "optdigits"
    for name, sha256 in sources.SOURCES["optdigits"][0].downloads.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == sha256


# split


def labelled(counts):
    """x that holds each sample's number, y with counts[i] of class i, mixed."""
    y = RNG.permutation(np.repeat(np.arange(len(counts)), counts))
    return np.arange(len(y), dtype=np.float32).reshape(-1, 1), y


@pytest.mark.parametrize("counts", [(100,) * 10, (7, 1, 50, 3, 0, 12), (5,) * 10, (10,)])
@pytest.mark.parametrize("fractions", [(0.7, 0.2, 0.1), (0.5, 0.5), (1,), (1 / 3,) * 3, [0.8, 0.2], (0.1,) * 10])
def test_split_uses_each_sample_once(counts, fractions):
    x, y = labelled(counts)
    parts = datasets.split(x, y, fractions)
    assert len(parts) == len(fractions)
    seen = np.concatenate([part_x[:, 0] for part_x, _ in parts]).astype(int)
    np.testing.assert_array_equal(np.sort(seen), np.arange(len(y)))
    np.testing.assert_array_equal(np.concatenate([part_y for _, part_y in parts]), y[seen])
    for (part_x, part_y), fraction in zip(parts, fractions, strict=True):
        assert part_x.dtype == x.dtype and part_y.dtype == y.dtype
        assert abs(len(part_y) - fraction * len(y)) <= 1
        for label, count in enumerate(counts):
            assert abs(np.count_nonzero(part_y == label) - fraction * count) <= 2


def test_split_is_exact_where_it_can_be():
    x, y = labelled((100, 200, 50))
    for (_, part_y), expected in zip(datasets.split(x, y), [(70, 140, 35), (20, 40, 10), (10, 20, 5)], strict=True):
        assert tuple(np.bincount(part_y)) == expected


def test_split_may_leave_samples_out():
    x, y = labelled((50, 50))
    parts = datasets.split(x, y, (0.2, 0.3))
    assert [len(part_y) for _, part_y in parts] == [20, 30]
    assert len(np.unique(np.concatenate([part_x for part_x, _ in parts]))) == 50


def test_split_depends_on_the_seed_alone():
    x, y = labelled((30, 30))
    first, again, other = (datasets.split(x, y, seed=seed)[0][0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(np.sort(first, axis=0), np.sort(other, axis=0))
    assert len(datasets.split(x, y, seed=None)) == 3


def test_split_shuffles_sorted_classes():
    y = np.repeat([0, 1], 100)
    (_, first), *_ = datasets.split(y, y)
    assert 40 < first[:70].sum() + 15 < 75  # about as many ones in the front half as in the back half


def test_split_takes_lists_and_images():
    parts = datasets.split([[1, 2]] * 10, list(range(5)) * 2, (0.5, 0.5))
    assert [part_x.shape for part_x, _ in parts] == [(5, 2), (5, 2)]
    assert [sorted(part_y) for _, part_y in parts] == [[0, 1, 2, 3, 4]] * 2
    x = np.zeros((10, 3, 4, 5), np.float32)
    assert datasets.split(x, np.zeros(10, int))[0][0].shape == (7, 3, 4, 5)


X, Y = np.zeros((10, 2)), np.zeros(10, int)


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ((X, np.zeros(9, int)), ValueError, r"x has shape \(10, 2\), expected \(9, ...\)"),
        ((np.float32(1), Y), ValueError, "x has shape"),
        ((X, np.zeros((10, 3), int)), ValueError, r"y must be integer labels of shape \(N,\)"),
        ((X, np.zeros(10)), ValueError, "y must be integer labels"),
        ((X[:0], Y[:0]), ValueError, "leaves a part empty"),
        ((X, Y, (0.99, 0.01)), ValueError, "fractions: 0.01 of 10 samples leaves a part empty"),
        ((X, Y, ()), TypeError, "fractions must be a sequence"),
        ((X, Y, 0.5), TypeError, "fractions must be a sequence of numbers, got 0.5"),
        ((X, Y, "0.5"), TypeError, "fractions must be a sequence"),
        ((X, Y, (0.5, "0.5")), TypeError, r"fractions\[1\] must be a number"),
        ((X, Y, (0.5, 0.6)), ValueError, "sum to at most 1"),
        ((X, Y, (1.0, 0.0)), ValueError, "must be positive"),
        ((X, Y, (1.5, -0.5)), ValueError, r"fractions\[0\] must be a finite number in 0..1"),
        ((X, Y, (0.5, float("nan"))), ValueError, r"fractions\[1\] must be a finite number"),
        ((X, Y, (0.5, 0.5), -1), ValueError, "seed must be in"),
        ((X, Y, (0.5, 0.5), 1.5), TypeError, "seed must be an integer"),
    ],
)
def test_split_refuses(arguments, error, match):
    with pytest.raises(error, match=rf"\[split\] .*{match}"):
        datasets.split(*arguments)


def test_digits_per_class():
    (x, y), (x_test, y_test) = datasets.digits(per_class=3)
    whole = datasets.digits()
    for labels in (y, y_test):
        assert np.bincount(labels).tolist() == [3] * 10
    np.testing.assert_array_equal(x[0], whole[0][0][0])
    assert len(x) == len(x_test) == 30

import hashlib
import json
import os
import stat
import struct
import sys

import numpy as np
import pytest

from pycnn import io

RNG = np.random.default_rng(0)


def write(path, header, data=b"", length=None):
    """A file with this header (an object, or raw bytes), sound or not."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape=(2,), begin=0, end=8, dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


def random_array(dtype, shape):
    return RNG.integers(0, 2 if dtype.kind == "b" else 100, shape).astype(dtype)


@pytest.mark.parametrize("code", io.DTYPES)
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 5), (1,) * 32])
def test_round_trip(tmp_path, code, shape):
    array = random_array(io.DTYPES[code], shape)
    io.save(tmp_path / "a", {"x": array})
    tensors, metadata = io.load(tmp_path / "a")
    assert metadata == {}
    assert list(tensors) == ["x"]
    assert tensors["x"].dtype == array.dtype
    assert tensors["x"].shape == shape
    np.testing.assert_array_equal(tensors["x"], array)


def test_round_trip_keeps_bits_order_and_metadata(tmp_path):
    special = np.array([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45], np.float32)
    tensors = {
        "b/weight": special,
        "mask": np.array([True, False, True]),
        'é " \\': np.arange(3),
        "": np.ones(2),
    }
    metadata = {"architecture": '{"layers": []}', "format": "1", "ключ": "\n"}
    io.save(str(tmp_path / "a"), tensors, metadata)
    loaded, texts = io.load(str(tmp_path / "a"))
    assert list(loaded) == list(tensors)
    assert texts == metadata
    for name, array in tensors.items():
        assert loaded[name].tobytes() == array.tobytes()


def test_loaded_arrays_are_the_callers_own(tmp_path):
    io.save(tmp_path / "a", {"x": np.zeros(3), "y": np.zeros(3)})
    tensors, _ = io.load(tmp_path / "a")
    tensors["x"][:] = 1
    assert tensors["x"].flags.owndata and tensors["x"].flags.writeable
    np.testing.assert_array_equal(tensors["y"], 0)
    np.testing.assert_array_equal(io.load(tmp_path / "a")[0]["x"], 0)


@pytest.mark.parametrize(
    "array",
    [
        np.arange(24.0).reshape(1, 2, 3, 4).transpose(0, 3, 1, 2),
        np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        np.arange(10)[::-2],
        np.arange(5, dtype=">i4"),
        np.arange(5, dtype=">f8"),
        np.broadcast_to(np.float32(3), (2, 2)),
        np.float32(1.5),
        np.arange(4, dtype=np.longlong),
    ],
    ids=[
        "channels-last",
        "fortran",
        "strided",
        "big-endian int",
        "big-endian float",
        "broadcast",
        "scalar",
        "q",
    ],
)
def test_any_memory_is_stored_in_c_order(tmp_path, array):
    io.save(tmp_path / "a", {"x": array})
    loaded = io.load(tmp_path / "a")[0]["x"]
    assert loaded.flags.c_contiguous
    assert loaded.dtype.isnative
    assert loaded.shape == array.shape
    np.testing.assert_array_equal(loaded, array)


def test_layout_of_the_file(tmp_path):
    small, wide = np.array([1, 2, 3], np.uint8), np.array([1.5, 2.5])
    io.save(tmp_path / "a", {"small": small, "wide": wide}, {"k": "v"})
    raw = (tmp_path / "a").read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    assert length % 8 == 0
    header = json.loads(raw[8 : 8 + length])
    data = raw[8 + length :]
    assert data == wide.tobytes() + small.tobytes()
    assert header == {
        "__metadata__": {"k": "v", "sha256": hashlib.sha256(data).hexdigest()},
        "small": {"dtype": "U8", "shape": [3], "data_offsets": [16, 19]},
        "wide": {"dtype": "F64", "shape": [2], "data_offsets": [0, 16]},
    }


def test_nothing_to_store(tmp_path):
    io.save(tmp_path / "a", {})
    assert io.load(tmp_path / "a") == ({}, {})


def test_a_hash_from_an_earlier_load_is_replaced(tmp_path):
    io.save(tmp_path / "a", {"x": np.zeros(3)}, {"sha256": "of other data"})
    assert io.load(tmp_path / "a")[1] == {}


def test_bits_are_the_same_each_time(tmp_path):
    for name in "ab":
        io.save(tmp_path / name, {"x": np.arange(5), "y": np.ones(3)}, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# Arguments


@pytest.mark.parametrize(
    ("tensors", "metadata", "error", "match"),
    [
        ({"x": [1.0]}, None, TypeError, r"\[save\] tensors\['x'\] must be a numpy array, got list"),
        ({"x": np.array([None])}, None, TypeError, "dtype object, expected one of F64"),
        ({"x": np.zeros(2, complex)}, None, TypeError, "dtype complex128"),
        ({"x": np.array(["a"])}, None, TypeError, "dtype <U1"),
        ({"x": np.zeros(2, "M8[s]")}, None, TypeError, "dtype datetime64"),
        ({"x": np.zeros(2, [("a", "f4")])}, None, TypeError, "dtype"),
        ({1: np.zeros(2)}, None, TypeError, "names that are text.* got 1"),
        ({"__metadata__": np.zeros(2)}, None, TypeError, "__metadata__"),
        ({"\ud800": np.zeros(2)}, None, ValueError, "UTF-8"),
        ({}, {"k": 1}, TypeError, "metadata must map text to text, got 'k': 1"),
        ({}, {1: "v"}, TypeError, "metadata must map text to text"),
    ],
)
def test_save_refuses(tmp_path, tensors, metadata, error, match):
    with pytest.raises(error, match=match):
        io.save(tmp_path / "a", tensors, metadata)
    assert os.listdir(tmp_path) == []


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"\[load\] path: there is no file .*absent"):
        io.load(tmp_path / "absent")
    with pytest.raises(FileNotFoundError, match="a folder that does not exist"):
        io.save(tmp_path / "absent" / "a", {})
    with pytest.raises(TypeError):
        io.load(0)
    with pytest.raises(TypeError):
        io.save(None, {})


# One step


def test_path_is_verbatim_and_nothing_else_is_left(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("model", "model.safetensors", "a.b.c", "with space", "é" * 100):
        io.save(name, {"x": np.zeros(1)})
        assert os.listdir() == [name]
        os.remove(name)


def test_failure_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a"
    io.save(path, {"x": np.zeros(3)})
    before = path.read_bytes()

    def fail(_):
        raise OSError("disk full")

    monkeypatch.setattr(io.os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        io.save(path, {"x": np.ones(3)})
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["a"]


def test_a_folder_is_not_replaced(tmp_path):
    (tmp_path / "a").mkdir()
    with pytest.raises(OSError):
        io.save(tmp_path / "a", {})
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.skipif(sys.platform == "win32", reason="no umask on Windows")
def test_permissions_follow_the_umask(tmp_path):
    before = os.umask(0o022)
    try:
        io.save(tmp_path / "a", {})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a").stat().st_mode) == 0o644


def test_replacing_removes_its_file_when_the_block_raises(tmp_path):
    with pytest.raises(KeyboardInterrupt), io.replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert os.listdir(tmp_path) == []


# Damaged files


def test_every_truncation_is_noticed(tmp_path):
    io.save(tmp_path / "a", {"x": np.arange(3, dtype=np.float32), "y": np.zeros((0, 2))}, {"k": "v"})
    raw = (tmp_path / "a").read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(raw)):
        cut.write_bytes(raw[:size])
        with pytest.raises(ValueError, match=r"\[load\] .*cut is not a sound safetensors file"):
            io.load(cut)
    cut.write_bytes(raw + b"\0")
    with pytest.raises(ValueError, match="take 12 bytes of data, the file has 13"):
        io.load(cut)


def test_every_changed_byte_of_data_is_noticed(tmp_path):
    io.save(tmp_path / "a", {"x": np.arange(4, dtype=np.float32)})
    raw = bytearray((tmp_path / "a").read_bytes())
    for i in range(1, 17):
        raw[-i] ^= 1
        (tmp_path / "b").write_bytes(raw)
        with pytest.raises(ValueError, match="SHA-256"):
            io.load(tmp_path / "b")
        raw[-i] ^= 1


def test_changed_bytes_of_the_header_never_do_worse_than_valueerror(tmp_path):
    io.save(tmp_path / "a", {"x": np.arange(4, dtype=np.float32), "y": np.zeros(2, bool)}, {"k": "v"})
    raw = (tmp_path / "a").read_bytes()
    for i in range(len(raw) - 18):
        for byte in (0x22, 0x39, 0xFF):
            (tmp_path / "b").write_bytes(raw[:i] + bytes([byte]) + raw[i + 1 :])
            try:
                tensors, _ = io.load(tmp_path / "b")
            except ValueError:
                continue
            assert sum(array.nbytes for array in tensors.values()) == 18


@pytest.mark.parametrize(
    ("header", "data", "match"),
    [
        (b"", b"", "header begins with b''"),
        (b" {}     ", b"", "header begins with b' '"),
        (b"[]", b"", "header begins with"),
        (b"{", b"", "not JSON"),
        (b"{}x", b"", "not JSON"),
        (b'{"\xff": 1}', b"", "not JSON in UTF-8"),
        (b'{"x": 1' + b"0" * 5000 + b"}", b"", "digits"),
        (b'{"a":' * 100_000, b"", "recursion|not JSON|deep"),
        (b'{"a": %b, "a": %b}' % ((json.dumps(entry()).encode(),) * 2), bytes(8), "the key 'a' twice"),
        (
            b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
            bytes(8),
            "'dtype' twice",
        ),
        ({"__metadata__": []}, b"", "__metadata__ must be"),
        ({"__metadata__": None}, b"", "__metadata__ must be"),
        ({"__metadata__": {"k": 1}}, b"", "__metadata__ must be"),
        ({"__metadata__": {"sha256": "0" * 64}}, b"", "SHA-256 e3b0c442.* says 0000"),
        ({"x": 1}, b"", "entry of 'x' must be an object"),
        ({"x": {"dtype": "F32", "shape": [2]}}, bytes(8), "entry of 'x' must be an object"),
        ({"x": {**entry(), "more": 1}}, bytes(8), "entry of 'x' must be an object"),
        ({"x": entry(dtype="F8")}, bytes(8), "dtype 'F8', expected one of F64"),
        ({"x": entry(dtype=["F32"])}, bytes(8), "dtype"),
        ({"x": entry((-2,))}, bytes(8), "none negative"),
        ({"x": entry((-1, -2))}, bytes(8), "none negative"),
        ({"x": entry((2.0,))}, bytes(8), "none negative"),
        ({"x": entry((True, 2))}, bytes(8), "none negative"),
        ({"x": entry(("2",))}, bytes(8), "none negative"),
        ({"x": {**entry(), "shape": 2}}, bytes(8), "none negative"),
        ({"x": entry((2,) + (1,) * 64)}, bytes(8), "at most 64 integers"),
        ({"x": entry((9,) * 100_000)}, bytes(8), "at most 64 integers"),
        ({"x": {**entry(), "data_offsets": [0]}}, bytes(8), "two integers"),
        ({"x": {**entry(), "data_offsets": [0, 8, 8]}}, bytes(8), "two integers"),
        ({"x": {**entry(), "data_offsets": [0, 8.0]}}, bytes(8), "two integers"),
        ({"x": {**entry(), "data_offsets": "08"}}, bytes(8), "two integers"),
        ({"x": entry(begin=-8, end=0)}, bytes(8), "two integers"),
        ({"x": entry(begin=8, end=0)}, bytes(8), "-8 bytes of data"),
        ({"x": entry((3,))}, bytes(8), r"8 bytes of data, its shape \[3\] in F32 takes 12"),
        ({"x": entry((2**40,), end=2**42)}, bytes(8), "take 4398046511104 bytes of data, the file has 8"),
        ({"x": entry((2**62, 4), end=0)}, b"", "0 bytes of data"),
        ({"x": entry((2**64,), end=0)}, b"", "none negative"),
        ({"x": entry((0, 2**62, 2**62), end=0)}, b"", "not a sound"),
        ({"x": entry(end=16, shape=(4,))}, bytes(8), "take 16 bytes of data, the file has 8"),
        ({"x": entry()}, bytes(12), "take 8 bytes of data, the file has 12"),
        ({}, bytes(1), "take 0 bytes of data, the file has 1"),
        ({"x": entry(begin=4, end=12)}, bytes(12), "leave a gap"),
        ({"x": entry(), "y": entry(begin=12, end=20)}, bytes(20), "leave a gap"),
        ({"x": entry(), "y": entry(begin=4, end=12)}, bytes(12), "overlap"),
        ({"x": entry(), "y": entry()}, bytes(8), "overlap"),
        ({"x": entry((2,), 0, 2, "BOOL")}, b"\x01\x02", "bytes other than 0 and 1"),
    ],
)
def test_load_refuses(tmp_path, header, data, match):
    path = write(tmp_path / "bad.safetensors", header, data)
    with pytest.raises(ValueError, match=match) as caught:
        io.load(path)
    assert "bad.safetensors is not a sound safetensors file: " in str(caught.value)
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize("length", [3, 100_000_001, 2**31, 2**63, 2**64 - 1])
def test_header_length_beyond_the_file(tmp_path, length):
    path = write(tmp_path / "a", b"{}", length=length)
    with pytest.raises(ValueError, match=f"header length is {length}, expected at most 2"):
        io.load(path)


def test_header_length_beyond_the_format(tmp_path):
    path = write(tmp_path / "a", b"{}", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(100_000_100)  # a sparse file
    with pytest.raises(ValueError, match="expected at most 100000000"):
        io.load(path)


def test_tensors_without_a_hash_and_of_no_size(tmp_path):
    header = {"y": entry(begin=8, end=16), "empty": entry((0, 7), 8, 8), "x": entry()}
    data = np.arange(4, dtype="<f4").tobytes()
    tensors, metadata = io.load(write(tmp_path / "a", header, data))
    assert metadata == {}
    assert list(tensors) == ["y", "empty", "x"]
    assert tensors["empty"].shape == (0, 7)
    np.testing.assert_array_equal(tensors["x"], [0, 1])
    np.testing.assert_array_equal(tensors["y"], [2, 3])


# The peer


def test_the_library_reads_ours(tmp_path):
    safetensors = pytest.importorskip("safetensors")
    peer = pytest.importorskip("safetensors.numpy")
    tensors = {code: random_array(dtype, (2, 3)) for code, dtype in io.DTYPES.items()}
    tensors |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32), "é": np.ones(1, np.uint8)}
    io.save(tmp_path / "a", tensors, {"k": "é"})
    loaded = peer.load_file(tmp_path / "a")
    assert set(loaded) == set(tensors)
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)
    with safetensors.safe_open(tmp_path / "a", "numpy") as file:
        assert file.metadata()["k"] == "é"


def test_ours_reads_the_librarys(tmp_path):
    peer = pytest.importorskip("safetensors.numpy")
    tensors = {code: random_array(dtype, (2, 3)) for code, dtype in io.DTYPES.items()}
    tensors |= {"scalar": np.array(2.5), "empty": np.zeros((0, 3), np.float32)}
    peer.save_file(tensors, tmp_path / "a", {"k": "v"})
    loaded, metadata = io.load(tmp_path / "a")
    assert metadata == {"k": "v"}
    assert set(loaded) == set(tensors)
    for name, array in tensors.items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)

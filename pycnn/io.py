"""Arrays in files of the safetensors layout, read and written in a few lines.

    8 bytes    the length of the header, little-endian
    header     JSON, padded with spaces:
               {"weight": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, ...,
               "__metadata__": {"key": "text"}}
    data       the arrays, little-endian and in C order, one after the other without a gap

Our files also carry the SHA-256 of the data part, as `sha256` in the metadata.
"""

import contextlib
import hashlib
import json
import math
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import numpy as np

from pycnn import shapes

DTYPES = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I64": np.dtype("<i8"),
    "I32": np.dtype("<i4"),
    "I16": np.dtype("<i2"),
    "I8": np.dtype("i1"),
    "U64": np.dtype("<u8"),
    "U32": np.dtype("<u4"),
    "U16": np.dtype("<u2"),
    "U8": np.dtype("u1"),
    "BOOL": np.dtype("?"),
}
_CODES = {dtype: code for code, dtype in DTYPES.items()}
_HEADER_MAX = 100_000_000  # bytes; the format's own limit
_RANK_MAX = 64  # numpy's
_FIELDS = {"dtype", "shape", "data_offsets"}


def save(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    previous: str | None = None,
    temporary: str | None = None,
) -> None:
    """Write `tensors` and `metadata` to `path`, which is taken verbatim.

    An existing file is replaced in one step, so that a reader, or a crash, sees the old file or the new one; it stays
    under the name `previous`, if that is given. `temporary` is the name to write under, by default one of its own.
    Arrays may have any memory order. TypeError for a dtype that is not in `DTYPES` and for names, values or
    metadata of another type; FileNotFoundError if the folder does not exist.
    """
    path = shapes.path("save", "path", path)
    arrays = {name: _storable(name, array) for name, array in tensors.items()}
    texts = {**(metadata or {})}
    for key, text in texts.items():
        if not (isinstance(key, str) and isinstance(text, str)):
            raise TypeError(f"[save] metadata must map text to text, got {key!r}: {text!r}")

    # Wide types first: every array then is aligned to its item size, for readers that map the file.
    ordered = sorted(arrays.items(), key=lambda item: -item[1].itemsize)
    digest = hashlib.sha256()
    offsets = {}
    end = 0
    for name, array in ordered:
        digest.update(_raw(array))
        offsets[name] = [end, end + array.nbytes]
        end += array.nbytes
    texts["sha256"] = digest.hexdigest()

    header: dict[str, Any] = {"__metadata__": texts}
    for name, array in arrays.items():
        code = _CODES[array.dtype.newbyteorder("<")]
        header[name] = {"dtype": code, "shape": list(array.shape), "data_offsets": offsets[name]}
    try:
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"[save] names and metadata must be text that UTF-8 can hold: {error}") from None
    text += b" " * (-len(text) % 8)
    if len(text) > _HEADER_MAX:
        raise ValueError(f"[save] the header takes {len(text)} bytes, the format allows {_HEADER_MAX}")

    with replacing(path, previous, temporary) as file:
        file.write(len(text).to_bytes(8, "little"))
        file.write(text)
        for _, array in ordered:
            file.write(_raw(array))


def load(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The (tensors, metadata) of a file; the arrays are new, writable and in C order.

    The data is checked against `sha256` in the metadata where that is present; it is not part of what is
    returned. ValueError, naming the file and what is wrong with it, for anything but a sound file;
    FileNotFoundError if there is none. No more memory is taken than the file's own length accounts for.
    """
    target = shapes.path("load", "path", path)
    try:
        file = open(target, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"[load] path: there is no file {target!r}") from None
    with file:
        try:
            return _read(file)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"[load] {target} is not a sound safetensors file: {error}") from None


@contextlib.contextmanager
def replacing(
    path: str | os.PathLike[str], previous: str | None = None, temporary: str | None = None
) -> Iterator[BinaryIO]:
    """A file open for writing that becomes `path` when the block ends, and vanishes if the block raises.

    What `path` was before is then `previous`, if that is given. A writer that is killed leaves its `temporary` behind:
    the next one under the same name takes it over, where by default each has a name of its own.
    """
    target = os.fsdecode(path)
    # Next to the target, because a rename is one step only within a file system.
    own = temporary is None
    temporary = os.path.join(os.path.dirname(target), f".{secrets.token_hex(8)}.tmp") if own else temporary
    try:
        file = open(temporary, "xb" if own else "wb")  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"path: {target!r} is in a folder that does not exist") from None
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            _keep(target, previous)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.remove(temporary)
        raise


def _keep(target: str, previous: str) -> None:
    """Gives a file a second name, in one step, so that at no moment either name is without a file."""
    spare = f"{previous}.tmp"
    with contextlib.suppress(FileNotFoundError):
        os.remove(spare)
    try:
        os.link(target, spare)
    except OSError:  # a file system without links
        shutil.copyfile(target, spare)
    os.replace(spare, previous)
    with contextlib.suppress(FileNotFoundError):
        os.remove(spare)  # still there if both were one file already


def _storable(name: Any, array: Any) -> np.ndarray:
    """`array` in C order and little-endian, without a copy where it is that already."""
    if not isinstance(name, str) or name == "__metadata__":
        raise TypeError(f"[save] tensors must have names that are text, not '__metadata__', got {name!r}")
    if not isinstance(array, (np.ndarray, np.generic)):
        raise TypeError(f"[save] tensors[{name!r}] must be a numpy array, got {type(array).__name__}")
    little = array.dtype.newbyteorder("<")
    if little not in _CODES:
        raise TypeError(f"[save] tensors[{name!r}] has dtype {array.dtype}, expected one of {', '.join(DTYPES)}")
    return np.asarray(array, dtype=little, order="C")


def _raw(array: np.ndarray) -> np.ndarray:
    """The bytes of a C-ordered array, shared; also right for no elements and for rank 0."""
    return array.reshape(-1).view(np.uint8)


def _read(file: BinaryIO) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    header, data_size = _read_header(file)
    metadata = _checked_metadata(header.pop("__metadata__", {}))
    entries = {name: _checked_entry(name, entry) for name, entry in header.items()}
    in_file_order = sorted(entries, key=lambda name: entries[name][2:])
    _check_tiling({name: entries[name][2:] for name in in_file_order}, data_size)

    # From here on every size is backed by bytes of the file.
    tensors = {}
    digest = hashlib.sha256()
    for name in in_file_order:
        dtype, shape, _, _ = entries[name]
        array = np.empty(shape, dtype)
        raw = _raw(array)
        if file.readinto(raw) != array.nbytes:
            raise ValueError(f"the data of {name!r} ends early")
        if dtype.kind == "b" and array.size and raw.max() > 1:
            raise ValueError(f"{name!r} has dtype BOOL and bytes other than 0 and 1")
        digest.update(raw)
        tensors[name] = array.astype(dtype.newbyteorder("="), copy=False)

    expected = metadata.pop("sha256", None)
    if expected is not None and expected != digest.hexdigest():
        raise ValueError(f"its data has SHA-256 {digest.hexdigest()}, its metadata says {expected}")
    return {name: tensors[name] for name in entries}, metadata


def _read_header(file: BinaryIO) -> tuple[dict[str, Any], int]:
    """The parsed header and the number of bytes after it."""
    size = os.fstat(file.fileno()).st_size
    if size < 8:
        raise ValueError(f"it has {size} bytes, expected at least 8")
    length = int.from_bytes(file.read(8), "little")
    limit = min(size - 8, _HEADER_MAX)
    if length > limit:
        raise ValueError(f"its header length is {length}, expected at most {limit}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError(f"its header begins with {text[:1]!r}, expected b'{{'")
    try:
        header = json.loads(text.decode(), object_pairs_hook=_unique)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"its header is not JSON in UTF-8: {error}") from None
    return header, size - 8 - length


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; Python would silently keep the last of several equal keys."""
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"its header has the key {key!r} twice")
        result[key] = value
    return result


def _checked_metadata(metadata: Any) -> dict[str, str]:
    if not isinstance(metadata, dict) or not all(isinstance(text, str) for text in metadata.values()):
        raise ValueError("__metadata__ must be an object whose values are all text")
    return metadata


def _checked_entry(name: str, entry: Any) -> tuple[np.dtype, tuple[int, ...], int, int]:
    """(dtype, shape, begin, end) of one tensor's entry in the header."""
    if not isinstance(entry, dict) or set(entry) != _FIELDS:
        raise ValueError(f"the entry of {name!r} must be an object of {', '.join(sorted(_FIELDS))}")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise ValueError(f"{name!r} has dtype {code!r}, expected one of {', '.join(DTYPES)}")
    if not _are_sizes(shape) or len(shape) > _RANK_MAX:
        raise ValueError(f"{name!r} has shape {shape!r:.100}, expected at most {_RANK_MAX} integers, none negative")
    if not _are_sizes(offsets) or len(offsets) != 2:
        raise ValueError(f"{name!r} has data_offsets {offsets!r:.100}, expected two integers, none negative")
    begin, end = offsets
    size = math.prod(shape) * DTYPES[code].itemsize
    if end - begin != size:
        raise ValueError(f"{name!r} has {end - begin} bytes of data, its shape {shape} in {code} takes {size}")
    return DTYPES[code], tuple(shape), begin, end


def _are_sizes(values: Any) -> bool:
    # type(), since True is an int as well
    return isinstance(values, list) and all(type(value) is int and 0 <= value <= sys.maxsize for value in values)


def _check_tiling(ranges: dict[str, tuple[int, int]], data_size: int) -> None:
    """The ranges, sorted, must cover the data part exactly: no gap, no overlap, no byte left."""
    position = 0
    for name, (begin, end) in ranges.items():
        if begin != position:
            fault = "overlap the tensor before" if begin < position else "leave a gap before them"
            raise ValueError(f"the data_offsets of {name!r}, [{begin}, {end}], {fault}: expected {position} first")
        position = end
    if position != data_size:
        raise ValueError(f"its tensors take {position} bytes of data, the file has {data_size}")

"""A safetensors file with a header of ours and a hash for every tensor, read tensor by tensor.

Planes come first and begin at multiples of 64 bytes, so that a kernel may read them where they lie. Nothing in the file
is executed or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError
from emqdeploy.files import atomic_write_bytes, open_regular

ALIGNMENT = 64

_KEY = "emqdeploy"
_DIGEST = "digest"
_BLAKE2B_DIGITS = 32
LARGEST_HEADER = 64 << 20
"""Bytes in front of the tensors at most."""

_BLOCK = 1 << 20
_WORTH_A_THREAD = 1 << 20
_DTYPES = {"U8": np.uint8, "I8": np.int8, "F32": np.float32, "I64": np.int64, "F64": np.float64, "I32": np.int32}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}

Shape = tuple[int, ...]


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor in safetensors' table."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]


def hash_text(text: str) -> str:
    """Digest of a header."""
    return _hash(_blake2b(), text.encode())


def hash_tensor(array: NDArray[Any]) -> str:
    """Digest of a tensor, its type and shape included: safetensors' own table, which holds them, has no hash."""
    return _hash(_blake2b(), *_content(array))


def _blake2b() -> Any:
    """BLAKE2b of 128 bits: fast on every processor, where SHA-256 is so only with instructions for it."""
    return hashlib.blake2b(digest_size=_BLAKE2B_DIGITS // 2)


def _content(array: NDArray[Any]) -> tuple[Any, ...]:
    return f"{array.dtype.str}{list(array.shape)}".encode(), np.ascontiguousarray(array).data


def _matches(digest: str | None, *data: Any) -> bool:
    """Whether a digest is that of the data; some files of format 3 have SHA-256 in place of BLAKE2b."""
    return _hash(_blake2b() if len(digest or "") == _BLAKE2B_DIGITS else hashlib.sha256(), *data) == digest


def write_tensors(path: str | os.PathLike[str], tensors: Mapping[str, NDArray[Any]], header: str) -> int:
    """Writes a file atomically; returns its size in bytes.

    Args:
        path: where.
        tensors: in the order in which they lie in the file.
        header: text that `TensorFile.header` gives back.
    """
    table: dict[str, Any] = {"__metadata__": {_KEY: header, _DIGEST: hash_text(header)}}
    end = 0
    for name, array in tensors.items():
        start, end = end, end + array.nbytes
        table[name] = {"dtype": _NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [start, end]}
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    parts = [len(text).to_bytes(8, "little"), text, *(np.ascontiguousarray(one).tobytes() for one in tensors.values())]
    data = b"".join(parts)
    atomic_write_bytes(path, data)
    return len(data)


class TensorFile:
    """Reads single tensors with `pread` and checks each against its hash; a context manager.

    A memory map would let the kernel read ahead over the planes that a narrow child leaves out.

    Args:
        path: the file.
        remedy: how the sentence of an error ends.

    Attributes:
        header: the text that it was written with.
        hashes: by tensor name; whoever reads the header sets them.
        bytes_read: so far.

    Raises:
        EmqError: one sentence: the file is missing, truncated, altered, or not of this kind.
    """

    def __init__(self, path: Path, remedy: str) -> None:
        self.path = path
        self.bytes_read = 0
        self.hashes: Mapping[str, str] = {}
        self._remedy = remedy
        self._held: dict[str, NDArray[Any]] = {}
        self._counting = Lock()

    def __enter__(self) -> TensorFile:
        self._file = open_regular(self.path, "name an existing .emq file")
        try:
            self.size_bytes = os.fstat(self._file).st_size
            self._read_header()
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)

    def fail(self, what: str) -> EmqError:
        """The sentence for a file that is not what it should be."""
        return EmqError(f"{self.path} {what[:400]}; {self._remedy}")

    def check_whole(self, sha256: str) -> None:
        """Raises unless the file, as it is open here, has this SHA-256."""
        digest = hashlib.sha256()
        for start in range(0, self.size_bytes, _BLOCK):
            digest.update(self._pread(start, min(_BLOCK, self.size_bytes - start)))
        self.bytes_read -= self.size_bytes
        if digest.hexdigest() != sha256:
            raise self.fail("was altered: it does not match its hash in the bundle's manifest")

    def offset(self, name: str) -> int:
        """Where a tensor's bytes begin in the file."""
        return self._start + self._entry(name).data_offsets[0]

    def size_of(self, name: str) -> int:
        """Bytes of a tensor."""
        start, end = self._entry(name).data_offsets
        return end - start

    @property
    def header_bytes(self) -> int:
        """Bytes in front of the first tensor."""
        return self._start

    def check_table(self, expected: Mapping[str, tuple[type, Shape | None]]) -> None:
        """Raises unless the file holds exactly these tensors, of these types and shapes (None: any)."""
        if set(self._table) != set(expected):
            strange = sorted(set(self._table) ^ set(expected))[0]
            raise self.fail(f"is damaged: tensor {strange!r} is {'missing' if strange in expected else 'not expected'}")
        for name, (dtype, shape) in expected.items():
            entry = self._table[name]
            if _DTYPES[entry.dtype] is not dtype or (shape is not None and entry.shape != shape):
                raise self.fail(f"is damaged: tensor {name!r} has type {entry.dtype} and shape {list(entry.shape)}")

    def shape(self, name: str) -> Shape:
        """Shape of a tensor."""
        return self._entry(name).shape

    def prefetch(self, names: Sequence[str]) -> None:
        """Reads and checks several tensors, which `tensor` then gives: on two threads, as hashing takes long.

        A small file is not worth the threads, and is read as it is asked for. Raises as `tensor`.
        """
        if sum(map(self.size_of, names)) < _WORTH_A_THREAD:
            return
        with ThreadPoolExecutor(2) as pool:
            self._held = dict(zip(names, pool.map(self._read, names), strict=True))

    def tensor(self, name: str) -> NDArray[Any]:
        """Reads one tensor in its own shape."""
        found = self._held.pop(name, None)
        return self._read(name) if found is None else found

    def _read(self, name: str) -> NDArray[Any]:
        entry = self._entry(name)
        start, end = entry.data_offsets
        array = np.frombuffer(self._pread(self._start + start, end - start), _DTYPES[entry.dtype]).reshape(entry.shape)
        if not _matches(self.hashes.get(name), *_content(array)):
            raise self.fail(f"was altered: tensor {name!r} does not match its hash")
        return array

    def _entry(self, name: str) -> _Entry:
        if name not in self._table:
            raise self.fail(f"was altered: it has no tensor {name!r}")
        return self._table[name]

    def _read_header(self) -> None:
        foreign = "is not an .emq file"
        length = int.from_bytes(self._pread(0, 8), "little") if self.size_bytes >= 8 else 0
        if not 2 <= length <= min(LARGEST_HEADER, self.size_bytes - 8):
            raise self.fail(foreign)
        try:
            self._table, texts = _decode_table(self._pread(8, length))
            self.header = texts[_KEY]
        except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as error:
            raise self.fail(foreign) from error
        if not _matches(texts.get(_DIGEST), self.header.encode()):
            raise self.fail("was altered: its metadata does not match its hash")
        self._start = 8 + length
        self._check_extents()

    def _check_extents(self) -> None:
        """Every tensor lies inside the file, one behind the other, and is as long as its shape says."""
        end = 0
        for name, entry in sorted(self._table.items(), key=lambda item: item[1].data_offsets):
            first, last = entry.data_offsets
            if entry.dtype not in _DTYPES or any(side < 0 for side in entry.shape):
                raise self.fail(f"is damaged: tensor {name!r} has type {entry.dtype} and shape {list(entry.shape)}")
            count = 1
            for side in entry.shape:
                count *= side
            if first != end or last - first != count * np.dtype(_DTYPES[entry.dtype]).itemsize:
                raise self.fail(f"is damaged: the bytes of tensor {name!r} are not where they should be")
            end = last
        if self._start + end > self.size_bytes:
            raise self.fail(f"is truncated: it has {self.size_bytes} of {self._start + end} bytes")

    def _pread(self, start: int, length: int) -> bytes:
        parts = []
        while length > 0:
            try:
                part = os.pread(self._file, length, start)
            except OSError as error:
                raise self.fail(f"cannot be read ({error.strerror})") from error
            if not part:
                raise self.fail("is truncated")
            parts.append(part)
            start, length = start + len(part), length - len(part)
            with self._counting:
                self.bytes_read += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)


def read_table(data: bytes) -> tuple[list[tuple[str, tuple[int, int]]], str, int]:
    """What a file in memory holds: its tensors' names and offsets in their order, our header, and where they begin.

    Raises:
        ValueError: it is no such file.
    """
    length = int.from_bytes(data[:8], "little")
    if not 2 <= length <= min(LARGEST_HEADER, len(data) - 8):
        raise ValueError("it has no header")
    try:
        table, texts = _decode_table(data[8 : 8 + length])
        header = texts[_KEY]
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, RecursionError) as error:
        raise ValueError(str(error)) from error
    places = sorted(((name, entry.data_offsets) for name, entry in table.items()), key=lambda item: item[1])
    ends = [0, *(last for _, (_, last) in places)]
    if any(first != end or last < first for (_, (first, last)), end in zip(places, ends, strict=False)):
        raise ValueError("its tensors are not where they should be")
    return places, header, 8 + length


def _decode_table(text: bytes) -> tuple[dict[str, _Entry], dict[str, str]]:
    table = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    texts = msgspec.json.decode(table.pop("__metadata__", b"{}"), type=dict[str, str])
    return {name: msgspec.json.decode(raw, type=_Entry) for name, raw in table.items()}, texts


def _hash(digest: Any, *data: Any) -> str:
    for part in data:
        digest.update(part)
    found: str = digest.hexdigest()
    return found


def flat(arrays: Sequence[NDArray[Any]], dtype: type) -> NDArray[Any]:
    """Joins arrays into one flat one."""
    return np.concatenate([np.zeros(0, dtype), *(array.reshape(-1).astype(dtype) for array in arrays)])

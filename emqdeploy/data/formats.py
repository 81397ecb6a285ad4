"""The file formats of small data sets, each read without trusting it."""

from __future__ import annotations

import gzip
import math
import os
import pickle
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.errors import EmqError
from emqdeploy.files import open_regular

LARGEST = 1 << 30
"""Bytes of one file of a data set at most, unpacked; the largest here, CIFAR-100's training images, has 155 million."""


def damaged(path: Path, reason: object) -> EmqError:
    """Return the error for a file whose contents cannot be right."""
    return EmqError(f"{path} is damaged ({reason}); remove it and get it again")


def _regular(path: Path) -> int:
    """A descriptor of a regular file of bounded size."""
    descriptor = open_regular(path, "remove it and get it again")
    if os.fstat(descriptor).st_size > LARGEST:
        os.close(descriptor)
        raise damaged(path, f"more than {LARGEST >> 20} MB")
    return descriptor


def read_idx(path: Path, dimensions: int) -> npt.NDArray[np.uint8]:
    """Read a gzipped IDX file of bytes: a magic number, big-endian sizes, then the values."""
    header = 4 + 4 * dimensions
    try:
        with open(_regular(path), "rb") as file, gzip.open(file) as packed:
            head = packed.read(header)
            if len(head) < header or head[:4] != bytes((0, 0, 8, dimensions)):
                raise damaged(path, f"no IDX header of {dimensions} dimensions")
            shape = tuple(int(size) for size in np.frombuffer(head[4:], ">u4"))
            count = math.prod(shape)
            if not 0 < count <= LARGEST:
                raise damaged(path, f"{count} values, allowed are 1 to {LARGEST}")
            values = packed.read(count + 1)  # never more of a small file than it says it holds
    except (OSError, EOFError, zlib.error) as error:
        raise damaged(path, error) from error
    if len(values) != count:
        raise damaged(path, f"{'more' if len(values) > count else 'fewer'} values than its {count}")
    # A copy, because torch warns about arrays that share memory with read-only bytes.
    return np.frombuffer(values, np.uint8).reshape(shape).copy()


class _PickledDtype:
    """Stands in for ``numpy.dtype`` in a pickle; only bytes are let through."""

    def __init__(self, code: str, *_: object) -> None:
        if code not in ("u1", "|u1"):
            raise pickle.UnpicklingError(f"an array of {code!r} instead of bytes")

    def __setstate__(self, state: object) -> None:
        """Ignore the byte order and alignment: bytes have neither."""


class _PickledArray:
    """Stands in for ``numpy.ndarray`` in a pickle and keeps the checked bytes in ``values``."""

    values: npt.NDArray[np.uint8]

    def __init__(self, *_: object) -> None:
        """Ignore what numpy would be built with; the state holds everything."""

    def __setstate__(self, state: tuple[int, tuple[int, ...], _PickledDtype, bool, Any]) -> None:
        _, shape, _, column_major, data = state
        content = _encode(data) if isinstance(data, str) else data  # str: written by Python 2
        values = np.frombuffer(content, np.uint8)
        self.values = values.reshape(shape, order="F" if column_major else "C")


def _encode(text: str, *_: object) -> bytes:
    """Stand in for ``_codecs.encode``, with which Python 3 writes bytes at protocol 2."""
    return text.encode("latin1")


class _CifarUnpickler(pickle._Unpickler):
    """Reads dictionaries, lists, text, numbers and byte arrays; a pickle can name nothing else.

    An ordinary unpickler runs whatever a file asks for. Even numpy is replaced by stand-ins here,
    which also read the names of every numpy version alike. The one in C makes as much room for what it has seen as a
    single number in the file says: nine bytes take gigabytes.
    """

    _allowed: Mapping[tuple[str, str], Any] = {
        ("numpy.core.multiarray", "_reconstruct"): _PickledArray,  # numpy 1
        ("numpy._core.multiarray", "_reconstruct"): _PickledArray,  # numpy 2
        ("numpy", "ndarray"): _PickledArray,
        ("numpy", "dtype"): _PickledDtype,
        ("_codecs", "encode"): _encode,
    }

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Return a stand-in, or refuse the name."""
        try:
            return self._allowed[module_name, global_name]
        except KeyError:
            name = f"{module_name}.{global_name}"
            raise pickle.UnpicklingError(f"it asks for {name}, which no image needs") from None


def read_cifar(path: Path, *keys: str) -> dict[str, Any]:
    """Read one file of CIFAR's python version and check that it has ``keys``."""
    try:
        with open(_regular(path), "rb") as file:
            content = _CifarUnpickler(file, encoding="latin1").load()
    except EmqError:
        raise
    except Exception as error:  # a broken pickle can fail with nearly any of them
        raise damaged(path, str(error) or type(error).__name__) from error
    if not isinstance(content, dict) or not all(key in content for key in keys):
        raise damaged(path, f"no {' and '.join(keys)} in it")
    return content

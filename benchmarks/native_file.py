"""A `.emq` or bundle that the library opens by itself, in C, as a program without Python would open it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes.native_library import library


class Pixels(ctypes.Structure):
    """What a network takes, see `emq_pixels` in the header."""

    _fields_ = [(name, ctypes.c_int32) for name in ("channels", "height", "width")] + [
        (name, ctypes.POINTER(ctypes.c_float)) for name in ("mean", "std")
    ]


class Opened:
    """A network that the library opened.

    Args:
        source: path of a `.emq` or bundle, or the bytes of a `.emq`.
        threads: inside a layer.

    Raises:
        EmqError: the library refused it; the sentence is the library's.
    """

    def __init__(self, source: Path | bytes, threads: int = 1) -> None:
        self.library, self.handle = library(), ctypes.c_void_p()
        if isinstance(source, bytes):
            code = self.library.emq_open_bytes(source, ctypes.c_size_t(len(source)), threads, ctypes.byref(self.handle))
        else:
            code = self.library.emq_open(os.fsencode(source), threads, ctypes.byref(self.handle))
        self.check(code)
        self.classes: int = self.library.emq_class_count(self.handle)

    def check(self, code: int) -> None:
        """Raises the library's sentence."""
        if code != 0:
            raise EmqError(self.library.emq_error().decode())

    def name(self, what: str, index: int) -> str | None:
        """The name of a class or child; None where there is none."""
        function = getattr(self.library, f"emq_{what}_name")
        function.restype = ctypes.c_char_p
        found: bytes | None = function(self.handle, index)
        return None if found is None else found.decode()

    def child(self, name: str) -> int:
        """The index of a child, or -1."""
        found: int = self.library.emq_find_child(self.handle, name.encode())
        return found

    def use(self, child: int) -> None:
        """Puts a child in use."""
        self.check(self.library.emq_use(self.handle, child))

    def run(self, child: int, images: NDArray[Any]) -> Floats:
        """Logits of normalised images ``(N, C, H, W)``, or of pixels ``(N, H, W, C)`` where they are uint8."""
        logits = np.empty((len(images), self.classes), np.float32)
        run = self.library.emq_run_pixels if images.dtype == np.uint8 else self.library.emq_run
        place = ctypes.c_void_p(images.ctypes.data)
        self.check(run(self.handle, child, place, ctypes.c_int64(len(images)), ctypes.c_void_p(logits.ctypes.data)))
        return logits

    def close(self) -> None:
        """Closes it."""
        self.library.emq_close(self.handle)


@contextmanager
def opened(source: Path | bytes, threads: int = 1) -> Iterator[Opened]:
    """A network that is closed when the block ends."""
    network = Opened(source, threads)
    try:
        yield network
    finally:
        network.close()

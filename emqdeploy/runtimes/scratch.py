"""Memory for the weights on their way into a session, used again and given back to the system as a whole."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import sys
import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray


class Scratch:
    """Pages of their own, outside the heap.

    A session copies its initializers, so the memory is free again as soon as the session is there. Fresh pages cost
    more time than the arithmetic that fills them, and blocks of this size leave holes in the heap.

    Args:
        size_bytes: how much is lent.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._lock = threading.Lock()
        self._idle: list[NDArray[np.uint8]] = []

    @contextlib.contextmanager
    def lent(self) -> Iterator[NDArray[np.uint8]]:
        """Lends the memory; who asks while it is lent gets pages that are dropped afterwards."""
        with self._lock:
            pages = self._idle.pop() if self._idle else None
        if pages is None:
            pages = np.frombuffer(mmap.mmap(-1, max(self._size, 1)), np.uint8)
        yield pages
        with self._lock:
            if not self._idle:
                self._idle.append(pages)

    def release(self) -> None:
        """Gives the memory back to the system, and with it what building has left free in the heap."""
        with self._lock:
            self._idle.clear()
        if sys.platform == "linux":
            # glibc keeps freed blocks for later: the copies of the weights that sessions were made from.
            trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
            if trim is not None:
                trim(0)

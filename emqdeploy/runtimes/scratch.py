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

from emqdeploy.runtimes.forked import renew_after_fork

IDLE_S = 1.0
"""Seconds after which memory that nobody uses goes back to the system."""


class Scratch:
    """Pages of their own, outside the heap.

    A session copies its initializers, so the memory is free again as soon as the session is there. Fresh pages cost
    more time than the arithmetic that fills them, so they wait a while for the next child.

    Args:
        size_bytes: how much is lent.
    """

    def __init__(self, size_bytes: int) -> None:
        self._size = size_bytes
        self._lock = threading.Lock()
        self._idle: NDArray[np.uint8] | None = None
        self._timer: threading.Timer | None = None
        renew_after_fork(self)

    def renew(self) -> None:
        """In a forked child: whoever borrows the memory in the parent keeps it there."""
        self._lock = threading.Lock()
        self._idle = None
        self._timer = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[NDArray[np.uint8]]:
        """Lends the memory; who asks while it is lent gets pages that are dropped afterwards."""
        with self._lock:
            pages, self._idle = self._idle, None
            self._stop_timer()
        if pages is None:
            pages = np.frombuffer(mmap.mmap(-1, max(self._size, 1)), np.uint8)
        yield pages
        with self._lock:
            self._idle = pages
            self._stop_timer()
            self._timer = threading.Timer(IDLE_S, self.release)
            self._timer.daemon = True
            self._timer.start()

    def release(self) -> None:
        """Gives the memory back to the system, and with it what building has left free in the heap."""
        with self._lock:
            self._idle = None
            self._stop_timer()
        trim_heap()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def trim_heap() -> None:
    """Gives freed blocks back to the system: glibc keeps the copies of the weights that sessions were made from."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)

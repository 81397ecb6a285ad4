"""Keeps the memory of one training step, or batch, for the next one."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4  # of mallopt(3)
_LARGEST = 2**31 - 1
_GROWTH = 64 * 2**20


def keep_freed_memory() -> bool:
    """Tells the C library to keep freed memory instead of returning it to the system.

    Every activation of a step is freed and allocated anew in the next one. By default glibc returns such large blocks
    at once, and the system clears every page when it comes back: a tenth of a quantized training step on the CPU.
    The process then holds its peak memory until it ends.

    Returns:
        whether there is such a C library here; elsewhere nothing changes.
    """
    libc = _glibc()
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _LARGEST), (_TOP_PAD, _GROWTH))
    return libc is not None and all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)


def return_freed_memory() -> None:
    """Returns what was kept and is not in use: between two kinds of work, whose blocks have other sizes."""
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "gnu_get_libc_version") else None

"""How many cores this process may use."""

from __future__ import annotations

import os

SMALL_IMAGE = 16
"""Pixels up to which operators are so short that handing work to a second thread costs more than it saves."""


def usable_cores() -> int:
    """Cores that this process may use: those of its affinity, where the system has such a thing."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def useful_threads(side: int, cores: int | None = None) -> int:
    """Threads inside an operator that are worth having for images of so many pixels a side.

    Args:
        side: height of an image in pixels.
        cores: that there are; None counts them.
    """
    return 1 if side <= SMALL_IMAGE else cores or usable_cores()

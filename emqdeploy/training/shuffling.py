"""The order in which an epoch visits images: any order, or one that reads neighbours on the disk together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

OPEN_BLOCKS = 16
"""Blocks whose images are mixed at a time."""


def shuffled(indices: NDArray[np.int64], random: np.random.Generator, block: int) -> NDArray[np.int64]:
    """Returns the images of an epoch in an order drawn anew.

    Args:
        indices: of the images, ``(N,)``; neighbours in number lie together on the disk.
        random: draws the order.
        block: images that are read together; 0 mixes all with all.
    """
    if block == 0:
        return random.permutation(indices)
    ascending = np.sort(indices)
    blocks = np.split(ascending, np.flatnonzero(np.diff(ascending // block)) + 1)
    order = random.permutation(len(blocks))
    windows = [order[start : start + OPEN_BLOCKS] for start in range(0, len(order), OPEN_BLOCKS)]
    return np.concatenate([random.permutation(np.concatenate([blocks[one] for one in window])) for window in windows])

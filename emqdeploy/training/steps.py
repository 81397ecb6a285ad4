"""The order of optimizer steps: bit-wise and interleaved, reproducible from seed and epoch alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

SMALLEST_BATCH = 2
"""Batch statistics of one image mean nothing; a last batch of one is dropped."""


class Step(NamedTuple):
    """One optimizer step: the bit-width that it trains and the images that it sees."""

    bits: int
    indices: NDArray[np.int64]


def interleaved_epoch(subsets: Mapping[int, NDArray[np.int64]], batch_size: int, seed: int, epoch: int) -> list[Step]:
    """Returns the steps of one epoch: every bit-width passes over its own subset, one batch of each in turn.

    Shared running statistics would be those of the last bit-width if one trained alone for long, so the bit-widths take
    turns step by step, in an order drawn anew each round.
    """
    batches = {}
    for bits, subset in subsets.items():
        shuffled = np.random.default_rng([seed, epoch, bits]).permutation(subset)
        parts = [shuffled[start : start + batch_size] for start in range(0, len(shuffled), batch_size)]
        batches[bits] = [part for part in parts if len(part) >= SMALLEST_BATCH]
    random = np.random.default_rng([seed, epoch])
    steps: list[Step] = []
    for turn in range(max(map(len, batches.values()))):
        waiting = [bits for bits in batches if turn < len(batches[bits])]
        steps.extend(Step(int(bits), batches[bits][turn]) for bits in random.permutation(waiting))
    return steps


def steps_in_epoch(subset_size: int, batch_size: int) -> int:
    """Steps that one bit-width takes over ``subset_size`` images."""
    full, rest = divmod(subset_size, batch_size)
    return full + (rest >= SMALLEST_BATCH)

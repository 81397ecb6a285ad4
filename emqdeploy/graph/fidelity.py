"""How far a child's answers are from those of the network that it was made from, and how far is too far.

Parity says that a file computes what the integer reference computes; this says whether that is the user's network.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.card import MOST_DECIBELS, FidelityRecord
from emqdeploy.format.child import MASTER_BITS, Child
from emqdeploy.format.tasks import CLASSIFICATION, Task
from emqdeploy.graph.parity import SAFE_MARGIN, energy_of

FLOAT_MODEL, TRAINED_NETWORK = "float model", "trained network"
"""What a child is compared with: the model as the user gave it, or what training fake-quantized at the child."""

FIDELITY_IMAGES = 256
"""Images that answers are compared on."""

LEAST_DECIBELS = 15.0
"""Signal to noise that every 8-bit child of a sound network exceeds."""

LEAST_AGREEMENT = 95.0
"""Percent of the decisions that are no ties which it leaves as they are."""

SAME_DECIBELS = 80.0
"""Two float networks of one function are closer than this: the rounding of float32 leaves 100 dB or more."""


def spread(count: int) -> NDArray[np.int64]:
    """Which of so many images to take: up to `FIDELITY_IMAGES`, evenly over all, for files come sorted by class."""
    return np.unique(np.linspace(0, max(count - 1, 0), min(count, FIDELITY_IMAGES)).astype(np.int64))


def decibels(signal: float, noise: float) -> float:
    """``10 log10(signal / noise)`` of two energies, within +-`MOST_DECIBELS`; what is not finite is all noise."""
    if noise == 0:
        return MOST_DECIBELS
    if not (0 < signal < math.inf and noise < math.inf):
        return -MOST_DECIBELS
    return min(max(10 * (math.log10(signal) - math.log10(noise)), -MOST_DECIBELS), MOST_DECIBELS)


def snr_db(expected: NDArray[Any], actual: NDArray[Any]) -> float:
    """Signal to noise of answers ``(N, ...)`` in decibels.

    The signal is what is expected, the noise what the other answers differ by, both without their mean per image: a
    constant on every logit decides nothing.
    """
    wanted = expected.astype(np.float64)
    with np.errstate(invalid="ignore"):
        error = actual.reshape(wanted.shape).astype(np.float64) - wanted
    return decibels(energy_of(wanted), energy_of(error))


def compare(expected: NDArray[Any], actual: NDArray[Any], against: str, task: Task = CLASSIFICATION) -> FidelityRecord:
    """How far answers ``(N, ...)`` are from the expected ones.

    Args:
        expected: of the network that is the measure.
        actual: of the child.
        against: what the measure is, for people.
        task: what the answers mean; where the expected ones decide by `SAFE_MARGIN` or less, it is a tie that any
            rounding may turn, and does not count.
    """
    clear = task.margin(expected) > SAFE_MARGIN
    agreeing = int((clear & (task.decide(expected) == task.decide(actual))).sum())
    decided = int(clear.sum())
    agreement = 100.0 * agreeing / decided if decided else 100.0
    return FidelityRecord(against, round(snr_db(expected, actual), 2), round(agreement, 4), decided, len(expected))


def is_held_to(child: Child, against: str) -> bool:
    """Whether a child has to answer like the network that it is compared with.

    One of 8 bits everywhere is held to the float model: only a fault makes it another network. What a child of fewer
    bits loses is its price, and training wins it back. All of them are held to the network that was trained at them.
    """
    return against == TRAINED_NETWORK or min(*child.weights.all, *child.activations.all) >= MASTER_BITS


def what_is_wrong(child: Child, found: FidelityRecord) -> str | None:
    """What is wrong with a child's answers, None where nothing is; one image alone proves nothing."""
    if not is_held_to(child, found.against):
        return None
    if found.snr_db < LEAST_DECIBELS:
        return f"a signal to noise of {found.snr_db:.1f} dB, below {LEAST_DECIBELS:g}"
    flips = round((1 - found.agreement / 100) * found.decided)
    if flips > 1 and found.agreement < LEAST_AGREEMENT:
        return f"{flips} of {found.decided} clear decisions become others, more than {100 - LEAST_AGREEMENT:g} %"
    return None

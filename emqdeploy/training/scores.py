"""Importance of training images, per bit-width, from what training itself records.

One recorder keeps the softmax of every image, epoch and bit-width; every score is a function of that record.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emqdeploy.registry import Registry

Score = Callable[[NDArray[np.float16], NDArray[np.int64], np.random.Generator], NDArray[np.float64]]
"""``(softmax (epochs, N, classes), labels (N,), random) -> score (N,)``; higher is more important."""

SCORES: Registry[Score] = Registry("score")


class Dynamics:
    """Softmax of every training image, per bit-width and epoch of the score phase.

    Costs ``bits * epochs * N * classes * 2`` bytes: 48 MB for Fashion-MNIST, four bit-widths and ten epochs.
    """

    def __init__(self, bits: tuple[int, ...], epochs: int, images: int, classes: int) -> None:
        self.softmax = {width: np.zeros((epochs, images, classes), np.float16) for width in bits}

    def record(self, bits: int, epoch: int, indices: NDArray[np.int64], softmax: NDArray[np.float32]) -> None:
        """Keeps ``softmax (batch, classes)`` of the images ``indices``."""
        self.softmax[bits][epoch, indices] = softmax


@SCORES.register("random")
def random_score(
    softmax: NDArray[np.float16], labels: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    """A uniform random number: the control that every other score has to beat."""
    return random.random(len(labels))


@SCORES.register("el2n")
def el2n_score(
    softmax: NDArray[np.float16], labels: NDArray[np.int64], random: np.random.Generator
) -> NDArray[np.float64]:
    """``||softmax - onehot||_2``, mean over epochs: the gradient's norm at the logits (Data Diet, arXiv 2107.07075)."""
    errors = softmax.astype(np.float64)
    errors[:, np.arange(len(labels)), labels] -= 1
    norms: NDArray[np.float64] = np.linalg.norm(errors, axis=2).mean(axis=0)
    return norms

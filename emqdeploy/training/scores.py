"""Importance of training images: every score is a function of the one record that training keeps.

Gradient-based scores need no extra backward pass: for cross-entropy the gradient at the logits is ``softmax - onehot``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from emqdeploy.registry import Registry
from emqdeploy.training.dynamics import Record

Importance = NDArray[np.float64]

TDDS_WINDOW = 10
"""Epochs in one of TDDS's windows; shorter records are one window."""

TDDS_DECAY = 0.9
"""Weight of the latest window; each earlier one weighs a tenth of the next."""


@dataclass(frozen=True)
class Score:
    """A score by name.

    Attributes:
        compute: ``Record -> importance (N,)``; higher is more important.
        needs_features: whether the record must hold penultimate features.
    """

    compute: Callable[[Record], Importance]
    needs_features: bool = False


SCORES: Registry[Score] = Registry("score")


def _score(name: str, needs_features: bool = False) -> Callable[[Callable[[Record], Importance]], Score]:
    def decorate(compute: Callable[[Record], Importance]) -> Score:
        return SCORES.register(name)(Score(compute, needs_features))

    return decorate


def _errors(record: Record) -> NDArray[np.float64]:
    """``softmax - onehot``, ``(epochs, N, classes)``: the gradient of the loss at the logits."""
    errors = record.softmax.astype(np.float64)
    errors[:, np.arange(len(record.labels)), record.labels] -= 1
    return errors


@_score("random")
def random_score(record: Record) -> Importance:
    """A uniform random number: the control that every other score has to beat."""
    return record.random.random(len(record.labels))


@_score("el2n")
def el2n(record: Record) -> Importance:
    """``||softmax - onehot||_2``, mean over epochs (Data Diet, arXiv 2107.07075)."""
    norms: Importance = np.linalg.norm(_errors(record), axis=2).mean(axis=0)
    return norms


@_score("grand", needs_features=True)
def grand(record: Record) -> Importance:
    """Norm of the last layer's gradient, bias and weights (GraNd, arXiv 2107.07075; the last layer as in DeepCore).

    The gradient is the outer product of ``softmax - onehot`` and ``(1, features)``, so its norm is a product.
    """
    assert record.features is not None
    embedding = np.sqrt(1 + np.square(record.features.astype(np.float64)).sum(axis=1))
    return el2n.compute(record) * embedding


@_score("entropy")
def entropy(record: Record) -> Importance:
    """``-sum p log p`` of the latest epoch: what the network is unsure of."""
    odds = record.softmax[-1].astype(np.float64)
    return -(odds * np.log(odds + 1e-8)).sum(axis=1)


@_score("forgetting")
def forgetting(record: Record) -> Importance:
    """How often an image turned from right to wrong (arXiv 1812.05159); one never learned counts as always forgotten.

    Ties, which short records have many of, are broken by the mean error.
    """
    right = record.softmax.argmax(axis=2) == record.labels
    turns = (right[:-1] & ~right[1:]).sum(axis=0).astype(np.float64)
    turns[~right.any(axis=0)] = len(right)
    return turns + 0.5 * el2n.compute(record)


@_score("moderate", needs_features=True)
def moderate(record: Record) -> Importance:
    """Nearness of ``|features - class centre|`` to its median (Moderate coreset, ICLR 2023): typical images."""
    assert record.features is not None
    features = record.features.astype(np.float64)
    distance = np.zeros(len(features))
    for label in np.unique(record.labels):
        members = record.labels == label
        distance[members] = np.linalg.norm(features[members] - features[members].mean(axis=0), axis=1)
    away = np.abs(distance - np.median(distance))
    return away.max() - away


@_score("tdds")
def tdds(record: Record) -> Importance:
    """How unsteadily the loss of an image moves from epoch to epoch (TDDS, arXiv 2311.13613; as its authors' code).

    In each window of epochs: the norm of the deviations of ``sum_c |p' (log p' - log p)|`` from their mean. Later
    windows weigh more.
    """
    odds = record.softmax.astype(np.float64)
    steps = np.abs(odds[1:] * (np.log(odds[1:] + 1e-8) - np.log(odds[:-1] + 1e-8))).sum(axis=2)
    if len(steps) == 0:
        return el2n.compute(record)
    length = min(TDDS_WINDOW - 1, len(steps))
    windows = [steps[start : start + length] for start in range(len(steps) - length + 1)]
    spread = np.stack([np.linalg.norm(window - window.mean(axis=0), axis=0) for window in windows])
    ages = np.arange(len(windows))[::-1, None]
    # One step has no spread; its size is what is known of the image.
    varied = spread if length > 1 else np.stack(windows)[:, 0]
    total: Importance = (varied * TDDS_DECAY * (1 - TDDS_DECAY) ** ages).sum(axis=0)
    return total

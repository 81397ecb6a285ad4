"""What a score is: a function of the one record that training keeps.

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


def score(name: str, needs_features: bool = False) -> Callable[[Callable[[Record], Importance]], Score]:
    """Registers a function as the score of a name."""

    def decorate(compute: Callable[[Record], Importance]) -> Score:
        return SCORES.register(name)(Score(compute, needs_features))

    return decorate


def mean_error(record: Record) -> Importance:
    """``||softmax - onehot||_2`` of every image, mean over epochs."""
    errors = record.softmax.astype(np.float64)
    errors[:, np.arange(len(record.labels)), record.labels] -= 1
    norms: Importance = np.linalg.norm(errors, axis=2).mean(axis=0)
    return norms

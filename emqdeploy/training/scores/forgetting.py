"""Forgetting events."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, mean_error, score


@score("forgetting")
def forgetting(record: Record) -> Importance:
    """How often an image turned from right to wrong (arXiv 1812.05159); one never learned counts as always forgotten.

    Ties, which short records have many of, are broken by the mean error.
    """
    right = record.softmax.argmax(axis=2) == record.labels
    turns = (right[:-1] & ~right[1:]).sum(axis=0).astype(np.float64)
    turns[~right.any(axis=0)] = len(right)
    return turns + 0.5 * mean_error(record)

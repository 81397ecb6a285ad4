"""Entropy of what the network says."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, score


@score("entropy")
def entropy(record: Record) -> Importance:
    """``-sum p log p`` of the latest epoch: what the network is unsure of."""
    odds = record.softmax[-1].astype(np.float64)
    return -(odds * np.log(odds + 1e-8)).sum(axis=1)

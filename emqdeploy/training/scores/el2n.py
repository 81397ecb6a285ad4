"""EL2N: the error norm."""

from __future__ import annotations

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, mean_error, score


@score("el2n")
def el2n(record: Record) -> Importance:
    """``||softmax - onehot||_2``, mean over epochs (Data Diet, arXiv 2107.07075)."""
    return mean_error(record)

"""TDDS: the spread of training dynamics."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, mean_error, score

TDDS_WINDOW = 10
"""Epochs in one of TDDS's windows; shorter records are one window."""

TDDS_DECAY = 0.9
"""Weight of the latest window; each earlier one weighs a tenth of the next."""


@score("tdds")
def tdds(record: Record) -> Importance:
    """How unsteadily the loss of an image moves from epoch to epoch (TDDS, arXiv 2311.13613; as its authors' code).

    In each window of epochs: the norm of the deviations of ``sum_c |p' (log p' - log p)|`` from their mean. Later
    windows weigh more.
    """
    odds = record.softmax.astype(np.float64)
    steps = np.abs(odds[1:] * (np.log(odds[1:] + 1e-8) - np.log(odds[:-1] + 1e-8))).sum(axis=2)
    if len(steps) == 0:
        return mean_error(record)
    length = min(TDDS_WINDOW - 1, len(steps))
    windows = [steps[start : start + length] for start in range(len(steps) - length + 1)]
    spread = np.stack([np.linalg.norm(window - window.mean(axis=0), axis=0) for window in windows])
    ages = np.arange(len(windows))[::-1, None]
    # One step has no spread; its size is what is known of the image.
    varied = spread if length > 1 else np.stack(windows)[:, 0]
    total: Importance = (varied * TDDS_DECAY * (1 - TDDS_DECAY) ** ages).sum(axis=0)
    return total

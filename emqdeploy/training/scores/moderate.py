"""Moderate coresets: nearness to the median."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, score


@score("moderate", needs_features=True)
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

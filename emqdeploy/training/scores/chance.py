"""Chance: the control."""

from __future__ import annotations

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, score


@score("random")
def random_score(record: Record) -> Importance:
    """A uniform random number: the control that every other score has to beat."""
    return record.random.random(len(record.labels))

"""Chance: the control."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.scores.base import SCORES, Importance, Said, Score


@SCORES.register("random")
class Chance(Score):
    """A uniform random number: the control that every other score has to beat."""

    def update(self, said: Said) -> None:
        """Whatever was said."""

    def importance(self, random: np.random.Generator) -> Importance:
        """Drawn anew each time."""
        return random.random(self.size.images)

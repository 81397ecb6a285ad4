"""Entropy of what the network says."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.scores.base import SCORES, Importance, Said, Score, Size


@SCORES.register("entropy")
class Entropy(Score):
    """``-sum p log p`` of the latest epoch: what the network is unsure of. 4 bytes per image."""

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.latest = np.full(size.images, np.log(size.classes), np.float32)

    def update(self, said: Said) -> None:
        """Takes the place of what was said before; an image that was never seen has the entropy of even odds."""
        self.latest[said.indices] = -(said.softmax * np.log(said.softmax + 1e-8)).sum(axis=1)

    def importance(self, random: np.random.Generator) -> Importance:
        """The latest entropies."""
        return np.maximum(self.latest, 0).astype(np.float64)

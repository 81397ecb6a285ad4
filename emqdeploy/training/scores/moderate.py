"""Moderate coresets: nearness to the median."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.scores.base import SCORES, Importance, Said, Score, Size


@SCORES.register("moderate")
class Moderate(Score):
    """Nearness of ``|features - class centre|`` to its median (Moderate coreset, ICLR 2023): typical images.

    Each pass over the images measures their distances to the centres of the pass before, so that two passes are needed
    and no features are kept: 4 bytes per image, and two vectors per class.
    """

    needs_features = True
    epochs = 2

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        self.distances = np.full(size.images, np.nan, np.float32)
        self.centres = np.full((size.classes, size.width), np.nan, np.float32)
        self.sums = np.zeros((size.classes, size.width), np.float64)
        self.counts = np.zeros(size.classes, np.int64)

    def open_epoch(self) -> None:
        """Makes the centres of what the last pass saw; a class that it did not see keeps its centre."""
        seen = self.counts > 0
        self.centres[seen] = self.sums[seen] / self.counts[seen, None]
        self.sums[:], self.counts[:] = 0, 0

    def update(self, said: Said) -> None:
        """Measures distances, and adds to the centres of the next pass."""
        assert said.features is not None
        self.distances[said.indices] = np.linalg.norm(said.features - self.centres[said.labels], axis=1)
        np.add.at(self.sums, said.labels, said.features)
        np.add.at(self.counts, said.labels, 1)

    def importance(self, random: np.random.Generator) -> Importance:
        """The most for the median distance; an image without a distance counts as a typical one."""
        away = np.nan_to_num(np.abs(self.distances - np.nanmedian(self.distances)).astype(np.float64))
        return away.max() - away

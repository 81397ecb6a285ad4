"""TDDS: the spread of training dynamics."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emqdeploy.training.scores.base import SCORES, Importance, Said, Score, Size

WINDOW = 10
"""Epochs in one of TDDS's windows; shorter records are one window."""

DECAY = 0.9
"""Weight of the latest window; each earlier one weighs a tenth of the next."""

MOST_DENSE, LIKELIEST = 10, 5
"""Classes up to which the last softmax is kept whole, and how many odds are kept of more: 20 bytes either way."""


@SCORES.register("tdds")
class Tdds(Score):
    """How unsteadily the loss of an image moves from epoch to epoch (TDDS, arXiv 2311.13613; as its authors' code).

    In each window of epochs: the norm of the deviations of the moves ``sum_c |p' (log p' - log p)|`` from their mean.
    Later windows weigh more. Kept are the moves of one window, the sum over the windows before, and what an image's
    next move starts from: 40 bytes per image. Of more than `MOST_DENSE` classes that is the odds of the `LIKELIEST`,
    the rest being spread evenly over the others. The moves between several visits in one epoch add up.
    """

    epochs = 3  # two moves have a spread, one has none
    of_course = True

    def __init__(self, size: Size) -> None:
        super().__init__(size)
        images, classes, _ = size
        self.opened = np.zeros(1, np.int64)
        self.moves = np.zeros((images, WINDOW - 1), np.float16)
        self.total = np.zeros(images, np.float16)
        whole = classes <= MOST_DENSE
        self.odds = np.full((images, classes if whole else LIKELIEST), 1 / classes, np.float16)
        self.likeliest = np.tile(np.arange(0 if whole else LIKELIEST, dtype=np.int16), (images, 1))

    def open_epoch(self) -> None:
        """Counts the window that ends with the last epoch, and begins the moves of the next."""
        self.total[:] = self._total_so_far()
        self.opened += 1
        self.moves[:, self._place] = 0

    def update(self, said: Said) -> None:
        """Measures how far what is said has moved since an image was seen last."""
        before, now = self._before(said.indices), said.softmax
        if self.opened[0] > 1:
            moved = np.abs(now * (np.log(now + 1e-8) - np.log(before + 1e-8))).sum(axis=1)
            self.moves[said.indices, self._place] += moved
        self._keep(said.indices, now)

    def importance(self, random: np.random.Generator) -> Importance:
        """The weighed sum over all windows."""
        done = self._total_so_far()
        # What is too short for a whole window is one window.
        found = done if self._steps >= WINDOW - 1 else DECAY * self._spread(self.moves[:, : self._steps])
        return found.astype(np.float64)

    @property
    def _steps(self) -> int:
        """Moves between epochs so far."""
        return max(int(self.opened[0]) - 1, 0)

    @property
    def _place(self) -> int:
        """Where the moves of this epoch are kept."""
        return (self._steps - 1) % (WINDOW - 1)

    def _total_so_far(self) -> NDArray[np.float32]:
        total = self.total.astype(np.float32)
        if self._steps < WINDOW - 1:
            return total
        return (1 - DECAY) * total + DECAY * self._spread(self.moves)

    @staticmethod
    def _spread(moves: NDArray[np.float16]) -> NDArray[np.float32]:
        wide = moves.astype(np.float32)
        norms: NDArray[np.float32] = np.linalg.norm(wide - wide.mean(axis=1, keepdims=True), axis=1)
        return norms

    def _before(self, indices: NDArray[np.int64]) -> NDArray[np.float32]:
        """The softmax that images had when they were seen last, ``(B, classes)``."""
        odds = self.odds[indices].astype(np.float32)
        classes = self.size.classes
        if classes <= MOST_DENSE:
            return odds
        rest = np.maximum(1 - odds.sum(axis=1, keepdims=True), 0) / (classes - LIKELIEST)
        whole = np.repeat(rest, classes, axis=1)
        np.put_along_axis(whole, self.likeliest[indices].astype(np.int64), odds, axis=1)
        return whole

    def _keep(self, indices: NDArray[np.int64], softmax: NDArray[np.float32]) -> None:
        if self.size.classes <= MOST_DENSE:
            self.odds[indices] = softmax
            return
        likeliest = np.argpartition(-softmax, LIKELIEST, axis=1)[:, :LIKELIEST]
        self.likeliest[indices] = likeliest
        self.odds[indices] = np.take_along_axis(softmax, likeliest, axis=1)

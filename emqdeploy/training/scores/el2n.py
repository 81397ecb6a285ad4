"""EL2N: the error norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emqdeploy.training.scores.base import SCORES, MeanScore, Said


@SCORES.register("el2n")
class El2n(MeanScore):
    """``||softmax - onehot||_2``, mean over epochs (Data Diet, arXiv 2107.07075)."""

    def of(self, said: Said) -> NDArray[np.float32]:
        """The error norms."""
        return said.errors()

"""GraNd: the gradient norm."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from emqdeploy.training.scores.base import SCORES, MeanScore, Said


@SCORES.register("grand")
class GraNd(MeanScore):
    """Norm of the last layer's gradient, bias and weights, mean over epochs (GraNd, arXiv 2107.07075).

    Of the last layer alone as in DeepCore (arXiv 2204.08499). The gradient is the outer product of ``softmax - onehot``
    and ``(1, features)``, so its norm is a product, and no features are kept.
    """

    needs_features = True

    def of(self, said: Said) -> NDArray[np.float32]:
        """The gradient norms."""
        assert said.features is not None
        lengths: NDArray[np.float32] = np.sqrt(1 + np.square(said.features).sum(axis=1))
        return said.errors() * lengths

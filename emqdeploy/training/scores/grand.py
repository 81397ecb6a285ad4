"""GraNd: the gradient norm."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores.base import Importance, mean_error, score


@score("grand", needs_features=True)
def grand(record: Record) -> Importance:
    """Norm of the last layer's gradient, bias and weights (GraNd, arXiv 2107.07075; the last layer as in DeepCore).

    The gradient is the outer product of ``softmax - onehot`` and ``(1, features)``, so its norm is a product.
    """
    assert record.features is not None
    embedding = np.sqrt(1 + np.square(record.features.astype(np.float64)).sum(axis=1))
    return mean_error(record) * embedding

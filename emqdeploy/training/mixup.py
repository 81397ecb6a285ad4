"""Mixup (arXiv 1710.09412): training images are sums of two, and so are their labels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch.nn.functional as F
from torch import Tensor

STREAM = 0x313
"""The number of the random stream of shares."""


def mixed(images: Tensor, labels: Tensor, classes: int, alpha: float, seed: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Every image of a batch, and the one at its place in the reversed batch, in shares that add up to 1.

    Args:
        images: normalised, ``(B, C, H, W)``, in random order.
        labels: ``(B,)``.
        classes: outputs of the network.
        alpha: the shares are drawn from ``Beta(alpha, alpha)``, one pair for the batch; 1 is every share alike.
        seed: of the draw.

    Returns:
        images ``(B, C, H, W)`` and the odds of their classes ``(B, classes)``.
    """
    share = float(np.random.default_rng([*seed, STREAM]).beta(alpha, alpha))
    odds = F.one_hot(labels, classes).to(images.dtype)
    return images.flip(0).lerp(images, share), odds.flip(0).lerp(odds, share)

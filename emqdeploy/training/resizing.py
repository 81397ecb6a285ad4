"""Progressive resizing: training begins with smaller images, which cost less (EfficientNetV2, arXiv 2104.00298)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.norms import undisturbed

GROWN = 0.5
"""Share of the run after which images have their whole size: what is deployed trains on those."""

SIZES = 8
"""Sides are eighths of the whole one, so that a network that halves them three times still can."""


def side_at(done: float, first: float) -> float:
    """The side of images as a share of the whole one.

    Args:
        done: share of the run that is over.
        first: the side to begin with.
    """
    side = first + (1 - first) * min(done / GROWN, 1.0)
    return math.ceil(side * SIZES - 1e-9) / SIZES


def resized(images: Tensor, side: float) -> Tensor:
    """Scales images ``(N, C, H, W)`` bilinearly, without aliasing."""
    if side == 1:
        return images
    size = [max(round(length * side), 1) for length in images.shape[2:]]
    return F.interpolate(images, size, mode="bilinear", antialias=True)


def check_resizing(network: MultiBitNetwork, images: Tensor, first: float) -> None:
    """Raises where a network takes images of one size only.

    Args:
        network: as it will train.
        images: a few of the whole size, normalised.
        first: the side to begin with.
    """
    small = resized(images, side_at(0.0, first))
    try:
        with torch.no_grad(), undisturbed(network), network.at(FLOAT):
            network(small)
    except (RuntimeError, ValueError, AssertionError, TypeError) as error:
        size = " x ".join(map(str, small.shape[2:]))
        raise UsageError(
            f"--resize-from {first:g} begins with images of {size}, which this network does not take"
            f" ({str(error).splitlines()[0]}); leave it out, or begin with larger ones"
        ) from error

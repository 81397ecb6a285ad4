"""RandAugment (arXiv 1909.13719): each image undergoes two changes that are drawn from a dozen, at one strength.

Whole batches at once, where they lie. The strength is 9 of 30; signs are drawn.
Equalization of histograms is left out, because it is the one change that cannot be made of a batch at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

ROUNDS, STRENGTH = 2, 9 / 30

GREY = 127.5

Change = Callable[[Tensor, Tensor], Tensor]
"""``(images (B, C, H, W) in 0..255, signs (B, 1, 1, 1)) -> images``."""


def _moved(images: Tensor, rows: list[Tensor]) -> Tensor:
    """Samples images at an affine function of the place, ``x' = a x + b y + c`` and so on; outside is grey."""
    theta = torch.stack(rows, 1).reshape(-1, 2, 3)
    grid = F.affine_grid(theta, list(images.shape), align_corners=False)
    return F.grid_sample(images - GREY, grid, align_corners=False) + GREY


def _affine(across: float, down: float, shift: tuple[float, float] = (0.0, 0.0)) -> Change:
    def change(images: Tensor, signs: Tensor) -> Tensor:
        sign = signs.flatten()
        one = torch.ones_like(sign)
        return _moved(images, [one, sign * across, sign * shift[0], sign * down, one, sign * shift[1]])

    return change


def _rotate(images: Tensor, signs: Tensor) -> Tensor:
    angle = signs.flatten() * math.radians(30 * STRENGTH)
    zero = torch.zeros_like(angle)
    return _moved(images, [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero])


def _blend(other: Callable[[Tensor], Tensor]) -> Change:
    """Towards another image, or away from it."""

    def change(images: Tensor, signs: Tensor) -> Tensor:
        return torch.lerp(other(images), images, 1 + signs * 0.9 * STRENGTH).clamp(0, 255)

    return change


def _grey(images: Tensor) -> Tensor:
    """Brightness of every pixel."""
    return images.mean(1, keepdim=True).expand_as(images)


def _blurred(images: Tensor) -> Tensor:
    padded = F.pad(images, (1, 1, 1, 1), mode="replicate")
    return (F.avg_pool2d(padded, 3, 1) * 9 + 4 * images) / 13


def _posterize(images: Tensor, signs: Tensor) -> Tensor:
    step = 2.0 ** round(4 * STRENGTH)
    return (images / step).floor() * step


def _solarize(images: Tensor, signs: Tensor) -> Tensor:
    return torch.where(images >= 255 * (1 - STRENGTH), 255 - images, images)


def _stretch(images: Tensor, signs: Tensor) -> Tensor:
    """From the darkest to the brightest value of each channel, to all of the range."""
    low, high = images.amin((2, 3), keepdim=True), images.amax((2, 3), keepdim=True)
    return torch.where(high > low, (images - low) * 255 / (high - low).clamp(min=1), images)


CHANGES: tuple[Change, ...] = (
    lambda images, signs: images,
    _rotate,
    _affine(0.3 * STRENGTH, 0.0),
    _affine(0.0, 0.3 * STRENGTH),
    _affine(0.0, 0.0, (0.9 * STRENGTH, 0.0)),
    _affine(0.0, 0.0, (0.0, 0.9 * STRENGTH)),
    _blend(torch.zeros_like),
    _blend(lambda images: images.mean((1, 2, 3), keepdim=True).expand_as(images)),
    _blend(_grey),
    _blend(_blurred),
    _posterize,
    _solarize,
    _stretch,
)


def rand_augment(images: Tensor, random: torch.Generator) -> Tensor:
    """Changes each image twice, by chance.

    Args:
        images: ``(N, C, H, W)``, uint8 or float in 0..255.
        random: on the CPU.

    Returns:
        float32 images of the same shape, in 0..255.
    """
    images = images.to(torch.float32, copy=True)
    for _ in range(ROUNDS):
        chosen = torch.randint(len(CHANGES), (len(images),), generator=random)
        signs = (torch.randint(2, (len(images), 1, 1, 1), generator=random) * 2.0 - 1).to(images.device)
        for number, change in enumerate(CHANGES):
            places = (chosen == number).nonzero().flatten().to(images.device)
            if len(places):
                images[places] = change(images[places], signs[places])
    return images.clamp_(0, 255).contiguous()

"""Augmentation of whole batches on the device where they lie."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.registry import Registry

Augmentation = Callable[[Tensor, torch.Generator], Tensor]
"""``(images (N, C, H, W), random) -> images`` of the same shape."""

AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


@AUGMENTATIONS.register("none")
def keep_images(images: Tensor, random: torch.Generator) -> Tensor:
    """Leaves the images as they are."""
    return images


@AUGMENTATIONS.register("shift1")
def shift_one(images: Tensor, random: torch.Generator) -> Tensor:
    """Shifts by up to one pixel, for tiny images."""
    return _random_crop(images, 1, random)


@AUGMENTATIONS.register("crop-flip")
def crop_and_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Random crop after padding by an eighth, and a random horizontal flip: the standard of CIFAR."""
    flip = torch.rand(len(images), 1, 1, 1, generator=random, device=images.device) < 0.5
    return _random_crop(torch.where(flip, images.flip(3), images), images.shape[3] // 8, random)


def _random_crop(images: Tensor, padding: int, random: torch.Generator) -> Tensor:
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode="replicate")
    offsets = torch.randint(0, 2 * padding + 1, (2, count), generator=random, device=images.device)
    rows = offsets[0, :, None] + torch.arange(height, device=images.device)
    columns = offsets[1, :, None] + torch.arange(width, device=images.device)
    picked = torch.arange(count, device=images.device)[:, None, None]
    return padded.permute(0, 2, 3, 1)[picked, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()

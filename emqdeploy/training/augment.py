"""Augmentation: of whole batches on the device where they lie, and of pictures while they are decoded."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.data.geometry import Box
from emqdeploy.registry import Registry
from emqdeploy.training.rand_augment import rand_augment

BatchFunction = Callable[[Tensor, torch.Generator], Tensor]
"""``(images (N, C, H, W), random) -> images`` of the same shape, on their device; ``random`` is on the CPU."""

PADDING_SHARE = 8
"""Images are padded by an eighth of their width: 4 pixels of 32, 8 of 64."""

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
"""Share of the area and aspect ratio of a random crop, as in the usual ImageNet training (arXiv 1409.4842)."""


def keep_images(images: Tensor, random: torch.Generator) -> Tensor:
    """Leaves the images as they are."""
    return images


@dataclass(frozen=True)
class Augmentation:
    """One way to vary training images.

    Attributes:
        of_images: varies a batch of decoded images, uint8 or float in 0..255.
        box: ``(width, height, random) -> `` the part of a picture to decode, where the pixels come from files; None
            decodes what a test would see.
        of_boxes: varies a batch of such parts.
    """

    of_images: BatchFunction
    box: Callable[[int, int, np.random.Generator], Box] | None = None
    of_boxes: BatchFunction | None = None

    def __call__(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Varies a batch of decoded images ``(N, C, H, W)``."""
        return self.of_images(images, random)

    def finish(self, images: Tensor, random: torch.Generator) -> Tensor:
        """Varies a batch that was decoded from files, after ``box`` chose the parts."""
        return self.of_images(images, random) if self.of_boxes is None else self.of_boxes(images, random)


AUGMENTATIONS: Registry[Augmentation] = Registry("augmentation")


def shift_one(images: Tensor, random: torch.Generator) -> Tensor:
    """Shifts by up to one pixel and repeats the border, for tiny images."""
    return _random_crop(images, 1, random, "replicate")


def flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Mirrors every other image, by chance, left to right."""
    mirrored = (torch.rand(len(images), 1, 1, 1, generator=random) < 0.5).to(images.device)
    return torch.where(mirrored, images.flip(3), images)


def crop_and_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Mirrors by chance, pads by an eighth with black and crops anywhere: the standard of CIFAR (arXiv 1512.03385)."""
    images = flip(images, random)
    return _random_crop(images, images.shape[3] // PADDING_SHARE, random, "constant")


def reflected_crop_and_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """The same, padded with the image's own reflection, so that no border is unlike a picture."""
    images = flip(images, random)
    return _random_crop(images, images.shape[3] // PADDING_SHARE, random, "reflect")


def resized_crop_and_flip(images: Tensor, random: torch.Generator) -> Tensor:
    """Scales a random part of each image to its full size, bilinearly, and mirrors by chance; returns float."""
    count, _, height, width = images.shape
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=random)))
    boxes = np.array([random_box(width, height, draws) for _ in range(count)], np.float32).reshape(count, 4)
    left, top, right, bottom = torch.from_numpy(boxes).to(images.device).unbind(1)
    zero = torch.zeros_like(left)
    across = torch.stack([(right - left) / width, zero, (left + right) / width - 1], 1)
    down = torch.stack([zero, (bottom - top) / height, (top + bottom) / height - 1], 1)
    grid = F.affine_grid(torch.stack([across, down], 1), list(images.shape), align_corners=False)
    parts = F.grid_sample(images.float(), grid, padding_mode="border", align_corners=False)
    return flip(parts, random)


def crop_flip_and_change(images: Tensor, random: torch.Generator) -> Tensor:
    """RandAugment after the crops and mirrors of CIFAR; returns float."""
    return rand_augment(crop_and_flip(images, random), random)


def resized_crop_flip_and_change(images: Tensor, random: torch.Generator) -> Tensor:
    """RandAugment after the crops and mirrors of ImageNet; returns float."""
    return rand_augment(resized_crop_and_flip(images, random), random)


def flip_and_change(images: Tensor, random: torch.Generator) -> Tensor:
    """RandAugment after mirrors; returns float."""
    return rand_augment(flip(images, random), random)


def random_box(width: int, height: int, random: np.random.Generator) -> Box:
    """Draws a part of a picture: 8 to 100 % of its area, 3:4 to 4:3; its middle where none of ten draws fits."""
    for _ in range(10):
        area = width * height * random.uniform(*SCALE)
        ratio = math.exp(random.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        across, down = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < across <= width and 0 < down <= height:
            x, y = int(random.integers(width - across + 1)), int(random.integers(height - down + 1))
            return (x, y, x + across, y + down)
    across = min(width, max(1, round(height * RATIO[1])))
    down = min(height, max(1, round(width / RATIO[0])))
    x, y = (width - across) // 2, (height - down) // 2
    return (x, y, x + across, y + down)


def _random_crop(images: Tensor, padding: int, random: torch.Generator, border: str) -> Tensor:
    count, _, height, width = images.shape
    # Of the padded images, every window that a crop can take, as a view: one gather makes the batch.
    windows = F.pad(images, (padding,) * 4, mode=border).unfold(2, height, 1).unfold(3, width, 1)
    rows, columns = torch.randint(0, 2 * padding + 1, (2, count), generator=random).to(images.device)
    return windows[torch.arange(count, device=images.device), :, rows, columns]


AUGMENTATIONS.register("none")(Augmentation(keep_images))
AUGMENTATIONS.register("flip")(Augmentation(flip))
AUGMENTATIONS.register("shift1")(Augmentation(shift_one))
AUGMENTATIONS.register("crop-flip")(Augmentation(crop_and_flip))
AUGMENTATIONS.register("reflected-crop-flip")(Augmentation(reflected_crop_and_flip))
AUGMENTATIONS.register("resized-crop-flip")(Augmentation(resized_crop_and_flip, random_box, flip))
AUGMENTATIONS.register("crop-flip-rand")(Augmentation(crop_flip_and_change))
AUGMENTATIONS.register("resized-crop-flip-rand")(
    Augmentation(resized_crop_flip_and_change, random_box, flip_and_change)
)

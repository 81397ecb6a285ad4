"""Augmentation: reproducible, in bounds, and nothing but shifts and flips."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.training.augment import AUGMENTATIONS


@pytest.mark.parametrize("name", list(AUGMENTATIONS))
def test_same_generator_same_images(name: str) -> None:
    """Exact resuming depends on it."""
    images = torch.rand(6, 3, 16, 16)
    first = AUGMENTATIONS[name](images, torch.Generator().manual_seed(1))
    second = AUGMENTATIONS[name](images, torch.Generator().manual_seed(1))
    assert torch.equal(first, second)
    assert first.shape == images.shape
    assert first.is_contiguous()


def test_shift_moves_by_at_most_one_pixel() -> None:
    """Digits of eight pixels do not survive more."""
    image = torch.zeros(1, 1, 8, 8)
    image[0, 0, 4, 4] = 1
    places = set()
    for seed in range(60):
        shifted = AUGMENTATIONS["shift1"](image, torch.Generator().manual_seed(seed))
        assert shifted.sum() == 1
        places.add(tuple(torch.nonzero(shifted[0, 0])[0].tolist()))
    assert places == {(row, column) for row in (3, 4, 5) for column in (3, 4, 5)}


def test_crop_and_flip_keeps_pixels_of_their_own_image() -> None:
    """A mixed-up gather would train on the neighbours' pixels."""
    images = torch.arange(4.0).reshape(4, 1, 1, 1).expand(4, 1, 16, 16).contiguous()
    augmented = AUGMENTATIONS["crop-flip"](images, torch.Generator().manual_seed(0))
    assert torch.equal(augmented, images)

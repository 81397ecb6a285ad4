"""Augmentation: reproducible, in bounds, and nothing but shifts and flips."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from emqdeploy.training.augment import AUGMENTATIONS, random_box
from emqdeploy.training.rand_augment import CHANGES


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
    for index in range(1, 4):
        assert set(augmented[index].unique().tolist()) <= {0, index}
        assert (augmented[index] == index).any()


def test_zero_padding_shows_black() -> None:
    """CIFAR's crops are padded with black pixels, not with the border repeated."""
    images = torch.full((200, 3, 32, 32), 9, dtype=torch.uint8)
    cropped = AUGMENTATIONS["crop-flip"](images, torch.Generator().manual_seed(0))
    assert cropped.dtype == torch.uint8
    assert set(cropped.unique().tolist()) == {0, 9}
    kept = (cropped[:, 0] == 9).sum((1, 2))
    assert kept.min() == 28 * 28
    assert kept.max() == 32 * 32


@pytest.mark.parametrize("kind", [torch.uint8, torch.float32])
def test_a_reflected_border_shows_no_black(kind: torch.dtype) -> None:
    """Only what is in the image already, of either kind of pixels."""
    images = torch.arange(1, 1 + 16 * 16).remainder(250).add(1).reshape(1, 1, 16, 16).to(kind)
    cropped = AUGMENTATIONS["reflected-crop-flip"](images.expand(50, 1, 16, 16), torch.Generator().manual_seed(0))
    assert cropped.dtype == kind
    assert set(cropped.unique().tolist()) <= set(images.unique().tolist())
    assert not (cropped == images).all()


def test_random_boxes_have_the_stated_area_and_shape() -> None:
    """8 to 100 % of the picture at 3:4 to 4:3, anywhere in it, as ImageNet networks are trained."""
    random = np.random.default_rng(0)
    boxes = np.array([random_box(500, 400, random) for _ in range(2000)])
    left, top, right, bottom = boxes.T
    assert boxes.min() >= 0
    assert right.max() <= 500
    assert bottom.max() <= 400
    area = (right - left) * (bottom - top) / 200_000
    ratio = (right - left) / (bottom - top)
    assert 0.075 < area.min() < 0.1
    assert area.max() > 0.9
    assert 0.72 < ratio.min() < 0.8
    assert 1.25 < ratio.max() < 1.38


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2000, 1), (1, 2000), (3, 2)])
def test_random_boxes_fit_odd_pictures(width: int, height: int) -> None:
    """A panorama has no part of the right shape and size; its middle serves."""
    random = np.random.default_rng(1)
    for _ in range(50):
        left, top, right, bottom = random_box(width, height, random)
        assert 0 <= left < right <= width
        assert 0 <= top < bottom <= height


def test_resized_crops_of_a_batch_match_pillow() -> None:
    """Crops of images in memory are bilinear enlargements of the drawn boxes, at the right place and scale."""
    ramp = np.add.outer(2 * np.arange(64), np.arange(64)).astype(np.uint8)
    images = torch.from_numpy(ramp)[None, None].repeat(20, 1, 1, 1)
    result = AUGMENTATIONS["resized-crop-flip"](images, torch.Generator().manual_seed(4))
    generator = torch.Generator().manual_seed(4)
    draws = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    mirrored = torch.rand(20, 1, 1, 1, generator=generator) < 0.5
    for index in range(20):
        box = random_box(64, 64, draws)
        expected = np.asarray(
            Image.fromarray(ramp.astype(np.float32)).resize((64, 64), Image.Resampling.BILINEAR, box=box)
        )
        found = result[index, 0].flip(1) if mirrored[index, 0, 0, 0] else result[index, 0]
        np.testing.assert_allclose(found.numpy(), expected, atol=1.0)


@pytest.mark.parametrize("number", range(len(CHANGES)))
@pytest.mark.parametrize("channels", [1, 3])
def test_every_change_of_rand_augment_keeps_the_range(number: int, channels: int) -> None:
    """Pixels stay in 0..255, images apart: what one becomes does not depend on its neighbours in the batch."""
    images = torch.rand(4, channels, 16, 16, generator=torch.Generator().manual_seed(number)) * 255
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(4, 1, 1, 1)
    changed = CHANGES[number](images, signs)
    assert changed.shape == images.shape
    assert changed.min() >= -1e-3
    assert changed.max() <= 255 + 1e-3
    torch.testing.assert_close(CHANGES[number](images[2:3], signs[2:3]), changed[2:3])


def test_rand_augment_moves_and_recolours() -> None:
    """Of many images most change, some move (grey comes in from outside), none leaves the range."""
    images = torch.zeros(200, 3, 16, 16, dtype=torch.uint8)
    images[:, :, 8:] = 200
    changed = AUGMENTATIONS["crop-flip-rand"](images, torch.Generator().manual_seed(0))
    plain = AUGMENTATIONS["crop-flip"](images, torch.Generator().manual_seed(0)).float()
    assert ((changed - plain).abs().amax((1, 2, 3)) > 1).float().mean() > 0.7
    assert (changed >= 0).all()
    assert (changed <= 255).all()

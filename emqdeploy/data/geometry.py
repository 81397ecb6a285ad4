"""From a picture of any size to the pixels that a network sees: which part, made how large, by which interpolation."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.data.resampling import resampled
from emqdeploy.errors import require

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

Size = tuple[int, int]
"""Rows and columns."""


def centre_box(picture: Size, target: Size, resize: str, resized: Size) -> Box | None:
    """Return the part of a picture that a network is tested on; None for all of it.

    Args:
        picture: Rows and columns of the picture.
        target: Rows and columns of the network's input.
        resize: ``cover`` or ``stretch``, see `emqdeploy.format.card.Pixels`.
        resized: Rows and columns that the whole picture covers, or gets.
    """
    if picture == target or (resize == "stretch" and resized == target):
        return None
    # The box is cut and scaled in one step: resizing first lets a very long picture fill the memory. Rounding as the
    # two steps do puts them in the same place.
    rows, columns = resized
    if resize == "cover":
        zoom = max(rows / picture[0], columns / picture[1])
        rows, columns = (int(side * zoom + 1e-6) for side in picture)
    top, left = round((rows - target[0]) / 2), round((columns - target[1]) / 2)
    down, across = picture[0] / rows, picture[1] / columns
    return (left * across, top * down, (left + target[1]) * across, (top + target[0]) * down)


def cut(image: Any, box: Box | None, target: Size, interpolation: str) -> npt.NDArray[np.uint8]:
    """Return a part of a Pillow image as pixels (C, H, W), scaled where its size differs."""
    size = (target[1], target[0])
    if image.size != size or box is not None:
        filters = require("PIL.Image", "runtime").Resampling
        image = image.resize(size, filters[interpolation.upper()], box=box)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def cut_frame(frame: npt.NDArray[np.uint8], box: Box | None, target: Size, interpolation: str) -> npt.NDArray[np.uint8]:
    """Return a part of a frame (H, W, C) as pixels (C, H, W); the same as `cut`, by Pillow where there is one.

    Without it numpy computes the same sums, rounded to the same step but for ties.
    """
    if box is None and frame.shape[:2] == target:
        return np.ascontiguousarray(frame.transpose(2, 0, 1))
    try:
        from PIL import Image
    except ImportError:
        return resampled(frame, box or (0, 0, frame.shape[1], frame.shape[0]), target, interpolation)
    return cut(Image.fromarray(frame[..., 0] if frame.shape[2] == 1 else frame), box, target, interpolation)

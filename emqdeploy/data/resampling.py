"""Resizing in numpy, as Pillow does it: for a device whose frames come from a camera and that has no Pillow."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def _cubic(x: Floats) -> Floats:
    """Keys' kernel with a = -0.5."""
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


FILTERS: dict[str, tuple[float, Callable[[Floats], Floats]]] = {
    "box": (0.5, lambda x: np.where(x <= 0.5, 1.0, 0.0)),
    "bilinear": (1.0, lambda x: np.maximum(1 - x, 0)),
    "bicubic": (2.0, _cubic),
    "lanczos": (3.0, lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0.0)),
}
"""How far each reaches, and its weight at a distance (not negative), in pixels of the result where that is smaller."""

INTERPOLATIONS = ("nearest", *FILTERS)

_TALL = 2
"""How many times taller than wide a picture is that Pillow makes lower before it makes it narrower."""


def resampled(
    frame: npt.NDArray[np.uint8], box: tuple[float, float, float, float], target: tuple[int, int], interpolation: str
) -> npt.NDArray[np.uint8]:
    """Scale a part of a frame.

    Args:
        frame: Pixels (H, W, C).
        box: Left, top, right, bottom in pixels.
        target: Rows and columns of the result.
        interpolation: One of `INTERPOLATIONS`.

    Returns:
        Pixels (C, rows, columns).
    """
    left, top, right, bottom = box
    first_row, rows = _weights(top, bottom, frame.shape[0], target[0], interpolation)
    first_column, columns = _weights(left, right, frame.shape[1], target[1], interpolation)
    used = frame[first_row : first_row + rows.shape[1], first_column : first_column + columns.shape[1]]
    part: npt.NDArray[np.float32] = used.astype(np.float32)
    if len(part) > _TALL * part.shape[1]:  # as Pillow does: what is rounded between the passes depends on their order
        result = _rounded(columns @ _down(rows, part))
    else:
        result = _down(rows, _rounded(columns @ part))
    return np.ascontiguousarray(result.transpose(2, 0, 1)).astype(np.uint8)


def _down(rows: npt.NDArray[np.float32], part: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return _rounded(rows @ part.reshape(len(part), -1)).reshape(len(rows), *part.shape[1:])


def _rounded(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return np.clip(np.floor(values + np.float32(0.5)), 0, 255)


@functools.lru_cache(maxsize=16)
def _weights(start: float, stop: float, size: int, count: int, name: str) -> tuple[int, npt.NDArray[np.float32]]:
    """The first pixel that counts along one axis, and the share of each from there in every result, ``(count, n)``."""
    scale = (stop - start) / count
    centres = np.cumsum(np.r_[start + scale / 2, np.full(count - 1, scale)])
    if name == "nearest":
        nearest = np.clip(np.floor(centres).astype(int), 0, size - 1)
        weights = np.zeros((count, size))
        weights[np.arange(count), nearest] = 1
    else:
        reach, weigh = FILTERS[name]
        wider = max(scale, 1.0)  # what is made smaller is averaged over all of its pixels
        first = np.maximum(np.floor(centres - reach * wider + 0.5), 0)[:, None]
        last = np.minimum(np.floor(centres + reach * wider + 0.5), size)[:, None]
        pixels = np.arange(size)[None]
        weights = weigh(np.abs(pixels - centres[:, None] + 0.5) / wider)
        weights[(pixels < first) | (pixels >= last)] = 0
        weights /= weights.sum(1, keepdims=True)
    used = np.flatnonzero(weights.any(0))
    low, high = int(used[0]), math.ceil(used[-1]) + 1
    return low, np.ascontiguousarray(weights[:, low:high], np.float32)

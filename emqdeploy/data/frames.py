"""Frames as a camera gives them: uint8 arrays, channels last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from emqdeploy.errors import UsageError

Frames = npt.NDArray[np.uint8] | Sequence[npt.NDArray[np.uint8]]
"""One frame (H, W, 3) or (H, W), several (N, H, W, C), or a sequence of them."""

_RED, _GREEN, _BLUE, _BITS = 19595, 38470, 7471, 16
"""0.299, 0.587 and 0.114 in 16 bits: how Pillow makes a colour grey."""


def stacked(frames: Frames, channel_order: str) -> list[npt.NDArray[np.uint8]]:
    """Return every frame as (H, W, 1) or (H, W, 3).

    Raises:
        UsageError: These are no frames; the sentence says what was given and what is taken.
    """
    if channel_order not in ("rgb", "bgr"):
        raise UsageError(f"the channel order of frames is {channel_order!r}; allowed: rgb, bgr (OpenCV's)")
    several = list(frames) if not isinstance(frames, np.ndarray) or frames.ndim == 4 else [frames]
    if not several:
        raise UsageError("there is no frame; give at least one uint8 array (H, W, 3)")
    return [_checked(frame) for frame in several]


def _checked(frame: object) -> npt.NDArray[np.uint8]:
    if not isinstance(frame, np.ndarray):
        raise UsageError(
            f"a frame is a {type(frame).__name__}; give a uint8 array (H, W, 3), of a Pillow image np.asarray(image)"
        )
    given = f"a frame has shape {frame.shape} and type {frame.dtype}"
    if frame.dtype != np.uint8:
        raise UsageError(f"{given}; frames are uint8, 0 to 255, and what is normalised already goes to run as it is")
    if frame.ndim == 3 and frame.shape[2] == 4:
        raise UsageError(f"{given}; leave its fourth channel out: frame[..., :3]")
    if frame.ndim == 3 and frame.shape[0] in (1, 3) and frame.shape[2] not in (1, 3):
        raise UsageError(f"{given}; channels come last: frame.transpose(1, 2, 0)")
    if frame.ndim not in (2, 3) or frame.shape[2:] not in ((), (1,), (3,)) or not frame.size:
        raise UsageError(f"{given}; a frame is (H, W, 3) or (H, W), several are (N, H, W, C) or a list")
    return frame if frame.ndim == 3 else frame[..., None]


def grey(frame: npt.NDArray[np.uint8], channel_order: str) -> npt.NDArray[np.uint8]:
    """Return a frame (H, W, 3) as (H, W, 1), to the last bit as Pillow does."""
    red, green, blue = np.moveaxis(frame, 2, 0)[:: 1 if channel_order == "rgb" else -1].astype(np.uint32)
    value = (red * _RED + green * _GREEN + blue * _BLUE + (1 << (_BITS - 1))) >> _BITS
    return value.astype(np.uint8)[..., None]

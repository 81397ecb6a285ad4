"""How pictures become network inputs, the same in training and on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from emqdeploy.data.frames import Frames, grey, stacked
from emqdeploy.data.geometry import Box, centre_box, cut, cut_frame
from emqdeploy.data.images import open_image
from emqdeploy.data.resampling import INTERPOLATIONS
from emqdeploy.errors import EmqError
from emqdeploy.format.card import Pixels, usual_resize

COLOUR_ORDERS = ("rgb", "bgr")


@dataclass(frozen=True)
class Preprocessing:
    """How pictures become network inputs; the fields are those of `emqdeploy.format.card.Pixels`.

    Pixels are grey, or red first, wherever they lie; `normalize` puts the channels in the network's order, in which
    ``mean`` and ``std`` are as well. These are in units of the full pixel range: 1.0 is pixel value 255.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    channel_order: str = ""
    resize: str = ""
    resized: tuple[int, int] = (0, 0)
    interpolation: str = "bilinear"

    def __post_init__(self) -> None:
        resize, resized = usual_resize(self.height, self.width)
        usual = {"channel_order": "grey" if self.channels == 1 else "rgb", "resize": resize, "resized": resized}
        for name, value in usual.items():
            if not any(getattr(self, name)):
                object.__setattr__(self, name, value)
        sizes_fit = self.channels in (1, 3) and self.height > 0 and self.width > 0
        if not sizes_fit or not len(self.mean) == len(self.std) == self.channels:
            raise EmqError(
                "preprocessing needs 1 or 3 channels, a positive size, and one mean and std for "
                f"each channel, not {self}"
            )
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            raise EmqError(f"preprocessing needs a finite mean and a positive std, not {self}")
        if self.channel_order not in (COLOUR_ORDERS if self.channels == 3 else ("grey",)):
            raise EmqError(f"{self.channels} channels are not in the order {self.channel_order!r}")
        if self.interpolation not in INTERPOLATIONS or self.resize not in ("cover", "stretch"):
            raise EmqError(f"preprocessing cannot resize by {self.resize!r} and {self.interpolation!r}")
        if self.resized[0] < self.height or self.resized[1] < self.width:
            raise EmqError(
                f"pictures of {self.resized} pixels are smaller than the input, {self.height} x {self.width}"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of an input."""
        return (self.channels, self.height, self.width)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of an input."""
        return (self.height, self.width)

    def pixels_of(self, picture: Any) -> npt.NDArray[np.uint8]:
        """Return pixels (C, H, W) of a Pillow image of as many channels, as the network is tested on it."""
        return self.part_of(picture, self._box(picture.height, picture.width))

    def part_of(self, picture: Any, box: Box | None) -> npt.NDArray[np.uint8]:
        """Return a part of a Pillow image, None for all of it, as pixels (C, H, W)."""
        return cut(picture, box, self.size, self.interpolation)

    def _box(self, rows: int, columns: int) -> Box | None:
        return centre_box((rows, columns), self.size, self.resize, self.resized)

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return ``(images / 255 - mean) / std``, computed in float32 in this order, channels in the network's.

        Args:
            images: Pixels (N, C, H, W), uint8, grey or red first.

        Returns:
            Inputs (N, C, H, W), float32.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or images.dtype != np.uint8:
            raise EmqError(
                f"images must be uint8 of shape (N, {self.channels}, H, W), not {images.dtype} of shape {images.shape}"
            )
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        scaled = (images[:, ::-1] if self.channel_order == "bgr" else images).astype(np.float32, order="C")
        # In place: at 224 x 224 every temporary copy of a batch costs a device megabytes.
        scaled /= np.float32(255)
        scaled -= mean
        scaled /= std
        return scaled

    @property
    def input_range(self) -> float:
        """Largest absolute input that any pixel can reach: the clip of the input quantizer."""
        extremes = np.empty((2, self.channels, 1, 1), np.uint8)
        extremes[0], extremes[1] = 0, 255
        return float(np.abs(self.normalize(extremes)).max())

    def read(self, path: str | Path) -> npt.NDArray[np.uint8]:
        """Read an image file as pixels (C, H, W), grey or red first.

        Raises:
            EmqError: The file is missing or is not a readable image.
        """
        return self.pixels_of(open_image(Path(path), self.channels))

    def load_image(self, path: str | Path) -> npt.NDArray[np.float32]:
        """Read one image file as a network input (1, C, H, W), float32; raises as `read`."""
        return self.normalize(self.read(path)[None])

    def prepare(self, frames: Frames, channel_order: str = "rgb") -> npt.NDArray[np.float32]:
        """Return frames of a camera as network inputs; needs neither Pillow nor OpenCV, and uses Pillow if it is there.

        Args:
            frames: One uint8 array (H, W, 3) or (H, W), an array of several (N, H, W, C), or a sequence of arrays, also
                of different sizes.
            channel_order: Of the frames: ``rgb``, or ``bgr`` as OpenCV gives them.

        Returns:
            Inputs (N, C, H, W), float32.

        Raises:
            UsageError: One sentence: these are no such arrays.
        """
        pixels = [self._seen(frame, channel_order) for frame in stacked(frames, channel_order)]
        return self.normalize(np.stack(pixels))

    def _seen(self, frame: npt.NDArray[np.uint8], channel_order: str) -> npt.NDArray[np.uint8]:
        """A frame (H, W, C) as pixels (C, H, W), grey or red first."""
        if self.channels == 1 and frame.shape[2] == 3:
            frame, channel_order = grey(frame, channel_order), "grey"
        pixels = cut_frame(frame, self._box(*frame.shape[:2]), self.size, self.interpolation)
        if channel_order == "bgr":
            pixels = pixels[::-1]
        return np.broadcast_to(pixels, self.shape)

    @classmethod
    def of(cls, pixels: Pixels) -> Preprocessing:
        """What a card says."""
        resized = cast("tuple[int, int]", pixels.resized)
        order, resize = pixels.channel_order or "", pixels.resize or ""
        return cls(*_first(pixels), order, resize, resized, pixels.interpolation)

    def pixels(self) -> Pixels:
        """What a card says of it."""
        more: dict[str, Any] = {name: getattr(self, name) for name in ("channel_order", "resize", "interpolation")}
        return Pixels(*_first(self), **more, resized=self.resized)

    def __str__(self) -> str:
        """All of it in one line."""
        rows, columns = self.resized
        if self.resize == "stretch":
            how = f"the whole picture to {columns} x {rows}"
        elif rows == columns:
            how = f"shorter side to {rows}"
        else:
            how = f"to cover {columns} x {rows}"
        middle = f", middle {self.width} x {self.height}" if self.resized != self.size or self.resize == "cover" else ""
        mean, std = (", ".join(f"{value:.4g}" for value in values) for values in (self.mean, self.std))
        return f"{how} ({self.interpolation}){middle}, {self.channel_order}, pixels / 255, mean {mean}, std {std}"


USUAL = Preprocessing(3, 224, 224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""How pictures are seen of which nothing is known: as ImageNet's, by mean and standard deviation of these."""


def _first(one: Preprocessing | Pixels) -> tuple[int, int, int, tuple[float, ...], tuple[float, ...]]:
    return (one.channels, one.height, one.width, tuple(one.mean), tuple(one.std))

"""How pixels become network inputs, the same in training and on a device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emqdeploy.data.images import read_image
from emqdeploy.errors import EmqError
from emqdeploy.format.card import Pixels


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become network inputs: size, and mean and standard deviation per channel.

    ``mean`` and ``std`` are in units of the full pixel range: 1.0 is pixel value 255.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes_fit = self.channels in (1, 3) and self.height > 0 and self.width > 0
        if not sizes_fit or not len(self.mean) == len(self.std) == self.channels:
            raise EmqError(
                "preprocessing needs 1 or 3 channels, a positive size, and one mean and std for "
                f"each channel, not {self}"
            )
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            raise EmqError(f"preprocessing needs a finite mean and a positive std, not {self}")

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return ``(images / 255 - mean) / std``, computed in float32 in this order.

        Args:
            images: Pixels (N, C, H, W), uint8.

        Returns:
            Inputs (N, C, H, W), float32.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or images.dtype != np.uint8:
            raise EmqError(
                f"images must be uint8 of shape (N, {self.channels}, H, W), not {images.dtype} of shape {images.shape}"
            )
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        scaled = images.astype(np.float32)
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

    def load_image(self, path: str | Path) -> npt.NDArray[np.float32]:
        """Read one image file as a network input.

        Returns:
            Input (1, C, H, W), float32.

        Raises:
            EmqError: The file is missing or is not a readable image.
        """
        return self.normalize(read_image(Path(path), self.channels, self.height, self.width)[None])

    @classmethod
    def of(cls, pixels: Pixels) -> Preprocessing:
        """What a card says."""
        return cls(pixels.channels, pixels.height, pixels.width, pixels.mean, pixels.std)

    def pixels(self) -> Pixels:
        """What a card says of it."""
        return Pixels(self.channels, self.height, self.width, tuple(self.mean), tuple(self.std))

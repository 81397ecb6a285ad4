"""Image files as pixels: what a network sees of a picture, and folders of files that are decoded when asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.files import open_regular

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the picture."""

SUFFIXES = frozenset(
    (
        *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg"),
        *(".pbm", ".pfm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""What names an image file: every usual suffix of `FORMATS`."""

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM")
"""What a file may hold, whatever its name says; Pillow knows others, and starts Ghostscript for one of them."""

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262  # of TIFF

MOST_PIXELS = 100_000_000
"""Of a picture; a kilobyte can claim more and would fill the memory."""

_PLAIN_RESIZE_UP_TO = 64  # pixels; small pictures are all subject, there is no border to crop
_CROP, _RESIZED = 224, 256  # the usual ImageNet evaluation: resize the shorter side to 256, take the middle 224
_READERS = 8

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded images up to which files are decoded once and kept; Tiny ImageNet takes 1.2 GB."""


def read_image(path: Path, channels: int, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Read an image file as pixels (C, H, W), as a network is tested on it.

    A picture of the right size keeps its pixels. Small targets (up to 64 pixels) take the whole picture. Larger ones
    take its centre: what resizing the shorter side to 8/7 of the target (256 for 224) and cropping the middle gives, up
    to a step in 256 where Pillow rounds in another order.
    """
    image = open_image(path, channels)
    return cut(image, evaluation_box(image.width, image.height, height, width), height, width)


def open_image(path: Path, channels: int) -> Any:
    """Decode a file as an upright Pillow image of 1 (grey) or 3 (colour) channels.

    Raises:
        EmqError: The file is missing, truncated, no image, too large, or its values have no known white; the
            message names it.
    """
    pil = require("PIL.Image", "runtime")
    orient = require("PIL.ImageOps", "runtime").exif_transpose
    if not os.path.exists(path):
        raise UsageError(f"there is no image {path}; check the path")
    with open(open_regular(path, "name an image file that you may read"), "rb") as file:
        try:
            with pil.open(file, formats=FORMATS) as opened:
                pixels = opened.width * opened.height
                if pixels <= MOST_PIXELS:
                    depth = _depth(opened)
                    return _in_bytes(orient(opened), depth, path).convert("L" if channels == 1 else "RGB")
        except EmqError:
            raise
        except pil.DecompressionBombError:
            pixels = MOST_PIXELS + 1
        except Exception as error:  # of a damaged picture a decoder raises nearly anything
            raise EmqError(f"{path} is not a readable image; replace or remove it") from error
    raise EmqError(f"{path} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or remove it")


def _depth(opened: Any) -> int | None:
    """Bits of a value in one wide channel; None where it is unknown which value is white."""
    if opened.mode == "F" or opened.format != "TIFF":
        return 16
    signed_or_longer, inverted = opened.mode == "I", opened.tag_v2.get(_PHOTOMETRIC) == 0
    return None if signed_or_longer or inverted else int(opened.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])


def _in_bytes(image: Any, depth: int | None, path: Path) -> Any:
    """A picture of wide integers or floats as its 8-bit twin, which Pillow's own conversion clips instead.

    Integers keep their upper 8 bits, as Pillow reads colours of 16 bits; floats are 0 to 1.
    """
    if image.mode not in ("I", "F") and not image.mode.startswith("I;16"):
        return image
    values = np.asarray(image)
    if image.mode == "F":
        if not (values.min() >= 0 and values.max() <= 1):  # nor numbers that are none
            found = f"float values from {values.min():g} to {values.max():g}"
            raise EmqError(f"{path} holds {found}; scale them to 0 to 1, or save it with 8 or 16 bits")
        eight = np.rint(values * 255)
    elif depth is None:
        raise EmqError(f"{path} holds integers of which none is known as white; save it with 8 bits, or 16 as PNG")
    else:
        eight = values >> (depth - 8)
    return require("PIL.Image", "runtime").fromarray(eight.astype(np.uint8))


def evaluation_box(picture_width: int, picture_height: int, height: int, width: int) -> Box | None:
    """Return the part of a picture that a network of input (H, W) is tested on; None for all of it."""
    if (picture_width, picture_height) == (width, height) or max(width, height) <= _PLAIN_RESIZE_UP_TO:
        return None
    # The box is cut and scaled in one step: resizing first lets a very long picture fill the memory. Rounding as the
    # two steps do puts them in the same place.
    zoom = max(
        round(width * _RESIZED / _CROP) / picture_width,
        round(height * _RESIZED / _CROP) / picture_height,
    )
    resized_width, resized_height = int(picture_width * zoom + 1e-6), int(picture_height * zoom + 1e-6)
    left, top = round((resized_width - width) / 2), round((resized_height - height) / 2)
    across, down = picture_width / resized_width, picture_height / resized_height
    return (left * across, top * down, (left + width) * across, (top + height) * down)


def cut(image: Any, box: Box | None, height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return a part of a Pillow image as pixels (C, H, W), scaled bilinearly where its size differs."""
    if image.size != (width, height) or box is not None:
        bilinear = require("PIL.Image", "runtime").Resampling.BILINEAR
        image = image.resize((width, height), bilinear, box=box)
    pixels = np.asarray(image, np.uint8)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


class ImageFiles:
    """Image files, decoded when they are asked for; to a reader, an array (N, C, H, W) of uint8.

    A slice or an index array decodes those images, several at a time. What was decoded is kept where all of it would
    fit into `MEMORY_BUDGET`.

    Args:
        root: The folder that all files lie in.
        names: Paths below it.
        channels: 1 or 3.
        height: Of the decoded images.
        width: Of the decoded images.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(
        self, root: Path, names: Sequence[str] | npt.NDArray[np.bytes_], channels: int, height: int, width: int
    ) -> None:
        self.root = root
        # One block of bytes: a million path objects would take half a gigabyte, in every worker.
        self.names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])
        self.channels = channels
        self.height = height
        self.width = width
        self._kept: npt.NDArray[np.uint8] | None = None
        self._is_kept = np.zeros(len(self.names), bool)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self), self.channels, self.height, self.width)

    @property
    def nbytes(self) -> int:
        """Bytes of all images once decoded."""
        return len(self) * self.channels * self.height * self.width

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def subset(self, indices: npt.NDArray[Any]) -> ImageFiles:
        """Return some of the files, without decoding them."""
        return ImageFiles(self.root, self.names[indices], self.channels, self.height, self.width)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Decode one image (C, H, W) as a network is tested on it."""
        return read_image(self.path(index), self.channels, self.height, self.width)

    def __getitem__(self, index: int | slice | npt.NDArray[Any] | Sequence[int]) -> npt.NDArray[np.uint8]:
        chosen = np.arange(len(self))[index]
        if isinstance(chosen, np.integer):
            return self[[int(chosen)]][0]
        if self.nbytes > MEMORY_BUDGET:
            images = np.empty((len(chosen), *self.shape[1:]), np.uint8)
            self._decode(chosen, images, np.arange(len(chosen)))
            return images
        if self._kept is None:
            self._kept = np.empty(self.shape, np.uint8)
        missing = np.unique(chosen[~self._is_kept[chosen]])
        self._decode(missing, self._kept, missing)
        self._is_kept[missing] = True
        return self._kept[index]

    def _decode(self, indices: npt.NDArray[Any], into: npt.NDArray[np.uint8], places: npt.NDArray[Any]) -> None:
        def read(index: int, place: int) -> None:
            into[place] = self.read(index)

        # Pillow leaves the interpreter lock while it decodes and scales.
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            list(pool.map(read, indices.tolist(), places.tolist()))


Images = npt.NDArray[np.uint8] | ImageFiles
"""Pixels (N, C, H, W) in memory, or in files."""

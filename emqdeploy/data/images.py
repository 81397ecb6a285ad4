"""Pictures of any kind as upright 8-bit images of one or three channels."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import IO, Any

import numpy as np

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.files import open_regular

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


def open_image(path: Path, channels: int) -> Any:
    """Decode a file as an upright Pillow image of 1 (grey) or 3 (colour) channels.

    Raises:
        EmqError: The file is missing, truncated, no image, too large, or its values have no known white; the
            message names it.
    """
    if not os.path.exists(path):
        raise UsageError(f"there is no image {path}; check the path")
    with open(open_regular(path, "name an image file that you may read"), "rb") as file:
        return decoded(file, path, channels)


def decoded(file: IO[bytes] | bytes, name: object, channels: int) -> Any:
    """Decode the bytes of a picture as `open_image` does, which raises alike.

    Args:
        file: The picture.
        name: What sentences call it.
        channels: 1 or 3.
    """
    pil = require("PIL.Image", "runtime")
    orient = require("PIL.ImageOps", "runtime").exif_transpose
    try:
        with pil.open(io.BytesIO(file) if isinstance(file, bytes) else file, formats=FORMATS) as opened:
            pixels = opened.width * opened.height
            if pixels <= MOST_PIXELS:
                depth = _depth(opened)
                return _in_bytes(orient(opened), depth, name).convert("L" if channels == 1 else "RGB")
    except EmqError:
        raise
    except pil.DecompressionBombError:
        pass
    except Exception as error:  # of a damaged picture a decoder raises nearly anything
        raise EmqError(f"{name} is not a readable image; replace or remove it") from error
    raise EmqError(f"{name} has more than {MOST_PIXELS // 10**6} million pixels; make it smaller or remove it")


def picture_size(path: Path) -> tuple[int, int] | None:
    """Return rows and columns of an image file by its header; None where it does not say."""
    try:
        read = require("PIL.Image", "runtime").open
        with open(open_regular(path, "name an image file"), "rb") as file, read(file, formats=FORMATS) as opened:
            return (int(opened.height), int(opened.width))
    except Exception:  # reading it for its pixels says what is wrong
        return None


def _depth(opened: Any) -> int | None:
    """Bits of a value in one wide channel; None where it is unknown which value is white."""
    if opened.mode == "F" or opened.format != "TIFF":
        return 16
    signed_or_longer, inverted = opened.mode == "I", opened.tag_v2.get(_PHOTOMETRIC) == 0
    return None if signed_or_longer or inverted else int(opened.tag_v2.get(_BITS_PER_SAMPLE, (16,))[0])


def _in_bytes(image: Any, depth: int | None, path: object) -> Any:
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

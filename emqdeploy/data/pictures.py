"""Pictures of a data set, decoded when they are asked for; to a reader, an array (N, C, H, W)."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emqdeploy.data.images import open_image, picture_size
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.errors import EmqError, require

if TYPE_CHECKING:
    from typing import Self

_READERS = 8

MEMORY_BUDGET = 2 * 2**30
"""Bytes of decoded images up to which files are decoded once and kept; Tiny ImageNet takes 1.2 GB."""


class Pictures(ABC):
    """Pictures, decoded when they are asked for; to a reader, an array (N, C, H, W) of uint8.

    A slice or an index array decodes those images, several at a time. What was decoded is kept where all of it would
    fit into `MEMORY_BUDGET`.

    Args:
        count: How many there are.
        seen: How a network sees a picture: size, channels, which part, which interpolation.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, count: int, seen: Preprocessing) -> None:
        self.seen = seen
        self._kept: npt.NDArray[np.uint8] | None = None
        self._is_kept = np.zeros(count, bool)

    @abstractmethod
    def name(self, index: int) -> str:
        """Return what sentences call one picture."""

    @abstractmethod
    def picture(self, index: int) -> Any:
        """Decode one picture as an upright Pillow image, grey or in colour as the network sees it."""

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Return rows and columns of one picture as it lies there; None where it cannot be read."""
        try:
            picture = self.picture(index)
        except EmqError:  # reading it for its pixels says what is wrong
            return None
        return (int(picture.height), int(picture.width))

    @abstractmethod
    def subset(self, indices: npt.NDArray[Any]) -> Self:
        """Return some of the pictures, without decoding them."""

    @abstractmethod
    def as_seen(self, seen: Preprocessing) -> Self:
        """Return the same pictures for a network that sees them otherwise."""

    def __len__(self) -> int:
        return len(self._is_kept)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(N, C, H, W)."""
        return (len(self), *self.seen.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of all images once decoded."""
        return int(np.prod(self.shape))

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Decode one image (C, H, W) as a network is tested on it."""
        return self.seen.pixels_of(self.picture(index))

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
        require("PIL.Image", "runtime")  # what it says if there is none is no fault of a picture

        def read(index: int, place: int) -> EmqError | None:
            try:
                into[place] = self.read(index)
            except EmqError as error:
                return error
            return None

        # Pillow leaves the interpreter lock while it decodes and scales.
        with ThreadPoolExecutor(min(_READERS, os.cpu_count() or 1)) as pool:
            found = list(pool.map(read, indices.tolist(), places.tolist()))
        failed = [int(index) for index, error in zip(indices, found, strict=True) if error is not None]
        errors = [error for error in found if error is not None]
        if len(errors) == 1:
            raise errors[0]
        if errors:
            names = [self.name(index) for index in failed]
            named = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            many = "none" if len(errors) == len(found) else f"only {len(found) - len(errors)}"
            reason = str(errors[0]).removeprefix(names[0]).strip()
            raise EmqError(f"{many} of {len(found)} pictures can be read, not {named}; the first {reason}")


class ImageFiles(Pictures):
    """Image files below a folder.

    Args:
        root: The folder that all files lie in.
        names: Paths below it, or absolute ones.
        seen: As `Pictures` takes it.
    """

    def __init__(self, root: Path, names: Sequence[str] | npt.NDArray[np.bytes_], seen: Preprocessing) -> None:
        # One block of bytes: a million path objects would take half a gigabyte, in every worker.
        self.names = names if isinstance(names, np.ndarray) else np.array([os.fsencode(name) for name in names])
        self.root = root
        super().__init__(len(self.names), seen)

    def path(self, index: int) -> Path:
        """Return the file of one image."""
        return self.root / os.fsdecode(bytes(self.names[index]))

    def name(self, index: int) -> str:
        """Return its path."""
        return str(self.path(index))

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Read its header alone."""
        return picture_size(self.path(index))

    def picture(self, index: int) -> Any:
        """Decode the file."""
        return open_image(self.path(index), self.seen.channels)

    def subset(self, indices: npt.NDArray[Any]) -> ImageFiles:
        """Return some of the files."""
        return ImageFiles(self.root, self.names[indices], self.seen)

    def as_seen(self, seen: Preprocessing) -> ImageFiles:
        """Return the same files."""
        return ImageFiles(self.root, self.names, seen)


class KeptPictures(Pictures):
    """Pictures that something else keeps: an array of another size, or the rows of a table.

    Args:
        kept: ``(row, channels) -> `` a Pillow image of so many channels.
        rows: Which of them, in this order.
        source: What keeps them, for sentences.
        seen: As `Pictures` takes it.
    """

    def __init__(
        self, kept: Callable[[int, int], Any], rows: npt.NDArray[Any], source: str, seen: Preprocessing
    ) -> None:
        self._read, self._rows, self._source = kept, rows, source
        super().__init__(len(rows), seen)

    def name(self, index: int) -> str:
        """Return its row."""
        return f"image {int(self._rows[index])} of {self._source}"

    def picture(self, index: int) -> Any:
        """Ask for it."""
        return self._read(int(self._rows[index]), self.seen.channels)

    def subset(self, indices: npt.NDArray[Any]) -> KeptPictures:
        """Return some of the rows."""
        return KeptPictures(self._read, self._rows[indices], self._source, self.seen)

    def as_seen(self, seen: Preprocessing) -> KeptPictures:
        """Return the same rows."""
        return KeptPictures(self._read, self._rows, self._source, seen)


def of_array(images: npt.NDArray[np.uint8], source: str, seen: Preprocessing) -> KeptPictures:
    """Return pixels (N, C, H, W) as pictures, for a network that sees them in another size."""
    return KeptPictures(partial(_array_picture, images), np.arange(len(images)), source, seen)


def _array_picture(images: npt.NDArray[np.uint8], row: int, channels: int) -> Any:
    pixels = np.ascontiguousarray(images[row].transpose(1, 2, 0))
    picture = require("PIL.Image", "runtime").fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    return picture.convert("L" if channels == 1 else "RGB")


Images = npt.NDArray[np.uint8] | Pictures
"""Pixels (N, C, H, W) in memory, or pictures that are decoded when asked for."""

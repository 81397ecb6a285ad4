"""Pictures of a folder, decoded once and kept on the disk for later runs.

A cache is one file: a header, the pixels of every picture as a network is tested on it, and a checksum of each. It is
called by what it was made of, names, sizes and times of the files and all that preprocessing does to pixels, so that
other pictures or another size are another file. Nothing is ever removed but by its owner.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.data.locations import cache_folder
from emqdeploy.data.pictures import ImageFiles, Pictures
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split
from emqdeploy.errors import EmqError, require, writable_dir
from emqdeploy.files import atomic_path

FORMAT = 1
HEADER = 4096
"""Bytes before the pixels."""

_CHUNK = 1024
"""Pictures that are decoded, and held in memory, at a time."""


def cached(split: Split, folder: Path | None = None, say: Callable[[str], None] | None = None) -> Split:
    """Return the same images from a cache, which is made where there is none.

    Args:
        split: Of image files; anything else is in memory already, or has no files to be known by, and stays as it is.
        folder: Where caches lie; in the user's cache directory by default.
        say: Told in a sentence what is made, and why anew.

    Raises:
        EmqError: A picture cannot be read, or the cache cannot be written.
    """
    files = split.images
    if not isinstance(files, ImageFiles) or not len(files):
        return split
    place = writable_dir(cache_folder() / "decoded" if folder is None else folder)
    key = _key(files)
    path = place / f"{key}.pixels"
    with _alone(place):  # several processes of one run make it once
        wrong = _what_is_wrong(path, key, files.shape)
        if wrong is not None:
            if say is not None:
                anew = f"{path} {wrong} and is made anew: " if wrong else ""
                say(f"{anew}decoding {len(files):,} pictures once into {path} ({files.nbytes / 2**20:,.0f} MiB)")
            _make(path, key, files)
    return Split(CachedPictures(files, path, np.arange(len(files)), len(files)), split.labels)


class CachedPictures(Pictures):
    """Image files whose pixels lie decoded in a cache, which is mapped into memory.

    Args:
        files: The files.
        path: The cache.
        rows: The place of each file in it.
        count: How many pictures it holds.
    """

    def __init__(self, files: ImageFiles, path: Path, rows: npt.NDArray[Any], count: int) -> None:
        super().__init__(len(files), files.seen)
        self.files, self.path, self.rows, self.count = files, path, rows, count
        self._mapped: tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": None}  # a worker maps it for itself

    def name(self, index: int) -> str:
        """Return its path."""
        return self.files.name(index)

    def picture(self, index: int) -> Any:
        """Decode the file, for whoever needs more than what is tested on."""
        return self.files.picture(index)

    def size_of(self, index: int) -> tuple[int, int] | None:
        """Read the header of the file."""
        return self.files.size_of(index)

    def subset(self, indices: npt.NDArray[Any]) -> CachedPictures:
        """Return some of the pictures."""
        return CachedPictures(self.files.subset(indices), self.path, self.rows[indices], self.count)

    def as_seen(self, seen: Preprocessing) -> Pictures:  # type: ignore[override]
        """Return the files where a network sees other pixels of them."""
        return self.files.as_seen(seen)

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """Return one image from the cache."""
        return self[index]

    def __getitem__(self, index: int | slice | npt.NDArray[Any] | Sequence[int]) -> npt.NDArray[np.uint8]:
        chosen = np.arange(len(self))[index]
        if isinstance(chosen, np.integer):
            return self[[int(chosen)]][0]
        pixels, sums = self._map()
        images = np.asarray(pixels[self.rows[chosen]])
        for image, row, place in zip(images, self.rows[chosen].tolist(), chosen.tolist(), strict=True):
            if zlib.crc32(image) != sums[row]:
                raise EmqError(f"{self.path} is damaged at {self.name(place)}; remove it, and it is made anew")
        return images

    def _map(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint32]]:
        if self._mapped is None:
            shape = (self.count, *self.seen.shape)
            try:
                pixels = np.memmap(self.path, np.uint8, "r", HEADER, shape)
                sums = np.memmap(self.path, "<u4", "r", HEADER + pixels.size, (self.count,))
            except (OSError, ValueError) as error:
                raise EmqError(f"{self.path} was changed during the run; start again, and it is made anew") from error
            self._mapped = pixels, sums
        return self._mapped


def _key(files: ImageFiles) -> str:
    """What a cache is called by: everything that its pixels depend on."""
    seen = files.seen
    how = (FORMAT, require("PIL", "runtime").__version__, seen.shape, seen.resize, seen.resized, seen.interpolation)
    digest = hashlib.sha256(repr(how).encode())
    for index in range(len(files)):
        try:
            about = os.stat(files.path(index))
        except OSError as error:
            raise EmqError(f"cannot read {files.name(index)}: {error.strerror}; restore or remove it") from error
        digest.update(b"%b\0%d %d\0" % (bytes(files.names[index]), about.st_size, about.st_mtime_ns))
    return digest.hexdigest()[:32]


def _header(key: str, shape: tuple[int, ...]) -> bytes:
    return json.dumps({"format": FORMAT, "key": key, "shape": shape}).encode().ljust(HEADER)


def _what_is_wrong(path: Path, key: str, shape: tuple[int, int, int, int]) -> str | None:
    """Why a cache has to be made anew; nothing to say where there is none, None where it is right."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        if file.read(HEADER) != _header(key, shape):
            return "is of other pictures"
    return None if path.stat().st_size == HEADER + int(np.prod(shape)) + 4 * shape[0] else "is incomplete"


def _make(path: Path, key: str, files: ImageFiles) -> None:
    sums = np.empty(len(files), "<u4")
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        file.write(_header(key, files.shape))
        for start in range(0, len(files), _CHUNK):
            # A subset, so that what it decodes is forgotten with it.
            images = files.subset(np.arange(start, min(start + _CHUNK, len(files))))[:]
            sums[start : start + len(images)] = [zlib.crc32(image) for image in images]
            file.write(images.tobytes())
        file.write(sums.tobytes())


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """Waits until no other process makes a cache there."""
    handle = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)

"""Data sets in tar files, as WebDataset writes them: samples of files that share a name up to its first dot.

The heads of all tar files are read once, and what they say is kept in the user's cache directory. A picture is then a
place in a file, so that any can be asked for, which coresets, splits and classes in proportion need. Tar files must
therefore lie on a disk and not be compressed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import json
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.data.images import SUFFIXES, decoded
from emqdeploy.data.loading import Dataset, with_test_split
from emqdeploy.data.locations import cache_folder
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.pictures import KeptPictures
from emqdeploy.data.preprocessing import USUAL
from emqdeploy.data.splits import Split
from emqdeploy.errors import EmqError, UsageError, writable_dir
from emqdeploy.files import atomic_path, open_regular

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_TRAIN, _TEST = ("train*.tar",), ("test*.tar", "val*.tar")
_LONGEST_LABEL = 1 << 20
"""Bytes of a label's file; a class number takes a few, a sample's JSON some hundred."""


@DATASETS.register("wds")
def _wds(request: DataRequest) -> Dataset:
    """Tar files by a pattern, or a folder of them: train*.tar and test*.tar (or val*.tar), or any."""
    return _shards(request, strict=True)


@DATASETS.register("wds-partial")
def _wds_partial(request: DataRequest) -> Dataset:
    """The same, of which damaged or cut files are read as far as they go."""
    return _shards(request, strict=False)


def _shards(request: DataRequest, strict: bool) -> Dataset:
    train_paths, test_paths = _paths(request)
    notes: list[str] = []
    parts = [_Shards.read(paths, strict, notes) for paths in (train_paths, test_paths) if paths]
    splits = [part.split() for part in parts]
    train, test = splits if len(splits) == 2 else with_test_split(splits[0])
    classes = tuple(str(number) for number in range(1 + max(int(split.labels.max()) for split in splits)))
    return Dataset(Path(request.argument).name, train, test, classes, USUAL, "", tuple(notes), own_statistics=False)


def _paths(request: DataRequest) -> tuple[list[Path], list[Path]]:
    """The tar files to train on, and those to test on, where there are any."""
    if not request.argument:
        raise UsageError(f"{request.kind} needs tar files; write {request.kind}:PATTERN, for example wds:train-*.tar")
    place = (request.data_dir or Path()) / Path(request.argument).expanduser()
    if place.is_dir():
        found = [sorted(path for name in names for path in place.glob(name)) for names in (_TRAIN, _TEST)]
        train, test = found if all(found) else (sorted(place.glob("*.tar")), [])
    else:
        train, test = [path for one in _ranges(str(place)) for path in _matching(one)], []
    if not train:
        raise UsageError(f"there is no tar file {place}; check the path, and put a pattern in quotes")
    return train, test


def _ranges(pattern: str) -> Iterator[str]:
    """A pattern once for each number of its ``{000..146}``."""
    found = _RANGE.search(pattern)
    if found is None:
        yield pattern
        return
    first, last = found.groups()
    for number in range(int(first), int(last) + 1):
        yield from _ranges(pattern[: found.start()] + str(number).zfill(len(first)) + pattern[found.end() :])


def _matching(pattern: str) -> list[Path]:
    if glob.has_magic(pattern):
        return [Path(path) for path in sorted(glob.glob(pattern))]
    if not os.path.isfile(pattern):
        raise UsageError(f"there is no tar file {pattern}; fetch it, or leave it out of the pattern")
    return [Path(pattern)]


@dataclass(frozen=True)
class _Shards:
    """Where pictures lie in tar files, in the order in which they lie there.

    Attributes:
        paths: the tar files.
        places: ``(N, 3)``: number of the file, first byte, length.
        labels: ``(N,)``.
    """

    paths: tuple[Path, ...]
    places: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]

    @classmethod
    def read(cls, paths: list[Path], strict: bool, notes: list[str]) -> _Shards:
        """Reads the heads of tar files, or what they were found to say in an earlier run.

        Args:
            paths: The files.
            strict: Whether one that is damaged or cut is refused, instead of read as far as it goes.
            notes: Gets a sentence about each of those.
        """
        remembered = _remembered(paths)
        table = None if remembered is None else _load(remembered)
        if table is None:
            table, wrong = _table(paths, strict)
            notes.extend(wrong)
            if remembered is not None and not wrong:
                _save(remembered, table)
        if len(table) < 2:
            raise UsageError(f"{paths[0]} and the like hold {len(table)} labelled pictures; at least two are needed")
        return cls(tuple(paths), table[:, :3], table[:, 3])

    def split(self) -> Split:
        """The pictures and their labels."""
        source = f"{self.paths[0].parent}/*.tar"
        return Split(KeptPictures(partial(_picture, self), np.arange(len(self.places)), source, USUAL), self.labels)


def _table(paths: list[Path], strict: bool) -> tuple[npt.NDArray[np.int64], list[str]]:
    """File, first byte, length and label of every picture, ``(N, 4)``, and what is wrong with the files."""
    found: list[tuple[int, int, int, int]] = []
    wrong: list[str] = []
    for number, path in enumerate(paths):
        before = len(found)
        try:
            for sample in _samples(path):
                found.append((number, *sample))
        except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
            what = f"{path} is damaged or ends early, behind {len(found) - before} pictures"
            if strict:
                raise EmqError(
                    f"{what}; fetch it again, or take what can be read: --data wds-partial:PATTERN"
                ) from error
            wrong.append(what)
    return np.array(found, np.int64).reshape(-1, 4), wrong


def _remembered(paths: list[Path]) -> Path | None:
    """Where the table of these files is kept as long as they do not change; None where nothing can be kept."""
    digest = hashlib.sha256()
    for path in paths:
        about = path.stat()
        digest.update(f"{path.absolute()}\0{about.st_size} {about.st_mtime_ns}\0".encode(errors="surrogateescape"))
    try:
        return writable_dir(cache_folder() / "shards") / f"{digest.hexdigest()[:32]}.npz"
    except EmqError:
        return None


def _load(path: Path) -> npt.NDArray[np.int64] | None:
    """A table that was kept; None where there is none, or it is damaged, which the checksums of the archive tell."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            table = archive["table"]
    except (OSError, ValueError, KeyError, zipfile.BadZipFile, zlib.error):
        return None
    return table if table.dtype == np.int64 and table.ndim == 2 and table.shape[1] == 4 else None


def _save(path: Path, table: npt.NDArray[np.int64]) -> None:
    with contextlib.suppress(EmqError), atomic_path(path) as temporary, temporary.open("wb") as file:
        np.savez(file, table=table)


def _picture(shards: _Shards, row: int, channels: int) -> Any:
    number, start, length = shards.places[row].tolist()
    path = shards.paths[number]
    with open(open_regular(path, "fetch it again"), "rb") as file:
        file.seek(start)
        return decoded(file.read(length), f"the picture at byte {start} of {path}", channels)


def _samples(path: Path) -> Iterator[tuple[int, int, int]]:
    """First byte, length and label of each picture of a tar file.

    Raises:
        EmqError: It is compressed, or a picture has no label.
        tarfile.TarError: It is damaged or ends early.
    """
    with open(open_regular(path, "name a tar file that you may read"), "rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise UsageError(f"{path} is compressed, so that no picture in it can be found; unpack it with gunzip")
        file.seek(0)
        with tarfile.open(fileobj=file, mode="r:") as tar:
            key, picture, label = ("", ""), None, None
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                if (folder, stem) != key:
                    yield from _sample(path, key, picture, label)
                    key, picture, label = (folder, stem), None, None
                if f".{suffix.lower()}" in SUFFIXES:
                    picture = (member.offset_data, member.size)
                elif suffix in ("cls", "json") and label is None and member.size <= _LONGEST_LABEL:
                    file.seek(member.offset_data)
                    label = _label(file.read(member.size), suffix)
            file.seek(tar.offset)
            if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):  # what tarfile itself takes for the end
                raise tarfile.ReadError("there is no end of the archive")
            yield from _sample(path, key, picture, label)


def _label(data: bytes, suffix: str) -> int | None:
    """The class number in a ``.cls`` file, or under ``label`` of a JSON one; None where it is none."""
    try:
        value = int(data) if suffix == "cls" else json.loads(data).get("label")
    except (ValueError, AttributeError, RecursionError):
        return None
    return value if type(value) is int and value >= 0 else None


def _sample(
    path: Path, key: tuple[str, str], picture: tuple[int, int] | None, label: int | None
) -> Iterator[tuple[int, int, int]]:
    if picture is None:
        return
    if label is None:
        raise UsageError(
            f"{path} has no class for the picture {'/'.join(filter(None, key))}; put its number into a .cls file of the"
            ' same name, or into a .json file as "label"'
        )
    yield (*picture, label)

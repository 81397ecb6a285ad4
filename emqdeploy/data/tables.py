"""A table of paths and labels: a CSV file as people export it."""

from __future__ import annotations

import csv
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from emqdeploy.data.images import SUFFIXES
from emqdeploy.data.loading import UNLABELLED, Dataset, with_test_split
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.pictures import ImageFiles
from emqdeploy.data.preprocessing import USUAL
from emqdeploy.data.splits import Split
from emqdeploy.errors import UsageError
from emqdeploy.files import read_bytes

_LARGEST = 1 << 28
"""Bytes of a table; a line for each of ImageNet's images takes a third of it."""

_DELIMITERS = ",;\t"

_PATHS = ("path", "file", "filename", "file_name", "filepath", "image", "image_path", "image_name", "img", "name", "id")
_LABELS = ("label", "labels", "class", "class_name", "category", "target", "y")
_PARTS = ("split", "subset", "part", "set", "partition")
_TRAIN, _TEST = ("train", "training"), ("test", "val", "valid", "validation", "eval")


@DATASETS.register("csv")
def _csv(request: DataRequest) -> Dataset:
    """A CSV file of paths and labels, and perhaps of the split that each image belongs to."""
    if not request.argument:
        raise UsageError("csv needs a file; write csv:FILE")
    path = Path(request.argument).expanduser()
    if request.data_dir is not None and not path.is_file():
        path = request.data_dir / path.name
    if not path.is_file():
        raise UsageError(f"there is no table {path}; check the path, or say with --data-dir where it lies")
    return read_table(path, request.data_dir or path.parent)


def read_table(path: Path, root: Path) -> Dataset:
    """Return the data set that a table lists.

    Args:
        path: The CSV file; its first line may name the columns.
        root: The folder below which the images lie.

    Raises:
        UsageError: It cannot be told which column is which, or files are missing; the sentence says how many.
    """
    rows, columns = _rows(path)
    names = _files(path, root, [row[columns.path].strip() for row in rows])
    images = ImageFiles(root, names, USUAL)
    if columns.label is None:
        classes: tuple[str, ...] = ()
        labels = np.full(len(rows), UNLABELLED, np.int64)
    else:
        found = [row[columns.label].strip() for row in rows]
        if "" in found:
            raise UsageError(f"{path} has no label for {names[found.index('')]}; add it, or leave the image out")
        classes = tuple(sorted(set(found), key=_order))
        number = {name: index for index, name in enumerate(classes)}
        labels = np.array([number[name] for name in found], np.int64)
    everything = Split(images, labels)
    if columns.part is None:
        train, test = with_test_split(everything)
    else:
        train, test = _parts(path, everything, [row[columns.part].strip().lower() for row in rows])
    what = f"{len(classes)} classes" if classes else "no labels"
    note = f"{len(rows)} images and {what} from {path}"
    return Dataset(path.stem, train, test, classes, USUAL, "", (note,), own_statistics=False)


class _Columns(NamedTuple):
    """Where a table holds what; None where it does not."""

    path: int
    label: int | None
    part: int | None


def _rows(path: Path) -> tuple[list[list[str]], _Columns]:
    """The rows of a table without the one that names its columns."""
    try:
        text = read_bytes(path, _LARGEST, "name a CSV file of paths and labels").decode("utf-8-sig")
        first = text.partition("\n")[0]
        delimiter = max(_DELIMITERS, key=first.count)
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if any(map(str.strip, row))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{path} is no CSV file in UTF-8 ({error}); save it as such") from error
    if not rows:
        raise UsageError(f"{path} is empty; write a line for each image: PATH,LABEL")
    titles = [cell.strip().lower() for cell in rows[0]]
    if any(map(_is_image, rows[0])) or not (any(map(_is_image, rows[-1])) or {*titles} & {*_PATHS, *_LABELS}):
        titles = []  # the first line is an image like all others
    rows = rows[1:] if titles else rows
    short = next((number for number, row in enumerate(rows, 1) if len(row) < len(rows[0])), None)
    if not rows or short is not None:
        what = f"fewer columns for image {short} than for those before" if rows else "no images"
        raise UsageError(f"{path} has {what}; mend it")
    return rows, _columns(path, titles, rows[0])


def _order(name: str) -> tuple[bool, int, str]:
    """Sorts ``2`` before ``10``, and words behind numbers."""
    return (not name.isdecimal(), int(name) if name.isdecimal() else 0, name)


def _is_image(cell: str) -> bool:
    return os.path.splitext(cell.strip())[1].lower() in SUFFIXES


def _columns(path: Path, titles: Sequence[str], row: Sequence[str]) -> _Columns:
    def called(*names: str) -> int | None:
        return next((titles.index(name) for name in names if name in titles), None)

    part = called(*_PARTS)
    images = [place for place, cell in enumerate(row) if _is_image(cell)]
    at = images[0] if images else called(*_PATHS)
    at = 0 if at is None and not titles else at
    if at is None:
        raise UsageError(f"no column of {path} holds images; call one path, file or image")
    label = called(*_LABELS)
    others = [place for place in range(len(row)) if place not in (at, part)]
    if label is None and len(others) == 1:
        label = others[0]
    if label is None and others:
        columns = ", ".join(titles) or f"{len(row)} without names"
        raise UsageError(f"the columns of {path} are {columns}; call the one with the classes label")
    return _Columns(at, label, part)


def _files(path: Path, root: Path, names: Sequence[str]) -> list[str]:
    """The files that a table names, with the suffix that it may leave out."""
    found = [_with_suffix(root, name) for name in names]
    missing = [name for name, file in zip(names, found, strict=True) if file is None]
    if missing:
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise UsageError(
            f"{len(missing)} of {len(names)} files that {path} names are not in {root}: {shown}; mend the paths, or say"
            " with --data-dir where the images lie"
        )
    return [file for file in found if file is not None]


def _with_suffix(root: Path, name: str) -> str | None:
    if (root / name).is_file():
        return name
    if _is_image(name) or not name:
        return None
    return next((name + suffix for suffix in sorted(SUFFIXES) if (root / (name + suffix)).is_file()), None)


def _parts(path: Path, everything: Split, parts: Sequence[str]) -> tuple[Split, Split]:
    strange = next((part for part in parts if part not in (*_TRAIN, *_TEST)), None)
    if strange is not None:
        raise UsageError(f"{path} puts an image into the split {strange!r}; allowed: {', '.join((*_TRAIN, *_TEST))}")
    held_out = "test" if "test" in parts else None
    tests = [part == held_out if held_out else part in _TEST for part in parts]
    trains = [part in _TRAIN for part in parts]
    if not any(tests) or not any(trains):
        empty = "training" if any(tests) else "the test"
        raise UsageError(f"{path} has no image for {empty} in its split column; add some")
    return everything.subset(np.flatnonzero(trains)), everything.subset(np.flatnonzero(tests))

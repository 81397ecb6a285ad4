"""Data sets of image files in folders: one for each class, or all in one place with the class elsewhere."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emqdeploy.data.images import SUFFIXES
from emqdeploy.data.loading import SPLIT_SEED, TEST_FRACTION, UNLABELLED, Dataset, with_test_split
from emqdeploy.data.naming import DATASETS, TABLES, DataRequest
from emqdeploy.data.pictures import ImageFiles
from emqdeploy.data.preprocessing import USUAL, Preprocessing
from emqdeploy.data.splits import Split, stratified
from emqdeploy.data.tables import read_table
from emqdeploy.errors import UsageError

DEEPEST = 32
"""Folders inside one another that are looked through; deeper ones are a mistake, or meant to exhaust the reader."""

_OUTSIDE = "in no class folder"
_READ = ", ".join(sorted(SUFFIXES))

_NUMBERED = re.compile(r"(n\d{8}|\D*[^\W\d_])[\s_.-]+\(?\d+\)?$")
"""A name that is a class and a number, as ``cat.17``, ``red panda (3)`` and ImageNet's ``n01440764_10026``."""

_CAMERAS = frozenset(("img", "dsc", "dscn", "dscf", "pxl", "mvi", "image", "photo", "frame", "screenshot"))
"""What stands before the number where it says nothing of the picture."""


@DATASETS.register("imagefolder")
def _imagefolder(request: DataRequest) -> Dataset:
    """A folder per class: PATH/train and PATH/test (or val), or the classes in PATH itself; or one folder of images.

    In one folder a table names the classes, or the files' names do; else the images have no labels.
    """
    root = _folder(request)
    has_train = (root / "train").is_dir()
    held_out = next((sub for sub in ("test", "val") if (root / sub).is_dir()), None)
    if has_train != (held_out is not None):
        raise UsageError(
            f"{root} has only one of train/ and test/ (or val/); add the other, "
            "or put the folders of the classes directly into it"
        )
    if not _class_folders(root / "train" if has_train else root):
        return _one_place(root)
    left_out: Counter[str] = Counter()
    files = class_files(root, "train" if has_train else "", left_out)
    classes = tuple(files)
    train = labelled_files(root, files, classes, USUAL)
    if held_out is None:
        count = max(round(TEST_FRACTION * len(train)), 1)
        aside, kept = stratified(train.labels, count, SPLIT_SEED)
        train, test = train.subset(kept), train.subset(aside)
    else:
        test = labelled_files(root, class_files(root, held_out, left_out), classes, USUAL)
    return Dataset(
        name=f"imagefolder:{root.name}",
        train=train,
        test=test,
        classes=classes,
        preprocessing=USUAL,
        augmentation="",
        notes=notes_on(root, left_out),
        own_statistics=False,
    )


@DATASETS.register("unlabelled")
def _unlabelled(request: DataRequest) -> Dataset:
    """All images below a folder, whatever its folders and files are called; a fixed fifth of them is the test set."""
    root = _folder(request)
    left_out: Counter[str] = Counter()
    return _without_labels(root, image_names(root, "", left_out), notes_on(root, left_out))


def _folder(request: DataRequest) -> Path:
    root = request.place
    if root is None:
        raise UsageError(f"{request.kind} needs a folder; write {request.kind}:PATH")
    if not root.is_dir():
        raise UsageError(
            f"{root} is not a folder; give {request.kind}:PATH an existing folder, or say with --data-dir where it is"
        )
    return root


def _class_folders(place: Path) -> bool:
    """Whether there are folders for at least two classes: one folder of photos is no class."""
    return sum(entry.is_dir() and entry.name[0] != "." for entry in os.scandir(place)) > 1


def _one_place(root: Path) -> Dataset:
    """Images that lie together: labelled by a table beside them, by their names, or not at all."""
    tables = sorted(path for path in root.iterdir() if path.suffix.lower() in TABLES and path.name[0] != ".")
    if len(tables) > 1:
        raise UsageError(f"{root} holds {len(tables)} tables; name the one with the labels: --data {tables[0]}")
    if tables:
        return read_table(tables[0], root)
    left_out: Counter[str] = Counter()
    names = image_names(root, "", left_out)
    notes = notes_on(root, left_out)
    by_class: dict[str, list[str]] = defaultdict(list)
    for name in names:
        numbered = _NUMBERED.match(os.path.splitext(os.path.basename(name))[0])
        by_class[numbered[1] if numbered is not None else ""].append(name)
    # A class of one image is a name of its own, and one class is what somebody calls all of his pictures.
    strange = "" in by_class or bool({name.lower() for name in by_class} & _CAMERAS)
    if strange or len(by_class) < 2 or min(map(len, by_class.values())) < 2:
        return _without_labels(root, names, notes)
    classes = tuple(sorted(by_class))
    train, test = with_test_split(labelled_files(root, by_class, classes, USUAL))
    shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
    note = f"{len(classes)} classes from the names of the files: {shown}; unlabelled:{root} takes them without labels"
    return Dataset(root.name, train, test, classes, USUAL, "", (*notes, note), own_statistics=False)


def _without_labels(root: Path, names: Sequence[str], notes: tuple[str, ...]) -> Dataset:
    images = ImageFiles(root, names, USUAL)
    if len(images) < 2:
        raise UsageError(f"{root} holds a single image; at least two are needed")
    train, test = with_test_split(Split(images, np.full(len(images), UNLABELLED, np.int64)))
    note = f"{len(images)} images without labels in {root}: {len(train)} to calibrate, {len(test)} to test"
    return Dataset(root.name, train, test, (), USUAL, "", (note, *notes), own_statistics=False)


def class_files(root: Path, folder: str, left_out: Counter[str]) -> dict[str, list[str]]:
    """Return the image files of every class folder in ``root/folder``, both in alphabetical order.

    Args:
        root: The folder of the data set.
        folder: The place of the class folders below it.
        left_out: Counts what is not read, see `notes_on`.

    Returns:
        By class, paths below ``root``.

    Raises:
        UsageError: There is no class folder, or one without an image.
    """
    place = root / folder
    visible = [entry for entry in os.scandir(place) if entry.name[0] != "."]
    names = sorted(entry.name for entry in visible if entry.is_dir())
    if not names:
        raise UsageError(f"{place} holds no folders; make one for each class, with its images")
    left_out[_OUTSIDE] += sum(_suffix(entry.name) in SUFFIXES for entry in visible if not entry.is_dir())
    return {name: image_names(root, os.path.join(folder, name), left_out) for name in names}


def image_names(root: Path, folder: str, left_out: Counter[str]) -> list[str]:
    """Return the image files of a folder and of all folders in it as paths below ``root``, in alphabetical order.

    Args:
        root: The folder of the data set.
        folder: The place of the images below it.
        left_out: Counts what is not read, see `notes_on`.

    Raises:
        UsageError: There is none.
    """
    found, others, seen = [], Counter[str](), set()
    for at, folders, files in os.walk(root / folder, onerror=_refuse, followlinks=True):
        if os.path.relpath(at, root / folder).count(os.sep) >= DEEPEST:
            raise UsageError(f"{root / folder} holds folders more than {DEEPEST} deep; put its images higher up")
        seen.add(os.path.realpath(at))
        folders[:] = [
            name for name in folders if name[0] != "." and os.path.realpath(os.path.join(at, name)) not in seen
        ]
        inside = os.path.relpath(at, root)
        for name in files:
            if name[0] != "." and _suffix(name) in SUFFIXES:
                found.append(os.path.join(inside, name))
            elif name[0] != ".":
                others[_suffix(name)] += 1
    if not found:
        what = f", but {_counted(others)}" if others else ""
        raise UsageError(f"{root / folder} holds no images ({_READ}){what}; add some or remove the folder")
    left_out.update(others)
    return sorted(found)


def notes_on(root: Path, left_out: Counter[str]) -> tuple[str, ...]:
    """Return the sentence about the files of a data set that were not read, if there are any.

    Args:
        root: The folder of the data set.
        left_out: How many there are by suffix, and how many images outside of the class folders.
    """
    others = +left_out
    outside = others.pop(_OUTSIDE, 0)
    reasons = [f"{_counted(others)} (images are {_READ})"] if others else []
    reasons += [f"{outside} {_OUTSIDE}"] if outside else []
    return (f"left out of {root}: {', and '.join(reasons)}",) if reasons else ()


def _counted(others: Counter[str]) -> str:
    return ", ".join(f"{count} {suffix or 'without suffix'}" for suffix, count in others.most_common(5))


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _refuse(error: OSError) -> None:
    raise error


def labelled_files(
    root: Path, files: Mapping[str, Sequence[str]], classes: Sequence[str], seen: Preprocessing
) -> Split:
    """Return all files and their class numbers as a split; nothing is decoded yet.

    The classes are mixed, always alike: whoever takes the first few hundred images, to calibrate or to prove parity,
    then sees all of them.

    Raises:
        UsageError: A class of the files is not among ``classes``.
    """
    number = {name: index for index, name in enumerate(classes)}
    unknown = sorted(set(files) - set(classes))
    if unknown:
        raise UsageError(
            f"the test images have the class {unknown[0]!r}, which the training images lack; "
            "give both the same class folders"
        )
    labels: list[npt.NDArray[np.int64]] = [np.full(len(found), number[name], np.int64) for name, found in files.items()]
    names = [path for found in files.values() for path in found]
    order = np.random.default_rng(SPLIT_SEED).permutation(len(names))
    return Split(ImageFiles(root, names, seen), np.concatenate(labels)).subset(order)

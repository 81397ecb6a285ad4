"""Data sets of image files in a folder per class."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from emqdeploy.data.images import SUFFIXES, ImageFiles
from emqdeploy.data.loading import DATASETS, SPLIT_SEED, TEST_FRACTION, DataRequest, Dataset
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, stratified
from emqdeploy.errors import UsageError

IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

_SMALL_IMAGE = 64  # pixels up to which the field augments by a shifted crop, beyond by a crop of random size


def augmentation_for(size: int) -> str:
    """Return the usual augmentation of colour images of ``size`` pixels."""
    return "crop-flip" if size <= _SMALL_IMAGE else "resized-crop-flip"


@DATASETS.register("imagefolder")
def _imagefolder(request: DataRequest) -> Dataset:
    """A folder per class: PATH/train and PATH/test (or val), or the classes in PATH itself."""
    if not request.argument:
        raise UsageError("imagefolder needs a folder; write imagefolder:PATH")
    root = Path(request.argument).expanduser()
    size = request.image_size or 224
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give imagefolder:PATH an existing folder")
    has_train = (root / "train").is_dir()
    held_out = next((sub for sub in ("test", "val") if (root / sub).is_dir()), None)
    if has_train != (held_out is not None):
        raise UsageError(
            f"{root} has only one of train/ and test/ (or val/); add the other, "
            "or put the folders of the classes directly into it"
        )
    files = class_files(root, "train" if has_train else "")
    classes = tuple(files)
    if len(classes) < 2:
        raise UsageError(f"{root} holds the single class {classes[0]!r}; at least two are needed")
    train = labelled_files(root, files, classes, size)
    if held_out is None:
        count = max(round(TEST_FRACTION * len(train)), 1)
        aside, kept = stratified(train.labels, count, SPLIT_SEED)
        train, test = train.subset(kept), train.subset(aside)
    else:
        test = labelled_files(root, class_files(root, held_out), classes, size)
    return Dataset(
        name=f"imagefolder:{root.name}",
        train=train,
        test=test,
        classes=classes,
        preprocessing=Preprocessing(3, size, size, *IMAGENET_STATISTICS),
        augmentation=augmentation_for(size),
    )


def class_files(root: Path, folder: str) -> dict[str, list[str]]:
    """Return the image files of every class folder in ``root/folder``, both in alphabetical order.

    Returns:
        By class, paths below ``root``.

    Raises:
        UsageError: There is no class folder, or one without an image.
    """
    place = root / folder
    names = sorted(entry.name for entry in os.scandir(place) if entry.is_dir() and entry.name[0] != ".")
    if not names:
        raise UsageError(f"{place} holds no folders; make one for each class, with its images")
    return {name: image_names(root, os.path.join(folder, name)) for name in names}


def image_names(root: Path, folder: str) -> list[str]:
    """Return the image files of one folder as paths below ``root``, in alphabetical order.

    Raises:
        UsageError: There is none.
    """
    found = sorted(
        entry.name
        for entry in os.scandir(root / folder)
        if entry.name[0] != "." and os.path.splitext(entry.name)[1].lower() in SUFFIXES
    )
    if not found:
        raise UsageError(f"{root / folder} holds no images; add some or remove the folder")
    return [os.path.join(folder, name) for name in found]


def labelled_files(root: Path, files: Mapping[str, Sequence[str]], classes: Sequence[str], size: int) -> Split:
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
    return Split(ImageFiles(root, names, 3, size, size), np.concatenate(labels)).subset(order)

"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, stratified, validation_split
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.registry import Registry

SPLIT_SEED = 20510673  # of the test splits we make; it must never follow the training seed
TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to use them.

    ``augmentation`` names the one that suits the data, as the field uses it. ``notes`` are sentences about what was
    found and not taken.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for; ``argument`` is what follows the colon of the name."""

    kind: str
    argument: str
    data_dir: Path | None
    image_size: int | None
    limit: int | None

    @property
    def place(self) -> Path | None:
        """The folder that was named; ``data_dir`` wins, because a name may come from a file of another machine."""
        return self.data_dir or (Path(self.argument).expanduser() if self.argument else None)

    def refuse_options(self) -> None:
        """Raises where a data set of one size, in a known place, is asked for another."""
        if self.argument or self.image_size is not None:
            raise UsageError(
                f"{self.kind} has images of one size and takes no path; "
                "leave these out, or use imagefolder:PATH with an image size"
            )


DATASETS: Registry[Callable[[DataRequest], Dataset]] = Registry("data set")


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: A name in ``DATASETS``; ``"imagefolder:PATH"``, also ``"imagenet:PATH"`` and ``"tinyimagenet:PATH"``.
        data_dir: Where the files are, or those of a standard data set go after a download.
        image_size: H = W in pixels, for sets of image files only.
        limit: At most this many training images (the same ones every time, classes in proportion).

    Returns:
        The data set, as uint8 in memory or in files that are decoded when asked for.

    Raises:
        EmqError: The name is unknown, the files are missing or damaged, or a class has no training image.
    """
    kind, _, argument = name.partition(":")
    load = DATASETS[kind]
    for option, value in (("image size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"the {option} must be at least 1, not {value}")
    try:
        dataset = load(DataRequest(kind, argument, data_dir, image_size, limit))
    except OSError as error:  # no permission, a broken disk, a name that is too long
        place = error.filename or name
        raise EmqError(f"cannot read {place}: {error.strerror}; check the path and its permissions") from error
    dataset = replace(dataset, train=limited(dataset.train, limit))
    _check_labels(dataset, limit)
    return dataset


def located(name: str, data_dir: Path | None) -> str:
    """The name of a data set with its path, where it has one, such that it holds in any working directory.

    Args:
        name: As in `load_dataset`.
        data_dir: As in `load_dataset`; it takes the place of the path.
    """
    kind, colon, path = name.partition(":")
    return f"{kind}:{os.path.abspath(data_dir or os.path.expanduser(path))}" if colon and path else name


def _check_labels(dataset: Dataset, limit: int | None) -> None:
    """Raises where a label names no class, or a class has no image to be learned from."""
    count = len(dataset.classes)
    for part, labels in (("training", dataset.train.labels), ("test", dataset.test.labels)):
        if len(labels) and not 0 <= labels.min() <= labels.max() < count:
            wrong = next(int(label) for label in labels if not 0 <= label < count)
            raise EmqError(f"{dataset.name} has the {part} label {wrong}; its {count} classes are 0 to {count - 1}")
    empty = np.flatnonzero(np.bincount(dataset.train.labels, minlength=count) == 0)
    if len(empty):
        remedy = "add some, or remove the class" if limit is None else f"raise the limit, which is {limit}"
        raise EmqError(f"class {dataset.classes[empty[0]]!r} of {dataset.name} has no training image; {remedy}")


def with_test_split(split: Split) -> tuple[Split, Split]:
    """Return (train, test) of data that come without a test split."""
    return validation_split(split, TEST_FRACTION, SPLIT_SEED)


def limited(split: Split, limit: int | None) -> Split:
    """Return at most ``limit`` images, classes in proportion."""
    if limit is None or limit >= len(split):
        return split
    return split.subset(stratified(split.labels, limit, SPLIT_SEED)[0])

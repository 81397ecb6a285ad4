"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emqdeploy.data.enlarging import unenlarged
from emqdeploy.data.naming import DATASETS, DataRequest, named
from emqdeploy.data.pictures import Images, Pictures, of_array
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, stratified, validation_split
from emqdeploy.data.wishes import PIXELS, Expected, PixelOptions, over, wished
from emqdeploy.errors import EmqError, UsageError

SPLIT_SEED = 20510673  # of the test splits we make; it must never follow the training seed
TEST_FRACTION = 0.2

UNLABELLED = -1
"""The label of an image whose class nobody says."""

_SMALL_IMAGE = 64  # pixels up to which the field augments by a shifted crop, beyond by a crop of random size


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to use them.

    ``augmentation`` names the one that suits the data, as the field uses it; a loader may leave that to their size.
    ``notes`` are sentences about what was found and not taken. ``classes`` is empty where the images have no labels:
    these are `UNLABELLED` then. ``own_statistics`` says whether mean and standard deviation are those of these images.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: str
    notes: tuple[str, ...] = ()
    own_statistics: bool = True

    @property
    def labelled(self) -> bool:
        """Whether the classes of the images are known."""
        return bool(self.classes)


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
    pixels: PixelOptions | Preprocessing | None = None,
    expected: Expected | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: A name in ``DATASETS``, with a path or a name of its own behind a colon where it needs one
            (``"imagefolder:PATH"``); the path of a folder or a CSV file alone will do.
        data_dir: Where the files are, or those of a standard data set go after a download.
        image_size: H = W in pixels; short for ``pixels``.
        limit: At most this many training images (the same ones every time, classes in proportion).
        pixels: How a network sees the pictures, or what is asked of that; what is not said is as the data set has it.
        expected: What the weights of a network expect, which counts where ``pixels`` says nothing.

    Returns:
        The data set, as uint8 in memory or in files that are decoded when asked for.

    Raises:
        EmqError: The name is unknown, the files are missing or damaged, a class has no training image, or the pictures
            are so small that a network of the usual size would see them blown up.
    """
    kind, _, argument = named(name).partition(":")
    for option, value in (("image size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"the {option} must be at least 1, not {value}")
    try:
        dataset = DATASETS[kind](DataRequest(kind, argument, data_dir))
    except OSError as error:  # no permission, a broken disk, a name that is too long
        place = error.filename or name
        raise EmqError(f"cannot read {place}: {error.strerror}; check the path and its permissions") from error
    dataset = replace(dataset, train=limited(dataset.train, limit))
    _check_labels(dataset, limit)
    if isinstance(pixels, Preprocessing):
        return _as_seen(dataset, pixels)
    wishes = PixelOptions(image_size=image_size) if pixels is None else pixels
    found = _seen_as_wished(dataset, wishes, expected or Expected())
    return found if pixels is not None else replace(found, notes=found.notes[1:])


def _seen_as_wished(dataset: Dataset, wishes: PixelOptions, expected: Expected) -> Dataset:
    """The data set as the user says, then as the weights expect, then as it comes; the first note says how."""
    if dataset.own_statistics and not expected.certain:  # networks for these pictures are trained with their own
        expected = replace(expected, pixels=replace(expected.pixels, mean=None, std=None))
    known, images = dataset.preprocessing, dataset.train.images
    merged, notes = unenlarged(dataset.name, images, known, wishes, expected)
    said = [f"--{name.replace('_', '-')}" for name in PIXELS if getattr(wishes, name) is not None]
    used = merged != over(wishes, PixelOptions()) and bool(expected.source)
    sources = [*said, *([expected.source] if used else [])]
    seen = wished(merged, known)
    usual = "as the data set has it" if dataset.own_statistics else "ImageNet's usual numbers"
    line = f"preprocessing: {seen}; {'from ' + ', '.join(sources) if sources else usual}"
    return replace(_as_seen(dataset, seen), notes=(line, *dataset.notes, *notes))


def _as_seen(dataset: Dataset, seen: Preprocessing) -> Dataset:
    """The same pictures as a network sees them."""
    train, test = (_split_seen(split, dataset.name, seen) for split in (dataset.train, dataset.test))
    usual = "crop-flip" if max(seen.size) <= _SMALL_IMAGE else "resized-crop-flip"
    return replace(dataset, train=train, test=test, preprocessing=seen, augmentation=dataset.augmentation or usual)


def _split_seen(split: Split, source: str, seen: Preprocessing) -> Split:
    images: Images = split.images
    if isinstance(images, Pictures):
        images = images.as_seen(seen)
    elif images.shape[1:] != seen.shape:
        images = of_array(images, source, seen)
    return Split(images, split.labels)


def _check_labels(dataset: Dataset, limit: int | None) -> None:
    """Raises where a label names no class, or a class has no image to be learned from."""
    if not dataset.labelled:
        return
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

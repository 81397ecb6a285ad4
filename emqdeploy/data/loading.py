"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split, stratified, validation_split
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.registry import Registry

SPLIT_SEED = 20510673  # of the test splits we make; it must never follow the training seed
TEST_FRACTION = 0.2


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to use them.

    ``augmentation`` names the one that suits the data, as the field uses it.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: str


@dataclass(frozen=True)
class DataRequest:
    """What a loader is asked for; ``argument`` is what follows the colon of the name."""

    argument: str
    data_dir: Path | None
    image_size: int | None
    limit: int | None


DATASETS: Registry[Callable[[DataRequest], Dataset]] = Registry("data set")


def load_dataset(
    name: str,
    data_dir: Path | None = None,
    image_size: int | None = None,
    limit: int | None = None,
) -> Dataset:
    """Load a data set by name.

    Args:
        name: A name in ``DATASETS``, or ``"imagefolder:PATH"``.
        data_dir: Where the files of a standard data set are, or go after a download.
        image_size: H = W in pixels, for image folders only.
        limit: At most this many training images (the same ones every time, classes in proportion).

    Returns:
        The data set, as uint8 in memory or, where it is large, in files that are decoded when asked for.

    Raises:
        EmqError: The name is unknown, or the files are missing or damaged.
    """
    kind, _, argument = name.partition(":")
    load = DATASETS[kind]
    if kind == "imagefolder":
        if not argument:
            raise UsageError("imagefolder needs a folder; write imagefolder:PATH")
    elif argument or image_size is not None:
        raise UsageError(
            f"{kind} has images of one size and takes no path; "
            "leave these out, or use imagefolder:PATH with an image size"
        )
    for option, value in (("image size", image_size), ("limit", limit)):
        if value is not None and value < 1:
            raise UsageError(f"the {option} must be at least 1, not {value}")
    try:
        dataset = load(DataRequest(argument, data_dir, image_size, limit))
    except OSError as error:  # no permission, a broken disk, a name that is too long
        place = error.filename or name
        raise EmqError(f"cannot read {place}: {error.strerror}; check the path and its permissions") from error
    return replace(dataset, train=limited(dataset.train, limit))


def with_test_split(split: Split) -> tuple[Split, Split]:
    """Return (train, test) of data that come without a test split."""
    return validation_split(split, TEST_FRACTION, SPLIT_SEED)


def limited(split: Split, limit: int | None) -> Split:
    """Return at most ``limit`` images, classes in proportion."""
    if limit is None or limit >= len(split):
        return split
    return split.subset(stratified(split.labels, limit, SPLIT_SEED)[0])

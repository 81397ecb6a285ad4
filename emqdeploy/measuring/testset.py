"""The labelled images that accuracy is measured on: of a data set by name, or of a file that went along to a device."""

from __future__ import annotations

import json
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from emqdeploy.data import Split, load_dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import open_regular
from emqdeploy.format.card import Card
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.runtimes.source import dataset_of, other_classes

FILE_SUFFIX = ".npz"


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images with labels, and what the labels mean."""

    __test__ = False  # not a test case, whatever its name says

    name: str
    split: Split
    classes: tuple[str, ...]


def read_test_set(settings: BenchSettings, card: Card) -> TestSet:
    """Returns the test images that the settings name, of the network's own data set where they name none.

    Args:
        settings: ``data``, ``data_dir`` and ``limit`` of them.
        card: of the network: its data set, classes and preprocessing.

    Raises:
        EmqError: they are not at hand.
        UsageError: their labels or their shape are not those that the network was trained on.
    """
    if settings.data is not None and settings.data.endswith(FILE_SUFFIX):
        found = load_test_set(Path(settings.data))
    else:
        if settings.data is None:
            dataset = dataset_of(card, settings.data_dir)
        else:
            size = card.preprocessing.height if ":" in settings.data else None
            dataset = load_dataset(settings.data, settings.data_dir, size)
        found = TestSet(dataset.name, dataset.test, tuple(dataset.classes))
    _check(found, card)
    return limited(found, settings.limit)


def limited(test: TestSet, count: int | None) -> TestSet:
    """Returns at most ``count`` images, evenly spread: files often lie class by class."""
    if count is None or count >= len(test.split):
        return test
    chosen = np.linspace(0, len(test.split) - 1, count).round().astype(np.int64)
    return TestSet(test.name, test.split.subset(chosen), test.classes)


def save_test_set(path: Path, test: TestSet) -> None:
    """Writes images, labels and class names to one compressed file."""
    about = json.dumps({"name": test.name, "classes": test.classes})
    images = np.asarray(test.split.images[: len(test.split)])
    np.savez_compressed(path, images=images, labels=test.split.labels, about=np.array(about))


def load_test_set(path: Path) -> TestSet:
    """Reads what `save_test_set` wrote.

    Raises:
        EmqError: it is not there, or not such a file.
    """
    try:
        opened = open(open_regular(path, "name an existing test set"), "rb")  # noqa: SIM115
        with opened, np.load(opened, allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            split = Split(file["images"], file["labels"])
            name, classes = str(about["name"]), tuple(map(str, about["classes"]))
    except OSError as error:
        raise EmqError(f"cannot read {path}: {error.strerror or error}; name an existing test set") from error
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise EmqError(f"{path} is not a test set of emqdeploy ({error}); name a data set instead") from error
    return TestSet(name, split, classes)


def _check(test: TestSet, card: Card) -> None:
    strange = other_classes(test.name, test.classes, card)
    if strange is not None:
        raise UsageError(f"{strange}; name its own data set with --data")
    shape = tuple(test.split.images[:1].shape[1:])
    if shape != card.input_shape:
        raise UsageError(
            f"the images of {test.name} have shape {shape}, the network takes {card.input_shape};"
            " name its own data set with --data"
        )

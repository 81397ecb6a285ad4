"""Test images: of a data set by name, of a file that went along to a device, or of the network's bundle."""

from __future__ import annotations

import io
import json
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from emqdeploy.data import Preprocessing, Split, load_dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import LARGEST_MODEL, read_bytes
from emqdeploy.format.bundle import Bundle, is_bundle
from emqdeploy.format.card import Card
from emqdeploy.runtimes.source import dataset_of, images_of, other_classes

FILE_SUFFIX = ".npz"
BUNDLED = f"test-images{FILE_SUFFIX}"
"""In a bundle."""

PUBLIC = ("digits", "fashion-mnist", "cifar10", "cifar100")
"""Data sets whose images may be handed on: nobody's own pictures."""

PUBLIC_IMAGES, PUBLIC_BYTES = 256, 1 << 22
"""Of such a data set, as many travel with a bundle, in at most so many bytes of pixels."""


@dataclass(frozen=True, eq=False)
class TestSet:
    """Images with labels, and what the labels mean.

    Attributes:
        name: of the data set.
        split: images and labels.
        classes: what the labels mean.
        whole: whether these are all test images of the network's own data set.
        note: what a reader of figures has to know about them, None where there is nothing.
    """

    __test__ = False  # not a test case, whatever its name says

    name: str
    split: Split
    classes: tuple[str, ...]
    whole: bool = False
    note: str | None = None


def find_test_set(
    card: Card,
    data: str | None = None,
    data_dir: Path | None = None,
    path: Path | None = None,
    labelled: bool = True,
) -> TestSet:
    """Returns the test images that are named; where none are, those of the network's own data set.

    Where that is not at hand, those that its bundle brought along, which are fewer, are returned.

    Args:
        card: of the network: its data set, classes and preprocessing.
        data: the name of a data set, or a file of `save_test_set`.
        data_dir: where the data set's files lie.
        path: the bundle, or a file in it.
        labelled: whether their labels have to be the network's classes; False for comparing answers alone.

    Raises:
        EmqError: they are not at hand.
        UsageError: their labels or their shape are not those that the network was trained on.
    """
    if data is None:
        try:
            dataset = (dataset_of if labelled else images_of)(card, data_dir)
            found = TestSet(dataset.name, dataset.test, tuple(dataset.classes), whole=True)
        except EmqError as error:
            usable = data_dir is None and (card.data.labelled or not labelled)
            bundled = _bundled(path) if usable else None
            if bundled is None:
                raise EmqError(f"{error}; or name other images with --data") from error
            found = bundled
    elif data.endswith(FILE_SUFFIX):
        found = load_test_set(Path(data))
    else:
        dataset = load_dataset(data, data_dir, pixels=Preprocessing.of(card.preprocessing))
        found = TestSet(dataset.name, dataset.test, tuple(dataset.classes))
    _check(found, card, labelled)
    return found


def _bundled(path: Path | None) -> TestSet | None:
    """The images that lie in the bundle of a file; None where there are none."""
    folder = next((one for one in (path, path.parent) if is_bundle(one)), None) if path is not None else None
    if folder is None:
        return None
    bundle = Bundle.open(folder)
    if BUNDLED not in bundle.files:
        return None
    found = _read(bundle.path / BUNDLED, bundle.shared_content(BUNDLED))
    note = f"accuracy is on the {len(found.split)} test images in the bundle: the data set is not at hand"
    return replace(found, note=note)


def bundled_images(test: TestSet, card: Card, wanted: int | None) -> TestSet | None:
    """The test images that travel with a bundle; None where none should.

    Args:
        test: all that there are.
        card: of the network.
        wanted: how many; None takes some of a public data set and none of a user's own pictures.
    """
    if wanted is None and card.data.name not in PUBLIC:
        return None
    most = PUBLIC_BYTES // max(1, int(test.split.images[:1].nbytes))
    found = limited(test, min(PUBLIC_IMAGES, max(1, most)) if wanted is None else wanted)
    return found if len(found.split) else None


def limited(test: TestSet, count: int | None) -> TestSet:
    """Returns at most ``count`` images, evenly spread: files often lie class by class."""
    if count is None or count >= len(test.split):
        return test
    chosen = np.linspace(0, len(test.split) - 1, count).round().astype(np.int64)
    return replace(test, split=test.split.subset(chosen), whole=False)


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
    return _read(path, read_bytes(path, LARGEST_MODEL, "name an existing test set"))


def _read(path: Path, data: bytes) -> TestSet:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > LARGEST_MODEL:
                raise ValueError("it is too large when unpacked")
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            split = Split(file["images"], file["labels"])
            name, classes = str(about["name"]), tuple(map(str, about["classes"]))
    except (ValueError, LookupError, TypeError, AttributeError, EOFError, zipfile.BadZipFile) as error:
        raise EmqError(f"{path} is not a test set of emqdeploy ({error}); name a data set instead") from error
    return TestSet(name, split, classes)


def _check(test: TestSet, card: Card, labelled: bool) -> None:
    if labelled and not test.classes:
        raise UsageError(
            f"the images of {test.name} have no labels, so accuracy cannot be measured; name labelled ones"
        )
    strange = other_classes(test.name, test.classes, card) if labelled else None
    if strange is not None:
        raise UsageError(f"{strange}; name its own data set with --data")
    shape = tuple(test.split.images[:1].shape[1:])
    if shape != card.input_shape:
        raise UsageError(
            f"the images of {test.name} have shape {shape}, the network takes {card.input_shape};"
            " name its own data set with --data"
        )

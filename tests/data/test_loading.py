"""Data sets by name: uint8 arrays, fixed splits, one sentence for each wrong name or folder."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import DATASETS, Preprocessing, Split, load_dataset, validation_split
from emqdeploy.data.wishes import PixelOptions
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.card import Pixels, convert, decode, encode

pytestmark = pytest.mark.usefixtures("no_data_sets")

GREY = Preprocessing(1, 4, 6, (0.25,), (0.5,))
COLOUR = Preprocessing(3, 4, 6, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


# --- Preprocessing --------------------------------------------------------------------------------


def test_normalize_is_exact_float32() -> None:
    """Training and device share one formula to the last bit, whatever the batch."""
    images = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 6), np.uint8)
    mean = np.array(COLOUR.mean, np.float32)[:, None, None]
    std = np.array(COLOUR.std, np.float32)[:, None, None]
    expected = (images.astype(np.float32) / np.float32(255) - mean) / std
    result = COLOUR.normalize(images)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


def test_input_range_bounds_every_pixel() -> None:
    """The clip of the input quantizer is reached by some pixel and passed by none."""
    pixels = np.arange(256, dtype=np.uint8).reshape(-1, 1, 1, 1).repeat(3, axis=1)
    assert COLOUR.input_range == np.abs(COLOUR.normalize(pixels)).max()
    assert GREY.input_range == 1.5


def test_normalize_refuses_other_arrays() -> None:
    """Floats that were normalised already, or a missing batch axis, are not silently accepted."""
    with pytest.raises(EmqError, match=r"uint8 of shape \(N, 3, H, W\), not float32"):
        COLOUR.normalize(np.zeros((1, 3, 4, 6), np.float32))  # type: ignore[arg-type]
    with pytest.raises(EmqError, match="shape"):
        COLOUR.normalize(np.zeros((3, 4, 6), np.uint8))


def test_preprocessing_survives_json() -> None:
    """The checkpoint stores it as JSON and a device must rebuild exactly the same."""
    assert Preprocessing.of(decode(Pixels, encode(COLOUR.pixels()))) == COLOUR


def test_the_digits_are_scikit_learns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether its file is read as it lies, or asked for where it lies elsewhere."""
    read = load_dataset("digits")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    asked = load_dataset("digits")
    assert (len(read.train), len(read.test)) == (1438, 359)
    for one, other in ((read.train, asked.train), (read.test, asked.test)):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.labels, other.labels)


@pytest.mark.parametrize(
    "change",
    [{"std": [0.0]}, {"mean": [1, 2]}, {"height": 0}, {"channels": None}, {"mean": [float("nan")]}],
)
def test_damaged_preprocessing_is_refused(change: dict[str, Any]) -> None:
    """An altered checkpoint gives a sentence instead of infinities."""
    with pytest.raises((ValueError, EmqError)):
        Preprocessing.of(convert(Pixels, asdict(GREY) | change))
    with pytest.raises(ValueError, match="missing required field"):
        convert(Pixels, {})


# --- Splits ---------------------------------------------------------------------------------------


def labelled(counts: list[int]) -> Split:
    """A split with the given number of images of each class; each image holds its own number."""
    labels = np.repeat(np.arange(len(counts)), counts)
    images = np.arange(len(labels)).astype(np.uint8).reshape(-1, 1, 1, 1)
    return Split(images, labels)


def test_validation_split_is_a_stratified_partition() -> None:
    """Every image lands on one side, every class in proportion."""
    train, validation = validation_split(labelled([100, 50, 10]), 0.1)
    assert np.bincount(validation.labels).tolist() == [10, 5, 1]
    both = np.concatenate([train.images, validation.images]).ravel()
    assert sorted(both) == list(range(160))


def test_validation_split_depends_on_its_own_seed_alone() -> None:
    """Runs with different training seeds are compared on the same images."""
    np.random.seed(1)
    first = validation_split(labelled([40, 40]))[1].images
    np.random.seed(2)
    np.testing.assert_array_equal(first, validation_split(labelled([40, 40]))[1].images)
    assert not np.array_equal(first, validation_split(labelled([40, 40]), seed=1)[1].images)


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.1), (10, 1.0), (10, -0.5)])
def test_impossible_validation_splits(size: int, fraction: float) -> None:
    """Neither side may be empty by mistake."""
    with pytest.raises(UsageError, match="a validation split needs"):
        validation_split(labelled([size]), fraction)


def test_nothing_is_set_aside_on_request_alone() -> None:
    """Papers train on all images; then there is nothing to choose an epoch by."""
    train, validation = validation_split(labelled([3, 2]), 0)
    assert train.images.ravel().tolist() == [0, 1, 2, 3, 4]
    assert validation.images.shape == (0, 1, 1, 1)
    assert len(validation) == 0


def test_tiny_splits_leave_no_side_empty() -> None:
    """Two images are one and one, however small or large the fraction."""
    for fraction in (0.01, 0.99):
        assert [len(side) for side in validation_split(labelled([2]), fraction)] == [1, 1]


# --- Names and options ----------------------------------------------------------------------------


def test_import_needs_no_torch() -> None:
    """A device without torch measures accuracy."""
    code = "import sys; sys.modules['torch'] = None; import emqdeploy.data"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "cifar"}, "unknown data set 'cifar'; known: .*digits.*did you mean 'cifar10'"),
        ({"name": "imagefolder"}, "write imagefolder:PATH"),
        ({"name": "imagefolder:/no/such/folder"}, "/no/such/folder is not a folder"),
        ({"name": "digits:x"}, "takes no path"),
        ({"name": "digits", "pixels": PixelOptions(mean=(0.5, 0.5, 0.5))}, r"--mean has 3 values .* 1 channel, grey"),
        ({"name": "photos/cats"}, r"there is no file or folder photos/cats \(looked in .*\); check the path"),
        ({"name": "photos"}, "unknown data set 'photos'; .*; and there is no folder of that name in"),
        ({"name": __file__}, "is one file; name a folder of pictures, or a .csv or .tsv of paths and labels"),
        ({"name": "digits", "limit": 0}, "limit must be at least 1, not 0"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    """A wrong name or option is one sentence with the allowed ones."""
    with pytest.raises(UsageError, match=message):
        load_dataset(**arguments)


def test_unreadable_place_is_one_sentence() -> None:
    """What the operating system refuses (here a name too long, which holds for root) is named."""
    with pytest.raises(EmqError, match="x" * 300):
        load_dataset("imagefolder:" + "x" * 300)


def test_known_names() -> None:
    """The names are part of the command line and must not change by accident."""
    assert list(DATASETS) == [
        *("cifar10", "cifar100", "csv", "digits", "fashion-mnist", "huggingface", "imagefolder", "imagenet"),
        *("tinyimagenet", "torchvision", "unlabelled", "wds", "wds-partial"),
    ]


def test_digits() -> None:
    """The data set that needs no download: full pixel range, fixed and stratified test split."""
    digits = load_dataset("digits")
    assert digits.train.images.shape == (1438, 1, 8, 8)
    assert len(digits.train) + len(digits.test) == 1797
    assert (digits.train.images.min(), digits.train.images.max()) == (0, 255)
    assert np.bincount(digits.test.labels).min() >= 34
    normalized = digits.preprocessing.normalize(digits.train.images)
    assert abs(normalized.mean()) < 0.01
    assert abs(normalized.std() - 1) < 0.01
    again = load_dataset("digits")
    np.testing.assert_array_equal(again.test.images, digits.test.images)


def test_limit_keeps_the_test_split_and_the_proportions() -> None:
    """A quick trial trains on less and is measured on the same test images."""
    whole, part = load_dataset("digits"), load_dataset("digits", limit=100)
    assert len(part.train) == 100
    assert np.bincount(part.train.labels).min() >= 9
    np.testing.assert_array_equal(part.test.images, whole.test.images)
    assert len(load_dataset("digits", limit=10**6).train) == len(whole.train)


# --- Image folders --------------------------------------------------------------------------------


def write_images(folder: Path, counts: dict[str, int], value: int = 0) -> None:
    """Write images of 12 x 10 pixels in a folder per class."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (12, 10), (value, number, 0)).save(folder / name / f"{number:03}.PNG")


@pytest.mark.parametrize("held_out", ["test", "val"])
def test_image_folder_with_its_own_test_split(tmp_path: Path, held_out: str) -> None:
    """The folders decide the split; classes are in alphabetical order."""
    write_images(tmp_path / "train", {"dog": 3, "cat": 2}, value=1)
    write_images(tmp_path / held_out, {"dog": 1}, value=2)
    (tmp_path / "train" / ".hidden").mkdir()
    (tmp_path / "train" / "dog" / "notes.txt").write_text("not an image")
    folder = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    assert folder.classes == ("cat", "dog")
    assert folder.train.images.shape == (5, 3, 8, 8)
    assert sorted(folder.train.labels) == [0, 0, 1, 1, 1]
    assert folder.test.labels.tolist() == [1]
    assert folder.test.images[0][0].min() == 2


def test_plain_image_folder_is_divided(tmp_path: Path) -> None:
    """Without test images a fifth of each class is set aside, always the same."""
    write_images(tmp_path, {"a": 10, "b": 20})
    first = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    again = load_dataset(f"imagefolder:{tmp_path}", image_size=8, limit=6)
    assert np.bincount(first.train.labels).tolist() == [8, 16]
    assert np.bincount(first.test.labels).tolist() == [2, 4]
    assert np.bincount(again.train.labels).tolist() == [2, 4]
    np.testing.assert_array_equal(first.test.images[:], again.test.images[:])


def test_image_folder_has_imagenet_size_and_statistics(tmp_path: Path) -> None:
    """The default suits networks made for ImageNet."""
    write_images(tmp_path, {"a": 2, "b": 2})
    folder = load_dataset(f"imagefolder:{tmp_path}", pixels=PixelOptions(image_size=224))
    assert folder.train.images.shape[1:] == (3, 224, 224)
    assert folder.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "holds no images"),
        ({"a": 1, "b": 0}, "/b holds no images"),
        ({"train/a": 1, "train/b": 1}, "has only one of train/ and test/"),
        ({"train/a": 1, "train/b": 1, "test/c": 1}, "class 'c', which the training images lack"),
    ],
)
def test_wrong_image_folders(tmp_path: Path, folders: dict[str, int], message: str) -> None:
    """Each way to lay out a folder wrongly has its own sentence."""
    write_images(tmp_path, folders)
    with pytest.raises(UsageError, match=message):
        load_dataset(f"imagefolder:{tmp_path}", image_size=8)


def test_corrupt_image_in_a_folder_is_named(tmp_path: Path) -> None:
    """One bad file among thousands must be found without a search."""
    write_images(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b" / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut")
    folder = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    with pytest.raises(EmqError, match=r"b/bad.jpg is not a readable image"):
        [split.images[:] for split in (folder.train, folder.test)]


def test_only_what_is_asked_for_is_decoded(tmp_path: Path) -> None:
    """A device that measures accuracy does not decode the training images."""
    write_images(tmp_path / "train", {"a": 2, "b": 2})
    write_images(tmp_path / "test", {"a": 2, "b": 2}, value=9)
    for file in (tmp_path / "train").glob("*/*"):
        file.write_bytes(b"broken")
    test = load_dataset(f"imagefolder:{tmp_path}", image_size=8).test
    assert test.images[2:][:, 0].min() == 9


def test_the_first_images_of_a_folder_show_every_class(tmp_path: Path) -> None:
    """Calibration and parity take the first few hundred; one class after the other would mislead them."""
    write_images(tmp_path, {name: 60 for name in "abcd"})
    folder = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    for split in (folder.train, folder.test, *validation_split(folder.train)):
        assert set(split.labels[:20]) == {0, 1, 2, 3}
    again = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    np.testing.assert_array_equal(folder.train.labels, again.train.labels)


def test_grey_and_colour_may_be_mixed(tmp_path: Path) -> None:
    """Grey files among colour ones (there are some in every large set) become colour."""
    for name, mode in (("a", "L"), ("b", "RGB"), ("c", "CMYK")):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "test" / name).mkdir(parents=True)
        for part in ("train", "test"):
            Image.new(mode, (9, 9), 77 if mode == "L" else (77,) * len(mode)).save(tmp_path / part / name / "0.jpg")
    test = load_dataset(f"imagefolder:{tmp_path}", image_size=8).test
    assert test.images.shape == (3, 3, 8, 8)
    assert (test.images[test.labels < 2] == 77).all()


def test_a_class_without_a_training_image_is_named(tmp_path: Path) -> None:
    """What no image shows cannot be learned; a limit that is too small is the usual reason."""
    with pytest.raises(EmqError, match=r"class '\d' of digits has no training image; raise the limit, which is 9"):
        load_dataset("digits", limit=9)


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions do not bind the superuser")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    """A folder of another user is one sentence."""
    write_images(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b").chmod(0)
    with pytest.raises(EmqError, match=r"cannot read .*/b: Permission denied; check the path and its permissions"):
        load_dataset(f"imagefolder:{tmp_path}", image_size=8)

"""Data sets: true file formats in, uint8 arrays out, one sentence for each broken file."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from emqdeploy import data
from emqdeploy.data import DATASETS, Preprocessing, Split, load_dataset, validation_split
from emqdeploy.errors import EmqError, UsageError

GREY = Preprocessing(1, 4, 6, (0.25,), (0.5,))
COLOUR = Preprocessing(3, 4, 6, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


@pytest.fixture(autouse=True)
def isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the data sets of this machine or reaches for the network."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(data, "_DEBIAN_DATASETS", tmp_path / "debian")

    def offline(name: str, folder: Path) -> None:
        raise OSError("no network")

    monkeypatch.setattr(data, "_download", offline)


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
    assert Preprocessing.from_dict(json.loads(json.dumps(COLOUR.to_dict()))) == COLOUR


@pytest.mark.parametrize(
    "change",
    [{"std": [0.0]}, {"mean": [1, 2]}, {"height": 0}, {"channels": None}, {"mean": [float("nan")]}],
)
def test_damaged_preprocessing_is_refused(change: dict[str, Any]) -> None:
    """An altered checkpoint gives a sentence instead of infinities."""
    with pytest.raises(EmqError, match="preprocessing"):
        Preprocessing.from_dict(GREY.to_dict() | change)
    with pytest.raises(EmqError, match="damaged"):
        Preprocessing.from_dict({})


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "1"])
def test_any_image_mode_is_read(tmp_path: Path, mode: str) -> None:
    """Grey, colour, transparent and palette files all suit both kinds of network."""
    path = tmp_path / "a.png"
    Image.new(mode, (6, 4), 1).save(path)
    assert GREY.load_image(path).shape == (1, 1, 4, 6)
    assert COLOUR.load_image(path).shape == (1, 3, 4, 6)


def test_fitting_images_keep_their_pixels(tmp_path: Path) -> None:
    """No resampling where the size fits: accuracy on files equals accuracy on arrays."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 6, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    expected = COLOUR.normalize(pixels.transpose(2, 0, 1)[None])
    np.testing.assert_array_equal(COLOUR.load_image(tmp_path / "a.png"), expected)


def test_small_targets_see_the_whole_picture_large_ones_the_centre(tmp_path: Path) -> None:
    """A white frame stays visible at 32 pixels and is cropped away at 224."""
    frame = np.full((400, 600), 255, np.uint8)
    frame[10:-10, 110:-110] = 0
    Image.fromarray(frame).save(tmp_path / "a.png")
    small = Preprocessing(1, 32, 32, (0.0,), (1.0,)).load_image(tmp_path / "a.png")
    large = Preprocessing(1, 224, 224, (0.0,), (1.0,)).load_image(tmp_path / "a.png")
    assert small[0, 0, 16, 0] == 1.0
    assert large.max() == 0.0


def test_very_long_pictures_fit_in_memory(tmp_path: Path) -> None:
    """The crop comes before the scaling: 1 x 20000 pixels must not become 256 x 5 million."""
    Image.new("L", (20000, 1)).save(tmp_path / "a.png")
    tall = Preprocessing(3, 224, 224, (0.0,) * 3, (1.0,) * 3)
    assert tall.load_image(tmp_path / "a.png").shape == (1, 3, 224, 224)


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    """Missing, truncated and foreign files are told apart from the program's own errors."""
    good = tmp_path / "good.png"
    Image.effect_noise((64, 64), 50).save(good)
    (tmp_path / "cut.png").write_bytes(good.read_bytes()[:600])
    (tmp_path / "text.png").write_text("hello")
    for name in ("cut.png", "text.png"):
        with pytest.raises(EmqError, match=f"{name} is not a readable image"):
            GREY.load_image(tmp_path / name)
    with pytest.raises(UsageError, match="there is no image"):
        GREY.load_image(tmp_path / "missing.png")


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


@pytest.mark.parametrize(("size", "fraction"), [(1, 0.1), (10, 0.0), (10, 1.0), (10, -0.5)])
def test_impossible_validation_splits(size: int, fraction: float) -> None:
    """Neither side may be empty."""
    with pytest.raises(UsageError, match="a validation split needs"):
        validation_split(labelled([size]), fraction)


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
        ({"name": "digits", "image_size": 32}, "images of one size"),
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
    assert list(DATASETS) == ["cifar10", "cifar100", "digits", "fashion-mnist", "imagefolder"]


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


# --- Fashion-MNIST --------------------------------------------------------------------------------


def write_idx(path: Path, values: np.ndarray) -> None:
    """Write bytes in gzipped IDX format."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(gzip.compress(header + values.tobytes()))


def write_fashion(folder: Path, train: int = 40, test: int = 20) -> None:
    """Write a small Fashion-MNIST; pixel values count the images."""
    folder.mkdir(parents=True)
    for part, count in (("train", train), ("t10k", test)):
        images = np.arange(count, dtype=np.uint8)[:, None, None].repeat(28, 1).repeat(28, 2)
        write_idx(folder / f"{part}-images-idx3-ubyte.gz", images)
        write_idx(folder / f"{part}-labels-idx1-ubyte.gz", np.arange(count, dtype=np.uint8) % 10)


@pytest.mark.parametrize("place", ["given", "given/FashionMNIST/raw", "debian/fashion-mnist"])
def test_fashion_is_found_where_it_may_be(tmp_path: Path, place: str) -> None:
    """The folder given, torchvision's layout in it, and the Debian package all serve."""
    write_fashion(tmp_path / place)
    fashion = load_dataset("fashion-mnist", data_dir=tmp_path / "given")
    assert fashion.train.images.shape == (40, 1, 28, 28)
    assert fashion.train.labels.dtype == np.int64
    assert fashion.train.images[7].max() == fashion.train.images[7].min() == 7
    assert fashion.train.images.flags.writeable
    assert len(fashion.test) == 20
    assert fashion.classes[fashion.train.labels[9]] == "Ankle boot"


def test_missing_fashion_names_the_ways_out(tmp_path: Path) -> None:
    """Without files and network the user reads where they were sought and what to do."""
    with pytest.raises(EmqError) as caught:
        load_dataset("fashion-mnist", data_dir=tmp_path)
    for part in (str(tmp_path), "no network", "dataset-fashion-mnist", "--data-dir"):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_download_goes_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --data-dir a download lands in the user's cache and is read from there."""

    def download(name: str, folder: Path) -> None:
        assert (name, folder) == ("FashionMNIST", tmp_path / "home/.cache/emqdeploy")
        write_fashion(folder / "FashionMNIST" / "raw")

    monkeypatch.setattr(data, "_download", download)
    assert len(load_dataset("fashion-mnist").train) == 40


def test_broken_fashion_files_are_named(tmp_path: Path) -> None:
    """Cut downloads, foreign files and wrong sizes are one sentence with the file's name."""
    write_fashion(tmp_path / "f")
    images = tmp_path / "f" / "train-images-idx3-ubyte.gz"
    whole = images.read_bytes()
    idx = gzip.decompress(whole)
    broken = {
        "cut archive": whole[: len(whole) // 2],
        "no archive": b"<html>not found</html>",
        "empty": b"",
        "short content": gzip.compress(idx[:-1]),
        "wrong magic": gzip.compress(b"\0\0\x0d\x03" + idx[4:]),
        "only a magic": gzip.compress(idx[:6]),
        "no images": gzip.compress(struct.pack(">BBBB3I", 0, 0, 8, 3, 0, 28, 28)),
    }
    for content in broken.values():
        images.write_bytes(content)
        with pytest.raises(EmqError, match=r"train-images-idx3-ubyte.gz is damaged \(.+\); remove"):
            load_dataset("fashion-mnist", data_dir=tmp_path / "f")
    images.write_bytes(whole)
    labels = tmp_path / "f" / "train-labels-idx1-ubyte.gz"
    for wrong in (np.zeros(39, np.uint8), np.full(40, 10, np.uint8)):
        write_idx(labels, wrong)
        with pytest.raises(EmqError, match="do not belong together"):
            load_dataset("fashion-mnist", data_dir=tmp_path / "f")


@pytest.mark.skipif(not Path("/usr/share/datasets/fashion-mnist").is_dir(), reason="needs dataset-fashion-mnist")
def test_the_real_fashion_mnist(monkeypatch: pytest.MonkeyPatch) -> None:
    """The distribution's files are read, and the stored mean and std are theirs."""
    monkeypatch.setattr(data, "_DEBIAN_DATASETS", Path("/usr/share/datasets"))
    fashion = load_dataset("fashion-mnist", limit=2000)
    assert len(fashion.test) == 10_000
    assert np.bincount(fashion.train.labels).tolist() == [200] * 10
    normalized = fashion.preprocessing.normalize(fashion.test.images)
    assert abs(normalized.mean()) < 0.01
    assert abs(normalized.std() - 1) < 0.01


# --- CIFAR ----------------------------------------------------------------------------------------


def cifar_pixels(count: int) -> np.ndarray:
    """Random rows (count, 3072): planes of red, green, blue."""
    return np.random.default_rng(count).integers(0, 256, (count, 3072), np.uint8)


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined,misc]
    """Writes bytes and flags as Python 2 did, which made the archives of CIFAR."""

    dispatch: ClassVar = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_bytes(self, value: bytes) -> None:
        """Write the string of Python 2, which was bytes."""
        self.write(pickle.BINSTRING + struct.pack("<i", len(value)) + value)
        self.memoize(value)

    def save_flag(self, value: bool) -> None:
        """Write an integer: numpy 1 did so in dtypes, and numpy 2 warns about it."""
        self.write(pickle.BININT1 + bytes([value]))

    dispatch[bytes] = save_bytes
    dispatch[bool] = save_flag


def as_python2(content: object) -> bytes:
    """Pickle as Python 2 with numpy 1."""
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(content)
    return file.getvalue().replace(b"numpy._core", b"numpy.core")


def write_cifar10(folder: Path) -> None:
    """Write a small CIFAR-10 of ten images per batch, the test images by today's numpy."""
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        batch = {"data": cifar_pixels(10), "labels": list(range(10)), "filenames": ["ä"] * 10}
        content = pickle.dumps(batch, protocol=2) if name == "test_batch" else as_python2(batch)
        (folder / name).write_bytes(content)
    names = [f"class {number}" for number in range(10)]
    (folder / "batches.meta").write_bytes(as_python2({"label_names": names}))


@pytest.mark.parametrize("place", ["d", "d/cifar-10-batches-py"])
def test_cifar10(tmp_path: Path, place: str) -> None:
    """Batches are joined, planes become channels, and both numpy generations are read."""
    write_cifar10(tmp_path / place)
    cifar = load_dataset("cifar10", data_dir=tmp_path / "d")
    assert cifar.train.images.shape == (50, 3, 32, 32)
    assert cifar.classes[3] == "class 3"
    assert cifar.train.labels[13] == 3
    np.testing.assert_array_equal(cifar.test.images.reshape(10, -1), cifar_pixels(10))


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    """CIFAR-100 carries two kinds of labels; the hundred classes are the fine ones."""
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        batch = {"data": cifar_pixels(5), "fine_labels": [99, 0, 1, 2, 3], "coarse_labels": [0] * 5}
        (folder / name).write_bytes(as_python2(batch))
    meta = {"fine_label_names": [str(number) for number in range(100)]}
    (folder / "meta").write_bytes(as_python2(meta))
    cifar = load_dataset("cifar100", data_dir=tmp_path)
    assert len(cifar.classes) == 100
    assert cifar.train.labels.tolist() == [99, 0, 1, 2, 3]


class Malicious:
    """Runs a command when an ordinary unpickler reads it."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_cifar_runs_nothing(tmp_path: Path, protocol: int) -> None:
    """A file from the internet must not be able to run a program."""
    write_cifar10(tmp_path / "d")
    proof = tmp_path / "proof"
    batch = {"data": Malicious(proof), "labels": []}
    (tmp_path / "d" / "data_batch_2").write_bytes(pickle.dumps(batch, protocol=protocol))
    with pytest.raises(EmqError, match=r"data_batch_2 is damaged \(it asks for posix.system"):
        load_dataset("cifar10", data_dir=tmp_path / "d")
    assert not proof.exists()


def test_broken_cifar_files_are_named(tmp_path: Path) -> None:
    """Cut files, foreign content and impossible labels are one sentence with the file's name."""
    write_cifar10(tmp_path / "d")
    good = {"data": cifar_pixels(10), "labels": list(range(10))}
    whole = as_python2(good)
    broken = [
        b"",
        whole[:3000],
        whole[:-1],
        as_python2({"data": cifar_pixels(10)}),
        pickle.dumps([1, 2], protocol=2),
        as_python2(good | {"labels": [0]}),
        as_python2(good | {"labels": [10] * 10}),
        as_python2(good | {"labels": ["a"] * 10}),
        as_python2(good | {"data": cifar_pixels(10)[:, :5]}),
        as_python2(good | {"data": cifar_pixels(10).astype(np.float32)}),
        as_python2(good | {"data": np.array([None])}),
        as_python2(good | {"data": [1, 2, 3]}),
    ]
    for content in broken:
        (tmp_path / "d" / "data_batch_5").write_bytes(content)
        with pytest.raises(EmqError, match=r"data_batch_5 is damaged \(.+\); remove"):
            load_dataset("cifar10", data_dir=tmp_path / "d")


def test_column_major_arrays_are_read(tmp_path: Path) -> None:
    """Numpy pickles transposed arrays column by column; reading them row by row mixes images."""
    write_cifar10(tmp_path / "d")
    pixels = np.asfortranarray(cifar_pixels(10))
    batch = {"data": pixels, "labels": list(range(10))}
    (tmp_path / "d" / "test_batch").write_bytes(as_python2(batch))
    images = load_dataset("cifar10", data_dir=tmp_path / "d").test.images
    np.testing.assert_array_equal(images.reshape(10, -1), pixels)


def test_missing_cifar_asks_for_the_folder(tmp_path: Path) -> None:
    """An incomplete folder is not half read, and no Debian package is promised that none offers."""
    write_cifar10(tmp_path / "d")
    (tmp_path / "d" / "data_batch_3").unlink()
    with pytest.raises(EmqError, match=r"cifar10 is neither in .*no network.*--data-dir") as caught:
        load_dataset("cifar10", data_dir=tmp_path / "d")
    assert "Debian" not in str(caught.value)


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
    assert folder.train.labels.tolist() == [0, 0, 1, 1, 1]
    assert folder.test.labels.tolist() == [1]
    assert folder.test.images[0, 0].min() == 2


def test_plain_image_folder_is_divided(tmp_path: Path) -> None:
    """Without test images a fifth of each class is set aside, always the same."""
    write_images(tmp_path, {"a": 10, "b": 20})
    first = load_dataset(f"imagefolder:{tmp_path}", image_size=8)
    again = load_dataset(f"imagefolder:{tmp_path}", image_size=8, limit=6)
    assert np.bincount(first.train.labels).tolist() == [8, 16]
    assert np.bincount(first.test.labels).tolist() == [2, 4]
    assert np.bincount(again.train.labels).tolist() == [2, 4]
    np.testing.assert_array_equal(first.test.images, again.test.images)


def test_image_folder_has_imagenet_size_and_statistics(tmp_path: Path) -> None:
    """The default suits networks made for ImageNet."""
    write_images(tmp_path, {"a": 2, "b": 2})
    folder = load_dataset(f"imagefolder:{tmp_path}")
    assert folder.train.images.shape[1:] == (3, 224, 224)
    assert folder.preprocessing.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    ("folders", "message"),
    [
        ({}, "holds no folders"),
        ({"a": 1, "b": 0}, "/b holds no images"),
        ({"a": 3}, "single class 'a'"),
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
    with pytest.raises(EmqError, match=r"b/bad.jpg is not a readable image"):
        load_dataset(f"imagefolder:{tmp_path}", image_size=8)

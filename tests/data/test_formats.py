"""Files of data sets: true formats in, one sentence for each broken file, and nothing in them is run."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import struct
import tracemalloc
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Preprocessing, load_dataset, locations
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.models import import_torchvision

pytestmark = pytest.mark.usefixtures("no_data_sets")

GREY = Preprocessing(1, 4, 6, (0.25,), (0.5,))
COLOUR = Preprocessing(3, 4, 6, (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))


# --- Images ---------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (257, 300), (1024, 311), (200, 150), (224, 256)])
def test_the_centre_is_the_usual_one(tmp_path: Path, size: tuple[int, int]) -> None:
    """Published accuracies were measured on 256-pixel resizing and a centre crop of 224; so is ours."""
    transforms = import_torchvision().transforms
    noise = np.random.default_rng(size).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])(Image.fromarray(noise))
    found = Preprocessing(3, 224, 224, (0.0,) * 3, (1.0,) * 3).read(tmp_path / "a.png")
    difference = np.abs(found.astype(int) - np.asarray(usual).transpose(2, 0, 1))
    assert difference.max() <= 1  # Pillow rounds between its two passes, whose order it chooses


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

    monkeypatch.setattr(locations, "_download", download)
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
    monkeypatch.setattr(locations, "_DEBIAN_DATASETS", Path("/usr/share/datasets"))
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
        batch = {"data": cifar_pixels(100), "fine_labels": [99, *range(99)], "coarse_labels": [0] * 100}
        (folder / name).write_bytes(as_python2(batch))
    meta = {"fine_label_names": [str(number) for number in range(100)]}
    (folder / "meta").write_bytes(as_python2(meta))
    cifar = load_dataset("cifar100", data_dir=tmp_path)
    assert len(cifar.classes) == 100
    assert cifar.train.labels.tolist() == [99, *range(99)]


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


def test_small_files_take_little_memory(tmp_path: Path) -> None:
    """Nine bytes of a pickle that name a far place in its memory, and a page of zeros that unpacks without end."""
    write_cifar10(tmp_path / "c")
    write_fashion(tmp_path / "f")
    (tmp_path / "c" / "data_batch_1").write_bytes(b"\x80\x02}r\xff\xff\xff\x00.")
    images = tmp_path / "f" / "train-images-idx3-ubyte.gz"
    images.write_bytes(gzip.compress(gzip.decompress(images.read_bytes()) + bytes(20 << 20)))
    damage = {"cifar10": ("c", "data_batch_1 is damaged"), "fashion-mnist": ("f", "more values than its")}
    for name, (folder, said) in damage.items():
        tracemalloc.start()
        with pytest.raises(EmqError, match=said):
            load_dataset(name, data_dir=tmp_path / folder)
        assert tracemalloc.get_traced_memory()[1] < 10 << 20
        tracemalloc.stop()


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

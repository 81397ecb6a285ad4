"""Data sets by name, as numpy arrays: a device measures accuracy without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emqdeploy.datafiles import damaged, find_or_download, read_cifar, read_idx, read_image, read_images
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.registry import Registry

_SPLIT_SEED = 20510673  # of the test splits we make; it must never follow the training seed
_TEST_FRACTION = 0.2
_IMAGE_SUFFIXES = frozenset((".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"))
_IMAGENET_STATISTICS = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become network inputs: size, and mean and standard deviation per channel.

    ``mean`` and ``std`` are in units of the full pixel range: 1.0 is pixel value 255.
    """

    channels: int
    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        sizes_fit = self.channels in (1, 3) and self.height > 0 and self.width > 0
        if not sizes_fit or not len(self.mean) == len(self.std) == self.channels:
            raise EmqError(
                "preprocessing needs 1 or 3 channels, a positive size, and one mean and std for "
                f"each channel, not {self}"
            )
        if not all(math.isfinite(value) for value in self.mean + self.std) or min(self.std) <= 0:
            raise EmqError(f"preprocessing needs a finite mean and a positive std, not {self}")

    def normalize(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Return ``(images / 255 - mean) / std``, computed in float32 in this order.

        Args:
            images: Pixels (N, C, H, W), uint8.

        Returns:
            Inputs (N, C, H, W), float32.
        """
        if images.ndim != 4 or images.shape[1] != self.channels or images.dtype != np.uint8:
            raise EmqError(
                f"images must be uint8 of shape (N, {self.channels}, H, W), not {images.dtype} of shape {images.shape}"
            )
        mean = np.asarray(self.mean, np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, np.float32).reshape(1, -1, 1, 1)
        scaled = images.astype(np.float32)
        # In place: at 224 x 224 every temporary copy of a batch costs a device megabytes.
        scaled /= np.float32(255)
        scaled -= mean
        scaled /= std
        return scaled

    @property
    def input_range(self) -> float:
        """Largest absolute input that any pixel can reach: the clip of the input quantizer."""
        extremes = np.empty((2, self.channels, 1, 1), np.uint8)
        extremes[0], extremes[1] = 0, 255
        return float(np.abs(self.normalize(extremes)).max())

    def load_image(self, path: str | Path) -> npt.NDArray[np.float32]:
        """Read one image file as a network input.

        Returns:
            Input (1, C, H, W), float32.

        Raises:
            EmqError: The file is missing or is not a readable image.
        """
        return self.normalize(read_image(Path(path), self.channels, self.height, self.width)[None])

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Rebuild from what ``to_dict`` returned.

        Raises:
            EmqError: A value is missing or is not a number.
        """
        try:
            return cls(
                channels=int(values["channels"]),
                height=int(values["height"]),
                width=int(values["width"]),
                mean=tuple(float(value) for value in values["mean"]),
                std=tuple(float(value) for value in values["std"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise EmqError(f"the preprocessing record is damaged: {error!r}") from error


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) as uint8 and their class numbers (N,) as int64."""

    images: npt.NDArray[np.uint8]
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Split:
        """Return the images at ``indices`` (integers or a mask), in that order."""
        chosen = np.asarray(indices)
        return Split(self.images[chosen], self.labels[chosen])


@dataclass(frozen=True, eq=False)
class Dataset:
    """A training and a test split with what is needed to use them.

    ``augmentation`` names the one that suits the data: "none", "shift1" or "crop-flip".
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
        The data set, all of it in memory as uint8.

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
    if limit is None or limit >= len(dataset.train):
        return dataset
    kept, _ = _stratified(dataset.train.labels, limit, _SPLIT_SEED)
    return Dataset(**vars(dataset) | {"train": dataset.train.subset(kept)})


def validation_split(train: Split, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Set part of the training images aside, classes in proportion.

    The seed is one of the data, not of the training: runs with different training seeds must be
    compared on the same images.

    Args:
        train: What to divide.
        fraction: The share set aside, between 0 and 1.
        seed: Which images.

    Returns:
        The remaining training split and the validation split; neither is empty.
    """
    if not 0 < fraction < 1 or len(train) < 2:
        raise UsageError(
            "a validation split needs at least 2 images and a fraction between 0 and 1, "
            f"not {len(train)} images and {fraction}"
        )
    count = min(max(round(fraction * len(train)), 1), len(train) - 1)
    aside, kept = _stratified(train.labels, count, seed)
    return train.subset(kept), train.subset(aside)


def _stratified(
    labels: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Choose ``count`` items with every class in proportion.

    Each class is shuffled and spread evenly over [0, 1]; the items below a common threshold are
    chosen. A class with one image keeps it in the rest unless half of everything is chosen.

    Returns:
        Indices of the chosen items and of the rest, both ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = order[np.argsort(position[order], kind="stable")]
    return np.sort(ranked[:count]), np.sort(ranked[count:])


def _with_test_split(split: Split) -> tuple[Split, Split]:
    """Return (train, test) of data that come without a test split."""
    return validation_split(split, _TEST_FRACTION, _SPLIT_SEED)


# --- Data sets ------------------------------------------------------------------------------------


@DATASETS.register("digits")
def _digits(request: DataRequest) -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""
    bunch = require("sklearn.datasets", "train").load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    train, test = _with_test_split(Split(pixels, bunch.target.astype(np.int64)))
    return Dataset(
        name="digits",
        train=train,
        test=test,
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing=Preprocessing(1, 8, 8, (0.3053,), (0.3760,)),
        augmentation="shift1",
    )


_FASHION_CLASSES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


@DATASETS.register("fashion-mnist")
def _fashion_mnist(request: DataRequest) -> Dataset:
    """Fashion-MNIST: 70,000 grey garments of 28 x 28 pixels in four IDX files."""
    parts = {"train": "train", "test": "t10k"}
    folder = find_or_download(
        "fashion-mnist",
        request.data_dir,
        files=[f"{part}-{kind}-ubyte.gz" for part in parts.values() for kind in ("images-idx3", "labels-idx1")],
        subfolders=("", "FashionMNIST/raw"),
        torchvision_name="FashionMNIST",
        debian_package="dataset-fashion-mnist",
    )
    splits = {}
    for split, part in parts.items():
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        path = folder / f"{part}-labels-idx1-ubyte.gz"
        labels = read_idx(path, dimensions=1).astype(np.int64)
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max() > 9:
            raise damaged(path, "images and labels do not belong together")
        splits[split] = Split(images[:, None], labels)
    return Dataset(
        name="fashion-mnist",
        classes=_FASHION_CLASSES,
        preprocessing=Preprocessing(1, 28, 28, (0.2860,), (0.3530,)),
        augmentation="crop-flip",
        **splits,
    )


@DATASETS.register("cifar10")
def _cifar10(request: DataRequest) -> Dataset:
    """CIFAR-10: 60,000 colour images of 32 x 32 pixels."""
    folder = "cifar-10-batches-py"
    batches = [f"data_batch_{number}" for number in range(1, 6)]
    statistics = ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    files = (batches, ["test_batch"], "batches.meta")
    return _cifar("cifar10", request, folder, files, ("labels", "label_names"), statistics)


@DATASETS.register("cifar100")
def _cifar100(request: DataRequest) -> Dataset:
    """CIFAR-100: 60,000 colour images of 32 x 32 pixels in 100 fine classes."""
    folder = "cifar-100-python"
    statistics = ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762))
    keys = ("fine_labels", "fine_label_names")
    return _cifar("cifar100", request, folder, (["train"], ["test"], "meta"), keys, statistics)


def _cifar(
    name: str,
    request: DataRequest,
    subfolder: str,
    files: tuple[list[str], list[str], str],
    keys: tuple[str, str],
    statistics: tuple[tuple[float, ...], tuple[float, ...]],
) -> Dataset:
    """Read either CIFAR; they differ in file names and in the keys of their dictionaries."""
    train_files, test_files, meta_file = files
    folder = find_or_download(
        name,
        request.data_dir,
        files=[*train_files, *test_files, meta_file],
        subfolders=("", subfolder),
        torchvision_name=name.upper(),
    )
    label_key, name_key = keys
    classes = tuple(str(label) for label in read_cifar(folder / meta_file, name_key)[name_key])

    def read(names: Sequence[str]) -> Split:
        images, labels = [], []
        for path in (folder / name for name in names):
            batch = read_cifar(path, "data", label_key)
            try:
                pixels = batch["data"].values.reshape(-1, 3, 32, 32)
                numbers = np.asarray(batch[label_key], np.int64).reshape(len(pixels))
            except (AttributeError, TypeError, ValueError) as error:
                raise damaged(path, "images and labels do not belong together") from error
            if len(numbers) and not 0 <= numbers.min() <= numbers.max() < len(classes):
                raise damaged(path, "a label lies outside the classes")
            images.append(pixels)
            labels.append(numbers)
        return Split(np.concatenate(images), np.concatenate(labels))

    return Dataset(
        name=name,
        train=read(train_files),
        test=read(test_files),
        classes=classes,
        preprocessing=Preprocessing(3, 32, 32, *statistics),
        augmentation="crop-flip",
    )


@DATASETS.register("imagefolder")
def _imagefolder(request: DataRequest) -> Dataset:
    """A folder per class: PATH/train and PATH/test (or val), or the classes in PATH itself."""
    root = Path(request.argument).expanduser()
    size = request.image_size or 224
    if not root.is_dir():
        raise UsageError(f"{root} is not a folder; give imagefolder:PATH an existing folder")
    has_train = (root / "train").is_dir()
    test_root = next((root / sub for sub in ("test", "val") if (root / sub).is_dir()), None)
    if has_train != (test_root is not None):
        raise UsageError(
            f"{root} has only one of train/ and test/ (or val/); add the other, "
            "or put the folders of the classes directly into it"
        )
    train_files = _class_files(root / "train" if has_train else root)
    classes = tuple(train_files)
    if len(classes) < 2:
        raise UsageError(f"{root} holds the single class {classes[0]!r}; at least two are needed")
    paths, labels = _flatten(train_files, classes)
    if test_root is None:
        # Files are divided before they are decoded: a limit then saves the time of the others.
        count = max(round(_TEST_FRACTION * len(labels)), 1)
        test, train = _stratified(labels, count, _SPLIT_SEED)
        test_paths, test_labels = [paths[index] for index in test], labels[test]
        paths, labels = [paths[index] for index in train], labels[train]
    else:
        test_paths, test_labels = _flatten(_class_files(test_root), classes)
    if request.limit is not None:
        kept, _ = _stratified(labels, request.limit, _SPLIT_SEED)
        paths, labels = [paths[index] for index in kept], labels[kept]
    return Dataset(
        name=f"imagefolder:{root.name}",
        train=Split(read_images(paths, size), labels),
        test=Split(read_images(test_paths, size), test_labels),
        classes=classes,
        preprocessing=Preprocessing(3, size, size, *_IMAGENET_STATISTICS),
        augmentation="crop-flip",
    )


def _class_files(folder: Path) -> dict[str, list[Path]]:
    """Return the image files of every class folder, both in alphabetical order."""
    folders = sorted(sub for sub in folder.iterdir() if sub.is_dir() and sub.name[0] != ".")
    if not folders:
        raise UsageError(f"{folder} holds no folders; make one for each class, with its images")
    files = {
        sub.name: sorted(
            file for file in sub.iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES and file.name[0] != "."
        )
        for sub in folders
    }
    for name, found in files.items():
        if not found:
            raise UsageError(f"{folder / name} holds no images; add some or remove the folder")
    return files


def _flatten(files: Mapping[str, Sequence[Path]], classes: Sequence[str]) -> tuple[list[Path], npt.NDArray[np.int64]]:
    """Return all files and their class numbers (N,)."""
    unknown = sorted(set(files) - set(classes))
    if unknown:
        raise UsageError(
            f"the test images have the class {unknown[0]!r}, which the training images lack; "
            "give both the same class folders"
        )
    labels = [classes.index(name) for name, found in files.items() for _ in found]
    return [path for found in files.values() for path in found], np.asarray(labels, np.int64)

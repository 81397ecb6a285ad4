"""Small data sets that lie in memory as a whole: digits, Fashion-MNIST, CIFAR."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from emqdeploy.data.formats import damaged, read_cifar, read_idx
from emqdeploy.data.loading import Dataset, with_test_split
from emqdeploy.data.locations import find_or_download
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.data.splits import Split
from emqdeploy.errors import require
from emqdeploy.format.grid import Floats


@DATASETS.register("digits")
def _digits(request: DataRequest) -> Dataset:
    """The 1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""
    request.refuse_path()
    table = _digits_table()
    pixels = np.rint(table[:, :-1].reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    train, test = with_test_split(Split(pixels, table[:, -1].astype(np.int64)))
    return Dataset(
        name="digits",
        train=train,
        test=test,
        classes=tuple(str(digit) for digit in range(10)),
        preprocessing=Preprocessing(1, 8, 8, (0.3053,), (0.3760,)),
        augmentation="shift1",
    )


def _digits_table() -> Floats:
    """Rows of 64 pixels, 0 to 16, and a class; scikit-learn's file is read as it lies, for importing that is slow."""
    try:
        spec = importlib.util.find_spec("sklearn")
    except ImportError:
        spec = None
    folders = spec.submodule_search_locations if spec is not None else None
    for folder in folders or ():
        file = Path(folder) / "datasets" / "data" / "digits.csv.gz"
        if file.is_file():
            return np.loadtxt(file, np.float32, delimiter=",")
    return np.column_stack(require("sklearn.datasets", "train").load_digits(return_X_y=True)).astype(np.float32)


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
    request.refuse_path()
    parts = ("train", "t10k")
    folder = find_or_download(
        "fashion-mnist",
        request.data_dir,
        files=[f"{part}-{kind}-ubyte.gz" for part in parts for kind in ("images-idx3", "labels-idx1")],
        subfolders=("", "FashionMNIST/raw"),
        torchvision_name="FashionMNIST",
        debian_package="dataset-fashion-mnist",
    )
    splits: list[Split] = []
    for part in parts:
        images = read_idx(folder / f"{part}-images-idx3-ubyte.gz", dimensions=3)
        path = folder / f"{part}-labels-idx1-ubyte.gz"
        labels = read_idx(path, dimensions=1).astype(np.int64)
        if images.shape[1:] != (28, 28) or len(images) != len(labels) or labels.max() > 9:
            raise damaged(path, "images and labels do not belong together")
        splits.append(Split(images[:, None], labels))
    return Dataset(
        name="fashion-mnist",
        train=splits[0],
        test=splits[1],
        classes=_FASHION_CLASSES,
        preprocessing=Preprocessing(1, 28, 28, (0.2860,), (0.3530,)),
        augmentation="crop-flip",
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
    request.refuse_path()
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

"""Data sets that other libraries keep: torchvision's by their name, and Hugging Face's from the disk."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.data.images import decoded, open_image
from emqdeploy.data.loading import UNLABELLED, Dataset, with_test_split
from emqdeploy.data.locations import cache_folder
from emqdeploy.data.naming import DATASETS, DataRequest
from emqdeploy.data.pictures import KeptPictures
from emqdeploy.data.preprocessing import USUAL
from emqdeploy.data.repair import import_torchvision
from emqdeploy.data.splits import Split
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.options import nearest

_PARTS = {"train": ("train", "trainval"), "test": ("test", "validation", "valid", "val")}
"""What the splits are called, the usual name first."""

_LABELS = ("label", "labels", "fine_label", "class", "target")
"""Columns of classes that are not marked as such."""


@DATASETS.register("torchvision")
def _torchvision(request: DataRequest) -> Dataset:
    """A data set of torchvision by the name of its class, from the folder that holds its files."""
    module = import_torchvision().datasets
    vision = module.VisionDataset
    known = {n: getattr(module, n) for n in module.__all__ if isinstance(getattr(module, n), type)}
    known = {name: kind for name, kind in known.items() if issubclass(kind, vision) and kind is not vision}
    spelled = {one.lower(): one for one in known}
    name = spelled.get(request.argument.lower(), request.argument)
    if name not in known:
        raise UsageError(
            f"torchvision has no data set {name!r}{nearest(name, spelled)}; write for example torchvision:MNIST"
        )
    root = request.data_dir or cache_folder()
    parts = [_torchvision_part(known[name], part, root) for part in _PARTS]
    if len({len(one) for one in parts}) == 1 and not _has_parts(known[name]):
        parts = parts[:1]
    splits = [_torchvision_split(one, name) for one in parts]
    train, test = splits if len(splits) == 2 else with_test_split(splits[0])
    most = int(max(split.labels.max() for split in splits)) + 1
    given = getattr(parts[0], "classes", None)
    classes = tuple(str(one) for one in (given if given is not None and len(given) >= most else range(most)))
    return Dataset(name, train, test, classes, USUAL, "", own_statistics=False)


def _has_parts(kind: type) -> bool:
    return bool({"split", "train"} & set(inspect.signature(kind).parameters))


def _torchvision_part(kind: Any, part: str, root: Path) -> Any:
    """The data set's object for one of its splits; for all of it where it has none."""
    parameters = inspect.signature(kind).parameters
    ways = [{"split": name} for name in _PARTS[part]] if "split" in parameters else [{"train": part == "train"}]
    for way in ways if _has_parts(kind) else [{}]:
        try:
            return kind(str(root), **way)
        except ValueError as error:  # it calls its splits otherwise
            reason: Exception = error
        except Exception as error:  # what a data set that is not there raises differs
            reason = error
            break
    name, why = kind.__name__, (str(reason) or type(reason).__name__).splitlines()[0]
    raise EmqError(
        f"torchvision finds no {name} in {root} ({why}); say with --data-dir where it lies, or fetch it once:"
        f" python -c \"import torchvision; torchvision.datasets.{name}('{root}', download=True)\""
    )


def _torchvision_split(data: Any, name: str) -> Split:
    held = next((getattr(data, at) for at in ("targets", "_labels", "labels", "y") if hasattr(data, at)), None)
    try:
        targets = [data[index][1] for index in range(len(data))] if held is None else held
        labels = np.asarray(targets, np.int64).reshape(len(data))
    except (TypeError, ValueError) as error:
        raise UsageError(f"torchvision's {name} has no class for each image, which this needs") from error
    return Split(KeptPictures(partial(_torchvision_picture, data), np.arange(len(data)), name, USUAL), labels)


def _torchvision_picture(data: Any, row: int, channels: int) -> Any:
    return data[row][0].convert("L" if channels == 1 else "RGB")


@DATASETS.register("huggingface")
def _huggingface(request: DataRequest) -> Dataset:
    """A data set that `save_to_disk` left in a folder, or one of the cache by its name; nothing is fetched."""
    if not request.argument and request.data_dir is None:
        raise UsageError("huggingface needs a folder of save_to_disk, or a name in the cache; write huggingface:PATH")
    found = _saved_or_cached(request.argument, request.data_dir)
    if isinstance(found, dict):
        named = [next((one for one in names if one in found), None) for names in _PARTS.values()]
        parts = [found[one] for one in named if one is not None] or list(found.values())[:1]
    else:
        parts = [found]
    name = Path(request.argument).name or "huggingface"
    image, label, names = _columns(parts, name)
    splits = [_huggingface_split(part, image, label, names, name) for part in parts]
    train, test = splits if len(splits) == 2 else with_test_split(splits[0])
    return Dataset(name, train, test, names, USUAL, "", own_statistics=False)


def _saved_or_cached(argument: str, folder: Path | None) -> Any:
    """What the library opens, without a look at the network: a name may come from a file."""
    datasets = require("datasets", "huggingface")
    path = folder or Path(argument).expanduser()
    with _offline():
        try:
            if path.is_dir():
                return datasets.load_from_disk(str(path))
            name, _, config = argument.partition(":")
            return datasets.load_dataset(name, config or None)
        except Exception as error:  # the library raises a dozen kinds
            where = f"in {path}" if path.is_dir() else f"{argument} in its cache"
            why = (str(error) or type(error).__name__).splitlines()[0]
            raise EmqError(
                f"Hugging Face's datasets finds no images {where} ({why}); save them once where there is a network:"
                " datasets.load_dataset(NAME).save_to_disk(PATH)"
            ) from error


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Keeps the library from the network."""
    places: list[Any] = [require(name, "huggingface") for name in ("datasets.config", "huggingface_hub.constants")]
    before = [place.HF_HUB_OFFLINE for place in places]
    try:
        for place in places:
            place.HF_HUB_OFFLINE = True
        yield
    finally:
        for place, value in zip(places, before, strict=True):
            place.HF_HUB_OFFLINE = value


def _columns(parts: list[Any], name: str) -> tuple[str, str | None, tuple[str, ...]]:
    """The columns of images and of classes, and the names of these."""
    datasets = require("datasets", "huggingface")
    features = parts[0].features
    image = next((key for key, one in features.items() if isinstance(one, datasets.Image)), None)
    if image is None:
        raise UsageError(f"no column of {name} holds images; its columns are {', '.join(features)}")
    for key, one in features.items():
        if isinstance(one, datasets.ClassLabel):
            return image, key, tuple(one.names)
    label = next((key for key in _LABELS if key in features), None)
    return image, label, () if label is None else tuple(sorted({str(one) for part in parts for one in part[label]}))


def _huggingface_split(part: Any, image: str, label: str | None, names: tuple[str, ...], name: str) -> Split:
    raw = part.cast_column(image, require("datasets", "huggingface").Image(decode=False))
    pictures = KeptPictures(partial(_huggingface_picture, raw, image, name), np.arange(len(part)), name, USUAL)
    if label is None:
        return Split(pictures, np.full(len(part), UNLABELLED, np.int64))
    if hasattr(part.features[label], "names"):
        return Split(pictures, np.array(list(part[label]), np.int64))
    number = {one: index for index, one in enumerate(names)}
    return Split(pictures, np.array([number[str(one)] for one in part[label]], np.int64))


def _huggingface_picture(part: Any, column: str, name: str, row: int, channels: int) -> Any:
    stored = part[row][column]
    if stored["bytes"] is None:
        return open_image(Path(stored["path"]), channels)
    return decoded(stored["bytes"], f"image {row} of {name}", channels)

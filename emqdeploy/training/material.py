"""The images of a run: its data set, what trains, what validates and what tests, on the training device."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from rich.console import Console

from emqdeploy.data import Dataset, Split, load_dataset, validation_split
from emqdeploy.data.cache import cached
from emqdeploy.data.flipping import flip
from emqdeploy.data.wishes import wishes_of
from emqdeploy.errors import EmqError, UsageError, plain_text
from emqdeploy.training.augment import AUGMENTATIONS
from emqdeploy.training.batches import ImageSource, image_source
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.starting import expected_of


@dataclass(frozen=True)
class Material:
    """A data set as training needs it, on the training device."""

    dataset: Dataset
    train: ImageSource
    validation: ImageSource
    test: ImageSource


def training_device(config: CommonOptions) -> torch.device:
    """The device that a configuration asks for."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise EmqError("--device cuda: torch sees no GPU here; use --device cpu, or install a torch build for this GPU")
    automatic = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(automatic if config.device == "auto" else config.device)


def training_data(config: TrainConfig) -> tuple[Dataset, Split, Split]:
    """The data set of a run, the images that train, and those that validate; labels are as the run sees them.

    Raises:
        EmqError: the data set is not at hand.
        UsageError: its images have no labels.
    """
    wishes, expected = wishes_of(config), expected_of(config)
    dataset = load_dataset(config.data, config.data_dir, limit=config.limit, pixels=wishes, expected=expected)
    if not dataset.labelled:
        raise UsageError(
            f"the images of {dataset.name} have no labels, which training needs; sort them into a folder per class, add"
            " a CSV file of paths and labels, or quantize a trained network, which needs none"
        )
    parts = validation_split(dataset.train, config.validation_share)
    if config.flip_labels:
        how = (len(dataset.classes), config.flip_labels, config.flip_kind, config.seed)
        parts = tuple(replace(part, labels=flip(part.labels, *how)) for part in parts)  # type: ignore[assignment]
    return dataset, *parts


def open_material(config: TrainConfig, report_test: bool, console: Console) -> Material:
    """Opens the images of a run.

    Args:
        config: names them, and the device.
        report_test: whether the test images are those of the test set; else the validation part stands in.
        console: told what is cached.
    """
    if not report_test and not config.validation_share:
        raise UsageError(
            "--validation-share 0 leaves nothing to judge by but the test set; report that, or take a share"
        )
    dataset, train_split, validation_split_ = training_data(config)
    device = training_device(config)

    def say(sentence: str) -> None:
        console.print(plain_text(sentence), markup=False, highlight=False, soft_wrap=True)

    def source(split: Split, learns: bool = False) -> ImageSource:
        if len(split) == 0 and not (split is validation_split_ and config.validation_share == 0):
            raise UsageError(
                f"data set {dataset.name!r} has too few images for training, validation and test; add images"
            )
        augmentation = config.augment or dataset.augmentation
        # Crops of random size are cut from whole pictures, which no cache holds.
        if config.cache is not None and not (learns and AUGMENTATIONS[augmentation].box is not None):
            split = cached(split, config.cache, say)
        return image_source(split, dataset.preprocessing, augmentation, device, config.workers)

    validation = source(validation_split_)
    return Material(
        dataset, source(train_split, learns=True), validation, source(dataset.test) if report_test else validation
    )

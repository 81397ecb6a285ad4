"""What a user brings to be quantized: a network in a file, or a model by name and its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.data.loading import limited
from emqdeploy.data.splits import stratified
from emqdeploy.data.wishes import Expected, PixelOptions, wishes_of
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.graph.fidelity import SAME_DECIBELS, snr_db
from emqdeploy.models import trust
from emqdeploy.models.onnx import SUFFIX, OnnxNetwork, read_network
from emqdeploy.models.unfolding import with_norms
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.training.expectations import expected_pixels
from emqdeploy.training.fidelity import FEW_IMAGES
from emqdeploy.training.posttraining.config import FEWEST_IMAGES, QuantizeConfig
from emqdeploy.training.pretrained import Pretrained
from emqdeploy.training.published import is_published, published_weights
from emqdeploy.training.weights_file import check_no_program

BATCH, BATCH_PIXELS = 128, 2**19
"""Images and pixels of a batch at most."""

STATISTICS_IMAGES = 256
"""That normalizations get their statistics from, where an exporter has folded them away."""


@dataclass(frozen=True)
class Given:
    """A float network and its weights.

    Attributes:
        model: what it is called.
        classes: how many logits it gives.
        image_size: what the data set was asked for.
        description: the network as plain data, None where ``model`` names it.
        load: puts the weights into a fresh model; returns what there is to say.
        check: raises where the model is not the function of the file, which it compares on images; returns what there
            is to say.
    """

    model: str
    classes: int
    image_size: int | None
    description: dict[str, Any] | None
    load: Callable[[nn.Module], list[str]]
    check: Callable[[nn.Module, Tensor], list[str]]


def open_given(config: QuantizeConfig) -> tuple[Given, Dataset]:
    """Reads what is to be quantized, and the images of its size.

    Raises:
        EmqError: the file is no network or no weights of the model, or the images are not those that it takes.
    """
    if config.weights.suffix.lower() == SUFFIX:
        if config.model is not None:
            raise UsageError(f"{config.weights} is a network with its weights; leave out --model {config.model}")
        network = read_network(config.weights, config.image_size)
        size, dataset = _images(config, network)
        some = calibration_batches(dataset, min(config.images, STATISTICS_IMAGES), config.seed)
        return _of_file(config.weights, network, size, some), dataset
    check_no_program(config.weights)
    model, weights = config.model, config.weights
    if model is None and not weights.exists() and is_published(str(weights)):
        model, weights = str(weights), published_weights(str(weights))
    if model is None:
        what = "holds weights alone" if weights.exists() else "is no file, nor a model of timm or torchvision"
        raise UsageError(f"{weights} {what}; name the network that weights belong to with --model")
    dataset = _pictures(config, expected_pixels(model, weights))
    return _by_name(config, model, weights, dataset), dataset


def _pictures(config: QuantizeConfig, expected: Expected) -> Dataset:
    """The data set as the user says that its pictures are seen, else as the weights expect."""
    dataset = load_dataset(config.data, config.data_dir, pixels=wishes_of(config), expected=expected)
    return replace(dataset, test=limited(dataset.test, config.test_images))


def _of_file(path: Path, network: OnnxNetwork, size: int | None, batches: list[Tensor]) -> Given:
    """A network that a file holds as a whole."""
    description, state = with_norms(network.description, network.state, batches)

    def load(model: nn.Module) -> list[str]:
        model.load_state_dict(state)
        read = f"read {len(network.description['steps'])} steps and {len(network.state)} tensors from {path}"
        added = len(description["steps"]) - len(network.description["steps"])
        return [read, *([f"put {added} normalizations back that were folded into convolutions"] if added else [])]

    def check(model: nn.Module, images: Tensor) -> list[str]:
        some = images[:FEW_IMAGES]
        wanted = network.answer(some.numpy())
        with torch.inference_mode():
            found = model(some[: len(wanted)]).numpy()
        same = snr_db(wanted, found)
        if same < SAME_DECIBELS:
            raise EmqError(
                f"{path} was not understood: the network that was read answers {same:.1f} dB away from the file in"
                f" onnxruntime, below {SAME_DECIBELS:g}; export it again, with a free number of images"
            )
        return [*network.notes, f"the network answers as {path} does in onnxruntime: {same:.1f} dB, {len(some)} images"]

    name = path.name.replace(":", "_")
    return Given(name, network.classes, size, description, load, check)


def _images(config: QuantizeConfig, network: OnnxNetwork) -> tuple[int | None, Dataset]:
    """The data set at the size of the images that a network takes, and the size that it had to be asked for."""
    height, width = network.sides
    size = config.image_size or (height if height == width else None)
    dataset = _pictures(config, Expected(PixelOptions(image_size=size), f"the size in {config.weights}"))
    pixels = dataset.preprocessing
    have, want = (pixels.channels, pixels.height, pixels.width), (network.channels, height, width)
    if have != want:
        raise UsageError(
            f"{config.weights} takes images of {' x '.join(map(str, want))}, and those of {dataset.name} are"
            f" {' x '.join(map(str, have))}; name other data, or resize these with --image-size {height}"
        )
    return size, dataset


def _by_name(config: QuantizeConfig, model: str, weights: Path, dataset: Dataset) -> Given:
    """A model by its name, with weights from a file, and as many classes as these have."""
    trust(model)
    pixels = dataset.preprocessing
    shape = (pixels.channels, pixels.height, pixels.width)
    fresh = NetworkSpec(model, max(2, len(dataset.classes)), shape, pixels.input_range, ()).float_model()
    found = Pretrained.find(fresh, weights, config.weights_entry)
    load = partial(found.load, fresh_head=False)
    classes = found.classes(fresh) or len(dataset.classes)
    return Given(model, classes, config.image_size, None, load, lambda *_: [])


def calibration_batches(dataset: Dataset, images: int, seed: int) -> list[Tensor]:
    """Normalised training images ``(B, C, H, W)``, classes in proportion and mixed in every batch."""
    count = min(images, len(dataset.train))
    if count < FEWEST_IMAGES:
        raise EmqError(f"{dataset.name} has {count} training images; calibration needs {FEWEST_IMAGES} or more")
    parts = calibration_places(dataset, count, seed)
    return [torch.from_numpy(dataset.preprocessing.normalize(dataset.train.subset(part).images[:])) for part in parts]


def calibration_places(dataset: Dataset, count: int, seed: int) -> list[NDArray[np.intp]]:
    """Which training images those are, batch by batch."""
    chosen = np.random.default_rng(seed).permutation(stratified(dataset.train.labels, count, seed)[0])
    return np.array_split(chosen, -(-count // batch_of(dataset.preprocessing)))


def batch_of(pixels: Preprocessing) -> int:
    """Images that are computed at once: what a network computes in between must not fill the memory."""
    return max(1, min(BATCH, BATCH_PIXELS // (pixels.height * pixels.width)))

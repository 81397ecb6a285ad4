"""What training starts from: a model by name, fresh or with weights from a file, or a network that a file holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from emqdeploy.data import Dataset
from emqdeploy.data.wishes import Expected, PixelOptions
from emqdeploy.errors import UsageError
from emqdeploy.models.onnx import SUFFIX, read_network, side_of
from emqdeploy.models.unfolding import with_norms
from emqdeploy.training.expectations import expected_pixels
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.settings import CommonOptions


@dataclass(frozen=True)
class Start:
    """A float network to train.

    Attributes:
        model: what it is called.
        description: the network as plain data, None where ``model`` names it.
        known: whether it has weights that were trained.
        load: puts the weights into a fresh model; returns what there is to say.
    """

    model: str
    description: dict[str, Any] | None
    known: bool
    load: Callable[[nn.Module], list[str]]


def is_file(model: str) -> bool:
    """Whether a model is named by the file that holds it."""
    return model.lower().endswith(SUFFIX)


def expected_of(config: CommonOptions) -> Expected | None:
    """How the weights that training starts from expect to see pictures."""
    if is_file(config.model):
        size = config.image_size or side_of(Path(config.model))
        return Expected(PixelOptions(image_size=size), config.model)
    return None if config.pretrained is None else expected_pixels(config.model, config.pretrained)


def start_of(config: CommonOptions, dataset: Dataset, images: Tensor) -> Start:
    """Reads what training starts from.

    Args:
        config: names it.
        dataset: what it is trained on.
        images: some normalised ones, ``(N, C, H, W)``.

    Raises:
        EmqError: the file holds no network for these images and classes.
    """
    if not is_file(config.model):
        return Start(config.model, None, config.pretrained is not None, partial(_weights, config, []))
    path, pixels = Path(config.model), dataset.preprocessing
    network = read_network(path, pixels.height)
    if network.classes != len(dataset.classes) or network.channels != pixels.channels:
        raise UsageError(
            f"{path} takes {network.channels} channels and gives {network.classes} classes, and {dataset.name} has"
            f" {pixels.channels} and {len(dataset.classes)}; train it on its own data"
        )
    description, state = with_norms(network.description, network.state, images.cpu().split(64))
    said = [f"read {len(network.description['steps'])} steps and {len(network.state)} tensors from {path}"]

    def load(model: nn.Module) -> list[str]:
        model.load_state_dict(state)
        own = config.pretrained is None or config.pretrained == path.absolute()
        return [*said, *network.notes] if own else _weights(config, said, model)

    return Start(path.name.replace(":", "_"), description, True, load)


def _weights(config: CommonOptions, said: list[str], model: nn.Module) -> list[str]:
    if config.pretrained is None:
        return []
    return [*said, *load_pretrained(model, config.pretrained, entry=config.weights_entry)]

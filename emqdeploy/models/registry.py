"""Where models are filed by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from emqdeploy.registry import Registry

ModelBuilder = Callable[[int, int, int], nn.Module]
"""``(num_classes, in_channels, image_size) -> module``."""


@dataclass(frozen=True)
class ModelEntry:
    """A model that is known by name.

    Attributes:
        build: makes it.
        smallest_image: H = W of the smallest image that leaves something to look at behind its strides.
        multiple: H = W must be a multiple of this (the patches of a transformer).
    """

    build: ModelBuilder
    smallest_image: int = 4
    multiple: int = 1


MODELS: Registry[ModelEntry] = Registry("model")


def canonical(name: str) -> str:
    """The spelling under which a model is filed: lower case, ``_`` as its authors write it in torchvision's names."""
    plain = name.lower()
    return next((known for known in MODELS if known.replace("_", "-") == plain.replace("_", "-")), name)


def model(name: str, smallest_image: int = 4, multiple: int = 1) -> Callable[[ModelBuilder], ModelBuilder]:
    """Returns a decorator that files a builder under ``name``."""

    def file(build: ModelBuilder) -> ModelBuilder:
        MODELS.register(name)(ModelEntry(build, smallest_image, multiple))
        return build

    return file

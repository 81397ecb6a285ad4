"""Float models by name: small networks of our own, torchvision's, any of timm's, and the user's own functions.

Every model here can be traced by `emqdeploy.quant.tracing`, which is how quantizers are inserted.
"""

from __future__ import annotations

import torch
from torch import nn

from emqdeploy.data.repair import import_torchvision
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.models import small, vision  # noqa: F401  (register their models)
from emqdeploy.models.answers import answering_with_logits, check_takes_images, logits_of
from emqdeploy.models.external import TIMM, build_timm, build_users, check_trusted, is_users, knows_timm, trust
from emqdeploy.models.registry import MODELS, ModelEntry, canonical
from emqdeploy.registry import UnknownNameError

__all__ = ["MODELS", "check_trusted", "create_model", "import_torchvision", "trust"]


def create_model(
    name: str, num_classes: int, in_channels: int, image_size: int, image_width: int | None = None
) -> nn.Module:
    """Builds a float model with freshly drawn weights.

    Args:
        name: a name in ``MODELS`` (``-`` and ``_`` are the same), ``timm/NAME``, or ``pkg.module:function``, which is
            called with those of ``num_classes``, ``in_channels`` and ``image_size`` that its signature takes, once
            `trust` was called for it.
        num_classes: number of logits.
        in_channels: C of the input ``(N, C, H, W)``.
        image_size: H, and W, of the input in pixels.
        image_width: W, where it is another.

    Returns:
        A module that maps ``(N, C, H, W)`` to logits ``(N, num_classes)``.

    Raises:
        UsageError: the name is unknown, or a number does not suit the model.
        EmqError: the model does not build or does not answer with logits.
    """
    if num_classes < 2 or in_channels < 1:
        raise UsageError(
            f"{name} needs at least 2 classes and 1 input channel, "
            f"not {num_classes} and {in_channels}; check the data set"
        )
    numbers = (num_classes, in_channels, image_size)
    if name.startswith(TIMM):
        return _answering(name, build_timm(name.removeprefix(TIMM), *numbers), *numbers, image_width)
    if is_users(name):
        check_trusted(name)
        return _answering(name, build_users(name, *numbers), *numbers, image_width)
    entry = _entry(name)
    if image_size < entry.smallest_image or image_size % entry.multiple:
        raise UsageError(
            f"{name} needs images of at least {entry.smallest_image} x {entry.smallest_image} pixels"
            + (f" in multiples of {entry.multiple}" if entry.multiple > 1 else "")
            + f", not {image_size} x {image_size}; choose another --image-size, or resnet8, resnet20 or vit-micro"
        )
    return entry.build(*numbers)


def _entry(name: str) -> ModelEntry:
    """Looks a model up; a name that only timm knows gets the prefix that it lacks."""
    try:
        return MODELS[canonical(name)]
    except UnknownNameError as error:
        if knows_timm(name):
            raise UsageError(f"unknown model {name!r}; timm has it: --model {TIMM}{name}") from error
        raise


def _answering(
    name: str, model: nn.Module, num_classes: int, in_channels: int, height: int, width: int | None
) -> nn.Module:
    """Returns a model that we did not write once it has answered a blank image with logits, and in its own mode."""
    check_takes_images(model)
    modes = [(module, module.training) for module in model.modules()]
    image = torch.zeros(1, in_channels, height, width or height)
    try:
        with torch.no_grad():
            answer = model.eval()(image)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise EmqError(
            f"{name} does not take images of {' x '.join(map(str, image.shape[1:]))}: {reason}; choose another"
            " --image-size or model"
        ) from error
    logits = logits_of(answer, name)
    shape = tuple(logits.shape)
    if shape != (1, num_classes):
        raise EmqError(f"{name} answers one image with a tensor of shape {shape}, not with logits (1, {num_classes})")
    for module, training in modes:
        module.training = training
    return model if logits is answer else answering_with_logits(model, name)

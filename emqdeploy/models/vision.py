"""torchvision's networks, without pretrained weights."""

from __future__ import annotations

from functools import partial

from torch import nn

from emqdeploy.data.repair import import_torchvision
from emqdeploy.models.registry import model

_STEMS = {"resnet18": "conv1", "resnet34": "conv1", "resnet50": "conv1", "mobilenet_v2": "features.0.0"}


def _build(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    network: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=num_classes)
    _set_in_channels(network, _STEMS[name], in_channels)
    return network


def _build_vit_b_16(num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    network: nn.Module = import_torchvision().models.vit_b_16(
        weights=None, num_classes=num_classes, image_size=image_size
    )
    # torchvision starts the classifier at zero, which leaves nothing to calibrate a quantizer on.
    nn.init.trunc_normal_(network.get_submodule("heads.head").weight, std=0.02)  # type: ignore[arg-type]
    _set_in_channels(network, "conv_proj", in_channels)
    return network


def _set_in_channels(network: nn.Module, name: str, in_channels: int) -> None:
    """Replaces the first convolution by one like it for ``in_channels``, where it does not fit as it is."""
    conv = network.get_submodule(name)
    assert isinstance(conv, nn.Conv2d)
    if conv.in_channels == in_channels:
        return
    changed = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=conv.bias is not None,
    )
    nn.init.kaiming_normal_(changed.weight, mode="fan_out", nonlinearity="relu")
    parent, _, leaf = name.rpartition(".")
    setattr(network.get_submodule(parent), leaf, changed)


for _name in _STEMS:
    model(_name, smallest_image=32)(partial(_build, _name))
model("vit_b_16", smallest_image=16, multiple=16)(_build_vit_b_16)

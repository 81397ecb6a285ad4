"""Float models by name: two small residual networks of our own, and torchvision's.

Every model here can be traced by ``torch.fx``, which is how quantizers are inserted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.registry import Registry

ModelBuilder = Callable[[int, int], nn.Module]

MODELS: Registry[ModelBuilder] = Registry("model")

_SMALLEST_IMAGE = {"resnet18": 32, "mobilenet_v2": 32}
_SMALLEST_IMAGE_OTHERWISE = 4

_TORCHVISION_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_UNUSABLE = "torchvision does not load beside this torch ({reason}); install the torchvision release that belongs to it"
_declared: list[torch.library.Library] = []  # a schema lives as long as its Library object


def create_model(name: str, num_classes: int, in_channels: int, image_size: int) -> nn.Module:
    """Build a float model with freshly drawn weights.

    Args:
        name: A name in ``MODELS``.
        num_classes: Number of logits.
        in_channels: C of the input (N, C, H, W).
        image_size: H = W of the input in pixels.

    Returns:
        A module that maps (N, C, H, W) to logits (N, num_classes).

    Raises:
        UsageError: The name is unknown, or a number does not suit the model.
    """
    build = MODELS[name]
    if num_classes < 2 or in_channels < 1:
        raise UsageError(
            f"{name} needs at least 2 classes and 1 input channel, "
            f"not {num_classes} and {in_channels}; check the data set"
        )
    smallest = _SMALLEST_IMAGE.get(name, _SMALLEST_IMAGE_OTHERWISE)
    if image_size < smallest:
        raise UsageError(
            f"{name} needs images of at least {smallest} x {smallest} pixels, "
            f"not {image_size} x {image_size}; choose larger images or resnet8 or resnet20"
        )
    return build(num_classes, in_channels)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut, with ReLU after the sum (He et al., 2016).

    The shortcut is the identity where the shape allows, else a 1x1 convolution with its own batch
    normalization. Zero-padded shortcuts would be one more operator for an integer runtime.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        out = self.relu1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return self.relu2(out + self.shortcut(x))


class SmallResNet(nn.Module):
    """The residual network for small images: a 3x3 stem and three stages of 16, 32, 64 channels.

    Args:
        blocks_per_stage: 1 gives ResNet-8, 3 gives ResNet-20 (6 n + 2 layers).
        num_classes: Number of logits.
        in_channels: C of the input.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, 1, blocks_per_stage)
        self.stage2 = _stage(16, 32, 2, blocks_per_stage)
        self.stage3 = _stage(32, 64, 2, blocks_per_stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """Map images (N, C, H, W) to logits (N, num_classes)."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


def _conv3x3(in_channels: int, out_channels: int, stride: int) -> nn.Conv2d:
    """Return a 3x3 convolution without bias: a batch normalization follows it."""
    return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)


def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
    """Return ``blocks`` residual blocks, the first of which changes the shape."""
    first = ResidualBlock(in_channels, out_channels, stride)
    return nn.Sequential(first, *(ResidualBlock(out_channels, out_channels, 1) for _ in range(blocks - 1)))


MODELS.register("resnet8")(partial(SmallResNet, 1))
MODELS.register("resnet20")(partial(SmallResNet, 3))


@MODELS.register("resnet18")
def _resnet18(num_classes: int, in_channels: int) -> nn.Module:
    """Torchvision's ResNet-18 without pretrained weights."""
    model = import_torchvision().models.resnet18(weights=None, num_classes=num_classes)
    model.conv1 = _with_in_channels(model.conv1, in_channels)
    return model


@MODELS.register("mobilenet_v2")
def _mobilenet_v2(num_classes: int, in_channels: int) -> nn.Module:
    """Torchvision's MobileNetV2 without pretrained weights."""
    model = import_torchvision().models.mobilenet_v2(weights=None, num_classes=num_classes)
    model.features[0][0] = _with_in_channels(model.features[0][0], in_channels)
    return model


def _with_in_channels(conv: nn.Conv2d, in_channels: int) -> nn.Conv2d:
    """Return ``conv`` itself if it fits, else a new one like it for ``in_channels``."""
    if conv.in_channels == in_channels:
        return conv
    changed = nn.Conv2d(
        in_channels,
        conv.out_channels,
        conv.kernel_size,  # type: ignore[arg-type]
        conv.stride,  # type: ignore[arg-type]
        conv.padding,  # type: ignore[arg-type]
        bias=False,
    )
    nn.init.kaiming_normal_(changed.weight, mode="fan_out", nonlinearity="relu")
    return changed


def import_torchvision() -> ModuleType:
    """Import torchvision, also where its compiled operators do not fit the installed torch.

    The usual wheel of torchvision is compiled against a CUDA build of torch. Beside a CPU-only
    torch its operators cannot be loaded, and the import stops where torchvision describes an
    operator that was never declared (``operator torchvision::nms does not exist``). Those operators
    serve detection; classification models and data sets use none of them. So the missing ones are
    declared by name only and the import is tried once more. Where torchvision is healthy,
    nothing is declared.

    Returns:
        The torchvision module.

    Raises:
        EmqError: torchvision is missing or does not load for another reason.
    """
    try:
        return require("torchvision", "train")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise EmqError(_UNUSABLE.format(reason=error)) from error
    library = torch.library.Library("torchvision", "FRAGMENT")
    _declared.append(library)
    for name, schema in _TORCHVISION_SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    try:
        return require("torchvision", "train")
    except RuntimeError as error:
        raise EmqError(_UNUSABLE.format(reason=error)) from error

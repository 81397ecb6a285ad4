"""Networks with every code and answer that the reference gives them, in one file for `native/tests/replay.cpp`."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.graph.reference import CODES_SUFFIX, IntegerReference

from .test_native import CHILDREN, deployed, deployed_model
from .test_native_windows import Windowed

FAMILIES = ("preact-resnet8", "mobilenet-micro")


class Shape(NamedTuple):
    """A convolution: channels of a group that it reads and makes, and its window."""

    width: int
    outputs: int
    groups: int = 1
    kernel: int = 3
    stride: int = 1
    dilation: int = 1
    signed: bool = False
    """Whether it reads negative codes as well."""
    full: bool = False
    """Whether nearly all of its codes and activations are as large as they can be."""


SHAPES = (
    Shape(37, 70),
    Shape(37, 17, stride=2, signed=True),
    Shape(5, 9, groups=3, dilation=2, signed=True),
    Shape(7, 2, groups=2, kernel=5, stride=2),
    Shape(16, 40, kernel=1, signed=True),
    Shape(1, 33, kernel=5),
    Shape(200, 9, full=True),
    Shape(64, 9, signed=True, full=True),
)
"""Channels beyond and below a register, a tile and a block; groups that end inside four channels; positions that fill
no tile; sums that come as near to an overflow as they can."""


class Branches(nn.Module):
    """A network with a branch for every shape."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(3, one.width * one.groups, 1) for one in SHAPES)
        self.between = nn.ModuleList(nn.Identity() if one.signed else nn.ReLU() for one in SHAPES)
        self.shaped = nn.ModuleList(
            nn.Conv2d(
                *(one.width * one.groups, one.outputs * one.groups, one.kernel, one.stride),
                *(one.dilation * (one.kernel // 2), one.dilation, one.groups),
            )
            for one in SHAPES
        )
        self.pool = nn.ModuleList(nn.MaxPool2d(3, 3 - one.stride, 1) for one in SHAPES)  # to one size
        self.mix = nn.Conv2d(sum(one.outputs * one.groups for one in SHAPES), 12, 1)
        self.norm = nn.BatchNorm2d(12)
        self.mean = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(12, 5)
        for shape, before, conv in zip(SHAPES, self.first, self.shaped, strict=True):
            if shape.full:
                _fill(before, conv, -1.0 if shape.signed else 1.0)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)`` of images ``(N, 3, H, W)``."""
        parts = [
            pool(torch.relu(conv(between(before(images)))))
            for before, between, conv, pool in zip(self.first, self.between, self.shaped, self.pool, strict=True)
        ]
        logits: Tensor = self.head(torch.flatten(self.mean(torch.relu(self.norm(self.mix(torch.cat(parts, 1))))), 1))
        return logits


@torch.no_grad()
def _fill(before: nn.Conv2d, conv: nn.Conv2d, activation: float) -> None:
    """Makes activations that are nearly alike, and weights of the largest code but for a few of the smallest one."""
    assert before.bias is not None
    assert conv.bias is not None
    before.weight.fill_(0.01)
    before.bias.fill_(activation)
    conv.weight.uniform_(0.97, 1.0)
    conv.weight[:, : conv.in_channels // 16].neg_()
    # Without most of the sum, what is left tells the positions apart.
    conv.bias.fill_((0.05 - activation * 0.875) * conv.weight[0].numel())


def write_cases(path: Path) -> None:
    """Writes every network with one image and what comes out at each of its children."""
    networks = [(name, deployed(name).checkpoint, deployed(name).images[:1]) for name in FAMILIES]
    torch.manual_seed(0)
    images = torch.randn(3, 3, 9, 7).clamp(-2, 2)
    branches = deployed_model(Branches(), parse_children(CHILDREN, 8), images)
    networks.append(("branches", branches, images.numpy()[:1]))
    windows = Windowed((2, 3), 2, 1, counted=True, ceil=True, around=(1, 0, 2, 1, 1, 0), start=1, step=2)
    networks.append(("windows", deployed_model(windows, parse_children("1,2a4,8", 8), images), images.numpy()[:1]))
    with path.open("wb") as file:
        _number(file, len(networks))
        for name, checkpoint, image in networks:
            _write_network(file, name, checkpoint, image, path.with_suffix(".emq"))


def _number(file: BinaryIO, value: int) -> None:
    file.write(struct.pack("<q", value))


def _bytes(file: BinaryIO, value: bytes) -> None:
    _number(file, len(value))
    file.write(value)


def _write_network(file: BinaryIO, name: str, checkpoint: Checkpoint, image: np.ndarray, scratch: Path) -> None:
    save_checkpoint(scratch, checkpoint)
    _bytes(file, name.encode())
    _bytes(file, scratch.read_bytes())
    _bytes(file, image.tobytes())
    _number(file, len(checkpoint.network.layers))
    for layer in checkpoint.network.layers:
        _bytes(file, layer.encode())
    for child in checkpoint.network.children:
        logits, codes = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(image)
        _bytes(file, logits.astype(np.float32).tobytes())
        _number(file, len(codes))
        for site, values in codes.items():
            _bytes(file, site.removesuffix(CODES_SUFFIX).encode())
            _bytes(file, values.astype(np.uint8).tobytes())

"""Small networks of our own for small images: residual, pre-activation, depthwise, and a vision transformer."""

from __future__ import annotations

import itertools
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.models.registry import model


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
        blocks_per_stage: 1 gives ResNet-8, 3 gives ResNet-20, 5 ResNet-32, 9 ResNet-56 (6 n + 2 layers).
        num_classes: Number of logits.
        in_channels: C of the input.
        image_size: any; the last pooling is global.
    """

    def __init__(self, blocks_per_stage: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(in_channels, 16, 1)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.stage1 = _stage(16, 16, 1, blocks_per_stage)
        self.stage2 = _stage(16, 32, 2, blocks_per_stage)
        self.stage3 = _stage(32, 64, 2, blocks_per_stage)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        _draw_weights(self)

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


class PreActivationBlock(nn.Module):
    """Normalization and ReLU before each of two 3x3 convolutions; nothing after the sum (He et al., 2016b).

    Where the shape changes, the shortcut is a 1x1 convolution of the activated input, as in the networks of
    Any-Precision (arXiv 1911.07346).
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv3x3(in_channels, out_channels, stride)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv3x3(out_channels, out_channels, 1)
        self.shortcut: nn.Module | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False),
                nn.BatchNorm2d(out_channels),
            )

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride)."""
        activated = self.relu1(self.bn1(x))
        out = self.conv2(self.relu2(self.bn2(self.conv1(activated))))
        return out + (x if self.shortcut is None else self.shortcut(activated))


class PreActivationResNet(nn.Module):
    """The pre-activation ResNet-20 that Any-Precision and its successors report on: no ReLU before the pooling.

    Args:
        blocks_per_stage: 3 gives ResNet-20.
        widen: 1 gives 16, 32, 64 channels; 5 the 80, 160, 320 of Any-Precision.
        num_classes: number of logits.
        in_channels: C of the input.
        image_size: any; the last pooling is global.
    """

    def __init__(self, blocks_per_stage: int, widen: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        widths = [16 * widen, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = _conv3x3(in_channels, widths[0], 1)
        blocks = []
        for stage, (before, after) in enumerate(itertools.pairwise(widths)):
            blocks.append(PreActivationBlock(before, after, 2 if stage else 1))
            blocks.extend(PreActivationBlock(after, after, 1) for _ in range(blocks_per_stage - 1))
        self.blocks = nn.Sequential(*blocks)
        self.bn = nn.BatchNorm2d(widths[-1])
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(widths[-1], num_classes)
        _draw_weights(self)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to logits (N, num_classes)."""
        x = self.bn(self.blocks(self.conv1(x)))
        return self.fc(torch.flatten(self.pool(x), 1))


class SeparableNet(nn.Sequential):
    """MobileNet's pattern for small images: 3x3 depthwise and 1x1 convolutions, each with ReLU6.

    Args:
        num_classes: number of logits.
        in_channels: C of the input.
        image_size: any; the last pooling is global.
    """

    def __init__(self, num_classes: int, in_channels: int, image_size: int) -> None:
        layers: list[nn.Module] = [_conv3x3(in_channels, 32, 1), nn.BatchNorm2d(32), nn.ReLU6()]
        for before, after, stride in ((32, 64, 1), (64, 96, 2), (96, 128, 2), (128, 128, 1)):
            depthwise = nn.Conv2d(before, before, 3, stride, padding=1, groups=before, bias=False)
            layers += [depthwise, nn.BatchNorm2d(before), nn.ReLU6()]
            layers += [nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU6()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(128, num_classes))
        _draw_weights(self)


class TransformerBlock(nn.Module):
    """Self-attention and an MLP, each behind a LayerNorm and added to its input (Dosovitskiy et al., 2021)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(2 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Maps tokens (N, T, width) to tokens (N, T, width)."""
        qkv = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        x = x + self.proj(attended.transpose(1, 2).flatten(2))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class SmallViT(nn.Module):
    """A vision transformer for small images: patches of 4 x 4 pixels (2 x 2 below 16 pixels), 64 wide, 4 heads.

    Args:
        depth: number of blocks.
        num_classes: number of logits.
        in_channels: C of the input.
        image_size: H = W in pixels, even.
    """

    def __init__(self, depth: int, num_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        width = 64
        patch = 4 if image_size >= 16 and image_size % 4 == 0 else 2
        self.patches = nn.Conv2d(in_channels, width, patch, patch)
        self.positions = nn.Parameter(torch.zeros(1, (image_size // patch) ** 2, width))
        self.blocks = nn.Sequential(*(TransformerBlock(width, 4) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.fc = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        """Maps images (N, C, H, W) to logits (N, num_classes)."""
        x = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.fc(self.norm(self.blocks(x)).mean(1))


def _draw_weights(network: nn.Module) -> None:
    """Draws the weights of all convolutions for ReLU networks (He et al., 2015)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


for _name, _blocks in (("resnet8", 1), ("resnet20", 3), ("resnet32", 5), ("resnet56", 9)):
    model(_name)(partial(SmallResNet, _blocks))
model("preact-resnet8")(partial(PreActivationResNet, 1, 1))
model("preact-resnet20")(partial(PreActivationResNet, 3, 1))
model("preact-resnet20-x5")(partial(PreActivationResNet, 3, 5))
model("mobilenet-micro")(SeparableNet)
model("vit-micro", smallest_image=4, multiple=2)(partial(SmallViT, 3))

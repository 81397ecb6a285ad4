"""Channels that are split, shuffled and joined on their way: nothing is lost, and nothing is moved for nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu

from emqdeploy.format.child import parse_children
from emqdeploy.runtimes.native_library import library_path

from .test_native import assert_exact, deployed_model

pytestmark = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")

CHILDREN = parse_children("1,2a4,8", 8)


class Moving(nn.Module):
    """Halves that go their own ways, a shuffle among groups, uneven parts, and a slice."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.groups = groups
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.beside = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.behind = nn.Conv2d(6, 6, 1)
        self.norm = nn.BatchNorm2d(6)
        self.part = nn.Conv2d(4, 5, 1)
        self.last = nn.Conv2d(5 + 7 + 3, 8, 1)
        self.head = nn.Linear(8, 5)

    def shuffled(self, hidden: Tensor) -> Tensor:
        """Channels in another order."""
        count, channels, height, width = hidden.shape
        hidden = hidden.view(count, self.groups, channels // self.groups, height, width)
        return hidden.transpose(1, 2).contiguous().view(count, channels, height, width)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)``."""
        kept, changed = relu(self.first(images)).chunk(2, 1)
        changed = relu(self.norm(self.behind(relu(self.beside(changed)))))
        hidden = self.shuffled(torch.cat([kept, changed], 1))
        some, more, _ = hidden.split([4, 7, 1], 1)
        hidden = relu(self.last(torch.cat([more, relu(self.part(some)), hidden[:, 9:]], 1)))
        logits: Tensor = self.head(hidden.mean((2, 3)))
        return logits


def test_moved_channels_are_exact() -> None:
    """Every code, the shuffled ones included."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 6, 7).clamp(-2, 2)
    assert_exact(deployed_model(Moving(3), CHILDREN, images), images.numpy()[:1])


class Averaged(nn.Module):
    """A mean of channels from two grids, which no step here computes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(8, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)``."""
        logits: Tensor = self.head(torch.cat([relu(self.first(images)), relu(self.second(images))], 1).mean((2, 3)))
        return logits


def test_channels_of_two_grids_are_not_read_as_one() -> None:
    """Each channel's mean is put on the common grid from its own."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, 6, 7).clamp(-2, 2)
    assert_exact(deployed_model(Averaged(), CHILDREN, images), images.numpy())

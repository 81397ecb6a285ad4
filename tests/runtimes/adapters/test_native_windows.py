"""Averages over windows, zeros around a tensor, and every second row: as the reference has them, in every code."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from emqdeploy.data.repair import import_torchvision
from emqdeploy.errors import EmqError
from emqdeploy.format.child import parse_children
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import instruction_sets, library_path

from .test_native import assert_exact, deployed_model

pytestmark = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")

CHILDREN = parse_children("1,2a4,8", 8)
SIDES = (9, 7)


class Windowed(nn.Module):
    """An average of signed codes and one of never-negative ones that is padded and taken in steps.

    Args:
        kernel: sides of the average's window.
        stride: of the window.
        padding: around the input.
        counted: whether padding counts in the average.
        ceil: whether a last window may reach beyond it.
        around: zeros left, right, above and below, and before and behind the channels.
        start: of the rows and columns that are taken.
        step: from one of them to the next.
    """

    def __init__(
        self,
        kernel: tuple[int, int],
        stride: int,
        padding: int,
        counted: bool,
        ceil: bool,
        around: tuple[int, ...],
        start: int,
        step: int,
    ) -> None:
        super().__init__()
        self.around, self.start, self.step = around, start, step
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.other = nn.Conv2d(3, 5, 1)
        self.pool = nn.AvgPool2d(kernel, stride, padding, ceil, counted)
        self.signed = nn.AvgPool2d(kernel, stride, padding, ceil, counted)
        self.second = nn.Conv2d(5 + around[4] + around[5], 6, 2)
        self.last = nn.Conv2d(6, 4, 1)
        self.beside = nn.Conv2d(5, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)``."""
        some, more = self.pool(relu(self.first(images))), self.signed(self.other(images))
        some = relu(self.second(pad(some, self.around)))
        some = relu(self.last(some[:, :, self.start :: self.step, :: self.step]))
        more = relu(self.beside(more))[:, :, : -self.start or None, self.start :]
        logits: Tensor = self.head(some.mean((2, 3)) + more.mean((2, 3)))
        return logits


@settings(max_examples=4, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    kernel=st.tuples(st.integers(1, 3), st.integers(2, 4)),
    stride=st.integers(1, 2),
    padding=st.integers(0, 1),
    counted=st.booleans(),
    ceil=st.booleans(),
    around=st.tuples(*[st.integers(0, 2)] * 4, *[st.integers(0, 1)] * 2),
    start=st.integers(0, 1),
    step=st.integers(1, 3),
)
@example(  # two rows are left, of which every third is the first
    kernel=(3, 3), stride=2, padding=0, counted=False, ceil=False, around=(0, 0, 2, 1, 0, 1), start=0, step=3
)
def test_drawn_windows_are_exact(kernel: tuple[int, int], padding: int, **drawn: int | bool | tuple[int, ...]) -> None:
    """On every instruction set; with our operators in onnxruntime the answer is the same."""
    torch.manual_seed(0)
    images = torch.randn(3, 3, *SIDES).clamp(-2, 2)
    model = Windowed(kernel, padding=min(padding, kernel[0] // 2), **drawn)  # type: ignore[arg-type]
    checkpoint = deployed_model(model, CHILDREN, images)
    for instructions in instruction_sets():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EMQ_ISA", instructions)
            assert_exact(checkpoint, images.numpy()[:1])
    with open_runtime(checkpoint, "onnxruntime", provider="native", threads=1) as runtime:
        for child in checkpoint.network.children:
            reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
            np.testing.assert_array_equal(runtime.run(images.numpy(), child), reference.run(images.numpy())[0])


@pytest.mark.parametrize("model", ["densenet", "inception"])
def test_blocks_of_the_zoo_run_whole(model: str) -> None:
    """A dense block with its transition, and an inception block: concatenations, averages and branches."""
    torch.manual_seed(0)
    images = torch.randn(2, 3, 12, 12).clamp(-2, 2)
    assert_exact(deployed_model(_block(model), CHILDREN, images), images.numpy()[:1], threads=2)


def _block(name: str) -> nn.Module:
    models = import_torchvision().models
    if name == "densenet":
        made: nn.Module = models.DenseNet(4, (2, 2), 8, 2, num_classes=5)
        return made
    blocks = models.inception
    return nn.Sequential(
        blocks.BasicConv2d(3, 8, kernel_size=3),
        blocks.InceptionA(8, 4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(228, 5),
    )


class Reflected(nn.Module):
    """Padding that holds something else than zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Conv2d(3, 4, 1), nn.Linear(4, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)``."""
        logits: Tensor = self.head(pad(relu(self.first(images)), (1, 1, 1, 1), value=1.0).mean((2, 3)))
        return logits


def test_other_padding_is_refused_by_name() -> None:
    """Only zeros are codes on every grid."""
    images = torch.randn(2, 3, 6, 6).clamp(-2, 2)
    with pytest.raises(EmqError, match=r"operator Pad .* run this network in onnxruntime"):
        NativeRuntime(deployed_model(Reflected(), CHILDREN, images))

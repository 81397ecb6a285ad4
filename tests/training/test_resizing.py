"""Progressive resizing: what is shown grows to its whole size, and a network that cannot take less says so at once."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.training.api import train
from emqdeploy.training.passes import Passes
from emqdeploy.training.recipes import resolve
from emqdeploy.training.resizing import check_resizing, resized, side_at


def test_sides_grow_to_the_whole_one_by_the_middle() -> None:
    """In eighths, never smaller than asked for, whole from the middle of the run on."""
    sides = [side_at(step / 40, 0.5) for step in range(41)]
    assert sides == sorted(sides)
    assert set(sides) == {0.5, 0.625, 0.75, 0.875, 1.0}
    assert sides[0] == 0.5
    assert min(sides[20:]) == 1
    assert {side_at(step / 10, 1.0) for step in range(11)} == {1.0}
    assert resized(torch.zeros(2, 3, 28, 36), 0.5).shape == (2, 3, 14, 18)


def test_a_run_sees_growing_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All children of a step see one size, and the file is exact."""
    seen: list[int] = []
    run = Passes._pass

    def note(self: Passes, child: Child, part: object, images: Tensor, *more: object) -> object:
        seen.append(images.shape[2])
        return run(self, child, part, images, *more)  # type: ignore[arg-type]

    monkeypatch.setattr(Passes, "_pass", note)
    given = {"bits": "4,2", "limit": 96, "batch_size": 16, "epochs": 3, "resize_from": 0.5, "step_plan": "joint"}
    result = train(resolve(None, None, given), tmp_path / "run", console=Console(file=io.StringIO()))
    assert result.wrong is None
    assert seen == sorted(seen)
    assert (seen[0], seen[-1]) == (4, 8)


def test_a_network_of_one_size_is_refused() -> None:
    """Before anything trains, with the size in the sentence."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    network = insert_quantizers(model, InsertionConfig(keep_8bit=()), (Child.of(4),), (), 1.0, (1, 8, 8))
    with pytest.raises(UsageError, match=r"--resize-from 0.5 begins with images of 4 x 4, which this network does not"):
        check_resizing(network, torch.zeros(2, 1, 8, 8), 0.5)
    with pytest.raises(UsageError, match=r"--resize-from is 1.5; allowed: 0.125 up to 1"):
        resolve(None, None, {"resize_from": 1.5})

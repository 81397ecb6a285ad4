"""Mixup: what is shown and what is asked for belong together, and what remembers single images refuses it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.training.api import train
from emqdeploy.training.mixup import mixed
from emqdeploy.training.recipes import resolve


def test_images_and_labels_have_the_same_shares() -> None:
    """The loss of the odds is the mean of both labels' losses, weighed as their images are."""
    images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.tensor([2, 0, 1, 1])
    sums, odds = mixed(images, labels, 3, 1.0, (0, 7))
    share = float(sums[0].max())
    share = share if sums[0, 0, 0, 0] == share else 1 - share
    torch.testing.assert_close(sums, share * images + (1 - share) * images.flip(0))
    assert 0 < share < 1
    logits = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    one, other = (F.cross_entropy(logits, which, reduction="none") for which in (labels, labels.flip(0)))
    torch.testing.assert_close(F.cross_entropy(logits, odds, reduction="none"), share * one + (1 - share) * other)
    assert torch.equal(mixed(images, labels, 3, 1.0, (0, 7))[0], sums), "a resumed run draws the same again"
    assert not torch.equal(mixed(images, labels, 3, 1.0, (0, 8))[0], sums)


@pytest.mark.parametrize("more", [{}, {"distill": "recursive", "step_plan": "joint"}, {"ghost_batches": 2}])
def test_a_run_with_mixup_ends_exact(more: dict[str, Any], tmp_path: Path) -> None:
    """With smoothing, with what children learn from one another on the same sums, and in parts."""
    given = {
        "bits": "4,2",
        "limit": 96,
        "batch_size": 16,
        "epochs": 2,
        "mixup": 0.4,
        "augment": "crop-flip-rand",
        **more,
    }
    result = train(resolve(None, None, {**given, **more}), tmp_path / "run", console=Console(file=io.StringIO()))
    assert result.wrong is None
    assert len(result.accuracy) == 3


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"clean": "ensemble"}, "--clean ensemble goes by what was said of single images, and --mixup shows sums"),
        ({"distill": "cached"}, "--distill cached goes by what was said of single images"),
        ({"prune_rate": 0.5}, "--prune-rate chooses among single images, and --mixup trains on sums"),
        ({"mixup": -0.1}, "--mixup is -0.1"),
    ],
)
def test_what_goes_by_single_images_refuses(values: dict[str, Any], sentence: str) -> None:
    """One sentence each."""
    with pytest.raises(UsageError, match=sentence):
        resolve(None, None, {"mixup": 0.2, **values})

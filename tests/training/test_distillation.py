"""Distillation: each child learns from whom it should."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.api import train
from emqdeploy.training.distillation import DISTILLATIONS, CachedDistillation, Distillation
from emqdeploy.training.recipes import resolve

ONE, TWO, FOUR, TOP = map(Child.of, (1, 2, 4, 8))
LABELS, INDICES = torch.tensor([0, 1]), torch.tensor([5, 2])
HIGH, LOW, LOWEST = (torch.randn(2, 3, generator=torch.Generator().manual_seed(seed)) for seed in range(3))


def made(name: str, weight: float = 1.0, smoothing: float = 0.0) -> Distillation:
    """A distillation for six images and three classes, 8 bits on top."""
    return DISTILLATIONS[name](6, 3, TOP, weight, torch.device("cpu"), smoothing)


def soft(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cross-entropy with another child's softmax."""
    return -(teacher.softmax(1) * logits.log_softmax(1)).sum(1)


def test_soft_learns_from_the_top_and_recursive_from_the_next() -> None:
    """The two differ in whom the lowest child listens to."""
    for name, teacher in (("soft", HIGH), ("recursive", LOW)):
        target = made(name)
        torch.testing.assert_close(
            target.losses(TOP, HIGH, LABELS, INDICES), F.cross_entropy(HIGH, LABELS, reduction="none")
        )
        torch.testing.assert_close(target.losses(FOUR, LOW, LABELS, INDICES), soft(LOW, HIGH))
        torch.testing.assert_close(target.losses(ONE, LOWEST, LABELS, INDICES), soft(LOWEST, teacher))


def test_weight_mixes_in_the_label() -> None:
    """At weight 0 distillation is off."""
    target = made("soft", 0.0)
    target.losses(TOP, HIGH, LABELS, INDICES)
    torch.testing.assert_close(
        target.losses(FOUR, LOW, LABELS, INDICES), F.cross_entropy(LOW, LABELS, reduction="none")
    )


@pytest.mark.parametrize("name", list(DISTILLATIONS))
def test_smoothing_is_of_the_labels_alone(name: str) -> None:
    """The labels' target is torch's smoothed one; what another child said is not smoothed."""
    target = made(name, 0.25, 0.1)
    target.start_epoch(0.0)
    target.remember(TOP, INDICES, HIGH)
    target.start_epoch(1.0)
    smoothed = F.cross_entropy(HIGH, LABELS, reduction="none", label_smoothing=0.1)
    if name != "cached":
        torch.testing.assert_close(target.losses(TOP, HIGH, LABELS, INDICES), smoothed)
    hard = F.cross_entropy(LOW, LABELS, reduction="none", label_smoothing=0.1)
    mixed = hard if name == "none" else 0.75 * hard + 0.25 * soft(LOW, HIGH)
    torch.testing.assert_close(target.losses(FOUR, LOW, LABELS, INDICES), mixed, rtol=1e-3, atol=1e-3)


def test_cached_uses_the_last_epoch_and_labels_where_there_is_none() -> None:
    """Image 5 was seen by the top child an epoch ago, image 2 was not."""
    target = made("cached")
    target.start_epoch(0.0)
    target.remember(TOP, INDICES[:1], HIGH[:1])
    target.remember(FOUR, INDICES, LOW)  # only the top child teaches
    target.start_epoch(1.0)
    losses = target.losses(TWO, LOW, LABELS, INDICES)
    torch.testing.assert_close(losses[:1], soft(LOW[:1], HIGH[:1]), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(losses[1:], F.cross_entropy(LOW[1:], LABELS[1:], reduction="none"))


def test_cache_survives_saving() -> None:
    """A resumed run must learn from the same targets."""
    target, other = made("cached"), made("cached")
    target.remember(TOP, INDICES, HIGH)
    target.start_epoch(0.5)
    other.restore(target.state())
    assert isinstance(other, CachedDistillation)
    torch.testing.assert_close(other.losses(TWO, LOW, LABELS, INDICES), target.losses(TWO, LOW, LABELS, INDICES))


def test_distillation_may_begin_late(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``--distill-from 0.5`` labels alone are learned from in the first half of a run, and not in the other."""
    seen: list[Child] = []
    losses = DISTILLATIONS["cached"].losses

    def note(self: Distillation, child: Child, *arguments: Any) -> torch.Tensor:
        seen.append(child)
        return losses(self, child, *arguments)

    monkeypatch.setattr(DISTILLATIONS["cached"], "losses", note)
    given = {"bits": "8,2", "limit": 64, "batch_size": 16, "epochs": 4, "float_first": 0.0}
    calls = []
    for share in (0.0, 0.5):
        seen.clear()
        config = resolve(None, None, {**given, "distill": "cached", "distill_from": share})
        train(config, tmp_path / str(share), console=Console(file=io.StringIO()))
        calls.append(len(seen))
    assert calls[1] * 2 == calls[0] > 0


@pytest.mark.parametrize("kind", ["soft", "recursive"])
def test_the_float_network_hands_over_between_batches(kind: str, tmp_path: Path) -> None:
    """In the middle of an epoch whose batches every child has in turn, the first to learn is the one that teaches."""
    given = {"bits": "8,2,1", "limit": 100, "batch_size": 16, "epochs": 3, "step_plan": "sequential", "distill": kind}
    for share in (0.4, 0.45, 0.5):
        config = resolve(None, None, {**given, "float_first": share})
        result = train(config, tmp_path / str(share), console=Console(file=io.StringIO()))
        assert set(result.accuracy) >= {Child.of(bits) for bits in (1, 2, 8)}


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"distill_from": 0.5}, "--distill-from says when --distill begins; add --distill cached, soft or recursive"),
        ({"distill": "cached", "distill_from": 1.0}, "--distill-from is 1.0; allowed: 0 up to, not including, 1"),
    ],
)
def test_a_late_beginning_needs_something_that_begins(values: dict[str, Any], sentence: str) -> None:
    """One sentence each."""
    with pytest.raises(UsageError, match=sentence):
        resolve(None, None, values)

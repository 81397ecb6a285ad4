"""Muon: updates are orthogonal, norms stay, everything else is plain momentum, and a resumed run is the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor

from emqdeploy.training.api import train
from emqdeploy.training.methods import Method
from emqdeploy.training.muon import Muon, orthogonalized
from emqdeploy.training.recipes import resolve


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def stepped(weights: list[Tensor], gradients: list[list[Tensor]], **group: Any) -> list[Tensor]:
    """What steps with these gradients make of weights of one group."""
    weights = [weight.clone() for weight in weights]
    optimizer = Muon([{"params": weights, "matrices": True, **group}], 0.1, 0.6)
    for step in gradients:
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient
        optimizer.step()
    return weights


@pytest.mark.parametrize("shape", [(3, 16, 144), (1, 64, 9)])
def test_updates_keep_directions_and_lose_sizes(shape: tuple[int, ...]) -> None:
    """Singular vectors stay; singular values of a spread of a thousand come out within a factor of the largest."""
    u, _, v = torch.linalg.svd(drawn(*shape), full_matrices=False)
    sizes = torch.logspace(0, -1.5, u.shape[2])
    found = orthogonalized(u @ torch.diag(sizes) @ v)
    along = u.mT @ found @ v.mT
    diagonal = torch.diagonal(along, dim1=1, dim2=2)
    assert (along - torch.diag_embed(diagonal)).abs().max() < 1e-3
    assert diagonal.max() < 1.3
    assert (diagonal[:, : len(sizes) // 2] > 0.6).all()
    assert (diagonal > 5 * sizes * sizes[-1]).all()


def test_the_rate_is_relative_and_norms_stay() -> None:
    """Weights ten times as large, as of another initialization or of training, turn by the same angle."""
    weights = [drawn(16, 8, 3, 3), 10 * drawn(16, 8, 3, 3)]
    gradient = drawn(16, 8, 3, 3, seed=1)
    one, ten = stepped(weights, [[gradient, 100 * gradient]] * 3, keeps_norm=True)
    torch.testing.assert_close(10 * one, ten)
    torch.testing.assert_close(one.norm(), weights[0].norm())
    first = stepped(weights[:1], [[gradient]], weight_decay=0.0)[0]
    assert 0.05 < float((first - weights[0]).norm() / weights[0].norm()) < 0.13


def test_matrices_of_one_shape_do_not_mix() -> None:
    """They are orthogonalized in one batch, each by itself."""
    weights = [drawn(8, 20, seed=seed) for seed in range(3)]
    steps = [[drawn(8, 20, seed=10 * step + place) for place in range(3)] for step in range(2)]
    together = stepped(weights, steps, keeps_norm=True)
    for place, weight in enumerate(weights):
        alone = stepped([weight], [[step[place]] for step in steps], keeps_norm=True)
        torch.testing.assert_close(together[place], alone[0])


def test_only_free_matrices_decay() -> None:
    """Decay shrinks a matrix without a normalization behind it by its share of the rate; a kept norm has none."""
    weight, still = drawn(8, 20), torch.zeros(8, 20)
    torch.testing.assert_close(stepped([weight], [[still]], weight_decay=0.5)[0], 0.95 * weight)
    torch.testing.assert_close(stepped([weight], [[still]], weight_decay=0.5, keeps_norm=True)[0], weight)


def test_zeros_stay_finite_and_learn() -> None:
    """A layer that starts at zero has no norm to keep, and at first perhaps no gradient."""
    zeros = torch.zeros(8, 20)
    for keeps_norm in (True, False):
        (found,) = stepped([zeros], [[zeros], [drawn(8, 20)]], keeps_norm=keeps_norm)
        assert torch.isfinite(found).all()
        assert found.abs().max() > 0


def test_everything_else_is_sgd() -> None:
    """The groups that are no matrices take torch's own steps, decay included."""
    ours, torchs = drawn(5), drawn(5)
    muon = Muon([{"params": [ours], "weight_decay": 0.1}], 0.2, 0.6)
    sgd = torch.optim.SGD([torchs], 0.2, 0.9, weight_decay=0.1, nesterov=True)
    for step in range(4):
        ours.grad = torchs.grad = drawn(5, seed=step)
        muon.step()
        sgd.step()
    torch.testing.assert_close(ours, torchs)


def test_nothing_is_read_back() -> None:
    """Tensors of torch's meta device have no values: whoever reads one fails. A GPU would have to wait instead."""
    weights = [torch.empty(16, 8, 3, 3, device="meta"), torch.empty(16, 8, 3, 3, device="meta")]
    biases = [torch.empty(16, device="meta")]
    for parameter in weights + biases:
        parameter.grad = torch.empty_like(parameter)
    groups: list[dict[str, Any]] = [
        {"params": weights, "matrices": True, "keeps_norm": True, "weight_decay": 0.1},
        {"params": biases},
    ]
    optimizer = Muon(groups, 0.1, 0.6)
    for _ in range(2):
        optimizer.step()


@pytest.mark.parametrize("more", [{}, {"ema": 0.9, "clip_norm": 1.0, "lr_scale": "norms=2,4=0.5", "accumulate": 2}])
def test_a_resumed_run_ends_with_the_same_weights(
    more: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Buffers, first norms and averages are saved: dying in the middle of an epoch changes no bit."""
    options = {"limit": 120, "epochs": 2, "batch_size": 32, "bits": (1, 4), "optimizer": "muon", "schedule": "linear"}
    config = resolve(None, None, {**options, "label_smoothing": 0.1, "warm_up": 0.2, "save_every": 0, **more})
    quiet = Console(quiet=True)
    train(config, tmp_path / "whole", console=quiet, report_test=False)
    updates: list[None] = []

    def die(self: Method) -> None:
        updates.append(None)
        if len(updates) == 5:
            raise RuntimeError("killed")

    monkeypatch.setattr(Method, "after_update", die)
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path / "part", console=quiet, report_test=False)
    monkeypatch.undo()
    train(config, tmp_path / "part", resume=True, console=quiet, report_test=False)
    whole, part = ((tmp_path / name / "latent.safetensors").read_bytes() for name in ("whole", "part"))
    assert whole == part

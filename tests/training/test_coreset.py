"""Coresets: how many images each bit-width keeps, and which."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.training.coreset import SELECTIONS, choose_coresets
from emqdeploy.training.scores import Dynamics


def _dynamics(images: int = 100) -> Dynamics:
    dynamics = Dynamics((1, 4), epochs=1, images=images, classes=2)
    odds = np.random.default_rng(0).random((2, images)).astype(np.float32)
    for bits, right in zip((1, 4), odds, strict=True):
        dynamics.record(bits, 0, np.arange(images), np.stack([right, 1 - right], 1))
    return dynamics


def test_top_keeps_the_highest_scores() -> None:
    """Top-k is what its name says."""
    kept = SELECTIONS["top"](np.array([0.1, 0.9, 0.5, 0.7]), 2, np.random.default_rng(0))
    assert kept.tolist() == [1, 3]


def test_sampling_follows_the_score_without_replacement() -> None:
    """An image of three times the score is first in the draw three times as often."""
    score = np.array([3.0, 1.0])
    draws = [int(SELECTIONS["sampled"](score, 1, np.random.default_rng(seed))[0]) for seed in range(2000)]
    assert 0.70 < np.mean(np.array(draws) == 0) < 0.80
    kept = SELECTIONS["sampled"](np.ones(50), 20, np.random.default_rng(0))
    assert len(set(kept.tolist())) == 20


def test_zero_scores_can_still_be_drawn() -> None:
    """Perfectly learned images have score 0; a coreset larger than the rest needs them."""
    kept = SELECTIONS["sampled"](np.array([0.0, 0.0, 1.0]), 2, np.random.default_rng(0))
    assert 2 in kept
    assert len(kept) == 2


@pytest.mark.parametrize("selection", ["top", "sampled"])
def test_every_bit_width_keeps_its_own_share(selection: str) -> None:
    """Bit-wise coresets: right size, distinct images, and not the same set for every bit-width."""
    labels = np.zeros(100, np.int64)
    coresets = choose_coresets(_dynamics(), labels, 0.8, "el2n", selection, 8, seed=0)
    assert {bits: len(set(kept.tolist())) for bits, kept in coresets.items()} == {1: 20, 4: 20}
    assert coresets[1].tolist() != coresets[4].tolist()


def test_coreset_smaller_than_a_batch_is_refused() -> None:
    """Training on less than one batch is a mistake, said in one sentence before any step is lost."""
    with pytest.raises(UsageError, match="keeps 5 of 100 images, fewer than a batch of 8"):
        choose_coresets(_dynamics(), np.zeros(100, np.int64), 0.95, "el2n", "top", 8, seed=0)

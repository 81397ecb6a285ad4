"""Coresets: how many images each child keeps, which, and with what odds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.coreset import (
    SELECTIONS,
    SHARINGS,
    WEIGHT_RATIO,
    Coreset,
    choose_coresets,
    coreset_size,
    inclusion_odds,
)
from emqdeploy.training.dynamics import SHARED, Dynamics
from emqdeploy.training.steps import Epoch, stream_of

CHILDREN = (Child.of(1), Child.of(4))
ONE_CLASS = np.zeros(100, np.int64)


def pick(name: str, score: list[float], keep: int, labels: list[int] | None = None, seed: int = 0) -> Coreset:
    """Chooses by a selection's name."""
    classes = np.asarray(labels if labels is not None else [0] * len(score))
    return SELECTIONS[name](np.asarray(score, float), classes, keep, np.random.default_rng(seed))


def dynamics(sharing: str) -> Dynamics:
    """Records in which every child finds other images hard."""
    made = Dynamics("el2n", (SHARED,) if SHARINGS[sharing].record else ("1", "4"), ONE_CLASS, classes=2)
    made.open_epoch()
    logits = torch.randn(2, 100, 2, generator=torch.Generator().manual_seed(0))
    for child, said in zip(CHILDREN, logits, strict=True):
        made.record(child, np.arange(100), said, None)
    return made


def test_top_keeps_the_highest_scores() -> None:
    """Top-k is what its name says."""
    assert pick("top", [0.1, 0.9, 0.5, 0.7], 2).indices.tolist() == [1, 3]


def test_middle_keeps_the_median() -> None:
    """Neither the easiest nor the hardest."""
    assert pick("middle", [0.1, 0.9, 0.5, 0.7, 0.3], 3).indices.tolist() == [2, 3, 4]


@given(st.lists(st.integers(0, 3), min_size=8, max_size=40), st.integers(4, 8))
def test_balanced_keeps_every_class_in_proportion(labels: list[int], keep: int) -> None:
    """Every class that has images is in, none has more than its share rounded up, and the total is right."""
    score = np.random.default_rng(0).random(len(labels)).tolist()
    kept = pick("balanced", score, keep, labels).indices
    assert len(kept) == len(set(kept.tolist())) == keep
    classes, counts = np.unique(labels, return_counts=True)
    chosen = np.asarray(labels)[kept]
    for label, count in zip(classes, counts, strict=True):
        found = int((chosen == label).sum())
        assert 1 <= found <= max(1, int(np.ceil(count * keep / len(labels))))


def test_sampling_draws_with_the_odds_it_names() -> None:
    """An image of three times the score is drawn three times as often, and what is certain is always in."""
    score = [3.0, 1.0, 1.0, 1.0]
    odds = inclusion_odds(np.asarray(score), 2)
    assert odds.tolist() == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    draws = [pick("sampled", score, 2, seed=seed) for seed in range(1500)]
    assert all(len(draw.indices) == 2 for draw in draws)
    often = np.bincount(np.concatenate([draw.indices for draw in draws]), minlength=4) / len(draws)
    assert often == pytest.approx(odds, abs=0.05)


@given(st.lists(st.floats(0, 10), min_size=5, max_size=60), st.integers(1, 5), st.integers(0, 99))
def test_sampling_is_of_the_right_size_whatever_the_scores(score: list[float], keep: int, seed: int) -> None:
    """Distinct images, exactly as many as asked for, also where most scores are zero."""
    drawn = pick("sampled", score, keep, seed=seed)
    assert len(set(drawn.indices.tolist())) == len(drawn.indices) == keep
    assert ((drawn.odds > 0) & (drawn.odds <= 1)).all()


def test_weights_make_the_sum_over_a_coreset_unbiased() -> None:
    """Weighted by one over their odds, the drawn images stand for all of them: InfoBatch's argument."""
    random = np.random.default_rng(1)
    score, value = random.random(50) + 0.1, random.random(50)
    odds = inclusion_odds(score, 10)
    sums = []
    for seed in range(3000):
        drawn = SELECTIONS["sampled"](score, ONE_CLASS[:50], 10, np.random.default_rng(seed))
        sums.append((value[drawn.indices] / odds[drawn.indices]).sum())
    assert np.mean(sums) == pytest.approx(value.sum(), rel=0.02)
    weights = pick("sampled", score.tolist(), 10).weights()
    assert weights.mean() == pytest.approx(1, rel=1e-6)


def test_loss_weights_are_bounded_and_stay_unbiased() -> None:
    """A trivial image that is drawn after all must not make one step as long as a thousand; nor may the bound lie."""
    known = Dynamics("el2n", (SHARED,), ONE_CLASS, classes=2)
    margins = torch.linspace(0, 30, 100)
    known.open_epoch()
    known.record(CHILDREN[0], np.arange(100), torch.stack([margins, 0 * margins], 1), None)
    value, sums, largest = np.random.default_rng(1).random(100), [], {False: 0.0, True: 0.0}
    for seed in range(3000):
        for bounded in (False, True):
            (drawn,) = choose_coresets(known, 20, "sampled", "scores", CHILDREN[:1], (0, seed), bounded).values()
            largest[bounded] = max(largest[bounded], float(drawn.weights().max()))
        sums.append((value[drawn.indices] / drawn.odds).sum())
    assert largest[False] > 2 * WEIGHT_RATIO
    assert largest[True] <= WEIGHT_RATIO
    assert np.mean(sums) == pytest.approx(value.sum(), rel=0.02)


def test_the_draw_is_independent_of_the_order_of_batches() -> None:
    """From one random stream, the images drawn first would also be the ones that are trained on first."""
    images = 500
    alike = Dynamics("random", (SHARED,), np.zeros(images, np.int64), classes=2)
    first, likeness = [], []
    for epoch in range(200):
        plan = Epoch(dict.fromkeys(CHILDREN, np.arange(images)), 10, 0, epoch, 200)
        order = np.concatenate(plan.batches(CHILDREN[0]))
        place = np.empty(images)
        place[order] = np.arange(images)
        (drawn,) = choose_coresets(alike, 50, "top", "scores", CHILDREN[:1], (0, epoch)).values()
        first.append(place[drawn.indices].mean())
        # What a draw from the stream of the batches would order the images by.
        random = plan.random(stream_of(CHILDREN[0])).random(images)
        likeness.append(np.intersect1d(drawn.indices, np.argsort(-random)[:50]).size)
    assert np.mean(first) == pytest.approx((images - 1) / 2, abs=5)
    assert np.mean(likeness) == pytest.approx(5, abs=1)


def test_standing_is_among_all_images() -> None:
    """TDDS's weight of a batch is the mean of scores from 0 for the least to 1 for the greatest of the data set."""
    known = dynamics("scores")
    core = choose_coresets(known, 20, "top", "scores", CHILDREN, (0, 0))[CHILDREN[0]]
    importance = known.importance(CHILDREN[0], np.random.default_rng(0))
    assert core.standing.max() == 1
    assert (
        0
        < core.standing.min()
        == pytest.approx((np.sort(importance)[-20] - importance.min()) / (importance.max() - importance.min()))
    )


@pytest.mark.parametrize("selection", ["top", "sampled"])
def test_every_child_keeps_its_own_share(selection: str) -> None:
    """Bit-wise coresets: right size, distinct images, and not the same set for every child."""
    chosen = choose_coresets(dynamics("bits"), 20, selection, "bits", CHILDREN, (0, 0))
    assert {child.name: len(set(core.indices.tolist())) for child, core in chosen.items()} == {"1": 20, "4": 20}
    assert chosen[CHILDREN[0]].indices.tolist() != chosen[CHILDREN[1]].indices.tolist()


def test_what_children_share() -> None:
    """Shared scores still draw a subset each; one subset is one subset."""
    scores = choose_coresets(dynamics("scores"), 20, "sampled", "scores", CHILDREN, (0, 0))
    assert scores[CHILDREN[0]].indices.tolist() != scores[CHILDREN[1]].indices.tolist()
    alike = choose_coresets(dynamics("scores"), 20, "top", "scores", CHILDREN, (0, 0))
    assert alike[CHILDREN[0]].indices.tolist() == alike[CHILDREN[1]].indices.tolist()
    one = choose_coresets(dynamics("all"), 20, "sampled", "all", CHILDREN, (0, 0))
    assert one[CHILDREN[0]] is one[CHILDREN[1]]


def test_coreset_smaller_than_a_batch_is_refused() -> None:
    """Training on less than one batch is a mistake, said in one sentence before any step is lost."""
    with pytest.raises(UsageError, match="keeps 5 of 100 images, fewer than a batch of 8"):
        coreset_size(100, 0.95, 8)

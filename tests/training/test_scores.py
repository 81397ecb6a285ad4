"""Importance scores: each is its formula, worked out by hand, and higher means more important."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.training.dynamics import Record
from emqdeploy.training.scores import SCORES

LABELS = np.array([0, 1, 0, 1])


def record(right: list[list[float]], features: list[list[float]] | None = None) -> Record:
    """A record of two classes from the odds of the right one, one row an epoch."""
    odds = np.asarray(right, np.float16)
    softmax = np.zeros((*odds.shape, 2), np.float16)
    images = np.arange(odds.shape[1])
    softmax[:, images, LABELS[: len(images)]] = odds
    softmax[:, images, 1 - LABELS[: len(images)]] = 1 - odds
    kept = None if features is None else np.asarray(features, np.float16)
    return Record(softmax, kept, LABELS[: len(images)], np.random.default_rng(0))


def test_el2n_is_the_mean_distance_to_the_label() -> None:
    """A wrong class of odds 1 is a distance of the square root of two."""
    score = SCORES["el2n"].compute(record([[1, 0.5], [0, 0.5]]))
    assert np.allclose(score, [np.sqrt(2) / 2, np.sqrt(0.5)], atol=1e-3)


def test_grand_is_the_norm_of_the_last_layers_gradient() -> None:
    """Against the gradient itself: outer product of the error and (1, features)."""
    seen = record([[0.25, 0.75]], [[3.0, 4.0], [0.0, 0.0]])
    error = np.array([0.25 - 1, 0.75])
    gradient = np.outer(error, [1, 3, 4])
    score = SCORES["grand"].compute(seen)
    assert score[0] == pytest.approx(np.linalg.norm(gradient), rel=1e-3)
    assert score[1] == pytest.approx(np.linalg.norm([0.25, 0.25]), rel=1e-3)


def test_entropy_prefers_what_the_network_is_unsure_of() -> None:
    """The latest epoch counts; certain is 0 and even odds are log 2."""
    score = SCORES["entropy"].compute(record([[0.5, 0.5], [1, 0.5]]))
    assert score == pytest.approx([0, np.log(2)], abs=1e-3)


def test_forgetting_counts_turns_from_right_to_wrong() -> None:
    """Never forgotten, forgotten twice, and never learned."""
    score = SCORES["forgetting"].compute(record([[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.1, 0.1]]))
    assert np.floor(score).tolist() == [0, 2, 4]


def test_moderate_prefers_the_middle() -> None:
    """Of images at distances 0, 1, 2 from their class's centre the middle one is the typical one."""
    labels = np.zeros(6, np.int64)
    features = np.array([[0.0], [0.0], [1.0], [-1.0], [2.0], [-2.0]], np.float16)
    seen = Record(np.full((1, 6, 2), 0.5, np.float16), features, labels, np.random.default_rng(0))
    score = SCORES["moderate"].compute(seen)
    assert set(np.argsort(-score)[:2].tolist()) == {2, 3}


def test_tdds_prefers_images_whose_loss_moves_unevenly() -> None:
    """A steady image has no spread, one that jumps has; the formula by hand for one window."""
    rows = [[0.5, 0.5], [0.5, 0.9], [0.5, 0.5], [0.5, 0.9]]
    seen = record(rows)
    odds = seen.softmax.astype(np.float64)
    moves = np.abs(odds[1:] * (np.log(odds[1:] + 1e-8) - np.log(odds[:-1] + 1e-8))).sum(axis=2)
    expected = 0.9 * np.linalg.norm(moves - moves.mean(axis=0), axis=0)
    score = SCORES["tdds"].compute(seen)
    assert score == pytest.approx(expected)
    assert score[0] == 0 < score[1]
    assert (SCORES["tdds"].compute(record(rows[:1])) == SCORES["el2n"].compute(record(rows[:1]))).all()


@pytest.mark.parametrize("name", list(SCORES))
def test_scores_leave_the_record_alone(name: str) -> None:
    """A score that changed the record would change the next one and every resumed run."""
    seen = record([[0.5, 0.7], [0.6, 0.2]], [[1.0], [2.0]])
    before = seen.softmax.copy()
    assert SCORES[name].compute(seen).shape == (2,)
    assert (seen.softmax == before).all()

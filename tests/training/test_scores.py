"""Importance scores: the recorder keeps what it is given, and each score is its formula."""

from __future__ import annotations

import numpy as np

from emqdeploy.training.scores import SCORES, Dynamics


def test_recorder_keeps_each_image_at_its_place() -> None:
    """Batches arrive shuffled; a score that mixed up images would prune the wrong ones."""
    dynamics = Dynamics((2, 8), epochs=2, images=4, classes=3)
    dynamics.record(8, 1, np.array([3, 0]), np.array([[0.5, 0.25, 0.25], [1, 0, 0]], np.float32))
    assert dynamics.softmax[8][1, 3].tolist() == [0.5, 0.25, 0.25]
    assert dynamics.softmax[8][1, 0].tolist() == [1, 0, 0]
    assert not dynamics.softmax[2].any()
    assert not dynamics.softmax[8][0].any()


def test_el2n_is_the_mean_distance_to_the_label() -> None:
    """EL2N against its definition, worked out by hand."""
    softmax = np.array([[[1, 0, 0], [0.5, 0.5, 0]], [[0, 1, 0], [0.5, 0.5, 0]]], np.float16)
    score = SCORES["el2n"](softmax, np.array([0, 2]), np.random.default_rng(0))
    assert np.allclose(score, [(0 + np.sqrt(2)) / 2, np.sqrt(0.25 + 0.25 + 1)], atol=1e-3)


def test_scores_leave_the_record_alone() -> None:
    """A score that changed the record would change the next one and every resumed run."""
    softmax = np.full((1, 3, 2), 0.5, np.float16)
    for name in SCORES:
        SCORES[name](softmax, np.array([0, 1, 0]), np.random.default_rng(0))
    assert (softmax == 0.5).all()


def test_random_score_ignores_the_record() -> None:
    """The control must not know the images."""
    labels = np.zeros(50, np.int64)
    first = SCORES["random"](np.zeros((1, 50, 2), np.float16), labels, np.random.default_rng(1))
    second = SCORES["random"](np.ones((1, 50, 2), np.float16), labels, np.random.default_rng(1))
    assert (first == second).all()
    assert len(set(first)) == 50

"""Importance scores: each is its formula, worked out by hand, and higher means more important."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.training.scores import SCORES, Importance, Said, Score, Size
from emqdeploy.training.scores.base import MOST_BYTES

LABELS = np.array([0, 1, 0, 1])


def told(name: str, odds: Sequence[Any], labels: NDArray[np.int64], features: Sequence[Any] | None = None) -> Score:
    """A score that was told of every image, epoch by epoch: softmax ``(epochs, N, classes)``, features alike."""
    epochs = np.asarray(odds, np.float32)
    kept = None if features is None else np.asarray(features, np.float32)
    score = SCORES[name](Size(len(labels), epochs.shape[2], 0 if kept is None else kept.shape[-1]))
    for number, softmax in enumerate(epochs):
        score.open_epoch()
        # In another order every epoch, in two batches, as training shuffles.
        order = np.random.default_rng(number).permutation(len(labels))
        for part in (order[:1], order[1:]):
            seen = None if kept is None else (kept[number] if kept.ndim == 3 else kept)[part]
            score.update(Said(part, softmax[part], labels[part], seen))
    return score


def two_classes(right: Sequence[Sequence[float]]) -> NDArray[np.float32]:
    """The softmax of two classes from the odds of the right one, one row an epoch."""
    odds = np.asarray(right, np.float32)
    softmax = np.zeros((*odds.shape, 2), np.float32)
    images = np.arange(odds.shape[1])
    softmax[:, images, LABELS[: len(images)]] = odds
    softmax[:, images, 1 - LABELS[: len(images)]] = 1 - odds
    return softmax


def of(name: str, right: Sequence[Sequence[float]], features: Sequence[Any] | None = None) -> Importance:
    """The importance of images from the odds of their class."""
    score = told(name, two_classes(right), LABELS[: len(right[0])], features)
    return score.importance(np.random.default_rng(0))


def drawn_epochs(epochs: int, images: int, classes: int) -> NDArray[np.float32]:
    """A softmax that wanders from epoch to epoch, more for some images than for others."""
    random = np.random.default_rng(0)
    restless = random.gamma(1.0, 1.0, (1, images, 1))
    logits = np.cumsum(random.normal(size=(epochs, images, classes)) * restless, axis=0)
    odds = np.exp(logits - logits.max(axis=2, keepdims=True))
    return (odds / odds.sum(axis=2, keepdims=True)).astype(np.float32)


def authors_tdds(softmax: NDArray[np.float32], window: int = 10, decay: float = 0.9) -> Importance:
    """The formula of TDDS over a record that holds every softmax."""
    odds = softmax.astype(np.float64)
    moves = np.abs(odds[1:] * (np.log(odds[1:] + 1e-8) - np.log(odds[:-1] + 1e-8))).sum(axis=2)
    length = min(window - 1, len(moves))
    windows = [moves[start : start + length] for start in range(len(moves) - length + 1)]
    spread = np.stack([np.linalg.norm(part - part.mean(axis=0), axis=0) for part in windows])
    ages = np.arange(len(windows))[::-1, None]
    total: Importance = (spread * decay * (1 - decay) ** ages).sum(axis=0)
    return total


def test_el2n_is_the_mean_distance_to_the_label() -> None:
    """A wrong class of odds 1 is a distance of the square root of two."""
    assert of("el2n", [[1, 0.5], [0, 0.5]]) == pytest.approx([np.sqrt(2) / 2, np.sqrt(0.5)])


def test_grand_is_the_norm_of_the_last_layers_gradient() -> None:
    """Against the gradient itself: outer product of the error and (1, features), each epoch with its own features."""
    features = [[[3.0, 4.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]]]
    score = of("grand", [[0.25, 0.75], [0.5, 0.75]], features)
    gradients = np.outer([0.25 - 1, 0.75], [1, 3, 4]), np.outer([0.5 - 1, 0.5], [1, 0, 1])
    assert score[0] == pytest.approx(np.mean([np.linalg.norm(gradient) for gradient in gradients]))
    assert score[1] == pytest.approx(np.linalg.norm([0.25, 0.25]))


def test_entropy_prefers_what_the_network_is_unsure_of() -> None:
    """The latest epoch counts; certain is 0 and even odds are log 2."""
    assert of("entropy", [[0.5, 0.5], [1, 0.5]]) == pytest.approx([0, np.log(2)], abs=1e-6)


def test_forgetting_counts_turns_from_right_to_wrong() -> None:
    """Never forgotten, forgotten twice, and never learned."""
    score = of("forgetting", [[0.9, 0.9, 0.1], [0.9, 0.1, 0.1], [0.9, 0.9, 0.1], [0.9, 0.1, 0.1]])
    assert np.floor(score).tolist() == [0, 2, 4]


def test_moderate_prefers_the_middle() -> None:
    """Of images at distances 0, 1, 2 from their class's centre the middle one is the typical one."""
    features = [[0.0], [0.0], [1.0], [-1.0], [2.0], [-2.0]]
    odds = np.full((2, 6, 2), 0.5)
    score = told("moderate", odds, np.zeros(6, np.int64), features).importance(np.random.default_rng(0))
    assert set(np.argsort(-score)[:2].tolist()) == {2, 3}


def test_moderate_measures_each_class_from_its_own_centre() -> None:
    """The second pass measures from the means of the first; another class's images do not move them."""
    features = [[0.0, 9.0], [4.0, 0.0], [2.0, 9.0], [4.0, 6.0]]
    score = told("moderate", np.full((2, 4, 2), 0.5), LABELS, features)
    assert score.distances.tolist() == [1, 3, 1, 3]  # type: ignore[attr-defined]


@pytest.mark.parametrize("epochs", [3, 6, 10, 11, 25])
def test_tdds_is_the_formula_over_every_softmax(epochs: int) -> None:
    """Shorter than a window, one window, and many: what is kept in 40 bytes gives what the whole record gives."""
    softmax = drawn_epochs(epochs, 200, 10)
    score = told("tdds", softmax, np.zeros(200, np.int64)).importance(np.random.default_rng(0))
    assert score == pytest.approx(authors_tdds(softmax), rel=0.02, abs=0.01)


def test_tdds_of_many_classes_ranks_nearly_as_the_whole_record_does() -> None:
    """Of 100 classes five odds are kept; the order of the images hardly changes."""
    softmax = drawn_epochs(12, 300, 100)
    score = told("tdds", softmax, np.zeros(300, np.int64)).importance(np.random.default_rng(0))
    ranks = [np.argsort(np.argsort(values)) for values in (score, authors_tdds(softmax))]
    assert np.corrcoef(*ranks)[0, 1] > 0.97


def test_tdds_of_a_steady_image_is_nothing() -> None:
    """A steady image has no spread, one that jumps has."""
    score = of("tdds", [[0.5, 0.5], [0.5, 0.9], [0.5, 0.5], [0.5, 0.8]])
    assert score[0] == pytest.approx(0, abs=1e-3)
    assert score[1] > 0.1


@pytest.mark.parametrize("name", list(SCORES))
@pytest.mark.parametrize("classes", [10, 1000])
def test_a_score_keeps_forty_bytes_of_an_image(name: str, classes: int) -> None:
    """Whatever the classes, features and epochs: 1.28 million images and four children are 0.2 GB at most."""

    def kept(images: int) -> int:
        return sum(tensor.nbytes for tensor in SCORES[name](Size(images, classes, 512)).state().values())

    assert kept(3000) - kept(1000) <= MOST_BYTES * 2000


@pytest.mark.parametrize("name", list(SCORES))
def test_a_score_goes_on_where_it_was_saved(name: str) -> None:
    """A resumed run chooses what the whole one chooses, and asking for the importance changes nothing."""
    softmax, labels = drawn_epochs(14, 20, 3), np.arange(20) % 3
    features = np.random.default_rng(1).normal(size=(14, 20, 2)).astype(np.float32)
    whole = told(name, softmax, labels, features)
    half = told(name, softmax[:9], labels, features[:9])
    half.importance(np.random.default_rng(0))
    resumed = SCORES[name](Size(20, 3, 2))
    resumed.restore(half.state())
    for odds, seen in zip(softmax[9:], features[9:], strict=True):
        resumed.open_epoch()
        resumed.update(Said(np.arange(20), odds, labels, seen))
    found, wanted = (score.importance(np.random.default_rng(0)) for score in (resumed, whole))
    assert found.shape == (20,)
    assert found == pytest.approx(wanted, rel=1e-5)
    assert (found >= 0).all()


def test_saved_sums_of_other_images_are_refused() -> None:
    """They would be read as if they were of these."""
    with pytest.raises(UsageError, match="of other images or classes"):
        SCORES["tdds"](Size(4, 11)).restore(SCORES["tdds"](Size(4, 5)).state())

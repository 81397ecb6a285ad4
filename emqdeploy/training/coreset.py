"""Which images each child trains on: how a score picks, and what the children share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.registry import Registry
from emqdeploy.training.dynamics import Dynamics
from emqdeploy.training.steps import stream_of

Indices = NDArray[np.int64]

WEIGHT_RATIO = 5
"""How many times their expected mean the largest loss weight may be."""

DRAW = 0xC05E5E7
"""The number of the random streams that draw coresets; the order of batches is drawn from streams without one."""


@dataclass(frozen=True)
class Coreset:
    """A share of the training images.

    Attributes:
        indices: ascending and distinct, ``(K,)``.
        odds: the chance that each of them had of being drawn, ``(K,)``; 1 where the choice was certain.
        standing: the importance of each of them ``(K,)``, 0 for the least and 1 for the greatest of all images.
    """

    indices: Indices
    odds: NDArray[np.float64]
    standing: NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))

    def weights(self) -> NDArray[np.float32]:
        """Loss weights ``(K,)`` of mean 1 with which the gradient is that of all images."""
        return (len(self.odds) / (self.odds * (1 / self.odds).sum())).astype(np.float32)


Selection = Callable[[NDArray[np.float64], Indices, int, np.random.Generator], Coreset]
"""``(score (N,), labels (N,), how many to keep, random) -> coreset``."""

SELECTIONS: Registry[Selection] = Registry("selection")


def _certain(indices: Indices) -> Coreset:
    return Coreset(np.sort(indices), np.ones(len(indices)))


def _quotas(labels: Indices, keep: int) -> dict[int, int]:
    """How many images of each class to keep, in proportion to the classes, at least one of every class."""
    classes, counts = np.unique(labels, return_counts=True)
    exact = counts * keep / len(labels)
    quotas = np.minimum(np.maximum(np.floor(exact).astype(int), 1), counts)
    # What rounding left over, or took too much, goes to the classes that it hurts most, or least.
    while quotas.sum() != keep:
        step = 1 if quotas.sum() < keep else -1
        open_to = quotas < counts if step > 0 else quotas > 1
        if not open_to.any():
            break
        quotas[np.argmax(np.where(open_to, step * (exact - quotas), -np.inf))] += step
    return dict(zip(classes.tolist(), quotas.tolist(), strict=True))


@SELECTIONS.register("top")
def select_top(score: NDArray[np.float64], labels: Indices, keep: int, random: np.random.Generator) -> Coreset:
    """The images of the highest score. Hard ones help 2 to 8 bits and can ruin 1 bit."""
    return _certain(np.argsort(-score, kind="stable")[:keep])


@SELECTIONS.register("balanced")
def select_balanced(score: NDArray[np.float64], labels: Indices, keep: int, random: np.random.Generator) -> Coreset:
    """The highest scores of each class, classes in proportion to their size."""
    chosen = []
    for label, quota in _quotas(labels, keep).items():
        members = np.flatnonzero(labels == label)
        chosen.append(members[np.argsort(-score[members], kind="stable")[:quota]])
    return _certain(np.concatenate(chosen))


@SELECTIONS.register("middle")
def select_middle(score: NDArray[np.float64], labels: Indices, keep: int, random: np.random.Generator) -> Coreset:
    """The images around the median of the score: neither the trivial ones nor the mislabelled."""
    start = (len(score) - keep) // 2
    return _certain(np.argsort(score, kind="stable")[start : start + keep])


@SELECTIONS.register("sampled")
def select_sampled(score: NDArray[np.float64], labels: Indices, keep: int, random: np.random.Generator) -> Coreset:
    """Draws without replacement, each image with odds in proportion to its score (systematic sampling, Madow 1949).

    The odds are exact, so that `Coreset.weights` makes the gradient unbiased.
    """
    odds = inclusion_odds(score, keep)
    order = random.permutation(len(score))
    marks = np.concatenate([[0.0], np.cumsum(odds[order])])
    ticks = np.floor(marks - random.random()).astype(np.int64)
    chosen = np.sort(order[np.flatnonzero(np.diff(ticks) > 0)])
    return Coreset(chosen, odds[chosen])


def inclusion_odds(score: NDArray[np.float64], keep: int) -> NDArray[np.float64]:
    """Odds in proportion to the score that sum to ``keep``; what would exceed 1 is certain and the rest is raised."""
    weights = np.maximum(score, 1e-6 * max(float(score.max()), 1e-12))
    certain = np.zeros(len(score), bool)
    while True:
        odds = np.where(certain, 1.0, weights * (keep - certain.sum()) / weights[~certain].sum())
        above = (odds > 1) & ~certain
        if not above.any():
            return odds
        certain |= above
        if certain.all() or certain.sum() >= keep:
            return np.where(certain, 1.0, 0.0)


def coreset_size(images: int, prune_rate: float, batch_size: int) -> int:
    """Images that each child keeps; raises where they would not fill one step."""
    keep = round(images * (1 - prune_rate))
    if keep < batch_size:
        raise UsageError(
            f"--prune-rate {prune_rate} keeps {keep} of {images} images, fewer than a batch of {batch_size}; prune less"
            " or use a smaller --batch-size"
        )
    return keep


@dataclass(frozen=True)
class Sharing:
    """What the children share when coresets are chosen.

    Attributes:
        record: whether all write to one record, so that they are scored alike.
        subset: whether all train on the same images.
    """

    record: bool
    subset: bool


SHARINGS: Registry[Sharing] = Registry("coreset sharing")
SHARINGS.register("bits")(Sharing(record=False, subset=False))
SHARINGS.register("scores")(Sharing(record=True, subset=False))
SHARINGS.register("all")(Sharing(record=True, subset=True))


def choose_coresets(
    dynamics: Dynamics,
    keep: int,
    selection: str,
    sharing: str,
    children: Sequence[Child],
    seed: tuple[int, ...],
    bounded: bool = False,
    believed: NDArray[np.bool_] | None = None,
) -> dict[Child, Coreset]:
    """Returns the images that each child keeps (bit-wise coreset sampling: EMQNet, arXiv 2510.20673).

    Args:
        dynamics: what was recorded of all training images.
        keep: images per child.
        selection: a name in `SELECTIONS`.
        sharing: a name in `SHARINGS`.
        children: the trained ones.
        seed: fixes the draw; another one draws anew.
        bounded: whether odds are kept so large that no loss weight exceeds `WEIGHT_RATIO` times their expected mean.
        believed: the images ``(N,)`` whose labels are; the others are of no importance. None believes all.
    """
    coresets: dict[Child, Coreset] = {}
    for child in children:
        if SHARINGS[sharing].subset and coresets:
            coresets[child] = next(iter(coresets.values()))
            continue
        random = np.random.default_rng([*seed, stream_of(child), DRAW])
        importance = dynamics.importance(child, random)
        if believed is not None:
            importance = np.where(believed, importance, 0.0)
        core = SELECTIONS[selection](_defensive(importance) if bounded else importance, dynamics.labels, keep, random)
        coresets[child] = replace(core, standing=_scaled(importance)[core.indices])
    return coresets


def _defensive(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """A mixture with even odds (defensive importance sampling, Hesterberg 1995): clipped weights would be biased."""
    return importance * (1 - 1 / WEIGHT_RATIO) + importance.mean() / WEIGHT_RATIO


def _scaled(importance: NDArray[np.float64]) -> NDArray[np.float64]:
    """From 0 for the least to 1 for the greatest; 1 where all are equal."""
    low, high = importance.min(), importance.max()
    return (importance - low) / (high - low) if high > low else np.ones_like(importance)

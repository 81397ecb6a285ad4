"""What test images can say of a network and its children: how many it decides rightly, and how sure that is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from emqdeploy.data import Dataset
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.fidelity import spread
from emqdeploy.progress import Report, paced, silent
from emqdeploy.training.batches import ImageSource

SURE = 1.6449
"""Standard deviations of a normal distribution below which 95 % lie: every bound here holds with that confidence."""

USABLE, UNSURE, LOST = "usable", "unsure", "lost"
"""What is known of a child: it loses at most what is allowed; the images do not tell; it loses more."""

FAR_BELOW = 2.0
"""Points below what the user expects that may be another evaluation's, of another crop or scaling."""

Decisions = NDArray[np.int64]


@dataclass(frozen=True)
class Answers:
    """What a module says of test images.

    Attributes:
        decided: the class that it decides for, ``(N,)``.
        logits: for those of `emqdeploy.graph.fidelity.spread`, ``(K, classes)``.
    """

    decided: Decisions
    logits: Floats


@torch.inference_mode()
def answers(
    modules: Mapping[Child, nn.Module], source: ImageSource, batch: int, report: Report = silent
) -> dict[Child, Answers]:
    """Runs modules on all images of a split; every image is decoded once for all of them.

    Args:
        modules: by the child that they are.
        source: the images.
        batch: how many at once.
        report: receives progress.
    """
    decided: dict[Child, list[NDArray[Any]]] = {child: [] for child in modules}
    logits: dict[Child, list[NDArray[Any]]] = {child: [] for child in modules}
    kept = np.zeros(len(source), bool)
    kept[spread(len(source))] = True
    for start in paced(range(0, len(source), batch), "batches of test images", report):
        places = np.arange(start, min(start + batch, len(source)))
        images = source.plain(places)
        for child, module in modules.items():
            given = module(images).cpu().numpy()
            decided[child].append(CLASSIFICATION.decide(given))
            logits[child].append(given[kept[places]])
    return {child: Answers(np.concatenate(decided[child]), np.concatenate(logits[child])) for child in modules}


def share(right: int, count: int) -> tuple[float, float]:
    """Bounds of a share in percent of which ``right`` of ``count`` were seen (Wilson, 1927)."""
    seen, square = right / count, SURE**2 / count
    middle = (seen + square / 2) / (1 + square)
    reach = SURE / (1 + square) * math.sqrt(seen * (1 - seen) / count + square / (4 * count))
    return max(0.0, 100 * (middle - reach)), min(100.0, 100 * (middle + reach))


@dataclass(frozen=True)
class Verdict:
    """What a child loses against the float model, in points, and what follows.

    Attributes:
        lost: as seen on the test images; without labels, the percent of them that are decided otherwise.
        least: its lower bound.
        most: its upper bound.
        word: `USABLE`, `UNSURE` or `LOST`.
    """

    lost: float
    least: float
    most: float
    word: str

    @classmethod
    def of(cls, lost: float, least: float, most: float, allowed: float) -> Verdict:
        """The verdict for bounds and the points that may be lost."""
        word = USABLE if most <= allowed else LOST if least > allowed else UNSURE
        return cls(round(lost, 4), round(least, 4), round(most, 4), word)


def verdict(child: Decisions, model: Decisions, labels: Decisions | None, allowed: float) -> Verdict:
    """Compares the decisions of a child with those of its float model on the same images.

    The images on which both are right or both are wrong say nothing of the difference, so it is known far better than
    either accuracy: with ``a`` images lost and ``b`` gained of ``n``, it is ``(a - b) / n`` with the bounds of Agresti
    and Min (2005), who add half an image to each of the four cases. Without labels the share of other decisions is the
    most that can be lost.

    Args:
        child: ``(N,)``.
        model: of the float model.
        labels: the true classes, None where they are unknown.
        allowed: points that a usable child may lose.
    """
    count = len(model)
    if labels is None:
        other = int((child != model).sum())
        return Verdict.of(100 * other / count, *share(other, count), allowed)
    was, is_ = model == labels, child == labels
    lost, gained = int((was & ~is_).sum()), int((~was & is_).sum())
    a, b, whole = lost + 0.5, gained + 0.5, count + 2
    middle = (a - b) / whole
    reach = SURE * math.sqrt(a + b - (a - b) ** 2 / whole) / whole
    bounds = (100 * (middle - reach), 100 * (middle + reach))
    return Verdict.of(100 * (lost - gained) / count, *bounds, allowed)


def percent_right(decided: Decisions, labels: Decisions) -> float:
    """Percent of the images that are decided rightly."""
    return 100.0 * int((decided == labels).sum()) / len(labels)


def why_implausible(decided: Decisions, dataset: Dataset, expected: float | None) -> str | None:
    """What to say of a float model that is no better than guessing, or far below what the user expects; None if fine.

    Args:
        decided: what it decides of the test images, ``(N,)``.
        dataset: theirs.
        expected: percent that the user knows it to reach, None where nothing was said.
    """
    labels, count = dataset.test.labels, len(decided)
    least, most = share(int((decided == labels).sum()), count)
    guessing = 100 * float(np.bincount(labels).max()) / count
    if expected is not None:
        if most >= expected - FAR_BELOW:
            return None
        found = f"and --expect says {expected:g}"
    elif least > guessing or share(count, count)[0] <= guessing:  # so few that no network could show more
        return None
    else:
        found = f"and always naming the commonest class gives {guessing:.1f}"
    pixels = dataset.preprocessing
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (pixels.mean, pixels.std))
    size = f"{pixels.height} x {pixels.width}"
    return (
        f"the float model decides {percent_right(decided, labels):.1f} % of {count} test images rightly, {found};"
        f" likely causes: another mean or standard deviation than {mean} and {std}, another image size than {size},"
        f" classes in another order than {_some(dataset.classes)}, or the wrong weights; --unlabelled judges by the"
        " float model's own decisions, and --expect by the percentage that you know"
    )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")

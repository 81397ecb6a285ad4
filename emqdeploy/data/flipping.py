"""Wrong labels made on purpose, to see what training makes of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry

Labels = npt.NDArray[np.int64]

FLIPS: Registry[Callable[[Labels, int, np.random.Generator], Labels]] = Registry("kind of wrong labels")
"""``(labels (N,), classes, random) -> another class for each``."""


@FLIPS.register("symmetric")
def any_other(labels: Labels, classes: int, random: np.random.Generator) -> Labels:
    """Any of the other classes, all with the same odds."""
    return (labels + random.integers(1, classes, len(labels))) % classes


@FLIPS.register("pairs")
def the_next(labels: Labels, classes: int, random: np.random.Generator) -> Labels:
    """The next class: errors that have a system, which are harder to find (Han et al., arXiv 1804.06872)."""
    return (labels + 1) % classes


def flip(labels: Labels, classes: int, share: float, kind: str, seed: int) -> Labels:
    """Labels of which a share, drawn from each class alike, is another class's.

    Args:
        labels: class numbers ``(N,)``.
        classes: how many there are, at least 2.
        share: how many are wrong afterwards, from 0 to below 1.
        kind: a name in `FLIPS`.
        seed: which ones.

    Raises:
        UsageError: there is one class only.
    """
    if classes < 2:
        raise UsageError("labels of a single class cannot be wrong; leave --flip-labels out")
    random = np.random.default_rng([seed, 0xF11B])
    others, flipped = FLIPS[kind](labels, classes, random), labels.copy()
    for label in np.unique(labels):
        members = random.permutation(np.flatnonzero(labels == label))
        chosen = members[: round(share * len(members))]
        flipped[chosen] = others[chosen]
    return flipped

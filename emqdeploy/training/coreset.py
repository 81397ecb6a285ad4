"""Which images each bit-width trains on."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry
from emqdeploy.training.scores import SCORES, Dynamics

Selection = Callable[[NDArray[np.float64], int, np.random.Generator], NDArray[np.int64]]
"""``(score (N,), how many to keep, random) -> indices``, ascending and distinct."""

SELECTIONS: Registry[Selection] = Registry("selection")


@SELECTIONS.register("top")
def select_top(score: NDArray[np.float64], keep: int, random: np.random.Generator) -> NDArray[np.int64]:
    """The images of the highest score. Hard ones help 2 to 8 bits and can ruin 1 bit."""
    return np.sort(np.argsort(-score, kind="stable")[:keep])


@SELECTIONS.register("sampled")
def select_sampled(score: NDArray[np.float64], keep: int, random: np.random.Generator) -> NDArray[np.int64]:
    """Draws without replacement, with odds in proportion to the score (Gumbel top-k)."""
    weights = np.log(np.maximum(score, 1e-12))
    return select_top(weights + random.gumbel(size=len(score)), keep, random)


def coreset_size(images: int, prune_rate: float, batch_size: int) -> int:
    """Images that each bit-width keeps; raises where they would not fill one step."""
    keep = round(images * (1 - prune_rate))
    if keep < batch_size:
        raise UsageError(
            f"--prune-rate {prune_rate} keeps {keep} of {images} images, fewer than a batch of {batch_size}; prune less"
            " or use a smaller --batch-size"
        )
    return keep


def choose_coresets(
    dynamics: Dynamics,
    labels: NDArray[np.int64],
    prune_rate: float,
    score: str,
    selection: str,
    batch_size: int,
    seed: int,
) -> dict[int, NDArray[np.int64]]:
    """Returns the images that each bit-width keeps (bit-wise coreset sampling: EMQNet, arXiv 2510.20673).

    Args:
        dynamics: what the score phase recorded.
        labels: of all training images, ``(N,)``.
        prune_rate: share to leave out, in [0, 1).
        score: a name in `SCORES`.
        selection: a name in `SELECTIONS`.
        batch_size: a coreset must fill one step.
        seed: of the run.
    """
    keep = coreset_size(len(labels), prune_rate, batch_size)
    coresets = {}
    for width, softmax in dynamics.softmax.items():
        random = np.random.default_rng([seed, width])
        importance = SCORES[score](softmax, labels, random)
        coresets[width] = SELECTIONS[selection](importance, keep, random)
    return coresets

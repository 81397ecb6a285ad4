"""Labelled images, and dividing them with every class in proportion."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from emqdeploy.data.pictures import Images, Pictures
from emqdeploy.errors import UsageError


@dataclass(frozen=True, eq=False)
class Split:
    """Images (N, C, H, W) as uint8 and their class numbers (N,) as int64.

    ``images`` is an array, or files that decode when they are indexed: take slices of it, never all of it.
    """

    images: Images
    labels: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: npt.ArrayLike) -> Split:
        """Return the images at ``indices`` (integers or a mask), in that order."""
        chosen = np.asarray(indices)
        images = self.images.subset(chosen) if isinstance(self.images, Pictures) else self.images[chosen]
        return Split(images, self.labels[chosen])


def validation_split(train: Split, fraction: float = 0.1, seed: int = 0) -> tuple[Split, Split]:
    """Set part of the training images aside, classes in proportion.

    The seed is one of the data, not of the training: runs with different training seeds must be
    compared on the same images.

    Args:
        train: What to divide.
        fraction: The share set aside, from 0 up to, not including, 1.
        seed: Which images.

    Returns:
        The remaining training split and the validation split; neither is empty, unless the fraction is 0: then there
        are no images to validate on, and all of them train.
    """
    if fraction == 0:
        return train, train.subset(np.arange(0))
    if not 0 < fraction < 1 or len(train) < 2:
        raise UsageError(
            "a validation split needs at least 2 images and a fraction from 0 (none) to below 1, "
            f"not {len(train)} images and {fraction}"
        )
    count = min(max(round(fraction * len(train)), 1), len(train) - 1)
    aside, kept = stratified(train.labels, count, seed)
    return train.subset(kept), train.subset(aside)


def stratified(
    labels: npt.NDArray[np.int64], count: int, seed: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Choose ``count`` items with every class in proportion.

    Each class is shuffled and spread evenly over [0, 1]; the items below a common threshold are
    chosen. A class with one image keeps it in the rest unless half of everything is chosen.

    Returns:
        Indices of the chosen items and of the rest, both ascending.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    position = np.empty(len(labels))
    for label in np.unique(labels):
        members = order[labels[order] == label]
        position[members] = (np.arange(len(members)) + 0.5) / len(members)
    ranked = order[np.argsort(position[order], kind="stable")]
    return np.sort(ranked[:count]), np.sort(ranked[count:])

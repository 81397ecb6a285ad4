"""Images of their own for processes that train apart: shards of different sizes and with different classes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.steps import SMALLEST_BATCH, Indices

STREAM = 0x5A4D
"""The number of the random stream of shards."""


def read_sizes(value: object) -> tuple[float, ...]:
    """Reads ``3,1``, relative sizes of shards.

    Raises:
        UsageError: they are no numbers, or negative.
    """
    try:
        parts = value.split(",") if isinstance(value, str) else list(value)  # type: ignore[call-overload]
        sizes = tuple(float(part) for part in parts)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--shards is {value!r}; write a number for each process, for example 3,1") from error
    if any(not (math.isfinite(size) and size >= 0) for size in sizes) or (sizes and sum(sizes) == 0):
        raise UsageError(f"--shards is {value!r}; sizes are positive numbers, for example 3,1")
    return sizes


def shards(labels: NDArray[np.int64], sizes: Sequence[float], skew: float, seed: int) -> list[Indices]:
    """Divides images among processes; every image is in one shard.

    Args:
        labels: of the images, ``(N,)``.
        sizes: relative sizes of the shards.
        skew: 0 divides at random; otherwise each class is divided by shares drawn from a Dirichlet distribution around
            the sizes, of which this is the concentration (arXiv 1909.06335): the smaller, the more uneven.
        seed: decides what is drawn.

    Returns:
        the images of each shard, ascending.

    Raises:
        UsageError: a shard has too few images to make a batch.
    """
    random, share = np.random.default_rng([seed, STREAM]), np.asarray(sizes) / np.sum(sizes)
    found: list[list[Indices]] = [[] for _ in sizes]
    for group in [np.flatnonzero(labels == label) for label in np.unique(labels)] if skew else [np.arange(len(labels))]:
        drawn = share
        if skew:
            drawn = np.zeros(len(share))
            drawn[share > 0] = random.dirichlet(skew * len(share) * share[share > 0])
        cuts = np.rint(np.cumsum(drawn)[:-1] * len(group)).astype(int)
        for place, part in enumerate(np.split(random.permutation(group), cuts)):
            found[place].append(part)
    whole = [np.sort(np.concatenate(parts)) for parts in found]
    for place, part in enumerate(whole):
        if len(part) < SMALLEST_BATCH:
            raise UsageError(
                f"process {place} of {len(sizes)} would have {len(part) or 'no'} images of its own, too few for a"
                " batch; use other --shards, a larger --skew or fewer processes"
            )
    return whole


@dataclass(frozen=True)
class Shard:
    """What one process trains on.

    Attributes:
        source: its images.
        share: of all images, 0 to 1.
    """

    source: ImageSource
    share: float


def shard_of(source: ImageSource, rank: int, sizes: Sequence[float], skew: float, seed: int) -> Shard:
    """The shard of a process among all that divide a split, see `shards`."""
    everyone = shards(source.labels.cpu().numpy(), sizes, skew, seed)
    mine = everyone[rank]
    # All take as many steps as the largest shard has batches, so smaller ones are repeated.
    repeated = np.resize(mine, max(map(len, everyone)))
    return Shard(ShardSource(source, repeated), len(mine) / len(source))


class ShardSource:
    """Some images of a split to train on; what is calibrated is calibrated alike by all who share the split.

    Args:
        source: the split.
        indices: images of the split, in the order of these.
    """

    def __init__(self, source: ImageSource, indices: Indices) -> None:
        self.source = source
        self.indices = indices
        self.labels: Tensor = source.labels[torch.from_numpy(indices).to(source.labels.device)]

    def __len__(self) -> int:
        return len(self.indices)

    def stream(self, requests: Iterable[BatchRequest]) -> Iterator[Tensor]:
        """Yields the augmented batches, of this shard's images."""
        return self.source.stream(request._replace(indices=self.indices[request.indices]) for request in requests)

    def plain(self, indices: NDArray[np.int64]) -> Tensor:
        """Returns images of the whole split, without augmentation."""
        return self.source.plain(indices)

"""Step plans: which children train on which images, in which order; reproducible from seed and epoch alone.

A step is one optimizer update. It runs one or more children (the network at a bit-width) on one batch; the gradients of
its children add up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emqdeploy.registry import Registry

SMALLEST_BATCH = 2
"""Batch statistics of one image mean nothing; a last batch of one is dropped."""

Indices = NDArray[np.int64]
Child = int | dict[str, int]
"""A bit-width, or one per layer name."""


class Step(NamedTuple):
    """One optimizer update: the children that run, in this order, and the images that they see."""

    children: tuple[Child, ...]
    indices: Indices


@dataclass(frozen=True)
class Epoch:
    """What a plan plans.

    Attributes:
        subsets: training images per bit-width; the trained bit-widths are its keys.
        batch_size: images in a step.
        seed: of the run.
        index: of this epoch, from 0.
        total: epochs of the run.
        layers: names of the layers, for plans that give each its own bit-width.
    """

    subsets: Mapping[int, Indices]
    batch_size: int
    seed: int
    index: int
    total: int
    layers: tuple[str, ...] = ()

    @property
    def widths(self) -> list[int]:
        """The trained bit-widths, the highest first."""
        return sorted(self.subsets, reverse=True)

    def random(self, *stream: int) -> np.random.Generator:
        """A random generator of this epoch."""
        return np.random.default_rng([self.seed, self.index, *stream])

    def batches(self, bits: int) -> list[Indices]:
        """A bit-width's images in an order drawn anew every epoch, cut into batches."""
        shuffled = self.random(bits).permutation(self.subsets[bits])
        parts = [shuffled[start : start + self.batch_size] for start in range(0, len(shuffled), self.batch_size)]
        return [part for part in parts if len(part) >= SMALLEST_BATCH]


@dataclass(frozen=True)
class StepPlan:
    """A plan by name.

    Attributes:
        plan: ``Epoch -> steps``.
        one_batch: whether all bit-widths see the same batches, so that they can neither have coresets of their own nor
            do without one another's logits.
    """

    plan: Callable[[Epoch], list[Step]]
    one_batch: bool


STEP_PLANS: Registry[StepPlan] = Registry("step plan")


def _plan(name: str, one_batch: bool) -> Callable[[Callable[[Epoch], list[Step]]], StepPlan]:
    def decorate(plan: Callable[[Epoch], list[Step]]) -> StepPlan:
        return STEP_PLANS.register(name)(StepPlan(plan, one_batch))

    return decorate


@_plan("interleaved", one_batch=False)
def interleaved(epoch: Epoch) -> list[Step]:
    """Every bit-width passes over its own images, one batch and one update of each in turn (EMQNet's bit-wise scheme).

    Shared running statistics would be those of the last bit-width if one trained alone for long, so the bit-widths take
    turns step by step, in an order drawn anew each round.
    """
    batches = {bits: epoch.batches(bits) for bits in epoch.subsets}
    random = epoch.random()
    steps: list[Step] = []
    for turn in range(max(map(len, batches.values()))):
        waiting = [bits for bits in batches if turn < len(batches[bits])]
        steps.extend(Step((int(bits),), batches[bits][turn]) for bits in random.permutation(waiting))
    return steps


@_plan("rotating", one_batch=False)
def rotating(epoch: Epoch) -> list[Step]:
    """The bit-widths share one pass over the images: each batch trains one of them, another one every epoch.

    A score phase in this order costs one pass an epoch instead of one per bit-width.
    """
    widths = epoch.widths
    return [Step((widths[(turn + epoch.index) % len(widths)],), part) for turn, part in enumerate(_common(epoch))]


@_plan("joint", one_batch=True)
def joint(epoch: Epoch) -> list[Step]:
    """Every bit-width on the same batch, highest first, one update by the sum of all gradients (Any-Precision DNNs)."""
    return [Step(tuple(epoch.widths), part) for part in _common(epoch)]


@_plan("sequential", one_batch=True)
def sequential(epoch: Epoch) -> list[Step]:
    """Every bit-width on the same batch, an update after each (Double Rounding, arXiv 2502.01199, algorithm A.2)."""
    return [Step((bits,), part) for part in _common(epoch) for bits in epoch.widths]


@_plan("sandwich", one_batch=True)
def sandwich(epoch: Epoch) -> list[Step]:
    """The highest, the lowest and one bit-width between them, drawn anew each batch (slimmable networks; EQ-Net)."""
    widths, random = epoch.widths, epoch.random()
    middle = widths[1:-1]
    steps = []
    for part in _common(epoch):
        drawn = (int(random.choice(middle)),) if middle else ()
        steps.append(Step((widths[0], *drawn, *widths[1:][-1:]), part))
    return steps


@_plan("progressive", one_batch=False)
def progressive(epoch: Epoch) -> list[Step]:
    """From the highest bit-width down: one more joins, interleaved, in each of equal shares of the first half."""
    widths = epoch.widths
    joined = 1 + 2 * epoch.index * len(widths) // max(epoch.total, 1)
    subsets = {bits: epoch.subsets[bits] for bits in widths[:joined]}
    return interleaved.plan(Epoch(subsets, epoch.batch_size, epoch.seed, epoch.index, epoch.total, epoch.layers))


@_plan("mixed", one_batch=False)
def mixed(epoch: Epoch) -> list[Step]:
    """Interleaved, and after each round a step in which every layer draws a bit-width of its own (Bit-Mixer)."""
    steps, random = [], epoch.random(0)
    widths = epoch.widths
    for turn, step in enumerate(interleaved.plan(epoch)):
        steps.append(step)
        if turn % len(widths) == len(widths) - 1:
            drawn = {layer: int(random.choice(widths)) for layer in epoch.layers}
            steps.append(Step((drawn,), step.indices))
    return steps


def _common(epoch: Epoch) -> list[Indices]:
    """The batches of the highest bit-width, for plans in which all see the same images."""
    return epoch.batches(epoch.widths[0])

"""Step plans: which children train on which images, in which order; reproducible from seed and epoch alone.

A step is one optimizer update (several steps, where gradients accumulate). It runs one or more children on one batch;
the gradients of its children add up.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.child import FLOAT, Child, in_order
from emqdeploy.registry import Registry
from emqdeploy.training.shuffling import shuffled

SMALLEST_BATCH = 2
"""Batch statistics of one image mean nothing; a last batch of one is dropped."""

DRAWN = "drawn"
"""Name of the children that a plan draws layer by layer."""

MIXED = 0x30B17
"""The number of the random stream of mixed steps; to a seed, a 0 at the end is as good as nothing there."""

Indices = NDArray[np.int64]


class Step(NamedTuple):
    """One optimizer update: the children that run, in this order, and the images that they see."""

    children: tuple[Child, ...]
    indices: Indices

    def updates_alone(self, accumulate: int) -> bool:
        """Whether an update of so many steps comes from one child, which then can have a learning rate of its own."""
        return accumulate == 1 and len(self.children) == 1


@dataclass(frozen=True)
class Epoch:
    """What a plan plans.

    Attributes:
        subsets: training images per child; the trained children are its keys.
        batch_size: images in a step.
        seed: of the run.
        index: of this epoch, from 0.
        total: epochs of the run.
        layers: names of the layers that switch, for plans that give each its own widths.
        block: images that are read together, see `shuffled`.
    """

    subsets: Mapping[Child, Indices]
    batch_size: int
    seed: int
    index: int
    total: int
    layers: tuple[str, ...] = ()
    block: int = 0

    @property
    def children(self) -> list[Child]:
        """The trained children, the highest first."""
        return list(reversed(in_order(self.subsets)))

    def random(self, *stream: int) -> np.random.Generator:
        """A random generator of this epoch."""
        return np.random.default_rng([self.seed, self.index, *stream])

    def batches(self, child: Child) -> list[Indices]:
        """A child's images in an order drawn anew every epoch, cut into batches."""
        order = shuffled(self.subsets[child], self.random(stream_of(child)), self.block)
        parts = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        return [part for part in parts if len(part) >= SMALLEST_BATCH]


def stream_of(child: Child) -> int:
    """The number that draws a child's random choices: its width where that is its name."""
    if child == FLOAT:
        return child.bits
    return int(child.name) if child.name.isdecimal() else zlib.crc32(child.name.encode())


@dataclass(frozen=True)
class StepPlan:
    """A plan by name.

    Attributes:
        plan: ``Epoch -> steps``.
        one_batch: whether all children see the same batches, so that they can neither have coresets of their own nor do
            without one another's logits.
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
    """Every child passes over its own images, one batch and one update of each in turn (EMQNet's bit-wise scheme).

    Shared running statistics would be those of the last child if one trained alone for long, so the children take turns
    step by step, in an order drawn anew each round.
    """
    batches = {child: epoch.batches(child) for child in epoch.subsets}
    random = epoch.random()
    steps: list[Step] = []
    for turn in range(max(map(len, batches.values()))):
        waiting = [child for child in batches if turn < len(batches[child])]
        order = [waiting[place] for place in random.permutation(len(waiting))]
        steps.extend(Step((child,), batches[child][turn]) for child in order)
    return steps


@_plan("rotating", one_batch=False)
def rotating(epoch: Epoch) -> list[Step]:
    """The children share one pass over the images: each batch trains one of them, another one every epoch.

    A score phase in this order costs one pass an epoch instead of one per child.
    """
    children = epoch.children
    return [Step((children[(turn + epoch.index) % len(children)],), part) for turn, part in enumerate(_common(epoch))]


@_plan("joint", one_batch=True)
def joint(epoch: Epoch) -> list[Step]:
    """Every child on the same batch, highest first, one update by the sum of all gradients (Any-Precision DNNs)."""
    return [Step(tuple(epoch.children), part) for part in _common(epoch)]


@_plan("sequential", one_batch=True)
def sequential(epoch: Epoch) -> list[Step]:
    """Every child on the same batch, an update after each (Double Rounding, arXiv 2502.01199, algorithm A.2)."""
    return [Step((child,), part) for part in _common(epoch) for child in epoch.children]


@_plan("sandwich", one_batch=True)
def sandwich(epoch: Epoch) -> list[Step]:
    """The highest, the lowest and one child between them, drawn anew each batch (slimmable networks; EQ-Net)."""
    children, random = epoch.children, epoch.random()
    middle = children[1:-1]
    steps = []
    for part in _common(epoch):
        drawn = (_draw(middle, random),) if middle else ()
        steps.append(Step((children[0], *drawn, *children[1:][-1:]), part))
    return steps


@_plan("progressive", one_batch=False)
def progressive(epoch: Epoch) -> list[Step]:
    """From the highest child down: one more joins, interleaved, in each of equal shares of the first half."""
    children = epoch.children
    joined = 1 + 2 * epoch.index * len(children) // max(epoch.total, 1)
    return interleaved.plan(replace(epoch, subsets={child: epoch.subsets[child] for child in children[:joined]}))


@_plan("mixed", one_batch=False)
def mixed(epoch: Epoch) -> list[Step]:
    """Interleaved, and after each round a step in which every layer draws the widths of one child (Bit-Mixer)."""
    steps, random = [], epoch.random(MIXED)
    children = [child for child in epoch.children if child != FLOAT]
    for turn, step in enumerate(interleaved.plan(epoch)):
        steps.append(step)
        if turn % len(children) == len(children) - 1:
            drawn = {layer: _draw(children, random) for layer in epoch.layers}
            weights = {layer: child.weights.of(layer) for layer, child in drawn.items()}
            activations = {layer: child.activations.of(layer) for layer, child in drawn.items()}
            steps.append(Step((Child(DRAWN, weights, activations),), step.indices))
    return steps


def _draw(children: list[Child], random: np.random.Generator) -> Child:
    return children[random.integers(len(children))]


def _common(epoch: Epoch) -> list[Indices]:
    """The batches of the highest child, for plans in which all see the same images."""
    return epoch.batches(epoch.children[0])

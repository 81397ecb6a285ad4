"""Forward and backward passes of one step: its children, over the parts of its batch that this process has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.distributed import Part, PartStatistics, SharedMoments, World
from emqdeploy.training.forward import forward_of
from emqdeploy.training.methods import Method
from emqdeploy.training.mixup import mixed
from emqdeploy.training.resizing import check_resizing, resized, side_at
from emqdeploy.training.scales import child_scale
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import Step
from emqdeploy.training.subspaces import Subspace

Indices = NDArray[np.int64]


class Passes:
    """Runs the passes of a step.

    Args:
        common: options of the run.
        network: in training.
        source: training images.
        method: gives losses and costs, and is told what was said.
        classes: outputs of the network.
        world: the processes that share each batch.
        subspace: brings the weights of each pass, and takes their gradient.
    """

    def __init__(
        self,
        common: CommonOptions,
        network: MultiBitNetwork,
        source: ImageSource,
        method: Method,
        classes: int,
        world: World,
        subspace: Subspace,
    ) -> None:
        self.common = common
        self.network = network
        self.source = source
        self.method = method
        self.classes = classes
        self.world = world
        self.subspace = subspace
        self.parts = max(world.size, common.ghost_batches)
        self.statistics = PartStatistics(network) if self.parts > 1 else None
        self.moments = SharedMoments(network.norms.values()) if common.sync_norm and world.size > 1 else None
        # Features are read by a hook, which a replayed graph does not call; the gradients of a graph lie where its next
        # replay puts the next ones, so they cannot add up over steps; and its images have one size.
        alone = self.parts == 1 and common.accumulate == 1 and method.features is None and common.resize_from == 1
        self.forward = forward_of(common, network, (FLOAT, *network.trained), source.labels.device, alone)

        self.side = 1.0
        if common.resize_from < 1:
            check_resizing(network, source.plain(np.arange(min(2, len(source)))), common.resize_from)

    def begin(self, done: float) -> None:
        """Called before each step; ``done`` of the whole run is over."""
        self.side = side_at(done, self.common.resize_from)

    def batches(self, steps: Sequence[Step], first: int) -> Iterator[list[Tensor]]:
        """Yields per step the images of this process's parts; ``first`` is the number of the first step in the run."""
        requests = (
            BatchRequest(part.indices, hash((self.common.seed, number, part.number)) & (2**63 - 1))
            for number, step in enumerate(steps, first)
            for part in self._parts(step)
        )
        stream = self.source.stream(requests)
        for step in steps:
            yield [next(stream) for _ in self._parts(step)]

    def run(self, step: Step, images: list[Tensor], remembering: bool) -> Tensor:
        """Adds the gradients of a step; returns this process's share of the loss of each child, ``(children,)``.

        Args:
            step: what to run.
            images: of each part, as `batches` yields them.
            remembering: whether the method is told what the batch said at each child.
        """
        parts = self._parts(step)
        alone = step.updates_alone(self.common.accumulate)

        def weight(child: Child) -> float:
            return 1.0 if alone else child_scale(self.common.lr_scale, child)

        losses = torch.zeros(len(step.children), device=self.source.labels.device)
        said: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in step.children]
        if self.statistics:
            self.statistics.begin()
        for part, batch in zip(parts, images, strict=True):
            batch, labels = self._examples(part, batch)
            for place, child in enumerate(step.children):
                with self.moments.active(part.share > 0) if self.moments else nullcontext():
                    loss, logits = self._pass(child, part, batch, labels, weight(child))
                losses[place] += loss
                if remembering and part.share:
                    said[place].append((logits, self._features))
            if self.statistics:
                self.statistics.end_part(part.statistics)
        if self.statistics:
            self.statistics.finish()
        for child, rows in zip(step.children, said, strict=True):
            if remembering:
                self.method.remember(child, step.indices, *self._gather(rows, parts[0].start, len(step.indices)))
        return losses

    @property
    def _features(self) -> Tensor | None:
        return None if self.method.features is None else self.method.features.latest

    def _examples(self, part: Part, images: Tensor) -> tuple[Tensor, Tensor]:
        """What the network sees and should say: images, and labels ``(B,)`` or odds ``(B, classes)``."""
        labels = self.source.labels[torch.from_numpy(part.indices).to(images.device)]
        if len(labels) == 0:  # a process that has nothing of this batch
            return images, labels
        images = resized(images, self.side)
        if self.common.mixup == 0:
            return images, labels
        seed = (self.common.seed, *map(int, part.indices[:8]))
        return mixed(images, labels, self.classes, self.common.mixup, seed)

    def _pass(self, child: Child, part: Part, images: Tensor, labels: Tensor, weight: float) -> tuple[Tensor, Tensor]:
        indices = torch.from_numpy(part.indices).to(images.device)
        self.subspace.place(child)
        logits = self.forward(child, images).float()
        loss = self.method.losses(child, logits, labels, indices).mean()
        cost = self.method.cost(child)
        loss = (loss if cost is None else loss + cost) * part.share
        (loss * (weight / self.common.accumulate)).backward()
        self.subspace.collect()
        return loss.detach(), logits.detach()

    def _gather(self, rows: list[tuple[Tensor, Tensor | None]], start: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Logits and features of the whole batch, from all parts of all processes."""
        mine = [logits for logits, _ in rows] or [torch.zeros(0, self.classes, device=self.source.labels.device)]
        logits = self.world.gather(torch.cat(mine), start, count)
        latest = self._features
        if latest is None:
            return logits, None
        seen = [features.float() for _, features in rows if features is not None]
        features = torch.cat(seen or [torch.zeros(0, latest.shape[1], device=logits.device)])
        return logits, self.world.gather(features, start, count)

    def _parts(self, step: Step) -> list[Part]:
        return self.world.parts(step.indices, self.parts)

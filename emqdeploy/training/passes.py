"""Forward and backward passes of one step: its children, over the parts of its batch that this process has."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.distributed import Part, PartStatistics, SharedMoments, World
from emqdeploy.training.dynamics import FeatureTap
from emqdeploy.training.steps import Child, Step
from emqdeploy.training.targets import Target

Indices = NDArray[np.int64]

Remember = Callable[[int, Indices, Tensor, Tensor | None], None]
"""``(bits, indices of the batch, logits, features or None)``: what the whole batch said at a bit-width."""


class Passes:
    """Runs the passes of a step.

    Args:
        config: the run.
        network: in training.
        source: training images.
        target: what children learn from.
        world: the processes that share each batch.
        features: where penultimate features are read, if anybody asks for them.
    """

    def __init__(
        self,
        config: TrainConfig,
        network: MultiBitNetwork,
        source: ImageSource,
        target: Target,
        world: World,
        features: FeatureTap | None,
    ) -> None:
        self.config = config
        self.network = network
        self.forward: Callable[[Tensor], Tensor] = torch.compile(network) if config.compile else network
        self.source = source
        self.target = target
        self.world = world
        self.features = features
        self.parts = max(world.size, config.ghost_batches)
        self.statistics = PartStatistics(network) if self.parts > 1 else None
        self.moments = SharedMoments(network.norms.values()) if config.sync_norm and world.size > 1 else None
        self.parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def batches(self, steps: list[Step], first: int) -> Iterator[list[Tensor]]:
        """Yields per step the images of this process's parts; ``first`` is the number of the first step in the run."""
        requests = (
            BatchRequest(part.indices, hash((self.config.seed, number, part.number)) & (2**63 - 1))
            for number, step in enumerate(steps, first)
            for part in self._parts(step)
        )
        stream = self.source.stream(requests)
        for step in steps:
            yield [next(stream) for _ in self._parts(step)]

    def run(
        self, step: Step, images: list[Tensor], weights: Callable[[int | None, Indices], Any], remember: Remember | None
    ) -> Tensor:
        """Adds the gradients of a step; returns this process's share of the loss of each child, ``(children,)``.

        Args:
            step: what to run.
            images: of each part, as `batches` yields them.
            weights: loss weights of images at a bit-width.
            remember: receives what the batch said at each bit-width.
        """
        parts = self._parts(step)
        losses = torch.zeros(len(step.children), device=self.source.labels.device)
        said: list[list[tuple[Tensor, Tensor | None]]] = [[] for _ in step.children]
        if self.statistics:
            self.statistics.begin()
        for part, batch in zip(parts, images, strict=True):
            for place, child in enumerate(step.children):
                with self.moments.active(part.share > 0) if self.moments else nullcontext():
                    loss, logits = self._pass(child, part, batch, weights)
                losses[place] += loss
                if remember is not None and part.share:
                    said[place].append((logits, None if self.features is None else self.features.latest))
            if self.statistics:
                self.statistics.end_part(part.statistics)
        if self.statistics:
            self.statistics.finish()
        if remember is not None:
            for child, rows in zip(step.children, said, strict=True):
                if isinstance(child, int):
                    remember(child, step.indices, *self._gather(rows, parts[0].start, len(step.indices)))
        return losses

    def _pass(
        self, child: Child, part: Part, images: Tensor, weights: Callable[[int | None, Indices], Any]
    ) -> tuple[Tensor, Tensor]:
        self.network.set_bits(child)
        bits = child if isinstance(child, int) else None
        indices = torch.from_numpy(part.indices).to(images.device)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.config.amp == "bf16"):
            logits = self.forward(images).float()
        per_image = self.target.losses(bits, logits, self.source.labels[indices], indices)
        loss = (per_image * weights(bits, part.indices)).mean() * part.share
        (loss / self.config.accumulate).backward()
        return loss.detach(), logits.detach()

    def _gather(self, rows: list[tuple[Tensor, Tensor | None]], start: int, count: int) -> tuple[Tensor, Tensor | None]:
        """Logits and features of the whole batch, from all parts of all processes."""
        classes = self.target.classes
        mine = [logits for logits, _ in rows] or [torch.zeros(0, classes, device=self.source.labels.device)]
        logits = self.world.gather(torch.cat(mine), start, count)
        if self.features is None or self.features.latest is None:
            return logits, None
        width = self.features.latest.shape[1]
        seen = [latest.float() for _, latest in rows if latest is not None]
        features = torch.cat(seen or [torch.zeros(0, width, device=logits.device)])
        return logits, self.world.gather(features, start, count)

    def exchange(self, losses: Tensor, stopping: bool, update: bool) -> tuple[list[float], bool]:
        """Sums over all processes, in one collective: losses, running statistics and, before an update, gradients.

        Returns:
            the loss of each child, and whether any process was asked to stop.
        """
        report = torch.cat([losses, losses.new_tensor([float(stopping)])])
        gradients = [p.grad for p in self.parameters if p.grad is not None] if update else []
        statistics = self.statistics.buffers if self.statistics else []
        self.world.sum_([report, *statistics, *gradients])
        *values, stop = report.tolist()
        return values, stop > 0

    def _parts(self, step: Step) -> list[Part]:
        return self.world.parts(step.indices, self.parts)

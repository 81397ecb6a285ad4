"""Statistics of children of few bits learn what the float network answers; weights stay.

Matching what the float network's channels have on average leaves what quantization does to single images. Mean and
deviation of every normalization, two numbers a channel that each child has anyway, can answer for some of it (as by
learning the affine parameters of normalizations alone, arXiv 2003.00152).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.progress import Report, paced
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import MultiBitBatchNorm2d
from emqdeploy.training.augment import BatchFunction
from emqdeploy.training.posttraining.answering import batch_size, nats, shown_images

RATE = 0.02
"""Of Adam, in deviations of a channel for its mean, and in shares of it for its deviation; annealed to zero."""


@dataclass
class Adjustment:
    """How far the statistics of a normalization at a child move.

    Attributes:
        norm: the normalization.
        mean: where they start, ``(C,)`` as all others.
        deviation: the same.
        stretch: logarithm of what deviations are divided by.
        shift: by how much what is normalized grows, in deviations.
    """

    norm: MultiBitBatchNorm2d
    mean: Tensor
    deviation: Tensor
    stretch: Tensor
    shift: Tensor

    @classmethod
    def of(cls, norm: MultiBitBatchNorm2d, child: Child) -> Adjustment:
        """One that changes nothing yet."""
        mean, var = norm.statistics(child)
        zeros = [torch.zeros_like(mean, requires_grad=True) for _ in range(2)]
        return cls(norm, mean.clone(), (var + norm.eps).sqrt(), *zeros)

    @property
    def parts(self) -> tuple[Tensor, Tensor]:
        """What is learned."""
        return self.stretch, self.shift

    def move(self, norm: MultiBitBatchNorm2d, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """Changes what the normalization reads, as a hook, as if its statistics were moved already."""
        (x,) = inputs
        gain = self.stretch.exp()
        added = self.mean * (1 - gain) + self.deviation * self.shift
        column = (-1,) + (1,) * (x.dim() - 2)
        return (x * gain.view(column) + added.view(column),)

    @torch.no_grad()
    def keep(self, child: Child) -> None:
        """Moves the statistics, so that evaluation computes the same without the hook."""
        deviation = self.deviation / self.stretch.exp()
        self.norm.keep(child, self.mean - deviation * self.shift, (deviation.square() - self.norm.eps).clamp(min=0))


def learn_statistics(
    network: MultiBitNetwork,
    images: Tensor,
    children: Sequence[Child],
    steps: int,
    vary: BatchFunction,
    report: Report,
) -> None:
    """Takes steps on the statistics of each child towards the float network's answers.

    Args:
        network: in evaluation, whose statistics are estimated.
        images: ``(N, C, H, W)``, normalised.
        children: that learn, each for itself.
        steps: of each child.
        vary: changes images as training would.
        report: receives progress.
    """
    random, batch = torch.Generator().manual_seed(0), batch_size(images)
    before = network.child
    for child in children:
        moved = [Adjustment.of(norm, child) for norm in network.norms.values()]
        parts = [part for one in moved for part in one.parts]
        optimizer = torch.optim.Adam(parts, RATE)
        for step in paced(range(steps), f"statistics of {child.name} learn, steps", report):
            (group,) = optimizer.param_groups
            group["lr"] = RATE * (1 - step / steps)
            shown = shown_images(images, batch, vary, random)
            with network.at(FLOAT), torch.no_grad():
                wanted = network(shown)
            network.use(child)
            with _moved(moved):
                error = nats(network(shown), wanted)
            optimizer.zero_grad(set_to_none=True)
            error.backward(inputs=parts)
            optimizer.step()
        for one in moved:
            one.keep(child)
    network.use(before)


@contextmanager
def _moved(statistics: Sequence[Adjustment]) -> Iterator[None]:
    with ExitStack() as stack:
        for one in statistics:
            stack.callback(one.norm.register_forward_pre_hook(one.move).remove)
        yield

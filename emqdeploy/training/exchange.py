"""What the processes of a run tell one another, and when they hold the same network.

They share every batch and add up its gradients, or each trains on images of its own and all average what became of
their networks after some steps (federated averaging, arXiv 1602.05629; the rounds of AdaQuantFL, arXiv 2102.04487).
Either way gradients or updates may be compressed; losses, statistics and what is asked of the run are not.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from emqdeploy.errors import UsageError
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.compression import Compression, compression_of
from emqdeploy.training.distributed import World
from emqdeploy.training.methods import Method
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.sharding import Shard, shard_of
from emqdeploy.training.steps import Step


class Exchange:
    """All processes share each batch, and tell one another everything with every step.

    Args:
        world: the processes.
        compression: of gradients.
        seed: of the run.
        learned: everything that is learned.
        statistics: tensors that change in a step without being learned.

    Attributes:
        company: the processes that share a batch.
        batches: how many batches all processes together see in a step.
        heard: steps and, for each, the losses of its children over all processes and, last, how many processes were
            asked to stop; still on the training device, because reading them would wait for it.
        settled: whether all processes hold the same network; only then may it be saved.
    """

    def __init__(
        self, world: World, compression: Compression, seed: int, learned: Sequence[Tensor], statistics: Sequence[Tensor]
    ) -> None:
        self.world = world
        self.compression = compression
        self.seed = seed
        self.learned = learned
        self.statistics = statistics
        self.company = world
        self.batches = 1
        self.heard: list[tuple[Step, Tensor]] = []
        self.settled = True

    def tell(self, step: Step, number: int, losses: Tensor, stopping: bool, update: bool) -> None:
        """Called after the passes of a step, before its update.

        Args:
            step: what ran.
            number: of the step in the run.
            losses: this process's share of the loss of each child, ``(children,)``.
            stopping: whether this process was asked to stop.
            update: whether an update follows; gradients add up until then.
        """
        report = torch.cat([losses, losses.new_full((1,), float(stopping))])
        gradients = [parameter.grad for parameter in self.learned if parameter.grad is not None] if update else []
        self.compression.sum_(self.world, [report, *self.statistics], gradients, (self.seed, number))
        self.compression.hear(report[:-1].mean(), 1)
        self.heard.append((step, report))
        self.settled = update

    def settle(self, number: int, last: bool) -> None:
        """Called after the update of a step; ``last`` of its epoch."""

    def about(self) -> dict[str, Any]:
        """What the metrics say of it: bytes that one process has sent so far, and levels of the next message."""
        if self.world.size == 1:
            return {}
        return {"sent_bytes": self.world.sent_bytes, "levels": self.compression.levels}

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs, as it is when settled."""
        return {"sent_bytes": self.world.sent_bytes, "compression": self.compression.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.world.sent_bytes = state["sent_bytes"]
        if state["compression"]:
            self.compression.restore(state["compression"])


class Rounds(Exchange):
    """Each process makes some updates on images of its own; then all take the mean of their updates.

    A mean is weighed by the sizes of the shards. Optimizers begin every round as they began the run, so that nothing
    has to be sent of them or kept for each process.

    Args:
        world: see `Exchange`.
        compression: of the updates of a round.
        seed: see `Exchange`.
        learned: see `Exchange`.
        statistics: see `Exchange`.
        optimizer: of this process.
        steps: updates in a round; the last round of an epoch may have fewer.
        share: of all images that this process has.
    """

    def __init__(
        self,
        world: World,
        compression: Compression,
        seed: int,
        learned: Sequence[Tensor],
        statistics: Sequence[Tensor],
        optimizer: Optimizer,
        steps: int,
        share: float,
    ) -> None:
        super().__init__(world, compression, seed, learned, statistics)
        self.company, self.batches = World(), world.size
        self.optimizer, self.fresh = optimizer, copy.deepcopy(optimizer.state_dict()["state"])
        self.steps, self.share = steps, share
        self.start: list[Tensor] = []
        self.told: list[tuple[Step, Tensor]] = []
        self.updates = 0

    def tell(self, step: Step, number: int, losses: Tensor, stopping: bool, update: bool) -> None:
        """Keeps for the end of the round what this process has to say."""
        if not self.told:  # only now, behind whatever all processes did alike between rounds
            self.start = [parameter.detach().clone() for parameter in self.learned]
        self.told.append((step, torch.cat([losses * self.share, losses.new_full((1,), float(stopping))])))
        self.settled = False

    @torch.no_grad()
    def settle(self, number: int, last: bool) -> None:
        """Averages, where the round is over."""
        self.updates += 1
        if self.updates < self.steps and not last:
            return
        for tensor in self.statistics:
            tensor.mul_(self.share)
        learned = list(self.learned)
        moves = torch._foreach_sub(learned, self.start)
        torch._foreach_mul_(moves, self.share)
        reports = [report for _, report in self.told]
        self.compression.sum_(self.world, [*reports, *self.statistics], moves, (self.seed, number))
        torch._foreach_copy_(learned, torch._foreach_add(self.start, moves))
        self.compression.hear(torch.stack([report[:-1].mean() for report in reports]).mean(), len(reports))
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": copy.deepcopy(self.fresh), "param_groups": groups})
        self.heard += self.told
        self.told, self.updates, self.settled = [], 0, True


def own_images(common: CommonOptions, source: ImageSource, world: World) -> Shard:
    """What this process trains on: everything, or with ``--local-steps`` its shard.

    Raises:
        UsageError: there is one process, or another number than there are sizes.
    """
    if world.size == 1 and (common.local_steps or common.compress != "none"):
        flag = f"--local-steps {common.local_steps}" if common.local_steps else f"--compress {common.compress}"
        raise UsageError(
            f"{flag} is about several processes, and there is one; start them with torchrun --nproc-per-node 2 -m"
            " emqdeploy, or leave it out"
        )
    if not common.local_steps:
        return Shard(source, 1.0)
    sizes = common.shards or (1.0,) * world.size
    if len(sizes) != world.size:
        raise UsageError(f"--shards has {len(sizes)} sizes, but {world.size} processes train; give a size for each")
    return shard_of(source, world.rank, sizes, common.skew, common.seed)


def exchange_of(
    common: CommonOptions,
    world: World,
    method: Method,
    optimizer: Optimizer,
    learned: Sequence[Tensor],
    statistics: Sequence[Tensor],
    share: float,
) -> Exchange:
    """The exchange that a configuration asks for.

    Raises:
        UsageError: the method cannot train apart.
    """
    about = (world, compression_of(common.compress, common.compress_bucket), common.seed, learned, statistics)
    if not common.local_steps:
        return Exchange(*about)
    if not method.apart:
        raise UsageError(
            "--local-steps shows every process images of its own, and what this method, --prune-rate, --distill or"
            " --clean keeps of images would differ between them; use --method emqnet or adabits without these"
        )
    return Rounds(*about, optimizer, common.local_steps, share)

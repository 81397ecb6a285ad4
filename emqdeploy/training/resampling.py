"""What coresets go by: what training recorded, or a forward-only probe that asks the network as it is now.

While an epoch records, the network changes: an image met early has a larger error than one met late, whatever the
images are. A probe asks one and the same network of all of them, and without augmentation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist

from emqdeploy.format.child import Child, in_order
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.registry import Registry
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.distributed import World
from emqdeploy.training.dynamics import Dynamics, FeatureTap

PROBE_BATCH = 256


@dataclass(frozen=True)
class Resampling:
    """A source of scores by name.

    Attributes:
        asked: ``children -> those that a probe asks``; None where what training recorded is gone by.
        shared: whether all children are scored alike.
    """

    asked: Callable[[Sequence[Child]], Sequence[Child]] | None
    shared: bool = False


RESAMPLINGS: Registry[Resampling] = Registry("source of scores")
RESAMPLINGS.register("record")(Resampling(None))
RESAMPLINGS.register("probe")(Resampling(lambda children: children))
RESAMPLINGS.register("widest")(Resampling(lambda children: in_order(children)[-1:], shared=True))


@torch.no_grad()
def probe(
    network: MultiBitNetwork,
    source: ImageSource,
    dynamics: Dynamics,
    features: FeatureTap | None,
    children: Sequence[Child],
    passes: int = 1,
    world: World | None = None,
) -> None:
    """Records what children say of all images, forward-only; leaves the network in evaluation mode.

    Args:
        network: asked at each child.
        source: all training images.
        dynamics: changes.
        features: where penultimate features are read, for scores that ask for them.
        children: to ask.
        passes: over the images, for scores that need several.
        world: the processes among which the images of each batch are divided, and all of which record everything; by
            default those that torch.distributed knows of.
    """
    if world is None:
        world = World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
    network.eval()
    for _ in range(passes):
        dynamics.open_epoch()
        for start in range(0, len(source), PROBE_BATCH):
            indices = np.arange(start, min(start + PROBE_BATCH, len(source)))
            first, last = (len(indices) * rank // world.size for rank in (world.rank, world.rank + 1))
            mine = last - first
            images = source.plain(indices[first : max(last, first + 1)])  # no network takes a batch of none
            for child in children:
                network.use(child)
                logits = world.gather(network(images)[:mine].float(), first, len(indices))
                said = None if features is None else features.latest
                kept = None if said is None else world.gather(said[:mine].float(), first, len(indices))
                dynamics.record(child, indices, logits, kept)

"""How many images each child decides correctly."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn

from emqdeploy.format.child import Child
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.distributed import World

BATCH, BATCH_OF_GPU = 256, 2048


@torch.inference_mode()
def accuracies(
    modules: Mapping[Child, nn.Module], source: ImageSource, world: World | None = None
) -> dict[Child, float]:
    """Percent of a split's images that each module decides correctly; every image is decoded once for all of them.

    Args:
        modules: by the child that they are.
        source: the split.
        world: the processes that share the images.
    """
    world = world or World()
    correct = torch.zeros(len(modules), device=source.labels.device)
    everything = np.arange(world.rank, len(source), world.size)
    size = BATCH_OF_GPU if correct.is_cuda else BATCH
    for start in range(0, len(everything), size):
        indices = everything[start : start + size]
        images, labels = source.plain(indices), source.labels[torch.from_numpy(indices).to(source.labels.device)]
        for place, module in enumerate(modules.values()):
            correct[place] += CLASSIFICATION.correct(module(images), labels)
    world.sum_([correct])
    return {child: 100.0 * int(count) / len(source) for child, count in zip(modules, correct.tolist(), strict=True)}


def accuracy_per_child(
    network: MultiBitNetwork, source: ImageSource, children: Iterable[Child], world: World | None = None
) -> dict[Child, float]:
    """Percent correct at each child, with the training-side network in evaluation mode."""
    training = network.training
    network.eval()
    result: dict[Child, float] = {}
    for child in children:
        with network.at(child):
            result |= accuracies({child: network}, source, world)
    network.train(training)
    return result

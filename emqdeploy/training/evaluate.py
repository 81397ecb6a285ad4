"""Accuracy per bit-width."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource
from emqdeploy.training.distributed import World

BATCH = 256


@torch.inference_mode()
def accuracy(module: nn.Module, source: ImageSource, world: World | None = None) -> float:
    """Percent of the images of a split that the module classifies correctly; several processes share the images."""
    world = world or World()
    correct = torch.zeros((), device=source.labels.device)
    everything = np.arange(world.rank, len(source), world.size)
    for start in range(0, len(everything), BATCH):
        indices = everything[start : start + BATCH]
        predicted = module(source.plain(indices)).argmax(1)
        correct += (predicted == source.labels[torch.from_numpy(indices).to(predicted.device)]).sum()
    world.sum_([correct])
    return 100.0 * int(correct) / len(source)


def accuracy_per_bits(
    network: MultiBitNetwork, source: ImageSource, widths: Iterable[int], world: World | None = None
) -> dict[int, float]:
    """Percent correct at each bit-width, with the training-side network in evaluation mode."""
    training = network.training
    network.eval()
    result = {}
    for bits in widths:
        with network.bits(bits):
            result[bits] = accuracy(network, source, world)
    network.train(training)
    return result

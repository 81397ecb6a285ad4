"""Accuracy per bit-width."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import nn

from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import ImageSource

BATCH = 256


@torch.inference_mode()
def accuracy(module: nn.Module, source: ImageSource) -> float:
    """Percent of the images of a split that the module classifies correctly."""
    correct = 0
    everything = np.arange(len(source))
    for start in range(0, len(everything), BATCH):
        indices = everything[start : start + BATCH]
        predicted = module(source.plain(indices)).argmax(1)
        correct += int((predicted == source.labels[start : start + BATCH]).sum())
    return 100.0 * correct / len(source)


def accuracy_per_bits(network: MultiBitNetwork, source: ImageSource, widths: Iterable[int]) -> dict[int, float]:
    """Percent correct at each bit-width, with the training-side network in evaluation mode."""
    training = network.training
    network.eval()
    result = {}
    for bits in widths:
        with network.bits(bits):
            result[bits] = accuracy(network, source)
    network.train(training)
    return result

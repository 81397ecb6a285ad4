"""Accuracy per bit-width."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from emqdeploy.quant.network import MultiBitNetwork

BATCH = 256


@torch.inference_mode()
def accuracy(module: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percent of normalised ``images (N, C, H, W)`` that the module classifies as ``labels (N,)``."""
    correct = 0
    for start in range(0, len(images), BATCH):
        logits = module(images[start : start + BATCH])
        correct += int((logits.argmax(1) == labels[start : start + BATCH]).sum())
    return 100.0 * correct / len(images)


def accuracy_per_bits(
    network: MultiBitNetwork, images: Tensor, labels: Tensor, widths: Iterable[int]
) -> dict[int, float]:
    """Percent correct at each bit-width, with the training-side network in evaluation mode."""
    training = network.training
    network.eval()
    result = {}
    for bits in widths:
        with network.bits(bits):
            result[bits] = accuracy(network, images, labels)
    network.train(training)
    return result

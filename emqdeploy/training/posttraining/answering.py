"""All layers together learn what the float network answers, from unlabelled images that never look the same twice.

Blocks that are each near to the float network's leave errors that add up. Here whole children of few bits learn from
the float network's answers (knowledge distillation, arXiv 1503.02531, at temperature 1). A few hundred images would be
learned by heart, so each time they are varied as in training, and the float network answers what is shown.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.progress import Report, paced
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.augment import AUGMENTATIONS, BatchFunction
from emqdeploy.training.posttraining.learned import LearnedWeights, descent, matched, moments_noted

PULL = 1.0
"""Towards the float weights: less than blocks have, whose errors the whole network is to make up for."""

STEPS = 3
"""For each step of a block, while images are small."""

FEWEST_IMAGES, MOST_IMAGES = 8, 64
"""Of a step."""

PIXELS = MOST_IMAGES * 32 * 32
"""Of a step of small images. Where it has more, there are fewer steps, so that learning takes no longer."""


def small(images: Tensor) -> bool:
    """Whether a step takes no more pixels than it should: larger ones take too long, and gigabytes."""
    return FEWEST_IMAGES * images[0, 0].numel() <= PIXELS


def varied(augmentation: str) -> BatchFunction:
    """How images are varied: as training would, but with borders that are parts of the image.

    The float network learned from black ones, but children that learn from its answers end better without.
    """
    return AUGMENTATIONS[_WITHOUT_BORDERS.get(augmentation, augmentation)].of_images


_WITHOUT_BORDERS = {"crop-flip": "reflected-crop-flip"}


def learn_answers(
    network: MultiBitNetwork,
    images: Tensor,
    children: Sequence[Child],
    steps: int,
    rate: float,
    vary: BatchFunction,
    report: Report,
) -> None:
    """Takes steps on all weights that are `LearnedWeights`, children in turn.

    Layers have the moments that the float network has on the same images, because statistics will be matched so.

    Args:
        network: whose normalizations hold the float network's statistics.
        images: ``(N, C, H, W)``, normalised.
        children: that learn.
        steps: that a block would take.
        rate: of learning, in units of a channel's largest weight.
        vary: changes images as training would.
        report: receives progress.
    """
    layers = dict(network.layers)
    learned = [layer for layer in layers.values() if isinstance(layer.quantizer, LearnedWeights)]
    pixels = images[0, 0].numel()
    batch = min(len(images), max(FEWEST_IMAGES, min(MOST_IMAGES, PIXELS // pixels)))
    count = round(STEPS * steps * min(1, PIXELS / (batch * pixels)))
    random = torch.Generator().manual_seed(0)
    before = network.child
    told = paced(range(count), "all layers learn together, steps", report)
    for step, _ in zip(descent(learned, rate, count, PULL), told, strict=True):
        shown = vary(images[torch.randint(len(images), (batch,), generator=random)], random)
        with network.at(FLOAT), torch.no_grad(), moments_noted(layers) as moments:
            wanted = F.log_softmax(network(shown), 1)
        network.use(children[step % len(children)])
        with matched(network, layers, moments):
            found = F.log_softmax(network(shown), 1)
        F.kl_div(found, wanted, reduction="batchmean", log_target=True).backward()
    network.use(before)

"""The last stage of Any-Precision (arXiv 1911.07346): the private norms of children that training never visited."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from emqdeploy.format.child import Child
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import PrivateNorm
from emqdeploy.training.batches import BatchRequest, ImageSource
from emqdeploy.training.forward import forward_of
from emqdeploy.training.settings import CommonOptions
from emqdeploy.training.steps import Epoch, interleaved


def calibrate(
    network: MultiBitNetwork,
    source: ImageSource,
    children: Sequence[Child],
    epochs: int,
    learning_rate: float,
    common: CommonOptions,
) -> int:
    """Trains the private norms of children that training never visited, and nothing else (Any-Precision's stage).

    Args:
        network: with private norms.
        source: training images.
        children: those to calibrate.
        epochs: passes of each over the images.
        learning_rate: of plain momentum, annealed to zero.
        common: options of the run: its batches, their order, its arithmetic.

    Returns:
        images that went forward and backward.
    """
    norms = [norm for norm in network.norms.values() if isinstance(norm, PrivateNorm)]
    learned = {id(parameter) for norm in norms for parameter in (norm.child_weight, norm.child_bias)}
    frozen = [p for p in network.parameters() if p.requires_grad and id(p) not in learned]
    for parameter in frozen:
        parameter.requires_grad_(False)
    for norm in norms:
        norm.start(children)
    passes, seed = 0, common.seed
    subsets = {child: np.arange(len(source)) for child in children}
    forward = forward_of(common, network, children, source.labels.device, alone=True)
    plans = [interleaved.plan(Epoch(subsets, common.batch_size, seed, epoch, epochs)) for epoch in range(epochs)]
    steps = [step for plan in plans for step in plan]
    optimizer = torch.optim.SGD([p for norm in norms for p in (norm.child_weight, norm.child_bias)], learning_rate, 0.9)
    requests = (BatchRequest(step.indices, hash((seed, -1, index)) & (2**63 - 1)) for index, step in enumerate(steps))
    network.train()
    for index, (step, images) in enumerate(zip(steps, source.stream(requests), strict=True)):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - index / len(steps))
        optimizer.zero_grad(set_to_none=True)
        labels = source.labels[torch.from_numpy(step.indices).to(source.labels.device)]
        CLASSIFICATION.losses(forward(step.children[0], images).float(), labels).mean().backward()
        optimizer.step()
        passes += len(step.indices)
    for parameter in frozen:
        parameter.requires_grad_(True)
    return passes

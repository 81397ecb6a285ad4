"""How curved the loss is in the weights of each layer: the trace of the Hessian by Hutchinson's estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from emqdeploy.errors import EmqError
from emqdeploy.format.child import FLOAT
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.norms import undisturbed


def mean_traces(
    network: MultiBitNetwork, images: Tensor, labels: Tensor, probes: int, seed: int | tuple[int, ...] = 0
) -> dict[str, float]:
    """Mean diagonal entry of the Hessian of the float network's loss, per switchable layer.

    ``E[v^T H v]`` over random signs ``v`` is the trace; here it is divided by the number of weights (HAWQ-V2, arXiv
    1911.03852). The float network, because the quantized one is flat almost everywhere.

    Args:
        network: its statistics stay as they are; batch statistics normalize.
        images: normalised, ``(N, C, H, W)``.
        labels: of the images, ``(N,)``.
        probes: how many ``v`` to average.
        seed: of the signs.

    Raises:
        EmqError: an operator of the network has no second derivative.
    """
    weights = [network.layers[name].weight for name in network.switchable]
    random = torch.Generator().manual_seed(hash(seed) & (2**63 - 1))
    totals = [0.0] * len(weights)
    with undisturbed(network), torch.random.fork_rng(), network.at(FLOAT):
        try:
            loss = CLASSIFICATION.losses(network(images), labels).mean()
            gradients = torch.autograd.grad(loss, weights, create_graph=True)
            for _ in range(probes):
                signs = [_signs(weight, random) for weight in weights]
                products = torch.autograd.grad(gradients, weights, signs, retain_graph=True)
                for place, (sign, product) in enumerate(zip(signs, products, strict=True)):
                    totals[place] += float((sign * product).sum())
        except RuntimeError as error:
            raise EmqError(
                f"the network has an operator without a second derivative, which traces of its Hessian need: {error};"
                " use --method emqnet --step-plan mixed, which needs none"
            ) from error
    means = (total / (probes * weight.numel()) for total, weight in zip(totals, weights, strict=True))
    return dict(zip(network.switchable, means, strict=True))


def _signs(weight: Tensor, random: torch.Generator) -> Tensor:
    """As many signs as there are weights, the same on every device."""
    return (2.0 * torch.randint(0, 2, weight.shape, generator=random) - 1.0).to(weight)

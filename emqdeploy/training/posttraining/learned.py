"""Weights that a network without labels learns again, beside its own: where they are kept, and how they take steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.format.child import MASTER_BITS
from emqdeploy.quant.families.base import QuantizedWeight, WeightQuantizer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.watching import hooked

PULL = 4.0
"""Towards the float weights, as decoupled decay: at most 1 / PULL of a channel's largest weight is ever gone.

Without it 8 bits end as another network of about the same accuracy.
"""


class LearnedWeights(WeightQuantizer):
    """Another quantizer, shown weights of its own in the place of the layer's, which start as those.

    Args:
        quantizer: the one that quantizes.
        weight: of the layer, ``(C, ...)``.

    Attributes:
        latent: what is learned, in units of each channel's largest weight at the start; within -1 and 1.
    """

    peak: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor) -> None:
        super().__init__(quantizer.limit)
        self.kind = quantizer.kind
        self.quantizer = quantizer
        column = (-1,) + (1,) * (weight.dim() - 1)
        peak = weight.detach().reshape(len(weight), -1).abs().amax(1).clamp(min=1e-30).reshape(column)
        self.register_buffer("peak", peak, persistent=False)
        self.latent = nn.Parameter(weight.detach() / peak, requires_grad=False)

    @torch.no_grad()
    def settle(self, weight: Tensor, bits: int) -> None:
        """Goes back towards the layer's weights as far as codes of so many bits stay, for the sake of wider ones."""

        def codes(latent: Tensor) -> Tensor:
            return (self.quantizer(latent * self.peak, bits).codes / 2.0 ** (MASTER_BITS - bits)).floor()

        learned, start = self.latent.clone(), weight / self.peak
        wanted = codes(learned)
        near, far = torch.zeros_like(learned), torch.ones_like(learned)
        for _ in range(MASTER_BITS):
            middle = (near + far) / 2
            same = codes(torch.lerp(learned, start, middle)) == wanted
            near, far = torch.where(same, middle, near), torch.where(same, far, middle)
        self.latent.copy_(torch.where(codes(start) == wanted, start, torch.lerp(learned, start, near)))

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Quantizes the weights that were learned."""
        return self.quantizer(self.latent * self.peak, bits)


@dataclass(frozen=True)
class Moments:
    """Mean and standard deviation of every output channel of a layer in the float network, shaped like its output."""

    mean: Tensor
    deviation: Tensor


def _axes(output: Tensor, layer: nn.Module) -> tuple[int, ...]:
    """All but that of the channels: ``(N, C, H, W)`` of a convolution, else ``(..., C)``."""
    return (0, 2, 3) if isinstance(layer, nn.Conv2d) else tuple(range(output.dim() - 1))


def moments_of(layer: nn.Module, outputs: list[Tensor]) -> Moments:
    """Of what a layer gives, in parts."""
    axes = _axes(outputs[0], layer)
    mean, square = torch.stack(
        [torch.stack([part.mean(axes, True), part.square().mean(axes, True)]).double() for part in outputs]
    ).mean(0)
    return Moments(mean.float(), (square - mean.square()).clamp(min=0).sqrt().float())


@contextmanager
def moments_noted(layers: Mapping[str, nn.Module]) -> Iterator[dict[str, Moments]]:
    """Keeps the moments of what layers give, by name."""
    found: dict[str, Moments] = {}

    def note(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, _: Any, output: Tensor) -> None:
            found[name] = moments_of(layer, [output])

        return hook

    with hooked({layer: note(name) for name, layer in layers.items()}):
        yield found


@contextmanager
def matched(
    network: MultiBitNetwork, layers: Mapping[str, nn.Module], moments: Mapping[str, Moments]
) -> Iterator[None]:
    """Gives layers the moments that they have in the float network: statistics and bias correction will do so later.

    Without a normalization behind a layer nothing will scale it, and only its mean is set.
    """

    def match(name: str) -> Callable[[nn.Module, Any, Tensor], Tensor]:
        wanted, scaled = moments[name], name in network.norm_of

        def hook(layer: nn.Module, _: Any, output: Tensor) -> Tensor:
            if not scaled:
                return output - output.mean(_axes(output, layer), True) + wanted.mean
            values = output if isinstance(layer, nn.Conv2d) else output.flatten(0, -2)
            deviation, mean = wanted.deviation.flatten(), wanted.mean.flatten()
            # torch.nn.functional's refuses a channel with one value, as a single image has behind a pooling. The
            # epsilon is far below those of normalizations, and enough for float32 where a channel does not vary.
            return torch.batch_norm(values, deviation, mean, None, None, True, 0.0, 1e-8, False).view_as(output)

        return hook

    with hooked({layer: match(name) for name, layer in layers.items()}):
        yield


def descent(layers: Sequence[Any], rate: float, steps: int, pull: float = PULL) -> Iterator[int]:
    """Steps of Adam on what layers with `LearnedWeights` learn; whoever walks through them sends an error backward.

    Args:
        layers: that learn.
        rate: of learning, in units of a channel's largest weight; annealed to zero.
        steps: how many.
        pull: towards the float weights, as decoupled decay.
    """
    weights = [layer.quantizer.latent.requires_grad_() for layer in layers]
    floats = [layer.weight.detach() / layer.quantizer.peak for layer in layers]
    optimizer = torch.optim.Adam(weights, rate)
    for step in range(steps):
        (group,) = optimizer.param_groups
        group["lr"] = rate * (1 - step / steps)
        optimizer.zero_grad(set_to_none=True)
        yield step
        optimizer.step()
        with torch.no_grad():
            for weight, float_ in zip(weights, floats, strict=True):
                weight.lerp_(float_, pull * group["lr"])
                weight.clamp_(-1, 1)  # one channel beyond would take levels from all the others
    for weight in weights:
        weight.requires_grad_(False)

"""The plainest 8-bit network that there is, as a yardstick: smallest and largest values decide everything.

Weights are symmetric per output channel, 127 steps of the largest one, with the normalization folded in; activations
are asymmetric, 256 levels between the smallest and the largest value of the calibration images; biases stay in float.
Quantizers stand where the product puts them, so that what differs is how they quantize. No integer kernel of every
target computes this exactly: products of 255 and 127 saturate some, and others take no zero point.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.format.grid import Floats
from emqdeploy.quant.activations import ActivationQuantizer
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.layers import QuantLayer
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.norms import run_all

EIGHT = Child.of(8)


class NaiveLayer(nn.Module):
    """A convolution or linear layer with rounded weights and the normalization behind it folded in."""

    def __init__(self, layer: QuantLayer, gain: Tensor, shift: Tensor) -> None:
        super().__init__()
        column = (-1,) + (1,) * (layer.weight.dim() - 1)
        weight = (layer.weight.double() * gain.reshape(column)).float()
        step = weight.flatten(1).abs().amax(1).clamp(min=1e-30).reshape(column) / 127
        self.weight = (weight / step).round() * step
        own = torch.zeros_like(shift) if layer.bias is None else layer.bias.double()
        self.bias = (own * gain + shift).float()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Computes the layer."""
        if isinstance(self.layer, nn.Conv2d):
            return self.layer._conv_forward(x, self.weight, self.bias)
        return F.linear(x, self.weight, self.bias)


class NaiveSite(nn.Module):
    """An activation tensor on 256 levels between its smallest and largest value, zero among them."""

    def __init__(self, low: float, high: float) -> None:
        super().__init__()
        self.step = max(high - low, 1e-12) / 255
        self.zero = round(-low / self.step)

    def forward(self, x: Tensor) -> Tensor:
        """Rounds and cuts."""
        return ((x / self.step).round().clamp(-self.zero, 255 - self.zero)) * self.step


@torch.no_grad()
def naive_int8(network: MultiBitNetwork, batches: Sequence[Tensor]) -> nn.Module:
    """Returns the naive 8-bit form of a network with float weights.

    Args:
        network: evaluated in float.
        batches: normalised images ``(N, C, H, W)`` that calibrate.
    """
    ranges = {name: [0.0, 0.0] for name in network.sites}

    def note(name: str, values: Tensor) -> None:
        low, high = ranges[name]
        ranges[name] = [min(low, float(values.min())), max(high, float(values.max()))]

    hooks = [
        site.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name, site in network.sites.items()
    ]
    run_all(network.eval(), batches, (FLOAT,))
    for hook in hooks:
        hook.remove()

    def layer(name: str, module: QuantLayer) -> nn.Module:
        gain, shift = torch.ones(len(module.weight)).double(), torch.zeros(len(module.weight)).double()
        if name in network.norm_of:
            gain, shift = network.norms[network.norm_of[name]].gain_and_shift(FLOAT)
        return NaiveLayer(module, gain, shift)

    def site(name: str, module: ActivationQuantizer) -> nn.Module:
        return NaiveSite(*ranges[name])

    return network.rebuild(layer, site, lambda name, site: nn.Identity()).eval()


@torch.no_grad()
def naive_snr(
    model: nn.Module, calibration: Sequence[Tensor], images: Tensor, insertion: InsertionConfig | None = None
) -> float:
    """Decibels of the naive 8-bit network's logits against the float model's.

    The signal is what differs between images: the mean of a class over them is none.

    Args:
        model: the float model, untouched.
        calibration: batches of normalised images ``(N, C, H, W)``.
        images: normalised images that measure.
        insertion: where quantizers stand.

    Raises:
        EmqError: quantizers cannot be inserted.
    """
    _, channels, height, width = images.shape
    reach = max(float(batch.abs().max()) for batch in calibration)
    network = insert_quantizers(model, insertion or InsertionConfig(), (EIGHT,), (), reach, (channels, height, width))
    naive = naive_int8(network, calibration)
    wanted, found = (torch.cat([one(batch) for batch in images.split(32)]) for one in (model.eval(), naive))
    return decibels(wanted.numpy(), found.numpy())


def decibels(wanted: Floats, found: Floats) -> float:
    """Signal to noise of logits ``(N, classes)``: what differs between images against what differs from the float."""
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    signal = np.square(wanted - wanted.mean(0)).sum()
    return float(10 * np.log10(signal / max(np.square(found - wanted).sum(), 1e-30)))

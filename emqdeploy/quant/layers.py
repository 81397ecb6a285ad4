"""Quantized convolution, linear and batch normalization: the float modules of a network, taught to switch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT_BITS
from emqdeploy.quant.families.base import PinnedQuantizer, QuantizedWeight, WeightQuantizer

SITES, ALIASES = "emq_sites._", "emq_aliases._"
"""What stands before the names of quantizers and of their repetitions in a graph: no model has such names itself."""


class QuantLayer(nn.Module):
    """What quantized convolution and linear layers share.

    Attributes:
        bits: weight width of the next forward pass; 32 computes in float.
        quantizer: how the weights are quantized.
        input_mean: mean of the tensor that the layer reads, measured after training; it turns what rounding left of a
            channel's mean weight into that width's bias.
    """

    weight: Tensor
    bias: Any
    input_mean: Tensor
    bits: int
    quantizer: WeightQuantizer

    @property
    def pinned(self) -> bool:
        """Whether the layer stays at 8 bits at every child."""
        return isinstance(self.quantizer, PinnedQuantizer)

    @property
    def fan_in(self) -> int:
        """Weights per output channel."""
        return self.weight[0].numel()

    def quantized(self, bits: int) -> QuantizedWeight:
        """Quantizes the weights at ``bits``."""
        return self.quantizer(self.weight, bits)

    def deployed_bias(self, quantized: QuantizedWeight) -> Tensor:
        """The bias at one bit-width ``(C,)``: the layer's own, and the mean that the integer grid could not hold."""
        missing = quantized.residual * self.fan_in * self.input_mean
        return missing if self.bias is None else self.bias + missing

    def weight_and_bias(self) -> tuple[Tensor, Tensor | None]:
        """The weights and bias of the next forward pass.

        In training the normalization behind the layer cancels any constant, so only evaluation adds the missing mean.
        """
        if self.bits == FLOAT_BITS:
            return self.weight, self.bias
        if self.training:
            return self.quantizer.value(self.weight, self.bits), self.bias
        quantized = self.quantized(self.bits)
        return quantized.value, self.deployed_bias(quantized)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution ``(N, C_in, H, W) -> (N, C_out, H', W')``."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves with the weights of the current bit-width."""
        weight, bias = self.weight_and_bias()
        return self._conv_forward(x, weight, bias)


class UnitConv2d(nn.Conv2d):
    """A depthwise 1x1 convolution with unit weights, before a normalization that follows no layer.

    It changes nothing; the normalization folds into its scales and biases, which makes an integer kernel of it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        return x


class QuantUnitConv2d(QuantLayer, UnitConv2d):
    """A `UnitConv2d` among the quantized layers."""


class QuantLinear(QuantLayer, nn.Linear):
    """A linear layer ``(..., K) -> (..., C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies with the weights of the current bit-width."""
        weight, bias = self.weight_and_bias()
        return F.linear(x, weight, bias)


class TrainingOnly(nn.Module):
    """What hands its input on in evaluation, and may do something else in training: dropout, stochastic depth.

    Args:
        act: the module or function of training.
    """

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x`` in evaluation."""
        return self.act(x) if self.training else x


class SameGrid(nn.Module):
    """Marks that values, moved but unchanged, are still on a site's grid; integer runtimes want to be told."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        return x


_QUANTIZED: dict[type[nn.Module], type[QuantLayer]] = {
    nn.Conv2d: QuantConv2d,
    nn.Linear: QuantLinear,
    UnitConv2d: QuantUnitConv2d,
}


def unit_layer(channels: int) -> UnitConv2d:
    """Returns a `UnitConv2d` without anything to learn or to save."""
    layer = UnitConv2d(channels, channels, 1, groups=channels, bias=False)
    del layer.weight
    layer.register_buffer("weight", torch.ones(channels, 1, 1, 1), persistent=False)
    return layer


def quantize_layer(module: nn.Module, quantizer: WeightQuantizer) -> QuantLayer:
    """Turns a float layer into its quantized form; parameters keep their names and identity."""
    layer = copy.copy(module)
    # Changing the class keeps every attribute that the float layer was built with, whatever version of torch built it.
    layer.__class__ = _QUANTIZED[type(module)]
    assert isinstance(layer, QuantLayer)
    layer._modules = dict(module._modules)
    layer._buffers = dict(module._buffers)
    layer.bits = FLOAT_BITS
    layer.quantizer = quantizer
    layer.register_buffer("input_mean", torch.zeros(()))
    return layer

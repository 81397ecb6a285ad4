"""Quantized convolution, linear and batch normalization: the float modules of a network, taught to switch bit-width."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.grid import MASTER_BITS
from emqdeploy.quant.activations import FLOAT_BITS
from emqdeploy.quant.weights import PinnedQuantizer, QuantizedWeight, WeightQuantizer


class QuantLayer(nn.Module):
    """What quantized convolution and linear layers share.

    Attributes:
        bits: the bit-width of the next forward pass; 32 computes in float.
        quantizer: how the weights are quantized.
        input_mean: mean of the tensor that the layer reads, measured after training; it turns what rounding left of a
            channel's mean weight into that bit-width's bias.
    """

    weight: Tensor
    bias: Any
    input_mean: Tensor
    bits: int
    quantizer: WeightQuantizer | PinnedQuantizer

    @property
    def pinned(self) -> bool:
        """Whether the layer stays at 8 bits at every bit-width."""
        return isinstance(self.quantizer, PinnedQuantizer)

    @property
    def fan_in(self) -> int:
        """Weights per output channel."""
        return self.weight[0].numel()

    def grid_bits(self, bits: int) -> int:
        """The bit-width that the layer's weights have when the network runs at ``bits``."""
        return MASTER_BITS if self.pinned else bits

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
        quantized = self.quantized(self.bits)
        return quantized.value, self.bias if self.training else self.deployed_bias(quantized)


class QuantConv2d(QuantLayer, nn.Conv2d):
    """A convolution ``(N, C_in, H, W) -> (N, C_out, H', W')``."""

    def forward(self, x: Tensor) -> Tensor:
        """Convolves with the weights of the current bit-width."""
        weight, bias = self.weight_and_bias()
        return self._conv_forward(x, weight, bias)


class QuantLinear(QuantLayer, nn.Linear):
    """A linear layer ``(..., K) -> (..., C)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Multiplies with the weights of the current bit-width."""
        weight, bias = self.weight_and_bias()
        return F.linear(x, weight, bias)


class MultiBitBatchNorm2d(nn.BatchNorm2d):
    """One batch normalization for every bit-width.

    Gain and shift are shared by all bit-widths. Running statistics are kept twice: shared, and per bit-width, which
    costs two numbers per channel and no gradient. Evaluation uses those of the current bit-width where they were
    estimated.
    """

    bits: int
    bit_mean: Tensor
    bit_var: Tensor
    estimated: Tensor
    running_mean: Tensor
    running_var: Tensor

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes ``(N, C, H, W)`` with batch statistics in training, else with the stored ones."""
        if not self.training:
            mean, var = self.statistics(self.bits)
            return F.batch_norm(x, mean, var, self.weight, self.bias, False, 0.0, self.eps)
        if self.bits > MASTER_BITS or self.momentum is None:
            return super().forward(x)
        mean, var = self.bit_mean[self.bits - 1], self.bit_var[self.bits - 1]
        normalized = F.batch_norm(x, mean, var, self.weight, self.bias, True, self.momentum, self.eps)
        self.estimated[self.bits - 1] = True
        # The shared statistics follow whichever bit-width was just trained: an average over the bit-widths in turn.
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(var, self.momentum)
        return normalized

    def statistics(self, bits: int) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(C,)`` that evaluation uses at ``bits``."""
        if bits <= MASTER_BITS and bool(self.estimated[bits - 1]):
            return self.bit_mean[bits - 1], self.bit_var[bits - 1]
        return self.running_mean, self.running_var

    def gain_and_shift(self, bits: int) -> tuple[Tensor, Tensor]:
        """Returns ``g`` and ``h`` of the evaluated map ``g x + h``, each ``(C,)`` in float64."""
        mean, var = (statistic.double() for statistic in self.statistics(bits))
        weight = torch.ones_like(mean) if self.weight is None else self.weight.double()
        shift = torch.zeros_like(mean) if self.bias is None else self.bias.double()
        gain = weight / torch.sqrt(var + self.eps)
        return gain, shift - gain * mean


class SameGrid(nn.Module):
    """Marks that values, moved but unchanged, are still on a site's grid; integer runtimes want to be told."""

    def __init__(self, site: str) -> None:
        super().__init__()
        self.site = site

    def forward(self, x: Tensor) -> Tensor:
        """Returns ``x``."""
        return x


def quantize_layer(module: nn.Conv2d | nn.Linear, quantizer: WeightQuantizer | PinnedQuantizer) -> QuantLayer:
    """Turns a float layer into its quantized form; parameters keep their names and identity."""
    layer = copy.copy(module)
    # Changing the class keeps every attribute that the float layer was built with, whatever version of torch built it.
    layer.__class__ = QuantConv2d if isinstance(module, nn.Conv2d) else QuantLinear
    assert isinstance(layer, QuantLayer)
    layer._modules = dict(module._modules)
    layer._buffers = dict(module._buffers)
    layer.bits = FLOAT_BITS
    layer.quantizer = quantizer
    layer.register_buffer("input_mean", torch.zeros(()))
    return layer


def quantize_norm(module: nn.BatchNorm2d) -> MultiBitBatchNorm2d:
    """Turns a batch normalization into its multi-bit form; parameters keep their names and identity."""
    norm = copy.copy(module)
    norm.__class__ = MultiBitBatchNorm2d
    assert isinstance(norm, MultiBitBatchNorm2d)
    norm._buffers = dict(module._buffers)
    norm.bits = FLOAT_BITS
    channels = module.num_features
    norm.register_buffer("bit_mean", torch.zeros(MASTER_BITS, channels))
    norm.register_buffer("bit_var", torch.ones(MASTER_BITS, channels))
    norm.register_buffer("estimated", torch.zeros(MASTER_BITS, dtype=torch.bool))
    return norm

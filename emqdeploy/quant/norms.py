"""Batch normalization that serves every bit-width, under several policies of what the bit-widths share.

A policy is a class registered by name. All of them answer the same three questions: how to normalize now, which
statistics evaluation uses at a bit-width, and which gain and shift export folds there.
"""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emqdeploy.grid import ALL_BITS, MASTER_BITS
from emqdeploy.quant.activations import FLOAT_BITS
from emqdeploy.registry import Registry


class MultiBitBatchNorm2d(nn.BatchNorm2d):
    """A batch normalization ``(N, C, H, W) -> (N, C, H, W)`` with a bit state; subclasses are the policies.

    Running statistics exist twice: shared, and per bit-width (two numbers a channel, no gradient). Evaluation uses
    those of the current bit-width where they were estimated, else the shared ones.

    Attributes:
        bits: the bit-width of the layer before it, in the next forward pass.
        source_bits: the bit-width of the layer before that one; it differs from ``bits`` in mixed precision only.
        pool: adds up moments over the processes that share a batch, where they normalize it together.
    """

    pool: Callable[[Tensor], Tensor] | None = None
    bits: int
    source_bits: int
    bit_mean: Tensor
    bit_var: Tensor
    estimated: Tensor
    running_mean: Tensor
    running_var: Tensor

    def attach(self, trained_bits: tuple[int, ...]) -> None:
        """Adds what the policy keeps per bit-width; called once, when the float normalization is converted."""
        self.bits = self.source_bits = FLOAT_BITS
        self.register_buffer("bit_mean", torch.zeros(MASTER_BITS, self.num_features))
        self.register_buffer("bit_var", torch.ones(MASTER_BITS, self.num_features))
        self.register_buffer("estimated", torch.zeros(MASTER_BITS, dtype=torch.bool))

    def _initial_affine(self) -> tuple[Tensor, Tensor]:
        """Gain and shift of the float normalization, ``(C,)``; 1 and 0 where it learns none."""
        ones = torch.ones(self.num_features)
        weight = ones if self.weight is None else self.weight.detach()
        return weight, torch.zeros_like(ones) if self.bias is None else self.bias.detach()

    def affine_at(self, bits: int) -> tuple[Tensor | None, Tensor | None]:
        """Learned gain and shift ``(C,)`` at ``bits``."""
        return self.weight, self.bias

    def tracked(self, bits: int) -> tuple[Tensor, Tensor]:
        """The running mean and variance ``(C,)`` that a training pass at ``bits`` updates."""
        return self.running_mean, self.running_var

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes with batch statistics in training, else with the stored ones."""
        gain, shift = self.affine_at(self.bits)
        if not self.training:
            mean, var = self.statistics(self.bits)
            return F.batch_norm(x, mean, var, gain, shift, False, 0.0, self.eps)
        if self.bits > MASTER_BITS or self.momentum is None:
            return self._average(x, gain, shift)
        mean, var = self.tracked(self.bits)
        return self._by_batch(x, mean, var, gain, shift, self.momentum)

    def _average(self, x: Tensor, gain: Tensor | None, shift: Tensor | None) -> Tensor:
        """Batch statistics go into the shared ones: as a moving average, or as a plain one without momentum."""
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        factor = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        return self._by_batch(x, self.running_mean, self.running_var, gain, shift, factor)

    def _by_batch(
        self, x: Tensor, mean: Tensor, var: Tensor, gain: Tensor | None, shift: Tensor | None, factor: float
    ) -> Tensor:
        """Normalizes with the statistics of the batch, towards which the running ones move by ``factor``."""
        if self.pool is None:
            return F.batch_norm(x, mean, var, gain, shift, True, factor, self.eps)
        own_var, own_mean = torch.var_mean(x.float(), (0, 2, 3), correction=0)
        moments = torch.stack([own_mean.double(), own_var.double() + own_mean.double().square()])
        count = x.numel() / self.num_features
        total = self.pool(torch.cat([moments.flatten(), moments.new_ones(1)]) * count)
        values, (first, second) = total[-1], (total[:-1] / total[-1]).view(2, -1)
        batch_mean, batch_var = first.float(), (second - first.square()).float()
        with torch.no_grad():
            mean.lerp_(batch_mean, factor)
            var.lerp_(batch_var * (values / (values - 1)).float(), factor)
        scale = torch.rsqrt(batch_var + self.eps)
        scale = scale if gain is None else scale * gain
        offset = -batch_mean * scale if shift is None else shift - batch_mean * scale
        return (x * scale.view(1, -1, 1, 1) + offset.view(1, -1, 1, 1)).to(x.dtype)

    def statistics(self, bits: int) -> tuple[Tensor, Tensor]:
        """Mean and variance ``(C,)`` that evaluation uses at ``bits``."""
        if bits <= MASTER_BITS and bool(self.estimated[bits - 1]):
            return self.bit_mean[bits - 1], self.bit_var[bits - 1]
        return self.running_mean, self.running_var

    def gain_and_shift(self, bits: int) -> tuple[Tensor, Tensor]:
        """Returns ``g`` and ``h`` of the evaluated map ``g x + h``, each ``(C,)`` in float64."""
        mean, var = (statistic.double() for statistic in self.statistics(bits))
        weight, bias = self.affine_at(bits)
        gain = (torch.ones_like(mean) if weight is None else weight.double()) / torch.sqrt(var + self.eps)
        return gain, (torch.zeros_like(mean) if bias is None else bias.double()) - gain * mean


NORMS: Registry[type[MultiBitBatchNorm2d]] = Registry("norm")


@NORMS.register("shared")
class SharedNorm(MultiBitBatchNorm2d):
    """One gain, one shift and one set of running statistics for every bit-width (EMQNet, arXiv 2510.20673)."""


@NORMS.register("shared-affine")
class SharedAffineNorm(MultiBitBatchNorm2d):
    """Gain and shift are shared, running statistics are kept per bit-width as training goes."""

    def tracked(self, bits: int) -> tuple[Tensor, Tensor]:
        """Row ``bits`` of the statistics per bit-width."""
        return self.bit_mean[bits - 1], self.bit_var[bits - 1]

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes; in training the shared statistics follow whichever bit-width was just trained."""
        output = super().forward(x)
        if self.training and self.bits <= MASTER_BITS and self.momentum is not None:
            mean, var = self.tracked(self.bits)
            self.estimated[self.bits - 1] = True
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
        return output


@NORMS.register("private")
class PrivateNorm(SharedAffineNorm):
    """Everything per bit-width: gain, shift and statistics (Any-Precision DNNs, arXiv 1911.07346; AdaBits).

    A bit-width that was neither trained nor calibrated borrows gain and shift of the nearest one that was.
    """

    learned: Tensor

    def attach(self, trained_bits: tuple[int, ...]) -> None:
        """Adds one gain and shift per bit-width."""
        super().attach(trained_bits)
        weight, bias = self._initial_affine()
        self.bit_weight = nn.Parameter(weight.repeat(MASTER_BITS, 1))
        self.bit_bias = nn.Parameter(bias.repeat(MASTER_BITS, 1))
        self.register_buffer("learned", torch.tensor([bits in trained_bits for bits in ALL_BITS]))

    @torch.no_grad()
    def start(self, widths: tuple[int, ...]) -> None:
        """Starts bit-widths without gain and shift of their own from what they borrow, to be learned from now on."""
        borrowed = {bits: self._row(bits) for bits in widths}
        for bits, row in borrowed.items():
            self.bit_weight[bits - 1] = self.bit_weight[row]
            self.bit_bias[bits - 1] = self.bit_bias[row]
            self.learned[bits - 1] = True

    def _row(self, bits: int) -> int:
        known = [width for width in ALL_BITS if self.learned[width - 1]] or [bits]
        return min(known, key=lambda width: (abs(width - bits), -width)) - 1

    def affine_at(self, bits: int) -> tuple[Tensor | None, Tensor | None]:
        """The row of ``bits``, or of the nearest bit-width that has learned one (the wider of two)."""
        if bits > MASTER_BITS:
            return self.weight, self.bias
        row = bits - 1 if self.training or self.learned[bits - 1] else self._row(bits)
        return self.bit_weight[row], self.bit_bias[row]


@NORMS.register("transitional")
class TransitionalNorm(MultiBitBatchNorm2d):
    """Everything per pair of bit-widths, of the layer before and the layer before that (Bit-Mixer, arXiv 2103.17267).

    With one bit-width for the whole network only the pairs ``(b, b)`` are used; the others are what a network needs in
    which every layer has a bit-width of its own (step plan ``mixed``).
    """

    learned: Tensor
    pair_mean: Tensor
    pair_var: Tensor

    def attach(self, trained_bits: tuple[int, ...]) -> None:
        """Adds gain, shift and statistics per pair, indexed ``[source, own]``."""
        super().attach(trained_bits)
        pairs = (MASTER_BITS, MASTER_BITS, self.num_features)
        weight, bias = self._initial_affine()
        self.pair_weight = nn.Parameter(weight.expand(pairs).clone())
        self.pair_bias = nn.Parameter(bias.expand(pairs).clone())
        self.register_buffer("pair_mean", torch.zeros(pairs))
        self.register_buffer("pair_var", torch.ones(pairs))
        self.register_buffer("learned", torch.zeros(pairs[:2], dtype=torch.bool))

    def _pair(self, bits: int) -> tuple[int, int]:
        """The pair that serves ``bits`` now, or the nearest one that was trained."""
        source = self.source_bits if bits == self.bits and self.source_bits <= MASTER_BITS else bits
        pair = (source - 1, bits - 1)
        known = self.learned.nonzero().tolist()
        if self.training or not known or self.learned[pair]:
            return pair
        nearest = min(known, key=lambda other: abs(other[0] - pair[0]) + abs(other[1] - pair[1]))
        return nearest[0], nearest[1]

    def affine_at(self, bits: int) -> tuple[Tensor | None, Tensor | None]:
        """Gain and shift of the current pair."""
        if bits > MASTER_BITS:
            return self.weight, self.bias
        pair = self._pair(bits)
        return self.pair_weight[pair], self.pair_bias[pair]

    def tracked(self, bits: int) -> tuple[Tensor, Tensor]:
        """Statistics of the current pair."""
        pair = self._pair(bits)
        return self.pair_mean[pair], self.pair_var[pair]

    def statistics(self, bits: int) -> tuple[Tensor, Tensor]:
        """Those estimated for ``bits`` where there are any, else those of the current pair."""
        if bits > MASTER_BITS or bool(self.estimated[bits - 1]) or not self.learned.any():
            return super().statistics(bits)
        return self.tracked(bits)

    def forward(self, x: Tensor) -> Tensor:
        """Normalizes and remembers which pairs were trained."""
        output = super().forward(x)
        if self.training and self.bits <= MASTER_BITS and self.momentum is not None:
            pair = self._pair(self.bits)
            self.learned[pair] = True
            self.running_mean.lerp_(self.pair_mean[pair], self.momentum)
            self.running_var.lerp_(self.pair_var[pair], self.momentum)
        return output


def quantize_norm(module: nn.BatchNorm2d, policy: str, trained_bits: tuple[int, ...]) -> MultiBitBatchNorm2d:
    """Turns a batch normalization into its multi-bit form; parameters keep their names and identity."""
    norm = copy.copy(module)
    norm.__class__ = NORMS[policy]
    assert isinstance(norm, MultiBitBatchNorm2d)
    norm._parameters = dict(module._parameters)
    norm._buffers = dict(module._buffers)
    norm.attach(trained_bits)
    return norm

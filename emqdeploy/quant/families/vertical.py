"""The family of vertical layers (arXiv 2212.05326): codes of one step, read as deep as a width asks, a scale for each.

The widest width that trains has ``c = clip(round(w / s))``. Every narrower code is made from the next wider one by
leaving out its last bit, ``c_{b-1} = floor(c_b / 2)``, so a basic layer of bits and one more for every precision hold
them all, and a chain of floors is one shift. What a code stands for is learned by each width alone, ``w_b = s_b c_b``:
a floor is half a step too low on average, and a scale of its own gives a width that it is worth.

Reconstructed, because the abstract and quoted figures could be read: the gradient. Here the weights get it straight
through, inside of the range of the widest; the widest width's scale, by which all codes are made, learns as a step of
LSQ does, and from its own passes only; another scale gets what it gives, ``dw_b / ds_b = c_b``.

Deployed, ``z = c_b``: the grid's slope is 1 and its offset 0. -128 is left out, because no kernel holds it. Where
``2^(b-1)`` exceeds what the kernel that reads the layer's input can hold, the layer uses one bit less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emqdeploy.format.child import MASTER_BITS
from emqdeploy.quant.families.base import QUANTIZERS, QuantizedWeight
from emqdeploy.quant.families.double_rounding import reach_of
from emqdeploy.quant.families.lsq import LsqOptions, LsqQuantizer


@QUANTIZERS.register("vertical")
@dataclass(frozen=True)
class VerticalOptions(LsqOptions):
    """How scales are learned, as in LSQ."""

    name = "vertical"

    @property
    def nested(self) -> bool:
        """A narrower code is a prefix of a wider one."""
        return True

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> VerticalQuantizer:
        """Makes the quantizer of a layer; see `VerticalQuantizer.start_from`."""
        return VerticalQuantizer(self, weight, limit, widths)


class _OwnScale(torch.autograd.Function):
    """``codes * scale``, the scale's gradient scaled by ``g``; weights outside of the widest range have none."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, codes: Tensor, steps: Tensor, low: int, high: int, grad_scale: float
    ) -> Tensor:
        ctx.save_for_backward(steps, codes)
        ctx.limits, ctx.grad_scale, ctx.scale_shape = (low, high), grad_scale, scale.shape
        return codes * scale

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, codes = ctx.saved_tensors
        along = (grad * codes).sum_to_size(ctx.scale_shape) * ctx.grad_scale
        return torch.ops.aten.hardtanh_backward(grad, steps, *ctx.limits), along, None, None, None, None, None


class VerticalQuantizer(LsqQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at its widths; ``step`` holds the scale of each."""

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Starts every scale where codes reach as far as the mean and three standard deviations.

        Where LSQ starts, 8 bits reach five times as far, and all prefixes of few bits would be alike.
        """
        reach = reach_of(weight, self.step.shape[1])
        for scale, bits in zip(self.step, self.widths, strict=True):
            scale.copy_(reach / 2 ** (self._range(bits)[2] - 1))

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        value = self.value(weight, bits)
        with torch.no_grad():
            scale = self._step(weight, bits).reshape(-1).expand(len(weight))
            used, widest = self._range(bits)[2], self._range(self.widths[-1])[2]
            # Prefixes are taken from the widest code, whichever width asks.
            codes = (self._widest(weight) + 2 ** (widest - 1)) * 2 ** (MASTER_BITS - widest)
            ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
        return QuantizedWeight(value, codes, scale, ones, zeros, ones * used, zeros)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        if bits == self.widths[-1]:
            return super().value(weight, bits)
        low, high, widest = self._range(self.widths[-1])
        _, most, used = self._range(bits)
        with torch.no_grad():
            codes = (self._widest(weight) / 2 ** (widest - used)).floor()
            steps = weight / self._step(weight, self.widths[-1])
        scale = self._step(weight, bits)
        grad_scale = 1 / math.sqrt(weight.numel() / scale.numel() * most)
        value: Tensor = _OwnScale.apply(weight, scale, codes, steps, low, high, grad_scale)
        return value

    def _widest(self, weight: Tensor) -> Tensor:
        """``c`` of the widest width."""
        low, high, _ = self._range(self.widths[-1])
        return (weight / self._step(weight, self.widths[-1])).round().clamp(low, high)

"""The family of learned step sizes (LSQ: Esser et al., arXiv 1902.08153): an integer grid with a zero.

``v = round(clamp(w / s, -Q_N, Q_P))`` with ``Q_N = 2^(b-1)``, ``Q_P = 2^(b-1) - 1`` and a learned step ``s`` per width
and output channel, or per width and layer. Codes of two widths are rounded by two steps, so they do not nest.

Deployed, ``z = v``: the grid's slope is 1 and its offset 0. Where ``2^(b-1)`` exceeds what the kernel that reads the
layer's input can hold, the range ends there, or the layer uses one bit less.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.grid import INTEGER, SMALLEST_SCALE, Kind
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, FamilyOptions, QuantizedWeight, WeightQuantizer


@QUANTIZERS.register("lsq")
@dataclass(frozen=True)
class LsqOptions(FamilyOptions):
    """How steps are learned.

    Attributes:
        step: one step per output ``channel`` or, as in the paper, per ``layer``.
    """

    name = "lsq"
    widths = range(2, 9)
    between = False
    step: str = option(
        "layer", "LSQ: one learned step per layer or per channel.", flag="lsq-step", panel="Quantization"
    )

    def __post_init__(self) -> None:
        """Checks the choice."""
        if self.step not in ("layer", "channel"):
            raise UsageError(f"unknown step {self.step!r}; allowed: layer, channel")

    @property
    def nested(self) -> bool:
        """Every width has a step of its own."""
        return False

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> LsqQuantizer:
        """Makes the quantizer of a layer, its steps ``2 E|w| / sqrt(Q_P)`` (section 2.1)."""
        return LsqQuantizer(self, weight, limit, widths)

    def by_layer(self) -> LsqOptions:
        """The same with one step per layer."""
        return replace(self, step="layer")


class _LearnedStep(torch.autograd.Function):
    """``s round(clamp(w / s))`` with the gradient of eq. 3 for the step, scaled by ``g``."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, step: Tensor, low: int, high: int, grad_scale: float) -> Tensor:
        steps = weight / step
        integers = steps.round().clamp(low, high)
        ctx.save_for_backward(steps, integers)
        ctx.limits = (low, high)
        ctx.grad_scale = grad_scale
        ctx.step_shape = step.shape
        return integers * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        steps, integers = ctx.saved_tensors
        low, high = ctx.limits
        # The first argument where the second is inside the limits, else 0.
        inside = torch.ops.aten.hardtanh_backward
        slope = integers - inside(steps, steps, low, high)
        along = (grad * slope).sum_to_size(ctx.step_shape) * ctx.grad_scale
        return inside(grad, steps, low, high), along, None, None, None


class LsqQuantizer(WeightQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at its widths.

    Args:
        options: of the family.
        weight: the float weights, from which the steps start.
        limit: the largest ``|z|``.
        widths: those that have a step.

    Attributes:
        step: ``(widths, C or 1)``.
    """

    kind: Kind = INTEGER

    def __init__(self, options: LsqOptions, weight: Tensor, limit: int, widths: tuple[int, ...]) -> None:
        super().__init__(limit)
        self.family = options.name
        self.widths = tuple(sorted(widths))
        self.step = nn.Parameter(weight.new_zeros(len(self.widths), len(weight) if options.step == "channel" else 1))
        self.start_from(weight.detach())

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Starts the steps at ``2 E|w| / sqrt(Q_P)`` (section 2.1)."""
        rows = weight.reshape(self.step.shape[1], -1).abs().mean(1)
        for step, bits in zip(self.step, self.widths, strict=True):
            step.copy_(2 * rows / math.sqrt(max(self._range(bits)[1], 1)))

    def _range(self, bits: int) -> tuple[int, int, int]:
        """``-Q_N``, ``Q_P`` and the bits of the code that the limit leaves."""
        used = bits
        while 2 ** (used - 1) - 1 > self.limit:
            used -= 1
        return -min(2 ** (used - 1), self.limit), 2 ** (used - 1) - 1, used

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        value = self.value(weight, bits)
        low, high, used = self._range(bits)
        with torch.no_grad():
            step = self._step(weight, bits)
            scale = step.reshape(-1).expand(len(weight))
            integers = (weight / step).round().clamp(low, high)
            codes = (integers + 2 ** (used - 1)) * 2 ** (MASTER_BITS - used)
            ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
        return QuantizedWeight(value, codes, scale, ones, zeros, ones * used, zeros)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        step = self._step(weight, bits)
        low, high, _ = self._range(bits)
        grad_scale = 1 / math.sqrt(weight.numel() / step.numel() * high)
        value: Tensor = _LearnedStep.apply(weight, step, low, high, grad_scale)
        return value

    def _step(self, weight: Tensor, bits: int) -> Tensor:
        """The learned step of a width, broadcastable to the weights."""
        if bits not in self.widths:
            have = ", ".join(map(str, self.widths))
            raise UsageError(
                f"quantizer {self.family!r} has learned no step for {bits} bits, it has {have}; train that width"
            )
        step = self.step[self.widths.index(bits)].clamp(min=SMALLEST_SCALE)
        return step.reshape((-1,) + (1,) * (weight.dim() - 1))

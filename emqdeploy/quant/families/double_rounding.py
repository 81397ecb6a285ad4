"""The family of twice rounded codes (Double Rounding: arXiv 2502.01199, section 3.1): one learned scale for all widths.

The 8-bit code is ``c_8 = clip(round(w / s))``, the code of ``l`` bits is made from it, not from the weight:
``c_l = clip(round(c_8 / 2^D))`` with ``D = 8 - l``, and stands for ``c_l s 2^D``. So whoever holds the 8-bit codes and
``s`` has every narrower network, as with a plain shift; but a shift takes the floor, which moves the mean by half a
step and has about four times the squared error.

A rounded code is no prefix of the wide one: the half step that would have to be added before a shift is another one for
every width, ``2^(D-1)``. Files hold prefixes, so there is one per weight setting. ``narrowing="floor"`` is the shift,
with which one file serves all; it is what the paper compares with.

Deployed, ``z = c_l``: the grid's slope is 1 and its offset 0. -128 is left out, because no kernel holds it. Where
``2^(l-1)`` exceeds what the kernel that reads the layer's input can hold, the layer uses one bit less.

Reconstructed from the authors' code: where ``s`` starts, and ``gradient="authors"``, LSQ's for the step ``s 2^D`` of
the width in use, given to ``s`` as it is. That moves ``s`` by ``2^D`` times the share by which LSQ moves a step, which
only small learning rates with ALRS bear (``lr_scale="quantizer=alrs"``). ``gradient="even"`` divides it by ``2^D``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.grid import INTEGER, SMALLEST_SCALE, Kind
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, QuantizedWeight, WeightQuantizer
from emqdeploy.quant.families.lsq import LsqOptions

HIGHEST = 2 ** (MASTER_BITS - 1) - 1
"""The largest magnitude of an 8-bit code."""

DEVIATIONS = 3
"""Codes first reach as far as the mean and so many standard deviations."""

NARROWINGS = {"round": torch.round, "floor": torch.floor}
GRADIENTS = ("even", "authors")


@QUANTIZERS.register("double-rounding")
@dataclass(frozen=True)
class DoubleRoundingOptions(LsqOptions):
    """How the scale is learned, and how narrower codes are made.

    Attributes:
        narrowing: ``round``, to the nearest code (halves to the even one), or ``floor``, the leading bits.
        gradient: of the scale: ``even``, by which every width moves it by a like share, or ``authors``.
    """

    name = "double-rounding"
    between = True
    narrowing: str = option(
        "round",
        "Double Rounding: round narrower codes (round), or cut them off so that they nest in one file (floor).",
        panel="Quantization",
    )
    gradient: str = option(
        "even",
        "Double Rounding: gradient of the learned scale: even (alike for every width) or authors (for use with ALRS).",
        flag="scale-gradient",
        panel="Quantization",
    )

    def __post_init__(self) -> None:
        """Checks the choices."""
        super().__post_init__()
        for field, choices in (("narrowing", tuple(NARROWINGS)), ("gradient", GRADIENTS)):
            if getattr(self, field) not in choices:
                raise UsageError(f"unknown {field} {getattr(self, field)!r}; allowed: {', '.join(choices)}")

    @property
    def nested(self) -> bool:
        """Whether a narrower code is a prefix of a wider one."""
        return self.narrowing == "floor"

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> DoubleRoundingQuantizer:  # type: ignore[override]
        """Makes the quantizer of a layer; one scale serves all widths."""
        return DoubleRoundingQuantizer(self, weight, limit)


class _SharedScale(torch.autograd.Function):
    """``codes * scale * 2^D`` with LSQ's gradient for the width in use; weights outside of its range have none."""

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, scale: Tensor, codes: Tensor, wider: int, low: int, high: int, grad_scale: float
    ) -> Tensor:
        ctx.save_for_backward(weight / (scale * wider), codes)
        ctx.limits, ctx.grad_scale, ctx.scale_shape = (low, high), grad_scale, scale.shape
        return codes * (scale * wider)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, codes = ctx.saved_tensors
        # The first argument where the second is inside the limits, else 0.
        inside = torch.ops.aten.hardtanh_backward
        slope = codes - inside(steps, steps, *ctx.limits)
        along = (grad * slope).sum_to_size(ctx.scale_shape) * ctx.grad_scale
        return inside(grad, steps, *ctx.limits), along, None, None, None, None, None


class DoubleRoundingQuantizer(WeightQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at any width from 2 to 8 bits.

    Args:
        options: of the family.
        weight: the float weights, from which the scale starts: ``max|mean +- 3 std| / 128``.
        limit: the largest ``|z|``.

    Attributes:
        step: the value of one step of the 8-bit codes, ``(C,)`` or ``(1,)``.
    """

    kind: Kind = INTEGER

    def __init__(self, options: DoubleRoundingOptions, weight: Tensor, limit: int) -> None:
        super().__init__(limit)
        self.narrow = NARROWINGS[options.narrowing]
        self.nested, self.even = options.nested, options.gradient == "even"
        self.per_channel = options.step == "channel"
        self.step = nn.Parameter(self._start(weight))

    @torch.no_grad()
    def start_from(self, weight: Tensor) -> None:
        """Begins with the scale that reaches as far as these weights do."""
        self.step.copy_(self._start(weight))

    def _start(self, weight: Tensor) -> Tensor:
        return reach_of(weight, len(weight) if self.per_channel else 1) / 2 ** (MASTER_BITS - 1)

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        value = self.value(weight, bits)
        used, wider = self._used(bits)
        with torch.no_grad():
            scale = self._scale(weight)
            wide = self._wide(weight, scale)
            # Prefixes are taken from the 8-bit code, whichever width asks.
            codes = (wide if self.nested else self._codes(wide, used) * wider) + 2 ** (MASTER_BITS - 1)
            steps = (scale * wider).reshape(-1).expand(len(weight))
            ones, zeros = torch.ones_like(steps), torch.zeros_like(steps)
        return QuantizedWeight(value, codes, steps, ones, zeros, ones * used, zeros)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        scale = self._scale(weight)
        used, wider = self._used(bits)
        with torch.no_grad():
            codes = self._codes(self._wide(weight, scale), used)
        low, high = self._range(used)
        grad_scale = 1 / math.sqrt(weight.numel() / scale.numel() * high) / (wider if self.even else 1)
        value: Tensor = _SharedScale.apply(weight, scale, codes, wider, low, high, grad_scale)
        return value

    def _scale(self, weight: Tensor) -> Tensor:
        """The learned scale, broadcastable to the weights."""
        return self.step.clamp(min=SMALLEST_SCALE).reshape((-1,) + (1,) * (weight.dim() - 1))

    def _wide(self, weight: Tensor, scale: Tensor) -> Tensor:
        """``c_8``."""
        return (weight / scale).round().clamp(-HIGHEST, HIGHEST)

    def _codes(self, wide: Tensor, used: int) -> Tensor:
        """``c_l`` of ``c_8``."""
        return self.narrow(wide / 2 ** (MASTER_BITS - used)).clamp(*self._range(used))

    def _used(self, bits: int) -> tuple[int, int]:
        """The bits of the code that the limit leaves, and how many steps of the 8-bit code one of theirs is."""
        used = min(bits, (self.limit + 1).bit_length())
        return used, 2 ** (MASTER_BITS - used)

    def _range(self, used: int) -> tuple[int, int]:
        """The smallest and the largest code."""
        return -min(2 ** (used - 1), HIGHEST), 2 ** (used - 1) - 1


def reach_of(weight: Tensor, scales: int) -> Tensor:
    """How far the codes of each scale first reach, in units of the weights."""
    rows = weight.detach().reshape(scales, -1)
    return rows.mean(1).abs() + DEVIATIONS * rows.std(1, correction=0)

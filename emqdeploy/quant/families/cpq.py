"""The family of cluster-promoting grids (CPQ: Lee et al., ICCV 2021, arXiv 2109.02100): an integer grid with a zero.

A weight in steps, ``u = w / s``, is moved by logistic noise and lies in the cell of a grid point ``k`` with the odds

    p_k = (S((k + 1/2 - u) / d) - S((k - 1/2 - u) / d)) / sum_j ...,   S the logistic function

(relaxed quantization, arXiv 1810.01875). Forward takes the likeliest point, so what is trained is what is deployed.
Backward is the multi-class straight-through estimator: the gradient of the mixture ``sum_k p_k k`` in the place of that
of the choice. It is large where two cells meet and small around a grid point, where weights therefore gather.

The step is learned per width and layer, or channel, by the same estimator. Only the abstract could be read: that the
odds of all points count (`mixture`) and not those of the chosen one alone (`mode`), and ``d``, are reconstructed.

Deployed, ``z = k`` as in `lsq`. A gate (`emqdeploy.training.methods.dropbits`) may weigh the points.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.grid import INTEGER, SMALLEST_SCALE, Kind
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, FamilyOptions, QuantizedWeight, WeightQuantizer

REACH = 12
"""Deviations of the noise beyond which a grid point is not looked at: its odds are below ``e^-12``."""

FURTHEST = 40
"""Deviations outside of the grid beyond which odds no longer depend on the weight, nor fit float32."""

_CHOICES = {"step": ("layer", "channel"), "estimator": ("mixture", "mode")}


@QUANTIZERS.register("cpq")
@dataclass(frozen=True)
class CpqOptions(FamilyOptions):
    """How steps are learned, and what stands for the gradient of a choice.

    Attributes:
        step: one step per output ``channel`` or per ``layer``.
        noise: deviation of the logistic noise, in steps.
        estimator: of the gradient: the ``mixture`` of all grid points, or the odds of the chosen one (``mode``).
    """

    name = "cpq"
    widths = range(2, 9)
    between = False
    step: str = option("layer", "CPQ: a learned step per layer or per channel.", flag="cpq-step", panel="Quantization")
    noise: float = option(
        1 / 3, "CPQ: deviation of the noise on weights, in steps.", flag="cpq-noise", panel="Quantization"
    )
    estimator: str = option(
        "mixture",
        "CPQ: gradient of all grid points' odds (mixture), or of the chosen one's (mode).",
        flag="cpq-estimator",
        panel="Quantization",
    )

    def __post_init__(self) -> None:
        """Checks the choices."""
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"--cpq-{field} is {getattr(self, field)!r}; allowed: {', '.join(allowed)}")
        if not 0.05 <= self.noise <= 2:
            raise UsageError(f"--cpq-noise is {self.noise}; allowed: 0.05 to 2 steps")

    @property
    def nested(self) -> bool:
        """Every width has a step of its own."""
        return False

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> CpqQuantizer:
        """Makes the quantizer of a layer, its steps ``2 E|w| / sqrt(Q_P)`` as those of LSQ."""
        return CpqQuantizer(self, weight, limit, widths)

    def by_layer(self) -> CpqOptions:
        """The same with one step per layer."""
        return replace(self, step="layer")


class _MostLikely(torch.autograd.Function):
    """``s k`` of the likeliest grid point; backward the multi-class straight-through estimator.

    ``mask (points,)`` multiplies the odds of each point of the grid from ``low`` to ``high``, None none.
    """

    @staticmethod
    def forward(
        ctx: Any, weight: Tensor, step: Tensor, mask: Tensor | None, low: int, high: int, noise: float, mode: bool
    ) -> Tensor:
        steps = weight / step
        if mask is None:
            chosen = steps.round().clamp(low, high)
        else:
            points, odds, _ = _cells(steps, low, high, noise)
            best = (odds * mask[(points - low).long()]).argmax(0, keepdim=True)
            chosen = points.gather(0, best).squeeze(0)
        ctx.save_for_backward(steps, step, chosen, mask)
        ctx.grid = (low, high, noise, mode)
        return chosen * step

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        steps, step, chosen, mask = ctx.saved_tensors
        low, high, noise, mode = ctx.grid
        points, plain, slopes = _cells(steps, low, high, noise)
        places = (points - low).long()
        odds = plain
        if mask is not None:
            odds, slopes = plain * mask[places], slopes * mask[places]
        total = odds.sum(0).clamp(min=torch.finfo(odds.dtype).tiny)
        # What the odds of a point are worth: the point, or nothing where it was not chosen.
        worth = points * (points == chosen) if mode else points
        apart = worth - (worth * odds).sum(0) / total
        slope = (apart * slopes).sum(0) / total
        scale = 1 / math.sqrt(steps.numel() / step.numel() * high)
        along = (grad * (chosen - steps * slope)).sum_to_size(step.shape) * scale
        of_mask = None
        if mask is not None:
            shares = grad * step * plain * apart / total
            of_mask = torch.zeros_like(mask).index_add_(0, places.reshape(-1), shares.reshape(-1))
        return grad * slope, along, of_mask, None, None, None, None


def _cells(steps: Tensor, low: int, high: int, noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Grid points near each weight, the mass of the noise in their cells and its derivative, ``(P, ...)`` each."""
    reach = math.ceil(REACH * noise) + 1
    shape = (-1,) + (1,) * steps.dim()
    if high - low <= 2 * reach:
        points = torch.arange(low, high + 1, device=steps.device, dtype=steps.dtype).reshape(shape)
        points = points.expand(-1, *steps.shape)
    else:
        around = torch.arange(-reach, reach + 1, device=steps.device, dtype=steps.dtype).reshape(shape)
        points = steps.round().clamp(low + reach, high - reach) + around
    inside = steps.clamp(low - FURTHEST * noise, high + FURTHEST * noise)
    apart = points - inside
    # By the distance alone, so that no mass is the difference of two numbers next to 1.
    near, far = (torch.sigmoid((half - apart.abs()) / noise) for half in (0.5, -0.5))
    slopes = (near * (1 - near) - far * (1 - far)).mul_(apart.sign()).div_(noise)
    return points, near - far, slopes


class CpqQuantizer(WeightQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at its widths.

    Args:
        options: of the family.
        weight: the float weights, from which the steps start.
        limit: the largest ``|z|``.
        widths: those that have a step.

    Attributes:
        step: ``(widths, C or 1)``.
        gate: in training, factors ``(points,)`` of the odds of the points of a grid ``(low, high)``, or None for all of
            them. Where there is a gate, a narrower grid has the step of the next wider width: its outer points dropped.
    """

    kind: Kind = INTEGER

    def __init__(self, options: CpqOptions, weight: Tensor, limit: int, widths: tuple[int, ...]) -> None:
        super().__init__(limit)
        self.options = options
        self.widths = tuple(sorted(widths))
        channels = len(weight) if options.step == "channel" else 1
        self.step = nn.Parameter(weight.new_zeros(len(self.widths), channels))
        self.start_from(weight.detach())
        self.gate: Callable[[int, int], Tensor | None] | None = None

    def start_from(self, weight: Tensor) -> None:
        """Starts the steps at ``2 E|w| / sqrt(Q_P)``."""
        rows = weight.reshape(self.step.shape[1], -1).abs().mean(1)
        with torch.no_grad():
            for step, bits in zip(self.step, self.widths, strict=True):
                step.copy_(2 * rows / math.sqrt(self._range(bits)[1]))

    def _range(self, bits: int) -> tuple[int, int, int]:
        """The lowest and highest grid point, and the bits of the code that the limit leaves."""
        used = bits
        while 2 ** (used - 1) - 1 > self.limit:
            used -= 1
        return -min(2 ** (used - 1), self.limit), 2 ** (used - 1) - 1, used

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        low, high, used = self._range(bits)
        step = self._step(weight, bits)
        value = self._value(weight, step, None, low, high)
        with torch.no_grad():
            scale = step.reshape(-1).expand(len(weight))
            integers = (weight / step).round().clamp(low, high)
            codes = (integers + 2 ** (used - 1)) * 2 ** (MASTER_BITS - used)
            ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
        return QuantizedWeight(value, codes, scale, ones, zeros, ones * used, zeros)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        low, high, _ = self._range(bits)
        mask = None if self.gate is None else self.gate(low, high)
        return self._value(weight, self._step(weight, bits), mask, low, high)

    def _value(self, weight: Tensor, step: Tensor, mask: Tensor | None, low: int, high: int) -> Tensor:
        mode = self.options.estimator == "mode"
        value: Tensor = _MostLikely.apply(weight, step, mask, low, high, self.options.noise, mode)
        return value

    def _step(self, weight: Tensor, bits: int) -> Tensor:
        """The learned step of a width, broadcastable to the weights."""
        wider = [width for width in self.widths if width == bits or (self.gate is not None and width > bits)]
        if not wider:
            have = ", ".join(map(str, self.widths))
            raise UsageError(f"quantizer 'cpq' has learned no step for {bits} bits, it has {have}; train that width")
        step = self.step[self.widths.index(wider[0])].clamp(min=SMALLEST_SCALE)
        return step.reshape((-1,) + (1,) * (weight.dim() - 1))

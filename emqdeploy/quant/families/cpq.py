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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS
from emqdeploy.quant.families.lsq import LsqOptions, LsqQuantizer

REACH = 12
"""Deviations of the noise beyond which a grid point is not looked at: its odds are below ``e^-12``."""

FURTHEST = 40
"""Deviations outside of the grid beyond which odds no longer depend on the weight, nor fit float32."""

_CHOICES = {"step": ("layer", "channel"), "estimator": ("mixture", "mode")}


@QUANTIZERS.register("cpq")
@dataclass(frozen=True)
class CpqOptions(LsqOptions):
    """How steps are learned, and what stands for the gradient of a choice.

    Attributes:
        step: one step per output ``channel`` or per ``layer``.
        noise: deviation of the logistic noise, in steps.
        estimator: of the gradient: the ``mixture`` of all grid points, or the odds of the chosen one (``mode``).
    """

    name = "cpq"
    step: str = option("layer", "CPQ: a learned step per layer or per channel.", flag="cpq-step", panel="Quantization")
    noise: float = option(
        1 / 3, "CPQ: standard deviation of the noise on the weights, in steps.", flag="cpq-noise", panel="Quantization"
    )
    estimator: str = option(
        "mixture",
        "CPQ: take the gradient of all grid points (mixture) or only of the chosen one (mode).",
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

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> CpqQuantizer:
        """Makes the quantizer of a layer, its steps as those of LSQ."""
        return CpqQuantizer(self, weight, limit, widths)


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


class CpqQuantizer(LsqQuantizer):
    """Quantizes the weights of one layer as LSQ does, but for the gradient.

    Args:
        options: of the family.
        weight: the float weights ``(C, ...)``, from which the steps start.
        limit: the largest ``|z|``.
        widths: those that have a step.

    Attributes:
        gate: in training, factors ``(points,)`` of the odds of the points of a grid ``(low, high)``, or None for all of
            them. Where there is a gate, a narrower grid has the step of the next wider width: its outer points dropped.
    """

    def __init__(self, options: CpqOptions, weight: Tensor, limit: int, widths: tuple[int, ...]) -> None:
        super().__init__(options, weight, limit, widths)
        self.noise, self.mode = options.noise, options.estimator == "mode"
        self.gate: Callable[[int, int], Tensor | None] | None = None

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        low, high, _ = self._range(bits)
        mask = None if self.gate is None else self.gate(low, high)
        value: Tensor = _MostLikely.apply(weight, self._step(weight, bits), mask, low, high, self.noise, self.mode)
        return value

    def _step(self, weight: Tensor, bits: int) -> Tensor:
        """The learned step of a width, broadcastable to the weights."""
        wider = [width for width in self.widths if width >= bits] if self.gate is not None else []
        return super()._step(weight, wider[0] if wider else bits)

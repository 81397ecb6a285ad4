"""The family of tanh codes: nested codes, weight bias correction, and the integer grid, differentiable in torch.

The forward value is exactly ``scale * z``, what `emqdeploy.format.grid` deploys; gradients flow straight through the
rounding into the affine correction. Per layer and width:

1. ``x = tanh(w) / (2 max|tanh w|) + 1/2`` is partitioned into codes (`floor`, or `dorefa` rounding for baselines);
2. the codes' odd integers ``q = u / (2^b - 1)`` are corrected so that mean and norm match the reference weights (weight
   bias correction: EMQNet, arXiv 2510.20673; Banner et al. 2019, eq. 12-13), hence one normalization serves all widths;
3. the corrected affine map is snapped to an integer grid.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, FamilyOptions, QuantizedWeight, StraightThrough, WeightQuantizer
from emqdeploy.registry import Registry

PANEL = "Quantization"


@QUANTIZERS.register("tanh")
@dataclass(frozen=True)
class TanhOptions(FamilyOptions):
    """How tanh codes are made and corrected.

    Attributes:
        partition: ``floor`` (nested codes) or ``dorefa`` (rounded codes, not nested; for baselines).
        correction: ``exact`` (mean and norm of the reference restored), ``banner`` (eq. 12-13 to the letter), ``sat``
            or ``none`` (one scale per layer, DoReFa's ``E[|w|]``).
        group: statistics per output ``channel`` or per ``layer``.
        reference: match the statistics of ``w`` or of ``tanh`` (w).
        detach_norm: whether the norm ratio is a constant for the gradient.
    """

    name = "tanh"
    partition: str = option("floor", "floor (nested codes) or dorefa (baseline).", panel=PANEL)
    correction: str = option("exact", "Weight bias correction: exact, banner, sat or none.", panel=PANEL)
    group: str = option("channel", "Its statistics per channel or per layer.", flag="correction-group", panel=PANEL)
    reference: str = option("w", "What it restores: w or tanh.", flag="correction-reference", panel=PANEL)
    detach_norm: bool = option(False, "Treat its norm ratio as constant in the gradient.", panel=PANEL)

    def __post_init__(self) -> None:
        """Checks every choice by name."""
        allowed = {
            "partition": tuple(PARTITIONS),
            "correction": tuple(CORRECTIONS),
            "group": ("channel", "layer"),
            "reference": ("w", "tanh"),
        }
        for field, choices in allowed.items():
            value = getattr(self, field)
            if value not in choices:
                raise UsageError(f"unknown {field} {value!r}; allowed: {', '.join(choices)}")

    @property
    def nested(self) -> bool:
        """Whether a narrower code is a prefix of a wider one."""
        return self.partition == "floor"

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> TanhQuantizer:
        """Makes the quantizer of a layer; it learns nothing of its own."""
        return TanhQuantizer(self, limit)

    def by_layer(self) -> TanhOptions:
        """The same with statistics per layer."""
        return replace(self, group="layer")


Levels = Tensor | float
"""``2^b - 1``: one number, or one per channel, broadcastable to the weights."""

PARTITIONS: Registry[Callable[[Tensor, Levels], Tensor]] = Registry("partition")
CORRECTIONS: Registry[Callable[..., tuple[Tensor, Tensor]]] = Registry("correction")


@PARTITIONS.register("floor")
def floor_partition(unit: Tensor, levels: Levels) -> Tensor:
    """``min(floor(2^b x), 2^b - 1)``: nested (TruncQuant, arXiv 2506.11431)."""
    return (unit * (levels + 1)).floor().clamp(max=levels)


@PARTITIONS.register("dorefa")
def dorefa_partition(unit: Tensor, levels: Levels) -> Tensor:
    """``round((2^b - 1) x)`` (DoReFa-Net, arXiv 1606.06160): not nested, re-quantized from float at every bit-width."""
    return torch.round(unit * levels)


class _Statistics(NamedTuple):
    """Mean and norm of the reference and of the quantized weights, per group, broadcastable to the weights."""

    reference_mean: Tensor
    quantized_mean: Tensor
    ratio: Tensor


def _statistics(reference: Tensor, quantized: Tensor, config: TanhOptions) -> _Statistics:
    dims = tuple(range(1 if config.group == "channel" else 0, reference.dim()))
    reference_mean = reference.detach().mean(dims, keepdim=True)
    quantized_mean = quantized.detach().mean(dims, keepdim=True)
    # The floor keeps the square root differentiable where a group's reference weights are all equal.
    reference_norm = (reference - reference_mean).square().sum(dims, keepdim=True).clamp(min=1e-24).sqrt()
    # A group whose codes are all equal has no spread to match: its ratio is 0, which marks it as constant.
    spread = (quantized - quantized_mean).square().sum(dims, keepdim=True)
    varied = spread > 1e-12
    quantized_norm = torch.where(varied, spread, torch.ones_like(spread)).sqrt()
    ratio = torch.where(varied, reference_norm / quantized_norm, torch.zeros_like(spread))
    return _Statistics(reference_mean, quantized_mean, ratio.detach() if config.detach_norm else ratio)


@CORRECTIONS.register("exact")
def exact_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``(s_r / s_q) (q - m_q) + m_r``: mean and norm of the reference at every bit-width. Returns gain and origin."""
    mean, quantized_mean, ratio = _statistics(reference, quantized, config)
    return ratio, mean - ratio * quantized_mean


@CORRECTIONS.register("banner")
def banner_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``(s_r / s_q) (q - m_q + m_r)`` (Banner et al. 2019, eq. 12-13): the restored mean is scaled as well."""
    mean, quantized_mean, ratio = _statistics(reference, quantized, config)
    constant = ratio == 0
    return ratio, torch.where(constant, mean, ratio * (mean - quantized_mean))


@CORRECTIONS.register("none")
def no_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``E[|w|] q`` with one scale per layer (DoReFa-Net, Any-Precision)."""
    scale = reference.detach().abs().mean().reshape((1,) * reference.dim())
    return scale, torch.zeros_like(scale)


@CORRECTIONS.register("sat")
def sat_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``q / (sqrt(n_out) std(q))`` with one constant scale per layer (SAT, arXiv 1912.10207, as AdaBits uses it)."""
    outputs = quantized.numel() // quantized.shape[1] if quantized.dim() > 1 else quantized.numel()
    values = quantized.detach()
    spread = values.std(correction=0)
    # Codes that are all equal have no spread; their size takes its place. A layer of zeros stays silent.
    spread = torch.where(spread > 1e-6, spread, values.square().mean().sqrt())
    scale = reference.detach().any() / (math.sqrt(outputs) * spread)
    scale = scale.reshape((1,) * reference.dim())
    return scale, torch.zeros_like(scale)


def snap(largest: Tensor, gain: Tensor, origin: Tensor, limit: int) -> tuple[Tensor, Tensor, Tensor]:
    """The torch mirror of `emqdeploy.format.grid.snap`; all arguments and results ``(C,)``.

    Maxima in the place of searches, because a vectorized reduction costs a fraction of ``argmin`` and fuses when
    compiled. What an ``m`` needs grows with ``m``, so every ``m`` up to ``m_max`` fits.
    """
    constant = gain <= 0
    ratio = origin / gain.masked_fill(constant, 1)
    m = torch.arange(1, limit + 1, device=gain.device, dtype=gain.dtype)
    exact = m * ratio[:, None]
    k = exact.round()
    m_max = (m * (m * largest[:, None] + k.abs() <= limit)).amax(1, keepdim=True)
    candidate = (m <= m_max) & (2 * m >= m_max)
    error = ((exact - k).abs() / m).masked_fill(~candidate, torch.inf)
    # The largest m of smallest error; 1 where none fits, and k then takes what room is left.
    slope = (m * (candidate & (error <= error.amin(1, keepdim=True)))).amax(1).clamp(min=1)
    room = limit - slope * largest
    offset = (slope * ratio).round().clamp(-room, room)
    scale = torch.where(constant, origin.abs() / limit, gain / slope)
    return scale, slope.masked_fill(constant, 0), torch.where(constant, limit * origin.sign(), offset)


class TanhQuantizer(WeightQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at any width.

    Args:
        config: partition and correction.
        limit: the largest ``|z|``; 127, or 64 behind a signed tensor.
    """

    def __init__(self, config: TanhOptions, limit: int) -> None:
        super().__init__(limit)
        self.config = config
        # Every channel fits as long as 2^b - 1 does; only wider codes depend on the values.
        self.always = int(math.log2(limit + 1))

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        config = self.config
        column = (-1,) + (1,) * (weight.dim() - 1)
        squashed = torch.tanh(weight)
        peak = squashed.abs().max().clamp(min=1e-30)
        unit = squashed / (2 * peak) + 0.5
        reference = weight if config.reference == "w" else squashed
        levels: Levels
        with torch.no_grad():
            if bits <= self.always:
                used, levels = weight.new_full((len(weight),), bits), 2.0**bits - 1
            else:
                used = self._usable_bits(unit, bits)
                levels = (2.0**used - 1).reshape(column)
            codes = PARTITIONS[config.partition](unit, levels)
            odd = 2 * codes - levels
        quantized = StraightThrough.apply(2 * unit - 1, odd / levels)
        gain, origin = CORRECTIONS[config.correction](reference, quantized, config)
        smooth = gain * quantized + origin
        with torch.no_grad():
            step = (gain / levels).reshape(-1).expand(len(weight))
            centre = origin.reshape(-1).expand(len(weight))
            largest = odd.reshape(len(weight), -1).abs().amax(1)
            if config.group == "layer":
                largest = largest.amax().expand(len(weight))
            scale, slope, offset = snap(largest, step, centre, self.limit)
            value = scale.reshape(column) * (slope.reshape(column) * odd + offset.reshape(column))
            residual = centre - scale * offset
            if config.nested:
                master = floor_partition(unit, 2.0**MASTER_BITS - 1)
            else:
                master = codes * (2.0 ** (MASTER_BITS - used)).reshape(column)
        value = StraightThrough.apply(smooth, value)
        return QuantizedWeight(value, master, scale, slope, offset, used, residual)

    def _usable_bits(self, unit: Tensor, bits: int) -> Tensor:
        """The largest width up to ``bits`` whose odd integers stay within the limit, per channel or for the layer."""
        flat = unit.reshape(len(unit), -1)
        low, high = flat.amin(1), flat.amax(1)
        if self.config.group == "layer":
            low, high = low.amin().expand_as(low), high.amax().expand_as(high)
        partition = PARTITIONS[self.config.partition]
        used = torch.full_like(low, self.always)
        for width in range(self.always + 1, bits + 1):
            levels = 2.0**width - 1
            largest = torch.maximum(2 * partition(high, levels) - levels, levels - 2 * partition(low, levels))
            used = torch.where(largest <= self.limit, width, used)
        return used

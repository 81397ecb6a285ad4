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
from typing import Any, NamedTuple

import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, FamilyOptions, QuantizedWeight, WeightQuantizer
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
    partition: str = option(
        "floor", "How weights become codes: floor (codes nest) or dorefa (the baseline).", panel=PANEL
    )
    correction: str = option("exact", "Weight bias correction: exact, banner, sat or none.", panel=PANEL)
    group: str = option(
        "channel", "Compute the bias correction per channel or per layer.", flag="correction-group", panel=PANEL
    )
    reference: str = option(
        "w",
        "Which weights the bias correction restores: w (as they are) or tanh (after tanh).",
        flag="correction-reference",
        panel=PANEL,
    )
    detach_norm: bool = option(
        False, "Treat the norm ratio of the bias correction as constant in the gradient.", panel=PANEL
    )

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

_SMALLEST_SQUARE = 1e-24

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


class _NormRatio(torch.autograd.Function):
    """``|r - m_r| / |q - m_q|`` per group, and the means, which are constants for the gradient.

    A function with a backward pass of its own, as the two below: what autograd would record is twice the operators, and
    a small network spends more time on starting operators than in them.
    """

    @staticmethod
    def forward(ctx: Any, reference: Tensor, quantized: Tensor, dims: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
        reference_mean, quantized_mean = reference.mean(dims, keepdim=True), quantized.mean(dims, keepdim=True)
        from_reference, from_quantized = reference - reference_mean, quantized - quantized_mean
        # The floor keeps the square root differentiable where a group's reference weights are all equal.
        squares = from_reference.square().sum(dims, keepdim=True)
        reference_norm = squares.clamp(min=_SMALLEST_SQUARE).sqrt_()
        # A group whose codes are all equal has no spread to match: its ratio is 0, which marks it as constant.
        spread = from_quantized.square().sum(dims, keepdim=True)
        quantized_norm = spread.masked_fill_(spread <= 1e-12, math.inf).sqrt_()
        ratio = reference_norm / quantized_norm
        ctx.save_for_backward(from_reference, from_quantized, squares, reference_norm, quantized_norm, ratio)
        ctx.mark_non_differentiable(reference_mean, quantized_mean)
        ctx.set_materialize_grads(False)
        return ratio, reference_mean, quantized_mean

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, None]:
        from_reference, from_quantized, squares, reference_norm, quantized_norm, ratio = ctx.saved_tensors
        along = (grad / quantized_norm).div_(reference_norm).mul_(squares >= _SMALLEST_SQUARE)
        across = (grad * (ratio / quantized_norm)).div_(quantized_norm).neg_()
        return from_reference.mul(along), from_quantized.mul(across), None


def _statistics(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor, Tensor]:
    """Ratio of the norms, mean of the reference and of the quantized weights, per group, broadcastable to them."""
    dims = tuple(range(1 if config.group == "channel" else 0, reference.dim()))
    ratio, reference_mean, quantized_mean = _NormRatio.apply(reference, quantized, dims)
    return ratio.detach() if config.detach_norm else ratio, reference_mean, quantized_mean


@CORRECTIONS.register("exact")
def exact_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``(s_r / s_q) (q - m_q) + m_r``: mean and norm of the reference at every bit-width. Returns gain and origin."""
    ratio, mean, quantized_mean = _statistics(reference, quantized, config)
    return ratio, mean - ratio * quantized_mean


@CORRECTIONS.register("banner")
def banner_correction(reference: Tensor, quantized: Tensor, config: TanhOptions) -> tuple[Tensor, Tensor]:
    """``(s_r / s_q) (q - m_q + m_r)`` (Banner et al. 2019, eq. 12-13): the restored mean is scaled as well."""
    ratio, mean, quantized_mean = _statistics(reference, quantized, config)
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
    error = (exact - k).abs_().div_(m)
    too_large = torch.addcmul(k.abs_(), m, largest[:, None]) > limit
    m_max = limit - too_large.sum(1, keepdim=True)
    error.masked_fill_(too_large.logical_or_(2 * m < m_max), math.inf)
    # The largest m of smallest error, which is at most 1/2; 1 where none fits, and k then takes what room is left.
    slope = (m * (error <= error.amin(1, keepdim=True).clamp_(max=1))).amax(1).clamp_(min=1)
    room = limit - slope * largest
    offset = (slope * ratio).round_().clamp_(-room, room)
    scale = torch.where(constant, origin.abs() / limit, gain / slope)
    return scale, slope.masked_fill_(constant, 0), torch.where(constant, limit * origin.sign(), offset)


class _Coded(torch.autograd.Function):
    """Forward: ``u / (2^b - 1)``, as it is given. Backward: that of ``tanh w / max|tanh w|``, which it rounds."""

    @staticmethod
    def forward(ctx: Any, squashed: Tensor, peak: Tensor, coded: Tensor) -> Tensor:
        ctx.save_for_backward(squashed, peak)
        return coded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        squashed, peak = ctx.saved_tensors
        passed = grad / peak
        # The largest weights share the gradient of the maximum; a layer of zeros has none.
        largest = squashed.abs().eq_(peak)
        slope = (grad * (squashed / peak).div_(peak)).sum() / largest.sum().clamp_(min=1)
        return passed.sub_(largest.copysign_(squashed).mul_(slope)), None, None


class _Corrected(torch.autograd.Function):
    """Forward: the value on the integer grid, as it is given. Backward: that of ``gain * coded + origin``."""

    @staticmethod
    def forward(ctx: Any, gain: Tensor, origin: Tensor, coded: Tensor, value: Tensor) -> Tensor:
        ctx.save_for_backward(gain, coded)
        return value

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        gain, coded = ctx.saved_tensors
        return (grad * coded).sum_to_size(gain.shape), grad.sum_to_size(gain.shape), grad * gain, None


class _OnGrid(NamedTuple):
    """The weights of one layer on their integer grid, and what led there.

    Attributes:
        value: ``scale * z``, with gradients.
        unit: ``x``, like the weights.
        codes: at the width, like the weights.
        scale: ``(C,)``, like slope and offset.
        used: the bits of the codes: one number for all channels, or ``(C,)``.
        origin: of the corrected affine map, ``(C,)``.
    """

    value: Tensor
    unit: Tensor
    codes: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    used: int | Tensor
    origin: Tensor


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
        found = self._on_grid(weight, bits)
        with torch.no_grad():
            used = found.used if isinstance(found.used, Tensor) else found.scale.new_full(found.scale.shape, bits)
            if self.config.nested:
                master = floor_partition(found.unit, 2.0**MASTER_BITS - 1)
            else:
                master = found.codes * (2.0 ** (MASTER_BITS - used)).reshape((-1,) + (1,) * (weight.dim() - 1))
            residual = found.origin - found.scale * found.offset
        return QuantizedWeight(found.value, master, found.scale, found.slope, found.offset, used, residual)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        return self._on_grid(weight, bits).value

    def _on_grid(self, weight: Tensor, bits: int) -> _OnGrid:
        config, channels = self.config, len(weight)
        column = (-1,) + (1,) * (weight.dim() - 1)
        squashed = torch.tanh(weight)
        with torch.no_grad():
            peak = squashed.abs().amax().clamp_(min=1e-30)
            unit = (squashed / (2 * peak)).add_(0.5)
            used: int | Tensor = bits
            levels: Levels = 2.0**bits - 1
            if bits > self.always:
                used = self._usable_bits(unit, bits)
                levels = (2.0**used - 1).reshape(column)
            codes = PARTITIONS[config.partition](unit, levels)
            odd = 2 * codes - levels
        coded = _Coded.apply(squashed, peak, odd / levels)
        gain, origin = CORRECTIONS[config.correction](weight if config.reference == "w" else squashed, coded, config)
        with torch.no_grad():
            largest = odd.reshape(channels, -1).abs().amax(1)
            if config.group == "layer":
                largest = largest.amax().expand(channels)
            step, centre = ((part.reshape(-1).expand(channels)) for part in (gain / levels, origin))
            scale, slope, offset = snap(largest, step, centre, self.limit)
            value = torch.addcmul(offset.reshape(column), slope.reshape(column), odd).mul_(scale.reshape(column))
        value = _Corrected.apply(gain, origin, coded, value)
        return _OnGrid(value, unit, codes, scale, slope, offset, used, centre)

    def _usable_bits(self, unit: Tensor, bits: int) -> Tensor:
        """The largest width up to ``bits`` whose odd integers stay within the limit, per channel or for the layer."""
        ends = torch.stack(torch.aminmax(unit.reshape(len(unit), -1), dim=1))
        if self.config.group == "layer":
            ends = torch.stack([ends[0].amin(), ends[1].amax()])[:, None].expand_as(ends)
        widths = torch.arange(self.always, bits + 1, device=unit.device, dtype=unit.dtype).reshape(-1, 1, 1)
        levels = 2.0**widths - 1
        odd = 2 * PARTITIONS[self.config.partition](ends, levels) - levels
        fits = odd.abs().amax(1) <= self.limit
        # The narrowest of these always fits.
        return (fits * widths[:, 0]).amax(0)

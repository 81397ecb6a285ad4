"""The family of learned levels (direct quantization: Hoang et al., IJCAI 2020, arXiv 2012.13762).

A weight of ``b`` bits is one of ``2^b`` levels, which lie where training puts them. What is trained is the quantized
weight itself: its levels, by the exact gradient, and which level it has, by one score per level,

    v = L_k,   k = argmax_j a_j,   dv/da_j = p_j (L_j - sum_i p_i L_i) / t,   p = softmax(a / t)

(`direct`); no float weight stands behind it that would have to move first. Scores and ``t``, a share of the mean
distance of two levels, are in units of the weights, so that a learning rate means what it means for weights. Only the
abstract of the paper could be read: scores, temperature and start are reconstructed. `nearest` is ours: the level next
to the float weight, straight through.

Deployed, the levels of a row, sorted, are int8 numbers of a table, ``z = table[c]``, and one scale; a training pass
computes with these very numbers. Every width has levels of its own, so codes do not nest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.grid import SMALLEST_SCALE, TABLE, WIDEST_TABLE, Kind
from emqdeploy.options import option
from emqdeploy.quant.families.base import QUANTIZERS, FamilyOptions, QuantizedWeight, StraightThrough, WeightQuantizer

ROUNDS = 30
"""Of Lloyd's algorithm, which finds the levels that training starts from; more move nothing."""

TEMPERATURE = 0.5
"""Of the scores, as a share of the mean distance of two levels."""

_CHOICES = {"per": ("layer", "channel"), "assignment": ("direct", "nearest")}


@QUANTIZERS.register("levels")
@dataclass(frozen=True)
class LevelsOptions(FamilyOptions):
    """How levels and their weights find one another.

    Attributes:
        per: levels of their own for every output ``channel``, or one set per ``layer``.
        assignment: scores of the levels (``direct``, as in the paper), or the level ``nearest`` to a float weight.
    """

    name = "levels"
    widths = range(1, WIDEST_TABLE + 1)
    between = False
    per: str = option(
        "layer", "Learned levels: one set per layer or per channel.", flag="levels-per", panel="Quantization"
    )
    assignment: str = option(
        "direct",
        "Learned levels: choose a level by learned scores (direct), or the nearest to the float weight (nearest).",
        flag="levels-assignment",
        panel="Quantization",
    )

    def __post_init__(self) -> None:
        """Checks the choices."""
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise UsageError(f"--levels-{field} is {getattr(self, field)!r}; allowed: {', '.join(allowed)}")

    @property
    def nested(self) -> bool:
        """Every width has levels of its own."""
        return False

    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> LevelsQuantizer:
        """Makes the quantizer of a layer, its levels those of least squared error."""
        return LevelsQuantizer(self, weight, limit, widths)

    def by_layer(self) -> LevelsOptions:
        """The same with one set of levels per layer."""
        return replace(self, per="layer")


class _Chosen(torch.autograd.Function):
    """``levels[code]``; backward the exact gradient of the levels, and one given for each weight or score.

    ``rows (R, n)`` are what chose: weights, which get the gradient where they lie between the outer levels, or scores
    ``(K, R, n)``, which get that of the softmax.
    """

    @staticmethod
    def forward(ctx: Any, chooser: Tensor, levels: Tensor, codes: Tensor, temperature: Tensor | None) -> Tensor:
        ctx.save_for_backward(chooser, levels, codes, temperature)
        return levels.gather(1, codes)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None]:
        chooser, levels, codes, temperature = ctx.saved_tensors
        # As LSQ scales the gradient of a step: by one over the root of the weights that share it.
        shares = math.sqrt(levels.shape[1] / codes.shape[1])
        along = torch.zeros_like(levels).scatter_add_(1, codes, grad) * shares
        if temperature is None:
            inside = (chooser >= levels[:, :1]) & (chooser <= levels[:, -1:])
            return grad * inside, along, None, None
        odds = torch.softmax(chooser / temperature, 0)
        column = levels.T.unsqueeze(-1)
        apart = column - (odds * column).sum(0)
        return odds * apart * (grad / temperature), along, None, None


class LevelsQuantizer(WeightQuantizer):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at its widths.

    Args:
        options: of the family.
        weight: the float weights, from which levels and scores start.
        limit: the largest ``|z|``.
        widths: those that have levels.

    Attributes:
        levels: by width, ``(C or 1, 2^b)``.
        scores: by width, ``(2^b, C or 1, weights of a row)``; none where the nearest level is taken.
    """

    kind: Kind = TABLE

    def __init__(self, options: LevelsOptions, weight: Tensor, limit: int, widths: tuple[int, ...]) -> None:
        super().__init__(limit)
        self.options = options
        self.levels, self.scores = nn.ParameterDict(), nn.ParameterDict()
        rows = self._rows(weight)
        for bits in sorted(widths):
            self.levels[str(bits)] = nn.Parameter(rows.new_zeros(len(rows), 2**bits))
            if options.assignment == "direct":
                self.scores[str(bits)] = nn.Parameter(rows.new_zeros(2**bits, *rows.shape))
        self.start_from(weight.detach())

    def start_from(self, weight: Tensor) -> None:
        """Starts the levels where their squared error is least, and the scores so that each weight has the nearest."""
        rows = self._rows(weight)
        with torch.no_grad():
            for bits, levels in self.levels.items():
                levels.copy_(closest_levels(rows, levels.shape[1]))
                if bits in self.scores:
                    squares = (rows - levels.T.unsqueeze(-1)).square()
                    self.scores[bits].copy_(-squares / (2 * _distance(levels)))

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        value = self.value(weight, bits)
        with torch.no_grad():
            levels = self._levels(bits)
            integers, scale = self._snapped(levels)
            codes = self._codes(weight, levels, bits)
            # The numbers in order, and the place of each level in it.
            table, order = integers.sort(1)
            codes = order.argsort(1).gather(1, codes).reshape(weight.shape) * 2.0 ** (MASTER_BITS - bits)
            scale, table = (part.expand(len(weight), -1) for part in (scale, table))
            scale = scale.reshape(-1)
            ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
        return QuantizedWeight(value, codes, scale, ones, zeros, ones * bits, zeros, table)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        levels = self._levels(bits)
        with torch.no_grad():
            integers, scale = self._snapped(levels)
            codes = self._codes(weight, levels, bits)
        exact = StraightThrough.apply(levels, integers * scale)
        direct = str(bits) in self.scores
        chooser = self.scores[str(bits)] if direct else self._rows(weight)
        temperature = TEMPERATURE * _distance(levels.detach()) if direct else None
        value: Tensor = _Chosen.apply(chooser, exact, codes, temperature)
        return value.reshape(weight.shape)

    def _rows(self, weight: Tensor) -> Tensor:
        """The weights that share levels, ``(C or 1, n)``."""
        return weight.reshape(len(weight) if self.options.per == "channel" else 1, -1)

    def _levels(self, bits: int) -> Tensor:
        if str(bits) not in self.levels:
            have = ", ".join(self.levels)
            raise UsageError(
                f"quantizer 'levels' has learned no levels for {bits} bits, it has {have}; train that width"
            )
        levels: Tensor = self.levels[str(bits)]
        # Scores belong to a level wherever it goes; the nearest one is found among levels in order.
        return levels if self.scores else levels.sort(1).values

    def _snapped(self, levels: Tensor) -> tuple[Tensor, Tensor]:
        """The levels as integers ``(R, 2^b)``, and the value of one ``(R, 1)``."""
        scale = (levels.abs().amax(1, keepdim=True) / self.limit).clamp(min=SMALLEST_SCALE)
        return (levels / scale).round().clamp(-self.limit, self.limit), scale

    def _codes(self, weight: Tensor, levels: Tensor, bits: int) -> Tensor:
        """Which level each weight has, ``(R, n)``."""
        if self.scores:
            return self.scores[str(bits)].argmax(0)
        return torch.searchsorted((levels[:, :-1] + levels[:, 1:]).contiguous() / 2, self._rows(weight).contiguous())


def _distance(levels: Tensor) -> Tensor:
    """The mean distance of two neighbouring levels of each row, ``(R, 1)``."""
    ends = levels.amax(1, keepdim=True) - levels.amin(1, keepdim=True)
    return (ends / (levels.shape[1] - 1)).clamp(min=SMALLEST_SCALE)


def closest_levels(rows: Tensor, count: int) -> Tensor:
    """The levels of least squared error of each row ``(R, n)``, ascending ``(R, count)``: Lloyd's algorithm.

    It starts from evenly spaced quantiles; a level that no weight is nearest to stays where it is.
    """
    ordered = rows.sort(1).values
    places = ((torch.arange(count, device=rows.device) + 0.5) / count * rows.shape[1]).long()
    levels = ordered[:, places.clamp(max=rows.shape[1] - 1)].contiguous()
    ones = torch.ones_like(ordered)
    for _ in range(ROUNDS):
        nearest = torch.searchsorted((levels[:, :-1] + levels[:, 1:]).contiguous() / 2, ordered)
        sums, counts = (torch.zeros_like(levels).scatter_add_(1, nearest, values) for values in (ordered, ones))
        levels = torch.where(counts > 0, sums / counts.clamp(min=1), levels)
    return levels

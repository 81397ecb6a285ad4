"""What a quantizer family is: options that make a quantizer for every layer, and what a quantizer answers.

A family says how weights become codes at every width, whether the codes nest, what it learns besides the weights, and
the integer grid of a layer. Its options are a dataclass registered by name; everything else follows from them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from emqdeploy.format.child import MASTER_BITS, WEIGHT_BITS
from emqdeploy.format.grid import ODD, Kind
from emqdeploy.options import plain_values
from emqdeploy.registry import Registry, load_package


class QuantizedWeight(NamedTuple):
    """One layer's weights at one width.

    Attributes:
        value: ``scale * z``, same shape as the weights.
        codes: the code in the ``bits`` most significant bits of a master code, as integers in a float tensor.
        scale: float32 ``(C,)``.
        slope: ``m`` of ``z = m u + k``, ``(C,)``.
        offset: ``k``, ``(C,)``.
        bits: the bits of the code that each channel uses, ``(C,)``.
        residual: what rounding ``k`` left of the mean, in units of the weights, ``(C,)``.
        table: of kind `TABLE`, the ``u`` of every code ``(C, 2^b)``, ascending.
    """

    value: Tensor
    codes: Tensor
    scale: Tensor
    slope: Tensor
    offset: Tensor
    bits: Tensor
    residual: Tensor
    table: Tensor | None = None


class WeightQuantizer(nn.Module, ABC):
    """Quantizes the weights of one layer, shape ``(C, ...)``, at any of its widths.

    Attributes:
        kind: what a code stands for, see `emqdeploy.format.grid`.
        limit: the largest ``|z|``; 127, or 64 behind a signed tensor.
    """

    kind: Kind = ODD

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    @abstractmethod
    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone, all that a training pass needs; a family may get there sooner."""
        return self(weight, bits).value

    def start_from(self, weight: Tensor) -> None:
        """Lets what is learned besides the weights begin from them, as they are when quantized training begins."""


@dataclass(frozen=True)
class FamilyOptions(ABC):
    """Options of a family; a subclass per family, with fields made by `emqdeploy.options.option`.

    Attributes:
        name: in `QUANTIZERS`.
        widths: the weight widths that it can have.
        between: whether a width that was not trained can be had, from its neighbours or from the weights alone.
    """

    name: ClassVar[str]
    widths: ClassVar[range] = WEIGHT_BITS
    between: ClassVar[bool] = True

    @property
    @abstractmethod
    def nested(self) -> bool:
        """Whether a narrower code is a prefix of a wider one, so that one master serves every width."""

    @abstractmethod
    def quantizer(self, weight: Tensor, limit: int, widths: tuple[int, ...]) -> WeightQuantizer:
        """Makes the quantizer of a layer, what it learns initialised from the float weights.

        Args:
            weight: of the layer, ``(C, ...)``.
            limit: the largest ``|z|``.
            widths: weight widths that training visits.
        """

    @abstractmethod
    def by_layer(self) -> FamilyOptions:
        """The same with numbers per layer, for layers whose channels have too few weights for their own."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for `family_options`."""
        return {"name": self.name, **plain_values(self)}


QUANTIZERS: Registry[type[FamilyOptions]] = Registry("quantizer")
"""Options classes of the families, by name."""


def load_families() -> Registry[type[FamilyOptions]]:
    """Returns `QUANTIZERS` with every family in it."""
    load_package("emqdeploy.quant.families")
    return QUANTIZERS


def family_options(values: Mapping[str, Any]) -> FamilyOptions:
    """The inverse of `FamilyOptions.to_dict`."""
    rest = {key: value for key, value in values.items() if key != "name"}
    return load_families()[values["name"]](**rest)


class StraightThrough(torch.autograd.Function):
    """Forward: the second argument. Backward: identity to the first."""

    @staticmethod
    def forward(ctx: Any, smooth: Tensor, exact: Tensor) -> Tensor:
        """Returns the second argument."""
        return exact

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """Hands the gradient to the first argument."""
        return grad, None


class PinnedQuantizer(WeightQuantizer):
    """Plain symmetric int8 per channel, for layers that stay at 8 bits whatever the child.

    ``scale = max|w| / limit``, ``z = round(w / scale)``: such a layer never switches, so its codes need not nest.
    """

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights; ``bits`` does not matter. The codes are ``z`` itself."""
        integers, scale = self._integers(weight.detach())
        value = StraightThrough.apply(weight, integers * scale)
        scale = scale.reshape(-1)
        ones, zeros = torch.ones_like(scale), torch.zeros_like(scale)
        return QuantizedWeight(value, integers, scale, ones, zeros, ones * MASTER_BITS, zeros)

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        integers, scale = self._integers(weight.detach())
        value: Tensor = StraightThrough.apply(weight, integers.mul_(scale))
        return value

    def _integers(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """``z`` and, broadcastable to it, the scale."""
        scale = weight.abs().amax(tuple(range(1, weight.dim())), keepdim=True).clamp_(min=1e-30).div_(self.limit)
        return (weight / scale).round_().clamp_(-self.limit, self.limit), scale


class EqualizedQuantizer(WeightQuantizer):
    """Another quantizer, to which every output channel is shown with one largest weight; its answer is scaled back.

    Without it a channel of small weights uses few of the layer's codes. The weights themselves stay as they are, and so
    does the float network: what is scaled is the grid of the codes, per channel, and that costs an integer kernel
    nothing.

    Args:
        quantizer: the one that quantizes.
        weight: of the layer, ``(C, ...)``.
        peak: the largest weight of every channel that the quantizer sees.
    """

    factor: Tensor

    def __init__(self, quantizer: WeightQuantizer, weight: Tensor, peak: float) -> None:
        super().__init__(quantizer.limit)
        self.kind = quantizer.kind
        self.quantizer = quantizer
        largest = weight.detach().reshape(len(weight), -1).abs().amax(1)
        # A channel of zeros is not scaled: there is nothing to see.
        factor = torch.where(largest > 0, peak / largest.clamp(min=1e-30), torch.ones_like(largest))
        self.register_buffer("factor", factor, persistent=False)

    def forward(self, weight: Tensor, bits: int) -> QuantizedWeight:
        """Returns the fake-quantized weights and the numbers that deploy them."""
        column = self.factor.reshape((-1,) + (1,) * (weight.dim() - 1))
        seen = self.quantizer(weight * column, bits)
        return seen._replace(
            value=seen.value / column, scale=seen.scale / self.factor, residual=seen.residual / self.factor
        )

    def value(self, weight: Tensor, bits: int) -> Tensor:
        """Returns the fake-quantized weights alone."""
        column = self.factor.reshape((-1,) + (1,) * (weight.dim() - 1))
        return self.quantizer.value(weight * column, bits) / column

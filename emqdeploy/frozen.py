"""A multi-bit network once training is over: codes, grids, biases and activation scales, as plain numpy.

This is what a checkpoint stores and what every artefact is made from; no torch is needed to read it or to run it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.grid import MASTER_BITS, CodeRange, Codes, Floats, Grid, code_range, integer_bias

UNIT_SUFFIX = "_as_conv"
"""Names the layer that computes a normalization which follows no layer: ``bn1_as_conv`` for ``bn1``."""


@dataclass(frozen=True)
class FrozenLayer:
    """One convolution or linear layer.

    Attributes:
        site: the activation site that the layer reads.
        codes: master codes, uint8 ``(C, ...)``; of a pinned layer the integer weights themselves, int8, whose channels
            change their sign where the slope of a grid is -1 (a norm's gain may be negative at some bit-widths only).
        grids: per stored bit-width, with the normalization behind the layer folded in.
        biases: per stored bit-width, folded, float32 ``(C,)``.
    """

    site: str
    codes: Codes | NDArray[np.int8]
    grids: dict[int, Grid]
    biases: dict[int, Floats]

    @property
    def pinned(self) -> bool:
        """Whether the layer has 8-bit weights at every bit-width of the network."""
        return self.codes.dtype == np.int8

    def grid_bits(self, bits: int) -> int:
        """Nominal bits of the layer's weights when the network runs at ``bits``."""
        return MASTER_BITS if self.pinned else bits

    def integers(self, bits: int, out: NDArray[np.uint8] | None = None) -> NDArray[np.int8]:
        """The integer weights ``z`` at ``bits``, int8 ``(C, ...)``; ``out`` is memory of that shape to put them in."""
        if self.pinned:
            signs = self.grids[bits].slope.astype(np.int8)
            return self.codes.view(np.int8) * signs.reshape((-1,) + (1,) * (self.codes.ndim - 1))
        return self.grids[bits].integers(self.codes.view(np.uint8), out)


@dataclass(frozen=True)
class FrozenSite:
    """One activation tensor.

    Attributes:
        signed: whether it can be negative.
        bits: activation bits per stored weight bit-width.
        scales: value of one step per stored weight bit-width.
    """

    signed: bool
    bits: dict[int, int]
    scales: dict[int, float]

    def code_range(self, bits: int) -> CodeRange:
        """The codes of the tensor when the network runs at ``bits``."""
        return code_range(self.bits[bits], self.signed)

    @property
    def clamped(self) -> bool:
        """Whether uint8 is wider than the codes at some bit-width, so that the graph needs an integer clamp."""
        return any((codes.low, codes.high) != (0, 255) for codes in map(self.code_range, self.bits))


@dataclass(frozen=True)
class FrozenNetwork:
    """All layers and sites, in the order in which they run; ``widths`` are the stored bit-widths, ascending.

    ``floats`` are the parameters of what stays in float (a LayerNorm's gain, a position embedding), the same at every
    bit-width.
    """

    layers: dict[str, FrozenLayer]
    sites: dict[str, FrozenSite]
    widths: tuple[int, ...]
    floats: dict[str, NDArray[Any]] = field(default_factory=dict)

    def check_bits(self, bits: int) -> None:
        """Raises a one-sentence error for a bit-width that is not stored."""
        if bits not in self.widths:
            stored = ", ".join(map(str, self.widths))
            raise UsageError(f"this checkpoint has no {bits}-bit network; it holds {stored}; choose one of these")

    def initializers(self, bits: int, scratch: NDArray[np.uint8] | None = None) -> dict[str, NDArray[Any]]:
        """Every array that the skeleton graph leaves open, by initializer name, at one bit-width.

        Per layer ``L``: ``L.weight`` int8 in the layer's shape; ``L.weight_scale`` float32, ``L.bias`` int32 and
        ``L.bias_scale`` float32, each ``(C,)``. Per site ``S``, all scalars: ``S.scale`` float32 and, where it is
        clamped, ``S.low`` and ``S.high`` uint8. And `floats` under their own names.

        Args:
            bits: a stored bit-width.
            scratch: `weight_count` bytes in which the weights are laid out, until the next use of the same memory: new
                memory costs more time than the arithmetic.
        """
        self.check_bits(bits)
        arrays: dict[str, NDArray[Any]] = dict(self.floats)
        for name, site in self.sites.items():
            codes = site.code_range(bits)
            arrays[f"{name}.scale"] = np.array(site.scales[bits], np.float32)
            if site.clamped:
                arrays[f"{name}.low"] = np.array(codes.low, np.uint8)
                arrays[f"{name}.high"] = np.array(codes.high, np.uint8)
        places = self._places(scratch)
        # numpy leaves the interpreter lock during the byte arithmetic, so two threads halve the wait for a session.
        with ThreadPoolExecutor(2) as pool:
            integers = pool.map(lambda layer, place: layer.integers(bits, place), self.layers.values(), places)
        for (name, layer), weights in zip(self.layers.items(), integers, strict=True):
            scale = layer.grids[bits].scale
            bias, bias_scale = integer_bias(layer.biases[bits], self.sites[layer.site].scales[bits], scale)
            arrays[f"{name}.weight"] = weights
            arrays[f"{name}.weight_scale"] = scale
            arrays[f"{name}.bias"] = bias
            arrays[f"{name}.bias_scale"] = bias_scale
        return arrays

    def _places(self, scratch: NDArray[np.uint8] | None) -> list[NDArray[np.uint8] | None]:
        """Where each layer's weights go."""
        if scratch is None:
            return [None] * len(self.layers)
        ends = np.cumsum([layer.codes.size for layer in self.layers.values()])
        parts = np.split(scratch[: ends[-1]], ends[:-1])
        return [part.reshape(layer.codes.shape) for part, layer in zip(parts, self.layers.values(), strict=True)]

    def weight_count(self) -> int:
        """Weights of all quantized layers."""
        return sum(layer.codes.size for layer in self.layers.values())

"""A multi-bit network once training is over: codes, grids, biases and activation scales, as plain numpy.

This is what a checkpoint stores and what every artefact is made from; no torch is needed to read it or to run it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS, Child, ChildLike, find_child
from emqdeploy.format.grid import TABLE, CodeRange, Codes, Floats, Grid, code_range, integer_bias
from emqdeploy.format.levels import HALF, Levels

_WORTH_A_THREAD = 1 << 16
"""Weights from which on two threads gain more than it takes to start them."""

BYTE_OFFSET = 128
"""What makes a code of 8 bits of an integer weight."""

UNIT_SUFFIX = "_as_conv"
"""Names the layer that computes a normalization which follows no layer: ``bn1_as_conv`` for ``bn1``."""


@dataclass(frozen=True)
class FrozenLayer:
    """One convolution or linear layer.

    Attributes:
        site: the activation site that the layer reads.
        codes: master codes, uint8 ``(C, ...)``; of a pinned layer the integer weights themselves, int8, whose channels
            change their sign where the slope of a grid is -1 (a norm's gain may be negative at some children only).
        grids: per stored child, with the normalization behind the layer folded in.
        biases: per stored child, folded, float32 ``(C,)``.
    """

    site: str
    codes: Codes | NDArray[np.int8]
    grids: dict[Child, Grid]
    biases: dict[Child, Floats]

    @property
    def pinned(self) -> bool:
        """Whether the layer has 8-bit weights at every child."""
        return self.codes.dtype == np.int8

    def integers(self, child: Child, out: NDArray[np.uint8] | None = None) -> NDArray[np.int8]:
        """The integer weights ``z``, int8 ``(C, ...)``; ``out`` is memory of that shape to put them in."""
        if self.pinned:
            signs = self.grids[child].slope.astype(np.int8)
            return self.codes.view(np.int8) * signs.reshape((-1,) + (1,) * (self.codes.ndim - 1))
        return self.grids[child].integers(self.codes.view(np.uint8), out)

    def bytes_of_kernels(self) -> Codes:
        """Codes of 8 bits that serve every child in kernels which know ``z = gain c + shift`` and nothing else.

        Of a pinned layer its int8 weights, and of one with a table what its codes stand for, each plus `BYTE_OFFSET`.
        """
        grid = next(iter(self.grids.values()))
        if self.pinned:
            numbers = self.codes.astype(np.int16)
        elif grid.kind == TABLE:
            plain = replace(grid, slope=np.ones_like(grid.slope), offset=np.zeros_like(grid.offset))
            numbers = plain.integers(self.codes.view(np.uint8)).astype(np.int16)
        else:
            return self.codes.view(np.uint8)
        return (numbers + BYTE_OFFSET).astype(np.uint8)

    def affine_of_kernels(self, child: Child) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint8]]:
        """Gain, shift and used bits of those bytes at a child, each ``(C,)``."""
        grid = self.grids[child]
        if not self.pinned and grid.kind != TABLE:
            return *grid.affine(), grid.bits
        slope, offset = grid.slope.astype(np.int32), grid.offset.astype(np.int32)
        return slope, offset - BYTE_OFFSET * slope, np.full_like(grid.bits, MASTER_BITS)


@dataclass(frozen=True)
class FrozenSite:
    """One activation tensor.

    Attributes:
        signed: whether it can be negative.
        bits: activation bits per stored child.
        scales: value of one step per stored child.
        clamped: whether the graph has an integer clamp for it: uint8 is wider than its codes at some child, be that
            loaded or not.
        levels: those of the network, see `emqdeploy.format.levels`.
        zero_point: the code of zero, of a signed tensor at full levels in which it is not in the middle.
    """

    signed: bool
    bits: dict[Child, int]
    scales: dict[Child, float]
    clamped: bool
    levels: Levels = HALF
    zero_point: int | None = None

    @property
    def code_of_zero(self) -> int:
        """The code of zero, the same at every child."""
        return next(iter(map(self.code_range, self.bits))).zero_point

    def code_range(self, child: Child) -> CodeRange:
        """The codes of the tensor."""
        return code_range(self.bits[child], self.signed, self.levels, self.zero_point)


@dataclass(frozen=True)
class FrozenNetwork:
    """All layers and sites, in the order in which they run.

    Attributes:
        layers: by name.
        sites: by name.
        children: the stored ones, see `emqdeploy.format.child.in_order`.
        floats: parameters of what stays in float (a LayerNorm's gain, a position embedding), the same at every child.
    """

    layers: dict[str, FrozenLayer]
    sites: dict[str, FrozenSite]
    children: tuple[Child, ...]
    floats: dict[str, NDArray[Any]] = field(default_factory=dict)

    def find(self, wanted: ChildLike) -> Child:
        """Returns the stored child that is meant; raises a sentence that lists those there are."""
        return find_child(self.children, wanted)

    def grid_bits(self, name: str, child: Child) -> int:
        """Nominal bits of a layer's weights at a child."""
        return MASTER_BITS if self.layers[name].pinned else child.weights.of(name)

    def initializers(self, child: Child, scratch: NDArray[np.uint8] | None = None) -> dict[str, NDArray[Any]]:
        """Every array that the skeleton graph leaves open, by initializer name, at one child.

        Per layer ``L``: ``L.weight`` int8 in the layer's shape; ``L.weight_scale`` float32, ``L.bias`` int32 and
        ``L.bias_scale`` float32, each ``(C,)``. Per site ``S``, all scalars: ``S.scale`` float32 and, where it is
        clamped, ``S.low`` and ``S.high`` uint8. And `floats` under their own names.

        Args:
            child: a stored child.
            scratch: `weight_count` bytes in which the weights are laid out, until the next use of the same memory: new
                memory costs more time than the arithmetic.
        """
        arrays: dict[str, NDArray[Any]] = dict(self.floats)
        for name, site in self.sites.items():
            codes = site.code_range(child)
            arrays[f"{name}.scale"] = np.array(site.scales[child], np.float32)
            if site.clamped:
                arrays[f"{name}.low"] = np.array(codes.low, np.uint8)
                arrays[f"{name}.high"] = np.array(codes.high, np.uint8)
        integers = self._integers(child, self._places(scratch))
        for (name, layer), weights in zip(self.layers.items(), integers, strict=True):
            scale = layer.grids[child].scale
            bias, bias_scale = integer_bias(layer.biases[child], self.sites[layer.site].scales[child], scale)
            arrays[f"{name}.weight"] = weights
            arrays[f"{name}.weight_scale"] = scale
            arrays[f"{name}.bias"] = bias
            arrays[f"{name}.bias_scale"] = bias_scale
        return arrays

    def twins(self) -> dict[Child, Child]:
        """For every child, the first one that computes the very same numbers.

        Odd integers of 8 bits reach beyond an int8, so where every channel uses its whole range, 8 bits are 7.
        """
        firsts: dict[bytes, Child] = {}
        found = {}
        for child in self.children:
            digest = blake2b(digest_size=32)
            for array in self.initializers(child).values():
                digest.update(array.tobytes())
            found[child] = firsts.setdefault(digest.digest(), child)
        return found

    def _integers(self, child: Child, places: list[NDArray[np.uint8] | None]) -> list[NDArray[Any]]:
        """Every layer's int8 weights."""

        def integers(layer: FrozenLayer, place: NDArray[np.uint8] | None) -> NDArray[Any]:
            return layer.integers(child, place)

        layers = self.layers.values()
        if self.weight_count() < _WORTH_A_THREAD:
            return [*map(integers, layers, places)]
        # numpy leaves the interpreter lock during the byte arithmetic, so two threads halve the wait for a session.
        with ThreadPoolExecutor(2) as pool:
            return [*pool.map(integers, layers, places)]

    def open_arrays(self) -> dict[str, tuple[type, tuple[int, ...]]]:
        """Type and shape of every array of `initializers`, which is the same at every child."""
        found: dict[str, tuple[type, tuple[int, ...]]] = {}
        for name, array in self.floats.items():
            found[name] = (array.dtype.type, array.shape)
        for name, site in self.sites.items():
            found[f"{name}.scale"] = (np.float32, ())
            if site.clamped:
                found |= {f"{name}.{end}": (np.uint8, ()) for end in ("low", "high")}
        for name, layer in self.layers.items():
            channels = layer.codes.shape[:1]
            found[f"{name}.weight"] = (np.int8, layer.codes.shape)
            found[f"{name}.bias"] = (np.int32, channels)
            found |= {f"{name}.{kind}": (np.float32, channels) for kind in ("weight_scale", "bias_scale")}
        return found

    def _places(self, scratch: NDArray[np.uint8] | None) -> list[NDArray[np.uint8] | None]:
        """Where each layer's weights go."""
        if scratch is None:
            return [None] * len(self.layers)
        ends = np.cumsum([layer.codes.size for layer in self.layers.values()])
        parts = np.split(scratch[: ends[-1]], ends[:-1])
        return [part.reshape(layer.codes.shape) for part, layer in zip(parts, self.layers.values(), strict=True)]

    def at_half_levels(self) -> FrozenNetwork:
        """The same network with half the codes where zero is not in the middle, each step as much wider as it takes.

        Its skeleton needs the zero points of its sites, see `emqdeploy.exporters.symmetric.with_zero_points`.
        """
        sites = {}
        for name, site in self.sites.items():
            coarse = replace(site, levels=HALF, zero_point=None)
            scales = {}
            for child, scale in site.scales.items():
                fine, wide = site.code_range(child), coarse.code_range(child)
                ends = [fine.steps / wide.steps]
                if wide.below:
                    ends.append(fine.below / wide.below)
                scales[child] = float(np.float32(scale * max(ends)))
            sites[name] = replace(coarse, scales=scales)
        return replace(self, sites=sites)

    def weight_count(self) -> int:
        """Weights of all quantized layers."""
        return sum(layer.codes.size for layer in self.layers.values())


def check_layers(child: Child, layers: Sequence[str], pinned: Mapping[str, bool]) -> None:
    """Raises for a child that names a layer that a network has not, or another width for one that stays at 8 bits.

    Args:
        child: any.
        layers: names of the network's layers.
        pinned: which of them stay at 8 bits.
    """
    for what, widths in (("weights", child.weights), ("activations", child.activations)):
        for name, bits in widths.layers:
            if name not in pinned:
                raise UsageError(
                    f"child {child.name!r} names layer {name!r} in its {what}, which the network does not have; layers:"
                    f" {', '.join(layers)}"
                )
            if what == "weights" and pinned[name] and bits != MASTER_BITS:
                raise UsageError(
                    f"child {child.name!r} gives layer {name!r} {bits} bits, but it stays at 8 bits; leave it out of"
                    " the child, or see --keep-8bit and --small-groups"
                )

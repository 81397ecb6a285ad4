"""How an ONNX file stores the weights of one bit-width: as int8, packed, or as bit-planes that all files share.

All three give the runtime the same int8 weights. `packed` and `master` unpack them with standard operators on
constants, which a runtime folds once, when it creates the session: it then runs the same integer kernels at the same
speed, and only loading takes longer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from emqdeploy.checkpoint import Checkpoint, column_owners, tensor_offsets
from emqdeploy.export.graph import Builder, filled_graph, open_graph, sealed
from emqdeploy.frozen import FrozenLayer, FrozenNetwork
from emqdeploy.registry import Registry

PACKED_OPSET = {4: (21, 10), 2: (25, 13)}
"""Opset and IR version that brought UINT4 and UINT2."""


@dataclass(frozen=True)
class Stored:
    """One ONNX file.

    Attributes:
        data: the file.
        stored_as: type of the weights, by layer.
        needs_checkpoint: whether it reads the bundle's ``.emq``, which must then lie beside it.
    """

    data: bytes
    stored_as: dict[str, str]
    needs_checkpoint: bool = False


class Storage(Protocol):
    """A way to store weights."""

    def __call__(self, checkpoint: Checkpoint, path: Path, bits: int) -> Stored:
        """Writes one bit-width of a checkpoint that was loaded from ``path``."""


STORAGES: Registry[Storage] = Registry("storage")


@STORAGES.register("int8")
def store_int8(checkpoint: Checkpoint, path: Path, bits: int) -> Stored:
    """One byte per weight, nothing to unpack: loads fastest, and every runtime takes it."""
    data = sealed(filled_graph(checkpoint, bits), checkpoint, [bits], "int8")
    return Stored(data, dict.fromkeys(checkpoint.network.layers, "int8"))


@STORAGES.register("packed")
def store_packed(checkpoint: Checkpoint, path: Path, bits: int) -> Stored:
    """UINT4 (opset 21) up to 4 bits, UINT2 (opset 25) up to 2; more bits, and layers kept at 8 bits, as int8."""
    model = filled_graph(checkpoint, bits)
    builder = Builder(model)
    stored = dict.fromkeys(checkpoint.network.layers, "int8")
    size = next((size for size in (2, 4) if bits <= size), None)
    for name, layer in checkpoint.network.layers.items():
        if size is None or layer.pinned:
            continue
        builder.drop({f"{name}.weight"})
        grid = layer.grids[bits]
        column = (-1,) + (1,) * (layer.codes.ndim - 1)
        codes = layer.codes.view(np.uint8) >> (8 - grid.bits).reshape(column)
        unpacked = builder.cast(builder.packed(f"{name}.codes", codes, size), np.int32)
        gain, shift = _affine(layer, bits)
        product = builder.node("Mul", unpacked, builder.constant(gain))
        builder.cast(builder.node("Add", product, builder.constant(shift)), np.int8, out=f"{name}.weight")
        stored[name] = f"uint{size}"
    if size is not None:
        model.opset_import[0].version, model.ir_version = PACKED_OPSET[size]
    kind = "int8" if size is None else f"uint{size}"
    return Stored(sealed(builder.finish(), checkpoint, [bits], kind), stored)


@STORAGES.register("master")
def store_master(checkpoint: Checkpoint, path: Path, bits: int) -> Stored:
    """No weights at all: the file reads bit-planes and per-channel numbers from the ``.emq`` beside it.

    Every bit-width of a bundle shares the one ``.emq``, so eight files cost little more than one.
    """
    network = checkpoint.network
    builder = Builder(open_graph(checkpoint))
    arrays = network.initializers(bits)
    builder.drop(set(arrays))
    computed = ("weight", "weight_scale", "bias", "bias_scale")
    own = {f"{name}.{kind}" for name in network.layers for kind in computed}
    for name in sorted(set(arrays) - own - set(network.floats)):
        builder.constant(arrays[name], name)
    reader = _MasterReader(builder, network, path, bits)
    reader.add_floats()
    reader.add_layers()
    stored = {name: "int8, in the .emq" if layer.pinned else _planes(bits) for name, layer in network.layers.items()}
    return Stored(sealed(builder.finish(), checkpoint, [bits], _planes(bits)), stored, needs_checkpoint=True)


def _planes(bits: int) -> str:
    return f"{bits} bit-plane{'s' if bits > 1 else ''} of the .emq"


def _affine(layer: FrozenLayer, bits: int) -> tuple[Any, Any]:
    """Gain and shift of ``z = gain * code + shift``, int32 ``(C, 1, ...)``: ``z = m u + k`` with ``u`` written out."""
    grid = layer.grids[bits]
    column = (-1,) + (1,) * (layer.codes.ndim - 1)
    slope, offset = grid.slope.astype(np.int32), grid.offset.astype(np.int32)
    levels = (1 << grid.bits.astype(np.int32)) - 1
    return (2 * slope).reshape(column), (offset - slope * levels).reshape(column)


class _MasterReader:
    """The nodes that turn the tensors of an ``.emq`` into the initializers of one bit-width."""

    def __init__(self, builder: Builder, network: FrozenNetwork, path: Path, bits: int) -> None:
        self.builder, self.network, self.bits = builder, network, bits
        self.location = path.name
        self.offsets = tensor_offsets(path)
        self.owners = column_owners(network)
        self.switchable = {name: layer for name, layer in network.layers.items() if not layer.pinned}
        self.pinned = {name: layer for name, layer in network.layers.items() if layer.pinned}

    def add_layers(self) -> None:
        """Adds weights, scales and biases of every layer."""
        add = self.builder
        slopes = self._columns("slope", np.int8)
        if self.switchable:
            self._add_switchable(slopes)
        if self.pinned:
            self._add_pinned(slopes)
        self._columns("scale", np.float32, suffix=".weight_scale")
        biases = self._columns("bias", np.float32)
        for name, layer in self.network.layers.items():
            # In float64 as `grid.integer_bias` does it: the same integers, whoever folds them.
            scale = add.node("Mul", f"{layer.site}.scale", f"{name}.weight_scale", out=f"{name}.bias_scale")
            steps = add.node("Div", add.cast(biases[name], np.float64), add.cast(scale, np.float64))
            add.cast(add.node("Round", steps), np.int32, out=f"{name}.bias")

    def add_floats(self) -> None:
        """Adds the parameters of what stays in float."""
        for name, array in self.network.floats.items():
            offset = self.offsets[f"float/{name}"]
            self.builder.external(name, array.shape, array.dtype, self.location, offset)

    def _add_switchable(self, slopes: dict[str, str]) -> None:
        add = self.builder
        offsets, bits = self._columns("offset", np.int8), self._columns("bits", np.int8)
        one, two = add.constant(np.uint32(1)), add.constant(np.int32(2))
        for (name, layer), flat in zip(self.switchable.items(), self._codes(), strict=True):
            column = (-1,) + (1,) * (layer.codes.ndim - 1)
            slope, offset, used = (
                add.cast(add.reshape(columns[name], column), np.int32) for columns in (slopes, offsets, bits)
            )
            codes = add.reshape(flat, layer.codes.shape)
            if (layer.grids[self.bits].bits != self.bits).any():
                drop = add.cast(add.node("Sub", add.constant(np.int32(self.bits)), used), np.uint8)
                codes = add.node("BitShift", codes, drop, direction="RIGHT")
            # z = m (2 c - (2^used - 1)) + k = 2 m c + (k - m (2^used - 1))
            power = add.cast(add.node("BitShift", one, add.cast(used, np.uint32), direction="LEFT"), np.int32)
            levels = add.node("Sub", power, add.constant(np.int32(1)))
            gain = add.node("Mul", slope, two)
            shift = add.node("Sub", offset, add.node("Mul", slope, levels))
            weights = add.node("Add", add.node("Mul", add.cast(codes, np.int32), gain), shift)
            add.cast(weights, np.int8, out=f"{name}.weight")

    def _add_pinned(self, slopes: dict[str, str]) -> None:
        add = self.builder
        sizes = [layer.codes.size for layer in self.pinned.values()]
        parts = add.split(self._tensor("pinned", np.int8, [sum(sizes)]), sizes)
        for (name, layer), flat in zip(self.pinned.items(), parts, strict=True):
            if np.array_equal(layer.integers(self.bits), layer.codes):
                add.reshape(flat, layer.codes.shape, out=f"{name}.weight")
                continue
            column = (-1,) + (1,) * (layer.codes.ndim - 1)
            signs = add.cast(add.reshape(slopes[name], column), np.int32)
            codes = add.cast(add.reshape(flat, layer.codes.shape), np.int32)
            add.cast(add.node("Mul", codes, signs), np.int8, out=f"{name}.weight")

    def _columns(self, kind: str, dtype: Any, suffix: str | None = None) -> dict[str, str]:
        """A table's channels by layer; with a suffix, under the name of the layer and the suffix."""
        owners = self.owners[kind]
        channels = [len(self.network.layers[name].codes) for name in owners]
        table = self._tensor(f"{kind}/{self.bits}", dtype, [sum(channels)])
        named = None if suffix is None else [name + suffix for name in owners]
        return dict(zip(owners, self.builder.split(table, channels, out=named), strict=True))

    def _codes(self) -> list[str]:
        """The codes of every switchable layer, flat: each plane is unpacked over the whole network at once."""
        add = self.builder
        sizes = [layer.codes.size for layer in self.switchable.values()]
        plane_bytes = -(-sum(sizes) // 8)
        one, places = add.constant(np.uint8(1)), add.constant(np.arange(8, dtype=np.uint8))
        codes = None
        for plane in range(self.bits):
            packed = self._tensor(f"plane{plane}", np.uint8, [plane_bytes, 1])
            bit = add.node("BitwiseAnd", add.node("BitShift", packed, places, direction="RIGHT"), one)
            if codes is None:
                codes = bit
            else:
                codes = add.node("BitwiseOr", add.node("BitShift", codes, one, direction="LEFT"), bit)
        assert codes is not None
        padding = 8 * plane_bytes - sum(sizes)
        parts = add.split(add.reshape(codes, [-1]), [*sizes, *([padding] if padding else [])])
        return parts[: len(sizes)]

    def _tensor(self, name: str, dtype: Any, shape: list[int]) -> str:
        return self.builder.external(name, shape, dtype, self.location, self.offsets[name])

"""How an ONNX file stores the weights of one child: as int8, packed, or as bit-planes that all files share.

All three give the runtime the same int8 weights. `packed` and `master` unpack them with standard operators on
constants, which a runtime folds once, when it creates the session: it then runs the same integer kernels at the same
speed, and only loading takes longer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.exporters.onnx_writer import filled_graph, sealed
from emqdeploy.format.child import MASTER_BITS, Child
from emqdeploy.format.emq import Checkpoint, places_in
from emqdeploy.format.frozen import FrozenLayer
from emqdeploy.format.grid import TABLE
from emqdeploy.graph.building import Builder
from emqdeploy.graph.filling import filled
from emqdeploy.registry import Registry

PACKED_OPSET = {2: (25, 13), 4: (21, 10)}
"""Opset and IR version that brought UINT2 and UINT4."""


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

    def __call__(self, checkpoint: Checkpoint, path: Path, child: Child) -> Stored:
        """Writes one child of a checkpoint that was loaded from ``path``."""


STORAGES: Registry[Storage] = Registry("storage")


@STORAGES.register("int8")
def store_int8(checkpoint: Checkpoint, path: Path, child: Child) -> Stored:
    """One byte per weight, nothing to unpack: loads fastest, and every runtime takes it."""
    model = filled(checkpoint.skeleton, checkpoint.network.initializers(child))
    return Stored(sealed(model, checkpoint, [child], "int8"), dict.fromkeys(checkpoint.network.layers, "int8"))


@STORAGES.register("packed")
def store_packed(checkpoint: Checkpoint, path: Path, child: Child) -> Stored:
    """UINT4 (opset 21) up to 4 bits, UINT2 (opset 25) up to 2; more bits, and layers kept at 8 bits, as int8."""
    network = checkpoint.network
    model = filled_graph(checkpoint, child)
    builder = Builder(model)
    stored = dict.fromkeys(network.layers, "int8")
    sizes: set[int] = set()
    for name, layer in network.layers.items():
        size = next((size for size in PACKED_OPSET if network.grid_bits(name, child) <= size), None)
        if size is None:
            continue
        sizes.add(size)
        stored[name] = f"uint{size}"
        builder.drop({f"{name}.weight"})
        codes = layer.codes.view(np.uint8) >> _column(MASTER_BITS - layer.grids[child].bits, layer)
        _add_weights(builder, builder.packed(f"{name}.codes", codes, size), name, layer, child)
    if sizes:
        model.opset_import[0].version, model.ir_version = PACKED_OPSET[min(sizes)]
    return Stored(sealed(builder.finish(), checkpoint, [child], _usual(stored.values())), stored)


@STORAGES.register("master")
def store_master(checkpoint: Checkpoint, path: Path, child: Child) -> Stored:
    """No weights at all: the file reads bit-planes, scales and biases from the ``.emq`` beside it.

    Every child of a bundle shares the one ``.emq``, so eight files cost little more than one.
    """
    network = checkpoint.network
    builder = Builder(require("onnx", "export").load_from_string(checkpoint.skeleton))
    arrays = network.initializers(child)
    builder.drop(set(arrays))
    computed = ("weight", "weight_scale", "bias", "bias_scale")
    own = {f"{name}.{kind}" for name in network.layers for kind in computed}
    for name in sorted(set(arrays) - own - set(network.floats)):
        builder.constant(arrays[name], name)
    _MasterReader(builder, checkpoint, path, child).add()
    stored = {
        name: "int8, in the .emq" if layer.pinned else _planes(child.weights.of(name))
        for name, layer in network.layers.items()
    }
    switchable = [kind for name, kind in stored.items() if not network.layers[name].pinned]
    data = sealed(builder.finish(), checkpoint, [child], _usual(switchable or stored.values()))
    return Stored(data, stored, needs_checkpoint=True)


def _planes(bits: int) -> str:
    return f"{bits} bit-plane{'s' if bits > 1 else ''} of the .emq"


def _usual(stored: Iterable[str]) -> str:
    return Counter(stored).most_common(1)[0][0]


def _column(numbers: NDArray[Any], layer: FrozenLayer) -> NDArray[np.uint8]:
    """One byte per channel, in a shape that broadcasts over the layer's weights; modulo 256."""
    return (numbers & 255).astype(np.uint8).reshape((-1,) + (1,) * (layer.codes.ndim - 1))


def _add_weights(builder: Builder, codes: str, name: str, layer: FrozenLayer, child: Child) -> None:
    """Makes a layer's int8 weights of its codes, in as many bits as each channel uses, or by its table.

    A byte per channel holds gain and shift: modulo 256 is exact, because every weight fits int8 and a cast to a
    narrower integer drops the upper bits.
    """
    if layer.grids[child].kind == TABLE:
        numbers = layer.grids[child].looked_up()
        first = np.arange(len(numbers), dtype=np.int32) * np.int32(numbers.shape[1])
        column = builder.constant(first.reshape((-1,) + (1,) * (layer.codes.ndim - 1)))
        places = builder.node("Add", builder.cast(codes, np.int32), column)
        builder.node("Gather", builder.constant(numbers.reshape(-1)), places, out=f"{name}.weight", axis=0)
        return
    gain, shift = (
        builder.cast(builder.constant(_column(numbers, layer)), np.int32) for numbers in layer.grids[child].affine()
    )
    product = builder.node("Mul", builder.cast(codes, np.int32), gain)
    builder.cast(builder.node("Add", product, shift), np.int8, out=f"{name}.weight")


class _MasterReader:
    """The nodes that turn the tensors of an ``.emq`` into the initializers of one child."""

    def __init__(self, builder: Builder, checkpoint: Checkpoint, path: Path, child: Child) -> None:
        self.builder, self.network, self.child = builder, checkpoint.network, child
        self.location = path.name
        self.places = places_in(path)
        self.switchable = {name: self.network.layers[name] for name in self.places.layer_bytes}
        self.pinned = {name: layer for name, layer in self.network.layers.items() if layer.pinned}

    def add(self) -> None:
        """Adds weights, scales and biases of every layer, and the parameters of what stays in float."""
        add = self.builder
        for name, array in self.network.floats.items():
            self._tensor(f"float/{name}", array.dtype, array.shape, name)
        if self.switchable:
            self._add_switchable()
        if self.pinned:
            self._add_pinned()
        self._columns("scale", suffix=".weight_scale")
        biases = self._columns("bias")
        for name, layer in self.network.layers.items():
            # In float64 as `grid.integer_bias` does it: the same integers, whoever folds them.
            scale = add.node("Mul", f"{layer.site}.scale", f"{name}.weight_scale", out=f"{name}.bias_scale")
            steps = add.node("Div", add.cast(biases[name], np.float64), add.cast(scale, np.float64))
            add.cast(add.node("Round", steps), np.int32, out=f"{name}.bias")

    def _add_switchable(self) -> None:
        """Unpacks each plane over the whole network at once: one layer at a time would take many more nodes."""
        add = self.builder
        planes = max(self.child.weights.of(name) for name in self.switchable)
        starts = list(self.places.layer_bytes.values())
        end = starts[-1] + -(-list(self.switchable.values())[-1].codes.size // 8)
        one, positions = add.constant(np.uint8(1)), add.constant(np.arange(8, dtype=np.uint8))
        codes = ""
        for plane in range(planes):
            packed = self._tensor(f"plane{plane}", np.uint8, [end, 1])
            bit = add.node("BitwiseAnd", add.node("BitShift", packed, positions, direction="RIGHT"), one)
            shifted = add.node("BitShift", codes, one, direction="LEFT") if codes else ""
            codes = add.node("BitwiseOr", shifted, bit) if codes else bit
        sizes: list[int] = []
        for layer, (start, stop) in zip(self.switchable.values(), pairwise([*starts, end]), strict=True):
            sizes += [layer.codes.size, 8 * (stop - start) - layer.codes.size]
        # Split takes no part of no size, and the order tells codes from what fills up to the next layer.
        parts = iter(add.split(add.reshape(codes, [-1]), [size for size in sizes if size]))
        found = [next(parts) if size else "" for size in sizes][::2]
        for (name, layer), part in zip(self.switchable.items(), found, strict=True):
            own = add.reshape(part, layer.codes.shape)
            drop = planes - layer.grids[self.child].bits
            if drop.any():
                same = (drop == drop[0]).all()
                steps = add.constant(drop[0] if same else _column(drop, layer))
                own = add.node("BitShift", own, steps, direction="RIGHT")
            _add_weights(add, own, name, layer, self.child)

    def _add_pinned(self) -> None:
        add = self.builder
        sizes = [layer.codes.size for layer in self.pinned.values()]
        parts = add.split(self._tensor("pinned", np.int8, [sum(sizes)]), sizes)
        for (name, layer), flat in zip(self.pinned.items(), parts, strict=True):
            signs = layer.grids[self.child].slope
            if (signs > 0).all():
                add.reshape(flat, layer.codes.shape, out=f"{name}.weight")
                continue
            codes = add.cast(add.reshape(flat, layer.codes.shape), np.int32)
            turned = add.node("Mul", codes, add.cast(add.constant(_column(signs, layer)), np.int32))
            add.cast(turned, np.int8, out=f"{name}.weight")

    def _columns(self, kind: str, suffix: str = "") -> dict[str, str]:
        """A float32 table's channels by layer; with a suffix, under the name of the layer and the suffix."""
        layers = self.network.layers
        channels = [len(layer.codes) for layer in layers.values()]
        table = self._tensor(f"{kind}/{self.child.name}", np.float32, [sum(channels)])
        named = [name + suffix for name in layers] if suffix else None
        return dict(zip(layers, self.builder.split(table, channels, out=named), strict=True))

    def _tensor(self, name: str, dtype: Any, shape: Any, out: str | None = None) -> str:
        return self.builder.external(out or name, shape, dtype, self.location, self.places.offsets[name])

"""The ``.emq`` file, formats 3 and 4: a network at every child, in one safetensors file; its only reader and writer.

Tensors, planes first, each with a hash of its own in the header (`docs/format.md` describes the file for others):

=================  ===============================================================================================
``plane0..7``      bit-planes of the master codes of all switchable layers, most significant first; every layer
                   begins at a multiple of 64 bytes inside the plane, and every plane in the file
``pinned``         int8 weights of the layers that stay at 8 bits
``slope/W``        per weight width ``W`` in use and output channel of the switchable layers: ``slope``, ``offset``
                   and used ``bits`` of the grid, which every child of that width shares
``table/W``        per weight width and output channel of the layers that have tables: what each code stands for
``scale/CHILD``    per child and output channel of every layer: ``scale``, ``bias``, and the ``sign`` of the norm's
                   gain, which turns slope and offset around
``skeleton``       the weightless ONNX graph, deflated
``float/NAME``     parameters of operators that stay in float
=================  ===============================================================================================

The header holds the `Card`, the children, the layers and the sites, decoded by one schema with bounds. The ``b`` most
significant planes are the ``b``-bit network, so loading a child reads ``b/8`` of the codes.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.card import Card, check_card, decode, encode, read_children, record_children
from emqdeploy.format.child import MASTER_BITS, Child, ChildLike, find_child
from emqdeploy.format.emq_schema import (
    FORMATS,
    OWN,
    PINNED,
    SHARED,
    Header,
    LayerRecord,
    SiteRecord,
    Version,
    check_structure,
    count,
    expected_tensors,
    format_of,
    places,
    tabled,
    tensors_of,
    widths_of,
)
from emqdeploy.format.frozen import FrozenLayer, FrozenNetwork, FrozenSite
from emqdeploy.format.gate import Expected, check_graph
from emqdeploy.format.grid import TABLE, Grid, Kind, pack_planes, unpack_planes
from emqdeploy.format.tensor_file import TensorFile, flat, hash_tensor, write_tensors

SUFFIX = ".emq"

LARGEST_SKELETON = 256 << 20
"""Bytes of a graph without its weights, unpacked; a file that wants more is refused."""

_MOST_STEPS = np.float32(1 << 31)
"""Steps of a bias at most."""

_REMEDY = "use the original file or train again"


@dataclass(frozen=True)
class Checkpoint:
    """A loaded ``.emq``.

    Attributes:
        network: codes, grids, biases and scales of the children that were loaded.
        skeleton: the weightless QDQ graph, serialised ONNX.
        card: what the file says about its network.
        bytes_read: bytes read from the file; of a checkpoint that was not read, 0.
        size_bytes: size of the file, 0 likewise.
    """

    network: FrozenNetwork
    skeleton: bytes
    card: Card
    bytes_read: int = 0
    size_bytes: int = 0

    @property
    def trained(self) -> tuple[Child, ...]:
        """The loaded children that training visited; the other ones are unseen."""
        return tuple(child for child in self.network.children if self.card.is_trained(child))


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> int:
    """Writes a checkpoint atomically; returns the size of the file in bytes."""
    network = checkpoint.network
    layers, children = network.layers, network.children
    if any(site.levels != checkpoint.card.levels for site in network.sites.values()):
        raise ValueError(f"the card says {checkpoint.card.levels} levels, and the network has others")
    tensors: dict[str, NDArray[Any]] = {}
    names = [name for name, layer in layers.items() if not layer.pinned]
    switchable = [layers[name] for name in names]
    *starts, end = places(layer.codes.size for layer in switchable)
    codes = np.zeros(end, np.uint8)
    for start, layer in zip(starts, switchable, strict=True):
        codes[start : start + layer.codes.size] = layer.codes.reshape(-1)
    widths = widths_of(children, names)
    for index, plane in enumerate(pack_planes(codes, max(widths, default=1))):
        tensors[f"plane{index}"] = plane
    tensors["pinned"] = flat([layer.codes for layer in layers.values() if layer.pinned], np.int8)
    for width in widths:
        for kind in SHARED:
            columns = [_shared_column(layers[name], _users(children, name, width), kind) for name in names]
            tensors[f"{kind}/{width}"] = flat(columns, np.int8)
    records = tuple(LayerRecord(name, layer.codes.shape, layer.site, _kind(layer)) for name, layer in layers.items())
    for width in widths_of(children, tabled(records)):
        found = [_table(layers[name], _users(children, name, width), width) for name in tabled(records)]
        tensors[f"{TABLE}/{width}"] = flat(found, np.int8)
    for child in children:
        tensors[f"scale/{child.name}"] = flat([layer.grids[child].scale for layer in layers.values()], np.float32)
        tensors[f"bias/{child.name}"] = flat([layer.biases[child] for layer in layers.values()], np.float32)
        tensors[f"sign/{child.name}"] = flat([_signs(layer.grids[child]) for layer in layers.values()], np.int8)
    tensors["skeleton"] = np.frombuffer(zlib.compress(checkpoint.skeleton, 9), np.uint8)
    tensors |= {f"float/{name}": array for name, array in network.floats.items()}
    header = Header(
        format_of(records),
        checkpoint.card.only(children),
        record_children(children),
        records,
        tuple(
            SiteRecord(
                name,
                site.signed,
                tuple(site.bits[child] for child in children),
                tuple(site.scales[child] for child in children),
                site.clamped,
                site.zero_point,
            )
            for name, site in network.sites.items()
        ),
        {name: hash_tensor(array) for name, array in tensors.items()},
    )
    # Planes in front, then wider types before narrower ones, so that every number lies at a multiple of its size.
    order = sorted(tensors, key=lambda name: (not name.startswith("plane"), -tensors[name].itemsize))
    return write_tensors(path, {name: tensors[name] for name in order}, encode(header).decode())


def load_checkpoint(
    path: str | os.PathLike[str], child: ChildLike | None = None, sha256: str | None = None
) -> Checkpoint:
    """Reads a checkpoint, or only one child of it.

    Args:
        path: the file.
        child: read nothing beyond what this child needs; None reads every stored one.
        sha256: of the whole file, where its bundle's manifest says what it has to be.

    Raises:
        EmqError: the file is missing, truncated, altered, not an ``.emq``, or of another format.
        UsageError: it does not hold the child.
    """
    with TensorFile(Path(path), _REMEDY) as file:
        if sha256 is not None:
            file.check_whole(sha256)
        header, stored = _read_header(file)
        children = stored if child is None else (find_child(stored, child),)
        file.prefetch([*_needed(header, children), *_common(header)])
        network = _read_network(file, header, stored, children)
        skeleton = _inflate(file)
        check_graph(skeleton, Expected(header.card, network.open_arrays()), Path(path))
        return Checkpoint(network, skeleton, header.card, file.bytes_read, file.size_bytes)


def read_card(path: str | os.PathLike[str]) -> tuple[Card, dict[Child, int]]:
    """Reads what a checkpoint says about itself, and how many bytes of it loading each child reads."""
    with TensorFile(Path(path), _REMEDY) as file:
        header, children = _read_header(file)
        common = file.header_bytes + sum(map(file.size_of, _common(header)))
        needed = {child: _needed(header, [child]) for child in children}
        return header.card, {child: common + sum(map(file.size_of, names)) for child, names in needed.items()}


@dataclass(frozen=True)
class Places:
    """Where the numbers of a network lie in its file, for programs that read them without this module.

    Attributes:
        file: name of the file.
        offsets: of each tensor's first byte in the file.
        layer_bytes: per switchable layer, in order, where it begins inside every plane.
    """

    file: str
    offsets: dict[str, int]
    layer_bytes: dict[str, int]


def places_in(path: str | os.PathLike[str]) -> Places:
    """Returns where a checkpoint's numbers lie; raises as `load_checkpoint`."""
    with TensorFile(Path(path), _REMEDY) as file:
        header, _ = _read_header(file)
        switchable = [layer for layer in header.layers if layer.kind != PINNED]
        starts = places(count(layer.shape) for layer in switchable)
        return Places(
            Path(path).name,
            {name: file.offset(name) for name in header.hashes},
            {layer.name: start // 8 for layer, start in zip(switchable, starts[:-1], strict=True)},
        )


def _needed(header: Header, children: Sequence[Child]) -> list[str]:
    """Names of the tensors that children need beyond those that all have in common."""
    layers = [layer.name for layer in header.layers if layer.kind != PINNED]
    return tensors_of(children, layers, tabled(header.layers))


def _common(header: Header) -> list[str]:
    """Names of the tensors that every child needs."""
    return ["pinned", "skeleton", *(name for name in header.hashes if name.startswith("float/"))]


# --- reading ------------------------------------------------------------------------------------------------------


def _read_header(file: TensorFile) -> tuple[Header, tuple[Child, ...]]:
    """Reads and checks everything but the tensors' content."""
    try:
        version = decode(Version, file.header).format_version
    except ValueError as error:
        raise file.fail("is not an .emq file") from error
    if version not in FORMATS:
        remedy = "update emqdeploy" if version > FORMATS[-1] else "train or quantize the network again"
        raise EmqError(
            f"{file.path} has format {version}, this emqdeploy reads {' and '.join(map(str, FORMATS))}; {remedy}"
        )
    try:
        header = decode(Header, file.header)
        children = read_children(header.children)
        check_card(header.card, children)
        check_structure(header, children)
    except (ValueError, UsageError) as error:
        raise file.fail(f"is damaged ({error})") from error
    file.check_table(expected_tensors(header, children))
    file.hashes = header.hashes
    return header, children


def _read_network(
    file: TensorFile, header: Header, stored: Sequence[Child], children: tuple[Child, ...]
) -> FrozenNetwork:
    switchable = [layer for layer in header.layers if layer.kind != PINNED]
    names = [layer.name for layer in switchable]
    widths = widths_of(children, names)
    planes = [file.tensor(f"plane{index}") for index in range(max(widths, default=1))]
    starts = places(count(layer.shape) for layer in switchable)
    codes = unpack_planes(planes, starts[-1])
    pinned, taken = file.tensor("pinned"), 0
    begins = iter(starts)
    layers: dict[str, FrozenLayer] = {}
    for layer in header.layers:
        size = count(layer.shape)
        if layer.kind == PINNED:
            part, taken = pinned[taken : taken + size], taken + size
        else:
            begin = next(begins)
            part = codes[begin : begin + size]
        layers[layer.name] = FrozenLayer(layer.site, part.reshape(layer.shape), {}, {})
    kinds = {layer.name: layer.kind for layer in header.layers}
    shared = {width: _read_shared(file, width, layers, names) for width in widths}
    for width in widths_of(children, tabled(header.layers)):
        shared[width][TABLE] = _read_tables(file, width, layers, tabled(header.layers))
    for child in children:
        _read_child(file, child, layers, kinds, shared)
    sites = {
        site.name: FrozenSite(
            site.signed,
            {child: bits for child, bits in zip(stored, site.bits, strict=True) if child in children},
            {child: scale for child, scale in zip(stored, site.scales, strict=True) if child in children},
            site.clamped,
            header.card.levels,
            site.zero_point,
        )
        for site in header.sites
    }
    for name, frozen in layers.items():
        for child, bias in frozen.biases.items():
            step = np.float32(sites[frozen.site].scales[child]) * frozen.grids[child].scale
            if not (np.abs(bias) / _MOST_STEPS < step).all():
                raise file.fail(f"is damaged: a bias of layer {name!r} at child {child.name!r} is no int32")
    floats = {name.removeprefix("float/"): file.tensor(name) for name in header.hashes if name.startswith("float/")}
    return FrozenNetwork(layers, sites, children, floats)


_Columns = dict[str, NDArray[Any]]


def _read_shared(
    file: TensorFile, width: int, layers: Mapping[str, FrozenLayer], names: list[str]
) -> dict[str, _Columns]:
    """The grid tables of a weight width, by kind and layer."""
    tables = {kind: file.tensor(f"{kind}/{width}") for kind in SHARED}
    used = tables["bits"]
    if used.size and not (used.min() >= 0 and used.max() <= width):
        raise file.fail(f"is damaged: the grid of {width} bits uses {used.min()} to {used.max()}")
    return {kind: _split(table, layers, names) for kind, table in tables.items()}


def _read_tables(file: TensorFile, width: int, layers: Mapping[str, FrozenLayer], names: list[str]) -> _Columns:
    """What the codes of a weight width stand for in the layers that have tables, ``(C, 2^width)`` each."""
    numbers = file.tensor(f"{TABLE}/{width}").reshape(-1, 1 << width)
    if numbers.size and not (numbers.min() >= -127 and (numbers[:, :-1] <= numbers[:, 1:]).all()):
        raise file.fail(f"is damaged: a table of {width} bits does not ascend from -127 at least")
    return _split(numbers, layers, names)


def _read_child(
    file: TensorFile,
    child: Child,
    layers: Mapping[str, FrozenLayer],
    kinds: Mapping[str, Kind | Literal["int8"]],
    shared: Mapping[int, dict[str, _Columns]],
) -> None:
    """Adds a child's grids and biases to the layers."""
    own = {kind: file.tensor(f"{kind}/{child.name}") for kind in OWN}
    scale, bias, sign = own["scale"], own["bias"], own["sign"]
    if scale.size and not (np.isfinite(scale).all() and scale.min() > 0 and np.isfinite(bias).all()):
        raise file.fail(f"is damaged: child {child.name!r} has a scale or bias that is no number for a kernel")
    if scale.size and not (np.abs(sign) == 1).all():
        raise file.fail(f"is damaged: child {child.name!r} has a sign that is neither 1 nor -1")
    scales, biases, signs = (_split(table, layers, list(layers)) for table in (scale, bias, sign.astype(np.int16)))
    for name, layer in layers.items():
        turned = signs[name]
        layer.biases[child] = biases[name]
        kind = kinds[name]
        if kind == PINNED:
            zeros = np.zeros(len(turned), np.int16)
            layer.grids[child] = Grid(scales[name], turned, zeros, np.full(len(turned), MASTER_BITS, np.uint8))
            continue
        table = shared[child.weights.of(name)]
        slope, offset = (table[column][name] * turned for column in ("slope", "offset"))
        numbers = table[TABLE][name] if kind == TABLE else None
        if numbers is not None and not (table["bits"][name] == child.weights.of(name)).all():
            raise file.fail(f"is damaged: layer {name!r} looks its codes up by other bits than those of its width")
        layer.grids[child] = Grid(scales[name], slope, offset, table["bits"][name].astype(np.uint8), kind, numbers)


def _split(table: NDArray[Any], layers: Mapping[str, FrozenLayer], names: Sequence[str]) -> _Columns:
    ends = np.cumsum([len(layers[name].codes) for name in names])
    starts = [0, *ends[:-1]] if len(ends) else []
    return {name: table[start:end] for name, start, end in zip(names, starts, ends, strict=True)}


def _inflate(file: TensorFile) -> bytes:
    """Unpacks the graph, but never more of it than a graph can have."""
    inflater = zlib.decompressobj()
    try:
        skeleton = inflater.decompress(file.tensor("skeleton").tobytes(), LARGEST_SKELETON)
    except zlib.error as error:
        raise file.fail("is damaged: its graph cannot be unpacked") from error
    if not inflater.eof:
        raise file.fail(f"is damaged: its graph is cut off, or larger than {LARGEST_SKELETON >> 20} MB")
    return skeleton


def _users(children: Sequence[Child], layer: str, width: int) -> list[Child]:
    return [child for child in children if child.weights.of(layer) == width]


def _shared_column(layer: FrozenLayer, users: Sequence[Child], kind: str) -> NDArray[Any]:
    """A column of the grid that children of one width share; zeros where none has the layer at that width."""
    columns = [getattr(layer.grids[child], kind) for child in users]
    if kind != "bits":
        columns = [column * _signs(layer.grids[child]) for column, child in zip(columns, users, strict=True)]
    if any(not np.array_equal(column, columns[0]) for column in columns):
        raise ValueError(f"children {', '.join(child.name for child in users)} have one width and different grids")
    return columns[0] if columns else np.zeros(len(layer.codes), np.int8)


def _table(layer: FrozenLayer, users: Sequence[Child], width: int) -> NDArray[Any]:
    """The table of a layer at a width, ``(C, 2^width)``; zeros where no child has the layer at that width."""
    found = next((layer.grids[child].table for child in users), None)
    return np.zeros((len(layer.codes), 1 << width), np.int8) if found is None else found


def _signs(grid: Grid) -> NDArray[np.int16]:
    """1 or -1 per channel: what a norm's gain made of a slope that is never negative; a constant channel has none."""
    turned = np.where(grid.slope != 0, np.sign(grid.slope), np.sign(grid.offset))
    return np.where(turned < 0, -1, 1).astype(np.int16)


def _kind(layer: FrozenLayer) -> Literal["odd", "integer", "table", "int8"]:
    if layer.pinned:
        return PINNED
    return next(iter(layer.grids.values())).kind

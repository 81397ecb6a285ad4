"""What the header of an ``.emq`` says, and which tensors follow from it: what its reader and its writer agree on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Literal

import msgspec
import numpy as np
from msgspec import Meta

from emqdeploy.format.card import MOST_CHILDREN, Card, ChildRecord, Digest, Name, Positive, Record, Side
from emqdeploy.format.child import ACTIVATION_BITS, Child
from emqdeploy.format.frozen import check_layers
from emqdeploy.format.grid import HIGHEST_ZERO, TABLE, WIDEST_TABLE
from emqdeploy.format.levels import FULL
from emqdeploy.format.tensor_file import ALIGNMENT, Shape

PINNED: Literal["int8"] = "int8"
"""Kind of a layer that stays at 8 bits: its integers are stored as they are."""

SHARED = ("slope", "offset", "bits")
"""Tables of a weight width, int8: what its children have in common."""

FORMATS = (3, 4)
"""Formats that can be read. The fourth brought layers whose codes stand for numbers of a table."""

OWN = {"scale": np.float32, "bias": np.float32, "sign": np.int8}
"""Tables of a child and their types."""

_LAYER_START = 8 * ALIGNMENT
"""Codes from the start of one layer to that of the next: eight codes a byte in each plane."""


class LayerRecord(Record, frozen=True):
    """A layer: its weights, the site that it reads, and the kind of its grid."""

    name: Name
    shape: Annotated[tuple[Side, ...], Meta(min_length=2, max_length=4)]
    site: Name
    kind: Literal["odd", "integer", "table", "int8"]


class SiteRecord(Record, frozen=True, omit_defaults=True):
    """An activation tensor: bits and scale per child, in the order of the children; whether the graph clamps it.

    A signed one at full levels may have a code of zero of its own.
    """

    name: Name
    signed: bool
    bits: tuple[Annotated[int, Meta(ge=ACTIVATION_BITS[0], le=ACTIVATION_BITS[-1])], ...]
    scales: tuple[Positive, ...]
    clamped: bool
    zero_point: Annotated[int, Meta(ge=1, le=HIGHEST_ZERO)] | None = None


class Header(Record, frozen=True):
    """Everything but the tensors."""

    format_version: int
    card: Card
    children: Annotated[tuple[ChildRecord, ...], Meta(min_length=1, max_length=MOST_CHILDREN)]
    layers: tuple[LayerRecord, ...]
    sites: tuple[SiteRecord, ...]
    hashes: dict[str, Digest]


class Version(msgspec.Struct):
    """All that is read of a file before its format is known."""

    format_version: int


def format_of(layers: Iterable[LayerRecord]) -> int:
    """The oldest format that can say what a file holds: older readers refuse what they would misread."""
    return FORMATS[any(layer.kind == TABLE for layer in layers)]


def check_structure(header: Header, children: Sequence[Child]) -> None:
    """Raises `ValueError` for layers, sites and children that do not fit one another."""
    for what, records in (("layer", header.layers), ("site", header.sites)):
        names = [record.name for record in records]
        if len(set(names)) < len(names):
            raise ValueError(f"a {what} is there twice")
    sites = {site.name for site in header.sites}
    for layer in header.layers:
        if layer.site not in sites:
            raise ValueError(f"layer {layer.name!r} reads site {layer.site!r}, which the file does not have")
    for site in header.sites:
        if not len(site.bits) == len(site.scales) == len(children):
            raise ValueError(f"site {site.name!r} needs bits and a scale for each child")
        if site.zero_point is not None and not (site.signed and header.card.levels == FULL):
            raise ValueError(f"site {site.name!r} has a zero point, which only signed ones at full levels have")
    pinned = {layer.name: layer.kind == PINNED for layer in header.layers}
    for child in children:
        check_layers(child, list(pinned), pinned)
    if format_of(header.layers) > header.format_version:
        raise ValueError(f"it has tables, which came with format {format_of(header.layers)}")
    for name in tabled(header.layers):
        widths = widths_of(children, [name])
        if len(widths) > 1 or widths[0] > WIDEST_TABLE:
            raise ValueError(f"layer {name!r} has tables of other than one width up to {WIDEST_TABLE}")


def expected_tensors(header: Header, children: Sequence[Child]) -> dict[str, tuple[type, Shape | None]]:
    """Type and shape of every tensor, as they follow from the layers."""
    sizes = [count(layer.shape) for layer in header.layers if layer.kind != PINNED]
    every = (sum(layer.shape[0] for layer in header.layers),)
    table = (sum(layer.shape[0] for layer in header.layers if layer.kind != PINNED),)
    plane = (places(sizes)[-1] // 8,)
    pinned = sum(count(layer.shape) for layer in header.layers if layer.kind == PINNED)
    expected: dict[str, tuple[type, Shape | None]] = {"pinned": (np.int8, (pinned,)), "skeleton": (np.uint8, None)}
    layers = [layer.name for layer in header.layers if layer.kind != PINNED]
    numbers = sum(layer.shape[0] for layer in header.layers if layer.kind == TABLE)
    for name in tensors_of(children, layers, tabled(header.layers)):
        kind, _, width = name.partition("/")
        if kind in OWN:
            expected[name] = (OWN[kind], every)
        elif kind == TABLE:
            expected[name] = (np.int8, (numbers << int(width),))
        else:
            expected[name] = (np.int8, table) if kind in SHARED else (np.uint8, plane)
    floats = (name for name in header.hashes if name.startswith("float/"))
    return expected | {name: (np.float32, None) for name in floats}


def tabled(layers: Iterable[LayerRecord]) -> list[str]:
    """Names of the layers whose codes stand for numbers of a table."""
    return [layer.name for layer in layers if layer.kind == TABLE]


def tensors_of(children: Sequence[Child], layers: Sequence[str], tables: Sequence[str]) -> list[str]:
    """Names of the tensors that children need beyond those that all have in common.

    Args:
        children: those that are needed.
        layers: the switchable ones.
        tables: those among them that have tables.
    """
    widths = widths_of(children, layers)
    planes = [f"plane{index}" for index in range(max(widths, default=1))]
    shared = [f"{kind}/{width}" for width in widths for kind in SHARED]
    shared += [f"{TABLE}/{width}" for width in widths_of(children, tables)]
    return planes + shared + [f"{kind}/{child.name}" for child in children for kind in OWN]


def count(shape: Sequence[int]) -> int:
    """Numbers in a tensor."""
    count = 1
    for side in shape:
        count *= side
    return count


def places(sizes: Iterable[int]) -> list[int]:
    """Where each layer's codes begin among all codes, and behind them where the last one ends."""
    places = [0]
    for size in sizes:
        places.append(places[-1] + -(-size // _LAYER_START) * _LAYER_START)
    return places


def widths_of(children: Sequence[Child], layers: Iterable[str]) -> list[int]:
    """The weight widths that some of the layers has at some child, ascending."""
    names = list(layers)
    return sorted({child.weights.of(name) for child in children for name in names})

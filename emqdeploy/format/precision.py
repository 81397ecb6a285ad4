"""What the layers of a network are stored and computed as, in one runtime or one file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from emqdeploy.format.card import Name, Record, Text

INT8 = "int8"
FLOAT32 = "float32"
UNKNOWN = "unknown"


class LayerPrecision(Record, frozen=True):
    """What a layer is, honestly: its grid, its bytes and its kernel.

    Attributes:
        name: of the layer.
        grid_bits: bits of the weight grid, which decide the accuracy.
        stored_as: the type in which the artefact keeps the weights.
        computed_as: how the runtime multiplies, in its own words, read from the kernels that really ran.
        integer: whether that is exact arithmetic of integers; None where the runtime did not tell.
    """

    name: Name
    grid_bits: int
    stored_as: Text
    computed_as: Text = UNKNOWN
    integer: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        return values


def bit_planes(bits: int) -> str:
    """How a checkpoint stores the weights of a switchable layer."""
    return f"{bits} bit-plane{'s' if bits > 1 else ''}"


def float_layers(layers: Sequence[LayerPrecision]) -> list[str]:
    """Names of the layers that are known to compute in float."""
    return [layer.name for layer in layers if layer.integer is False]


def stored_as(layers: Sequence[LayerPrecision]) -> str:
    """The type in which layers are stored; the narrowest and the widest where not only some stay at 8 bits."""
    kinds = Counter(layer.stored_as for layer in layers)
    most = kinds.most_common(1)[0][0] if kinds else FLOAT32
    if set(kinds) - {INT8} <= {most}:
        return most
    ordered = sorted(kinds, key=lambda kind: int(re.sub(r"\D", "", kind) or 0))
    return f"{ordered[0]} to {ordered[-1]}"


def computed_as(layers: Sequence[LayerPrecision]) -> str:
    """How the layers are computed, the most frequent way first; says of how many layers where they differ."""
    ways = Counter(layer.computed_as for layer in layers).most_common()
    if len(ways) < 2:
        return ways[0][0] if ways else FLOAT32
    (first, count), (other, _) = ways[0], ways[1]
    return f"{first} ({count} of {len(layers)} layers), else {other}"


def precision_summary(layers: Sequence[LayerPrecision]) -> dict[str, Any]:
    """What a network is stored and computed as, and how many of its layers run as integer kernels."""
    return {
        "stored_as": stored_as(layers),
        "computed_as": computed_as(layers),
        "integer_layers": sum(layer.integer is True for layer in layers),
        "layers": len(layers),
        "float_layers": [layer.name for layer in layers if layer.integer is not True],
        "per_layer": [layer.to_dict() for layer in layers],
    }

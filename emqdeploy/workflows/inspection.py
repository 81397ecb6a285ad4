"""What a checkpoint holds, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint, read_card
from emqdeploy.format.emq_schema import widths_of
from emqdeploy.format.frozen import UNIT_SUFFIX, FrozenLayer, FrozenNetwork
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.graph.floating import float_operators

TABLE_BITS_PER_CHANNEL = 32 + 32 + 8 + 8 + 8 + 8
"""Scale, bias, sign, slope, offset, used bits: what a channel carries besides its codes; small groups pay for it."""


def inspect(path: Path | None) -> dict[str, Any]:
    """Describes a checkpoint: children, layers with their effective bits, sizes, what its card says."""
    found = find_checkpoint(path)
    checkpoint = load_checkpoint(found)
    network, card = checkpoint.network, checkpoint.card
    sizes = read_card(found)[1]
    widths = widths_of(network.children, [name for name, layer in network.layers.items() if not layer.pinned])
    planes = max(widths, default=0)
    layers = []
    for name, layer in network.layers.items():
        reduced = {child.name: _channels_below(network, name, child) for child in network.children}
        layers.append(
            {
                "name": name,
                "kind": _kind(name, layer),
                "shape": list(layer.codes.shape),
                "stored_as": "int8, whole" if layer.pinned else f"{planes} bit-planes",
                "pinned": layer.pinned,
                "input": layer.site,
                "effective_bits": {child.name: round(_effective_bits(layer, child), 3) for child in network.children},
                "channels_below_nominal": {child: count for child, count in reduced.items() if count},
            }
        )
    sites = [
        {
            "name": name,
            "signed": site.signed,
            "bits": {child.name: bits for child, bits in site.bits.items()},
            "levels": {child.name: site.code_range(child).levels for child in network.children},
        }
        for name, site in network.sites.items()
    ]
    children = [
        child.to_dict()
        | {
            "trained": card.is_trained(child),
            "accuracy": card.accuracy.get(child.name),
            "size_bytes": sizes[child],
            "by_default": _by_default(network, child),
        }
        for child in network.children
    ]
    return {
        "path": str(found),
        "bits": sorted({child.bits for child in network.children}),
        "children": children,
        "weights": network.weight_count(),
        "size_bytes": checkpoint.size_bytes,
        "layers": layers,
        "activations": sites,
        "float_ops": _float_ops(checkpoint.skeleton),
        "card": card.to_dict(),
    }


def _by_default(network: FrozenNetwork, child: Child) -> dict[str, list[str]]:
    """Of a child whose map of layers to widths leaves some out: those that took the default."""
    maps = {
        "weights": (child.weights, [name for name, layer in network.layers.items() if not layer.pinned]),
        "activations": (child.activations, list(network.layers)),
    }
    return {
        what: [name for name in names if not widths.names(name)]
        for what, (widths, names) in maps.items()
        if not widths.uniform
    }


def _kind(name: str, layer: FrozenLayer) -> str:
    """What a layer is; a normalization that follows no layer is deployed as a depthwise 1x1 convolution."""
    if name.endswith(UNIT_SUFFIX):
        return "normalization"
    return "convolution" if layer.codes.ndim == 4 else "linear"


def _channels_below(network: FrozenNetwork, name: str, child: Child) -> int:
    """Channels that use fewer bits than the child gives their layer."""
    layer = network.layers[name]
    return 0 if layer.pinned else int((layer.grids[child].bits < child.weights.of(name)).sum())


def _float_ops(skeleton: bytes) -> dict[str, int] | None:
    """Operators between the layers that compute in float at every child; None where protobuf is missing."""
    try:
        return float_operators(skeleton)
    except EmqError:
        return None


def _effective_bits(layer: FrozenLayer, child: Child) -> float:
    """Bits per weight that a layer really needs at a child, its per-channel numbers included."""
    grid = layer.grids[child]
    width = 8.0 if layer.pinned else float(grid.bits.mean())
    numbers = 0 if grid.table is None else 8 * grid.table.size
    return width + (TABLE_BITS_PER_CHANNEL * len(layer.codes) + numbers) / layer.codes.size

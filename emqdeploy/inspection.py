"""What a checkpoint holds, layer by layer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.errors import EmqError
from emqdeploy.floating import float_operators
from emqdeploy.frozen import UNIT_SUFFIX, FrozenLayer
from emqdeploy.runs import find_checkpoint

TABLE_BITS_PER_CHANNEL = 32 + 32 + 8 + 8 + 8
"""Scale, bias, slope, offset, used bits: what a channel carries besides its codes; small groups pay dearly for it."""


def inspect(path: Path | None) -> dict[str, Any]:
    """Describes a checkpoint: bit-widths, layers with their effective bits, sizes, metadata."""
    found = find_checkpoint(path)
    checkpoint = load_checkpoint(found)
    network = checkpoint.network
    layers = []
    for name, layer in network.layers.items():
        reduced = {bits: int((layer.grids[bits].bits < bits).sum()) for bits in network.widths if not layer.pinned}
        layers.append(
            {
                "name": name,
                "kind": _kind(name, layer),
                "shape": list(layer.codes.shape),
                "stored_as": "int8, whole" if layer.pinned else f"{max(network.widths)} bit-planes",
                "pinned": layer.pinned,
                "input": layer.site,
                "effective_bits": {str(bits): round(_effective_bits(layer, bits), 3) for bits in network.widths},
                "channels_below_nominal": {str(bits): count for bits, count in reduced.items() if count},
            }
        )
    sites = [
        {
            "name": name,
            "signed": site.signed,
            "bits": {str(bits): width for bits, width in site.bits.items()},
            "levels": {str(bits): site.code_range(bits).levels for bits in network.widths},
        }
        for name, site in network.sites.items()
    ]
    return {
        "path": str(found),
        "bits": list(network.widths),
        "trained_bits": list(checkpoint.trained_bits),
        "weights": network.weight_count(),
        "size_bytes": checkpoint.size_bytes,
        "size_bytes_per_bits": {str(bits): load_checkpoint(found, bits).bytes_read for bits in network.widths},
        "layers": layers,
        "activations": sites,
        "float_ops": _float_ops(checkpoint.skeleton),
        "metadata": checkpoint.metadata,
    }


def _kind(name: str, layer: FrozenLayer) -> str:
    """What a layer is; a normalization that follows no layer is deployed as a depthwise 1x1 convolution."""
    if name.endswith(UNIT_SUFFIX):
        return "normalization"
    return "convolution" if layer.codes.ndim == 4 else "linear"


def _float_ops(skeleton: bytes) -> dict[str, int] | None:
    """Operators between the layers that compute in float at every bit-width; None where the onnx package is missing."""
    try:
        return float_operators(skeleton)
    except EmqError:
        return None


def _effective_bits(layer: FrozenLayer, bits: int) -> float:
    """Bits per weight that a layer really needs at a bit-width, its per-channel numbers included."""
    channels = len(layer.codes)
    width = 8.0 if layer.pinned else float(layer.grids[bits].bits.mean())
    return width + TABLE_BITS_PER_CHANNEL * channels / layer.codes.size

"""Turns every padding that is not symmetric and of zeros into an operator of its own, which moves codes."""

from __future__ import annotations

from typing import Any

import torch.nn.functional as F
from torch import fx, nn

from emqdeploy.quant.rewrites.base import Stage, Traced, dims, rewrite

_PADS: dict[str, type[nn.Module]] = {
    "zeros": nn.ZeroPad2d,
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


@rewrite(Stage.SHAPES)
def pad_before(traced: Traced) -> None:
    """Writes a convolution's ``same`` padding as numbers, and paddings that its kernels lack as a step before it."""
    for _, nodes in traced.calls_of(nn.Conv2d):
        layer = traced.called(nodes[0])
        assert isinstance(layer, nn.Conv2d)
        if layer.padding == "valid":
            layer.padding = (0, 0)
        if layer.padding == "same":
            spans = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
            ends = [(span // 2, span - span // 2) for span in spans]
        else:
            ends = [(int(pad), int(pad)) for pad in layer.padding]
        for node in nodes:
            _pad(traced, node, layer, ends, layer.padding_mode)
        _settle(layer, ends)


@rewrite(Stage.SHAPES)
def pad_as_tensorflow(traced: Traced) -> None:
    """Resolves timm's paddings that depend on the size of the image."""
    for node in traced.nodes:
        layer = traced.called(node)
        sizes = dims(node.all_input_nodes[0]) if node.all_input_nodes else None
        if sizes is None or len(sizes) != 4:
            continue
        if type(layer).__name__ == "Conv2dSame" and isinstance(layer, nn.Conv2d):
            layer.__class__ = nn.Conv2d
            options = zip(sizes[2:], layer.kernel_size, layer.stride, layer.dilation, strict=True)
            totals = [max((-(-size // s) - 1) * s + (k - 1) * d + 1 - size, 0) for size, k, s, d in options]  # type: ignore[operator]
            ends = [(total // 2, total - total // 2) for total in totals]
            _pad(traced, node, layer, ends, "zeros")
            _settle(layer, ends)


def _pad(traced: Traced, node: fx.Node, layer: nn.Conv2d, ends: list[tuple[int, int]], mode: str) -> None:
    """Puts the padding before a convolution where its kernels cannot pad like that."""
    (top, bottom), (left, right) = ends
    if (mode == "zeros" and top == bottom and left == right) or not (top or bottom or left or right):
        return
    name = traced.add(f"{node.target}_pad", _PADS[mode]((left, right, top, bottom)))
    source = node.all_input_nodes[0]
    node.replace_input_with(source, traced.call(node, name, source))


def _settle(layer: nn.Conv2d, ends: list[tuple[int, int]]) -> None:
    symmetric = layer.padding_mode == "zeros" and all(start == end for start, end in ends)
    layer.padding = tuple(start for start, _ in ends) if symmetric else (0, 0)
    layer.padding_mode = "zeros"


def pads_zeros(node: fx.Node) -> bool:
    """Whether a node calls `F.pad` with zeros, or with values of the tensor itself."""
    if node.target is not F.pad:
        return False
    given: dict[str, Any] = dict(zip(("input", "pad", "mode", "value"), node.args, strict=False)) | node.kwargs
    return given.get("mode", "constant") != "constant" or not given.get("value")

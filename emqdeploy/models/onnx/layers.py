"""ONNX operators with weights, and poolings, as modules of torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from emqdeploy.models.onnx.building import Building, Value
from emqdeploy.models.onnx.file import Node
from emqdeploy.registry import Registry

Reader = Callable[[Building, Node], Value | list[Value]]
OPERATORS: Registry[Reader] = Registry("ONNX operator")
"""By ONNX's name: what makes steps of an operator that images reach."""

operator = OPERATORS.register


@operator("Conv")
def _conv(net: Building, node: Node) -> Value:
    x, weight = net.image(node), _wanted(net, node, 1)
    bias = net.constant(node, 2)
    rank = weight.ndim - 2
    if rank not in (1, 2):
        raise net.refuse(node, f"is a convolution over {rank} axes")
    kernel = list(weight.shape[2:])
    stride = node.attributes.get("strides", [1] * rank)
    dilation = node.attributes.get("dilations", [1] * rank)
    groups = int(node.attributes.get("group", 1))
    before, after = _pads(net, node, x, kernel, stride, dilation)
    if before != after:
        if rank == 1:
            raise net.refuse(node, "pads a sequence unevenly")
        x = net.module(node, "ZeroPad2d", x, {"padding": _torch_pads(before, after)})
        before = [0] * rank
    settings = {"in_channels": weight.shape[1] * groups, "out_channels": weight.shape[0], "kernel_size": kernel}
    settings |= {"stride": stride, "padding": before, "dilation": dilation, "groups": groups, "bias": bias is not None}
    return net.module(node, f"Conv{rank}d", x, settings, weight=weight, bias=bias)


@operator("Gemm")
def _gemm(net: Building, node: Node) -> Value:
    x, weight, bias = net.image(node), _wanted(net, node, 1), net.constant(node, 2)
    if node.attributes.get("transA") or weight.ndim != 2:
        raise net.refuse(node, "multiplies with the images transposed")
    weight = weight if node.attributes.get("transB") else weight.T
    weight = weight * np.float32(node.attributes.get("alpha", 1.0))
    if bias is not None:
        bias = np.broadcast_to(bias.reshape(-1) * np.float32(node.attributes.get("beta", 1.0)), weight.shape[:1])
    return _linear(net, node, x, weight, bias)


@operator("MatMul")
def _matmul(net: Building, node: Node) -> Value:
    if node.inputs[1] in net.known and node.inputs[0] in net.values:
        weight = _wanted(net, node, 1)
        if weight.ndim == 2:
            return _linear(net, node, net.image(node), weight.T, None)
    return net.call(node, "matmul", *(_either(net, node, place) for place in (0, 1)))


def _linear(net: Building, node: Node, x: Value, weight: Any, bias: Any) -> Value:
    settings = {"in_features": weight.shape[1], "out_features": weight.shape[0], "bias": bias is not None}
    return net.module(node, "Linear", x, settings, weight=weight, bias=bias)


@operator("BatchNormalization")
def _batch_norm(net: Building, node: Node) -> Value:
    x = net.image(node)
    if node.attributes.get("training_mode") or any(node.outputs[1:]):
        raise net.refuse(node, "normalizes with the statistics of the batch; export the network in evaluation mode")
    scale, shift, mean, variance = (_wanted(net, node, place) for place in (1, 2, 3, 4))
    settings = {"num_features": len(scale), "eps": float(node.attributes.get("epsilon", 1e-5))}
    kind = "BatchNorm2d" if len(x.sizes) == 4 else "BatchNorm1d"
    weights = {"weight": scale, "bias": shift, "running_mean": mean, "running_var": variance}
    value = net.module(node, kind, x, settings, **weights)
    net.state[f"{value.name}.num_batches_tracked"] = torch.tensor(0)
    return value


@operator("LayerNormalization")
def _layer_norm(net: Building, node: Node) -> Value:
    x, scale, bias = net.image(node), _wanted(net, node, 1), net.constant(node, 2)
    axis = int(node.attributes.get("axis", -1)) % len(x.sizes)
    shape = list(x.sizes[axis:])
    settings = {"normalized_shape": shape, "eps": float(node.attributes.get("epsilon", 1e-5)), "bias": bias is not None}
    shaped = [None if one is None else np.broadcast_to(one, shape) for one in (scale, bias)]
    return net.module(node, "LayerNorm", x, settings, weight=shaped[0], bias=shaped[1])


@operator("PRelu")
def _prelu(net: Building, node: Node) -> Value:
    slope = _wanted(net, node, 1).reshape(-1)
    return net.module(node, "PReLU", net.image(node), {"num_parameters": len(slope)}, weight=slope)


@operator("MaxPool")
def _max_pool(net: Building, node: Node) -> Value:
    return _pool(net, node, "MaxPool2d")


@operator("AveragePool")
def _average_pool(net: Building, node: Node) -> Value:
    return _pool(net, node, "AvgPool2d")


def _pool(net: Building, node: Node, kind: str) -> Value:
    x = net.image(node)
    kernel = node.attributes.get("kernel_shape", [])
    if len(kernel) != 2 or any(node.outputs[1:]):
        raise net.refuse(node, f"pools over {len(kernel)} axes, or gives places too")
    stride = node.attributes.get("strides", [1, 1])
    dilation = node.attributes.get("dilations", [1, 1])
    before, after = _pads(net, node, x, kernel, stride, dilation)
    ceil = bool(node.attributes.get("ceil_mode", 0))
    settings: dict[str, Any] = {"kernel_size": kernel, "stride": stride}
    settings |= {"dilation": dilation} if kind == "MaxPool2d" else {}
    if kind == "AvgPool2d":
        if dilation != [1, 1]:
            raise net.refuse(node, "averages with gaps")
        # Of a window that the padding fills partly, either all of it counts or only what the image fills.
        settings["count_include_pad"] = bool(node.attributes.get("count_include_pad", 0))
    if before != after:
        counted = kind == "AvgPool2d" and settings["count_include_pad"]
        if counted:
            x, before = net.module(node, "ZeroPad2d", x, {"padding": _torch_pads(before, after)}), [0, 0]
        elif any(before) or any(end >= step for end, step in zip(after, stride, strict=True)):
            raise net.refuse(node, f"pads unevenly ({before} before, {after} after)")
        else:  # a last window that begins inside is cut at the border, as this padding would be
            ceil = True
    return net.module(node, kind, x, settings | {"padding": before, "ceil_mode": ceil})


@operator("GlobalAveragePool")
def _global_average(net: Building, node: Node) -> Value:
    return net.module(node, "AdaptiveAvgPool2d", net.image(node), {"output_size": 1})


@operator("GlobalMaxPool")
def _global_max(net: Building, node: Node) -> Value:
    return net.module(node, "AdaptiveMaxPool2d", net.image(node), {"output_size": 1})


def _pads(
    net: Building, node: Node, x: Value, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Padding before and after each axis."""
    rank, auto = len(kernel), node.attributes.get("auto_pad", "NOTSET")
    if auto in ("NOTSET", "VALID"):
        pads = node.attributes.get("pads", [0] * 2 * rank) if auto == "NOTSET" else [0] * 2 * rank
        return list(pads[:rank]), list(pads[rank:])
    if auto not in ("SAME_UPPER", "SAME_LOWER") or len(x.sizes) != rank + 2:
        raise net.refuse(node, f"pads in the manner {auto!r}")
    before, after = [], []
    for side, size, step, gap in zip(x.sizes[2:], kernel, stride, dilation, strict=True):
        total = max((math.ceil(side / step) - 1) * step + (size - 1) * gap + 1 - side, 0)
        halves = total // 2, total - total // 2
        before.append(halves[auto == "SAME_LOWER"])
        after.append(halves[auto == "SAME_UPPER"])
    return before, after


def _torch_pads(before: Sequence[int], after: Sequence[int]) -> list[int]:
    """As torch counts: from the last axis, before and after."""
    pairs = zip(reversed(before), reversed(after), strict=True)
    return [int(size) for pair in pairs for size in pair]


def _wanted(net: Building, node: Node, place: int) -> Any:
    found = net.constant(node, place)
    if found is None:
        raise net.refuse(node, f"lacks its input {place}")
    return found


def _either(net: Building, node: Node, place: int) -> Any:
    """A value that images reach, or a constant."""
    name = node.inputs[place]
    return net.values[name] if name in net.values else _wanted(net, node, place)

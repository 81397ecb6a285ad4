"""What a graph needs so that OpenVINO answers as it was trained; needs the onnx package, no runtime."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from emqdeploy.errors import require

_LOWEST = "lowest float"

_FEW_LEVELS = 127
"""Steps of a tensor below which a rounding that is left out changes answers: 8 bits are fine, 4 bits are not."""


def keep_rounding(model: Any) -> int:
    """Keeps apart what OpenVINO's fusions would make another network of.

    Args:
        model: a filled ONNX model, changed in place.

    Returns:
        how many tensors were kept apart.
    """
    return _keep_biases(model) + _keep_sums_apart(model) + _keep_borders(model)


def _keep_sums_apart(model: Any) -> int:
    """Keeps the quantizer between a convolution and a residual add apart from both.

    OpenVINO fuses the three and then leaves out the rounding: with 4-bit activations codes of the sum
    differ by one and images change their class. Pooling over single values, which moves nothing,
    ends the fusion there; it costs 3 to 4 % of ResNet-18, so networks whose tensors all have 8 bits go without. In a
    pre-activation network the sums have 8 bits, and it is the layers behind them that have fewer.
    """
    onnx = require("onnx", "export")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    nodes = list(graph.node)
    kept = 0
    bounds = [[constants.get(name) for name in node.input[1:]] for node in nodes if node.op_type == "Clip"]
    codes = [
        pair for pair in bounds if all(end is not None and end.data_type == onnx.TensorProto.UINT8 for end in pair)
    ]
    ranges = [[int(onnx.numpy_helper.to_array(end)) for end in pair] for pair in codes]
    if all(high - low >= _FEW_LEVELS for low, high in ranges):
        return 0
    for add in graph.node:
        for value in add.input if add.op_type == "Add" else ():
            chain = _quantized_convolution(producers, value)
            # What others read too is never fused.
            if chain is None or readers[chain[0].input[0]] > 1 or readers[value] > 1:
                continue
            dequantize = chain[0]
            name = f"{dequantize.name}/apart"
            nodes.insert(nodes.index(dequantize), _put_before(dequantize, name))
            kept += 1
    _replace(graph, nodes)
    return kept


def _keep_biases(model: Any) -> int:
    """Keeps the first convolutions of a network that asks for its batch's size apart from their quantizers.

    OpenVINO reads that size off the first convolution's answer, which so has two readers. Then it moves the bias into
    the quantizer, where every channel gets that of the first.
    """
    graph = model.graph
    if not any(node.op_type == "Shape" for node in graph.node):
        return 0
    producers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    nodes = list(graph.node)
    kept = 0
    for quantize in graph.node:
        convolution = producers.get(quantize.input[0]) if quantize.op_type == "QuantizeLinear" else None
        if convolution is not None and convolution.op_type == "Conv" and _reads_images(producers, convolution):
            nodes.insert(nodes.index(quantize), _put_before(quantize, f"{quantize.name}/apart"))
            kept += 1
    _replace(graph, nodes)
    return kept


def _keep_borders(model: Any) -> int:
    """Keeps means over windows with padding in float where zero has another code than 0.

    OpenVINO averages codes and pads them with code 0. A maximum with the lowest float changes nothing and stops that.
    """
    onnx = require("onnx", "export")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    nodes = list(graph.node)
    kept = 0
    for pool in graph.node:
        source = producers.get(pool.input[0]) if pool.op_type == "AveragePool" else None
        attributes = {one.name: onnx.helper.get_attribute_value(one) for one in pool.attribute}
        counted = attributes.get("count_include_pad") and any(attributes.get("pads", ()))
        if source is None or source.op_type != "DequantizeLinear" or not counted:
            continue
        if onnx.numpy_helper.to_array(constants[source.input[2]]).any():
            name = f"{pool.name}/apart"
            nodes.insert(nodes.index(pool), onnx.helper.make_node("Max", [pool.input[0], _LOWEST], [name], name=name))
            pool.input[0] = name
            kept += 1
    if kept:
        graph.initializer.append(onnx.numpy_helper.from_array(np.finfo(np.float32).min, _LOWEST))
        _replace(graph, nodes)
    return kept


def _reads_images(producers: dict[str, Any], node: Any) -> bool:
    """Whether only quantizers stand between the images and a node."""
    value = node.input[0]
    while value in producers:
        if producers[value].op_type not in ("QuantizeLinear", "Clip", "DequantizeLinear"):
            return False
        value = producers[value].input[0]
    return True


def _put_before(reader: Any, name: str) -> Any:
    """A pooling over single values in front of a node, which then reads it."""
    node = require("onnx", "export").helper.make_node(
        "MaxPool", [reader.input[0]], [name], name=name, kernel_shape=[1, 1]
    )
    reader.input[0] = name
    return node


def _replace(graph: Any, nodes: list[Any]) -> None:
    copies = [node.SerializeToString() for node in nodes]
    del graph.node[:]
    for data in copies:
        graph.node.add().ParseFromString(data)


def _quantized_convolution(producers: dict[str, Any], value: str) -> list[Any] | None:
    """The nodes that make a value out of a convolution's answer, the nearest first; None for any other value."""
    nodes: list[Any] = []
    for operator in ("DequantizeLinear", "Clip", "QuantizeLinear", "Conv"):
        node = producers.get(value)
        if operator == "Clip" and node is not None and node.op_type != operator:
            continue  # a tensor of 256 levels needs none
        if node is None or node.op_type != operator:
            return None
        nodes.append(node)
        value = node.input[0]
    return nodes

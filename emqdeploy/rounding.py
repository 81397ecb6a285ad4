"""What a graph needs so that OpenVINO rounds every quantized tensor; needs the onnx package, no runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from emqdeploy.errors import require

_FEW_LEVELS = 127
"""Steps of a tensor below which a rounding that is left out changes answers: 8 bits are fine, 4 bits are not."""


def keep_rounding(model: Any) -> int:
    """Keeps the quantizer between a convolution and a residual add apart from both, in a filled graph.

    OpenVINO fuses the three and then leaves out the rounding: with 4-bit activations a quarter of the sum's codes
    differ by one, and up to 1.4 % of the images change their class. Pooling over single values, which moves nothing,
    ends the fusion there; it costs 3 to 4 % of ResNet-18, so tensors of 8 bits go without.

    Args:
        model: an ONNX model, changed in place.

    Returns:
        how many tensors were kept apart.
    """
    onnx = require("onnx", "export")
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    producers: dict[str, Any] = {name: node for node in graph.node for name in node.output}
    readers = Counter(name for node in graph.node for name in node.input)
    nodes = list(graph.node)
    kept = 0
    for add in graph.node:
        for value in add.input if add.op_type == "Add" else ():
            chain = _chain(producers, value, ("DequantizeLinear", "Clip", "QuantizeLinear", "Conv"))
            if chain is None:
                continue
            dequantize, clip, *_ = chain
            low, high = (int(onnx.numpy_helper.to_array(constants[name])) for name in clip.input[1:])
            # What others read too is never fused.
            alone = readers[clip.output[0]] == readers[value] == 1
            if high - low >= _FEW_LEVELS or not alone:
                continue
            name = f"{dequantize.name}/apart"
            nodes.insert(
                nodes.index(dequantize),
                onnx.helper.make_node("MaxPool", [dequantize.input[0]], [name], name=name, kernel_shape=[1, 1]),
            )
            dequantize.input[0] = name
            kept += 1
    copies = [node.SerializeToString() for node in nodes]
    del graph.node[:]
    for data in copies:
        graph.node.add().ParseFromString(data)
    return kept


def _chain(producers: dict[str, Any], value: str, operators: Sequence[str]) -> list[Any] | None:
    """The nodes behind a value, the nearest first, where they are these operators."""
    nodes: list[Any] = []
    for operator in operators:
        node = producers.get(value)
        if node is None or node.op_type != operator:
            return None
        nodes.append(node)
        value = node.input[0]
    return nodes

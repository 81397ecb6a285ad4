"""The float32 network of a child: its layers with the weights that codes stand for, and no quantizer between them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.child import Child
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.onnx_messages import fill_tensor, load_model, to_array

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def unquantized(skeleton: bytes, network: FrozenNetwork, child: Child) -> bytes:
    """Returns a serialised ONNX graph that computes in float32 what a child computes in integers, without its rounding.

    What bounds codes, a ReLU above all, bounds values at the same places. It is what a runtime would run had nothing
    been quantized: so much work, with so much memory.

    Args:
        skeleton: the weightless graph of a checkpoint.
        network: its numbers.
        child: whose weights are taken.
    """
    arrays = network.initializers(child)
    model = load_model(skeleton)
    zeros = {tensor.name: to_array(tensor) for tensor in model.graph.initializer if tensor.name not in arrays}
    values: dict[str, NDArray[Any]] = dict(network.floats)
    for name in network.layers:
        scale = arrays[f"{name}.weight_scale"]
        weights = arrays[f"{name}.weight"]
        values[f"{name}.weight"] = weights * scale.reshape(-1, *[1] * (weights.ndim - 1))
        values[f"{name}.bias"] = arrays[f"{name}.bias"] * arrays[f"{name}.bias_scale"]
    grids: dict[str, tuple[str, str]] = {}  # scale and zero point of a value that lay on a grid
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            grids[node.output[0]] = (node.input[1], node.input[2] if len(node.input) > 2 else "")
            _keep(node, "Identity", node.input[:1])
        elif node.op_type == "Clip" and node.input[0] in grids:
            step, zero = grids[node.input[0]]
            for bound in node.input[1:]:
                values[bound] = (arrays[bound].astype(np.float32) - zeros[zero]) * arrays[step]
    for tensor in model.graph.initializer:
        if tensor.name in values:
            fill_tensor(tensor, np.asarray(values[tensor.name], np.float32))
        elif tensor.name in arrays:
            fill_tensor(tensor, arrays[tensor.name])
    _drop_unread(model.graph)
    data: bytes = model.SerializeToString()
    return data


def _keep(node: Any, operator: str, inputs: Any) -> None:
    """Makes another operator of a node, under the same name."""
    kept = list(inputs)
    node.op_type = operator
    del node.attribute[:], node.input[:]
    node.input.extend(kept)


def _drop_unread(graph: Any) -> None:
    """Leaves out the numbers of the quantizers that are gone."""
    read = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in read]
    del graph.initializer[:]
    graph.initializer.extend(kept)

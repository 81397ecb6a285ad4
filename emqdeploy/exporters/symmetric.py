"""The QDQ graph in the form that TensorRT takes: symmetric int8, no zero points, float biases.

The codes are the same numbers: a never-negative tensor uses 0..127 in uint8 and in int8, and a signed one moves from
uint8 around 128 to int8 around 0. What the uint8 form clamps with an integer Clip, this one clamps in float before
the quantizer, where TensorRT fuses it with the convolution: a ReLU at the lower end, and a Clip where a tensor has
fewer than 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.exporters.onnx_writer import filled_graph
from emqdeploy.exporters.selector import if_model, several
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.graph.building import Builder
from emqdeploy.graph.floating import float_nodes
from emqdeploy.graph.moves import carry_floats

_MOVERS = ("MaxPool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Identity", "Slice", "Gather")
"""Operators whose result is not negative where their input is not."""

INT8 = (-128, 127)

OPSET, IR_VERSION = 20, 9
"""No operator needs more, and the TensorRT of older JetPacks reads no more."""


def with_zero_points(skeleton: bytes, zero_points: Mapping[str, int]) -> bytes:
    """Returns a weightless graph, serialised, in which sites have other codes of zero.

    Args:
        skeleton: the graph, serialised.
        zero_points: by name of the site.
    """
    onnx = require("onnx", "export")
    model = onnx.load_from_string(skeleton)
    for tensor in model.graph.initializer:
        site, _, kind = tensor.name.rpartition(".")
        if kind == "zero_point" and site in zero_points:
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.array(zero_points[site], np.uint8), tensor.name))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def symmetric_model(checkpoint: Checkpoint, child: Child, fp16: bool = False) -> Any:
    """Returns the ONNX model of one child for TensorRT.

    Args:
        checkpoint: what is exported.
        child: a stored one.
        fp16: compute in float16 what is not quantized.
    """
    model = filled_graph(checkpoint, child)
    carry_floats(model)
    _float_biases(model)
    model.opset_import[0].version, model.ir_version = OPSET, IR_VERSION
    _symmetric_activations(model)
    if fp16:
        half_precision(model)
    return model


def symmetric_selector(checkpoint: Checkpoint, children: Sequence[Child], fp16: bool = False) -> Any:
    """Returns one ONNX model for at least two children, with a further input ``bits``: whole branches behind an If."""
    values = several(children)
    return if_model([symmetric_model(checkpoint, child, fp16) for child in values], values, isolated=True)


def _arrays(model: Any) -> dict[str, NDArray[Any]]:
    onnx = require("onnx", "export")
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _float_biases(model: Any) -> None:
    """Replaces ``DequantizeLinear(int32 bias)``, which TensorRT does not take, by its value."""
    onnx = require("onnx", "export")
    arrays = _arrays(model)
    kept, added, dropped = [], [], set()
    for node in model.graph.node:
        bias = arrays.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if bias is None or bias.dtype != np.int32:
            kept.append(node)
            continue
        value = bias.astype(np.float32) * arrays[node.input[1]]
        added.append(onnx.numpy_helper.from_array(value, node.output[0]))
        dropped |= set(node.input)
    _set_nodes(model, kept)
    Builder(model).drop(dropped)
    model.graph.initializer.extend(added)


def _symmetric_activations(model: Any) -> None:
    onnx = require("onnx", "export")
    arrays, nodes = _arrays(model), list(model.graph.node)
    producer = {name: node for node in nodes for name in node.output}
    readers: dict[str, list[Any]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    builder = Builder(model, prefix="symmetric")
    positive = {node.output[0] for node in nodes if _never_negative(node.output[0], producer, arrays)}
    zero = builder.constant(np.int8(0))
    clamped: set[str] = set()
    body: list[Any] = []
    for node in nodes:
        offset = arrays.get(node.input[2]) if len(node.input) > 2 else None
        on_codes = node.op_type in ("QuantizeLinear", "DequantizeLinear") and offset is not None
        if on_codes and offset is not None and offset.dtype == np.uint8:
            if node.op_type == "QuantizeLinear":
                clamp = next((user for user in readers[node.output[0]] if user.op_type == "Clip"), None)
                low, high = (int(arrays[name]) for name in clamp.input[1:]) if clamp is not None else (0, 255)
                if clamp is not None:
                    # The quantizer gives the codes that the clamp gave; they keep their name.
                    clamped.add(clamp.output[0])
                    node.output[0] = clamp.output[0]
                scale = float(arrays[node.input[1]])
                low, high = low - int(offset), min(high - int(offset), INT8[1])
                if low == 0 and node.input[0] in positive:
                    low = INT8[0]
                body.extend(_clamped(onnx, builder, node, (low, high), scale))
            node.input[2] = zero
        elif node.op_type == "Clip" and node.output[0] in clamped:
            continue
        body.append(node)
    _set_nodes(model, body)
    used = {name for node in body for name in node.input} | {node.name for node in model.graph.output}
    builder.drop({tensor.name for tensor in model.graph.initializer} - used)


def _clamped(onnx: Any, builder: Builder, node: Any, limits: tuple[int, int], scale: float) -> list[Any]:
    """The float clamp in front of a QuantizeLinear whose codes do not fill int8; the quantizer then reads it."""
    low, high = limits
    if limits == INT8:
        return []
    output = f"{node.output[0]}/clamped"
    if limits == (0, INT8[1]):
        clamp = onnx.helper.make_node("Relu", [node.input[0]], [output], name=f"{node.name}/relu")
    else:
        ends = [builder.constant(np.float32(end * scale)) for end in (low, high)]
        clamp = onnx.helper.make_node("Clip", [node.input[0], *ends], [output], name=f"{node.name}/clip")
    node.input[0] = output
    return [clamp]


def _never_negative(value: str, producer: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bool:
    node = producer.get(value)
    while node is not None and node.op_type in _MOVERS:
        node = producer.get(node.input[0])
    if node is None or node.op_type != "DequantizeLinear" or node.input[0] in arrays:
        return False
    return int(arrays[node.input[2]]) == 0


def _set_nodes(model: Any, nodes: list[Any]) -> None:
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def half_precision(model: Any) -> None:
    """Puts the float islands between quantized layers into float16, with casts at their shores.

    Quantizers and layers keep float32 scales: a float16 scale would be another network.
    """
    onnx = require("onnx", "export")
    helper, types = onnx.helper, onnx.TensorProto
    island = {node.output[0] for node in float_nodes(model) if node.op_type not in ("Relu", "ReduceMean")}
    floats = {tensor.name for tensor in model.graph.initializer if tensor.data_type == types.FLOAT}
    inferred = onnx.shape_inference.infer_shapes(model).graph
    values = (*inferred.value_info, *inferred.input, *inferred.output)
    floats |= {value.name for value in values if value.type.tensor_type.elem_type == types.FLOAT}
    half: dict[str, str] = {}
    body: list[Any] = []
    for node in model.graph.node:
        if node.output[0] not in island:
            body.append(node)
            continue
        for index, name in enumerate(node.input):
            if name in floats:
                if name not in half:
                    half[name] = f"{name}/half"
                    body.append(helper.make_node("Cast", [name], [half[name]], to=types.FLOAT16))
                node.input[index] = half[name]
        own, node.output[0] = node.output[0], f"{node.output[0]}/half"
        half[own] = node.output[0]
        body += [node, helper.make_node("Cast", [node.output[0]], [own], to=types.FLOAT)]
    _set_nodes(model, body)

"""The QDQ graph in the form that TensorRT takes: symmetric int8, no zero points, float biases.

The codes are the same numbers: a never-negative tensor uses 0..127 in uint8 and in int8, and a signed one moves from
uint8 around 128 to int8 around 0. What the uint8 form clamps with an integer Clip, this one clamps in float before
the quantizer, where TensorRT fuses it with the convolution: a ReLU at the lower end, and a Clip where a tensor has
fewer than 8 bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import UsageError, require
from emqdeploy.export.derive import Table, add_selector_input
from emqdeploy.export.graph import Builder, filled_graph, open_graph
from emqdeploy.export.selector import if_model, several
from emqdeploy.floating import float_nodes
from emqdeploy.grid import MASTER_BITS

_MOVERS = ("MaxPool", "GlobalAveragePool", "Reshape", "Flatten", "Transpose", "Squeeze", "Identity", "Slice", "Gather")
"""Operators whose result is not negative where their input is not."""

INT8 = (-128, 127)

OPSET, IR_VERSION = 20, 9
"""No operator needs more, and the TensorRT of older JetPacks reads no more."""


def symmetric_model(checkpoint: Checkpoint, bits: int, fp16: bool = False) -> Any:
    """Returns the ONNX model of one bit-width for TensorRT.

    Args:
        checkpoint: what is exported.
        bits: a stored bit-width.
        fp16: compute in float16 what is not quantized.
    """
    model = filled_graph(checkpoint, bits)
    _float_biases(model)
    return _finished(model, fp16)


def symmetric_selector(checkpoint: Checkpoint, widths: Sequence[int], kind: str, fp16: bool = False) -> Any:
    """Returns one ONNX model for several bit-widths, with a further input ``bits`` (int64, shape ``[1]``).

    Args:
        checkpoint: what is exported.
        widths: at least two stored bit-widths.
        kind: ``if`` for whole branches, ``derive`` for weights made from one int8 master at every inference.
        fp16: compute in float16 what is not quantized.

    Raises:
        UsageError: ``derive`` of a network whose activation scales depend on the bit-width, which TensorRT fixes when
            it builds.
    """
    ordered = several(widths)
    if kind == "if":
        return if_model([symmetric_model(checkpoint, width, fp16) for width in ordered], ordered, isolated=True)
    return _finished(_derived(checkpoint, ordered), fp16)


def _finished(model: Any, fp16: bool) -> Any:
    model.opset_import[0].version, model.ir_version = OPSET, IR_VERSION
    _symmetric_activations(model)
    if fp16:
        half_precision(model)
    return model


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


def _derived(checkpoint: Checkpoint, widths: list[int]) -> Any:
    """The open graph with weights made from an int8 master through a DequantizeLinear of scale 1, in float."""
    layers = checkpoint.network.layers
    model = open_graph(checkpoint)
    arrays = [checkpoint.network.initializers(width) for width in widths]
    builder = Builder(model)
    table = Table(builder, add_selector_input(builder, widths))
    computed = {f"{name}.{kind}" for name in layers for kind in ("weight", "weight_scale", "bias", "bias_scale")}
    builder.drop(set(arrays[0]))
    for name in sorted(set(arrays[0]) - computed):
        each = [array[name] for array in arrays]
        if not table.is_constant(each):
            raise UsageError(
                f"the scale of {name.rpartition('.')[0]!r} depends on the bit-width, and TensorRT fixes it when it"
                " builds; use --selector if"
            )
        builder.constant(each[0], name)
    outputs = {node.name: node.output[0] for node in model.graph.node}
    removed = set()
    for name, layer in layers.items():
        column = (-1,) + (1,) * (layer.codes.ndim - 1)
        removed |= {f"{name}/weight", f"{name}/bias"}
        biases = [array[f"{name}.bias"].astype(np.float32) * array[f"{name}.bias_scale"] for array in arrays]
        _named(builder, table.pick(biases), outputs[f"{name}/bias"])
        scales = [array[f"{name}.weight_scale"].reshape(column) for array in arrays]
        if layer.pinned:
            integers = builder.constant(layer.codes.view(np.int8), f"{name}.weight")
            signs = [layer.grids[width].slope.astype(np.float32).reshape(column) for width in widths]
            signed = [scale * np.sign(sign) for scale, sign in zip(scales, signs, strict=True)]
            builder.node("Mul", _master(builder, integers), table.pick(signed), out=outputs[f"{name}/weight"])
            continue
        codes = (layer.codes.view(np.uint8).astype(np.int16) - 128).astype(np.int8)
        master = builder.node("Add", _master(builder, builder.constant(codes, f"{name}.codes")), _float(builder, 128))
        grids = [layer.grids[width] for width in widths]
        used = [grid.bits.astype(np.int32).reshape(column) for grid in grids]
        slopes = [grid.slope.astype(np.float32).reshape(column) for grid in grids]
        levels = [np.exp2(bits).astype(np.float32) - 1 for bits in used]
        shares = table.pick([np.exp2(bits - MASTER_BITS).astype(np.float32) for bits in used])
        truncated = builder.node("Floor", builder.node("Mul", master, shares))
        product = builder.node("Mul", truncated, table.pick([2 * slope for slope in slopes]))
        offsets = [
            grid.offset.astype(np.float32).reshape(column) - slope * level
            for grid, slope, level in zip(grids, slopes, levels, strict=True)
        ]
        integers = builder.node("Add", product, table.pick(offsets))
        builder.node("Mul", integers, table.pick(scales), out=outputs[f"{name}/weight"])
    _set_nodes(model, [node for node in model.graph.node if node.name not in removed])
    return builder.finish()


def _master(builder: Builder, integers: str) -> str:
    """TensorRT takes an int8 constant in front of a DequantizeLinear only."""
    return builder.node("DequantizeLinear", integers, _float(builder, 1))


def _float(builder: Builder, value: float) -> str:
    return builder.constant(np.float32(value))


def _named(builder: Builder, value: str, name: str) -> None:
    builder.node("Identity", value, out=name)

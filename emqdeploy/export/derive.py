"""The selector graph that holds the 8-bit codes once and makes the weights of the chosen bit-width inside.

Weights that change between inferences cannot stand behind a DequantizeLinear that a runtime fuses, so the graph spells
out the integer operators that the fused kernels are: QLinearConv, and MatMulInteger with its requantization.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, require
from emqdeploy.export.graph import Builder, open_graph
from emqdeploy.frozen import FrozenLayer
from emqdeploy.grid import MASTER_BITS

CONTRIB = "com.microsoft"

_POINTWISE = ("Add", "GlobalAveragePool")
_OF_LAYERS = ("weight", "weight_scale", "bias", "bias_scale")


def derive_model(checkpoint: Checkpoint, widths: Sequence[int]) -> Any:
    """Returns the ONNX model for ascending ``widths``, with inputs ``images`` and ``bits``."""
    return _Deriver(checkpoint, list(widths)).run()


class Table:
    """Numbers of every bit-width, of which the graph picks one set; equal ones stay constant.

    Args:
        builder: where the nodes go.
        index: value that holds the position of the chosen bit-width.
    """

    def __init__(self, builder: Builder, index: str) -> None:
        self.builder, self.index = builder, index

    def pick(self, arrays: Sequence[NDArray[Any]], name: str | None = None) -> str:
        """Returns the value of the chosen bit-width, under ``name`` where one is given."""
        if self.is_constant(arrays):
            return self.builder.constant(np.asarray(arrays[0]), name)
        return self.builder.node("Gather", self.builder.constant(np.stack(arrays)), self.index, out=name, axis=0)

    @staticmethod
    def is_constant(arrays: Sequence[NDArray[Any]]) -> bool:
        """Whether all bit-widths have the same numbers."""
        return all(np.array_equal(array, arrays[0]) for array in arrays)


def add_selector_input(builder: Builder, widths: Sequence[int]) -> str:
    """Adds the graph input ``bits`` and returns the position among ``widths`` that it chooses."""
    onnx = require("onnx", "export")
    value = onnx.helper.make_tensor_value_info("bits", onnx.TensorProto.INT64, [1])
    builder.graph.input.append(value)
    limits = builder.constant(np.array(widths[:-1], np.int64))
    above = builder.cast(builder.node("Greater", "bits", limits), np.int64)
    return builder.node("ReduceSum", above, keepdims=0, name="select/index")


class _Deriver:
    """Rewrites the open graph of a checkpoint; what does not depend on the image goes in front of it."""

    def __init__(self, checkpoint: Checkpoint, widths: list[int]) -> None:
        self.onnx = require("onnx", "export")
        self.layers = checkpoint.network.layers
        self.widths = widths
        self.model = open_graph(checkpoint)
        self.arrays = [checkpoint.network.initializers(width) for width in widths]
        self.add = Builder(self.model)
        self.table = Table(self.add, add_selector_input(self.add, widths))
        self.drop = self.table.pick([np.array(MASTER_BITS - width, np.uint8) for width in widths])
        self.producer = {name: node for node in self.model.graph.node for name in node.output}
        self.readers: dict[str, list[Any]] = {}
        for node in self.model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.fused: set[str] = set()
        self.body: list[Any] = []

    def run(self) -> Any:
        graph = self.model.graph
        self.add.drop(set(self.arrays[0]))
        for name in self.arrays[0]:
            owner, _, kind = name.rpartition(".")
            # A site may be called like the layer that it stands behind: what it has are a scale and bounds.
            if owner not in self.layers or kind not in _OF_LAYERS:
                self.table.pick(self._each(name), name)
        for node in list(graph.node):
            self._rewrite(node)
        del graph.node[:]
        graph.node.extend(_alive([*self.add.nodes, *self.body], graph.output[0].name))
        if any(node.domain == CONTRIB for node in graph.node):
            self.model.opset_import.append(self.onnx.helper.make_opsetid(CONTRIB, 1))
        return self.model

    def _each(self, name: str) -> list[NDArray[Any]]:
        return [arrays[name] for arrays in self.arrays]

    def _varies(self, name: str) -> bool:
        return name in self.arrays[0] and not self.table.is_constant(self._each(name))

    def _emit(self, operator: str, inputs: Sequence[str], output: str, name: str = "", **attributes: Any) -> str:
        self.body.append(self.onnx.helper.make_node(operator, list(inputs), [output], name=name, **attributes))
        return output

    def _rewrite(self, node: Any) -> None:
        if node.output[0] in self.fused:
            return
        quantizer = self._quantizer_of(node)
        if node.name in self.layers and node.op_type in ("Conv", "Gemm", "MatMul"):
            self._layer(node, quantizer)
        elif quantizer is not None and node.op_type in _POINTWISE and self._has_varying_scale(node, quantizer):
            self._pointwise(node, quantizer)
        else:
            self.body.append(node)

    def _quantizer_of(self, node: Any) -> Any | None:
        """The QuantizeLinear that alone reads a node's result."""
        readers = self.readers.get(node.output[0], [])
        return readers[0] if len(readers) == 1 and readers[0].op_type == "QuantizeLinear" else None

    def _has_varying_scale(self, node: Any, quantizer: Any) -> bool:
        sources = [self.producer.get(name) for name in node.input]
        if not all(source and source.op_type == "DequantizeLinear" for source in sources):
            return False
        return any(self._varies(part.input[1]) for part in (*sources, quantizer) if part is not None)

    def _pointwise(self, node: Any, quantizer: Any) -> None:
        """An operator between quantizers whose scales are not constant: onnxruntime's own operator, spelled out."""
        operands = [part for name in node.input for part in self.producer[name].input]
        attributes = {"domain": CONTRIB} | ({"channels_last": 0} if node.op_type == "GlobalAveragePool" else {})
        inputs = [*operands, *quantizer.input[1:]]
        self._emit(f"QLinear{node.op_type}", inputs, quantizer.output[0], node.name, **attributes)
        self.fused.add(quantizer.output[0])

    def _layer(self, node: Any, quantizer: Any | None) -> None:
        name = node.name
        source = self.producer.get(node.input[0])
        if source is None or source.op_type != "DequantizeLinear" or node.op_type == "MatMul":
            raise EmqError(
                f"layer {name!r} ({node.op_type}) has no form whose weights change at run time; use --selector if"
            )
        codes, scale, zero_point = source.input
        weight = self._weight(name, self.layers[name])
        bias = self.table.pick(self._each(f"{name}.bias"), f"{name}.bias")
        if node.op_type == "Conv" and quantizer is not None:
            weight_scale = self.table.pick(self._each(f"{name}.weight_scale"), f"{name}.weight_scale")
            zeros = f"{name}.weight_zero_point"
            inputs = [codes, scale, zero_point, weight, weight_scale, zeros, *quantizer.input[1:], bias]
            self._emit("QLinearConv", inputs, quantizer.output[0], name, **self._attributes(node))
            self.fused.add(quantizer.output[0])
            return
        # int32 sums, then one product per channel: with the output's scale in it where a quantizer follows, because
        # two roundings of a product differ from one.
        products = self._each(f"{name}.bias_scale")
        if quantizer is not None:
            steps = self._each(quantizer.input[1])
            products = [product / step for product, step in zip(products, steps, strict=True)]
        column = (-1, 1, 1) if node.op_type == "Conv" else (-1,)
        factor = self.table.pick([product.reshape(column) for product in products])
        if node.op_type == "Conv":
            inputs = [codes, weight, zero_point]
            sums = self._emit("ConvInteger", inputs, f"{name}/sums", name, **self._attributes(node))
            bias = self.add.reshape(bias, column)
        else:
            turned = self.add.node("Transpose", weight, perm=[1, 0])
            sums = self._emit("MatMulInteger", [codes, turned, zero_point], f"{name}/sums", name)
        total = self._emit("Add", [sums, bias], f"{name}/total")
        floats = self._emit("Cast", [total], f"{name}/floats", to=self.onnx.TensorProto.FLOAT)
        if quantizer is None:
            self._emit("Mul", [floats, factor], node.output[0])
            return
        scaled = self._emit("Mul", [floats, factor], f"{name}/scaled")
        one = self.add.constant(np.float32(1))
        self._emit("QuantizeLinear", [scaled, one, quantizer.input[2]], quantizer.output[0], f"{name}/quantize")
        self.fused.add(quantizer.output[0])

    def _weight(self, name: str, layer: FrozenLayer) -> str:
        """The int8 weights of the chosen bit-width: ``z = m u + k`` of the truncated codes."""
        if layer.pinned:
            return self.table.pick([layer.integers(width) for width in self.widths], f"{name}.weight")
        column = (-1,) + (1,) * (layer.codes.ndim - 1)
        grids = [layer.grids[width] for width in self.widths]
        used = [grid.bits.astype(np.int32).reshape(column) for grid in grids]
        slopes = [grid.slope.astype(np.int32).reshape(column) for grid in grids]
        offsets = [grid.offset.astype(np.int32).reshape(column) for grid in grids]
        drop = self.drop
        if any((grid.bits != width).any() for grid, width in zip(grids, self.widths, strict=True)):
            drop = self.table.pick([(MASTER_BITS - bits).astype(np.uint8) for bits in used])
        gain = self.table.pick([2 * slope for slope in slopes])
        levels = zip(offsets, slopes, used, strict=True)
        shift = self.table.pick([offset - slope * ((1 << bits) - 1) for offset, slope, bits in levels])
        add = self.add
        codes = add.constant(layer.codes.view(np.uint8), f"{name}.codes")
        codes = add.cast(add.node("BitShift", codes, drop, direction="RIGHT"), np.int32)
        return add.cast(add.node("Add", add.node("Mul", codes, gain), shift), np.int8, out=f"{name}.weight")

    def _attributes(self, node: Any) -> dict[str, Any]:
        return {entry.name: self.onnx.helper.get_attribute_value(entry) for entry in node.attribute}


def _alive(nodes: list[Any], output: str) -> list[Any]:
    """Drops the nodes that the output does not depend on, which rewriting left behind."""
    needed, kept = {output}, []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(node.input)
            kept.append(node)
    return kept[::-1]

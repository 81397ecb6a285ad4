"""The integer reference: walks a network's QDQ graph in exact integers, one value object per kind of intermediate.

A fused integer runtime must give these codes at every quantized tensor, without a single difference.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emqdeploy import grid
from emqdeploy.errors import EmqError, require
from emqdeploy.grid import CodeRange, Codes, Floats

CODES_SUFFIX = "/codes"
"""A site's codes are the graph value ``<site>/codes``."""

UINT8 = (0, 255)


class _Value(Protocol):
    """An intermediate that can be put on a grid."""

    def quantize(self, scale: float, codes: CodeRange) -> Codes: ...


@dataclass(frozen=True)
class _Quantized:
    """Codes with their grid, the value between DequantizeLinear and its consumer."""

    codes: Codes
    scale: float
    zero_point: int

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        if scale != self.scale or codes.zero_point != self.zero_point:
            return grid.quantize(self.floats(), scale, codes)
        return self.codes

    def centred(self) -> NDArray[np.int16]:
        return self.codes.astype(np.int16) - np.int16(self.zero_point)

    def floats(self) -> Floats:
        return grid.dequantize(self.codes, self.scale, self.zero_point)


@dataclass(frozen=True)
class _Accumulated:
    """int32 accumulators of a layer; ``scales`` is ``s_x s_w`` per output channel."""

    sums: NDArray[np.int64]
    scales: Floats

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        return grid.requantize(self.sums, self.scales / np.float32(scale), codes)

    def floats(self) -> Floats:
        return self.sums.astype(np.float32) * self.scales.reshape((1, -1) + (1,) * (self.sums.ndim - 2))


@dataclass(frozen=True)
class _Sum:
    a: _Quantized
    b: _Quantized

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        scales = (self.a.scale, self.b.scale, scale)
        return grid.integer_add(self.a.codes, self.b.codes, scales, (self.a.zero_point, self.b.zero_point), codes)

    def floats(self) -> Floats:
        return self.a.floats() + self.b.floats()


@dataclass(frozen=True)
class _Average:
    inputs: _Quantized

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        return grid.integer_mean(self.inputs.centred(), self.inputs.scale, scale, codes)

    def floats(self) -> Floats:
        return self.inputs.floats().mean(axis=(2, 3), keepdims=True, dtype=np.float32)


@dataclass(frozen=True)
class _Float:
    """A float tensor: the image, or the result of an operator that has no integer form."""

    values: Floats

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        return grid.quantize(self.values, scale, codes)

    def floats(self) -> Floats:
        return self.values


def quantized_tensors(skeleton: bytes) -> list[str]:
    """Names of the graph values that hold a site's codes, in the order in which they are computed."""
    onnx = require("onnx", "export")
    nodes = onnx.load_from_string(skeleton).graph.node
    return [name for node in nodes for name in node.output if name.endswith(CODES_SUFFIX)]


class IntegerReference:
    """Runs one bit-width of a network.

    Args:
        skeleton: the weightless QDQ graph of a checkpoint.
        arrays: `FrozenNetwork.initializers` of the bit-width.
    """

    def __init__(self, skeleton: bytes, arrays: dict[str, NDArray[Any]]) -> None:
        self._onnx = require("onnx", "export")
        graph = self._onnx.load_from_string(skeleton).graph
        self._nodes = list(graph.node)
        self._output = graph.output[0].name
        self._input = graph.input[0].name
        self._arrays = dict(arrays)
        for tensor in graph.initializer:
            if tensor.name not in self._arrays:
                self._arrays[tensor.name] = self._onnx.numpy_helper.to_array(tensor)

    def run(self, images: Floats, batch: int = 64) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits ``(N, classes)`` and the codes of every site, for normalised images ``(N, C, H, W)``."""
        parts = [self._run(images[start : start + batch]) for start in range(0, len(images), batch)]
        logits = np.concatenate([logits for logits, _ in parts])
        return logits, {name: np.concatenate([codes[name] for _, codes in parts]) for name in parts[0][1]}

    def _run(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        values: dict[str, Any] = {self._input: _Float(images)}
        weights: dict[str, tuple[str, str]] = {}
        for node in self._nodes:
            first, output = node.input[0], node.output[0]
            if node.op_type == "DequantizeLinear" and first in self._arrays:
                weights[output] = (first, node.input[1])
            else:
                values[output] = self._apply(node, values, weights)
        codes = {name: value for name, value in values.items() if name.endswith(CODES_SUFFIX)}
        return values[self._output].floats(), codes

    def _apply(self, node: Any, values: dict[str, Any], weights: dict[str, tuple[str, str]]) -> Any:
        attributes = {a.name: self._onnx.helper.get_attribute_value(a) for a in node.attribute}
        inputs = [values[name] for name in node.input if name in values]
        match node.op_type:
            case "QuantizeLinear":
                scale, zero = (self._arrays[name] for name in node.input[1:])
                return inputs[0].quantize(float(scale), CodeRange(int(zero), *UINT8))
            case "DequantizeLinear":
                scale, zero = (self._arrays[name] for name in node.input[1:])
                return _Quantized(inputs[0], float(scale), int(zero))
            case "Clip" if isinstance(inputs[0], np.ndarray):
                return np.clip(inputs[0], *(self._arrays[name] for name in node.input[1:]))
            case "Conv" | "Gemm" if isinstance(inputs[0], _Quantized):
                weight, bias = (weights[name] for name in node.input[1:])
                return self._layer(node, inputs[0], weight, bias, attributes)
            case "Add" if all(isinstance(value, _Quantized) for value in inputs) and len(inputs) == 2:
                return _Sum(*inputs)
            case "GlobalAveragePool" if isinstance(inputs[0], _Quantized):
                return _Average(inputs[0])
            case "MaxPool" if isinstance(inputs[0], _Quantized):
                pooled = self._evaluate(node, [inputs[0].codes.astype(np.float32)])
                return _Quantized(pooled.astype(np.uint8), inputs[0].scale, inputs[0].zero_point)
            case "Flatten" | "Reshape" | "Squeeze" | "Identity" if isinstance(inputs[0], _Quantized):
                moved = self._evaluate(node, [inputs[0].codes.astype(np.float32)])
                return _Quantized(moved.astype(np.uint8), inputs[0].scale, inputs[0].zero_point)
            case _:
                return _Float(self._evaluate(node, [value.floats() for value in inputs]))

    def _layer(
        self, node: Any, inputs: _Quantized, weight: tuple[str, str], bias: tuple[str, str], attributes: dict[str, Any]
    ) -> _Accumulated:
        integers, offsets = self._arrays[weight[0]], self._arrays[bias[0]]
        scales = np.float32(inputs.scale) * self._arrays[weight[1]]
        if node.op_type == "Gemm":
            return _Accumulated(grid.integer_linear(inputs.centred(), integers, offsets), scales)
        windows = (attributes["strides"], attributes["pads"], attributes["dilations"], attributes["group"])
        return _Accumulated(grid.integer_conv(inputs.centred(), integers, offsets, *windows), scales)

    def _evaluate(self, node: Any, tensors: list[Floats]) -> Floats:
        """Runs one operator of the graph in float with ONNX's own reference evaluator."""
        onnx = self._onnx
        from onnx.reference import ReferenceEvaluator

        constants = {name: self._arrays[name] for name in node.input if name in self._arrays}
        dynamic = self._dynamic_inputs(node, constants)
        feeds = dict(zip(dynamic, tensors, strict=True)) | constants
        kinds = {name: onnx.helper.np_dtype_to_tensor_dtype(array.dtype) for name, array in feeds.items()}
        graph = onnx.helper.make_graph(
            [node],
            "one",
            [onnx.helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
            [onnx.helper.make_tensor_value_info(node.output[0], onnx.TensorProto.FLOAT, None)],
        )
        try:
            model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 21)])
            outputs: Any = ReferenceEvaluator(model).run(None, feeds)
        except (RuntimeError, NotImplementedError) as error:
            raise EmqError(
                f"the integer reference cannot run operator {node.op_type!r} ({node.name}): {error}"
            ) from error
        result: Floats = outputs[0]
        return result

    @staticmethod
    def _dynamic_inputs(node: Any, constants: dict[str, Any]) -> Iterator[str]:
        return (name for name in node.input if name and name not in constants)

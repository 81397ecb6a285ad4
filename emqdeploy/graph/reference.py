"""The integer reference: walks a network's QDQ graph in exact integers, one value object per kind of intermediate.

A fused integer runtime must give these codes at every quantized tensor, without a single difference. Operators between
them that compute in float (LayerNorm, Softmax, GELU) round a little differently everywhere; `IntegerReference.follow`
takes the runtime's own codes behind each of them, so that every integer kernel is still held to its exact result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format import grid
from emqdeploy.format.grid import CodeRange, Codes, Floats
from emqdeploy.format.onnx_messages import attributes_of, load_model, to_array
from emqdeploy.graph.floating import CARRIED, FloatOperators, quantized_at_once

CODES_SUFFIX = "/codes"
"""A site's codes are the graph value ``<site>/codes``."""

VALUES_SUFFIX = "/values"
"""What a layer answers in float, before any other operator, is the graph value ``<layer>/values``."""

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


@dataclass(frozen=True)
class _Joined(_Float):
    """Codes on several grids, one behind the other along the channels, as floats; ``scales`` is per channel."""

    centred: NDArray[np.int16]
    scales: Floats

    @classmethod
    def of(cls, parts: Sequence[_Quantized]) -> _Joined:
        values = np.concatenate([one.floats() for one in parts], 1)
        centred = np.concatenate([one.centred() for one in parts], 1)
        scales = [np.full(one.codes.shape[1], one.scale, np.float32) for one in parts]
        return cls(values, centred, np.concatenate(scales))


@dataclass(frozen=True)
class _MeanOfJoined(_Float):
    """The mean of such: channel by channel in integers."""

    inputs: _Joined

    def quantize(self, scale: float, codes: CodeRange) -> Codes:
        return grid.integer_mean(self.inputs.centred, self.inputs.scales, scale, codes)


@dataclass(frozen=True)
class Followed:
    """What the reference computes from a runtime's own codes behind float operators.

    Attributes:
        logits: ``(N, classes)``.
        exact: codes, and float answers of layers, that integer kernels compute; a runtime must give the same.
        rounded: the reference's own codes behind float operators; a runtime's may differ by a rounding.
    """

    logits: Floats
    exact: dict[str, NDArray[Any]] = field(default_factory=dict)
    rounded: dict[str, Codes] = field(default_factory=dict)


class _Disturbance:
    """Moves some codes by one, up or down; the same ones each time."""

    def __init__(self, share: float) -> None:
        self._share, self._chance = share, np.random.default_rng(0)

    def __call__(self, codes: Codes) -> Codes:
        step = np.where(self._chance.random(codes.shape, np.float32) < self._share, 1, 0)
        step *= self._chance.integers(0, 2, codes.shape) * 2 - 1
        return np.clip(codes + step, codes.min(), codes.max()).astype(np.uint8)


class IntegerReference:
    """Runs one child of a network.

    Args:
        skeleton: the weightless QDQ graph of a checkpoint.
        arrays: `FrozenNetwork.initializers` of the child.

    Attributes:
        float_logits: whether the logits come from another operator than a linear layer: no integer kernel answers them.
    """

    def __init__(self, skeleton: bytes, arrays: dict[str, NDArray[Any]]) -> None:
        graph = load_model(skeleton).graph
        self._nodes = list(graph.node)
        self._output = graph.output[0].name
        self._input = graph.input[0].name
        given = {tensor.name for tensor in graph.initializer}  # weights that stay in float; codes are dequantized first
        self.float_logits = not any(
            node.op_type == "Gemm" and self._output in node.output and node.input[1] not in given for node in graph.node
        )
        self._arrays = dict(arrays)
        for tensor in graph.initializer:
            if tensor.name not in self._arrays:
                self._arrays[tensor.name] = to_array(tensor)
        self._floats = FloatOperators(self._arrays)
        self._fused = quantized_at_once(self._nodes)
        self._answers = set(layer_values(skeleton))

    def run(self, images: Floats, batch: int = 64) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits ``(N, classes)`` and the codes of every site, for normalised images ``(N, C, H, W)``."""
        parts = [self.follow(images[start : start + batch], {}) for start in range(0, len(images), batch)]
        codes = [
            {name: values for name, values in (part.exact | part.rounded).items() if name.endswith(CODES_SUFFIX)}
            for part in parts
        ]
        logits = np.concatenate([part.logits for part in parts])
        return logits, {name: np.concatenate([part[name] for part in codes]) for name in codes[0]}

    def disturbed(self, images: Floats, share: float) -> Floats:
        """Logits ``(N, classes)`` where a share of all codes, chosen by chance, is rounded to a neighbour."""
        return self.follow(images, {}, disturb=_Disturbance(share)).logits

    def follow(
        self,
        images: Floats,
        observed: Mapping[str, Codes],
        everywhere: bool = False,
        disturb: Callable[[Codes], Codes] | None = None,
    ) -> Followed:
        """Runs one batch, going on behind float operators with the codes that a runtime had there.

        Args:
            images: normalised, ``(N, C, H, W)``.
            observed: codes by tensor name; where one is missing, the reference goes on with its own.
            everywhere: go on with the runtime's codes at every tensor, so that each is compared given its own inputs.
            disturb: changes the codes that the reference goes on with.
        """
        values: dict[str, Any] = {self._input: _Float(images)}
        weights: dict[str, tuple[str, str]] = {}
        exact: dict[str, NDArray[Any]] = {}
        rounded: dict[str, Codes] = {}
        behind_float: set[str] = set()
        for node in self._nodes:
            first, output = node.input[0], node.output[0]
            if node.op_type == "DequantizeLinear" and first in self._arrays:
                weights[output] = (first, node.input[1])
                continue
            for name, value in zip(node.output, self._apply(node, values, weights), strict=True):
                values[name] = value
            if isinstance(values[output], np.ndarray):
                source = values.get(first)
                if first in behind_float or (isinstance(source, _Float) and first != self._input):
                    behind_float.add(output)
                if output.endswith(CODES_SUFFIX):
                    (rounded if output in behind_float else exact)[output] = values[output]
                    if (everywhere or output in behind_float) and output in observed:
                        values[output] = observed[output].reshape(values[output].shape)
                    if disturb is not None:
                        values[output] = disturb(values[output])
            elif not everywhere and output in self._answers and isinstance(values[output], _Accumulated):
                exact[output] = values[output].floats()
        return Followed(values[self._output].floats(), exact, rounded)

    def _apply(self, node: Any, values: dict[str, Any], weights: dict[str, tuple[str, str]]) -> list[Any]:
        inputs = [values[name] for name in node.input if name in values]
        if node.op_type in CARRIED and inputs and isinstance(inputs[0], (np.ndarray, _Quantized)):
            return self._moved(node, inputs[0])
        integer = self._integer(node, inputs, weights)
        if integer is not None:
            return [integer]
        tensors = {name: values[name].floats() for name in node.input if name in values}
        return [_Float(result) for result in self._floats.run(node, tensors)]

    def _integer(self, node: Any, inputs: list[Any], weights: dict[str, tuple[str, str]]) -> Any:
        """The result of an operator in integers, None where it computes in float."""
        if not inputs:
            return None
        match node.op_type:
            case "QuantizeLinear":
                scale, zero = (self._arrays[name] for name in node.input[1:])
                return inputs[0].quantize(float(scale), CodeRange(int(zero), *UINT8))
            case "DequantizeLinear":
                scale, zero = (self._arrays[name] for name in node.input[1:])
                return _Quantized(inputs[0], float(scale), int(zero))
            case "Clip" if isinstance(inputs[0], np.ndarray):
                return np.clip(inputs[0], *(self._arrays[name] for name in node.input[1:]))
            case "Conv" | "Gemm" if isinstance(inputs[0], _Quantized) and node.input[1] in weights:
                weight, bias = (weights[name] for name in node.input[1:])
                return self._layer(node, inputs[0], weight, bias)
            case "Add" | "GlobalAveragePool" if node.output[0] not in self._fused:
                return None  # what others read as well, runtimes compute in float
            case "Add" if all(isinstance(value, _Quantized) for value in inputs) and len(inputs) == 2:
                return _Sum(*inputs)
            case "GlobalAveragePool" if isinstance(inputs[0], _Quantized):
                return _Average(inputs[0])
            case "GlobalAveragePool" if isinstance(inputs[0], _Joined):
                joined = inputs[0]
                return _MeanOfJoined(joined.values.mean(axis=(2, 3), keepdims=True, dtype=np.float32), joined)
            case "Concat" if len(inputs) == len(node.input) and all(isinstance(one, _Quantized) for one in inputs):
                planes = inputs[0].codes.ndim == 4 and attributes_of(node)["axis"] == 1
                return _Joined.of(inputs) if planes else None
            case "MaxPool" if isinstance(inputs[0], _Quantized):
                (pooled,) = self._floats.run(node, {node.input[0]: inputs[0].codes.astype(np.float32)})
                return _Quantized(pooled.astype(np.uint8), inputs[0].scale, inputs[0].zero_point)
        return None

    def _moved(self, node: Any, source: NDArray[Any] | _Quantized) -> list[Any]:
        """Codes stay what they are wherever they move to."""
        if isinstance(source, np.ndarray):
            return self._floats.run(node, {node.input[0]: source})
        parts = self._floats.run(node, {node.input[0]: source.codes})
        return [_Quantized(codes, source.scale, source.zero_point) for codes in parts]

    def _layer(self, node: Any, inputs: _Quantized, weight: tuple[str, str], bias: tuple[str, str]) -> _Accumulated:
        attributes = attributes_of(node)
        integers, offsets = self._arrays[weight[0]], self._arrays[bias[0]]
        scales = np.float32(inputs.scale) * self._arrays[weight[1]]
        if node.op_type == "Gemm":
            return _Accumulated(grid.integer_linear(inputs.centred(), integers, offsets), scales)
        windows = (attributes["strides"], attributes["pads"], attributes["dilations"], attributes["group"])
        return _Accumulated(grid.integer_conv(inputs.centred(), integers, offsets, *windows), scales)


def quantized_tensors(skeleton: bytes) -> list[str]:
    """Names of the graph values that hold a site's codes, in the order in which they are computed."""
    nodes = load_model(skeleton).graph.node
    return [name for node in nodes for name in node.output if name.endswith(CODES_SUFFIX)]


def layer_values(skeleton: bytes) -> list[str]:
    """Names of the graph values that layers answer in float, in the order in which they are computed.

    Where a quantizer reads a layer, the fused kernel answers in codes and such a value does not exist.
    """
    nodes = load_model(skeleton).graph.node
    fused = {node.input[0] for node in nodes if node.op_type == "QuantizeLinear"}
    return [name for node in nodes for name in node.output if name.endswith(VALUES_SUFFIX) and name not in fused]

"""Cutting a network into what our kernels compute and what stays the runtime's: segments, as large as they can be.

Every operator gets a level. One that computes in integers has that of its latest input; one that does not stands a
level above the integer operators that it reads. So all integer operators of a level can run at once, after everything
on lower levels: they are one segment. A network without operators in float is a single one.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from emqdeploy.errors import EmqError, require
from emqdeploy.format.onnx_graph import read_model
from emqdeploy.format.onnx_messages import to_array
from emqdeploy.format.shapes import Shape, Shapes
from emqdeploy.graph.reference import CODES_SUFFIX

FLOATS, CODES, GRID, SUM, PARAMETER = "floats", "codes", "grid", "sum", "parameter"
"""What a value is: floats or another operator's result, codes, codes with their grid, what a quantizer has to follow,
or weights."""

_MEETING = ("Add", "GlobalAveragePool", "Concat")
"""Operators of codes with their grids, from whose results a quantizer makes codes."""

_PLANES = ("Conv", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat", "Pad")
"""Operators that read planes of channels."""


@dataclass
class Segment:
    """Integer operators of one level.

    Attributes:
        nodes: of the graph, in order.
        inputs: values that others make.
        outputs: values that others read.
    """

    nodes: list[Any] = field(default_factory=list)
    inputs: list[str] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Value:
    form: str
    level: int = 0
    rows: bool = False
    flat: bool = False


class Cut:
    """A network in segments and operators between them.

    Args:
        skeleton: the weightless graph, serialised.
        input_shape: ``(C, H, W)`` of one image.
        shown: values that are read from outside, beside the output.

    Attributes:
        model: the graph as an ONNX model.
        shapes: of every value, for one image.
        steps: segments and nodes in an order in which they can run.
        open: names of the constants whose numbers come from a checkpoint.

    Raises:
        EmqError: a layer has no integer kernel of ours.
    """

    def __init__(self, skeleton: bytes, input_shape: tuple[int, ...], shown: tuple[str, ...] = ()) -> None:
        onnx = require("onnx", "export")
        self.model = onnx.load_from_string(skeleton)
        graph = self.model.graph
        self._helper = onnx.helper
        self._constants = {tensor.name: tensor for tensor in graph.initializer}
        self.open = {t.name for t in graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL}
        shapes = Shapes({graph.input[0].name: (1, *input_shape)})
        shapes.follow(read_model(skeleton).graph)
        self.shapes: dict[str, Shape] = shapes.shapes
        self._readers: dict[str, list[Any]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self._readers[name].append(node)
        self._shown = {graph.output[0].name, *shown}
        self._values: dict[str, _Value] = {graph.input[0].name: _Value(FLOATS)}
        self._parameters: dict[str, Any] = {}
        self._makers: dict[str, Any] = {}
        self._between: dict[int, list[Any]] = defaultdict(list)
        self._inside: dict[int, list[Any]] = defaultdict(list)
        for node in graph.node:
            self._place(node)
        self.steps = self._assemble()

    def takes_rows(self, value: str) -> bool:
        """Whether a segment takes a value as rows of channels; else in planes."""
        known = self._values[value]
        return self._in_rows(value) if known.form == FLOATS else known.rows

    def gives_rows(self, value: str) -> bool:
        """Whether a segment gives a value as rows of channels; else in planes, or as the features of one row."""
        known = self._values[value]
        return self._makers[value].op_type == "Gemm" if known.form == FLOATS else known.rows

    def is_codes(self, value: str) -> bool:
        """Whether a value is uint8."""
        if self._values[value].form != FLOATS:
            return self._values[value].form == CODES
        return value.endswith(CODES_SUFFIX) or any(node.op_type == "DequantizeLinear" for node in self._readers[value])

    def source(self, value: str) -> str:
        """The value from outside, of the same shape, that codes in rows are made of."""
        while self._values[value].form != FLOATS:
            value = self._makers[value].input[0]
        return value

    # --- levels ---

    def _place(self, node: Any) -> None:
        result = self._integer(node)
        if result is None and node.op_type in ("Conv", "Gemm") and self._form(node.input[1]) == PARAMETER:
            layer = self._parameters[node.input[1]].input[0].removesuffix(".weight")
            raise EmqError(
                f"layer {layer!r} ({node.op_type}) has no kernel of ours here; export without --kernels native"
            )
        if result is None:
            read = [self._values[name] for name in node.input if name in self._values]
            level = max((one.level + (one.form != FLOATS) for one in read), default=0)
            result = _Value(FLOATS, level)
            self._between[level].append(node)
        elif result.form == PARAMETER:
            self._parameters[node.output[0]] = node
        else:
            self._inside[result.level].append(node)
            if result.form == SUM and not self._fused(node.output[0]):
                result = _Value(FLOATS, result.level + 1)
        for name in node.output:
            self._values[name] = result
            self._makers[name] = node

    def _integer(self, node: Any) -> _Value | None:
        """What an operator makes where our kernels compute it; None where they do not."""
        if node.op_type == "DequantizeLinear" and node.input[0] in self.open:
            return _Value(PARAMETER)
        data = [self._values[name] for name in node.input if name in self._values]
        data = [value for value in data if value.form != PARAMETER]
        if not data:
            return None
        first, level = data[0], max(value.level for value in data)
        attributes = {a.name: self._helper.get_attribute_value(a) for a in node.attribute}
        match node.op_type:
            case "QuantizeLinear" if first.form == FLOATS:
                return _Value(CODES, level, self._in_rows(node.input[0]))
            case "QuantizeLinear" if first.form == SUM or (first.form == GRID and not first.flat):
                return _Value(CODES, level, first.rows, first.flat)
            case "DequantizeLinear" if first.form == FLOATS:
                return _Value(GRID, level, self._in_rows(node.input[0]))
            case "DequantizeLinear" if first.form == CODES:
                return _Value(GRID, level, first.rows, first.flat)
            case "Clip" if first.form == CODES:
                return first
            case "Identity" if first.form in (CODES, GRID):
                return first
            case "MaxPool" if first.form in (CODES, GRID) and self._is_plane(first) and self._pools(node, attributes):
                return first
            case "AveragePool" if first.form == GRID and self._is_plane(first) and self._averages(node, attributes):
                return _Value(SUM, level)
            case "Pad" if first.form == GRID and self._is_plane(first) and self._adds_zeros(node, attributes):
                return first
            case "Reshape" | "Flatten" | "Squeeze" if first.form in (CODES, GRID):
                return self._reshaped(node, first)
            case "Conv" if first.form == GRID and self._is_plane(first) and len(self.shapes[node.input[1]]) == 4:
                return _Value(SUM, level)
            case "Gemm" if first.form == GRID and attributes.get("transB"):
                return _Value(SUM, level, first.rows, flat=not first.rows)
        followed = len(data) == len(node.input) and all(value.form == GRID for value in data)
        if node.op_type in _MEETING and followed and self._fused(node.output[0]) and self._alike(node, level):
            # The features of one row come back from another level as a row of channels.
            come_back = any(one.flat and one.level < level for one in data)
            alike = len(data) == 2 and len({(one.rows, one.flat) for one in data}) == 1
            if node.op_type == "Add" and alike and not come_back:
                return _Value(SUM, level, first.rows, first.flat)
            if node.op_type != "Add" and attributes.get("axis", 1) == 1 and all(map(self._is_plane, data)):
                return _Value(SUM, level)
        return None

    def _form(self, name: str) -> str:
        return self._values[name].form if name in self._values else FLOATS

    @staticmethod
    def _is_plane(value: _Value) -> bool:
        return not value.rows and not value.flat

    def _pools(self, node: Any, attributes: dict[str, Any]) -> bool:
        plain = set(attributes.get("dilations", [1])) == {1}
        return plain and len(self.shapes[node.input[0]]) == 4 and len(node.output) == 1

    def _averages(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Whether every window of a mean holds something to average, and a quantizer follows it."""
        kernel, pads = attributes["kernel_shape"], attributes.get("pads", ())
        filled = all(padding < kernel[index % len(kernel)] for index, padding in enumerate(pads))
        return filled and self._pools(node, attributes) and self._fused(node.output[0])

    def _adds_zeros(self, node: Any, attributes: dict[str, Any]) -> bool:
        """Whether a padding is zeros around single images, and a quantizer follows it."""
        numbers = [to_array(self._constants[name]) for name in node.input[1:] if name in self._constants]
        if len(numbers) != len(node.input) - 1 or attributes.get("mode", b"constant") != b"constant":
            return False
        pads, *value = numbers
        zeros = len(value) == 0 or (len(value) == 1 and not value[0].any())
        fits = pads.size == 8 and pads[0] == pads[4] == 0 and pads.min() >= 0
        return bool(zeros and fits and self._fused(node.output[0]))

    def _reshaped(self, node: Any, value: _Value) -> _Value | None:
        """A move to rows that are there already, or of all planes to the features of one row."""
        before, after = self.shapes[node.input[0]], self.shapes[node.output[0]]
        target = self._constants.get(node.input[1]) if node.op_type == "Reshape" else None
        if len(after) != 2 or (node.op_type == "Reshape" and target is None):
            return None
        if value.rows:
            return value if after[1] == before[-1] else None
        return _Value(value.form, value.level, flat=True) if after[0] == 1 else None

    def _fused(self, value: str) -> bool:
        """Whether all that reads a value is one quantizer."""
        readers = self._readers[value]
        return value not in self._shown and [one.op_type for one in readers] == ["QuantizeLinear"]

    def _alike(self, node: Any, level: int) -> bool:
        """Whether an operator's inputs can meet: of the same sides, and from other levels only as bare codes."""
        shapes = [self.shapes[name] for name in node.input]
        sides = {shape[2:] if node.op_type == "Concat" else shape for shape in shapes}
        others = [name for name in node.input if self._values[name].level < level]
        return len(sides) == 1 and all(self._makers[name].op_type == "DequantizeLinear" for name in others)

    def _in_rows(self, value: str) -> bool:
        """Whether a value from outside is taken as rows: it is no image, or a layer reads it as rows."""
        if len(self.shapes[value]) != 4:
            return True
        reshaped = False
        reached = [value]
        for name in reached:
            for node in self._readers[name]:
                if node.op_type in _PLANES:
                    return False
                if node.op_type in ("QuantizeLinear", "Clip", "DequantizeLinear", "Identity"):
                    reached.append(node.output[0])
                shape = self.shapes[node.output[0]]
                reshaped |= node.op_type == "Reshape" and name != value and len(shape) == 2 and shape[0] > 1
        return reshaped

    # --- segments ---

    def _assemble(self) -> list[Any]:
        """Levels one behind the other: first what stands between segments, then the segment."""
        segments = {level: Segment(self._needed(level)) for level in self._inside}
        for segment in segments.values():
            own = {name for node in segment.nodes for name in node.output} | self._constants.keys()
            read = dict.fromkeys(name for node in segment.nodes for name in node.input)
            segment.inputs = [name for name in read if name not in own]
        between = self._with_grids()
        others = [node for nodes in between.values() for node in nodes]
        wanted = self._shown | {name for segment in segments.values() for name in segment.inputs}
        wanted |= {name for node in others for name in node.input}
        wanted -= {name for node in others for name in node.output}
        steps: list[Any] = []
        for level in sorted(segments.keys() | between.keys()):
            steps += between.get(level, [])
            if level in segments:
                made = [node.output[0] for node in segments[level].nodes if self._form(node.output[0]) != PARAMETER]
                segments[level].outputs = [name for name in made if name in wanted]
                steps += [segments[level]] if segments[level].outputs else []
        return steps

    def _needed(self, level: int) -> list[Any]:
        """The nodes of a level with the weights, and the grids from other levels, that they read."""
        nodes: dict[str, Any] = {}
        for node in self._inside[level]:
            for name in node.input:
                below = self._form(name) == GRID and self._values[name].level < level
                if below or self._form(name) == PARAMETER:
                    nodes[name] = self._makers[name]
            nodes[node.output[0]] = node
        read = {name for node in nodes.values() for name in node.input} | self._shown
        return [node for name, node in nodes.items() if node.op_type != "DequantizeLinear" or name in read]

    def _with_grids(self) -> dict[int, list[Any]]:
        """What stands between segments, with the grids that it reads made anew from their codes in front of it."""
        found: dict[int, dict[str, Any]] = {}
        known: set[str] = set()
        for level, nodes in sorted(self._between.items()):
            found[level] = {}
            for node in nodes:
                grids = [name for name in node.input if self._form(name) == GRID and name not in known]
                again = {name: self._makers[name] for name in grids}
                found[level] |= {n: maker for n, maker in again.items() if maker.op_type == "DequantizeLinear"}
                known |= found[level].keys()
                found[level][node.output[0]] = node
        return {level: list(nodes.values()) for level, nodes in found.items()}


def rows_of(shape: Shape) -> Shape:
    """``(rows, channels)`` of a tensor whose last side is channels."""
    return (math.prod(shape[:-1]), shape[-1])

"""Where quantizers stand among operators that only move values: in front of them, so that the moves carry codes.

A quantizer works on each value alone, so it may change places with a move, and behind one that quantized the same grid
already it does nothing. Runtimes agree only in theory: OpenVINO's CPU plugin loses the order of channels, or crashes,
where a quantizer stands behind a transposition of a tensor that has a scale per channel (a concatenation of tensors on
different grids, a layer's float answer). With quantizers where values are made, it is right, and every runtime has
fewer of them to run. Needs the onnx package, no runtime, and no numbers: a weightless graph will do.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from emqdeploy.errors import require
from emqdeploy.graph.floating import CARRIED, ORDERING
from emqdeploy.graph.reference import CODES_SUFFIX

_CLEAR = CARRIED | {"Relu"}
"""What OpenVINO looks through when it fuses one quantizer with another."""


def carry_codes(model: Any) -> None:
    """Puts quantizers in front of moves, drops repeated ones, and lets the moves carry codes; in place.

    Every value that is named keeps its name and its content.

    Args:
        model: an ONNX model in which an activation is quantized by QuantizeLinear, a Clip of codes where it has one,
            and DequantizeLinear.
    """
    rewriting = _Rewriting(model)
    for node in list(model.graph.node):
        rewriting.add(node)
    rewriting.guard_regridded()
    rewriting.finish()


def carry_floats(model: Any) -> None:
    """Dequantizes in front of moves again, for a runtime in which only quantized layers take codes; in place."""
    rewriting = _Rewriting(model)
    for node in list(model.graph.node):
        rewriting.add_dequantized(node)
    rewriting.finish()


class _Rewriting:
    """A graph being written anew, node by node in order of computation."""

    def __init__(self, model: Any) -> None:
        self._onnx = require("onnx", "export")
        self._model = model
        self._constants = {tensor.name for tensor in model.graph.initializer}
        self._outputs = {value.name for value in model.graph.output}
        known = self._onnx.shape_inference.infer_shapes(model).graph.value_info
        self._ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in known}
        self._nodes: list[Any] = []
        self._makers: dict[str, Any] = {}
        self._renamed: dict[str, str] = {}

    def add(self, node: Any) -> None:
        """Adds a node in the place where it belongs."""
        node = self._copy(node, list(node.input))
        if node.op_type == "Gather":
            self._count_from_the_end(node)
        node.input[:] = [self._renamed.get(name, name) for name in node.input]
        above: Any = self._makers.get(node.input[0]) if node.input else None
        if node.op_type == "QuantizeLinear" and self._dequantizes(above) and above.input[1:] == node.input[1:]:
            self._reuse(above.input[0], node.output[0])
        elif node.op_type in ("QuantizeLinear", "Clip"):
            self._hoist(node)
        elif node.op_type in CARRIED and self._dequantizes(above) and not self._outputs.intersection(node.output):
            self._sink(above, node)
        else:
            self._put(node)

    def add_dequantized(self, node: Any) -> None:
        """Adds a node; where it dequantizes codes that were moved, the moves follow it."""
        node = self._copy(node, list(node.input))
        path = self._moves_above(node.input[0], CARRIED) if self._dequantizes(node) else []
        if not path:
            self._put(node)
            return
        value = f"{node.output[0]}/made"
        self._put(self._copy(node, [path[-1][0].input[0], *node.input[1:]], [value]))
        for index, (move, taken) in reversed(list(enumerate(path))):
            names = [f"{node.output[0]}/{index}/{name}" for name in move.output]
            names[list(move.output).index(taken)] = node.output[0] if index == 0 else f"{node.output[0]}/{index}"
            self._put(self._copy(move, [value, *move.input[1:]], names, f"/{node.name}"))
            value = names[list(move.output).index(taken)]

    def guard_regridded(self) -> None:
        """Sets a clamp that clamps nothing between two quantizers of one tensor.

        OpenVINO crashes where it merges a signed one behind a concatenation with the next; it does not merge what is
        clamped in between.
        """
        again = [node.input[0] for node in self._nodes if node.op_type == "QuantizeLinear"]
        bare = {self._bare_quantizer(value) for value in again} - {None}
        if not bare:
            return
        ends = []
        for name, end in (("all_codes.low", 0), ("all_codes.high", 255)):
            self._model.graph.initializer.append(self._onnx.numpy_helper.from_array(np.array(end, np.uint8), name))
            ends.append(name)
        nodes, self._nodes = self._nodes, []
        for node in nodes:
            codes = node.output[0]
            if codes in bare:
                node.output[0] = f"{codes}/made"
                self._put(node)
                node = self._onnx.helper.make_node("Clip", [node.output[0], *ends], [codes], name=f"{node.name}/all")
            self._put(node)

    def finish(self) -> None:
        """Writes the nodes back, without those that nobody reads."""
        read, kept = set(self._outputs), []
        for node in reversed(self._nodes):
            if not read.isdisjoint(node.output):
                kept.append(node)
                read.update(node.input)
        del self._model.graph.node[:]
        self._model.graph.node.extend(reversed(kept))

    def _reuse(self, codes: str, again: str) -> None:
        """Quantizing once more on the same grid gives the same codes; the name of a site's own codes stays."""
        self._renamed[again] = codes
        if again.endswith(CODES_SUFFIX) and not codes.endswith(CODES_SUFFIX):
            for node in self._nodes:
                for names in (node.input, node.output):
                    names[:] = [again if name == codes else name for name in names]
            self._makers[again] = self._makers.pop(codes)
            self._renamed = {name: again if value == codes else value for name, value in self._renamed.items()}
            self._renamed[codes] = self._renamed.pop(again)

    def _hoist(self, node: Any) -> None:
        """Puts a quantizer, or a clamp of codes, in front of the moves that it stands behind."""
        if node.op_type == "Clip" and self._clamped_already(node):
            self._reuse(node.input[0], node.output[0])
            return
        path = self._moves_above(node.input[0], ORDERING)
        source = path[-1][0].input[0] if path else ""
        maker = self._makers.get(source)
        if not path or (node.op_type == "Clip" and (maker is None or maker.op_type != "QuantizeLinear")):
            self._put(node)
            return
        value = f"{node.output[0]}/made"
        self._put(self._copy(node, [source, *node.input[1:]], [value]))
        for index, (move, _) in reversed(list(enumerate(path))):
            output = f"{node.output[0]}/{index}" if index else node.output[0]
            self._put(self._copy(move, [value, *move.input[1:]], [output], f"/{node.name}"))
            value = output

    def _clamped_already(self, clamp: Any) -> bool:
        """Whether the same clamp stands in front of the moves that a clamp of codes stands behind."""
        path = self._moves_above(clamp.input[0], CARRIED)
        maker = self._makers.get(path[-1][0].input[0] if path else clamp.input[0])
        return maker is not None and maker.op_type == "Clip" and maker.input[1:] == clamp.input[1:]

    def _sink(self, dequantize: Any, move: Any) -> None:
        """Moves codes, and dequantizes behind."""
        carried = [f"{name}/carried" for name in move.output]
        self._put(self._copy(move, [dequantize.input[0], *move.input[1:]], carried))
        for codes, values in zip(carried, move.output, strict=True):
            self._put(self._copy(dequantize, [codes, *dequantize.input[1:]], [values], f"/{values}"))

    def _put(self, node: Any) -> None:
        self._nodes.append(node)
        self._makers.update(dict.fromkeys(node.output, node))

    def _dequantizes(self, node: Any) -> bool:
        """Whether a node gives an activation its values: the codes are computed, not constant."""
        return node is not None and node.op_type == "DequantizeLinear" and node.input[0] not in self._constants

    def _moves_above(self, value: str, kinds: frozenset[str]) -> list[tuple[Any, str]]:
        """The moves that a value comes through, the last one first, each with the output that was taken."""
        path = []
        while value in self._makers and self._makers[value].op_type in kinds:
            path.append((self._makers[value], value))
            value = self._makers[value].input[0]
        return path

    def _bare_quantizer(self, value: str) -> str | None:
        """The codes of the quantizer that a value has come through already, where no clamp follows it."""
        node: Any = self._makers.get(value)
        while node is not None and node.op_type in _CLEAR:
            node = self._makers.get(node.input[0])
        if not self._dequantizes(node):
            return None
        path = self._moves_above(node.input[0], CARRIED)
        codes: str = path[-1][0].input[0] if path else node.input[0]
        made = self._makers.get(codes)
        return codes if made is not None and made.op_type == "QuantizeLinear" else None

    def _copy(self, node: Any, inputs: list[str], outputs: list[str] | None = None, suffix: str = "") -> Any:
        made = self._onnx.NodeProto()
        made.CopyFrom(node)
        made.name = f"{node.name}{suffix}"
        made.input[:] = inputs
        if outputs is not None:
            made.output[:] = outputs
        return made

    def _count_from_the_end(self, gather: Any) -> None:
        """The channels of images as axis -3: where it is 1, OpenVINO tries to reorder weights instead, and fails."""
        for attribute in gather.attribute:
            if attribute.name == "axis" and attribute.i == 1 and self._ranks.get(gather.input[0]) == 4:
                attribute.i = -3

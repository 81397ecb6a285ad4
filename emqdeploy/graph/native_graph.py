"""One ONNX graph for all children whose integer parts our own kernels compute, as custom operators in onnxruntime.

The input ``bits`` (int64, shape ``[1]``) chooses the child; a value that no child has is an error. The codes are stored
once: every child reads their leading bits. See `emqdeploy.format.segment` for the operator. Needs the onnx package.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.format.grid import integer_bias
from emqdeploy.format.precision import INT8
from emqdeploy.format.segment import CONSTANTS, DOMAIN, OPERATOR, VERSION
from emqdeploy.graph.building import Builder
from emqdeploy.graph.segments import Cut, Segment, rows_of
from emqdeploy.graph.selector import SELECTOR_INPUT, selector_values

STORED_AS = "codes of 8 bits"


def native_stored_as(network: FrozenNetwork) -> dict[str, str]:
    """How such a graph stores each layer."""
    return {name: INT8 if layer.pinned else STORED_AS for name, layer in network.layers.items()}


def native_model(checkpoint: Checkpoint, children: Sequence[Child], shown: Sequence[str] = ()) -> Any:
    """Returns the graph of some children.

    Args:
        checkpoint: what it is made from.
        children: those that it holds.
        shown: values that become outputs beside the answer: codes of tensors, float answers of layers.
    """
    return _Writer(checkpoint, children, tuple(shown)).write()


class _Writer:
    """Writes one graph."""

    def __init__(self, checkpoint: Checkpoint, children: Sequence[Child], shown: tuple[str, ...]) -> None:
        onnx = require("onnx", "export")
        self._helper, self._types = onnx.helper, onnx.TensorProto
        self._network = checkpoint.network
        self._values = selector_values(children)
        self._cut = Cut(checkpoint.skeleton, checkpoint.card.input_shape, shown)
        self._shown = shown
        self._model = onnx.load_from_string(checkpoint.skeleton)
        self._stubs = {tensor.name: tensor for tensor in self._cut.model.graph.initializer}
        for field in ("node", "initializer", "value_info"):
            del getattr(self._model.graph, field)[:]
        self._add = Builder(self._model, prefix="native")
        self._held: set[str] = set()

    def write(self) -> Any:
        """Returns the model."""
        describe = self._helper.make_tensor_value_info
        self._model.graph.input.append(describe(SELECTOR_INPUT, self._types.INT64, [1]))
        self._model.opset_import.append(self._helper.make_opsetid(DOMAIN, VERSION))
        for number, step in enumerate(self._cut.steps):
            if isinstance(step, Segment):
                self._segment(step, f"segment{number}")
            else:
                self._between(step)
        for name in self._shown:
            self._model.graph.output.append(describe(name, self._type(name), None))
        return self._add.finish()

    def _type(self, value: str) -> int:
        return int(self._types.UINT8 if self._cut.is_codes(value) else self._types.FLOAT)

    # --- between segments ---

    def _between(self, node: Any) -> None:
        """A node as it is, with the constants that it reads in front of it."""
        for name in node.input:
            if name in self._stubs and name not in self._held:
                self._held.add(name)
                self._constant(name)
        self._add.nodes.append(node)

    def _constant(self, name: str) -> None:
        if name not in self._cut.open:
            self._model.graph.initializer.add().CopyFrom(self._stubs[name])
        elif name in self._network.floats:
            self._add.constant(self._network.floats[name], name)
        else:
            # A number of a site that onnxruntime itself quantizes with: that of the child.
            table = np.stack([_number(self._network, name, child) for child in self._values])
            self._add.node("Gather", self._add.constant(table), self._place(), out=name, axis=0)

    def _place(self) -> str:
        """The place of the child that is chosen among all."""
        name = "native/child"
        if name not in self._held:
            self._held.add(name)
            found = self._add.node("Equal", self._add.constant(_values(self._values)), SELECTOR_INPUT)
            self._add.node("ArgMax", self._add.cast(found, np.int32), out=name, axis=0, keepdims=0)
        return name

    # --- segments ---

    def _segment(self, segment: Segment, name: str) -> None:
        inner = self._inner(segment, name)
        constants = _constants(self._network, inner.graph, self._values)
        constants["graph"] = np.frombuffer(inner.SerializeToString(deterministic=True), np.uint8)
        inputs = [self._add.constant(constants[kind], f"{name}/{kind}") for kind in CONSTANTS]
        inputs += [self._taken(value) for value in segment.inputs]
        outputs = [f"{value}/rows" if self._is_folded(value) else value for value in segment.outputs]
        node = self._helper.make_node(OPERATOR, [SELECTOR_INPUT, *inputs], outputs, name=name, domain=DOMAIN)
        self._add.nodes.append(node)
        for value, output in zip(segment.outputs, outputs, strict=True):
            self._declare(value, output)

    def _inner(self, segment: Segment, name: str) -> Any:
        """The segment as a weightless graph of its own, for one image."""
        read = dict.fromkeys(one for node in segment.nodes for one in node.input if one in self._stubs)
        graph = self._helper.make_graph(
            segment.nodes,
            name,
            [self._end(value, self._cut.takes_rows(value)) for value in segment.inputs],
            [self._end(value, self._cut.gives_rows(value)) for value in segment.outputs],
            [self._stubs[one] for one in read],
        )
        return self._helper.make_model(graph, opset_imports=self._cut.model.opset_import)

    def _end(self, value: str, rows: bool) -> Any:
        shape = self._cut.shapes[value]
        return self._helper.make_tensor_value_info(value, self._type(value), rows_of(shape) if rows else shape)

    def _taken(self, value: str) -> str:
        """A value as its segment takes it; onnxruntime reshapes without copying."""
        shape = self._cut.shapes[value]
        folds = len(shape) != 2 and self._cut.takes_rows(value)
        return self._add.reshape(value, [-1, shape[-1]]) if folds else value

    def _is_folded(self, value: str) -> bool:
        return len(self._cut.shapes[value]) != 2 and self._cut.gives_rows(value)

    def _declare(self, value: str, output: str) -> None:
        """Says what a segment answers, and brings rows into the shape that others know."""
        shape = self._cut.shapes[value]
        if output != value:
            self._add.node("Reshape", output, self._add.node("Shape", self._cut.source(value)), out=value)
            shape = rows_of(shape)
        if output not in {one.name for one in self._model.graph.output}:
            batch = "batch" if shape[0] == 1 else None
            info = self._helper.make_tensor_value_info(output, self._type(value), [batch, *shape[1:]])
            self._model.graph.value_info.append(info)


def _values(values: dict[Child, int]) -> NDArray[np.int64]:
    return np.array(list(values.values()), np.int64)


def _number(network: FrozenNetwork, name: str, child: Child) -> NDArray[Any]:
    """One open number of a site: its scale, or its lowest or highest code."""
    site, _, kind = name.rpartition(".")
    if kind == "scale":
        return np.array(network.sites[site].scales[child], np.float32)
    codes = network.sites[site].code_range(child)
    return np.array({"low": codes.low, "high": codes.high}[kind], np.uint8)


def _constants(network: FrozenNetwork, graph: Any, children: dict[Child, int]) -> dict[str, NDArray[Any]]:
    """What a segment reads, its layers and sites in the order in which its graph first names them."""
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    layers = [node.input[0].removesuffix(".weight") for node in nodes if node.input[0].endswith(".weight")]
    sites = [node.input[1].removesuffix(".scale") for node in nodes if node.input[1].endswith(".scale")]
    grids = [network.sites[name] for name in dict.fromkeys(sites)]
    numbers = [[_layer(network, name, child) for name in dict.fromkeys(layers)] for child in children]
    bounds = [
        [(codes.low, codes.high) if site.clamped else (0, 255) for codes in map(site.code_range, children)]
        for site in grids
    ]
    codes = [network.layers[name].bytes_of_kernels().reshape(-1) for name in dict.fromkeys(layers)]
    empty = np.zeros((3, 0), np.int32), np.zeros(0, np.uint8), np.zeros(0, np.float32)
    joined = [[np.concatenate(parts, -1) for parts in zip(empty, *child, strict=True)] for child in numbers]
    return {
        "values": _values(children),
        "codes": np.concatenate([np.zeros(0, np.uint8), *codes]),
        "integers": np.stack([integers for integers, _, _ in joined]),
        "widths": np.stack([widths for _, widths, _ in joined]),
        "scales": np.stack([scales for _, _, scales in joined]),
        "site_scales": np.array([[site.scales[child] for child in children] for site in grids], np.float32),
        "site_bounds": np.moveaxis(np.array(bounds, np.int32), -1, 0),
    }


def _layer(network: FrozenNetwork, name: str, child: Child) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Gain, shift and bias ``(3, C)``, bits ``(C,)`` and scale ``(C,)`` of a layer at a child."""
    layer = network.layers[name]
    grid = layer.grids[child]
    gain, shift, bits = layer.affine_of_kernels(child)
    bias, _ = integer_bias(layer.biases[child], network.sites[layer.site].scales[child], grid.scale)
    return np.stack([gain, shift, bias]).astype(np.int32), bits.astype(np.uint8), grid.scale.astype(np.float32)

"""OpenVINO's IR as plain data: the same gate for an ``.xml`` and its ``.bin`` that ONNX graphs pass.

Admitted are the layers that OpenVINO's conversion of our graphs writes; shapes are followed with the rules of
`emqdeploy.format.shapes`, each layer being translated into the operator of ONNX that does the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree
from xml.parsers import expat

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.format.card import Card
from emqdeploy.format.onnx_graph import MOST_DIMENSIONS, MOST_NODES, Node
from emqdeploy.format.shapes import MOST_KNOWN, Shape, Shapes

_BITS = {"f32": 32, "f16": 16, "i64": 64, "i32": 32, "i8": 8, "u8": 8, "boolean": 8, "i4": 4, "u4": 4}
_SAME = {
    "Convert",
    "FakeQuantize",
    "Gelu",
    "MVN",
    "SoftMax",
    "Relu",
    "ReLU",
    "Sigmoid",
    "HSwish",
    "HSigmoid",
    "Swish",
    "Clamp",
}
_SAME |= {"Tanh", "LogSoftmax", "HardSigmoid", "Erf", "Sqrt", "Exp", "Power", "Round", "Floor", "Negative", "Softplus"}
_SAME |= {"Elu", "PRelu"}
_ELEMENTWISE = {"Add": "Add", "Subtract": "Sub", "Multiply": "Mul", "Divide": "Div", "Maximum": "Max", "Minimum": "Min"}
_INSIDE = {"data", "input", "output"}
_DEEPEST = 16


@dataclass(frozen=True)
class Ir:
    """A network of OpenVINO that passed the gate, in memory."""

    xml: bytes
    weights: bytes


def read_ir(xml: bytes, weights: bytes, card: Card, path: Path | str) -> Ir:
    """Checks a network; what is returned is written anew, so that no other reader finds more in it.

    Args:
        xml: the graph.
        weights: its constants.
        card: of the network.
        path: of the graph, for the sentence.

    Raises:
        EmqError: it is not one that OpenVINO makes of our graphs.
    """
    try:
        root = _parse(xml)
        found = _Layers(root, weights, card).follow()
        if found != [(1, len(card.classes))]:
            raise ValueError(f"its outputs have shapes {found} for one image, and the card {len(card.classes)} classes")
    except (ValueError, LookupError, TypeError, OverflowError, ZeroDivisionError) as error:
        raise EmqError(
            f"{path} holds a graph that emqdeploy did not write: {str(error)[:300]}; export again"
        ) from error
    for notes in root.findall("rt_info"):
        root.remove(notes)
    return Ir(ElementTree.tostring(root), weights)


def _parse(xml: bytes) -> ElementTree.Element:
    """The tree; documents that declare types or entities are refused."""
    if b"\0" in xml or b"<!" in xml:
        raise ValueError("it declares more than elements")
    builder, parser = ElementTree.TreeBuilder(), expat.ParserCreate("utf-8")
    depth = 0

    def start(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise ValueError("its elements are nested too deep")
        builder.start(tag, attributes)

    def end(tag: str) -> None:
        nonlocal depth
        depth -= 1
        builder.end(tag)

    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(xml, True)
    except expat.ExpatError as error:
        raise ValueError(f"it is no XML ({error})") from error
    return builder.close()


class _Layers:
    """The layers of a network and who reads whom."""

    def __init__(self, root: ElementTree.Element, weights: bytes, card: Card) -> None:
        if root.tag != "net" or [part.tag for part in root if part.tag != "rt_info"] != ["layers", "edges"]:
            raise ValueError("it is no network")
        layers, edges = root[0], root[1]
        if len(layers) > MOST_NODES:
            raise ValueError(f"it has more than {MOST_NODES} layers")
        self.weights, self.card = weights, card
        self.layers: dict[str, ElementTree.Element] = {}
        for layer in layers:
            if layer.tag != "layer" or layer.attrib["id"] in self.layers or {part.tag for part in layer} - _INSIDE:
                raise ValueError(
                    f"layer {layer.get('name')!r} is there twice, or holds something that none of ours has"
                )
            if not layer.attrib["version"].startswith("opset"):
                raise ValueError(f"layer {layer.get('name')!r} is of {layer.get('version')!r}")
            self.layers[layer.attrib["id"]] = layer
        self.sources: dict[str, dict[int, str]] = {key: {} for key in self.layers}
        for edge in edges:
            target, source = edge.attrib["to-layer"], edge.attrib["from-layer"]
            place = self._port(target, "input", edge.attrib["to-port"])
            if place in self.sources[target]:
                raise ValueError(f"an input of layer {target} is there twice")
            self.sources[target][place] = f"{source}:{self._port(source, 'output', edge.attrib['from-port'])}"
        self.shapes = Shapes({})

    def _port(self, layer: str, side: str, port: str) -> int:
        ports = self.layers[layer].find(side)
        names = [] if ports is None else [one.attrib["id"] for one in ports]
        if len(set(names)) < len(names):
            raise ValueError(f"layer {layer} has a port twice")
        return names.index(port)

    def follow(self) -> list[Shape]:
        """Computes every shape for one image; returns those of the results."""
        results: list[Shape] = []
        inputs = 0
        for key in self._order():
            layer, sources = self.layers[key], self.sources[key]
            kind, name = layer.attrib["type"], str(layer.get("name"))
            if sorted(sources) != list(range(len(sources))) or len(sources) != len(layer.find("input") or ()):
                raise ValueError(f"layer {name!r} lacks an input")
            names = [sources[place] for place in range(len(sources))]
            data = layer.find("data")
            values: Mapping[str, str] = {} if data is None else data.attrib
            if kind == "Parameter":
                inputs += 1
                shape = (1, *self.card.input_shape)
                if values["element_type"] != "f32" or _numbers(values["shape"].replace("?", "-1"))[1:] != list(
                    shape[1:]
                ):
                    raise ValueError(f"its input has type {values['element_type']} and shape {values['shape']}")
                self.shapes.shapes[f"{key}:0"] = shape
            elif kind == "Const":
                self._constant(f"{key}:0", values)
            elif kind == "Result":
                results.append(self.shapes.shapes[names[0]])
            else:
                outputs = tuple(f"{key}:{place}" for place in range(len(layer.find("output") or ())))
                self.shapes.add_node(self._operator(kind, values, names, outputs))
        if inputs != 1:
            raise ValueError(f"it has {inputs} inputs")
        return results

    def _order(self) -> list[str]:
        """The layers, each behind those that it reads."""
        waiting = {key: len(sources) for key, sources in self.sources.items()}
        readers: dict[str, list[str]] = {key: [] for key in self.layers}
        for key, sources in self.sources.items():
            for source in sources.values():
                readers[source.rpartition(":")[0]].append(key)
        ready = deque(key for key, count in waiting.items() if not count)
        order = []
        while ready:
            order.append(ready.popleft())
            for reader in readers[order[-1]]:
                waiting[reader] -= 1
                if not waiting[reader]:
                    ready.append(reader)
        if len(order) < len(self.layers):
            raise ValueError("its layers read one another in a circle")
        return order

    def _constant(self, name: str, values: Mapping[str, str]) -> None:
        kind, shape = values["element_type"], _numbers(values["shape"])
        offset, size = int(values["offset"]), int(values["size"])
        if kind not in _BITS or len(shape) > MOST_DIMENSIONS or any(side < 0 for side in shape):
            raise ValueError(f"a constant has type {kind!r} and shape {shape}")
        count = math.prod(shape)
        if offset < 0 or size != -(-count * _BITS[kind] // 8) or offset + size > len(self.weights):
            raise ValueError(f"a constant of shape {shape} has {size} bytes at {offset} of {len(self.weights)}")
        self.shapes.shapes[name] = tuple(shape)
        if kind in ("i64", "i32") and count <= MOST_KNOWN:
            held = np.frombuffer(self.weights, np.int64 if kind == "i64" else np.int32, count, offset)
            self.shapes.known[name] = held.astype(np.int64).reshape(shape)

    def _known(self, name: str) -> list[int]:
        return [int(value) for value in self.shapes.known[name].reshape(-1)]

    def _operator(self, kind: str, values: Mapping[str, str], names: list[str], outputs: tuple[str, ...]) -> Node:
        """The operator of ONNX that gives the same shape."""
        attributes: dict[str, Any] = {}
        if values.get("auto_broadcast", "numpy") != "numpy":
            raise ValueError(f"layer {kind!r} spreads its inputs in another way")
        if kind in _SAME:
            operator, names = "Cast" if kind == "Convert" else "Identity", names[:1]
            attributes["to"] = {"i64": 7, "i32": 6}.get(values.get("destination_type", ""), 1)
        elif kind in _ELEMENTWISE:
            operator = _ELEMENTWISE[kind]
        elif kind in ("Convolution", "GroupConvolution", "MaxPool", "AvgPool"):
            operator = "Conv" if kind.endswith("Convolution") else "MaxPool"
            names, attributes = self._window(kind, values, names), _window_attributes(values)
        elif kind == "MatMul":
            operator, names = "MatMul", self._transposed(values, names)
        elif kind in ("ReduceMean", "ReduceSum", "ReduceMax"):
            operator = kind
            attributes = {"keepdims": int(values.get("keep_dims", "false") in ("true", "1"))}
        elif kind in ("Reshape", "Squeeze", "Unsqueeze", "Range", "ShapeOf"):
            operator = "Shape" if kind == "ShapeOf" else kind
            attributes = (
                {"allowzero": int(values.get("special_zero") not in ("true", "1"))} if kind == "Reshape" else {}
            )
        elif kind == "Broadcast":
            operator, names = "Expand", names[:2]
            if values.get("mode") not in ("numpy", "bidirectional"):
                raise ValueError("layer 'Broadcast' spreads its input in another way")
        elif kind == "Concat":
            operator, attributes = "Concat", {"axis": int(values["axis"])}
        elif kind == "Gather":
            operator, attributes = "Gather", {"axis": self._known(names[2])[0]}
            names = names[:2]
            if values.get("batch_dims", "0") != "0":
                raise ValueError("layer 'Gather' takes batches")
        elif kind == "Slice":
            operator, names = "Slice", [*names[:3], *names[4:5], names[3]] if len(names) > 4 else names[:3]
        elif kind == "Transpose":
            operator, attributes, names = "Transpose", {"perm": self._known(names[1])}, names[:1]
        elif kind == "VariadicSplit":
            operator, attributes = "Split", {"axis": self._known(names[1])[0]}
            names = [names[0], names[2]]
        elif kind == "Split":
            operator, attributes, names = "Split", {"axis": self._known(names[1])[0]}, names[:1]
        else:
            raise ValueError(f"layer {kind!r} is none that a graph of ours has")
        return Node(operator, "", tuple(names), outputs, attributes)

    def _window(self, kind: str, values: Mapping[str, str], names: list[str]) -> list[str]:
        """Input and weights as ONNX has them; of a pool, a stand-in for weights."""
        shapes, weights = self.shapes.shapes, f"{names[-1]} as weights"
        if kind == "Convolution":
            return names
        if kind == "GroupConvolution":
            groups, channels, *rest = shapes[names[1]]
            shapes[weights] = (groups * channels, *rest)
            return [names[0], weights]
        return names

    def _transposed(self, values: Mapping[str, str], names: list[str]) -> list[str]:
        found = []
        for name, flag in zip(names, ("transpose_a", "transpose_b"), strict=True):
            shape, place = self.shapes.shapes[name], f"{name} {flag}"
            turned = values.get(flag, "false") in ("true", "1")
            self.shapes.shapes[place] = (*shape[:-2], shape[-1], shape[-2]) if turned else shape
            found.append(place)
        return found


def _window_attributes(values: Mapping[str, str]) -> dict[str, Any]:
    kind = values.get("auto_pad", "explicit").lower()
    if kind not in ("explicit", "notset", "valid"):
        raise ValueError(f"a window is padded in the way {kind!r}")
    begin, end = _numbers(values.get("pads_begin", "")), _numbers(values.get("pads_end", ""))
    found: dict[str, Any] = {"strides": _numbers(values["strides"])}
    found |= {"pads": begin + end} if kind != "valid" else {}
    found |= {"dilations": _numbers(values["dilations"])} if "dilations" in values else {}
    found |= {"kernel_shape": _numbers(values["kernel"])} if "kernel" in values else {}
    return found | {"ceil_mode": int(values.get("rounding_type", "floor") != "floor")}


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",") if part.strip()]

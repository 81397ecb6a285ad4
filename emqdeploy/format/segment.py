"""The operator that our kernels add to onnxruntime: what a network computes in integers between its float operators.

`native/src/onnxruntime_segment.cpp` computes it. Of K children, C channels (those of all layers, one layer behind the
other) and S sites, its inputs are, layers and sites in the order in which the graph first names them:

=================  ========================  =====================================================================
``bits``           int64 ``(1,)``            what chooses the child
``graph``          uint8                     a serialised ONNX model without numbers
``values``         int64 ``(K,)``            the value of ``bits`` for each child
``codes``          uint8                     of every layer, see `FrozenLayer.bytes_of_kernels`
``widths``         uint8 ``(K, C)``          bits of the codes
``integers``       int32 ``(K, 3, C)``       gain, shift, bias
``scales``         float32 ``(K, C)``        of one step of a weight
``site_scales``    float32 ``(S, K)``        of one step of a code
``site_bounds``    int32 ``(2, S, K)``       lowest and highest code
then               float32 or uint8          what goes in: images, planes, or rows of channels
=================  ========================  =====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping

from emqdeploy.format.onnx_graph import Graph, Node, read_model
from emqdeploy.format.shapes import Shape, Shapes

DOMAIN = "emqdeploy"
OPERATOR = "Segment"
VERSION = 1

CONSTANTS = ("graph", "values", "codes", "widths", "integers", "scales", "site_scales", "site_bounds")
"""The inputs behind ``bits`` that are constants, in this order."""

FIRST_DATA = 1 + len(CONSTANTS)
"""Index of the first input that goes in."""

NATIVE = "native"
"""What a file calls its selector where its graph has such operators."""


def read_segments(data: bytes, graph: Graph) -> dict[str, Graph]:
    """What the segments of a graph compute, by the name of their first output.

    Args:
        data: the serialised model.
        graph: of the model.

    Raises:
        ValueError: one is not as our exporter writes it; the message says what.
    """
    found: dict[str, Graph] = {}
    for node in graph.nodes:
        if node.domain != DOMAIN:
            continue
        constants = [graph.tensors.get(name) for name in node.inputs[1:FIRST_DATA]]
        spans = [tensor.span for tensor in constants if tensor is not None and tensor.span is not None]
        if node.operator != OPERATOR or node.attributes or len(node.inputs) <= FIRST_DATA or node.outputs[0] in found:
            raise ValueError(f"operator {node.operator!r} of domain {DOMAIN!r} is none of ours")
        if len(spans) < len(CONSTANTS) or node.inputs[0] in graph.tensors:
            raise ValueError("a segment of it has a number that is computed, or no choice of the child")
        inner = read_model(data[slice(*spans[0])])
        if set(inner.opsets) - {""} or any(node.domain or _has_graph(node) for node in inner.graph.nodes):
            raise ValueError("a segment of it has operators of another domain, or with graphs of their own")
        if len(inner.graph.inputs) != len(node.inputs) - FIRST_DATA or len(inner.graph.outputs) != len(node.outputs):
            raise ValueError("a segment of it has other inputs and outputs than its graph")
        found[node.outputs[0]] = inner.graph
    return found


def _has_graph(node: Node) -> bool:
    return any(isinstance(value, Graph) for value in node.attributes.values())


class SegmentShapes(Shapes):
    """Follows a graph with segments.

    Args:
        inputs: as `Shapes`.
        segments: from `read_segments`.
    """

    def __init__(self, inputs: Mapping[str, Shape], segments: Mapping[str, Graph]) -> None:
        super().__init__(inputs)
        self._segments = segments

    def _of_segment(self, node: Node, shapes: list[Shape]) -> list[Shape]:
        graph = self._segments[node.outputs[0]]
        given = dict(zip((value.name for value in graph.inputs), shapes[FIRST_DATA:], strict=True))
        inner = Shapes(given)
        inner.follow(graph)
        ends = {value.name: value.shape for value in (*graph.inputs, *graph.outputs)}
        if any(inner.shapes[name] != shape for name, shape in ends.items()):
            raise ValueError(f"a segment of it has other shapes than {node.outputs[0]!r} around it")
        return [inner.shapes[value.name] for value in graph.outputs]

"""The gate: what a graph from a file may be before any runtime sees it. A network in a file is data, not a program.

Admitted are the operators that our exporter writes, in ONNX's own domain and, in files for our kernels, the one of
`emqdeploy.format.segment`, whose graph is checked alike; no subgraph but the branches of a selector, no function, no
data in other files but what is filled here or lies in the bundle's own checkpoint, constants that are as large as they
say, values of bounded size, and one output of the shape that the card says. The check needs no onnx package and ends
before a session exists.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.format.card import Card
from emqdeploy.format.onnx_graph import DTYPES, Graph, Model, Tensor, external_data, read_model
from emqdeploy.format.segment import DOMAIN, SegmentShapes, read_segments

INPUT = "images"
OUTPUT = "logits"
SELECTOR_INPUT = "bits"

LARGEST_OPSET = 30

_INT64, _FLOAT = 7, 1
_OWN_DOMAINS = {"", "ai.onnx"}


@dataclass(frozen=True)
class Expected:
    """What the surroundings of a graph know about it.

    Attributes:
        card: of its network.
        filled: type and shape of the constants that are filled in memory, by name.
        checkpoints: files of the bundle that it may read constants from, and their sizes.
        selector: whether it takes the child as an input.
        segments: whether it may have operators of ours.
    """

    card: Card
    filled: Mapping[str, tuple[Any, tuple[int, ...]]]
    checkpoints: Mapping[str, int] = field(default_factory=dict)
    selector: bool = False
    segments: bool = False


def check_graph(data: bytes, expected: Expected, path: Path | str) -> None:
    """Raises one sentence for a graph that is not one of ours.

    Args:
        data: the serialised model.
        expected: what is known about it.
        path: of the file, for the sentence.
    """
    try:
        model = read_model(data)
        _check_domains(model, expected.segments)
        segments = read_segments(data, model.graph)
        _check_ends(model.graph, expected)
        _check_external(data, model.graph, expected)
        _check_branches(model.graph, expected.selector)
        _follow(model.graph, expected, segments)
    except ValueError as error:
        raise EmqError(
            f"{path} holds a graph that emqdeploy did not write: {' '.join(str(error).split())[:300]}; use the original"
            " file or export again"
        ) from error


def _check_domains(model: Model, segments: bool) -> None:
    """Every operator is one of ONNX's own or a segment; other domains may be named, as onnxruntime's quantizer does."""
    for domain in _OWN_DOMAINS & set(model.opsets):
        if not 1 <= model.opsets[domain] <= LARGEST_OPSET:
            raise ValueError(f"it names operator set {model.opsets[domain]}")
    for graph in _graphs(model.graph):
        for node in graph.nodes:
            if node.domain not in _OWN_DOMAINS and not (segments and node.domain == DOMAIN and graph is model.graph):
                raise ValueError(f"it uses operator {node.operator!r} of domain {node.domain!r}")


def _graphs(graph: Graph) -> list[Graph]:
    """A graph and the branches in it."""
    inner = [value for node in graph.nodes for value in node.attributes.values() if isinstance(value, Graph)]
    return [graph, *inner]


def _check_ends(graph: Graph, expected: Expected) -> None:
    """Inputs and output are those of a classifier of the card."""
    wanted: dict[str, tuple[int, tuple[int | None, ...]]] = {INPUT: (_FLOAT, (None, *expected.card.input_shape))}
    if expected.selector:
        wanted[SELECTOR_INPUT] = (_INT64, (1,))
    inputs = {value.name: (value.kind, value.shape) for value in graph.inputs}
    if set(inputs) != set(wanted):
        raise ValueError(f"its inputs are {', '.join(sorted(inputs)) or 'none'}, not {', '.join(sorted(wanted))}")
    for name, (kind, shape) in wanted.items():
        given_kind, given = inputs[name]
        if given_kind != kind or len(given) != len(shape) or given[1:] != shape[1:]:
            raise ValueError(f"its input {name!r} has type {given_kind} and shape {list(given)}")
    outputs = [value.name for value in graph.outputs]
    if outputs != [OUTPUT]:
        raise ValueError(f"its outputs are {', '.join(outputs) or 'none'}, not {OUTPUT}")


def _check_external(data: bytes, graph: Graph, expected: Expected) -> None:
    """Constants in other files are those that are filled here, or lie in the bundle's checkpoint."""
    for one in _graphs(graph):
        for tensor in one.tensors.values():
            if tensor.external is None:
                continue
            filled = expected.filled.get(tensor.name) if one is graph else None
            if filled is not None:
                dtype, shape = filled
                if DTYPES.get(tensor.kind) is not dtype or tensor.shape != shape:
                    raise ValueError(f"constant {tensor.name!r} has another type or shape than the network")
                continue
            _check_in_checkpoint(tensor, external_data(data, tensor), expected.checkpoints)


def _check_in_checkpoint(tensor: Tensor, external: Mapping[str, str], checkpoints: Mapping[str, int]) -> None:
    location = external.get("location", "")
    try:
        offset, length = int(external.get("offset", "-1")), int(external.get("length", "-1"))
    except ValueError as error:
        raise ValueError(f"constant {tensor.name!r} lies at no place") from error
    if offset < 0 or length != tensor.size_bytes or offset + length > checkpoints.get(location, -1):
        raise ValueError(f"constant {tensor.name!r} would be read from {location[:80]!r}")


def _check_branches(graph: Graph, selector: bool) -> None:
    """Graphs inside the graph are the two branches of a selector's If, which take nothing in."""
    for one in _graphs(graph):
        for node in one.nodes:
            inner = {name: value for name, value in node.attributes.items() if isinstance(value, Graph)}
            if not inner:
                continue
            if (
                one is not graph
                or not selector
                or node.operator != "If"
                or set(inner) != {"then_branch", "else_branch"}
            ):
                raise ValueError(f"operator {node.operator!r} holds a graph")
            if any(branch.inputs or len(branch.outputs) != len(node.outputs) for branch in inner.values()):
                raise ValueError("the branches of its selector have other inputs and outputs")


def _follow(graph: Graph, expected: Expected, segments: Mapping[str, Graph]) -> None:
    """Computes the shape of every value for one image; the last one is that of the classes."""
    inputs: dict[str, tuple[int, ...]] = {INPUT: (1, *expected.card.input_shape)}
    if expected.selector:
        inputs[SELECTOR_INPUT] = (1,)
    shapes = SegmentShapes(inputs, segments)
    shapes.follow(graph)
    found = shapes.shapes.get(OUTPUT)
    if found != (1, len(expected.card.classes)):
        classes = len(expected.card.classes)
        raise ValueError(f"its output has shape {list(found or ())} for one image, and the card {classes} classes")

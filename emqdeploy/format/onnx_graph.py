"""An ONNX graph as plain data: nodes, constants, inputs and outputs, read without the onnx package.

Reading admits only what our exporter writes: no functions, no training, no attribute that is a graph but the branches
of a selector's If. What a node may be and how large its results are is the business of `emqdeploy.format.gate`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.protobuf import BYTES, VARINT, fields, integers, signed

MOST_NODES = 50_000
MOST_NAMES = 1024
LONGEST_NAME = 1024
MOST_DIMENSIONS = 16

DTYPES: dict[int, Any] = {
    **{1: np.float32, 2: np.uint8, 3: np.int8, 5: np.int16, 6: np.int32, 7: np.int64, 9: np.bool_, 10: np.float16},
    **{4: np.uint16, 11: np.float64, 12: np.uint32, 13: np.uint64},
}
SUB_BYTE = {21: 4, 22: 4, 25: 2}
"""Types of fewer than eight bits, by number: UINT4, INT4, UINT2."""

_MODEL = {1, 2, 3, 4, 5, 6, 7, 8, 14}
_GRAPH = {1, 2, 5, 10, 11, 12, 13, 16}
_NODE = {1, 2, 3, 4, 5, 6, 7, 9}
_TENSOR = {1, 2, 4, 5, 7, 8, 9, 10, 11, 12, 13, 14}
_ATTRIBUTE = {1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 20}


class Tensor(msgspec.Struct, frozen=True):
    """A constant.

    Attributes:
        name: of the value.
        kind: its type by ONNX's number.
        shape: of the value.
        span: where its raw bytes lie in the model, None where they do not.
        external: where its ``location``, ``offset`` and ``length`` stand in the model, if another file holds it.
        numbers: its values where they are whole and few, or very few.
    """

    name: str
    kind: int
    shape: tuple[int, ...]
    span: tuple[int, int] | None = None
    external: tuple[tuple[int, int], ...] | None = None
    numbers: NDArray[Any] | None = None

    @property
    def count(self) -> int:
        """Values in it."""
        count = 1
        for side in self.shape:
            count *= side
        return count

    @property
    def size_bytes(self) -> int:
        """Bytes that it takes."""
        if self.kind in SUB_BYTE:
            return -(-self.count * SUB_BYTE[self.kind] // 8)
        return self.count * np.dtype(DTYPES[self.kind]).itemsize


class Node(msgspec.Struct, frozen=True):
    """An operator: attributes are whole numbers, lists of them, bytes, tensors, or graphs."""

    operator: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]


class ValueInfo(msgspec.Struct, frozen=True):
    """An input or output: its type and its shape, None for a side that is free."""

    name: str
    kind: int
    shape: tuple[int | None, ...]


@dataclass
class Graph:
    """What a graph holds."""

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    inputs: list[ValueInfo] = field(default_factory=list)
    outputs: list[ValueInfo] = field(default_factory=list)


@dataclass
class Model:
    """A graph and the operator sets that it names, by domain."""

    graph: Graph
    opsets: dict[str, int]


def read_model(data: bytes) -> Model:
    """Reads a serialised model.

    Raises:
        ValueError: it is none, or holds something that no graph of ours has; the message says what.
    """
    graph: Graph | None = None
    opsets: dict[str, int] = {}
    for number, kind, start, end in fields(data, 0, len(data)):
        if number not in _MODEL:
            raise ValueError("it defines functions or a training, which no graph of ours has")
        if number == 7 and kind == BYTES:
            if graph is not None:
                raise ValueError("it has two graphs")
            graph = _Reader(data).graph(start, end, branch=False)
        elif number == 8 and kind == BYTES:
            domain, version = "", 0
            for inner, inner_kind, first, last in fields(data, start, end):
                if inner == 1 and inner_kind == BYTES:
                    domain = _text(data, first, last)
                elif inner == 2 and inner_kind == VARINT:
                    version = first
            opsets[domain] = version
    if graph is None:
        raise ValueError("it has no graph")
    return Model(graph, opsets)


def external_data(data: bytes, tensor: Tensor) -> dict[str, str]:
    """``location``, ``offset`` and ``length`` of a constant that lies in another file, as the model has them."""
    found = {}
    for start, end in tensor.external or ():
        texts = {part[0]: _text(data, part[2], part[3]) for part in fields(data, start, end) if part[1] == BYTES}
        found[texts.get(1, "")] = texts.get(2, "")
    return found


class _Reader:
    """Reads the messages of one model."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.nodes_left = MOST_NODES

    def graph(self, start: int, end: int, branch: bool) -> Graph:
        data, found = self.data, Graph()
        parts = list(fields(data, start, end))
        self.nodes_left -= sum(part[0] == 1 for part in parts)
        if self.nodes_left < 0:
            raise ValueError(f"it has more than {MOST_NODES} operators")
        for number, kind, first, last in parts:
            if number not in _GRAPH:
                raise ValueError(f"its graph has a field {number}, which no graph of ours has")
            if kind != BYTES:
                continue
            if number == 1:
                found.nodes.append(self.node(first, last, branch))
            elif number == 5:
                tensor = self.tensor(first, last)
                if not tensor.name or tensor.name in found.tensors:
                    raise ValueError(f"constant {tensor.name!r} is there twice, or has no name")
                found.tensors[tensor.name] = tensor
            elif number == 11:
                found.inputs.append(self.value(first, last))
            elif number == 12:
                found.outputs.append(self.value(first, last))
        return found

    def node(self, start: int, end: int, branch: bool) -> Node:
        data = self.data
        operator = domain = ""
        inputs: list[str] = []
        outputs: list[str] = []
        attributes: dict[str, Any] = {}
        for number, kind, first, last in fields(data, start, end):
            if number not in _NODE:
                raise ValueError(f"an operator has a field {number}, which no graph of ours has")
            if kind != BYTES:
                continue
            if number == 1:
                inputs.append(_text(data, first, last))
            elif number == 2:
                outputs.append(_text(data, first, last))
            elif number == 4:
                operator = _text(data, first, last)
            elif number == 5:
                name, value = self.attribute(first, last, branch)
                attributes[name] = value
            elif number == 7:
                domain = _text(data, first, last)
        if len(inputs) > MOST_NAMES or len(outputs) > MOST_NAMES or not outputs:
            raise ValueError(f"operator {operator!r} has {len(inputs)} inputs and {len(outputs)} outputs")
        return Node(operator, domain, tuple(inputs), tuple(outputs), attributes)

    def attribute(self, start: int, end: int, branch: bool) -> tuple[str, Any]:
        data, name = self.data, ""
        value: Any = None
        lists: list[int] = []
        for part in fields(data, start, end):
            number, kind, first, last = part
            if number not in _ATTRIBUTE:
                raise ValueError(f"an attribute has a field {number}, which no graph of ours has")
            if number == 1 and kind == BYTES:
                name = _text(data, first, last)
            elif number == 3 and kind == VARINT:
                value = signed(first)
            elif number == 4 and kind == BYTES:
                value = bytes(data[first : min(last, first + LONGEST_NAME)])
            elif number == 5 and kind == BYTES:
                value = self.tensor(first, last)
            elif number == 6 and kind == BYTES:
                if branch:
                    raise ValueError("a graph stands inside a branch of another one")
                value = self.graph(first, last, branch=True)
            elif number == 8:
                lists += integers(data, part)
                if len(lists) > MOST_NAMES:
                    raise ValueError(f"attribute {name!r} is a list of more than {MOST_NAMES} numbers")
                value = lists
        return name, value

    def tensor(self, start: int, end: int) -> Tensor:
        data, name, kind_, shape = self.data, "", 0, []
        span: tuple[int, int] | None = None
        external: list[tuple[int, int]] = []
        location = 0
        numbers: list[int] = []
        others = 0
        for part in fields(data, start, end):
            number, kind, first, last = part
            if number not in _TENSOR:
                raise ValueError(f"constant {name!r} has a field {number}, which no graph of ours has")
            if number == 1:
                shape += integers(data, part)
            elif number == 2 and kind == VARINT:
                kind_ = first
            elif number == 8 and kind == BYTES:
                name = _text(data, first, last)
            elif number == 9 and kind == BYTES:
                span = (first, last)
            elif number == 13 and kind == BYTES:
                external.append((first, last))
            elif number == 14 and kind == VARINT:
                location = first
            elif number in (5, 7):
                numbers += integers(data, part)
            elif number in (4, 10, 11) and kind == BYTES:
                others += last - first
            elif number in (4, 10, 11):
                others += 8
        if kind_ not in DTYPES and kind_ not in SUB_BYTE:
            raise ValueError(f"constant {name!r} has type {kind_}, which no graph of ours has")
        if len(shape) > MOST_DIMENSIONS or any(side < 0 for side in shape):
            raise ValueError(f"constant {name!r} has shape {shape}")
        found = Tensor(name, kind_, tuple(shape), span, tuple(external) if location == 1 else None)
        return self.checked(found, numbers, others)

    def checked(self, tensor: Tensor, numbers: list[int], others: int) -> Tensor:
        """The tensor with its few whole numbers, once it holds as much as its shape says."""
        if tensor.external is not None:
            return tensor
        if tensor.span is not None:
            start, end = tensor.span
            if end - start != tensor.size_bytes:
                raise ValueError(f"constant {tensor.name!r} has {end - start} of {tensor.size_bytes} bytes")
            few = MOST_DIMENSIONS if tensor.kind == 1 else MOST_NAMES  # of floats, the factors of a Resize
            if tensor.count <= few and tensor.kind in (1, 6, 7, 9):
                values = np.frombuffer(self.data[start:end], DTYPES[tensor.kind]).reshape(tensor.shape)
                return Tensor(tensor.name, tensor.kind, tensor.shape, tensor.span, None, values)
            return tensor
        if numbers and len(numbers) == tensor.count and tensor.count <= MOST_NAMES:
            values = np.array(numbers).reshape(tensor.shape)
            return Tensor(tensor.name, tensor.kind, tensor.shape, None, None, values)
        if not (len(numbers) == tensor.count or others >= tensor.count * 4 or (others and tensor.kind == 1)):
            raise ValueError(f"constant {tensor.name!r} does not hold what its shape says")
        return tensor

    def value(self, start: int, end: int) -> ValueInfo:
        data, name, kind_ = self.data, "", 0
        shape: list[int | None] = []
        for number, kind, first, last in fields(data, start, end):
            if number == 1 and kind == BYTES:
                name = _text(data, first, last)
            elif number == 2 and kind == BYTES:
                for inner, inner_kind, begin, stop in fields(data, first, last):
                    if inner != 1 or inner_kind != BYTES:
                        raise ValueError(f"value {name!r} is no tensor")
                    kind_, shape = self.tensor_type(begin, stop)
        return ValueInfo(name, kind_, tuple(shape))

    def tensor_type(self, start: int, end: int) -> tuple[int, list[int | None]]:
        kind_, shape = 0, []
        for number, kind, first, last in fields(self.data, start, end):
            if number == 1 and kind == VARINT:
                kind_ = first
            elif number == 2 and kind == BYTES:
                for _, dim_kind, begin, stop in fields(self.data, first, last):
                    sides = [f for f in fields(self.data, begin, stop)] if dim_kind == BYTES else []
                    fixed = [signed(side[2]) for side in sides if side[0] == 1 and side[1] == VARINT]
                    shape.append(fixed[0] if fixed else None)
        return kind_, shape


def _text(data: bytes, start: int, end: int) -> str:
    if end - start > LONGEST_NAME:
        raise ValueError(f"a name in it has more than {LONGEST_NAME} letters")
    try:
        return data[start:end].decode()
    except UnicodeDecodeError as error:
        raise ValueError("a name in it is no text") from error

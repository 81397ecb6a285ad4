"""A float ONNX file as nodes and constants: read as data, and refused by name where it is no network of images."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.files import LARGEST_MODEL, open_regular, read_bytes

SUFFIX = ".onnx"
MOST_NODES = 50_000
OPSETS = range(7, 31)

_OWN = ("", "ai.onnx")
_FLOAT = 1
_OTHER_FLOATS = frozenset(("float16", "bfloat16", "double"))
_REMEDY = "give a float network exported to ONNX"


@dataclass
class Node:
    """An operator of a graph.

    Attributes:
        operator: of ONNX's own domain.
        name: as the exporter wrote it, for messages; perhaps empty.
        inputs: names of values; empty for one that is left out.
        outputs: names of values.
        attributes: numbers, text, lists of them, and arrays.
    """

    operator: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: dict[str, Any]

    def about(self) -> str:
        """The operator and its name."""
        return f"{self.operator} ({self.name})" if self.name else self.operator


@dataclass
class OnnxFile:
    """What a file holds.

    Attributes:
        path: of the file.
        model: the whole of it, constants included, for onnxruntime.
        nodes: in the order in which they run.
        constants: by the name of the value.
        input: name of the images.
        shape: of the images, None for a side that is free.
        output: name of the logits.
        opset: of ONNX's own operators.
    """

    path: Path
    model: Any
    input: str
    shape: tuple[int | None, ...]
    output: str
    opset: int
    nodes: list[Node] = field(default_factory=list)
    constants: dict[str, NDArray[Any]] = field(default_factory=dict)

    def refuse(self, reason: str, remedy: str) -> EmqError:
        """The sentence for what cannot be taken."""
        return EmqError(f"{self.path} {reason}; {remedy}")


def read_file(path: Path) -> OnnxFile:
    """Reads an ONNX file; nothing in it is run.

    Args:
        path: the file; what it keeps in other files has to lie beside it.

    Raises:
        EmqError: it is no ONNX file, has control flow, functions or operators of another domain, takes anything but
            one tensor of float images, or is quantized.
    """
    onnx = require("onnx", "train")
    if not path.exists():
        raise UsageError(f"there is no file {path}; {_REMEDY}")
    model = onnx.ModelProto()
    try:
        model.ParseFromString(read_bytes(path, LARGEST_MODEL, _REMEDY))
    except EmqError:
        raise
    except Exception as error:  # the parser has its own kinds
        raise EmqError(f"{path} is not an ONNX file; {_REMEDY}") from error
    if not model.graph.node or not model.opset_import:
        raise EmqError(f"{path} holds no ONNX graph; {_REMEDY}")
    _check_operators(path, model)
    found = OnnxFile(path, model, *_images(path, model), _logits(path, model), _opset(path, model))
    for tensor in model.graph.initializer:
        found.constants[tensor.name] = _array(found, tensor)
    for node in model.graph.node:
        attributes = {one.name: _attribute(found, node, one) for one in node.attribute}
        found.nodes.append(Node(node.op_type, node.name, list(node.input), list(node.output), attributes))
    return found


def _check_operators(path: Path, model: Any) -> None:
    graph = model.graph
    if model.functions:
        raise EmqError(f"{path} defines functions of its own ({model.functions[0].name}); export it with them inlined")
    if model.training_info or graph.sparse_initializer:
        raise EmqError(f"{path} holds a training or sparse constants; {_REMEDY}")
    if len(graph.node) > MOST_NODES:
        raise EmqError(f"{path} has {len(graph.node)} operators, at most {MOST_NODES} are read; {_REMEDY}")
    for node in graph.node:
        inner = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if inner or node.op_type in ("If", "Loop", "Scan"):
            raise EmqError(
                f"{path} has dynamic control flow ({node.op_type} {node.name!r}), and only networks that do the same"
                " for every image can be quantized; export it without"
            )
        if node.domain not in _OWN:
            raise EmqError(
                f"{path} uses the custom operator {node.domain}::{node.op_type}, which is not one of ONNX's own; export"
                " it without"
            )
        if "QuantizeLinear" in node.op_type or "Integer" in node.op_type or node.op_type.startswith("QLinear"):
            raise EmqError(f"{path} is quantized already ({node.op_type} {node.name!r}); give the float network")


def _opset(path: Path, model: Any) -> int:
    version = next((int(one.version) for one in model.opset_import if one.domain in _OWN), 0)
    if version not in OPSETS:
        raise EmqError(f"{path} is of operator set {version}, {OPSETS[0]} to {OPSETS[-1]} are read; export it again")
    return version


def _images(path: Path, model: Any) -> tuple[str, tuple[int | None, ...]]:
    """Name and shape of the one input."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [one for one in model.graph.input if one.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(one.name for one in inputs) or "none"
        raise EmqError(f"{path} takes {len(inputs)} inputs ({names}), and only networks of one image tensor are taken")
    name, kind = inputs[0].name, inputs[0].type.tensor_type
    sides = [int(side.dim_value) if side.dim_value > 0 else None for side in kind.shape.dim]
    colours = {sides[axis] for axis in (1, 3)} & {1, 3} if len(sides) == 4 else set()
    if kind.elem_type != _FLOAT or not colours:
        onnx = require("onnx", "train")
        known = onnx.TensorProto.DataType.keys()
        what = known[kind.elem_type].lower() if 0 <= kind.elem_type < len(known) else "unknown"
        shape = " x ".join("?" if side is None else str(side) for side in sides) or "no shape"
        if colours and what in _OTHER_FLOATS:
            raise EmqError(f"{path} takes {name!r} in {what}, and networks of float32 are read; export it in float32")
        raise EmqError(
            f"{path} takes {name!r}, {what} of {shape}, which are no images: float32 of N x C x H x W with 1 or 3"
            " channels is wanted; export the network without what prepares its input"
        )
    return name, tuple(sides)


def _logits(path: Path, model: Any) -> str:
    names = [one.name for one in model.graph.output]
    if len(names) == 1:
        return str(names[0])
    if "logits" in names:
        return "logits"
    raise EmqError(
        f"{path} answers with {len(names)} tensors ({', '.join(names[:5])}); export it with its logits alone"
    )


def _array(file: OnnxFile, tensor: Any) -> NDArray[Any]:
    """A constant; one in another file is taken into the model, so that onnxruntime opens no file of its own."""
    helper: Any = require("onnx.numpy_helper", "train")
    if tensor.data_location == 1:
        where = {entry.key: entry.value for entry in tensor.external_data}
        tensor.raw_data = _outside(file, tensor.name, where)
        tensor.data_location = 0
        del tensor.external_data[:]
    try:
        found: NDArray[Any] = helper.to_array(tensor)
    except Exception as error:
        raise file.refuse(f"holds a constant {tensor.name!r} that is damaged", "export it again") from error
    if found.dtype.kind not in "fiub" and found.dtype.name != "bfloat16":
        raise file.refuse(f"holds a constant {tensor.name!r} of type {found.dtype}", _REMEDY)
    if found.dtype.kind not in "iub":
        found = found.astype(np.float32)
        if not np.isfinite(found).all() and found.size > 1:
            raise file.refuse(f"holds values that are not finite in {tensor.name!r}", "take an earlier checkpoint")
    return found


def _outside(file: OnnxFile, name: str, where: dict[str, str]) -> bytes:
    location = where.get("location", "")
    if not re.fullmatch(r"[^/\\]+", location) or location in (".", ".."):
        raise file.refuse(f"keeps {name!r} in {location!r}, not in a file beside it", "export it again")
    folder = file.path.absolute().parent
    with open(open_regular(folder / location, f"{file.path} needs it beside itself", folder), "rb") as data:
        try:
            offset = int(where.get("offset", "0") or 0)
            data.seek(offset)
            rest = data.seek(0, 2) - offset
            length = int(where.get("length", rest) or rest)
            if not 0 <= length <= rest:
                raise ValueError(length)
            data.seek(offset)
            return data.read(length)
        except (ValueError, OSError) as error:
            raise file.refuse(f"keeps {name!r} in {location}, which is too short for it", "copy both again") from error


def _attribute(file: OnnxFile, node: Any, attribute: Any) -> Any:
    onnx = require("onnx", "train")
    kind = attribute.type
    if kind == onnx.AttributeProto.TENSOR:
        return _array(file, attribute.t)
    if kind == onnx.AttributeProto.STRING:
        return attribute.s.decode(errors="replace")
    if kind in (onnx.AttributeProto.FLOAT, onnx.AttributeProto.INT):
        return onnx.helper.get_attribute_value(attribute)
    if kind in (onnx.AttributeProto.FLOATS, onnx.AttributeProto.INTS):
        return list(onnx.helper.get_attribute_value(attribute))
    raise file.refuse(f"has operator {node.op_type} with an attribute {attribute.name!r} of an unusual kind", _REMEDY)

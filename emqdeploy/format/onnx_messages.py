"""ONNX's messages without the onnx package: what protobuf, which comes with onnxruntime, makes of their field numbers.

Enough of them to read a graph of ours, fill its numbers, add outputs and write it again; what is not listed here is
kept as it is. A graph whose operators change is built with the onnx package.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.format.onnx_graph import DTYPES

FLOAT, UINT8 = 1, 2
EXTERNAL = 1
"""A tensor's ``data_location`` where another file holds it."""

_INT32, _INT64, _UINT64, _FLOAT, _DOUBLE, _STRING, _BYTES, _MESSAGE = 5, 3, 4, 2, 1, 9, 12, 11

_FIELDS: dict[str, dict[str, tuple[int, int | str, bool]]] = {
    "Pair": {"key": (1, _STRING, False), "value": (2, _STRING, False)},
    "Opset": {"domain": (1, _STRING, False), "version": (2, _INT64, False)},
    "Tensor": {
        "dims": (1, _INT64, True),
        "data_type": (2, _INT32, False),
        "float_data": (4, _FLOAT, True),
        "int32_data": (5, _INT32, True),
        "int64_data": (7, _INT64, True),
        "name": (8, _STRING, False),
        "raw_data": (9, _BYTES, False),
        "double_data": (10, _DOUBLE, True),
        "uint64_data": (11, _UINT64, True),
        "external_data": (13, "Pair", True),
        "data_location": (14, _INT32, False),
    },
    "TensorType": {"elem_type": (1, _INT32, False)},
    "Type": {"tensor_type": (1, "TensorType", False)},
    "Value": {"name": (1, _STRING, False), "type": (2, "Type", False)},
    "Attribute": {
        "name": (1, _STRING, False),
        "f": (2, _FLOAT, False),
        "i": (3, _INT64, False),
        "s": (4, _BYTES, False),
        "t": (5, "Tensor", False),
        "floats": (7, _FLOAT, True),
        "ints": (8, _INT64, True),
        "strings": (9, _BYTES, True),
    },
    "Node": {
        "input": (1, _STRING, True),
        "output": (2, _STRING, True),
        "name": (3, _STRING, False),
        "op_type": (4, _STRING, False),
        "attribute": (5, "Attribute", True),
        "domain": (7, _STRING, False),
    },
    "Graph": {
        "node": (1, "Node", True),
        "name": (2, _STRING, False),
        "initializer": (5, "Tensor", True),
        "input": (11, "Value", True),
        "output": (12, "Value", True),
    },
    "Model": {
        "ir_version": (1, _INT64, False),
        "producer_name": (2, _STRING, False),
        "producer_version": (3, _STRING, False),
        "graph": (7, "Graph", False),
        "opset_import": (8, "Opset", True),
        "metadata_props": (14, "Pair", True),
    },
}
"""Number, type and whether there are many, by field of every message; all of ``onnx.proto`` that graphs of ours use."""


@functools.cache
def _message(name: str) -> Any:
    """The class of a message."""
    factory, pool = require("google.protobuf.message_factory", "runtime"), _pool()
    return factory.GetMessageClass(pool.FindMessageTypeByName(f"emqdeploy.onnx.{name}"))


@functools.cache
def _pool() -> Any:
    """Descriptions of our own, so that the onnx package may be loaded beside them."""
    schema = require("google.protobuf.descriptor_pb2", "runtime")
    file = schema.FileDescriptorProto(name="emqdeploy/onnx.proto", package="emqdeploy.onnx", syntax="proto2")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, (number, kind, many) in fields.items():
            made = message.field.add(name=field, number=number, label=3 if many else 1)
            if isinstance(kind, str):
                made.type, made.type_name = _MESSAGE, f".emqdeploy.onnx.{kind}"
            else:
                made.type = kind
    pool = require("google.protobuf.descriptor_pool", "runtime").DescriptorPool()
    pool.Add(file)
    return pool


def load_model(data: bytes) -> Any:
    """Returns a serialised ONNX model; its fields are called as in the onnx package."""
    return _message("Model").FromString(data)


def to_array(tensor: Any) -> NDArray[Any]:
    """The values of a tensor that the model itself holds."""
    dtype = np.dtype(DTYPES[tensor.data_type])
    if tensor.HasField("raw_data"):
        values = np.frombuffer(tensor.raw_data, dtype.newbyteorder("<")).astype(dtype)
    else:
        lists = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
        numbers: list[Any] = next((list(one) for one in lists if len(one)), [])
        plain = np.array(numbers, np.uint16).view(dtype) if dtype == np.float16 else np.array(numbers)
        values = plain.astype(dtype)
    return values.reshape(tuple(tensor.dims))


def fill_tensor(tensor: Any, array: NDArray[Any]) -> None:
    """Gives a tensor other values, in place; it keeps its name."""
    array, name = np.asarray(array), tensor.name
    tensor.Clear()
    tensor.name, tensor.data_type = name, tensor_type(array.dtype)
    tensor.dims.extend(array.shape)
    tensor.raw_data = array.astype(array.dtype.newbyteorder("<")).tobytes()


def tensor_type(dtype: Any) -> int:
    """ONNX's number of a type of numpy."""
    return next(number for number, known in DTYPES.items() if np.dtype(known) == np.dtype(dtype))


def attributes_of(node: Any) -> dict[str, Any]:
    """The attributes of a node: numbers, bytes, and lists of them."""
    found: dict[str, Any] = {}
    for one in node.attribute:
        single = next((field for field in ("f", "i", "s") if one.HasField(field)), None)
        lists = (list(one.floats), list(one.ints), list(one.strings))
        found[one.name] = getattr(one, single) if single else next((values for values in lists if values), [])
    return found


def model_of_node(node: Any, kinds: dict[str, int], opset: int = 21) -> bytes:
    """A serialised model of one operator.

    Args:
        node: of a graph that `load_model` returned.
        kinds: types of its inputs, by name.
        opset: whose meaning the operator has.
    """
    model = _message("Model")(ir_version=10)
    model.opset_import.add(version=opset)
    model.graph.name = "one"
    model.graph.node.add().CopyFrom(node)
    for name, kind in kinds.items():
        model.graph.input.add(name=name).type.tensor_type.elem_type = kind
    for name in node.output:
        model.graph.output.add(name=name)
    data: bytes = model.SerializeToString()
    return data

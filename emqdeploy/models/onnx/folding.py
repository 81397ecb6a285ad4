"""What a graph computes of constants and sizes alone: worked out once, so that only what images become is left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.models.onnx.file import Node

Known = NDArray[Any]

LARGEST_CONSTANT = 1 << 28
"""Values of a constant that is computed, at most; a short file can ask for any number."""

_SHAPING = frozenset(
    ("Cast", "Concat", "ConstantOfShape", "Expand", "Flatten", "Gather", "GatherND", "Identity", "Pad", "Range",
     "Reshape", "ScatterND", "Shape", "Size", "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where")
)  # fmt: skip
_NUMBERS = frozenset(
    ("Abs", "Add", "And", "Ceil", "Clip", "Cos", "Div", "Equal", "Erf", "Exp", "Floor", "Greater", "GreaterOrEqual",
     "Less", "LessOrEqual", "Log", "MatMul", "Max", "Min", "Mod", "Mul", "Neg", "Not", "Or", "Pow", "Reciprocal",
     "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu", "Round", "Sigmoid", "Sign", "Sin",
     "Softmax", "Sqrt", "Sub", "Tanh")
)  # fmt: skip
FOLDED = _SHAPING | _NUMBERS
"""Operators that are worked out where no image reaches them."""


def fold(node: Node, inputs: Sequence[Known | None], opset: int) -> list[Known]:
    """Computes an operator of `FOLDED`.

    Args:
        node: the operator.
        inputs: its inputs, None for one that is left out.
        opset: of the file.

    Raises:
        ValueError: it would be too large, or its inputs do not fit it.
    """
    given = [value for value in inputs if value is not None]
    if _most_values(node, given) > LARGEST_CONSTANT:
        raise ValueError(f"it would have more than {LARGEST_CONSTANT} values")
    onnx = require("onnx", "train")
    reference: Any = require("onnx.reference", "train")
    names = [name if value is not None else "" for name, value in zip(node.inputs, inputs, strict=True)]
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(node.operator, names, node.outputs, **_attributes(node))],
        "one",
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in dict.fromkeys(names) if name],
        [onnx.helper.make_value_info(name, onnx.TypeProto()) for name in node.outputs],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
    try:
        feed = {name: value for name, value in zip(names, inputs, strict=True) if value is not None}
        found = reference.ReferenceEvaluator(model).run(None, feed)
    except Exception as error:  # the evaluator raises what numpy does
        raise ValueError(next(iter(str(error).splitlines()), type(error).__name__)) from error
    arrays = [np.asarray(value) for value in found]
    return [value.astype(np.float32) if value.dtype.kind == "f" else value for value in arrays]


def _attributes(node: Node) -> dict[str, Any]:
    helper: Any = require("onnx.numpy_helper", "train")
    return {
        name: helper.from_array(value) if isinstance(value, np.ndarray) else value
        for name, value in node.attributes.items()
    }


def _most_values(node: Node, given: Sequence[Known]) -> int:
    """Values of the result, at most."""
    kind = node.operator
    if kind == "ConstantOfShape":
        return _product(given[0])
    if kind == "Expand":
        return max(given[0].size, 1) * max(_product(given[1]), 1)
    if kind == "Tile":
        return given[0].size * _product(given[1])
    if kind == "Range":
        start, stop, step = (float(value.reshape(-1)[0]) for value in given[:3])
        return math.ceil(abs((stop - start) / step)) if step else LARGEST_CONSTANT + 1
    if kind == "Pad":
        pads = np.asarray(given[1] if len(given) > 1 else node.attributes.get("pads", []))
        return math.prod(side + int(np.abs(pads).sum()) for side in given[0].shape)
    if kind in ("Gather", "GatherND", "MatMul"):
        return given[0].size * max(given[1].size, 1)
    if kind == "Concat":
        return sum(value.size for value in given)
    if kind in _NUMBERS or kind == "Where":
        return math.prod(np.broadcast_shapes(*(value.shape for value in given)))
    return max((value.size for value in given), default=1)


def _product(sizes: Known) -> int:
    return math.prod(max(int(size), 0) for size in sizes.reshape(-1))

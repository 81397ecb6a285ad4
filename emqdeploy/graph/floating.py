"""Operators of a network's graph that compute in float: which they are, and their results in plain numpy.

Everything else in the graph is integer kernels and moves of values; see `emqdeploy.graph.reference`.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import EmqError, require
from emqdeploy.format.grid import Floats
from emqdeploy.format.onnx_messages import attributes_of, load_model, model_of_node, tensor_type
from emqdeploy.graph.pooling import POOLS, pool

ORDERING = frozenset(("Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity"))
"""Operators that keep every value of one tensor, in another order or shape."""

CARRIED = ORDERING | {"Slice", "Split", "Gather"}
"""Operators that move values of one tensor, be they floats or codes."""

MOVES = CARRIED | {"MaxPool", "Concat", "Expand", "Shape", "Constant", "Cast", "Pad"}
"""Operators that only move values."""

_LAYERS = ("Conv", "Gemm")
_POOLED = ("Add", "GlobalAveragePool")


def float_operators(skeleton: bytes) -> dict[str, int]:
    """Counts the operators of a serialised graph that compute in float whatever the runtime, by type."""
    return dict(sorted(Counter(node.op_type for node in float_nodes(load_model(skeleton))).items()))


def float_nodes(model: Any) -> list[Any]:
    """Returns the nodes of an ONNX model that compute in float whatever the runtime.

    A layer that reads codes is an integer kernel, unless its weights are plain float ones; so are a sum or a mean of
    codes that nothing but a quantizer reads.
    """
    nodes = model.graph.node
    quantized: set[str] = set()  # codes, and codes with their grid
    sizes: set[str] = set()
    given = {tensor.name for tensor in model.graph.initializer}
    again = quantized_at_once(nodes)
    found = []
    for node in nodes:
        reads_codes = all(name in quantized for name in node.input[: 2 if node.op_type == "Add" else 1])
        if node.op_type == "Shape" or (node.input and all(name in sizes for name in node.input if name)):
            sizes.update(node.output)
        elif node.op_type in ("QuantizeLinear", "DequantizeLinear") or (
            reads_codes and (node.op_type in MOVES or node.op_type == "Clip")
        ):
            quantized.update(node.output)
        elif node.op_type in MOVES or (node.op_type in _LAYERS and reads_codes and node.input[1] not in given):
            continue
        elif not (node.op_type in _POOLED and reads_codes and node.output[0] in again):
            found.append(node)
    return found


def quantized_at_once(nodes: Sequence[Any]) -> set[str]:
    """Names of the values that one quantizer reads and nothing else: a kernel can answer their codes right away."""
    readers: dict[str, list[str]] = {}
    for node in nodes:
        for name in node.input:
            readers.setdefault(name, []).append(node.op_type)
    return {name for name, types in readers.items() if types == ["QuantizeLinear"]}


class FloatOperators:
    """Evaluates operators with ONNX's own reference evaluator, and with faster numpy where that is slow.

    Without the onnx package, on a device, onnxruntime evaluates them one by one: what moves values is the same in both,
    and of what computes in float only the last digits are not.

    Args:
        arrays: the graph's initializers by name.
    """

    def __init__(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._arrays = arrays
        self._evaluators: dict[str, Any] = {}

    def run(self, node: Any, tensors: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """Returns the outputs of one node.

        Args:
            node: of the graph.
            tensors: its inputs by name, but for initializers.

        Raises:
            EmqError: the operator is not known.
        """
        if node.op_type == "Gelu" and not node.attribute:
            return [gelu(tensors[node.input[0]])]
        if node.op_type in POOLS and len(node.output) == 1:
            return [pool(node.op_type, attributes_of(node), tensors[node.input[0]])]
        feeds = {name: tensors[name] if name in tensors else self._arrays[name] for name in node.input if name}
        try:
            evaluator = self._evaluator(node, feeds)
            results: list[NDArray[Any]] = evaluator.run(None, feeds)
        except Exception as error:  # onnxruntime's errors have no class of their own above them
            raise EmqError(
                f"the integer reference cannot run operator {node.op_type!r} ({node.name}): {error}"
            ) from error
        return results

    def _evaluator(self, node: Any, feeds: Mapping[str, NDArray[Any]]) -> Any:
        if node.output[0] not in self._evaluators:
            kinds = {name: tensor_type(array.dtype) for name, array in feeds.items()}
            self._evaluators[node.output[0]] = _evaluator_of(model_of_node(node, kinds))
        return self._evaluators[node.output[0]]


def _evaluator_of(model: bytes) -> Any:
    if importlib.util.find_spec("onnx") is not None:
        from onnx.reference import ReferenceEvaluator

        return ReferenceEvaluator(model)
    ort = require("onnxruntime", "runtime")
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def gelu(x: Floats) -> Floats:
    """``x (1 + erf(x / sqrt 2)) / 2`` with an error below 1e-7, by the numerator and denominator of a Chebyshev fit."""
    z = np.abs(x.astype(np.float64)) / np.sqrt(2)
    t = 1 / (1 + 0.5 * z)
    poly = np.polynomial.polynomial.polyval(t, _ERFC)
    tail = t * np.exp(-z * z + poly)  # erfc(z), z >= 0
    return (x * np.where(x >= 0, 1 - tail / 2, tail / 2)).astype(np.float32)


_ERFC = (
    *(-1.26551223, 1.00002368, 0.37409196, 0.09678418, -0.18628806),
    *(0.27886807, -1.13520398, 1.48851587, -0.82215223, 0.17087277),
)
"""Coefficients of ``log(erfc(z) / t) + z^2`` in ``t = 1 / (1 + z / 2)``: Press et al., Numerical Recipes, erfcc."""

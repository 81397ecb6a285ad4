"""Filling a graph: the weightless one of a checkpoint with the numbers of a child."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy.typing import NDArray

from emqdeploy.errors import require
from emqdeploy.format.onnx_messages import fill_tensor, load_model


def filled(skeleton: bytes, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """As `filled_model`, but as messages that need no onnx package, and that take no operators of its making."""
    model = load_model(skeleton)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            fill_tensor(tensor, arrays[tensor.name])
    return model


def filled_model(skeleton: bytes, arrays: Mapping[str, NDArray[Any]]) -> Any:
    """Returns a graph as an ONNX model with every number in it; its ``SerializeToString()`` is what a runtime opens.

    Args:
        skeleton: the weightless graph, serialised.
        arrays: of a child, see `emqdeploy.format.frozen.FrozenNetwork.initializers`.
    """
    onnx = require("onnx", "export")
    model = onnx.load_from_string(skeleton)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    return model

"""What the ONNX writers share: a child with every number in it, and the seal."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import Any

from emqdeploy import __version__
from emqdeploy.errors import EmqError
from emqdeploy.format.card import record_children
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.onnx_messages import EXTERNAL
from emqdeploy.format.seal import Sealed, seal
from emqdeploy.graph.filling import filled_model


def filled_graph(checkpoint: Checkpoint, child: Child) -> Any:
    """Returns the ONNX model of one child with every number in it."""
    return filled_model(checkpoint.skeleton, checkpoint.network.initializers(child))


def sealed(
    model: Any, checkpoint: Checkpoint, children: Sequence[Child], stored_as: str, selector: str | None = None
) -> bytes:
    """Checks a model and returns it with what it says about itself and a hash over the whole file.

    Args:
        model: the finished graph.
        checkpoint: what it was made from.
        children: those that it serves, in the order of the selector's input.
        stored_as: the type of its weights.
        selector: the kind of selector, None where it holds one child.
    """
    model.producer_version = __version__
    network = checkpoint.network
    # A graph with data in other files is checked where it lies beside them: by the runtime that proves it.
    if all(tensor.data_location != EXTERNAL for tensor in model.graph.initializer):
        _check(model.SerializeToString(), children)
    grid_bits = {child.name: {name: network.grid_bits(name, child) for name in network.layers} for child in children}
    about = Sealed(
        card=checkpoint.card.exported().only(children),
        children=record_children(children),
        grid_bits=grid_bits,
        stored_as=stored_as,
        selector=selector,
    )
    return seal(model, about)


def _check(data: bytes, children: Sequence[Child]) -> None:
    """Checks a model by the standard's own rules, where the onnx package is there; the runtime does in any case."""
    if importlib.util.find_spec("onnx") is None:
        return
    import onnx

    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        names = ", ".join(child.name for child in children)
        reason = str(error).splitlines()[0]
        raise EmqError(f"the graph for child {names} is not valid ONNX: {reason}") from error

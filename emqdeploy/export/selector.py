"""One ONNX graph for several bit-widths, chosen by an input ``bits`` (int64, shape ``[1]``) beside the images.

`if`: one branch per bit-width behind a chain of If operators, each as fast as a file of its own; as large as all of
them. `derive`: the 8-bit codes once, from which the graph makes the weights of the chosen bit-width at every inference;
as small as one file and several times slower, because weights that are not constant cannot be packed ahead.

A bit-width that is not exported answers as the next higher exported one; one above all of them as the highest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import UsageError, require
from emqdeploy.export.derive import derive_model
from emqdeploy.export.graph import Builder, filled_graph, sealed
from emqdeploy.export.storage import Stored
from emqdeploy.registry import Registry

SELECTOR_INPUT = "bits"

SELECTORS: Registry[Callable[[Checkpoint, Path, Sequence[int]], Stored]] = Registry("selector")
"""Writers of one graph for several bit-widths: ``(checkpoint, the .emq that it was loaded from, widths) -> Stored``."""

_WORTH_SHARING = 64
"""Bytes from which an initializer that several branches have in common is kept once."""


def answering_width(widths: Sequence[int], bits: int) -> int:
    """Returns the exported bit-width that a selector graph uses for ``bits``."""
    return next((width for width in sorted(widths) if bits <= width), max(widths))


@SELECTORS.register("if")
def select_by_if(checkpoint: Checkpoint, path: Path, widths: Sequence[int]) -> Stored:
    """Full speed, the size of all bit-widths together."""
    widths = several(widths)
    models = [filled_graph(checkpoint, width) for width in widths]
    data = sealed(if_model(models, widths), checkpoint, widths, "int8", selector="if")
    return Stored(data, dict.fromkeys(checkpoint.network.layers, "int8"))


@SELECTORS.register("derive")
def select_by_deriving(checkpoint: Checkpoint, path: Path, widths: Sequence[int]) -> Stored:
    """The size of one bit-width, slower."""
    widths = several(widths)
    data = sealed(derive_model(checkpoint, widths), checkpoint, widths, "uint8 codes", selector="derive")
    stored = {name: "int8" if layer.pinned else "uint8 codes" for name, layer in checkpoint.network.layers.items()}
    return Stored(data, stored)


def if_model(models: Sequence[Any], widths: Sequence[int], isolated: bool = False) -> Any:
    """Returns one model that chooses among whole graphs.

    Args:
        models: one per bit-width, with the same inputs and outputs; they are changed.
        widths: ascending.
        isolated: leave every constant in its branch and give nodes names of their own, as TensorRT asks for; else what
            branches have in common is held once.
    """
    onnx = require("onnx", "export")
    helper = onnx.helper
    outer = onnx.ModelProto()
    outer.CopyFrom(models[0])
    for field in ("node", "initializer", "value_info"):
        del getattr(outer.graph, field)[:]
    choice = helper.make_tensor_value_info(SELECTOR_INPUT, onnx.TensorProto.INT64, [1])
    outer.graph.input.append(choice)
    image, logits = outer.graph.input[0], outer.graph.output[0]
    builder = Builder(outer, prefix="select")
    # Read through a node of the outer graph: a graph input that only branches use is planned on the wrong device.
    source = builder.node("Identity", image.name, name="select/images")
    if not isolated:
        _share_initializers([model.graph for model in models], outer.graph, widths)
    branches = []
    for model, width in zip(models, widths, strict=True):
        branch = model.graph
        _rename(branch, f"w{width}/", {image.name: source})
        if isolated:
            for node in branch.node:
                node.name = f"w{width}/{node.name}"
        branch.name = f"w{width}"
        del branch.input[:]
        branches.append(branch)
    nest = _nested if isolated else _flat
    nest(builder, branches, widths, logits)
    return builder.finish()


def _flat(builder: Builder, branches: Sequence[Any], widths: Sequence[int], logits: Any) -> None:
    """One If after the other, each passing on what an earlier one answered.

    onnxruntime packs constants of the graph and of its branches ahead, but not what a branch inside a branch reads from
    outside: nested, all but the first bit-width would pack their weights at every inference, at twice the time.
    """
    helper = builder.onnx.helper
    classes = logits.type.tensor_type.shape.dim[-1].dim_value
    answer = builder.constant(np.zeros((0, classes), np.float32))
    for index, (branch, width) in enumerate(zip(branches, widths, strict=True)):
        bounds = []
        if index > 0:
            bounds.append(builder.node("Greater", SELECTOR_INPUT, builder.constant(np.array([widths[index - 1]]))))
        if index < len(widths) - 1:
            bounds.append(builder.node("LessOrEqual", SELECTOR_INPUT, builder.constant(np.array([width]))))
        condition = bounds[0] if len(bounds) == 1 else builder.node("And", *bounds)
        kept = _value(builder, logits, f"select/kept_w{width}")
        # The batch of what is passed on may be 0; were it declared equal, onnxruntime would reuse a buffer that is too
        # small for the next answer.
        kept.type.tensor_type.shape.dim[0].Clear()
        pass_on = helper.make_node("Identity", [answer], [kept.name], name=f"select/keep_w{width}")
        answer = builder.node(
            "If", condition, out=logits.name if index == len(widths) - 1 else None, name=f"select/if_w{width}",
            then_branch=branch, else_branch=helper.make_graph([pass_on], f"other_than_w{width}", [], [kept]),
        )  # fmt: skip


def _nested(builder: Builder, branches: Sequence[Any], widths: Sequence[int], logits: Any) -> None:
    """Each If in the else branch of the one before; both branches of each have the same shape, as TensorRT asks for."""
    helper = builder.onnx.helper
    chain = branches[-1]
    for index in range(len(widths) - 2, -1, -1):
        limit = builder.constant(np.array([widths[index]], np.int64))
        condition = builder.node("LessOrEqual", SELECTOR_INPUT, limit, name=f"select/w{widths[index]}")
        output = logits.name if index == 0 else f"select/upto_w{widths[index]}"
        node = helper.make_node(
            "If", [condition], [output], name=f"select/if_w{widths[index]}",
            then_branch=branches[index], else_branch=chain,
        )  # fmt: skip
        chain = helper.make_graph([node], f"above_w{widths[index - 1]}", [], [_value(builder, logits, output)])
    builder.nodes.extend(chain.node)


def _value(builder: Builder, like: Any, name: str) -> Any:
    """A value of another value's type."""
    value = builder.onnx.ValueInfoProto()
    value.CopyFrom(like)
    value.name = name
    return value


def several(widths: Sequence[int]) -> list[int]:
    """Returns bit-widths in ascending order; raises where there is nothing to choose among."""
    if len(widths) < 2:
        given = ", ".join(map(str, widths))
        raise UsageError(f"a selector chooses among bit-widths, and only {given} is given; name several: --bits 2,4,8")
    return sorted(widths)


def _share_initializers(branches: Sequence[Any], outer: Any, widths: Sequence[int]) -> None:
    """Moves large initializers that several branches have in common to the outer graph.

    What only one branch has stays there: onnxruntime then drops it once it is packed.
    """
    counts = Counter(_content(tensor) for branch in branches for tensor in branch.initializer)
    held: dict[Any, str] = {}
    for branch, width in zip(branches, widths, strict=True):
        renamed, kept = {}, []
        for tensor in branch.initializer:
            key = _content(tensor)
            if len(tensor.raw_data) < _WORTH_SHARING or counts[key] < 2:
                kept.append(tensor.SerializeToString())
                continue
            if key not in held:
                held[key] = f"w{width}/{tensor.name}"
                outer.initializer.add().CopyFrom(tensor)
                outer.initializer[-1].name = held[key]
            renamed[tensor.name] = held[key]
        del branch.initializer[:]
        for data in kept:
            branch.initializer.add().ParseFromString(data)
        for node in branch.node:
            for index, name in enumerate(node.input):
                node.input[index] = renamed.get(name, name)


def _content(tensor: Any) -> Any:
    return tensor.data_type, tuple(tensor.dims), tensor.raw_data


def _rename(graph: Any, prefix: str, given: dict[str, str]) -> None:
    """Prefixes every value that a graph defines; ``given`` maps what it takes from outside. Nodes keep their names."""
    defined = {tensor.name for tensor in graph.initializer} | {name for node in graph.node for name in node.output}
    names = {name: prefix + name for name in defined if name} | given
    for tensor in graph.initializer:
        tensor.name = names[tensor.name]
    for node in graph.node:
        for values in (node.input, node.output):
            for index, name in enumerate(values):
                values[index] = names.get(name, name)
    for value in graph.output:
        value.name = names[value.name]

"""One ONNX graph for several children, chosen by an input ``bits`` (int64, shape ``[1]``) beside the images.

`if`: one branch per child behind a chain of If operators, each as fast as a file of its own; as large as all of them.
A value that no child has is answered by the child of the next higher value; one above all of them by the last.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.errors import UsageError, require
from emqdeploy.exporters.onnx_writer import filled_graph, sealed
from emqdeploy.exporters.products import tag
from emqdeploy.exporters.storage import Stored
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.graph.building import Builder
from emqdeploy.graph.selector import SELECTOR_INPUT, selector_values
from emqdeploy.registry import Registry

SELECTORS: Registry[Callable[[Checkpoint, Path, Sequence[Child]], Stored]] = Registry("selector")
"""Writers of one graph for several children: ``(checkpoint, the .emq that it was loaded from, children) -> Stored``."""

_WORTH_SHARING = 64
"""Bytes from which an initializer that several branches have in common is kept once."""


@SELECTORS.register("if")
def select_by_if(checkpoint: Checkpoint, path: Path, children: Sequence[Child]) -> Stored:
    """Full speed, the size of all children together."""
    values = several(children)
    model = if_model([filled_graph(checkpoint, child) for child in values], values)
    return Stored(
        sealed(model, checkpoint, list(values), "int8", selector="if"),
        dict.fromkeys(checkpoint.network.layers, "int8"),
    )


def several(children: Sequence[Child]) -> dict[Child, int]:
    """Returns the values that choose among children, ascending; raises where there is nothing to choose among."""
    if len(children) < 2:
        given = ", ".join(child.name for child in children)
        raise UsageError(f"a selector chooses among children, and only {given} is given; name several: --bits 2,4,8")
    return selector_values(children)


def if_model(models: Sequence[Any], values: Mapping[Child, int], isolated: bool = False) -> Any:
    """Returns one model that chooses among whole graphs.

    Args:
        models: one per child, with the same inputs and outputs; they are changed.
        values: the children in the same order, each with the value that chooses it, ascending.
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
    names = [tag(child) for child in values]
    if not isolated:
        _share_initializers([model.graph for model in models], outer.graph, names)
    branches = []
    for model, name in zip(models, names, strict=True):
        branch = model.graph
        _rename(branch, f"{name}/", {image.name: source})
        if isolated:
            for node in branch.node:
                node.name = f"{name}/{node.name}"
        branch.name = name
        del branch.input[:]
        branches.append(branch)
    nest = _nested if isolated else _flat
    nest(builder, branches, list(values.values()), logits)
    return builder.finish()


def _flat(builder: Builder, branches: Sequence[Any], values: Sequence[int], logits: Any) -> None:
    """One If after the other, each passing on what an earlier one answered.

    onnxruntime packs constants of the graph and of its branches ahead, but not what a branch inside a branch reads from
    outside: nested, all but the first child would pack their weights at every inference, at twice the time.
    """
    helper = builder.onnx.helper
    classes = logits.type.tensor_type.shape.dim[-1].dim_value
    answer = builder.constant(np.zeros((0, classes), np.float32))
    for index, (branch, value) in enumerate(zip(branches, values, strict=True)):
        bounds = []
        if index > 0:
            bounds.append(builder.node("Greater", SELECTOR_INPUT, builder.constant(np.array([values[index - 1]]))))
        if index < len(values) - 1:
            bounds.append(builder.node("LessOrEqual", SELECTOR_INPUT, builder.constant(np.array([value]))))
        condition = bounds[0] if len(bounds) == 1 else builder.node("And", *bounds)
        kept = _value(builder, logits, f"select/kept_{branch.name}")
        # The batch of what is passed on may be 0; were it declared equal, onnxruntime would reuse a buffer that is too
        # small for the next answer.
        kept.type.tensor_type.shape.dim[0].Clear()
        pass_on = helper.make_node("Identity", [answer], [kept.name], name=f"select/keep_{branch.name}")
        answer = builder.node(
            "If", condition, out=logits.name if index == len(values) - 1 else None, name=f"select/if_{branch.name}",
            then_branch=branch, else_branch=helper.make_graph([pass_on], f"other_than_{branch.name}", [], [kept]),
        )  # fmt: skip


def _nested(builder: Builder, branches: Sequence[Any], values: Sequence[int], logits: Any) -> None:
    """Each If in the else branch of the one before; both branches of each have the same shape, as TensorRT asks for."""
    helper = builder.onnx.helper
    chain = branches[-1]
    for index in range(len(values) - 2, -1, -1):
        name = branches[index].name
        limit = builder.constant(np.array([values[index]], np.int64))
        condition = builder.node("LessOrEqual", SELECTOR_INPUT, limit, name=f"select/{name}")
        output = logits.name if index == 0 else f"select/upto_{name}"
        node = helper.make_node(
            "If", [condition], [output], name=f"select/if_{name}",
            then_branch=branches[index], else_branch=chain,
        )  # fmt: skip
        chain = helper.make_graph([node], f"from_{name}", [], [_value(builder, logits, output)])
    builder.nodes.extend(chain.node)


def _value(builder: Builder, like: Any, name: str) -> Any:
    """A value of another value's type."""
    value = builder.onnx.ValueInfoProto()
    value.CopyFrom(like)
    value.name = name
    return value


def _share_initializers(branches: Sequence[Any], outer: Any, names: Sequence[str]) -> None:
    """Moves large initializers that several branches have in common to the outer graph.

    What only one branch has stays there: onnxruntime then drops it once it is packed.
    """
    counts = Counter(_content(tensor) for branch in branches for tensor in branch.initializer)
    held: dict[Any, str] = {}
    for branch, name in zip(branches, names, strict=True):
        renamed, kept = {}, []
        for tensor in branch.initializer:
            key = _content(tensor)
            if len(tensor.raw_data) < _WORTH_SHARING or counts[key] < 2:
                kept.append(tensor.SerializeToString())
                continue
            if key not in held:
                held[key] = f"{name}/{tensor.name}"
                outer.initializer.add().CopyFrom(tensor)
                outer.initializer[-1].name = held[key]
            renamed[tensor.name] = held[key]
        del branch.initializer[:]
        for data in kept:
            branch.initializer.add().ParseFromString(data)
        for node in branch.node:
            for index, value in enumerate(node.input):
                node.input[index] = renamed.get(value, value)


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

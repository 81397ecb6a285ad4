"""The gate: graphs of ours pass at once; programs, bombs and thieves are refused before any runtime sees them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from emqdeploy.errors import EmqError
from emqdeploy.format import gate
from emqdeploy.format.emq import load_checkpoint, save_checkpoint
from emqdeploy.format.gate import Expected, check_graph
from emqdeploy.format.onnx_graph import read_model

from ..conftest import Deployed

Change = Callable[[Any], None]


def expected(small: Deployed) -> Expected:
    """What a loaded checkpoint knows of its graph."""
    return Expected(small.checkpoint.card, small.checkpoint.network.open_arrays())


def test_what_is_read_is_what_onnx_reads(small: Deployed) -> None:
    """Names, operators, shapes and constants, without the package."""
    ours = read_model(small.checkpoint.skeleton).graph
    theirs = onnx.load_from_string(small.checkpoint.skeleton).graph
    assert [(node.operator, list(node.inputs), list(node.outputs)) for node in ours.nodes] == [
        (node.op_type, list(node.input), list(node.output)) for node in theirs.node
    ]
    assert {name: tensor.shape for name, tensor in ours.tensors.items()} == {
        tensor.name: tuple(tensor.dims) for tensor in theirs.initializer
    }
    for node, other in zip(ours.nodes, theirs.node, strict=True):
        lists = {entry.name: list(entry.ints) for entry in other.attribute if entry.type == onnx.AttributeProto.INTS}
        assert {name: value for name, value in node.attributes.items() if isinstance(value, list)} == lists


def test_shapes_are_those_of_onnx(small: Deployed) -> None:
    """The bound on memory is computed from the same shapes that a runtime has."""
    from emqdeploy.format.shapes import Shapes

    shapes = Shapes({"images": (1, 1, 8, 8)})
    shapes.follow(read_model(small.checkpoint.skeleton).graph)
    model = onnx.load_from_string(small.checkpoint.skeleton)
    for dim in (model.graph.input[0], model.graph.output[0]):
        dim.type.tensor_type.shape.dim[0].dim_value = 1
    for tensor in model.graph.initializer:
        if tensor.data_location == TensorProto.EXTERNAL:
            kind = helper.tensor_dtype_to_np_dtype(tensor.data_type)
            tensor.CopyFrom(numpy_helper.from_array(np.zeros(tuple(tensor.dims), kind), tensor.name))
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph.value_info
    assert len(inferred) > 50
    for value in inferred:
        assert shapes.shapes[value.name] == tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def loop(model: Any) -> None:
    """A loop without end."""
    body = helper.make_graph(
        [helper.make_node("Identity", ["go_on"], ["again"])],
        "body",
        [helper.make_tensor_value_info(name, kind, []) for name, kind in (("i", 7), ("go_on", 9))],
        [helper.make_tensor_value_info("again", 9, [])],
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("Loop", ["", "yes"], [], body=body))
    model.graph.node[-1].output.append("never")


def constant_of_shape(model: Any) -> None:
    """Gigabytes out of twenty bytes."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 20, 1 << 14]), "side"))
    model.graph.node.append(helper.make_node("ConstantOfShape", ["side"], ["gigabytes"]))


def doubling(model: Any) -> None:
    """Forty concatenations of a value with itself."""
    name = "images"
    for index in range(40):
        model.graph.node.append(helper.make_node("Concat", [name, name], [f"twice{index}"], axis=0))
        name = f"twice{index}"


def expand(model: Any) -> None:
    """A broadcast to more than any memory."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([1 << 30, 1, 8, 8]), "wide"))
    model.graph.node.append(helper.make_node("Expand", ["images", "wide"], ["wider"]))


def other_file(model: Any) -> None:
    """Another file of the machine as a constant."""
    tensor = model.graph.initializer.add(name="stolen", data_type=TensorProto.UINT8, dims=[10])
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", "/etc/passwd"), ("offset", "0"), ("length", "10")):
        tensor.external_data.add(key=key, value=value)


def renamed(model: Any) -> None:
    """A constant that nobody fills, so that the runtime would look for the file that it names."""
    for tensor in model.graph.initializer:
        if tensor.name == "fc.weight":
            tensor.name = "fc.weights"
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "fc.weight":
                node.input[index] = "fc.weights"


def other_shape(model: Any) -> None:
    """Weights that are larger than those of the network."""
    next(tensor for tensor in model.graph.initializer if tensor.name == "fc.weight").dims[0] += 1


def function(model: Any) -> None:
    """A function of its own."""
    model.functions.append(helper.make_function("own", "f", [], [], [], [helper.make_opsetid("", 21)]))


def foreign_domain(model: Any) -> None:
    """An operator of a library."""
    model.opset_import.append(helper.make_opsetid("com.evil", 1))
    model.graph.node.append(helper.make_node("Run", ["images"], ["ran"], domain="com.evil"))


def more_nodes(model: Any) -> None:
    """A hundred thousand operators."""
    model.graph.node.extend([helper.make_node("Identity", ["images"], ["copy"])] * 100_000)


def more_outputs(model: Any) -> None:
    """A second output."""
    model.graph.output.append(helper.make_tensor_value_info("images", TensorProto.FLOAT, None))


def other_input(model: Any) -> None:
    """An input that nobody gives."""
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))


def subgraph(model: Any) -> None:
    """A branch where there is no selector."""
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("images", 1, None)])
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "yes"))
    model.graph.node.append(helper.make_node("If", ["yes"], ["one"], then_branch=branch, else_branch=branch))


def sizes_by_zero(model: Any) -> None:
    """A size divided by zero, which numpy only warns of."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([0]), "zero"))
    for operator in ("Mod", "Div"):
        model.graph.node.append(helper.make_node(operator, ["zero", "zero"], [f"no {operator}"]))


def one_axis_twice(model: Any) -> None:
    """A new side at one place twice."""
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 0]), "axes"))
    model.graph.node.append(helper.make_node("Unsqueeze", ["images", "axes"], ["one"]))


def constant_without_value(model: Any) -> None:
    """An operator that gives nothing."""
    model.graph.node.append(helper.make_node("Constant", [], ["nothing"]))


def lying_constant(model: Any) -> None:
    """A shape of more numbers than the constant holds."""
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(4, np.float32), "short"))
    model.graph.initializer[-1].dims[0] = 1 << 20


REFUSED: dict[Change, str] = {
    loop: "a graph stands inside|holds a graph",
    constant_of_shape: "more than 67108864 numbers",
    doubling: "more than 67108864 numbers",
    expand: "more than 67108864 numbers",
    other_file: "would be read from '/etc/passwd'",
    renamed: "would be read from 'emq'",
    other_shape: "another type or shape than the network",
    function: "functions or a training",
    foreign_domain: "domain 'com.evil'",
    more_nodes: "more than 50000 operators",
    more_outputs: "its outputs are logits, images, not logits",
    other_input: "its inputs are images, more, not images",
    subgraph: "operator 'If' holds a graph",
    sizes_by_zero: r"the shape of .* \((Mod|Div)\) cannot be told",
    one_axis_twice: r"the shape of .* \(Unsqueeze\) cannot be told",
    constant_without_value: r"the shape of .* \(Constant\) cannot be told",
    lying_constant: "has 16 of 4194304 bytes",
}


@pytest.mark.parametrize("change", list(REFUSED), ids=lambda change: change.__name__)
def test_what_is_not_ours_is_refused(small: Deployed, change: Change) -> None:
    """In one sentence, before a session exists."""
    model = onnx.load_from_string(small.checkpoint.skeleton)
    change(model)
    with pytest.raises(EmqError, match=f"holds a graph that emqdeploy did not write: .*({REFUSED[change]})") as error:
        check_graph(model.SerializeToString(), expected(small), "net.emq")
    assert "\n" not in str(error.value)


def test_logits_of_another_shape_are_refused(small: Deployed) -> None:
    """A graph of ten classes behind a card of two would be read as nonsense."""
    wrong = replace(expected(small), card=gate.Card(**{**_fields(small), "classes": ("a", "b")}))
    with pytest.raises(EmqError, match=r"its output has shape \[1, 10\] for one image, and the card 2 classes"):
        check_graph(small.checkpoint.skeleton, wrong, "net.emq")


def _fields(small: Deployed) -> dict[str, Any]:
    card = small.checkpoint.card
    return {name: getattr(card, name) for name in card.__struct_fields__}


@pytest.mark.parametrize("change", [loop, other_file, doubling], ids=lambda change: change.__name__)
def test_a_checkpoint_with_such_a_graph_is_never_loaded(small: Deployed, change: Change, tmp_path: Path) -> None:
    """The file is whole and all its hashes are right; that says nothing about who made it."""
    model = onnx.load_from_string(small.checkpoint.skeleton)
    change(model)
    path = tmp_path / "evil.emq"
    save_checkpoint(path, replace(small.checkpoint, skeleton=model.SerializeToString()))
    with pytest.raises(EmqError, match=r"evil\.emq holds a graph that emqdeploy did not write"):
        load_checkpoint(path)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_bytes_make_it_fail_otherwise(small: Deployed, data: st.DataObject) -> None:
    """Any damage is a sentence, never another exception."""
    graph = bytearray(small.checkpoint.skeleton)
    for _ in range(data.draw(st.integers(1, 8))):
        start = data.draw(st.integers(0, len(graph) - 1))
        graph[start : start + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    with contextlib.suppress(EmqError):
        check_graph(bytes(graph), expected(small), "net.emq")

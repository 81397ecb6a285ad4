"""ONNX's messages of our own against the onnx package: the same fields, the same bytes, the same results."""

from __future__ import annotations

import importlib.util
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from emqdeploy.format.child import Child
from emqdeploy.format.onnx_messages import attributes_of, fill_tensor, load_model, to_array
from emqdeploy.graph.filling import filled, filled_model
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.quant.build import NetworkSpec

from ..conftest import Deployed, deploy


def test_a_graph_survives(small: Deployed) -> None:
    """Names, operators, attributes and constants are those that the onnx package reads; nothing is lost in writing."""
    skeleton = small.checkpoint.skeleton
    ours, theirs = load_model(skeleton), onnx.load_from_string(skeleton)
    assert len(ours.graph.node) > 50
    for mine, other in zip(ours.graph.node, theirs.graph.node, strict=True):
        assert (mine.op_type, list(mine.input), list(mine.output)) == (
            other.op_type,
            list(other.input),
            list(other.output),
        )
        assert attributes_of(mine) == {one.name: helper.get_attribute_value(one) for one in other.attribute}
    open_ones = small.checkpoint.network.initializers(Child.of(8))  # a skeleton has no numbers for these
    pairs = zip(ours.graph.initializer, theirs.graph.initializer, strict=True)
    constants = [(mine, other) for mine, other in pairs if mine.name not in open_ones]
    assert constants
    for mine, other in constants:
        np.testing.assert_array_equal(to_array(mine), numpy_helper.to_array(other))
    assert onnx.load_from_string(ours.SerializeToString()) == theirs


def test_filling_needs_no_onnx(small: Deployed) -> None:
    """Every number of a child, as the onnx package would write it."""
    arrays = small.checkpoint.network.initializers(small.checkpoint.network.children[0])
    made = onnx.load_from_string(filled(small.checkpoint.skeleton, arrays).SerializeToString())
    assert made == filled_model(small.checkpoint.skeleton, arrays)
    assert {tensor.name for tensor in made.graph.initializer} >= set(arrays)


@pytest.mark.parametrize("kind", [np.float32, np.float16, np.int8, np.uint8, np.int32, np.int64, np.bool_, np.float64])
def test_values_in_lists_and_in_bytes(kind: Any) -> None:
    """The standard has two ways to write a constant, and both are read."""
    values = np.array([[0, 1, 3], [1, 0, 2]]).astype(kind)
    number = helper.np_dtype_to_tensor_dtype(values.dtype)
    listed = helper.make_tensor("x", number, values.shape, values.ravel())
    for tensor in (listed, numpy_helper.from_array(values, "x")):
        graph = helper.make_graph([], "g", [], [], [tensor])
        (mine,) = load_model(helper.make_model(graph).SerializeToString()).graph.initializer
        found = to_array(mine)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, values)
        fill_tensor(mine, values[:1])
        np.testing.assert_array_equal(
            numpy_helper.to_array(TensorProto.FromString(mine.SerializeToString())), values[:1]
        )


def test_the_reference_needs_no_onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operators that compute in float are evaluated in onnxruntime then, and no code is another."""
    children = tuple(map(Child.of, (4, 8)))
    transformer = deploy(NetworkSpec("vit-micro", 10, (1, 16, 16), 2.0, children, ()))
    checkpoint, images = transformer.checkpoint, transformer.images[:2]
    arrays = checkpoint.network.initializers(Child.of(8))
    logits, codes = IntegerReference(checkpoint.skeleton, arrays).run(images)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "onnx" else found(name, *rest))
    again, same = IntegerReference(checkpoint.skeleton, arrays).run(images)
    assert list(same) == list(codes)
    off = [np.abs(same[name].astype(int) - codes[name].astype(int)) for name in codes]
    assert max(one.max() for one in off) <= 1
    assert sum(int((one > 0).sum()) for one in off) < 0.001 * sum(one.size for one in off)
    np.testing.assert_allclose(again, logits, atol=0.05 * np.abs(logits).max())

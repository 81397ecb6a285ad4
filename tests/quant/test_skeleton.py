"""The weightless graph: small, complete, and open where a bit-width supplies the numbers."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.skeleton import export_skeleton

from ..conftest import Deployed

FOUR = Child.of(4)


def test_it_is_weightless_and_leaves_exactly_the_initializers_open(small: Deployed) -> None:
    """Every array of a bit-width is an external initializer of its name and shape; nothing else is missing."""
    model = onnx.load_from_string(small.checkpoint.skeleton)
    is_open = onnx.TensorProto.EXTERNAL
    found = {t.name: tuple(t.dims) for t in model.graph.initializer if t.data_location == is_open}
    for bits in (1, 8):
        arrays = small.checkpoint.network.initializers(Child.of(bits))
        assert found == {name: array.shape for name, array in arrays.items()}
    assert len(small.checkpoint.skeleton) < 60_000
    assert {opset.domain for opset in model.opset_import} == {""}


def test_the_batch_dimension_is_free(small: Deployed) -> None:
    """One graph serves every batch size; height and width are fixed."""
    graph = onnx.load_from_string(small.checkpoint.skeleton).graph
    dims = graph.input[0].type.tensor_type.shape.dim
    assert [graph.input[0].name, graph.output[0].name] == ["images", "logits"]
    assert dims[0].dim_param
    assert [dim.dim_value for dim in dims[1:]] == [1, 8, 8]


def test_the_same_network_gives_the_same_bytes(small: Deployed) -> None:
    """Artefacts can be compared by hash."""
    frozen = small.checkpoint.network
    assert export_skeleton(small.network, frozen, small.spec.input_shape) == small.checkpoint.skeleton


def test_the_clamp_stands_behind_a_max_pooling() -> None:
    """Maximum and clamp commute, and the pooled tensor is smaller; the site's codes are named where they are final."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 1)
    )
    network = insert_quantizers(model, InsertionConfig(), (FOUR,), (), 1.0)
    network.initialise_clips(torch.rand(2, 1, 8, 8))
    graph = onnx.load_from_string(export_skeleton(network, freeze(network.eval(), (FOUR,)), (1, 8, 8))).graph
    producer = {name: node for node in graph.node for name in node.output}
    (pool,) = [node for node in graph.node if node.op_type == "MaxPool"]
    clamp = producer["_1/codes"]
    assert clamp.op_type == "Clip"
    assert producer[clamp.input[0]].input[0] == pool.output[0]
    assert sum(node.op_type == "Clip" for node in graph.node) == 2
    assert set(network.taps()) == {"input", "_1", "_4"}


class Unused(nn.Module):
    """A layer whose result goes nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (N, 1, 2, 2) to (N, 3)."""
        self.idle(x.flatten(1))
        return self.used(x.flatten(1))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (nn.Sequential(nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect")), (1, 4, 4), "pads with 'reflect'"),
        (Unused(), (1, 2, 2), "has 1 of 2 layer markers"),
    ],
)
def test_what_cannot_be_exported_is_said(model: nn.Module, shape: tuple[int, int, int], message: str) -> None:
    """A quantizer that is lost on the way is an error, never a silent float operator."""
    network = insert_quantizers(model, InsertionConfig(), (FOUR,), (), 1.0)
    network.initialise_clips(torch.rand(2, *shape))
    with pytest.raises(EmqError, match=message):
        export_skeleton(network, freeze(network.eval(), (FOUR,)), shape)

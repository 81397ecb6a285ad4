"""The weightless graph: small, complete, and open where a bit-width supplies the numbers."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest
import torch
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.graph.floating import float_operators
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


def test_a_structure_goes_through_the_exporter_once(small: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes seconds, a network is proven before its numbers are known, and a run may train many of one structure."""
    frozen, shape = small.checkpoint.network, small.spec.input_shape
    assert export_skeleton(small.network, frozen, shape) == small.checkpoint.skeleton
    monkeypatch.delattr(torch.onnx, "export")
    assert export_skeleton(small.spec.build(), frozen, shape) == small.checkpoint.skeleton


def test_a_constant_belongs_to_the_structure() -> None:
    """Two networks that print alike, and pick their features in another order, are exported as two."""

    class Picks(nn.Module):
        def __init__(self, order: list[int]) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
            self.register_buffer("order", torch.tensor(order))

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.conv(x).mean((2, 3)).index_select(1, self.order))

    for order in ([0, 1, 2, 3], [3, 1, 2, 0]):
        network = insert_quantizers(Picks(order), InsertionConfig(), (FOUR,), (), 1.0, (1, 8, 8))
        network.initialise_clips(torch.rand(2, 1, 8, 8))
        model = onnx.load_from_string(export_skeleton(network, freeze(network, (FOUR,)), (1, 8, 8)))
        (picked,) = (node.input[1] for node in model.graph.node if node.op_type == "Gather")
        (held,) = (tensor for tensor in model.graph.initializer if tensor.name == picked)
        assert onnx.numpy_helper.to_array(held).tolist() == order


def test_a_mean_of_tokens_is_one_operator() -> None:
    """The exporter would gather, one by one, the means of a tensor whose axes were transposed before."""

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 4, 3), nn.Linear(4, 2)
            self.mean = nn.AdaptiveAvgPool2d(1)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).transpose(1, 2) ** 2
            return self.head(self.mean(tokens.transpose(1, 2).unsqueeze(-1)).flatten(1))

    network = insert_quantizers(Tokens(), InsertionConfig(), (FOUR,), (), 1.0, (1, 8, 8))
    network.initialise_clips(torch.rand(2, 1, 8, 8))
    skeleton = export_skeleton(network, freeze(network.eval(), (FOUR,)), (1, 8, 8))
    assert float_operators(skeleton) == {"GlobalAveragePool": 1, "Pow": 1}


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


def test_a_lost_quantizer_is_an_error(small: Deployed) -> None:
    """Never a silent float operator: what the exporter drops is named."""
    frozen = small.checkpoint.network
    more = replace(frozen, sites=frozen.sites | {"ghost": next(iter(frozen.sites.values()))})
    with pytest.raises(EmqError, match="site markers; lost: ghost"):
        export_skeleton(small.network, more, small.spec.input_shape)

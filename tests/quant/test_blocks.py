"""A network in blocks: one after the other they are the network, and no layer is lost or met twice."""

from __future__ import annotations

import pytest
import torch

from benchmarks.one_feature import NETWORKS
from emqdeploy.format.child import FLOAT, parse_children
from emqdeploy.quant.blocks import blocks
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers


@pytest.mark.parametrize("model", ["resnet8", "preact-resnet20", "mobilenet-micro", "vit-micro"])
def test_blocks_in_a_row_are_the_network(model: str) -> None:
    """Bit for bit, in float and at children, and every layer is in one of them."""
    torch.manual_seed(0)
    children = parse_children("2,2a4,8")
    network = NetworkSpec(model, 10, (3, 16, 16), 2.0, children).build().eval()
    images = torch.randn(2, 3, 16, 16)
    pieces = blocks(network)
    assert [name for piece in pieces for name in piece.layers] == list(network.layers)
    assert len(pieces) > 3
    for child in (FLOAT, *children):
        with torch.no_grad(), network.at(child):
            expected = found = network(images)
            found = images
            for piece in pieces:
                found = piece.module(found)
        assert torch.equal(found, expected)


def test_a_network_is_cut_where_there_is_one_tensor() -> None:
    """Not behind a split, which gives several at once, nor where a branch begins."""
    for name in ("split_and_shuffle", "attention_of_torch", "layer_on_a_constant", "functional_linear"):
        torch.manual_seed(0)
        network = insert_quantizers(NETWORKS[name](5), InsertionConfig(), parse_children("2"), (), 2.0, (3, 16, 16))
        images = torch.randn(2, 3, 16, 16)
        with torch.no_grad():
            expected = found = network.eval()(images)
            found = images
            for piece in blocks(network):
                found = piece.module(found)
                assert isinstance(found, torch.Tensor), name
        assert torch.equal(found, expected), name

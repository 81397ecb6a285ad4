"""A network in blocks: one after the other they are the network, and no layer is lost or met twice."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.format.child import FLOAT, parse_children
from emqdeploy.quant.blocks import blocks
from emqdeploy.quant.build import NetworkSpec


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

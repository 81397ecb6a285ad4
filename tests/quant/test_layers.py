"""Layers and normalizations that switch their bit-width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emqdeploy.quant.layers import QuantLayer, quantize_layer
from emqdeploy.quant.weights import PinnedQuantizer, WeightConfig, WeightQuantizer

from ..conftest import Deployed


def quantized(module: nn.Module, quantizer: nn.Module | None = None) -> QuantLayer:
    """A float layer in its quantized form."""
    return quantize_layer(module, quantizer or WeightQuantizer(WeightConfig(), 127))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (2, 4, 7, 7)),
        (nn.Conv2d(4, 6, 3, dilation=2, bias=False), (2, 4, 7, 7)),
        (nn.Linear(9, 5), (2, 9)),
        (nn.Linear(9, 5, bias=False), (2, 3, 9)),
    ],
)
def test_a_layer_keeps_its_options_and_parameters(layer: nn.Module, shape: tuple[int, ...]) -> None:
    """In float it is the layer that it was; quantized it uses the weights of its width, same parameters."""
    x = torch.randn(shape)
    quant = quantized(layer)
    assert quant.weight is layer.weight
    assert torch.equal(quant(x), layer(x))
    quant.bits = 4
    expected = type(layer).forward.__get__(layer)
    with torch.no_grad():
        output = quant(x)
        layer.weight.copy_(quant.quantized(4).value)
        torch.testing.assert_close(output, expected(x))


def test_only_evaluation_adds_what_rounding_left_of_the_mean() -> None:
    """A normalization behind the layer cancels it in training; deployed, it is part of the bias."""
    torch.manual_seed(0)
    layer = quantized(nn.Linear(100, 4))
    layer.bits = 2
    layer.input_mean.fill_(0.5)
    with torch.no_grad():
        layer.weight.add_(torch.tensor([[0.02], [-0.01], [0.03], [0.0]]))
        quantity = layer.quantized(2)
        missing = quantity.residual * 100 * 0.5
        assert missing.abs().max() > 1e-3
        x = torch.rand(3, 100)
        torch.testing.assert_close(layer.eval()(x) - layer.train()(x), missing.expand(3, 4), rtol=1e-3, atol=1e-5)
        # With inputs equal to the mean, the deployed output is that of the float weights.
        constant = torch.full((1, 100), 0.5)
        expected = nn.functional.linear(constant, layer.weight, layer.bias)
        torch.testing.assert_close(layer.eval()(constant), expected, rtol=1e-4, atol=1e-5)


def test_a_pinned_layer_ignores_the_width() -> None:
    """It has 8 bits whatever the network runs at."""
    layer = quantized(nn.Linear(20, 4), PinnedQuantizer(127))
    assert layer.pinned
    assert layer.grid_bits(2) == 8
    x = torch.randn(3, 20)
    outputs = []
    for bits in (1, 8):
        layer.bits = bits
        outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_a_block_at_one_width_leaves_the_others_as_they_were(small: Deployed) -> None:
    """``with network.bits(4)`` restores the widths, also mixed ones and after an error."""
    network = small.network
    mixed = {name: 2 + index % 2 for index, name in enumerate(network.layers)}
    network.set_bits(mixed)

    def interrupted() -> None:
        with network.bits(4):
            assert {layer.bits for layer in network.layers.values()} == {4}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {name: layer.bits for name, layer in network.layers.items()} == mixed
    network.set_bits(8)
    assert {norm.bits for norm in network.norms.values()} == {8}
    assert {site.bits for site in network.sites.values()} == {8}

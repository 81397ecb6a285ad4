"""Layers and normalizations that switch their bit-width."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.base import PinnedQuantizer
from emqdeploy.quant.families.tanh import TanhOptions, TanhQuantizer
from emqdeploy.quant.layers import QuantLayer, quantize_layer

from ..conftest import Deployed


def quantized(module: nn.Module, quantizer: nn.Module | None = None) -> QuantLayer:
    """A float layer in its quantized form."""
    return quantize_layer(module, quantizer or TanhQuantizer(TanhOptions(), 127))  # type: ignore[arg-type]


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
    x = torch.randn(3, 20)
    outputs = []
    for bits in (1, 8):
        layer.bits = bits
        outputs.append(layer(x))
    assert torch.equal(*outputs)


def test_a_block_at_one_child_leaves_the_others_as_they_were(small: Deployed) -> None:
    """``with network.at(4)`` restores what was in use, also widths per layer and after an error."""
    network = small.network
    mixed = Child("mixed", {name: 2 + index % 2 for index, name in enumerate(network.layers)})
    network.use(mixed)

    def interrupted() -> None:
        with network.at(4):
            assert {layer.bits for layer in network.layers.values()} == {4}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert {name: layer.bits for name, layer in network.layers.items()} == dict(mixed.weights.layers)
    assert network.child is mixed
    network.set_bits(8)
    assert {norm.child for norm in network.norms.values()} == {Child.of(8)}
    network.set_bits(32)
    assert {layer.bits for layer in network.layers.values()} == {32}


@pytest.mark.parametrize(
    ("child", "message"),
    [
        (Child("mixed", {"*": 4, "conv9": 2}), "names layer 'conv9' in its weights, which the network does not have"),
        (Child("mixed", 4, {"conv9": 2}), "names layer 'conv9' in its activations"),
        (Child("mixed", {"fc": 2}), "gives layer 'fc' 2 bits, but it stays at 8 bits"),
    ],
)
def test_a_child_names_layers_that_exist(child: Child, message: str) -> None:
    """Refused when the network is built, before anything is trained."""
    with pytest.raises(UsageError, match=message):
        NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (child,)).build()

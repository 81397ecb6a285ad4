"""Compiled weight quantizers: what they say is what the quantizers themselves say."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.format.child import Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.training.fused import fused_quantizers


@pytest.mark.slow
@pytest.mark.parametrize("channels_last", [False, True])
def test_compiled_quantizers_say_the_same(channels_last: bool) -> None:
    """Values and gradients, in either order of memory; behind the block nothing is left of it."""
    torch.manual_seed(0)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child("2", 2, 8), Child("8", 8, 8)), ()).build()
    if channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    layers = [network.layers[name] for name in ("stage1.0.conv1", "stage3.0.conv2", "stage3.0.shortcut.0")]
    for layer in layers:
        for bits in (2, 8):
            plain = layer.quantizer.value(layer.weight, bits)
            (expected,) = torch.autograd.grad(plain.square().sum(), layer.weight)
            with fused_quantizers(network):
                found = layer.quantizer.value(layer.weight, bits)
            (gradient,) = torch.autograd.grad(found.square().sum(), layer.weight)
            torch.testing.assert_close(found, plain)
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)
            assert found.is_contiguous() == layer.weight.is_contiguous()
            assert "value" not in layer.quantizer.__dict__

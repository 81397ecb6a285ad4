"""From the trained network to its frozen numbers: nothing is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.norms import PrivateNorm

from ..conftest import Deployed, settled


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_deployed_network_is_the_trained_one(small: Deployed, bits: int) -> None:
    """Folding and integer biases change the logits by rounding only; a lost bias or sign would change them by more."""
    images = torch.from_numpy(small.images)
    module = deployed_reference(small.network, small.checkpoint.network, bits)
    with torch.no_grad(), small.network.bits(bits):
        expected, logits = small.network.eval()(images), module(images)
    assert (logits - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_frozen_weights_are_the_forward_weights(small: Deployed, bits: int) -> None:
    """Before folding, every deployed integer times its scale is the weight that training multiplied with."""
    arrays = small.checkpoint.network.initializers(bits)
    network = small.network
    for name, layer in network.layers.items():
        value = layer.quantized(bits).value.detach().double().numpy()
        gain = np.ones(len(value))
        if name in network.norm_of:
            gain = network.norms[network.norm_of[name]].gain_and_shift(bits)[0].detach().numpy()
        shape = (-1,) + (1,) * (value.ndim - 1)
        deployed = arrays[f"{name}.weight"] * arrays[f"{name}.weight_scale"].astype(np.float64).reshape(shape)
        np.testing.assert_allclose(deployed, value * gain.reshape(shape), rtol=1e-5, atol=1e-9)


def test_scales_are_positive_and_some_gains_are_negative(small: Deployed) -> None:
    """The fixture exercises the sign flip, in pinned layers too; kernels reject negative scales."""
    flipped = {False: 0, True: 0}
    for name, layer in small.checkpoint.network.layers.items():
        if name in small.network.norm_of:
            gain = small.network.norms[small.network.norm_of[name]].gain_and_shift(4)[0]
            flipped[layer.pinned] += int((gain < 0).sum())
        for grid in layer.grids.values():
            assert (grid.scale > 0).all()
    assert flipped[False] > 0
    assert flipped[True] > 0


def test_widths_are_stored_in_ascending_order(small: Deployed) -> None:
    """The highest plane needed is that of the last width."""
    assert freeze(small.network, (8, 2)).widths == (2, 8)


def test_a_spec_survives_metadata(small: Deployed) -> None:
    """A checkpoint rebuilds the structure from JSON."""
    import json

    assert NetworkSpec.from_dict(json.loads(json.dumps(small.spec.to_dict()))) == small.spec


def test_a_gain_may_be_negative_at_some_widths_only() -> None:
    """A pinned layer, whose integers are stored once, follows the sign of private gains."""
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (2, 8), InsertionConfig(norm="private"))
    torch.manual_seed(3)
    network = spec.build()
    images = torch.randn(8, 1, 8, 8).clamp(-2, 2)
    network = settled(network, images)
    pinned = [name for name, layer in network.layers.items() if layer.pinned and name in network.norm_of]
    assert pinned
    with torch.no_grad():
        for name in pinned:
            norm = network.norms[network.norm_of[name]]
            assert isinstance(norm, PrivateNorm)
            norm.bit_weight[2 - 1].neg_()
    frozen = freeze(network, (2, 8))
    for name in pinned:
        two, eight = (frozen.layers[name].integers(bits) for bits in (2, 8))
        np.testing.assert_array_equal(np.abs(two.astype(int)), np.abs(eight.astype(int)))
        assert (two != eight).any()
    for bits in (2, 8):
        with torch.no_grad(), network.bits(bits):
            expected = network(images)
            found = deployed_reference(network, frozen, bits)(images)
        assert (found - expected).abs().max() <= 0.02 * (expected.max() - expected.min())

"""From the trained network to its frozen numbers: nothing is lost on the way."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emqdeploy.format.child import Child, parse_children
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference, freeze
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.norms import PrivateNorm

from ..conftest import Deployed, settled

TWO_AND_EIGHT = parse_children("2,8")


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_deployed_network_is_the_trained_one(small: Deployed, bits: int) -> None:
    """Folding and integer biases change the logits by rounding only; a lost bias or sign would change them by more."""
    images = torch.from_numpy(small.images)
    module = deployed_reference(small.network, small.checkpoint.network, Child.of(bits))
    with torch.no_grad(), small.network.at(bits):
        expected, logits = small.network.eval()(images), module(images)
    assert (logits - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_frozen_weights_are_the_forward_weights(small: Deployed, bits: int) -> None:
    """Before folding, every deployed integer times its scale is the weight that training multiplied with."""
    arrays = small.checkpoint.network.initializers(Child.of(bits))
    network = small.network
    for name, layer in network.layers.items():
        value = layer.quantized(bits).value.detach().double().numpy()
        gain = np.ones(len(value))
        if name in network.norm_of:
            gain = network.norms[network.norm_of[name]].gain_and_shift(Child.of(bits))[0].detach().numpy()
        shape = (-1,) + (1,) * (value.ndim - 1)
        deployed = arrays[f"{name}.weight"] * arrays[f"{name}.weight_scale"].astype(np.float64).reshape(shape)
        np.testing.assert_allclose(deployed, value * gain.reshape(shape), rtol=1e-5, atol=1e-9)


def test_scales_are_positive_and_some_gains_are_negative(small: Deployed) -> None:
    """The fixture exercises the sign flip, in pinned layers too; kernels reject negative scales."""
    flipped = {False: 0, True: 0}
    for name, layer in small.checkpoint.network.layers.items():
        if name in small.network.norm_of:
            gain = small.network.norms[small.network.norm_of[name]].gain_and_shift(Child.of(4))[0]
            flipped[layer.pinned] += int((gain < 0).sum())
        for grid in layer.grids.values():
            assert (grid.scale > 0).all()
    assert flipped[False] > 0
    assert flipped[True] > 0


def test_children_are_stored_in_ascending_order(small: Deployed) -> None:
    """Tables and reports list them alike."""
    assert freeze(small.network, parse_children("8,2")).children == parse_children("2,8")


def test_a_spec_survives_metadata(small: Deployed) -> None:
    """A checkpoint rebuilds the structure from JSON."""
    import json

    assert NetworkSpec.from_dict(json.loads(json.dumps(small.spec.to_dict()))) == small.spec


def test_a_gain_may_be_negative_at_some_children_only() -> None:
    """A pinned layer, whose integers are stored once, follows the sign of private gains."""
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, TWO_AND_EIGHT, (), InsertionConfig(norm="private"))
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
            norm.child_weight[0].neg_()
    frozen = freeze(network, TWO_AND_EIGHT)
    for name in pinned:
        two, eight = (frozen.layers[name].integers(child) for child in TWO_AND_EIGHT)
        np.testing.assert_array_equal(np.abs(two.astype(int)), np.abs(eight.astype(int)))
        assert (two != eight).any()
    for child in TWO_AND_EIGHT:
        with torch.no_grad(), network.at(child):
            expected = network(images)
            found = deployed_reference(network, frozen, child)(images)
        assert (found - expected).abs().max() <= 0.02 * (expected.max() - expected.min())


@pytest.mark.parametrize("norm", ["shared", "shared-affine", "private", "transitional"])
def test_freezing_does_not_depend_on_what_was_in_use(norm: str) -> None:
    """After a step with widths drawn per layer, the same numbers are deployed as before it."""
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, TWO_AND_EIGHT, (), InsertionConfig(norm=norm)).build()
    images = torch.randn(8, 1, 8, 8).clamp(-2, 2)
    network.initialise_clips(images)
    drawn = Child("drawn", {name: 2 if index % 2 else 8 for index, name in enumerate(network.layers)})
    for child in (*TWO_AND_EIGHT, drawn, *TWO_AND_EIGHT):
        network.train().use(child)
        network(images)
    network.eval()
    expected = freeze(network, TWO_AND_EIGHT)
    network.use(drawn)
    found = freeze(network, TWO_AND_EIGHT)
    for name, layer in expected.layers.items():
        for child in TWO_AND_EIGHT:
            np.testing.assert_array_equal(found.layers[name].integers(child), layer.integers(child))
            np.testing.assert_array_equal(found.layers[name].grids[child].scale, layer.grids[child].scale)
            np.testing.assert_array_equal(found.layers[name].biases[child], layer.biases[child])


def test_children_of_one_width_share_their_grid() -> None:
    """Slope, offset and used bits belong to the width; scale and bias to the child, for its statistics are its own."""
    children = parse_children("4,4a2,8")
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, children).build()
    frozen = freeze(settled(network, torch.randn(8, 1, 8, 8).clamp(-2, 2)), children)
    wide, narrow, _ = children
    for layer in frozen.layers.values():
        for table in ("slope", "offset", "bits"):
            tables = (getattr(layer.grids[child], table) for child in (wide, narrow))
            np.testing.assert_array_equal(*tables)
    assert any((layer.biases[wide] != layer.biases[narrow]).any() for layer in frozen.layers.values())
    assert {site.bits[narrow] for site in frozen.sites.values()} == {2, 8}

"""Frozen networks: what a graph leaves open is filled completely, at stored children only."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.frozen import FrozenSite, check_layers
from emqdeploy.format.grid import CodeRange, needs_clamp

from ..conftest import Deployed
from ..mixing import NARROW, WIDE, mixed_network


def test_initializers_have_the_types_that_kernels_take(small: Deployed) -> None:
    """A wrong type or a scale of rank 1 would not fail: it would silently run in float."""
    network = small.checkpoint.network
    for child in network.children:
        arrays = network.initializers(child)
        for name, layer in network.layers.items():
            kinds = {"weight": "int8", "weight_scale": "float32", "bias": "int32", "bias_scale": "float32"}
            assert {kind: arrays[f"{name}.{kind}"].dtype.name for kind in kinds} == kinds
            assert arrays[f"{name}.weight"].shape == layer.codes.shape
            assert arrays[f"{name}.bias_scale"].shape == layer.codes.shape[:1]
            scale = np.float32(network.sites[layer.site].scales[child]) * arrays[f"{name}.weight_scale"]
            np.testing.assert_array_equal(arrays[f"{name}.bias_scale"], scale)
        for name in network.sites:
            assert arrays[f"{name}.scale"].shape == ()


def test_weights_keep_the_limit_of_their_input(small: Deployed) -> None:
    """Behind a signed tensor 64, else 127: beyond, kernels without VNNI saturate."""
    network = small.checkpoint.network
    for child in network.children:
        for layer in network.layers.values():
            limit = 64 if network.sites[layer.site].signed else 127
            assert np.abs(layer.integers(child).astype(int)).max() <= limit


def test_pinned_layers_do_not_switch(small: Deployed) -> None:
    """Eight bits at every child, the same integers; the others really have fewer levels."""
    network = small.checkpoint.network
    assert {layer.pinned for layer in network.layers.values()} == {False, True}
    two, eight = Child.of(2), Child.of(8)
    for name, layer in network.layers.items():
        assert network.grid_bits(name, two) == (8 if layer.pinned else 2)
        levels = max(len(np.unique(row)) for row in layer.integers(two).reshape(len(layer.codes), -1))
        if layer.pinned:
            np.testing.assert_array_equal(layer.integers(two), layer.integers(eight))
        else:
            assert levels <= 4


def test_sites_are_clamped_where_uint8_is_too_wide() -> None:
    """A signed 8-bit tensor uses every code and needs no clamp, unless some child has fewer."""
    four, eight = Child.of(4), Child.of(8)
    assert not needs_clamp(True, (8, 8))
    assert needs_clamp(True, (4, 8))
    assert needs_clamp(False, (8,))
    assert FrozenSite(True, {four: 4, eight: 8}, {}, True).code_range(four) == CodeRange(128, 120, 135)


def test_a_child_that_is_not_stored(small: Deployed) -> None:
    """The user learns which ones are."""
    with pytest.raises(UsageError, match="no child '9' here; available: 1, 2, 3, 4, 5, 6, 7, 8; name one of these"):
        small.checkpoint.network.find(9)


def test_weight_count(small: Deployed) -> None:
    """All quantized weights, pinned ones included."""
    expected = sum(layer.weight.numel() for layer in small.network.layers.values())
    assert small.checkpoint.network.weight_count() == expected


def test_a_mixed_child_has_each_layer_at_its_own_width() -> None:
    """The named layers at theirs, the others at the default, pinned ones at 8; equal widths share their integers."""
    network = mixed_network().checkpoint.network
    child, four = network.find("mixed"), network.find("4")
    widths = {name: network.grid_bits(name, child) for name, layer in network.layers.items() if not layer.pinned}
    assert widths == {name: {WIDE: 8, NARROW: 2}.get(name, 4) for name in widths}
    for name, layer in network.layers.items():
        levels = max(len(np.unique(row)) for row in layer.integers(child).reshape(len(layer.codes), -1))
        assert levels <= 2 ** network.grid_bits(name, child)
        if widths.get(name) == 4:
            np.testing.assert_array_equal(np.abs(layer.integers(child)), np.abs(layer.integers(four)))


def test_twins_compute_the_same_numbers(small: Deployed) -> None:
    """A second name for a child's numbers is found, and any other number makes it a child of its own."""
    network = small.checkpoint.network
    eight, other = network.find("8"), Child("other", 8, 8)
    assert network.twins() == {child: child for child in network.children}
    layers = {
        name: replace(
            layer, grids={**layer.grids, other: layer.grids[eight]}, biases={**layer.biases, other: layer.biases[eight]}
        )
        for name, layer in network.layers.items()
    }
    sites = {
        name: replace(
            site, bits={**site.bits, other: site.bits[eight]}, scales={**site.scales, other: site.scales[eight]}
        )
        for name, site in network.sites.items()
    }
    both = replace(network, layers=layers, sites=sites, children=(*network.children, other))
    assert both.twins()[other] == eight
    name = next(iter(layers))
    moved = replace(layers[name], biases={**layers[name].biases, other: layers[name].biases[eight] + 1})
    assert replace(both, layers={**layers, name: moved}).twins()[other] == other


def test_children_that_do_not_fit_a_network() -> None:
    """A layer that is not there, or one that has no other width; the sentence lists what there is."""
    pinned = {"conv1": True, "conv2": False}
    check_layers(Child("fits", {"*": 4, "conv1": 8, "conv2": 2}, {"conv1": 4}), list(pinned), pinned)
    for weights, activations in (({"conv9": 4}, 8), (4, {"conv9": 4})):
        with pytest.raises(UsageError, match=r"names layer 'conv9' in its .*, which the network does not have; layers"):
            check_layers(Child("odd", weights, activations), list(pinned), pinned)
    with pytest.raises(UsageError, match="gives layer 'conv1' 4 bits, but it stays at 8 bits"):
        check_layers(Child("odd", {"conv1": 4}), list(pinned), pinned)

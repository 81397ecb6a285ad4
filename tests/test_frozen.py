"""Frozen networks: what a graph leaves open is filled completely, at stored widths only."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.errors import UsageError
from emqdeploy.frozen import FrozenSite
from emqdeploy.grid import CodeRange

from .conftest import Deployed


def test_initializers_have_the_types_that_kernels_take(small: Deployed) -> None:
    """A wrong type or a scale of rank 1 would not fail: it would silently run in float."""
    network = small.checkpoint.network
    for bits in network.widths:
        arrays = network.initializers(bits)
        for name, layer in network.layers.items():
            kinds = {"weight": "int8", "weight_scale": "float32", "bias": "int32", "bias_scale": "float32"}
            assert {kind: arrays[f"{name}.{kind}"].dtype.name for kind in kinds} == kinds
            assert arrays[f"{name}.weight"].shape == layer.codes.shape
            assert arrays[f"{name}.bias_scale"].shape == layer.codes.shape[:1]
            scale = np.float32(network.sites[layer.site].scales[bits]) * arrays[f"{name}.weight_scale"]
            np.testing.assert_array_equal(arrays[f"{name}.bias_scale"], scale)
        for name in network.sites:
            assert arrays[f"{name}.scale"].shape == ()


def test_weights_keep_the_limit_of_their_input(small: Deployed) -> None:
    """Behind a signed tensor 64, else 127: beyond, kernels without VNNI saturate."""
    network = small.checkpoint.network
    for bits in network.widths:
        for layer in network.layers.values():
            limit = 64 if network.sites[layer.site].signed else 127
            assert np.abs(layer.integers(bits).astype(int)).max() <= limit


def test_pinned_layers_do_not_switch(small: Deployed) -> None:
    """Eight bits at every width, the same integers; the others really have fewer levels."""
    network = small.checkpoint.network
    assert {layer.pinned for layer in network.layers.values()} == {False, True}
    for layer in network.layers.values():
        assert layer.grid_bits(2) == (8 if layer.pinned else 2)
        levels = max(len(np.unique(row)) for row in layer.integers(2).reshape(len(layer.codes), -1))
        if layer.pinned:
            np.testing.assert_array_equal(layer.integers(2), layer.integers(8))
        else:
            assert levels <= 4


def test_sites_are_clamped_where_uint8_is_too_wide() -> None:
    """A signed 8-bit tensor uses every code and needs no clamp, unless some width has fewer."""
    assert not FrozenSite(True, {4: 8, 8: 8}, {4: 0.1, 8: 0.1}).clamped
    assert FrozenSite(True, {4: 4, 8: 8}, {4: 0.1, 8: 0.1}).clamped
    assert FrozenSite(False, {8: 8}, {8: 0.1}).clamped
    assert FrozenSite(True, {4: 4, 8: 8}, {}).code_range(4) == CodeRange(128, 120, 135)


def test_a_width_that_is_not_stored(small: Deployed) -> None:
    """The user learns which ones are."""
    with pytest.raises(UsageError, match="no 9-bit network; it holds 1, 2, 3, 4, 5, 6, 7, 8; choose"):
        small.checkpoint.network.initializers(9)


def test_weight_count(small: Deployed) -> None:
    """All quantized weights, pinned ones included."""
    expected = sum(layer.weight.numel() for layer in small.network.layers.values())
    assert small.checkpoint.network.weight_count() == expected

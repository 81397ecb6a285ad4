"""Every rung notices a file that does not hold what was trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from emqdeploy.format.child import Child
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.workflows.comparing import Compared, ParityImages, reference_batches
from emqdeploy.workflows.rungs import RUNGS

from ..conftest import Deployed

EIGHT = Child.of(8)
INSIDE = "stage2.0.conv1"


def _wrong_weights(network: FrozenNetwork) -> FrozenNetwork:
    """The channels of one layer read their inputs in another order."""
    layer = network.layers[INSIDE]
    codes = layer.codes.copy()
    codes[:] = codes[:, ::-1]
    return replace(network, layers=network.layers | {INSIDE: replace(layer, codes=codes)})


def _wrong_scale(network: FrozenNetwork) -> FrozenNetwork:
    """The steps of one tensor are half as wide as they should be."""
    name = network.layers[INSIDE].site
    site = network.sites[name]
    scales = {child: scale / 2 for child, scale in site.scales.items()}
    return replace(network, sites=network.sites | {name: replace(site, scales=scales)})


def _wrong_byte(network: FrozenNetwork) -> FrozenNetwork:
    """One code of one layer is another, the farthest that its channel has: still a weight that kernels take."""
    layer = network.layers[INSIDE]
    codes = layer.codes.copy()
    channel = codes[0].reshape(-1)
    channel[0] = max(channel.min(), channel.max(), key=lambda code: abs(int(code) - int(channel[0])))
    return replace(network, layers=network.layers | {INSIDE: replace(layer, codes=codes)})


DAMAGES = [(name, damage) for name in RUNGS for damage in (_wrong_weights, _wrong_scale, _wrong_byte)]
# OpenVINO rounds for itself and shows no codes: a single byte is below what it can be held to.
DAMAGES.remove(("openvino", _wrong_byte))


@pytest.mark.parametrize(("name", "damage"), DAMAGES)
def test_damage_is_noticed(name: str, damage: Callable[[FrozenNetwork], FrozenNetwork], small: Deployed) -> None:
    """Compared with the reference of the network as it was, at most a rounding may differ."""
    checkpoint = small.checkpoint
    right = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(EIGHT))
    images = ParityImages(small.images, None, "noise")
    for network, expected in ((checkpoint.network, True), (damage(checkpoint.network), False)):
        rung = RUNGS[name](replace(checkpoint, network=network), EIGHT)
        compared = Compared(rung, right, checkpoint.card.task)
        for batch in reference_batches(right, images):
            compared.add(batch)
        rung.close()
        assert (compared.wrong is None) is expected, compared.wrong

"""A small network with a child whose layers have widths of their own, next to plain ones."""

from __future__ import annotations

import functools

from emqdeploy.format.child import Child
from emqdeploy.quant.build import NetworkSpec

from .conftest import Deployed, deploy

WIDE, NARROW, COARSE = "stage2.0.conv1", "stage3.0.conv2", "stage1.0.conv2"
"""Layers of a ResNet-8 with 8-bit weights, with 2-bit weights, and with 4-bit activations."""

MIXED = Child("mixed", {"*": 4, WIDE: 8, NARROW: 2}, {"*": 8, COARSE: 4})


@functools.cache
def mixed_network() -> Deployed:
    """A ResNet-8 with the children 4, ``mixed`` and 8, all trained."""
    return deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (Child.of(4), MIXED, Child.of(8))))

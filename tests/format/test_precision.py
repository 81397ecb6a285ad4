"""What is said of a network's layers as a whole."""

from __future__ import annotations

import pytest

from emqdeploy.format.precision import LayerPrecision, stored_as


@pytest.mark.parametrize(
    ("kinds", "said"),
    [
        ("", "float32"),
        ("int8 int8", "int8"),
        ("int8 uint4 uint4 uint4 int8", "uint4"),
        ("int8 uint4 int8 int8", "uint4 to int8"),
        ("int8 uint4 uint4 uint2 uint4", "uint2 to int8"),
        ("uint4 uint4 uint2", "uint2 to uint4"),
        ("float32 int8 int8", "int8 to float32"),
    ],
)
def test_layers_that_are_stored_differently_are_not_outvoted(kinds: str, said: str) -> None:
    """Ends that stay at 8 bits are usual; where widths differ beyond that, the lowest and the highest are named."""
    layers = [LayerPrecision(str(index), 8, kind) for index, kind in enumerate(kinds.split())]
    assert stored_as(layers) == said

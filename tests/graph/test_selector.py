"""The selector's input: what each value means, the same for whoever writes a graph and whoever runs it."""

from __future__ import annotations

import numpy as np

from emqdeploy.format.child import Child
from emqdeploy.graph.selector import SELECTOR_INPUT, selection, selector_values

MIXED = Child("mixed", {"*": 4, "conv1": 8}, 8)


def test_plain_children_are_chosen_by_their_weight_width() -> None:
    """So that an input called ``bits`` takes bits; ascending, whatever order they come in."""
    assert list(selector_values(map(Child.of, (8, 2, 4))).items()) == [(Child.of(bits), bits) for bits in (2, 4, 8)]


def test_any_others_are_chosen_by_their_place() -> None:
    """One child with widths of its own, other activations or another name is enough; no two share a value."""
    for odd in (MIXED, Child.of(4, 2), Child("four", 4)):
        values = selector_values([Child.of(8), odd, Child.of(4), Child.of(2)])
        assert list(values.values()) == [0, 1, 2, 3]
        assert (values[Child.of(2)], values[Child.of(8)]) == (0, 3)


def test_what_a_session_is_fed() -> None:
    """One int64, as the graph declares it."""
    (fed,) = selection(3).items()
    assert fed[0] == SELECTOR_INPUT == "bits"
    assert (fed[1].dtype, fed[1].tolist()) == (np.int64, [3])

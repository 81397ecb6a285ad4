"""The selector: the further input of a graph that holds several children, and what its values mean."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from emqdeploy.format.child import Child, in_order

SELECTOR_INPUT = "bits"
"""Name of the input, int64 of shape ``(1,)``."""


def selector_values(children: Iterable[Child]) -> dict[Child, int]:
    """Returns the children of one graph in ascending order, each with the value of the input that chooses it.

    That is the weight width where every child is known by it (``4``: one width for all layers, 8-bit activations), so
    that ``bits`` is what its name says; of any others the index in this order, which is the seal's order too. A value
    that no child has is refused by our runtimes; the bare graph answers with the next higher one, above all with the
    last.
    """
    ordered = in_order(children)
    if all(child == Child.of(child.bits) for child in ordered):
        return {child: child.bits for child in ordered}
    return {child: index for index, child in enumerate(ordered)}


def selection(value: int) -> dict[str, Any]:
    """What to feed a selector beside the images."""
    return {SELECTOR_INPUT: np.array([value], np.int64)}

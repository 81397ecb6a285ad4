"""Comparing runs: which differences count, and which decisions may flip."""

from __future__ import annotations

import numpy as np
import pytest

from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import Followed


def test_decisions_may_flip_only_where_they_are_close() -> None:
    """The margin is a share of the range of all logits of the batch: 1 % and below is a tie."""
    expected = np.array([[0, 10.0, 9.95], [0, 10.0, 9.5], [5, 0, 1]], np.float32)
    actual = expected[:, [0, 2, 1]]
    parity = Parity()
    parity.add((expected, {}), (actual, {}))
    assert (parity.images, parity.flips, parity.unsafe_flips) == (3, 2, 1)
    assert parity.top1_agreement == pytest.approx(1 / 3)
    assert not parity.exact


def test_codes_count_and_the_first_difference_is_named() -> None:
    """In order of computation; another comparison is added to it."""
    logits = np.eye(2, dtype=np.float32)
    codes = {name: np.zeros(4, np.uint8) for name in ("a/codes", "b/codes")}
    other = codes | {"b/codes": np.array([0, 3, 0, 1], np.uint8)}
    parity, same = Parity(), Parity()
    same.add((logits, codes), (logits, codes))
    assert same.exact
    parity.add((logits, codes), (logits, other))
    parity.merge(same)
    assert (parity.codes, parity.differing_codes, parity.max_step_error) == (16, 2, 3)
    assert parity.first_difference == "b/codes"
    assert parity.to_dict()["images"] == 4


def test_a_rounding_behind_a_float_operator_is_no_difference() -> None:
    """One step is; two are more than a rounding."""
    logits = np.eye(2, dtype=np.float32)
    for step, exact in ((1, True), (2, False)):
        parity = Parity()
        rounded = {"c/codes": np.zeros(2, np.uint8)}
        parity.add_followed(Followed(logits, {}, rounded), (logits, {"c/codes": np.array([0, step], np.uint8)}))
        assert (parity.differing_rounded, parity.max_rounded_step, parity.exact) == (1, step, exact)

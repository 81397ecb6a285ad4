"""Comparing runs: which differences count, and which decisions may flip."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.parity import Parity, may_round, must_agree, must_be_exact
from emqdeploy.graph.reference import Followed


def _logits(count: int = 200) -> np.ndarray:
    return np.random.default_rng(3).normal(size=(count, 6)).astype(np.float32)


def _compared(expected: np.ndarray, actual: np.ndarray) -> Parity:
    parity = Parity()
    parity.add((expected, {}), (actual, {}))
    return parity


def test_a_flip_counts_where_rounding_does_not_explain_it() -> None:
    """One image answers otherwise, while all others are right to a thousandth."""
    expected = _logits()
    actual = expected + np.random.default_rng(4).normal(size=expected.shape).astype(np.float32) / 1000
    assert _compared(expected, actual).unsafe_flips == 0
    order = np.argsort(expected, axis=1)
    swapped = expected.copy()
    np.put_along_axis(swapped, order[:, -1:], np.take_along_axis(expected, order[:, -2:-1], 1), 1)
    np.put_along_axis(swapped, order[:, -2:-1], np.take_along_axis(expected, order[:, -1:], 1), 1)
    first, second = np.argsort(-CLASSIFICATION.margin(expected))[20:22]
    actual[first] = swapped[first]
    parity = _compared(expected, actual)
    assert (parity.flips, parity.unsafe_flips) == (1, 1)
    assert must_agree(parity, None) is None  # one image is no proof
    actual[second] = swapped[second]
    assert "change their class" in str(must_agree(_compared(expected, actual), None))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of 1e-3 of the logits, which are nearly equal."""
    odds = np.exp(1e-3 * logits.astype(np.float64))
    return np.asarray(odds / odds.sum(1, keepdims=True))


@pytest.mark.parametrize("squeeze", [lambda x: x, lambda x: 1e-2 * x + 5, softmax])
def test_the_rule_does_not_ask_for_the_scale(squeeze: Callable[[np.ndarray], np.ndarray]) -> None:
    """Logits, logits squeezed into a thousandth around five, and probabilities: the same noise is judged alike."""
    expected = _logits()
    for noise, right in ((0.02, True), (0.5, False)):
        actual = expected + np.float32(noise) * np.random.default_rng(5).normal(size=expected.shape)
        found = must_agree(_compared(squeeze(expected), squeeze(actual)), None)
        assert (found is None) == right, found


def test_equal_logits_may_be_decided_either_way() -> None:
    """Two outputs that tie exactly."""
    expected = np.repeat(_logits()[:, :3], 2, axis=1)
    actual = expected.copy()
    actual[:, ::2] -= 1e-6
    parity = _compared(expected, actual)
    assert parity.flips == parity.images
    assert must_agree(parity, None) is None


def test_a_constant_network_is_judged_by_float_rounding() -> None:
    """Where no logit differs from another there is no spread to measure by."""
    expected = np.full((4, 3), 7, np.float32)
    assert must_agree(_compared(expected, expected * np.float32(1 + 1e-6)), None) is None
    assert must_agree(_compared(expected, expected + _logits(4)[:, :3]), None) is not None


def test_what_is_no_number_is_wrong() -> None:
    """In every rung."""
    parity = _compared(_logits(), np.full((200, 6), np.nan, np.float32))
    assert must_be_exact(parity, None)
    assert must_agree(parity, None)
    assert may_round(parity, None)


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

"""How far a child is from what it was made from: decibels, decisions, and which of them is a fault."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.format.card import MOST_DECIBELS
from emqdeploy.format.child import Child
from emqdeploy.graph.fidelity import (
    FLOAT_MODEL,
    TRAINED_NETWORK,
    compare,
    decibels,
    snr_db,
    spread,
    what_is_wrong,
)

EIGHT = Child.of(8)


@given(power=st.floats(-40, 60), constant=st.floats(-1e3, 1e3), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 2**16))
def test_decibels_are_those_of_the_noise_that_was_added(power: float, constant: float, scale: float, seed: int) -> None:
    """Whatever the size of the logits, and whatever constant an image has on all of them."""
    draw = np.random.default_rng(seed)
    logits, noise = (draw.normal(size=(40, 10)) for _ in range(2))
    logits, noise = (values - values.mean(1, keepdims=True) for values in (logits, noise))
    noise *= np.sqrt(np.square(logits).sum() / np.square(noise).sum() / 10 ** (power / 10))
    found = snr_db(scale * (logits + constant), scale * (logits + noise - constant))
    assert found == pytest.approx(power, abs=1e-3)


def test_the_ends_of_the_scale() -> None:
    """Equal is the most, and what is not a number is nothing but noise; a card has to hold both."""
    logits = np.array([[1.0, 2.0]], np.float32)
    assert snr_db(logits, logits) == snr_db(0 * logits, 0 * logits) == MOST_DECIBELS
    for broken in (logits * np.nan, logits * np.inf):
        assert snr_db(logits, broken) == snr_db(broken, logits) == -MOST_DECIBELS
    assert snr_db(0 * logits, logits) == -MOST_DECIBELS
    assert decibels(1.0, 0.1) == pytest.approx(10)
    assert snr_db(logits, 1 - logits) == pytest.approx(-10 * np.log10(4))


def test_ties_do_not_count() -> None:
    """Of four decisions one is a tie, which any rounding may turn; of the others one is lost."""
    expected = np.array([[0, 10.0, 9.95], [0, 10.0, 5], [5, 0, 1], [5, 0, 1]], np.float32)
    actual = expected[:, [0, 2, 1]]
    found = compare(expected, actual, FLOAT_MODEL)
    assert (found.images, found.decided) == (4, 3)
    assert found.agreement == pytest.approx(200 / 3, abs=1e-3)
    ties = compare(np.ones((3, 4)), np.ones((3, 4)), FLOAT_MODEL)
    assert (ties.decided, ties.agreement, ties.snr_db) == (0, 100, MOST_DECIBELS)


def test_what_is_wrong() -> None:
    """8 bits everywhere are held to the float model, every child to what was trained; one image alone says nothing."""
    good = compare(np.eye(4), np.eye(4), FLOAT_MODEL)
    far, flipped = (type(good)(FLOAT_MODEL, *values, 256) for values in ((14.9, 100.0, 200), (30.0, 94.0, 200)))
    assert what_is_wrong(EIGHT, good) is None
    assert what_is_wrong(EIGHT, far) == "a signal to noise of 14.9 dB, below 15"
    assert what_is_wrong(EIGHT, flipped) == "12 of 200 clear decisions become others, more than 5 %"
    assert what_is_wrong(EIGHT, type(good)(FLOAT_MODEL, 30.0, 90.0, 10, 10)) is None
    for lower in (Child.of(4), Child.of(8, 4), Child("mixed", {"*": 8, "conv1": 4})):
        assert what_is_wrong(lower, far) is None
        assert what_is_wrong(lower, type(good)(TRAINED_NETWORK, 14.9, 100.0, 200, 256)) is not None
    assert what_is_wrong(Child("wide", {"*": 8}), far) is not None


@given(count=st.integers(1, 5000))
def test_images_are_taken_evenly(count: int) -> None:
    """All of few, 256 of many, the first and the last among them, in order and no image twice."""
    places = spread(count)
    assert len(places) == min(count, 256)
    assert (places[0], places[-1]) == (0, count - 1)
    assert (np.diff(places) > 0).all()

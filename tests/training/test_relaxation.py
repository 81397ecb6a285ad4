"""Widths as real numbers: what moves them, when they stand still, and what a target leaves of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.format.child import Child
from emqdeploy.training.relaxation import BIT_COSTS, Group, Relaxation, Sizes

SHARES = np.array([[0.5], [0.3], [0.2]])
SIZES = Sizes(np.array([10.0, 40.0, 90.0]), np.array([900.0, 400.0, 100.0]), SHARES * (1 - np.arange(9) / 8))
LAYERS = ("a", "b", "c")


def relaxation(
    per_layer: bool = False,
    cost: str = "bitops",
    weight: float = 0.15,
    target: float | None = None,
    updates: int = 400,
    patience: int = 10,
) -> Relaxation:
    """Of three layers, from 8 bits down to 2."""
    start = Child("learned", 8, 8)
    rate = 500.0 / updates
    return Relaxation(LAYERS, SIZES, start, 2, per_layer, cost, weight, target, rate, updates, patience)


def loss(child: Child) -> float:
    """Rounding adds a squared error to the loss, four times as much for a bit less."""
    errors = [4.0 ** -child.weights.of(layer) + 4.0 ** -child.activations.of(layer) for layer in LAYERS]
    return 1 + sum(errors)


def run(one: Relaxation, updates: int = 400) -> Child:
    """The child that a search on that loss ends with."""
    for _ in range(updates):
        beside = [loss(one.child("learned", group)) for group in one.open()]
        one.update(loss(one.child("learned")), beside)
    one.settle()
    return one.child("learned")


@given(st.sampled_from(list(BIT_COSTS)), st.integers(2, 8))
def test_costs_are_those_of_equal_widths(cost: str, bits: int) -> None:
    """8 bits everywhere cost 1; bits and bytes are in proportion, operations to the square."""
    widths = np.full(3, float(bits))
    expected = (bits / 8) ** (2 if cost == "bitops" else 1)
    assert BIT_COSTS[cost](SIZES, widths, widths) == pytest.approx(expected)


@pytest.mark.parametrize("cost", ["bits", "bitops"])
def test_dearer_bits_are_fewer(cost: str) -> None:
    """A sweep of the weight gives monotone widths, from all to almost none."""
    found = [run(relaxation(cost=cost, weight=weight)) for weight in (0.0, 0.01, 0.1, 1.0, 100.0)]
    for kind in ("weights", "activations"):
        bits = [getattr(child, kind).default for child in found]
        assert bits == sorted(bits, reverse=True)
        assert (bits[0], bits[-1]) == (8, 2)


@settings(max_examples=25, deadline=None)
@given(st.floats(2, 8), st.booleans(), st.sampled_from(list(BIT_COSTS)), st.sampled_from([3, 40]))
def test_a_target_is_met_and_used(target: float, per_layer: bool, cost: str, updates: int) -> None:
    """However short the search is, the cost ends at most there, and no bit more would fit."""
    one = relaxation(per_layer, cost, target=target, updates=updates)
    run(one, updates)
    limit = BIT_COSTS[cost](SIZES, np.full(3, target), np.full(3, target))
    assert one.cost() <= limit + 1e-9
    for group in one.groups:
        if group.bits < group.most and one._cost_with(group, group.bits + 1) > one.cost():
            assert one._cost_with(group, group.bits + 1) > limit


def test_layers_have_widths_of_their_own() -> None:
    """A layer of few multiplications keeps more bits; without a group per layer the child is uniform."""
    found = run(relaxation(per_layer=True, weight=0.3))
    assert found.weights.of("a") < found.weights.of("c")
    assert run(relaxation(weight=0.3)).uniform


def test_a_width_that_comes_and_goes_is_frozen_at_the_larger() -> None:
    """After so many turns; a way down without turns freezes nothing."""
    group = Group("weights", (0,), 4.2, 2, 8)
    for turn in range(11):
        assert not group.frozen
        group.move(3.9 if turn % 2 == 0 else 4.2, patience=10)
    assert (group.frozen, group.width) == (True, 5.0)
    falling = Group("weights", (0,), 8.0, 2, 8)
    for width in (7, 6, 5, 4, 3, 2, 1):
        falling.move(float(width), patience=1)
    assert (falling.frozen, falling.bits) == (False, 2)


def test_it_continues_from_its_state() -> None:
    """Plain values in between."""
    one, other = relaxation(per_layer=True, target=4.0), relaxation(per_layer=True, target=4.0)
    for group in one.groups:
        group.width = 5.5
    one.update(1.0, [1.1] * 6)
    other.restore(one.state())
    assert other.groups == one.groups
    assert run(one, 20) == run(other, 20)

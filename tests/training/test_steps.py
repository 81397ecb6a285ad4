"""Step plans: complete, in the promised order, reproducible."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from emqdeploy.format.child import Child
from emqdeploy.training.steps import DRAWN, STEP_PLANS, Epoch, Step

Subsets = Mapping[Child, NDArray[np.int64]]
EVERYTHING: Subsets = {Child.of(bits): np.arange(64) for bits in (1, 2, 4, 8)}


def plan(name: str, subsets: Subsets = EVERYTHING, batch: int = 8, seed: int = 0, index: int = 0) -> list[Step]:
    """The steps of one epoch of four."""
    return STEP_PLANS[name].plan(Epoch(subsets, batch, seed, index, 4, ("conv", "fc")))


def names(step: Step) -> tuple[str, ...]:
    """The children of a step."""
    return tuple(child.name for child in step.children)


@given(
    sizes=st.lists(st.integers(2, 40), min_size=1, max_size=4),
    batch=st.integers(2, 9),
    epoch=st.integers(0, 5),
)
def test_every_child_passes_once_over_its_subset(sizes: list[int], batch: int, epoch: int) -> None:
    """No image is lost or seen twice, except a last single one."""
    subsets = {Child.of(bits): np.arange(size) + 100 * bits for bits, size in enumerate(sizes, start=1)}
    steps = plan("interleaved", subsets, batch, index=epoch)
    for child, subset in subsets.items():
        seen = np.concatenate([step.indices for step in steps if step.children == (child,)])
        assert len(set(seen.tolist())) == len(seen)
        assert set(seen.tolist()) <= set(subset.tolist())
        assert len(subset) - len(seen) == (len(subset) % batch == 1)


def test_children_take_turns() -> None:
    """Shared statistics would drift if one child trained alone for long."""
    order = [step.children[0].bits for step in plan("interleaved")]
    rounds = [order[start : start + 4] for start in range(0, len(order), 4)]
    assert all(sorted(turn) == [1, 2, 4, 8] for turn in rounds)
    assert len({tuple(turn) for turn in rounds}) > 1


def test_rotating_costs_one_pass_and_visits_everything_in_turn() -> None:
    """Over four epochs every child sees its share of one pass an epoch; no image is seen twice in one."""
    for index in range(4):
        steps = plan("rotating", index=index)
        assert sorted(np.concatenate([step.indices for step in steps]).tolist()) == list(range(64))
        assert {names(step) for step in steps} == {("1",), ("2",), ("4",), ("8",)}


def test_common_batches_run_from_the_highest_child_down() -> None:
    """Distillation needs the teacher first; one update for all of them, or one each."""
    assert {names(step) for step in plan("joint")} == {("8", "4", "2", "1")}
    assert [names(step) for step in plan("sequential")[:4]] == [("8",), ("4",), ("2",), ("1",)]
    first = plan("sequential")[:4]
    assert all((step.indices == first[0].indices).all() for step in first)
    sandwiches = {names(step) for step in plan("sandwich", batch=2)}
    assert sandwiches == {("8", "4", "1"), ("8", "2", "1")}


def test_progressive_starts_high_and_ends_with_all() -> None:
    """The lowest child joins last."""
    widths = [{step.children[0].bits for step in plan("progressive", index=index)} for index in range(4)]
    assert widths == [{8}, {8, 4, 2}, {8, 4, 2, 1}, {8, 4, 2, 1}]


def test_mixed_gives_every_layer_the_widths_of_a_child_of_its_own() -> None:
    """After each round of uniform children comes a drawn one; weights and activations of a layer come together."""
    trained = [Child.of(8), Child.of(4, 4), Child("own", {"*": 2, "fc": 1}, 3)]
    steps = plan("mixed", dict.fromkeys(trained, np.arange(64)))
    drawn = [step.children[0] for step in steps if step.children[0].name == DRAWN]
    assert len(drawn) == len(steps) / 4
    pairs = {layer: {(c.weights.of(layer), c.activations.of(layer)) for c in drawn} for layer in ("conv", "fc")}
    assert pairs == {"conv": {(8, 8), (4, 4), (2, 3)}, "fc": {(8, 8), (4, 4), (1, 3)}}
    assert any(child.weights.of("conv") != child.weights.of("fc") for child in drawn)


def test_children_of_one_width_draw_their_own_order() -> None:
    """2 and 2a4 are two children: both pass over everything, each in its order."""
    children = (Child.of(2), Child.of(2, 4))
    steps = plan("interleaved", dict.fromkeys(children, np.arange(64)))
    orders = [np.concatenate([step.indices for step in steps if step.children == (child,)]) for child in children]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(64))
    assert orders[0].tolist() != orders[1].tolist()


@pytest.mark.parametrize("name", list(STEP_PLANS))
def test_order_depends_on_seed_and_epoch_only(name: str) -> None:
    """Resuming rebuilds the order of an interrupted epoch from these two numbers."""

    def order(seed: int, epoch: int) -> list[tuple[object, list[int]]]:
        return [(step.children, step.indices.tolist()) for step in plan(name, seed=seed, index=epoch)]

    assert order(0, 3) == order(0, 3)
    assert order(0, 3) != order(0, 2)
    assert order(0, 3) != order(1, 3)

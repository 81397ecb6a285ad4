"""The records of training dynamics: every image at its place, whoever shares them, and they survive saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.dynamics import SHARED, Dynamics

TWO, FOUR, EIGHT = map(Child.of, (2, 4, 8))
RANDOM = np.random.default_rng(0)


def entropies(dynamics: Dynamics, child: Child) -> list[float]:
    """What a child's record says of every image."""
    return dynamics.importance(child, RANDOM).tolist()


def test_recorder_keeps_each_image_at_its_place() -> None:
    """Batches arrive shuffled; a score that mixed up images would prune the wrong ones."""
    dynamics = Dynamics("entropy", ("2", "8"), np.zeros(4, np.int64), classes=2)
    dynamics.open_epoch()
    dynamics.record(EIGHT, np.array([3, 0]), torch.tensor([[20.0, 0.0], [np.log(3), 0.0]]), None)
    three_to_one = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert entropies(dynamics, EIGHT) == pytest.approx([three_to_one, np.log(2), np.log(2), 0], abs=1e-5)
    assert entropies(dynamics, TWO) == pytest.approx([np.log(2)] * 4)


def test_an_image_that_an_epoch_left_out_keeps_what_was_known() -> None:
    """Images out of the coreset age, they are not forgotten."""
    dynamics = Dynamics("el2n", ("4",), np.zeros(2, np.int64), classes=2)
    for right in (0.0, 20.0):
        dynamics.open_epoch()
        dynamics.record(FOUR, np.array([0]), torch.tensor([[right, 0.0]]), None)
    dynamics.open_epoch()
    dynamics.record(FOUR, np.array([1]), torch.tensor([[20.0, 0.0]]), None)
    assert entropies(dynamics, FOUR) == pytest.approx([np.sqrt(0.5) / 2, 0], abs=1e-5)


def test_one_record_for_all_children() -> None:
    """Where scores are shared every child writes to one record, features included."""
    dynamics = Dynamics("grand", (SHARED,), np.zeros(2, np.int64), classes=2, width=1)
    dynamics.open_epoch()
    for child, image in ((TWO, 0), (EIGHT, 1)):
        dynamics.record(child, np.array([image]), torch.zeros(1, 2), torch.tensor([[float(child.bits)]]))
    expected = np.sqrt(0.5) * np.sqrt(1 + np.array([2.0, 8.0]) ** 2)
    assert entropies(dynamics, TWO) == entropies(dynamics, EIGHT) == pytest.approx(expected.tolist())


def test_state_survives_and_is_of_the_same_data() -> None:
    """Saved scores of other images, or of another score, would prune at random."""
    labels = np.zeros(3, np.int64)
    dynamics = Dynamics("el2n", ("2",), labels, classes=2)
    dynamics.open_epoch()
    dynamics.record(TWO, np.array([2, 0]), torch.tensor([[1.0, 0.0], [0.0, 1.0]]), None)
    other = Dynamics("el2n", ("2",), labels, classes=2)
    other.restore(dynamics.state())
    assert entropies(other, TWO) == entropies(dynamics, TWO)
    other.record(TWO, np.array([1]), torch.zeros(1, 2), None)
    assert entropies(other, TWO) != entropies(dynamics, TWO)
    state = dynamics.state()
    with pytest.raises(UsageError, match="of other images or classes; use the same data, or score anew"):
        Dynamics("el2n", ("2",), np.zeros(4, np.int64), classes=2).restore(state)
    with pytest.raises(UsageError, match="of records 2, this run needs 4"):
        Dynamics("el2n", ("4",), labels, classes=2).restore(state)
    with pytest.raises(UsageError, match="of --score el2n, this run asks for --score tdds; score anew"):
        Dynamics("tdds", ("2",), labels, classes=2).restore(state)
    with pytest.raises(UsageError, match="of an earlier version of emqdeploy"):
        Dynamics("el2n", ("2",), labels, classes=2).restore({"softmax": {}, "features": {}})

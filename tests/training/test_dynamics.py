"""The record of training dynamics: every image at its place, the window moves, and it survives saving."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.training.dynamics import SHARED, Dynamics

TWO, FOUR, EIGHT = map(Child.of, (2, 4, 8))


def test_recorder_keeps_each_image_at_its_place() -> None:
    """Batches arrive shuffled; a score that mixed up images would prune the wrong ones."""
    dynamics = Dynamics(("2", "8"), images=4, classes=3, window=5)
    dynamics.open_epoch()
    dynamics.open_epoch()
    dynamics.record(EIGHT, np.array([3, 0]), torch.log(torch.tensor([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]])), None)
    assert dynamics.softmax["8"][1, 3].tolist() == [0.5, 0.25, 0.25]
    assert dynamics.softmax["8"][1, 0, 0] == pytest.approx(0.8, abs=1e-3)
    assert np.allclose(dynamics.softmax["2"], 1 / 3, atol=1e-3)
    assert np.allclose(dynamics.softmax["8"][0], 1 / 3, atol=1e-3)


def test_an_image_that_an_epoch_left_out_keeps_what_was_known() -> None:
    """Images out of the coreset age, they are not forgotten; the oldest epoch falls out of the window."""
    dynamics = Dynamics(("4",), images=2, classes=2, window=2)
    for right in (3.0, 1.0, -1.0):
        dynamics.open_epoch()
        dynamics.record(FOUR, np.array([0]), torch.tensor([[right, 0.0]]), None)
    rows = dynamics.softmax["4"][:, 0, 0]
    assert rows.tolist() == pytest.approx(torch.sigmoid(torch.tensor([1.0, -1.0])).tolist(), abs=1e-3)
    assert (dynamics.softmax["4"][:, 1] == 0.5).all()


def test_one_record_for_all_children() -> None:
    """Where scores are shared every child writes to one record."""
    dynamics = Dynamics((SHARED,), images=2, classes=2, window=1, features=1)
    dynamics.open_epoch()
    for child, image in ((TWO, 0), (EIGHT, 1)):
        dynamics.record(child, np.array([image]), torch.tensor([[9.0, 0.0]]), torch.tensor([[float(child.bits)]]))
    assert (dynamics.softmax[SHARED][0, :, 0] > 0.99).all()
    assert dynamics.features[SHARED][:, 0].tolist() == [2, 8]


def test_state_survives_and_is_of_the_same_data() -> None:
    """Saved scores of other images would prune at random."""
    dynamics = Dynamics(("2",), images=3, classes=2, window=2)
    dynamics.open_epoch()
    other = Dynamics(("2",), images=3, classes=2, window=2)
    other.restore(dynamics.state())
    assert (other.softmax["2"] == dynamics.softmax["2"]).all()
    with pytest.raises(UsageError, match="of 3 images and 2 classes, this run has 4 and 2"):
        Dynamics(("2",), images=4, classes=2, window=2).restore(dynamics.state())
    with pytest.raises(UsageError, match="of records 2, this run needs 4"):
        Dynamics(("4",), images=3, classes=2, window=2).restore(dynamics.state())

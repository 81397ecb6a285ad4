"""The moving average: what it holds, and that looking at it changes nothing."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.training.averaging import MovingAverage


def test_it_follows_by_its_decay() -> None:
    """The first updates forget fast, the later ones keep ``decay``; whole numbers and flags are left alone."""
    weight, flag = torch.zeros(2), torch.tensor([False])
    average = MovingAverage({"weight": weight, "flag": flag}, 0.5)
    weight.fill_(1.0)
    flag.fill_(True)
    average.update()  # a decay of 1/10
    average.update()  # of 2/11
    with average.swapped():
        torch.testing.assert_close(weight, torch.full((2,), 1 - 0.1 * 2 / 11))
        assert bool(flag)
    for _ in range(20):
        average.update()
    weight.zero_()
    average.update()
    with average.swapped():
        torch.testing.assert_close(weight, torch.full((2,), 0.5))


def test_training_goes_on_from_its_own_weights() -> None:
    """Also where a validation fails in between."""
    layer = torch.nn.Linear(3, 2)
    average = MovingAverage(layer.state_dict(), 0.9)
    average.update()
    with torch.no_grad():
        layer.weight.add_(1)
    before = layer.weight.detach().clone()

    def validate() -> None:
        with average.swapped():
            assert not torch.equal(layer.weight, before)
            raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        validate()
    assert torch.equal(layer.weight, before)


def test_it_survives_saving() -> None:
    """A resumed run goes on with the same average, to the bit."""
    tensors = [{"a": torch.arange(3.0)} for _ in range(2)]
    one, other = (MovingAverage(held, 0.9) for held in tensors)
    tensors[0]["a"].add_(1)
    for _ in range(3):
        one.update()
    other.restore(one.state())
    tensors[1]["a"].copy_(tensors[0]["a"].mul_(2))
    one.update()
    other.update()
    with one.swapped(), other.swapped():
        assert torch.equal(tensors[0]["a"], tensors[1]["a"])

"""Cluster-promoting grids: the gradient of the mixture of grid points, and codes that give the integers again."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.grid import INTEGER
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.families.cpq import CpqOptions, CpqQuantizer
from emqdeploy.quant.families.lsq import LsqOptions

from ..deployed import assert_deployed

WIDTHS = tuple(range(2, 9))


def quantizer(weight: torch.Tensor, limit: int = 127, step: str = "layer", **options: object) -> CpqQuantizer:
    """The quantizer of a layer that has a step for every width."""
    return CpqOptions(step, **options).quantizer(weight, limit, WIDTHS)  # type: ignore[arg-type]


def mixture(weight: torch.Tensor, step: torch.Tensor, low: int, high: int, noise: float, mask: torch.Tensor) -> tuple:
    """Odds and grid by the formula itself, over the whole grid, in double precision."""
    points = torch.arange(low, high + 1, dtype=torch.float64).reshape(-1, 1, 1)
    steps = weight.double() / step.double()
    upper, lower = (torch.sigmoid((points + half - steps) / noise) for half in (0.5, -0.5))
    odds = mask.double().reshape(-1, 1, 1) * (upper - lower)
    return odds / odds.sum(0), points * step.double()


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(WIDTHS), st.sampled_from([127, 64]), st.sampled_from(["layer", "channel"])
)
def test_what_training_sees_is_what_is_deployed(seed: int, bits: int, limit: int, step: str) -> None:
    """The value is ``scale * z``, the likeliest point is the nearest, and the grid makes it of the stored code."""
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    value = assert_deployed(quantizer(weight, limit, step), weight, bits, limit, INTEGER)
    plain = LsqOptions(step).quantizer(weight, limit, WIDTHS)
    torch.testing.assert_close(plain.value(weight, bits), value, rtol=0, atol=0)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([2, 3, 5, 8]), st.sampled_from([0.1, 1 / 3, 1.0]), st.floats(0.2, 20))
def test_the_gradient_is_that_of_the_mixture(seed: int, bits: int, noise: float, spread: float) -> None:
    """For weights, steps and masks what autograd finds for the formula, far outside of the grid too."""
    random = torch.Generator().manual_seed(seed)
    weight = (spread * torch.randn(3, 6, generator=random)).requires_grad_()
    one = quantizer(weight, noise=noise)
    low, high, _ = one._range(bits)
    mask = torch.rand(high - low + 1, generator=random).clamp(min=0.05).requires_grad_()
    one.gate = lambda low, high: mask
    with torch.no_grad():
        one.step.fill_(0.7)
    upstream = torch.randn(3, 6, generator=random)
    one.value(weight, bits).backward(upstream)
    exact = [part.detach().clone().requires_grad_() for part in (weight, one.step[0], mask)]
    steps = exact[0].double() / exact[1].double()
    keep = steps.detach().abs() <= high + 20 * noise  # beyond, the formula itself has no digits left
    odds, grid = mixture(*exact[:2], low, high, noise, exact[2])
    (torch.where(keep, (odds * grid).sum(0), 0.0) * upstream).sum().backward()
    assert torch.isfinite(weight.grad).all()
    tolerance = {"rtol": 2e-3, "atol": 2e-3}
    torch.testing.assert_close(weight.grad[keep], exact[0].grad[keep], **tolerance)
    if keep.all():
        torch.testing.assert_close(mask.grad, exact[2].grad, **tolerance)


def test_weights_gather_at_grid_points() -> None:
    """With little noise a gradient moves a weight between two points more than three times as far as one at a point."""
    step = 0.5
    weight = (step * torch.tensor([[0.0, 0.5, 1.0, -0.5, -1.0]])).requires_grad_()
    one = quantizer(weight, noise=0.15)
    with torch.no_grad():
        one.step.fill_(step)
    one.value(weight, 4).sum().backward()
    at, between = weight.grad[0, [0, 2, 4]], weight.grad[0, [1, 3]]
    assert between.min() > 1
    assert at.max() < 0.3 * between.min()


def test_the_mode_counts_the_chosen_point_alone() -> None:
    """Its odds grow towards the point from either side, so that the sign of the gradient turns there."""
    weight = torch.tensor([[0.9, 1.1]]).requires_grad_()
    one = quantizer(weight, estimator="mode")
    with torch.no_grad():
        one.step.fill_(1.0)
    one.value(weight, 3).sum().backward()
    assert weight.grad[0, 0] > 0 > weight.grad[0, 1]


def test_dropped_points_are_not_chosen() -> None:
    """Where a mask leaves the grid of two bits, the value is that grid's; and a width without a step borrows one."""
    weight = torch.linspace(-3, 3, 24).reshape(2, 12)
    one = quantizer(weight)
    with torch.no_grad():
        one.step.fill_(0.6)
    narrow = one.value(weight, 2)
    one.gate = lambda low, high: torch.tensor([-2 <= k <= 1 for k in range(low, high + 1)]).float()
    torch.testing.assert_close(one.value(weight, 4), narrow, rtol=0, atol=0)
    wide = CpqOptions().quantizer(weight, 127, (4,))
    with torch.no_grad():
        wide.step.fill_(0.6)
    wide.gate = lambda low, high: None
    torch.testing.assert_close(wide(weight, 2).value, narrow, rtol=0, atol=0)


def test_bad_choices_are_refused() -> None:
    """In one sentence: what, given, allowed."""
    with pytest.raises(UsageError, match="--cpq-step is 'row'; allowed: layer, channel"):
        CpqOptions("row")
    with pytest.raises(UsageError, match=r"--cpq-noise is 0; allowed: 0\.05 to 2 steps"):
        CpqOptions(noise=0)
    weight = torch.randn(4, 9)
    with pytest.raises(UsageError, match="has learned no step for 3 bits, it has 2, 4; train that width"):
        CpqOptions().quantizer(weight, 127, (2, 4))(weight, 3)
    options = CpqOptions("channel", 0.5, "mode")
    assert family_options(options.to_dict()) == options

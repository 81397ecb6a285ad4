"""Learned steps: the gradient of the paper, integers that kernels hold, and codes that give these integers again."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from emqdeploy.errors import UsageError
from emqdeploy.format.child import parse_children
from emqdeploy.format.grid import INTEGER
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.families.lsq import LsqOptions, LsqQuantizer
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.training.optimizers import parameter_groups

from ..deployed import assert_deployed

WIDTHS = tuple(range(2, 9))


def quantizer(weight: torch.Tensor, limit: int = 127, step: str = "layer") -> LsqQuantizer:
    """The quantizer of a layer that has a step for every width."""
    return LsqOptions(step).quantizer(weight, limit, WIDTHS)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(WIDTHS), st.sampled_from([127, 64]), st.sampled_from(["layer", "channel"])
)
def test_what_training_sees_is_what_is_deployed(seed: int, bits: int, limit: int, step: str) -> None:
    """The value is ``scale * z``, every ``z`` keeps the limit, and the grid makes it of the stored code."""
    weight = torch.randn(5, 12, generator=torch.Generator().manual_seed(seed))
    assert_deployed(quantizer(weight, limit, step), weight, bits, limit, INTEGER)


@pytest.mark.parametrize("step", ["layer", "channel"])
def test_steps_start_from_the_weights_that_there_are(step: str) -> None:
    """Where the float network learned first, its steps are those of what it became, not of what it was."""
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    one = quantizer(weight, step=step)
    one.start_from(3 * weight)
    assert torch.equal(one.step, quantizer(3 * weight, step=step).step)
    assert not torch.allclose(one.step, quantizer(weight, step=step).step)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_the_gradient_of_the_step_is_that_of_the_paper(bits: int) -> None:
    """Equation 3, scaled by ``1 / sqrt(N Q_P)``; weights outside of the range have none."""
    weight = torch.randn(4, 9, generator=torch.Generator().manual_seed(0)).requires_grad_()
    one = quantizer(weight)
    with torch.no_grad():
        one.step.mul_(0.3)
    upstream = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    one(weight, bits).value.backward(upstream)
    step = one.step[WIDTHS.index(bits)].detach()
    low, high = -(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1
    ratio = weight.detach() / step
    slope = torch.where(ratio <= low, low, torch.where(ratio >= high, high, ratio.round() - ratio))
    expected = (upstream * slope).sum() / math.sqrt(weight.numel() * high)
    assert one.step.grad is not None
    torch.testing.assert_close(one.step.grad[WIDTHS.index(bits)], expected.reshape(1))
    assert (one.step.grad != 0).sum() == 1
    torch.testing.assert_close(weight.grad, upstream * ((ratio > low) & (ratio < high)))


def test_steps_start_as_the_paper_says() -> None:
    """``2 E|w| / sqrt(Q_P)``, section 2.1."""
    weight = torch.randn(4, 9)
    step = quantizer(weight, step="channel").step
    torch.testing.assert_close(step[0], 2 * weight.abs().mean(1))
    torch.testing.assert_close(step[-1], 2 * weight.abs().mean(1) / math.sqrt(127))


def test_a_width_without_a_step_is_refused() -> None:
    """Nothing between two learned steps is a step."""
    weight = torch.randn(4, 9)
    with pytest.raises(UsageError, match="has learned no step for 3 bits, it has 2, 4; train that width"):
        LsqOptions().quantizer(weight, 127, (2, 4))(weight, 3)
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, parse_children("1,4"), (), InsertionConfig(LsqOptions()))
    with pytest.raises(UsageError, match=r"1-bit weights, which quantizer 'lsq' cannot make; allowed: 2\.\.8"):
        spec.build()


def test_steps_are_parameters_that_travel_with_the_weights() -> None:
    """They are trained without decay and kept beside the float weights."""
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, parse_children("2,4"), (), InsertionConfig(LsqOptions()))
    network = spec.build()
    steps = [layer.quantizer.step for layer in network.layers.values() if not layer.pinned]
    groups = parameter_groups(network, 0.1)
    decayed, kept = (
        {id(p) for group in groups if bool(group["weight_decay"]) is decay for p in group["params"]}
        for decay in (True, False)
    )
    assert len(steps) == len(network.switchable)
    assert all(isinstance(step, nn.Parameter) for step in steps)
    assert {id(step) for step in steps} <= kept
    assert decayed
    assert sum(name.endswith("quantizer.step") for name in network.float_state()) == len(steps)
    assert family_options(LsqOptions("channel").to_dict()) == LsqOptions("channel")

"""Vertical layers: one code read as deep as a width asks, a scale for every width, the same numbers everywhere."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.format.grid import INTEGER, truncate
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.families.vertical import VerticalOptions, VerticalQuantizer

from ..deployed import assert_deployed, assert_exact_in_runtimes

WIDTHS = (2, 4, 6, 8)


def quantizer(weight: torch.Tensor, limit: int = 127, step: str = "layer") -> VerticalQuantizer:
    """The quantizer of a layer, whose scales are not what they were at first."""
    one = VerticalOptions(step).quantizer(weight, limit, WIDTHS)
    with torch.no_grad():
        one.step.mul_(torch.linspace(0.5, 1.3, one.step.numel()).reshape(one.step.shape))
    return one


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    """Weights as a layer has them."""
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31), st.sampled_from(WIDTHS), st.sampled_from([127, 64]), st.sampled_from(["layer", "channel"])
)
def test_what_training_sees_is_what_is_deployed(seed: int, bits: int, limit: int, step: str) -> None:
    """The value is ``scale * z``, every ``z`` keeps the limit, and the grid makes it of the stored code."""
    weight = gaussian(seed, 5, 12)
    assert_deployed(quantizer(weight, limit, step), weight, bits, limit, INTEGER)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(WIDTHS[:-1]))
def test_every_code_is_a_prefix(seed: int, bits: int) -> None:
    """One stored code serves all widths, and each bit less is the floor of half."""
    weight = gaussian(seed, 8, 40)
    one = quantizer(weight)
    wide = one(weight, 8).codes
    assert torch.equal(one(weight, bits).codes, wide)
    prefix, wider = (truncate(wide.numpy().astype(np.uint8), width).astype(int) for width in (bits, bits + 1))
    np.testing.assert_array_equal(prefix, wider // 2)


def test_all_scales_stand_for_the_same_steps_at_first() -> None:
    """Until they learn: a bit less is twice the step, and codes reach three deviations."""
    weight = gaussian(0, 6, 90)
    one = VerticalOptions("channel").quantizer(weight, 127, WIDTHS)
    one.start_from(3 * weight)
    reach = 3 * (weight.mean(1).abs() + 3 * weight.std(1, correction=0))
    torch.testing.assert_close(one.step[-1], reach / 128)
    torch.testing.assert_close(one.step[0], one.step[-1] * 2**6)


def test_each_scale_learns_from_its_own_width() -> None:
    """By the codes that it is multiplied with, and weights that the widest range cuts learn nothing."""
    weight = gaussian(0, 4, 9).requires_grad_()
    one = VerticalOptions().quantizer(weight.detach(), 127, WIDTHS)
    with torch.no_grad():
        one.step.mul_(0.2)
    upstream = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    one.value(weight, 4).backward(upstream)
    steps = weight.detach() / one.step[-1].detach()
    codes = (steps.round().clamp(-127, 127) / 16).floor()
    assert one.step.grad is not None
    torch.testing.assert_close(one.step.grad[1], ((upstream * codes).sum() / math.sqrt(36 * 7)).reshape(1))
    assert not one.step.grad[[0, 2, 3]].any()
    torch.testing.assert_close(weight.grad, upstream * ((steps > -127) & (steps < 127)))


def test_runtimes_compute_it_exactly() -> None:
    """One file serves all widths, and no code of onnxruntime or of the native kernels differs from the reference."""
    assert_exact_in_runtimes(VerticalOptions(), "2,4,8")


@pytest.mark.parametrize("step", ["layer", "channel"])
def test_options(step: str) -> None:
    """They survive a file, codes nest, and a width that was not trained has no scale."""
    options = VerticalOptions(step)
    assert family_options(options.to_dict()) == options
    assert options.nested
    assert not options.between
    assert options.by_layer() == VerticalOptions("layer")

"""Double rounding: one scale for all widths, codes of codes, and a quarter of the error that a plain shift makes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.grid import INTEGER, truncate
from emqdeploy.quant.families.base import family_options
from emqdeploy.quant.families.double_rounding import DoubleRoundingOptions, DoubleRoundingQuantizer

from ..deployed import assert_deployed, assert_exact_in_runtimes

WIDTHS = range(2, 9)


def quantizer(weight: torch.Tensor, limit: int = 127, **options: str) -> DoubleRoundingQuantizer:
    """The quantizer of a layer."""
    return DoubleRoundingOptions(**options).quantizer(weight, limit, tuple(WIDTHS))


def gaussian(seed: int, *shape: int) -> torch.Tensor:
    """Weights as a layer has them."""
    return 0.05 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 2**31),
    st.sampled_from(WIDTHS),
    st.sampled_from([127, 64]),
    st.sampled_from(["layer", "channel"]),
    st.sampled_from(["round", "floor"]),
)
def test_what_training_sees_is_what_is_deployed(seed: int, bits: int, limit: int, step: str, narrowing: str) -> None:
    """The value is ``scale * z``, every ``z`` keeps the limit, and the grid makes it of the stored code."""
    weight = gaussian(seed, 5, 12)
    assert_deployed(quantizer(weight, limit, step=step, narrowing=narrowing), weight, bits, limit, INTEGER)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from(WIDTHS))
def test_narrow_codes_are_made_of_the_wide_ones(seed: int, bits: int) -> None:
    """Whoever holds the 8-bit codes and the scale needs no weight; rounded codes are no prefixes, floored ones are."""
    weight = gaussian(seed, 8, 40)
    wide, narrow = (quantizer(weight)(weight, width).codes for width in (8, bits))
    spread = 2 ** (8 - bits)
    again = ((wide - 128) / spread).round().clamp(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    torch.testing.assert_close((narrow - 128) / spread, again, rtol=0, atol=0)
    one = quantizer(weight, narrowing="floor")
    assert torch.equal(one(weight, bits).codes, one(weight, 8).codes)
    value = one(weight, bits).value / one(weight, bits).scale[:, None]
    prefix = truncate(one(weight, 8).codes.numpy().astype(np.uint8), bits).astype(int) - 2 ** (bits - 1)
    np.testing.assert_array_equal(value.detach().numpy().round().astype(int), prefix)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**31))
def test_two_bits_have_about_a_quarter_of_the_error_of_a_shift(seed: int) -> None:
    """At the same scale, and the shift moves the mean by half a step, which rounding does not.

    The scale holds all weights here: a clipped weight has one error under both rules.
    """
    weight = gaussian(seed, 64, 576)
    error, bias = {}, {}
    for narrowing in ("round", "floor"):
        one = quantizer(weight, narrowing=narrowing)
        with torch.no_grad():
            one.step.fill_(float(weight.abs().max()) / 127)
            quantized = one(weight, 2)
            error[narrowing] = float((quantized.value - weight).square().mean())
            bias[narrowing] = float((quantized.value - weight).mean() / quantized.scale[0])
    assert 3.3 < error["floor"] / error["round"] < 4.7
    assert bias["floor"] == pytest.approx(-0.5, abs=0.02)
    assert bias["round"] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("gradient", ["even", "authors"])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_gradient_of_the_scale(bits: int, gradient: str) -> None:
    """LSQ's for the width in use, perhaps by steps of the 8-bit code; weights outside of its range have none."""
    weight = gaussian(0, 4, 9).requires_grad_()
    one = quantizer(weight, gradient=gradient)
    with torch.no_grad():
        one.step.mul_(0.2)
    upstream = torch.randn(4, 9, generator=torch.Generator().manual_seed(1))
    one.value(weight, bits).backward(upstream)
    low, high = -(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1
    wide = (weight.detach() / one.step.detach()).round().clamp(-127, 127)
    code = (wide / 2 ** (8 - bits)).round().clamp(low, high)
    ratio = weight.detach() / (one.step.detach() * 2 ** (8 - bits))
    slope = torch.where((ratio > low) & (ratio < high), code - ratio, code)
    expected = (upstream * slope).sum() / math.sqrt(weight.numel() * high)
    expected = expected / 2 ** (8 - bits) if gradient == "even" else expected
    assert one.step.grad is not None
    torch.testing.assert_close(one.step.grad, expected.reshape(1))
    torch.testing.assert_close(weight.grad, upstream * ((ratio > low) & (ratio < high)))


def test_the_scale_starts_at_three_deviations() -> None:
    """Of the layer, or of every channel."""
    weight = gaussian(3, 6, 90)
    torch.testing.assert_close(quantizer(weight).step, (weight.mean().abs() + 3 * weight.std(correction=0))[None] / 128)
    rows = (weight.mean(1).abs() + 3 * weight.std(1, correction=0)) / 128
    one = quantizer(weight, step="channel")
    torch.testing.assert_close(one.step, rows)
    one.start_from(2 * weight)
    torch.testing.assert_close(one.step, 2 * rows)


@pytest.mark.parametrize(("narrowing", "bits"), [("round", "3,3a4"), ("floor", "2,4,8")])
def test_runtimes_compute_it_exactly(narrowing: str, bits: str) -> None:
    """No code of onnxruntime or of the native kernels differs from the reference; prefixes serve several widths."""
    assert_exact_in_runtimes(DoubleRoundingOptions(narrowing=narrowing), bits)


def test_options() -> None:
    """They survive a file, say whether codes nest, and refuse what is unknown."""
    options = DoubleRoundingOptions(step="channel", narrowing="floor")
    assert family_options(options.to_dict()) == options
    assert (options.nested, DoubleRoundingOptions().nested) == (True, False)
    assert options.by_layer() == DoubleRoundingOptions(step="layer", narrowing="floor")
    with pytest.raises(UsageError, match="unknown narrowing 'ceil'; allowed: round, floor"):
        DoubleRoundingOptions(narrowing="ceil")

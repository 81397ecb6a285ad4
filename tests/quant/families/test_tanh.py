"""The family of tanh codes: statistics restored, values on the integer grid, means kept, gradients finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format import grid
from emqdeploy.format.levels import largest_weight
from emqdeploy.quant.families.base import PinnedQuantizer, QuantizedWeight
from emqdeploy.quant.families.tanh import CORRECTIONS, PARTITIONS, TanhOptions, TanhQuantizer, snap

from ...conftest import ALL_BITS

LIMITS = [largest_weight(signed) for signed in (False, True)]
FAN_IN = 4608  # 512 channels of 3 x 3, the widest layer of ResNet-18


def draw(distribution: str, channels: int, fan_in: int, seed: int = 0) -> Tensor:
    """Weights ``(channels, fan_in)`` of a typical size, from one family."""
    generator = torch.Generator().manual_seed(seed)
    normal = torch.randn(channels, fan_in, generator=generator)
    spread = (2 / fan_in) ** 0.5
    means = torch.randn(channels, 1, generator=generator)
    heavy = normal * torch.randn(channels, fan_in, generator=generator).abs().pow(1.5)
    outlier = normal.clone()
    outlier[:, 0] = 40
    families = {
        "normal": normal,
        "uniform": torch.rand(channels, fan_in, generator=generator) * 3.4 - 1.7,
        "laplace-like": heavy,
        "means": normal + 0.5 * means,
        "large means": normal + 3 * means,
        "unequal channels": normal * torch.logspace(-2, 0.5, channels)[:, None],
        "one outlier each": outlier,
        "sparse": normal * (torch.rand(channels, fan_in, generator=generator) < 0.1),
    }
    return families[distribution] * spread


DISTRIBUTIONS = (
    *("normal", "uniform", "laplace-like", "means", "large means"),
    *("unequal channels", "one outlier each", "sparse"),
)


def odd_values(quantized: QuantizedWeight) -> Tensor:
    """``z = m u + k`` from what is stored, ``(C, K)``."""
    used = quantized.bits[:, None]
    levels = 2.0**used - 1
    odd = 2 * torch.floor(quantized.codes / 2.0 ** (8 - used)) - levels
    return quantized.slope[:, None] * odd + quantized.offset[:, None]


# --- the forward value --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("group", ["channel", "layer"])
@pytest.mark.parametrize("distribution", ["normal", "large means", "one outlier each"])
def test_the_forward_value_is_what_is_deployed(limit: int, bits: int, group: str, distribution: str) -> None:
    """Training sees exactly ``scale * z``, and every ``z`` keeps the limit, also where 8 bits do not fit."""
    weights = draw(distribution, 8, 144)
    quantized = TanhQuantizer(TanhOptions(group=group), limit)(weights, bits)
    integers = odd_values(quantized)
    assert integers.abs().max() <= limit
    torch.testing.assert_close(quantized.value, quantized.scale[:, None] * integers, rtol=0, atol=0)
    stored = grid.Grid(
        quantized.scale.numpy(),
        quantized.slope.numpy().astype(np.int16),
        quantized.offset.numpy().astype(np.int16),
        quantized.bits.numpy().astype(np.uint8),
    )
    codes = quantized.codes.numpy().astype(np.uint8)
    # Two libraries may round a hyperbolic tangent differently in its last bit.
    steps = np.abs(grid.encode(weights.numpy()).astype(int) - codes)
    assert steps.max() <= 1
    assert steps.mean() < 0.01
    np.testing.assert_array_equal(stored.integers(codes), integers.numpy())


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("bits", ALL_BITS)
@pytest.mark.parametrize("partition", list(PARTITIONS))
def test_integers_keep_the_limit_in_every_partition(limit: int, bits: int, partition: str) -> None:
    """Rounded codes do not nest, so the width that fits has to be found from their own integers."""
    for seed in range(5):
        weights = draw("unequal channels", 64, 40, seed)
        quantized = TanhQuantizer(TanhOptions(partition=partition), limit)(weights, bits)
        integers = quantized.value / quantized.scale[:, None]
        assert integers.abs().max() <= limit + 1e-3


def test_eight_bits_fall_back_where_they_do_not_fit() -> None:
    """A channel that uses the whole range takes 7 bits, or 6 behind a signed tensor; a narrow one keeps more."""
    weights = torch.stack([torch.linspace(-1, 1, 64), torch.linspace(-0.3, 0.3, 64)])
    used = [TanhQuantizer(TanhOptions(), limit)(weights, 8).bits.tolist() for limit in LIMITS]
    assert used == [[7, 8], [6, 7]]
    by_layer = TanhQuantizer(TanhOptions(group="layer"), 127)(weights, 8).bits.tolist()
    assert by_layer == [7, 7]


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 12)), elements=st.floats(-4, 4, width=32)))
def test_usable_bits_agree_with_numpy(weights: np.ndarray) -> None:
    """The device's rule and the trainer's are one."""
    codes = TanhQuantizer(TanhOptions(), 127)(torch.from_numpy(weights), 8).codes.numpy().astype(np.uint8)
    for limit in LIMITS:
        quantizer = TanhQuantizer(TanhOptions(), limit)
        for bits in ALL_BITS:
            used = quantizer(torch.from_numpy(weights), bits).bits.numpy()
            np.testing.assert_array_equal(used, grid.usable_bits(codes, bits, limit))


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(LIMITS))
def test_snap_agrees_with_numpy(seed: int, limit: int) -> None:
    """The torch mirror finds the same grid as `grid.snap`, bit for bit in float64."""
    random = np.random.default_rng(seed)
    largest = random.integers(1, limit + 1, 16)
    gain = random.uniform(0, 1, 16) * (random.random(16) > 0.2)
    origin = random.normal(0, 2, 16)
    expected = grid.snap(largest, gain, origin, limit)
    arrays = (torch.from_numpy(array) for array in (largest.astype(np.float64), gain, origin))
    for ours, theirs in zip(snap(*arrays, limit), expected, strict=True):
        np.testing.assert_array_equal(ours.numpy(), theirs)


def test_an_all_zero_layer_gives_zeros() -> None:
    """A pruned layer stays silent at every width."""
    for correction in CORRECTIONS:
        quantizer = TanhQuantizer(TanhOptions(correction=correction), 127)
        for bits in ALL_BITS:
            assert not quantizer(torch.zeros(3, 5), bits).value.any()


def test_a_constant_channel_is_its_mean() -> None:
    """At 1 bit most small channels have one code; their weights are the mean, at full scale."""
    weights = torch.stack([torch.full((9,), 0.3), torch.full((9,), -0.2), torch.linspace(-1, 1, 9)])
    quantized = TanhQuantizer(TanhOptions(), 127)(weights, 1)
    torch.testing.assert_close(quantized.value[:2], weights[:2])
    assert quantized.offset[:2].tolist() == [127, -127]
    assert quantized.slope[:2].tolist() == [0, 0]


# --- corrections --------------------------------------------------------------------------------------------------


def corrected(weights: Tensor, quantized: Tensor, config: TanhOptions) -> Tensor:
    """The corrected weights before they are snapped to integers."""
    reference = weights if config.reference == "w" else torch.tanh(weights)
    gain, origin = CORRECTIONS[config.correction](reference, quantized, config)
    return gain * quantized + origin


@pytest.mark.parametrize("bits", [1, 2, 4, 8])
@pytest.mark.parametrize("group", ["channel", "layer"])
@pytest.mark.parametrize("reference", ["w", "tanh"])
def test_exact_correction_restores_mean_and_norm(bits: int, group: str, reference: str) -> None:
    """One normalization serves all widths because these two statistics do not depend on the width."""
    weights = draw("means", 6, 200).double()
    unit = torch.tanh(weights) / (2 * torch.tanh(weights).abs().max()) + 0.5
    levels = torch.tensor(2.0**bits - 1)
    quantized = (2 * PARTITIONS["floor"](unit, levels) - levels) / levels
    result = corrected(weights, quantized, TanhOptions(group=group, reference=reference))
    target = weights if reference == "w" else torch.tanh(weights)
    dims = (1,) if group == "channel" else (0, 1)
    torch.testing.assert_close(result.mean(dims), target.mean(dims))
    torch.testing.assert_close(result.std(dims), target.std(dims))


def test_banner_correction_is_the_printed_formula() -> None:
    """Equations 12 and 13 of Banner et al. 2019 to the letter: the mean is added before the norm is restored."""
    weights, quantized = draw("means", 4, 50), torch.sign(draw("normal", 4, 50, seed=1))
    result = corrected(weights, quantized, TanhOptions(correction="banner"))
    for row, q, w in zip(result, quantized, weights, strict=True):
        ratio = (w - w.mean()).norm() / (q - q.mean()).norm()
        torch.testing.assert_close(row, ratio * (q + (w.mean() - q.mean())))


def test_no_correction_is_dorefas_scale() -> None:
    """The baseline: one scale ``E|w|`` for the layer, no offset."""
    weights, quantized = draw("means", 4, 50), torch.sign(draw("normal", 4, 50, seed=1))
    result = corrected(weights, quantized, TanhOptions(correction="none"))
    torch.testing.assert_close(result, weights.abs().mean() * quantized)


def test_detached_norms_carry_no_gradient() -> None:
    """``detach_norm`` makes the ratio a constant: the gradient is then the ratio itself, no more."""
    weights = draw("normal", 1, 20).requires_grad_()
    quantized = torch.sign(weights.detach())
    gains = [CORRECTIONS["exact"](weights, quantized, TanhOptions(detach_norm=detach))[0] for detach in (True, False)]
    assert not gains[0].requires_grad
    assert gains[1].requires_grad
    torch.testing.assert_close(gains[0], gains[1].detach())


@pytest.mark.parametrize("correction", list(CORRECTIONS))
@pytest.mark.parametrize("group", ["channel", "layer"])
@pytest.mark.parametrize(
    "weights",
    [
        torch.zeros(3, 4),
        torch.full((3, 4), 0.7),
        torch.tensor([[0.5], [-0.3], [0.0]]),
        torch.tensor([[1e-20, -1e-20], [0.1, 0.1]]),
        torch.tensor([[100.0, -100.0], [0.0, 0.0]]),
        torch.tensor([[0.25]]),
    ],
)
def test_gradients_are_finite_everywhere(correction: str, group: str, weights: Tensor) -> None:
    """Dead, constant, single and saturated weights must not spoil a run with NaN."""
    weights = weights.clone().requires_grad_()
    for bits in ALL_BITS:
        for detach in (True, False):
            config = TanhOptions(correction=correction, group=group, detach_norm=detach)
            value = TanhQuantizer(config, 127)(weights, bits).value
            assert value.isfinite().all()
            (gradient,) = torch.autograd.grad(
                (value * torch.arange(1.0, 1 + value.numel()).view_as(value)).sum(), weights
            )
            assert gradient.isfinite().all()


def test_gradients_reach_the_weights() -> None:
    """Straight through the rounding: the gradient is that of the smooth map, not zero."""
    weights = draw("normal", 4, 50).requires_grad_()
    TanhQuantizer(TanhOptions(), 127)(weights, 2).value.square().sum().backward()
    assert weights.grad is not None
    assert (weights.grad != 0).float().mean() > 0.9


@pytest.mark.parametrize("change", [{"partition": "x"}, {"correction": "x"}, {"group": "x"}, {"reference": "x"}])
def test_wrong_choices_are_named(change: dict[str, Any]) -> None:
    """A typing error lists what is allowed."""
    with pytest.raises(UsageError, match=r"unknown .* 'x'; allowed: "):
        TanhOptions(**change)


# --- the mean of the outputs --------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_the_output_mean_hardly_moves(limit: int, distribution: str) -> None:
    """At fan-in 4608 no width shifts a channel's output mean by more than a tenth of its standard deviation.

    The shift is that of the deployed layer, integer weights and the bias that carries what rounding ``k`` left, against
    the float layer, for independent inputs as they leave a ReLU. A shift would break the shared normalization.
    """
    weights = draw(distribution, 24, FAN_IN).double()
    mean = (1 / (2 * np.pi)) ** 0.5  # of ReLU(N(0, 1)); its variance is 1/2 - mean^2
    spread = (0.5 - mean**2) ** 0.5
    for bits in ALL_BITS:
        quantized = TanhQuantizer(TanhOptions(), limit)(weights.float(), bits)
        value = quantized.value.double()
        bias = quantized.residual.double() * FAN_IN * mean
        shift = (value.sum(1) - weights.sum(1)) * mean + bias
        std = weights.norm(dim=1) * spread
        assert (shift.abs() / std).max() <= 0.1, f"{bits} bits"


# --- pinned layers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", LIMITS)
def test_pinned_weights_are_plain_int8(limit: int) -> None:
    """A layer that never switches has half a step of error at most, at every width the same."""
    weights = draw("unequal channels", 16, 30).requires_grad_()
    quantizer = PinnedQuantizer(limit)
    one, eight = quantizer(weights, 1), quantizer(weights, 8)
    torch.testing.assert_close(one.value, eight.value, rtol=0, atol=0)
    assert one.codes.abs().max() == limit
    assert ((one.value - weights).abs() <= one.scale[:, None] * 0.5001).all()
    one.value.sum().backward()
    torch.testing.assert_close(weights.grad, torch.ones_like(weights))
    assert not quantizer(torch.zeros(2, 3), 8).value.any()

"""Activation quantization: levels, the gradient of the clip, unseen widths, and the float network at 32 bits."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from emqdeploy.format.child import FLOAT, Child, parse_children
from emqdeploy.quant.activations import (
    CLIP_GRADIENT_SHARE,
    ActivationQuantizer,
    element_by_element,
    in_one_kernel,
)
from emqdeploy.quant.readers import Readers

READ = Readers(("conv",))


def site(signed: bool, setting: int | str = 8, clip: float = 1.5, **options: float) -> ActivationQuantizer:
    """A site whose clip was learned for 2, 4 and 8 bits."""
    quantizer = ActivationQuantizer(signed, READ, parse_children("2,4,8", setting), shares=False, **options)
    with torch.no_grad():
        quantizer.log_clip.fill_(math.log(clip))
    return quantizer


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [2, 3, 4, 6, 7, 8])
def test_levels(signed: bool, bits: int) -> None:
    """A tensor takes the levels that the report prints, and none beyond the clip."""
    quantizer = site(signed, bits)
    quantizer.use(Child.of(4, bits))
    values = quantizer(torch.linspace(-3, 3, 4001)).unique()
    codes = quantizer.code_range(Child.of(4, bits))
    assert len(values) == codes.levels == (2**bits if signed or bits < 8 else 128)
    assert values.max().item() == pytest.approx(1.5)
    assert values.min().item() == pytest.approx(-1.5 * 2 ** (bits - 1) / codes.steps if signed else 0)


def learned_step(x: Tensor, log_clip: Tensor, low: int, high: int, grad_scale: float) -> Tensor:
    """LSQ written with autograd: straight-through rounding, and the gradient of the step scaled.

    As in torch's own fake quantization, a value is inside when its rounded code is.
    """
    scale = log_clip.exp() / high
    scaled = scale.detach() + (scale - scale.detach()) * grad_scale
    steps = x / scaled
    rounded = steps + (steps.round() - steps).detach()
    inside = (rounded >= low) & (rounded <= high)
    return torch.where(inside, rounded, rounded.detach().clamp(low, high)) * scaled


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**31), st.booleans(), st.sampled_from([2, 3, 4, 8]), st.floats(0.1, 4))
def test_the_gradient_is_that_of_lsq(seed: int, signed: bool, bits: int, clip: float) -> None:
    """The two dot products of the fast backward pass equal what autograd derives from the definition.

    The input's gradient is exact; the clip's is that of the first eighth of the batch, eight times.
    """
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, generator=generator, requires_grad=True)
    upstream = torch.randn(64, generator=generator)
    quantizer = site(signed, bits, clip)
    child = Child.of(4, bits)
    quantizer.use(child)
    quantizer(x).backward(upstream)
    codes = quantizer.code_range(child)
    low, high = codes.low - codes.zero_point, codes.steps
    y = x.detach().clone().requires_grad_()
    log_clip = quantizer.log_clip[1:2].detach().clone().requires_grad_()
    learned_step(y, log_clip.detach(), low, high, 1.0).backward(upstream)
    share = 64 // CLIP_GRADIENT_SHARE
    grad_scale = CLIP_GRADIENT_SHARE / math.sqrt(64 * high)
    learned_step(x.detach()[:share], log_clip, low, high, grad_scale).backward(upstream[:share])
    assert quantizer.log_clip.grad is not None
    torch.testing.assert_close(quantizer.log_clip.grad[1:2], log_clip.grad, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_both_ways_to_quantize_agree(dtype: torch.dtype) -> None:
    """A GPU takes torch's fused operator, which the CPU has as well: values, steps and what is inside are the same."""
    x = torch.randn(16, 3, 5, 5, generator=torch.Generator().manual_seed(0)).to(dtype)
    scale = torch.tensor(0.11)
    one, other = (way(x, scale, -8, 7) for way in (element_by_element, in_one_kernel))
    same = (one[0] - other[0]).abs() < 0.01
    # In bfloat16 the fused operator rounds a step once, the others twice.
    assert same.all() if dtype == torch.float32 else same.float().mean() > 0.97
    torch.testing.assert_close(one[1][:2].float(), other[1].float(), rtol=0.01, atol=0)
    assert other[0].dtype == dtype
    assert other[2] is not None
    inside = (one[1] > -8.5) & (one[1] < 7.5)
    assert (inside == other[2]).float().mean() > (0.99 if dtype == torch.bfloat16 else 0.9999)


@pytest.mark.parametrize(("batch", "parts"), [(64, 4), (128, 1), (24, 2)])
def test_a_batch_in_parts_gives_the_same_gradient_of_the_clip(batch: int, parts: int) -> None:
    """Ghost batches and processes add up to one batch; a batch of another size learns at the same pace."""
    image, upstream = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))

    def gradient(batch: int, parts: int) -> float:
        quantizer = site(True, 4)
        quantizer.use(Child.of(4, 4))
        for part in image.repeat(batch, 1, 1, 1).chunk(parts):
            quantizer(part).backward(upstream.expand_as(part) / batch)
        assert quantizer.log_clip.grad is not None
        return float(quantizer.log_clip.grad[1])

    assert gradient(batch, parts) == pytest.approx(gradient(64, 1), rel=1e-4)


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_bfloat16_tensor_stays_one(bits: int) -> None:
    """What reads it computes in bfloat16 too; values and gradients are those of float32 but for the rounding."""
    generator = torch.Generator().manual_seed(0)
    images, upstream = (torch.randn(64, 8, 6, 6, generator=generator).bfloat16() for _ in range(2))
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        quantizer = site(True, bits)
        quantizer.use(Child.of(4, bits))
        x = images.detach().to(dtype).clone().requires_grad_()
        output = quantizer(x)
        output.backward(upstream.to(dtype))
        assert x.grad is not None
        assert output.dtype == x.grad.dtype == dtype
        assert quantizer.log_clip.grad is not None
        found.append((output.detach().float(), x.grad.float(), quantizer.log_clip.grad[1]))
    (low, low_grad, low_slope), (high, high_grad, high_slope) = found
    codes = quantizer.code_range(Child.of(4, bits))
    step = quantizer.scale(Child.of(4, bits))
    # Where a code has seven bits, a value between two of them may be rounded to either.
    assert ((low - high).abs() <= step * 1.1 + low.abs() / 256).all()
    assert ((low - high).abs() > step / 2).float().mean() < 0.002 * codes.levels
    assert (low_grad != high_grad).float().mean() < 0.01
    torch.testing.assert_close(low_slope, high_slope, rtol=0.1, atol=1e-3)


@pytest.mark.parametrize("setting", ["same", 8])
def test_every_trained_child_has_a_clip_and_the_others_interpolate(setting: int | str) -> None:
    """Only the clip in use learns; one that was never trained lies between its neighbours on a logarithmic scale."""
    quantizer = site(False, setting)
    with torch.no_grad():
        quantizer.log_clip.copy_(torch.tensor([1.0, 2.0, 4.0]).log())
    assert [child.bits for child in quantizer.clips()] == [2, 4, 8]

    def clip(bits: int) -> float:
        child = Child.of(bits, setting)
        return quantizer.scale(child) * quantizer.code_range(child).steps

    assert clip(3) == pytest.approx(math.sqrt(2))
    assert clip(6) == pytest.approx(math.sqrt(8))
    assert clip(1) == pytest.approx(clip(2)) == pytest.approx(1)
    quantizer.use(Child.of(4, setting))
    quantizer(torch.rand(10)).sum().backward()
    assert quantizer.log_clip.grad is not None
    assert (quantizer.log_clip.grad != 0).tolist() == [False, True, False]
    quantizer.use(Child.of(3, setting))
    assert len(quantizer(torch.linspace(0, 2, 1000)).unique()) == (8 if setting == "same" else 128)


def test_children_of_one_activation_width_share_a_clip() -> None:
    """By default: the clip in use learns from all of them, trained or drawn, and another width has its own."""
    quantizer = ActivationQuantizer(False, READ, parse_children("2,4,8,4a2"))
    assert quantizer.log_clip.shape == (2,)
    quantizer.set_clip(Child.of(2), 3.0)
    assert list(quantizer.clips().values()) == pytest.approx([3, 3, 3, 1])
    for child in (Child.of(8), Child.of(5), Child("drawn", 3, 8)):
        assert quantizer.scale(child) == pytest.approx(3 / 127)
        quantizer.log_clip.grad = None
        quantizer.use(child)
        quantizer(torch.rand(10)).sum().backward()
        assert quantizer.log_clip.grad is not None
        assert (quantizer.log_clip.grad != 0).tolist() == [True, False]


def test_children_of_one_width_may_differ_in_their_activations() -> None:
    """4 bits with 8-bit and with 2-bit activations are two children, each with its own clip."""
    quantizer = ActivationQuantizer(False, READ, parse_children("4,4a2"), shares=False)
    wide, narrow = quantizer.trained
    quantizer.set_clip(wide, 3.0)
    quantizer.set_clip(narrow, 1.0)
    assert quantizer.scale(wide) == pytest.approx(3 / 127)
    assert quantizer.scale(narrow) == pytest.approx(1 / 3)
    # An unseen one takes after those with its activation width.
    assert quantizer.scale(Child.of(2, 2)) == pytest.approx(1 / 3)
    assert quantizer.scale(Child.of(2)) == pytest.approx(3 / 127)


def test_relu6_keeps_its_ceiling() -> None:
    """A clip that grew past six would let values through that ReLU6 cuts."""
    quantizer = site(False, clip=20.0, ceiling=6.0)
    quantizer.use(Child.of(8))
    assert quantizer(torch.tensor([100.0])).item() == pytest.approx(6.0)
    assert quantizer.scale(Child.of(8)) == pytest.approx(6 / 127)
    quantizer.use(FLOAT)
    assert quantizer(torch.tensor([-1.0, 3.0, 100.0])).tolist() == [0, 3, 6]


@pytest.mark.parametrize("signed", [False, True])
def test_the_float_child_is_float(signed: bool) -> None:
    """The float child computes the activation that the site replaced, nothing else."""
    x = torch.randn(100)
    assert torch.equal(site(signed)(x), x if signed else F.relu(x))


def test_a_fixed_clip_does_not_learn() -> None:
    """The range of the input image is known."""
    quantizer = ActivationQuantizer(True, Readers(), (Child.of(4),))
    quantizer.fix_clip(2.5)
    assert quantizer.scale(Child.of(4)) == pytest.approx(2.5 / 127)
    quantizer.observing = True
    quantizer(torch.randn(100))
    assert quantizer.scale(Child.of(4)) == pytest.approx(2.5 / 127)
    assert not quantizer.log_clip.requires_grad


def test_observed_clips_cover_less_at_fewer_bits() -> None:
    """Few levels are spent on the bulk, many on the tail; a dead tensor still gets a positive clip."""
    quantizer = ActivationQuantizer(False, READ, parse_children("2,4,8", "same"))
    quantizer.observing = True
    values = torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    quantizer(values)
    clips = list(quantizer.clips().values())
    assert clips == sorted(clips)
    assert 0 < clips[0] < clips[-1] <= values.max() * 1.0001
    quantizer(torch.zeros(10))
    assert min(quantizer.clips().values()) == pytest.approx(1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("signed", [False, True])
def test_a_compiled_step_has_the_same_values_and_gradients(signed: bool) -> None:
    """Compiled, the backward pass reads another saved tensor; nothing else may differ."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 8, 5, 5, generator=generator).to(memory_format=torch.channels_last)
    results = []
    for compiled in (False, True):
        quantizer = site(signed, clip=1.0)
        quantizer.use(Child.of(4))
        x = images.clone().requires_grad_()
        forward = torch.compile(quantizer, fullgraph=True) if compiled else quantizer
        output = forward(x)
        (output * images.cos()).sum().backward()
        results.append((output.detach(), x.grad, quantizer.log_clip.grad))
    for eager, fused in zip(*results, strict=True):
        torch.testing.assert_close(fused, eager, rtol=1e-4, atol=1e-5)
    assert (results[1][1] == 0).any()

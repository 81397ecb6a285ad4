"""Normalization policies: what evaluation and export use at a bit-width is what training left for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emqdeploy.quant.norms import NORMS, MultiBitBatchNorm2d, PrivateNorm, TransitionalNorm, quantize_norm


def norm(policy: str = "shared-affine", trained: tuple[int, ...] = (2, 4)) -> MultiBitBatchNorm2d:
    """A normalization with gains of both signs."""
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        plain.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    return quantize_norm(plain, policy, trained)


def test_statistics_of_a_width_are_used_where_they_exist() -> None:
    """A trained width normalizes with its own statistics, an unseen one with the shared ones."""
    module = norm()
    module.bits = 4
    x = torch.randn(64, 3, 4, 4) * 3 + 1
    for _ in range(80):
        module(x)
    torch.testing.assert_close(module.statistics(4)[0], x.mean((0, 2, 3)), rtol=1e-2, atol=1e-2)
    assert not torch.equal(module.statistics(4)[0], torch.zeros(3))
    torch.testing.assert_close(module.statistics(5)[0], module.running_mean)
    module.bits = 2
    module(x - 5)
    assert not torch.allclose(module.statistics(2)[0], module.statistics(4)[0])


def test_shared_statistics_are_one_set() -> None:
    """Under ``shared`` a width has nothing of its own."""
    module = norm("shared")
    for bits, shift in ((2, 3.0), (4, -1.0)):
        module.bits = bits
        module(torch.randn(16, 3, 4, 4) + shift)
    assert module.statistics(2)[0] is module.statistics(4)[0] is module.running_mean
    assert not torch.equal(module.running_mean, torch.zeros(3))


@pytest.mark.parametrize("policy", list(NORMS))
@pytest.mark.parametrize("bits", [4, 32])
def test_gain_and_shift_are_the_evaluated_map(policy: str, bits: int) -> None:
    """What is folded into a layer is what evaluation computes, under every policy."""
    module = norm(policy)
    module.bits = module.source_bits = bits
    for _ in range(5):
        module(torch.randn(16, 3, 4, 4) * 2 - 1)
    module.eval()
    x = torch.randn(2, 3, 4, 4)
    gain, shift = module.gain_and_shift(bits)
    expected = x.double() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_private_widths_do_not_touch_one_another() -> None:
    """A step at 2 bits leaves gain, shift and statistics of 4 bits alone; an unseen width borrows the nearest."""
    module = norm("private")
    assert isinstance(module, PrivateNorm)
    module.bits = 2
    module(torch.randn(8, 3, 2, 2)).square().sum().backward()
    assert module.bit_weight.grad is not None
    assert [bool(row.any()) for row in module.bit_weight.grad] == [row == 1 for row in range(8)]
    with torch.no_grad():
        module.bit_weight[1] += 1
        module.bit_weight[3] += 2
    module.eval()
    assert torch.equal(module.affine_at(3)[0], module.bit_weight[3])
    assert torch.equal(module.affine_at(1)[0], module.bit_weight[1])
    module.learned[2] = True
    assert torch.equal(module.affine_at(3)[0], module.bit_weight[2])


def test_transitions_have_their_own_statistics() -> None:
    """A layer at 4 bits behind one at 2 bits is another case than behind one at 4 bits."""
    module = norm("transitional")
    assert isinstance(module, TransitionalNorm)
    for source, offset in ((2, 5.0), (4, -5.0)):
        module.bits, module.source_bits = 4, source
        for _ in range(60):
            module(torch.randn(64, 3, 2, 2) + offset)
    module.eval()
    module.source_bits = 2
    behind_two = module.statistics(4)[0].clone()
    module.source_bits = 4
    assert (behind_two - module.statistics(4)[0] > 8).all()


def test_a_norm_without_gain_keeps_none() -> None:
    """``affine=False`` stays without learned gain where the policy shares it."""
    module = quantize_norm(nn.BatchNorm2d(3, affine=False), "shared-affine", (2,))
    module.bits = 2
    module(torch.randn(8, 3, 2, 2))
    assert module.gain_and_shift(2)[0].shape == (3,)

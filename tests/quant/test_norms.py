"""Normalization policies: what evaluation and export use at a child is what training left for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from emqdeploy.format.child import FLOAT, Child, parse_children
from emqdeploy.quant.norms import NORMS, MultiBitBatchNorm2d, PrivateNorm, TransitionalNorm, quantize_norm

CHILDREN = parse_children("2,4,3,5,1")
TWO, FOUR, THREE, FIVE, ONE = CHILDREN


def norm(policy: str = "shared-affine") -> MultiBitBatchNorm2d:
    """A normalization with gains of both signs, trained at 2 and 4 bits."""
    plain = nn.BatchNorm2d(3)
    with torch.no_grad():
        plain.weight.copy_(torch.tensor([1.0, -2.0, 0.0]))
        plain.bias.copy_(torch.tensor([0.5, 0.0, -1.0]))
    return quantize_norm(plain, policy, CHILDREN, (TWO, FOUR), "conv", ("before",))


def test_statistics_of_a_width_are_used_where_they_exist() -> None:
    """A trained width normalizes with its own statistics, an unseen one with the shared ones."""
    module = norm()
    module.use(FOUR)
    x = torch.randn(64, 3, 4, 4) * 3 + 1
    for _ in range(80):
        module(x)
    torch.testing.assert_close(module.statistics(FOUR)[0], x.mean((0, 2, 3)), rtol=1e-2, atol=1e-2)
    assert not torch.equal(module.statistics(FOUR)[0], torch.zeros(3))
    torch.testing.assert_close(module.statistics(FIVE)[0], module.running_mean)
    module.use(TWO)
    module(x - 5)
    assert not torch.allclose(module.statistics(TWO)[0], module.statistics(FOUR)[0])


def test_shared_statistics_are_one_set() -> None:
    """Under ``shared`` a width has nothing of its own."""
    module = norm("shared")
    for child, shift in ((TWO, 3.0), (FOUR, -1.0)):
        module.use(child)
        module(torch.randn(16, 3, 4, 4) + shift)
    assert module.statistics(TWO)[0] is module.statistics(FOUR)[0] is module.running_mean
    assert not torch.equal(module.running_mean, torch.zeros(3))


@pytest.mark.parametrize("policy", list(NORMS))
@pytest.mark.parametrize("child", [FOUR, FLOAT, Child("mixed", {"*": 4, "before": 2})], ids=str)
def test_gain_and_shift_are_the_evaluated_map(policy: str, child: Child) -> None:
    """What is folded into a layer is what evaluation computes, under every policy."""
    module = norm(policy)
    module.use(child)
    for _ in range(5):
        module(torch.randn(16, 3, 4, 4) * 2 - 1)
    module.eval()
    x = torch.randn(2, 3, 4, 4)
    module.use(TWO)
    gain, shift = module.gain_and_shift(child)
    assert module.child == TWO
    module.use(child)
    expected = x.double() * gain.view(-1, 1, 1) + shift.view(-1, 1, 1)
    torch.testing.assert_close(module(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_private_children_do_not_touch_one_another() -> None:
    """A step at 2 bits leaves gain, shift and statistics of 4 bits alone; an unseen child borrows the nearest."""
    module = norm("private")
    assert isinstance(module, PrivateNorm)
    module.use(TWO)
    module(torch.randn(8, 3, 2, 2)).square().sum().backward()
    assert module.child_weight.grad is not None
    assert [bool(row.any()) for row in module.child_weight.grad] == [child == TWO for child in CHILDREN]
    with torch.no_grad():
        module.child_weight[0] += 1
        module.child_weight[1] += 2
    module.eval()

    def gain(child: Child) -> torch.Tensor:
        var = module.statistics(child)[1]
        return module.gain_and_shift(child)[0].float() * torch.sqrt(var + module.eps)

    torch.testing.assert_close(gain(THREE), module.child_weight[1])
    torch.testing.assert_close(gain(ONE), module.child_weight[0])
    module.start((THREE,))
    with torch.no_grad():
        module.child_weight[2] += 4
    torch.testing.assert_close(gain(THREE), module.child_weight[2])


def test_transitions_have_their_own_statistics() -> None:
    """A layer at 4 bits behind one at 2 bits is another case than behind one at 4 bits, whatever was used last."""
    module = norm("transitional")
    assert isinstance(module, TransitionalNorm)
    narrow = Child("mixed", {"*": 4, "before": 2})
    for child, offset in ((narrow, 5.0), (FOUR, -5.0)):
        module.use(child)
        for _ in range(60):
            module(torch.randn(64, 3, 2, 2) + offset)
    module.eval()
    for left_over in (FOUR, narrow, TWO, FLOAT):
        module.use(left_over)
        assert (module.statistics(narrow)[0] - module.statistics(FOUR)[0] > 8).all()


def test_estimated_statistics_belong_to_one_child() -> None:
    """What is kept for a child is used there alone, until it is forgotten."""
    module = norm("shared")
    module.keep(THREE, torch.full((3,), 7.0), torch.ones(3))
    assert module.statistics(THREE)[0].tolist() == [7.0] * 3
    assert module.statistics(FIVE)[0] is module.running_mean
    module.forget()
    assert module.statistics(THREE)[0] is module.running_mean


@pytest.mark.parametrize("policy", list(NORMS))
def test_the_float_network_is_normalized_as_torch_does_it(policy: str) -> None:
    """A run in float leaves the statistics that an ordinary training would have left."""
    plain = nn.BatchNorm2d(3)
    module = quantize_norm(nn.BatchNorm2d(3), policy, (FLOAT,), (FLOAT,), "conv", ())
    for _ in range(3):
        x = torch.randn(8, 3, 2, 2) + 1
        torch.testing.assert_close(module(x), plain(x))
    torch.testing.assert_close(module.running_mean, plain.running_mean)
    torch.testing.assert_close(module.running_var, plain.running_var)
    assert module.num_batches_tracked == 3


def test_a_norm_without_gain_keeps_none() -> None:
    """``affine=False`` stays without learned gain where the policy shares it."""
    module = quantize_norm(nn.BatchNorm2d(3, affine=False), "shared-affine", (TWO,), (TWO,), "conv", ())
    module.use(TWO)
    module(torch.randn(8, 3, 2, 2))
    assert module.gain_and_shift(TWO)[0].shape == (3,)

"""Rules of the learning rate: what they compute, where they may stand, and which updates they need."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child
from emqdeploy.training.recipes import resolve
from emqdeploy.training.scales import RATE_RULES, check_scales, factors_of, read_scales, set_rates


def group(name: str, *gradients: float) -> dict[str, Any]:
    """A group of an optimizer, each parameter with one gradient."""
    parameters = [torch.nn.Parameter(torch.zeros(2)) for _ in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = torch.tensor([0.0, gradient])
    return {"name": name, "params": parameters, "lr_scale": 0.5}


@pytest.mark.parametrize(("bits", "share"), [(8, 1), (7, 0.5), (6, 0.1), (5, 0.05), (4, 0.01), (3, 0.005), (2, 0.001)])
def test_the_shares_of_the_paper(bits: int, share: float) -> None:
    """``10^(-D/2)``, or ``5 10^(-(D+1)/2)`` where D is odd."""
    assert RATE_RULES["alrs-fixed"](2.0, bits, []) == pytest.approx(2 * share)
    assert RATE_RULES["alrs"](2.0, bits, [torch.tensor([-0.5, 0.1]), torch.tensor([9.0])]) == pytest.approx(
        1.25 * share
    )
    assert RATE_RULES["alrs"](0.1, bits, [torch.tensor([3.0])]) == 0, "a rate is never negative"


def test_a_rule_sets_its_group_alone() -> None:
    """Factors of the group and of the child come first; the float network has no width to go by."""
    groups = [group("weights", 0.2), group("quantizer", 0.02, -0.04)]
    scales = read_scales("quantizer=alrs, 4=0.1")
    set_rates(groups, 2.0, scales, Child.of(4))
    assert [one["lr"] for one in groups] == pytest.approx([0.1, 0.01 * (0.1 - 0.03)])
    set_rates(groups, 2.0, scales, FLOAT)
    assert [one["lr"] for one in groups] == [1.0, 1.0]
    assert factors_of(scales) == {"4": 0.1}
    mixed = Child("mixed", {"a": 2, "b": 6}, 8)
    set_rates(groups, 2.0, read_scales("quantizer=alrs-fixed"), mixed)
    assert groups[1]["lr"] == pytest.approx(0.01), "the mean of the widths that it names"


def test_a_rule_needs_updates_of_one_child() -> None:
    """The sentence says how to have them."""
    with pytest.raises(UsageError, match="--lr-scale clips=alrs goes by the width of the child that"):
        set_rates([group("clips", 1.0)], 0.1, ("norms=2", "clips=alrs"), None)


def test_rules_are_read_and_refused() -> None:
    """They survive a file; a child has no rule, and an unknown rule is answered with the known ones."""
    assert resolve(None, None, {"lr_scale": "quantizer=alrs,4=0.50"}).lr_scale == ("quantizer=alrs", "4=0.5")
    with pytest.raises(UsageError, match=re.escape("--lr-scale has 4=alrs, but rules are for parameters: weights,")):
        check_scales(("4=alrs",), [Child.of(4)])
    with pytest.raises(UsageError, match="the factors at least 0 or a rule: alrs, alrs-fixed"):
        read_scales("quantizer=alr")

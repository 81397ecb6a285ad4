"""Factors of the learning rate, for kinds of parameters and for children, and rules that make rates every update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, MASTER_BITS, Child
from emqdeploy.options import nearest
from emqdeploy.registry import Registry

GROUPS = ("weights", "norms", "biases", "clips", "quantizer")
"""Kinds of parameters: weights of layers and whatever is none of the others; gains and shifts of normalizations;
biases; clips of activations; what quantizers learn."""

Scales = tuple[str, ...]
"""As they are written: ``("norms=2", "4=0.5")``."""

RateRule = Callable[[float, int, Sequence[Tensor]], float]
"""``(learning rate, weight width of the child that made the gradients, gradients of the group) -> learning rate``."""

RATE_RULES: Registry[RateRule] = Registry("rule of --lr-scale")

_EXAMPLE = "write for example norms=2,clips=0.5,4=0.5"


def read_scales(value: Any) -> Scales:
    """Reads ``norms=2,4=0.5``, a list of such parts, a table of factors, or ``none``."""
    if isinstance(value, Mapping):
        value = [f"{name}={factor}" for name, factor in value.items()]
    parts = ([] if value == "none" else value.split(",")) if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise UsageError(f"--lr-scale is {value!r}; {_EXAMPLE}")
    factors: dict[str, str] = {}
    for part in parts:
        name, _, text = (word.strip() for word in part.partition("="))
        if not name or not (text in RATE_RULES or 0 <= _number(text) < math.inf):
            rules = ", ".join(RATE_RULES)
            raise UsageError(f"--lr-scale has {part.strip()!r}; {_EXAMPLE}, the factors at least 0 or a rule: {rules}")
        if name in factors:
            raise UsageError(f"--lr-scale names {name!r} twice; leave one of them out")
        factors[name] = text if text in RATE_RULES else f"{_number(text):g}"
    return tuple(f"{name}={factor}" for name, factor in factors.items())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def factors_of(scales: Scales) -> dict[str, float]:
    """The factor of every group and child that has one."""
    return {name: float(factor) for name, factor in _parts(scales) if factor not in RATE_RULES}


def rules_of(scales: Scales) -> dict[str, RateRule]:
    """The rule of every group that has one."""
    return {name: RATE_RULES[rule] for name, rule in _parts(scales) if rule in RATE_RULES}


def _parts(scales: Scales) -> list[tuple[str, str]]:
    return [(name, text) for name, text in (part.split("=") for part in scales)]


def check_scales(scales: Scales, children: Sequence[Child]) -> None:
    """Raises where a factor is for something that is neither a group of parameters nor one of the trained children."""
    known = [*GROUPS, *(child.name for child in children)]
    for name, text in _parts(scales):
        if text in RATE_RULES and name in known and name not in GROUPS:
            raise UsageError(f"--lr-scale has {name}={text}, but rules are for parameters: {', '.join(GROUPS)}")
        if name not in known:
            raise UsageError(
                f"--lr-scale names {name!r}, which is neither a group of parameters nor a trained child; allowed:"
                f" {', '.join(known)}{nearest(name, known)}"
            )


def child_scale(scales: Scales, child: Child) -> float:
    """The factor of a child; 1 where none is named."""
    return factors_of(scales).get(child.name, 1.0)


def set_rates(groups: Iterable[dict[str, Any]], rate: float, scales: Scales, child: Child | None) -> None:
    """Sets the learning rate of every group of an optimizer before an update.

    Args:
        groups: of parameters with gradients.
        rate: of the run at this step.
        scales: factors and rules.
        child: from which the update comes; None where it comes from several.

    Raises:
        UsageError: a rule needs updates of one child each.
    """
    rules, scale = rules_of(scales), 1.0 if child is None else child_scale(scales, child)
    if rules and child is None:
        raise UsageError(
            f"--lr-scale {next(part for part in scales if part.split('=')[1] in RATE_RULES)} goes by the width of the"
            " child that an update comes from; use --step-plan sequential or interleaved, and --accumulate 1"
        )
    for group in groups:
        group["lr"] = rate * scale * group.get("lr_scale", 1.0)
        rule = rules.get(group.get("name", ""))
        if rule is not None and child is not None and child != FLOAT:
            gradients = [parameter.grad for parameter in group["params"] if parameter.grad is not None]
            group["lr"] = rule(group["lr"], _width(child), gradients)


def _width(child: Child) -> int:
    """A child's weight width; of one with widths per layer the mean of those that it names."""
    named = [bits for _, bits in child.weights.layers] or [child.bits]
    return round(sum(named) / len(named))


def _share(bits: int) -> float:
    """``10^(-D/2)`` for even ``D = 8 - bits``, ``5 10^(-(D+1)/2)`` for odd ones: 1 at 8 bits, 0.001 at 2."""
    narrower = MASTER_BITS - bits
    return 10 ** (-narrower / 2) if narrower % 2 == 0 else 5 * 10 ** (-(narrower + 1) / 2)


@RATE_RULES.register("alrs")
def adaptive(rate: float, bits: int, gradients: Sequence[Tensor]) -> float:
    """Adaptive learning rate scaling (arXiv 2502.01199, section 3.2): ``eta (rate - mean(min(max|g|, 1)))``.

    The mean is over the tensors of the group. As printed the difference may be negative, where gradients exceed the
    rate; then nothing is learned in that update.
    """
    largest = [float(gradient.abs().max().clamp(max=1)) for gradient in gradients]
    return _share(bits) * max(rate - sum(largest) / max(len(largest), 1), 0.0)


@RATE_RULES.register("alrs-fixed")
def fixed(rate: float, bits: int, gradients: Sequence[Tensor]) -> float:
    """The share of the width alone, which is what the authors' code does: it does not look at gradients."""
    return _share(bits) * rate

"""Factors of the learning rate, for kinds of parameters and for children."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.options import nearest

GROUPS = ("weights", "norms", "biases", "clips", "quantizer")
"""Kinds of parameters: weights of layers and whatever is none of the others; gains and shifts of normalizations;
biases; clips of activations; what quantizers learn."""

Scales = tuple[str, ...]
"""As they are written: ``("norms=2", "4=0.5")``."""

_EXAMPLE = "write for example norms=2,clips=0.5,4=0.5"


def read_scales(value: Any) -> Scales:
    """Reads ``norms=2,4=0.5``, a list of such parts, a table of factors, or ``none``."""
    if isinstance(value, Mapping):
        value = [f"{name}={factor}" for name, factor in value.items()]
    parts = ([] if value == "none" else value.split(",")) if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple)) or not all(isinstance(part, str) for part in parts):
        raise UsageError(f"--lr-scale is {value!r}; {_EXAMPLE}")
    factors: dict[str, float] = {}
    for part in parts:
        name, _, text = (word.strip() for word in part.partition("="))
        factor = _number(text)
        if not name or not 0 <= factor < math.inf:
            raise UsageError(f"--lr-scale has {part.strip()!r}; {_EXAMPLE}, the factors at least 0")
        if name in factors:
            raise UsageError(f"--lr-scale names {name!r} twice; leave one of them out")
        factors[name] = factor
    return tuple(f"{name}={factor:g}" for name, factor in factors.items())


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def factors_of(scales: Scales) -> dict[str, float]:
    """The factor of every group and child that is named."""
    return {name: float(factor) for name, factor in (part.split("=") for part in scales)}


def check_scales(scales: Scales, children: Sequence[Child]) -> None:
    """Raises where a factor is for something that is neither a group of parameters nor one of the trained children."""
    known = [*GROUPS, *(child.name for child in children)]
    for name in factors_of(scales):
        if name not in known:
            raise UsageError(
                f"--lr-scale names {name!r}, which is neither a group of parameters nor a trained child; allowed:"
                f" {', '.join(known)}{nearest(name, known)}"
            )


def child_scale(scales: Scales, child: Child) -> float:
    """The factor of a child; 1 where none is named."""
    return factors_of(scales).get(child.name, 1.0)

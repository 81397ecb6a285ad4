"""`--target-bits`: the mean widths that methods which choose widths themselves are asked for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emqdeploy.errors import UsageError

Targets = tuple[float, ...]

PANEL = "Learned widths"

TARGET_BITS = "Mean width to find widths for: 3.5; with hasb also several: 3,4."
"""What the help says, and where."""


def read_targets(value: Any) -> Targets:
    """Reads ``3.5``, ``3,4``, a list of numbers, or ``none``."""
    if isinstance(value, str):
        value = [] if value == "none" else value.split(",")
    try:
        targets = tuple(float(part) for part in (value if isinstance(value, (list, tuple)) else [value]))
    except (TypeError, ValueError) as error:
        raise UsageError(f"--target-bits is {value!r}; write a mean width, for example 3.5, or several: 3,4") from error
    if len(set(targets)) < len(targets):
        raise UsageError(f"--target-bits has a width twice: {', '.join(f'{one:g}' for one in targets)}; name each once")
    return targets


def check_targets(targets: Targets, least: int, most: int, why: str) -> None:
    """Raises for a target that no choice of widths meets.

    Args:
        targets: what was asked for.
        least: the narrowest width that a layer can have.
        most: the widest.
        why: where these come from, for the sentence.
    """
    for target in targets:
        if not least <= target <= most:
            raise UsageError(f"--target-bits is {target:g}; allowed: {least} to {most}, {why}")


def check_switchable(layers: Sequence[str]) -> None:
    """Raises where no layer has a width to choose."""
    if not layers:
        raise UsageError(
            "every layer of this network stays at 8 bits, so there are no widths to find; name fewer in --keep-8bit, or"
            " use --small-groups layer"
        )

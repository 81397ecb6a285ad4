"""Figures for people: alone in a sentence, or many in a column that all have one unit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

MISSING = "-"

_TIMES = (("µs", 1e-3), ("ms", 1.0), ("s", 1e3))
_BYTES = (("B", 1.0), ("kB", 1e3), ("MB", 1e6), ("GB", 1e9))


@dataclass(frozen=True)
class Unit:
    """One unit for all figures of a column.

    Attributes:
        name: what stands in the heading.
        factor: milliseconds or bytes in one of it.
        decimals: that all of them are shown with.
    """

    name: str
    factor: float
    decimals: int

    def __call__(self, value: float | None) -> str:
        """The number without its unit; a dash where there is none."""
        return MISSING if value is None else f"{value / self.factor:.{self.decimals}f}"


def of_times(milliseconds: Sequence[float | None]) -> Unit:
    """The unit that suits the median of some durations, with as many decimals as the smallest needs, at most 3."""
    return _common(milliseconds, _TIMES, 3)


def of_bytes(counts: Sequence[float | None]) -> Unit:
    """The unit that suits the median of some sizes."""
    return _common(counts, _BYTES, 1)


def _common(values: Sequence[float | None], units: Sequence[tuple[str, float]], most_decimals: int) -> Unit:
    known = sorted(abs(value) for value in values if value)
    middle = known[len(known) // 2] if known else 0.0
    name, factor = next(((name, factor) for name, factor in reversed(units) if middle >= factor), units[0])
    least = min(known, default=factor) / factor
    return Unit(name, factor, 0 if factor == 1 and units is _BYTES else max(0, min(most_decimals, _digits(least))))


def _digits(least: float) -> int:
    """Decimals that leave a number three significant digits."""
    return 2 - math.floor(math.log10(least))


def size(count: int | None) -> str:
    """Bytes for people."""
    if count is None:
        return "not measured"
    unit = of_bytes([count])
    return f"{count} B" if unit.name == "B" else f"{count / unit.factor:.1f} {unit.name}"


def percent(value: float | None) -> str:
    """An accuracy, or that it was not measured."""
    return "not measured" if value is None else f"{value:.2f} %"


def milliseconds(value: float | None) -> str:
    """A duration with three significant digits."""
    if value is None:
        return MISSING
    unit = of_times([value])
    return f"{value / unit.factor:.3g} {unit.name}" if value < 999.5 else f"{value:.0f} ms"

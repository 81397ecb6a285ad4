"""What a user allows a network to cost, as text: ``latency_p99=20ms,accuracy>=97,prefer=energy``."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from emqdeploy.errors import UsageError

_TIME = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2.0**10, "mib": 2.0**20, "gib": 2.0**30}
UNITS: Mapping[str, Mapping[str, float]] = {
    "latency_p50": _TIME,
    "latency_p90": _TIME,
    "latency_p95": _TIME,
    "latency_p99": _TIME,
    "energy": {"uj": 1e-3, "mj": 1.0, "j": 1e3},
    "power": {"mw": 1e-3, "w": 1.0},
    "temperature": {"c": 1.0, "°c": 1.0},
    "memory": _BYTES,
    "accuracy": {"": 1.0, "%": 1.0},
}
"""Quantities and what one of each unit is in the quantity's own: ms, mJ, W, degrees Celsius, bytes, percent."""

PREFERENCES = ("accuracy", "latency", "energy", "memory")
"""What to optimise among the settings that meet every budget."""

_SHOWN = {"energy": "mJ", "power": "W", "temperature": "C", "memory": "B", "accuracy": ""}
_PART = re.compile(r"([a-z0-9_]+)\s*(<=|>=|==|=|<|>)\s*([-+0-9.e]+?)\s*([a-zµ°%]*)")


@dataclass(frozen=True)
class Budget:
    """A limit on one measured quantity.

    Attributes:
        quantity: a name in ``UNITS``.
        limit: in milliseconds, millijoules, watts, degrees Celsius, bytes or percent.
    """

    quantity: str
    limit: float

    @property
    def is_floor(self) -> bool:
        """Whether the quantity must be at least the limit; all others must be at most that."""
        return self.quantity == "accuracy"

    @property
    def percentile(self) -> float | None:
        """Which percentile of the latency is meant; None for other quantities."""
        return float(self.quantity[9:]) if self.quantity.startswith("latency_p") else None

    def meets(self, value: float, margin: float = 1.0) -> bool:
        """Whether a value is within the limit, or within this share of it."""
        return value >= self.limit if self.is_floor else value <= self.limit * margin

    def excess(self, value: float) -> float:
        """How far a value lies beyond the limit, as a share of it; negative where there is room."""
        beyond = self.limit - value if self.is_floor else value - self.limit
        return beyond / self.limit if self.limit else beyond

    def show(self, value: float) -> str:
        """A value of this quantity for people."""
        if self.percentile is not None:
            return f"{value * 1000:.0f} us" if value < 1 else f"{value:.3g} ms"
        if self.quantity == "memory":
            return f"{value / 1e6:.1f} MB"
        if self.is_floor:
            return f"{value:.2f} %"
        return f"{value:.3g} {_SHOWN[self.quantity]}"

    def shortfall(self, value: float) -> str:
        """By how much a value misses the limit, in words."""
        gap = abs(value - self.limit)
        if self.is_floor:
            return f"{gap:.2f} points short"
        return f"{self.show(gap)} ({100 * self.excess(value):.0f} %) over"

    def __str__(self) -> str:
        unit = "ms" if self.percentile is not None else _SHOWN[self.quantity]
        return f"{self.quantity}{'>=' if self.is_floor else '<='}{self.limit:.15g}{unit}"


@dataclass(frozen=True)
class Goals:
    """Budgets, and what to optimise within them."""

    budgets: tuple[Budget, ...]
    prefer: str = "accuracy"

    def __str__(self) -> str:
        return ",".join([*map(str, self.budgets), f"prefer={self.prefer}"])


def parse_policy(text: str) -> Goals:
    """Reads a policy such as ``latency_p99=20ms,accuracy>=97``.

    ``=`` means at most, and for the accuracy at least. ``prefer=accuracy`` (the default), ``latency``, ``energy`` or
    ``memory`` says what to optimise within the budgets.

    Raises:
        UsageError: the text is no policy; the sentence names the part and shows one that is right.
    """
    budgets: dict[str, Budget] = {}
    prefer: str | None = None
    for part in (part.strip() for part in text.split(",")):
        name, separator, value = part.partition("=")
        if separator and name.strip().lower() == "prefer":
            wanted = value.strip().lower()
            if wanted not in PREFERENCES:
                raise UsageError(f"cannot prefer {value.strip()!r}; allowed: {', '.join(PREFERENCES)}")
            if prefer is not None:
                raise UsageError(f"the policy {text!r} says prefer twice; say it once")
            prefer = wanted
            continue
        budget = _parse_budget(part)
        if budget.quantity in budgets:
            raise UsageError(f"the policy {text!r} names {budget.quantity} twice; name it once")
        budgets[budget.quantity] = budget
    if not budgets and prefer is None:
        raise UsageError("the policy is empty; write for example latency_p99=20ms,accuracy>=97")
    return Goals(tuple(budgets.values()), prefer or "accuracy")


def _parse_budget(part: str) -> Budget:
    match = _PART.fullmatch(part.lower())
    if match is None:
        raise UsageError(f"{part!r} is no budget; write a quantity, a sign and a value, for example latency_p99=20ms")
    quantity, sign, number, unit = match.groups()
    if quantity not in UNITS:
        near = difflib.get_close_matches(quantity, UNITS, n=1, cutoff=0.5)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise UsageError(f"unknown quantity {quantity!r} in the policy; known: {', '.join(UNITS)}, prefer{hint}")
    units = UNITS[quantity]
    if unit not in units:
        given = f"the unit {unit!r}" if unit else "no unit"
        allowed = " or ".join(name for name in units if name)
        raise UsageError(f"{part!r} has {given}; {quantity} takes {allowed}, for example {_example(quantity)}")
    try:
        limit = float(number) * units[unit]
    except ValueError as error:
        raise UsageError(f"{number!r} in {part!r} is not a number; write for example {_example(quantity)}") from error
    if not math.isfinite(limit) or limit <= 0 or (quantity == "accuracy" and limit > 100):
        raise UsageError(f"the limit in {part!r} is out of range; write for example {_example(quantity)}")
    budget = Budget(quantity, limit)
    wrong = ("<", "<=") if budget.is_floor else (">", ">=")
    if sign in wrong:
        kind = "least" if budget.is_floor else "most"
        raise UsageError(
            f"{part!r} has the wrong sign: the limit of {quantity} is at {kind}; write {_example(quantity)}"
        )
    return budget


def _example(quantity: str) -> str:
    values = {"energy": "5mJ", "power": "8W", "temperature": "80C", "memory": "200MB", "accuracy": "97"}
    return f"{quantity}{'>=' if quantity == 'accuracy' else '='}{values.get(quantity, '20ms')}"

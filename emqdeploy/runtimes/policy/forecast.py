"""What each setting would cost now, from the table, from the setting in use and from settings tried lately."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from emqdeploy.runtimes.policy.budgets import Budget
from emqdeploy.runtimes.policy.options import Option, Setting, is_narrower, speed_ratios

SAME_SPEED = 1.1
"""Bit-widths whose medians differ by less than this factor run at the same speed: no switch is worth that."""

CONTRADICTION = 1.2
"""A measured ratio that differs from the table's by more than this factor replaces it."""

COOLER = 0.95
"""A setting may cure heat if the table says that it needs at most this share of the present power."""


@dataclass
class Failure:
    """A setting that was tried and broke a budget: what it cost, and until when it is not tried again."""

    observed: Mapping[str, float]
    until_s: float


class Forecast:
    """Predicts the cost of settings.

    Within a mode, load slows every bit-width alike, so the ratio to the setting in use holds. Between modes it does
    not (another number of threads meets another process differently): there the last failure counts, then the table.

    Args:
        options: everything that may be chosen.
    """

    def __init__(self, options: Iterable[Option]) -> None:
        self.options = {option.setting: option for option in options}
        self._speed = speed_ratios(list(self.options.values()))
        self.failures: dict[Setting, Failure] = {}

    def ratio(self, of: Setting, to: Setting) -> float | None:
        """How much longer ``of`` takes than ``to`` in the same mode; None where that is unknown."""
        if of == to:
            return 1.0
        a, b = self._pace(of), self._pace(to)
        return None if of.mode != to.mode or a is None or b is None else a / b

    def learn(self, after: Setting, after_ms: float, before: Setting, before_ms: float) -> float | None:
        """Takes the medians on both sides of a switch; returns the ratio if it is new or contradicts the table."""
        if after.mode != before.mode or min(after_ms, before_ms) <= 0:
            return None
        measured, believed = after_ms / before_ms, self.ratio(after, before)
        if believed is not None and abs(math.log(measured / believed)) < math.log(CONTRADICTION):
            return None
        base = self._speed.setdefault(before, before_ms)
        self._speed[after] = base * measured
        return measured

    def spread(self, mode: str) -> float | None:
        """The slowest bit-width of a mode over its fastest; None where one is unknown or there is only one."""
        paces = [self._pace(setting) for setting in self.options if setting.mode == mode]
        known = [pace for pace in paces if pace is not None]
        return max(known) / min(known) if len(known) == len(paces) > 1 else None

    def blocked(self, setting: Setting, now_s: float) -> bool:
        """Whether a setting failed so lately that it is not tried again."""
        failure = self.failures.get(setting)
        return failure is not None and now_s < failure.until_s

    def predict(
        self, option: Option, budget: Budget, now_s: float, current: Setting, live: float | None
    ) -> float | None:
        """The value of a budget's quantity under a setting; None where nothing is known.

        Args:
            option: the setting in question.
            budget: which quantity.
            now_s: the time, for the age of failures.
            current: the setting in use.
            live: the quantity's present value under ``current``, where it is measured.
        """
        if option.setting == current and live is not None:
            return live
        if budget.quantity == "temperature":
            return self._warmth(option, current, live)
        scales = budget.percentile is not None
        if self.blocked(option.setting, now_s) and budget.quantity in self.failures[option.setting].observed:
            return self.failures[option.setting].observed[budget.quantity]
        if scales and live is not None and option.setting.mode == current.mode:
            ratio = self.ratio(option.setting, current)
            # A gain that small is the table's noise: a switch for it would be in vain.
            return None if ratio is None else live * (1.0 if 1 / SAME_SPEED < ratio < 1 else ratio)
        known = option.known(budget)
        tried = self._sibling(option.setting, budget, now_s) if scales or known is None else None
        return known if tried is None else tried

    def _sibling(self, setting: Setting, budget: Budget, now_s: float) -> float | None:
        """From another bit-width of the same mode that failed lately.

        What is not a latency has no ratios; there a lower bit-width that failed says that this one would, too.
        """
        for other, failure in self.failures.items():
            if other.mode == setting.mode and self.blocked(other, now_s) and budget.quantity in failure.observed:
                cheaper = 1.0 if is_narrower(other.child, setting.child) else None
                ratio = self.ratio(setting, other) if budget.percentile is not None else cheaper
                if ratio is not None:
                    return failure.observed[budget.quantity] * ratio
        return None

    def _warmth(self, option: Option, current: Setting, live: float | None) -> float | None:
        """Heat follows power; without both powers in the table nothing is known to help."""
        present = self.options[current].power_w
        if live is None or option.power_w is None or present is None:
            return live
        return live * (1.0 if option.power_w > present * COOLER else option.power_w / present)

    def _pace(self, setting: Setting) -> float | None:
        """A bit-width's own figure, or that of its neighbours on both sides where these agree."""
        own = self._speed.get(setting)
        if own is not None:
            return own
        known = [other for other in sorted(self._speed) if other.mode == setting.mode]
        below = [self._speed[other] for other in known if is_narrower(other.child, setting.child)]
        above = [self._speed[other] for other in known if is_narrower(setting.child, other.child)]
        if not below or not above or not 1 / SAME_SPEED < below[-1] / above[0] < SAME_SPEED:
            return None
        return math.sqrt(below[-1] * above[0])

"""The decision: which setting to run now. No clock and no sensor in here: both are handed in with every measurement."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emqdeploy.runtimes.policy.budgets import Budget, Goals, parse_policy
from emqdeploy.runtimes.policy.forecast import SAME_SPEED, Failure, Forecast
from emqdeploy.runtimes.policy.options import Option, Setting, allowed_options
from emqdeploy.runtimes.policy.window import Measurement, Window, most_allowed


@dataclass(frozen=True)
class Tuning:
    """How quickly a policy reacts, and how patiently.

    Attributes:
        window_s: measurements older than this do not count.
        look_s: between two looks at the window.
        patience_s: a violation must last that long; a single hiccup moves nothing.
        calm_s: so long everything must be well before something better is tried.
        margin: share of a limit that a better setting must be expected to keep.
        gain: percentage points of accuracy (or, for the other preferences, percent) that make a setting better.
        burst: switches that may follow one another at once; one more is earned every second.
        retry_s: a setting that broke a budget is left alone that long, twice as long each time up to ``retry_most_s``.
        warmth_s: a violated temperature must last that long, for heat follows slowly.
    """

    window_s: float = 1.0
    look_s: float = 0.05
    patience_s: float = 0.15
    calm_s: float = 3.0
    margin: float = 0.9
    gain: float = 0.05
    burst: int = 3
    retry_s: float = 10.0
    retry_most_s: float = 60.0
    warmth_s: float = 5.0


@dataclass(frozen=True)
class Decision:
    """An entry of the log.

    Attributes:
        at_s: when, on the caller's clock.
        kind: ``start``, ``switch`` or ``note`` (something was noticed, nothing changed).
        setting: in use from now on.
        previous: in use before a switch.
        reason: why, in one sentence.
        observed: the budgets' quantities at that moment.
    """

    at_s: float
    kind: str
    setting: Setting
    previous: Setting | None
    reason: str
    observed: Mapping[str, float] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; settings in words."""
        return {
            "at_s": round(self.at_s, 4),
            "kind": self.kind,
            "setting": str(self.setting),
            "previous": None if self.previous is None else str(self.previous),
            "reason": self.reason,
            "observed": dict(self.observed),
        }


_LEAST = 4
"""Inferences without which nothing is judged."""

_MOST = 500
"""Inferences that a window holds at most."""

_NEAR = 0.05
"""Where nothing meets the budgets, excesses that differ by less than this share are alike."""


class Policy:
    """Chooses the setting that a network runs with and keeps choosing as measurements come in.

    Hand every measurement to `step`; when it returns a decision of kind ``switch``, run with ``decision.setting``.

    Args:
        goals: budgets and preference, or their text (see `parse_policy`).
        options: what there is to choose from; those below an accuracy floor are never used.
        tuning: reaction times.
        now_s: the time of the start on the caller's clock.

    Attributes:
        setting: in use.
        log: the latest 10,000 decisions and notes.
        state: ``met``, ``over`` (a budget is violated, something is being done), ``infeasible`` (a budget is violated
            and nothing that is allowed is expected to help) or ``waiting`` for measurements.

    Raises:
        UsageError: the text does not parse, or no option reaches the accuracy floor.
    """

    def __init__(
        self, goals: Goals | str, options: Sequence[Option], tuning: Tuning | None = None, now_s: float = 0.0
    ) -> None:
        self.goals = parse_policy(goals) if isinstance(goals, str) else goals
        self.tuning = tuning or Tuning()
        self.options = {option.setting: option for option in allowed_options(options, self.goals.budgets)}
        self.forecast = Forecast(self.options.values())
        self.window = Window(self.tuning.window_s, _LEAST, _MOST)
        self.log: deque[Decision] = deque(maxlen=10_000)
        self.state = "waiting"
        self._limits = [budget for budget in self.goals.budgets if not budget.is_floor]
        self._heard_s = {budget.quantity: now_s for budget in self._limits}
        self._next_look_s = now_s
        self._broken_since_s: float | None = None
        self._well_since_s = now_s
        self._tokens, self._tokens_at_s = float(self.tuning.burst), now_s
        self._attempts: dict[Setting, int] = {}
        self._before: tuple[Setting, float] | None = None
        self._noted: set[str] = set()
        self._discard = False
        self._settled_until_s = now_s
        self.setting = self._start(now_s)
        for mode in dict.fromkeys(setting.mode for setting in self.options):
            self._note_same_speed(now_s, mode)

    def step(self, now_s: float, measurement: Measurement | float) -> Decision | None:
        """Takes the measurement of one inference; returns a decision if the setting changes.

        Args:
            now_s: seconds on any clock that does not go backwards.
            measurement: or only the latency in milliseconds.
        """
        if not isinstance(measurement, Measurement):
            measurement = Measurement(measurement)
        if not math.isfinite(measurement.latency_ms) or measurement.latency_ms < 0:
            return None
        if self._discard:  # the first output after a switch pays for cold caches; it says nothing about the setting
            self._discard = False
            return None
        self.window.add(now_s, measurement)
        if now_s < self._next_look_s or len(self.window) < _LEAST:
            return None
        self._next_look_s = now_s + self.tuning.look_s
        return self._look(now_s)

    # --- looking --------------------------------------------------------------------------------------------------

    def _look(self, now_s: float) -> Decision | None:
        observed = self._observed()
        self._note_silence(now_s, observed)
        self._learn_from_switch(now_s, enough=30)
        broken = [budget for budget in self._limits if self._violates(budget, observed)]
        if not broken:
            return self._when_well(now_s, observed)
        if self._broken_since_s is None:
            self._broken_since_s = now_s
        patience = self.tuning.warmth_s if broken[0].quantity == "temperature" else self.tuning.patience_s
        if now_s - self._broken_since_s < patience or self._wait_for_token(now_s):
            return None
        self._learn_from_switch(now_s, enough=_LEAST)
        # Only what came since then shows the new conditions.
        return self._escape(now_s, broken[0], self._observed(self._broken_since_s))

    def _observed(self, since_s: float = -math.inf) -> dict[str, float]:
        values = {budget.quantity: self.window.observed(budget, since_s) for budget in self._limits}
        return {quantity: value for quantity, value in values.items() if value is not None and math.isfinite(value)}

    def _violates(self, budget: Budget, observed: Mapping[str, float]) -> bool:
        if budget.percentile is None:
            return budget.quantity in observed and not budget.meets(observed[budget.quantity])
        slow, count = self.window.over(budget.limit)
        return slow > most_allowed(count, 1 - budget.percentile / 100)

    def _when_well(self, now_s: float, observed: Mapping[str, float]) -> Decision | None:
        if any(not budget.meets(observed[budget.quantity]) for budget in self._limits if budget.quantity in observed):
            self._broken_since_s = None
            return None  # neither clearly over nor within: wait
        if self.state in ("over", "infeasible"):
            shown = ", ".join(b.show(observed[b.quantity]) for b in self._limits if b.quantity in observed)
            self._note(now_s, f"within the budgets again ({shown})", observed)
            self._noted.discard("infeasible")
        if self.state != "met":
            self._well_since_s = now_s
        self.state, self._broken_since_s = "met", None
        if now_s - self._well_since_s > 2 * self.tuning.calm_s:
            self._attempts.pop(self.setting, None)
        if now_s - self._well_since_s < self.tuning.calm_s or self._wait_for_token(now_s):
            return None
        return self._improve(now_s, observed)

    def _learn_from_switch(self, now_s: float, enough: int) -> None:
        if self._before is None or (len(self.window) < enough and now_s - self._well_since_s < self.tuning.window_s):
            return
        (before, before_ms), after_ms = self._before, self.window.latency(50)
        self._before = None
        ratio = self.forecast.learn(self.setting, after_ms, before, before_ms)
        if ratio is not None and not 1 / SAME_SPEED < ratio < SAME_SPEED:
            self._note(now_s, f"{self.setting} takes {ratio:.2f} times as long as {before} here", {})
        self._note_same_speed(now_s, self.setting.mode)

    def _note_silence(self, now_s: float, observed: Mapping[str, float]) -> None:
        """A budget that no sensor watches is said once, and again when a sensor falls silent later."""
        for budget in self._limits:
            key = f"silent {budget.quantity}"
            if budget.quantity in observed:
                self._heard_s[budget.quantity] = now_s
                self._noted.discard(key)
            elif now_s - self._heard_s[budget.quantity] > 2 * self.tuning.window_s:
                self._note_once(key, now_s, f"no reading of {budget.quantity}: the budget {budget} is not watched")

    def _note_same_speed(self, now_s: float, mode: str) -> None:
        spread = self.forecast.spread(mode)
        if spread is None or spread >= SAME_SPEED or not any(budget.percentile for budget in self._limits):
            return
        where = f" with {mode}" if mode else ""
        self._note_once(
            f"same speed {mode}", now_s,
            f"every bit-width runs at the same speed{where} (within {100 * (spread - 1):.1f} %):"
            " fewer bits cannot shorten the latency, so the bit-width is not changed for it",
        )  # fmt: skip

    # --- choosing -------------------------------------------------------------------------------------------------

    def _start(self, now_s: float) -> Setting:
        choices = list(self.options.values())
        fitting = [option for option in choices if self._expected(option, now_s, choices[0].setting, {}) is not False]
        if fitting:
            chosen = self._best(fitting)
            text = f"{chosen.setting}: best {self.goals.prefer} within the budgets by the measured table"
        else:
            least = min(self._excess(option, now_s, {}) for option in choices)
            chosen = self._best([o for o in choices if self._excess(o, now_s, {}) <= least + _NEAR * (1 + abs(least))])
            text = f"{chosen.setting}; by the measured table {self._shortfall(chosen, now_s, chosen.setting, {})}"
        self.log.append(Decision(now_s, "start", chosen.setting, None, text))
        return chosen.setting

    def _escape(self, now_s: float, budget: Budget, observed: Mapping[str, float]) -> Decision | None:
        """Something is over: go where it is expected to be within, else where it misses by least."""
        self._block(now_s, observed)
        others = [
            option
            for option in self.options.values()
            if option.setting != self.setting and not self.forecast.blocked(option.setting, now_s)
        ]
        verdicts = {o.setting: self._expected(o, now_s, self.setting, observed) for o in others}
        good = [option for option in others if verdicts[option.setting]]
        roomy = [option for option in good if self._expected(option, now_s, self.setting, observed, self.tuning.margin)]
        over = self._describe(budget, observed)
        if good:
            chosen = self._best(roomy or good)
            value = self.forecast.predict(chosen, budget, now_s, self.setting, observed.get(budget.quantity))
            assert value is not None
            return self._switch(now_s, chosen, f"{over}; {chosen.setting} should take {budget.show(value)}", observed)
        unknown = [option for option in others if verdicts[option.setting] is None]
        if unknown:
            # The lowest bit-width differs most: if it is no faster, none is.
            chosen = min(unknown, key=lambda o: (o.setting.mode != self.setting.mode, o.setting.widths))
            return self._switch(now_s, chosen, f"{over}; trying {chosen.setting}, which was not measured", observed)
        return self._settle_for_least(now_s, over, observed)

    def _settle_for_least(self, now_s: float, over: str, observed: Mapping[str, float]) -> Decision | None:
        """Nothing fits: run what misses by least, and of all that miss by about as much, the most preferred."""
        self.state = "infeasible"
        excess = {option.setting: self._excess(option, now_s, observed) for option in self.options.values()}
        least, here = min(excess.values()), excess[self.setting]
        close = [o for o in self.options.values() if excess[o.setting] <= least + _NEAR * (1 + abs(least))]
        chosen = self._best(close)
        nothing = f"nothing to choose from meets it: {self._shortfall(chosen, now_s, self.setting, observed)}"
        nearer = here - excess[chosen.setting] > 2 * _NEAR * (1 + abs(here))
        better = self._worth(chosen) >= self._worth(self.options[self.setting]) + self.tuning.gain
        if chosen.setting != self.setting and (nearer or better) and now_s >= self._settled_until_s:
            self._settled_until_s = now_s + self.tuning.retry_s
            return self._switch(now_s, chosen, f"{over}; {nothing}", observed)
        self._note_once("infeasible", now_s, f"{over}; {nothing}; staying at {self.setting}", observed)
        return None

    def _improve(self, now_s: float, observed: Mapping[str, float]) -> Decision | None:
        """All is well: is there something better that would be well, too?"""
        here = self._worth(self.options[self.setting])
        better = [
            option
            for option in self.options.values()
            if self._worth(option) >= here + self.tuning.gain
            and not self.forecast.blocked(option.setting, now_s)
            and self._expected(option, now_s, self.setting, observed, self.tuning.margin) is not False
        ]
        if not better:
            return None
        chosen = self._best(better)
        why = f"within the budgets for {now_s - self._well_since_s:.0f} s; {chosen.setting} has better"
        return self._switch(now_s, chosen, f"{why} {self.goals.prefer} and should stay within", observed)

    def _expected(
        self, option: Option, now_s: float, current: Setting, observed: Mapping[str, float], margin: float = 1.0
    ) -> bool | None:
        """Whether a setting would meet every budget; None if one is unknown and none is missed."""
        known = True
        for budget in self._limits:
            value = self.forecast.predict(option, budget, now_s, current, observed.get(budget.quantity))
            if value is None:
                if budget.percentile is None and budget.quantity not in observed:
                    continue  # no sensor and no figure: it cannot be judged, which is noted
                if budget.quantity in ("temperature", "memory"):
                    return False  # nothing speaks for a switch
                known = False
            elif not budget.meets(value, margin):
                return False
        return True if known else None

    def _excess(self, option: Option, now_s: float, observed: Mapping[str, float]) -> float:
        """By which share of its limit the worst budget would be missed; negative where all have room."""
        worst = -math.inf
        current = self.setting if observed else option.setting
        for budget in self._limits:
            value = self.forecast.predict(option, budget, now_s, current, observed.get(budget.quantity))
            worst = max(worst, 0.0 if value is None else budget.excess(value))
        return worst

    def _best(self, options: Sequence[Option]) -> Option:
        """The most preferred; among equals the fastest, and among equally fast ones the one with most bits."""
        top = max(self._worth(option) for option in options)
        equals = [option for option in options if self._worth(option) >= top - self.tuning.gain / 2]
        fastest = min(_median(option) for option in equals)
        quick = [option for option in equals if _median(option) <= fastest * SAME_SPEED]
        return max(quick, key=lambda option: (option.setting.widths, -_median(option)))

    def _worth(self, option: Option) -> float:
        """Larger is better, in percentage points or percent."""
        if self.goals.prefer == "accuracy":
            # Without accuracies, bits stand for them: more are never worse in what was trained here. All activation
            # bits together count less than one bit of the weights.
            weights, activations = option.setting.widths
            return weights + activations / 16 if option.accuracy is None else option.accuracy
        costs = {"latency": _median(option), "energy": option.energy_mj, "memory": option.memory_bytes}
        cost = costs[self.goals.prefer]
        return -100 * math.log(cost) if cost and math.isfinite(cost) else -math.inf

    # --- acting ---------------------------------------------------------------------------------------------------

    def _switch(self, now_s: float, option: Option, reason: str, observed: Mapping[str, float]) -> Decision:
        self._tokens -= 1
        decision = Decision(now_s, "switch", option.setting, self.setting, reason, dict(observed))
        since_s = -math.inf if self._broken_since_s is None else self._broken_since_s
        self._before = (self.setting, self.window.latency(50, since_s))
        self.setting = option.setting
        if self.state == "met":
            self.state = "waiting"
        self._well_since_s, self._broken_since_s, self._discard = now_s, None, True
        self.window.clear()
        self.log.append(decision)
        return decision

    def _block(self, now_s: float, observed: Mapping[str, float]) -> None:
        """Remembers that the setting in use fails under the present conditions."""
        self.state = "over"
        if not self.forecast.blocked(self.setting, now_s):
            self._attempts[self.setting] = self._attempts.get(self.setting, 0) + 1
        wait = self.tuning.retry_s * 2.0 ** (self._attempts[self.setting] - 1)
        self.forecast.failures[self.setting] = Failure(dict(observed), now_s + min(wait, self.tuning.retry_most_s))

    def _wait_for_token(self, now_s: float) -> bool:
        self._tokens = min(float(self.tuning.burst), self._tokens + now_s - self._tokens_at_s)
        self._tokens_at_s = now_s
        return self._tokens < 1

    def _describe(self, budget: Budget, observed: Mapping[str, float]) -> str:
        value = budget.show(observed[budget.quantity])
        if budget.percentile is None:
            return f"{budget.quantity} is {value}, over {budget.show(budget.limit)}"
        slow, count = self.window.over(budget.limit)
        return f"{budget.quantity} is {value}: {slow} of the last {count} above {budget.show(budget.limit)}"

    def _shortfall(self, option: Option, now_s: float, current: Setting, observed: Mapping[str, float]) -> str:
        misses = []
        for budget in self._limits:
            value = self.forecast.predict(option, budget, now_s, current, observed.get(budget.quantity))
            if value is not None and not budget.meets(value):
                misses.append(f"{budget} by {budget.show(value)}, {budget.shortfall(value)}")
        return f"{option.setting} comes closest and misses {' and '.join(misses)}"

    def _note(self, now_s: float, reason: str, observed: Mapping[str, float]) -> None:
        self.log.append(Decision(now_s, "note", self.setting, None, reason, dict(observed)))

    def _note_once(self, key: str, now_s: float, reason: str, observed: Mapping[str, float] | None = None) -> None:
        if key not in self._noted:
            self._noted.add(key)
            self._note(now_s, reason, observed or {})


def _median(option: Option) -> float:
    return option.latency_ms.get("p50", math.inf)

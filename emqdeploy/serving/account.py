"""The account of a stream: what was classified, how fast, how well, and how the budgets were kept."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emqdeploy.runtimes.policy import Budget, Governed, Option, Policy
from emqdeploy.serving.sensors import Sensors

RECENT = 200
"""Inferences whose latency the live view shows."""

KEPT = 1000
"""Decisions that the summary lists, the latest ones."""


@dataclass
class State:
    """What is known at the moment; the live view reads it."""

    network: Governed
    classes: Sequence[str]
    sensors: Sensors
    started_s: float = field(default_factory=time.perf_counter)
    images: int = 0
    labelled: int = 0
    correct: int = 0
    unreadable: int = 0
    first_unreadable: str = ""
    switches: int = 0
    latest: dict[str, Any] = field(default_factory=dict)
    recent_ms: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    latencies_ms: list[float] = field(default_factory=list)
    reading_ms: list[float] = field(default_factory=list)
    classes_seen: Counter[str] = field(default_factory=Counter)
    decisions: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=KEPT))
    by_setting: dict[str, dict[str, int]] = field(default_factory=dict)

    def decided(self, name: str, class_: str, probability: float) -> None:
        """Notes what a picture was taken for."""
        self.classes_seen[class_] += 1
        self.decisions.append({"image": name, "class": class_, "probability": probability})

    def count(self, setting: str, latency_ms: float, reading_ms: float, correct: bool | None) -> None:
        """Takes one classified image: how long the network took, and before it reading and preprocessing."""
        self.images += 1
        self.reading_ms.append(reading_ms)
        self.recent_ms.append(latency_ms)
        self.latencies_ms.append(latency_ms)
        account = self.by_setting.setdefault(setting, {"images": 0, "labelled": 0, "correct": 0})
        account["images"] += 1
        if correct is not None:
            self.labelled += 1
            self.correct += int(correct)
            account["labelled"] += 1
            account["correct"] += int(correct)

    def shown(self) -> dict[str, Any]:
        """What a live view needs, as plain values."""
        policy = self.network.policy
        return {
            "setting": str(policy.setting),
            "child": policy.setting.child.name,
            "bits": policy.setting.child.bits,
            "state": policy.state,
            "policy": str(policy.goals),
            "images": self.images,
            "unreadable": self.unreadable,
            "seconds": self.seconds,
            "accuracy": self.accuracy,
            "labelled": self.labelled,
            "switches": self.switches,
            "recent_ms": list(self.recent_ms),
            "limits": {budget.quantity: budget.limit for budget in policy.goals.budgets},
            "power_w": self.latest.get("power_w"),
            "no_power": self.sensors.missing,
            "temperature_c": self.latest.get("temperature_c"),
            "latest": self.latest,
            "last_decision": policy.log[-1].reason if policy.log else "",
        }

    @property
    def seconds(self) -> float:
        """Since the first image."""
        return time.perf_counter() - self.started_s

    @property
    def accuracy(self) -> float | None:
        """Percent of the labelled images so far."""
        return 100 * self.correct / self.labelled if self.labelled else None


def summary(state: State, options: Sequence[Option], interrupted: bool) -> dict[str, Any]:
    """The account at the end: how the budgets were kept, accuracy, latency, energy, every decision."""
    policy, sensors, taken = state.network.policy, state.sensors, state.latencies_ms
    start = policy.log[0].at_s if policy.log else 0.0
    if sensors.source is None or not sensors.joules or not state.images:
        energy: dict[str, Any] = {"not_measured": sensors.missing or "the run was too short for a reading"}
    else:
        energy = {
            "source": sensors.source.name,
            "rail": sensors.source.rail,
            "power_w": sensors.joules / sensors.seconds,
            "gross_mj_per_image": 1e3 * sensors.joules / state.images,
        }
    return {
        "policy": str(policy.goals),
        "images": state.images,
        "unreadable": state.unreadable,
        "seconds": round(state.seconds, 3),
        "accuracy": state.accuracy,
        "labelled": state.labelled,
        "latency_ms": _percentiles(taken),
        "reading_ms": _percentiles(state.reading_ms),
        "classes": dict(state.classes_seen.most_common()),
        "predictions": list(state.decisions),
        "budgets": [_kept(budget, state, policy) for budget in policy.goals.budgets],
        "switches": state.switches,
        "by_setting": {
            name: {**counts, "accuracy": 100 * counts["correct"] / counts["labelled"] if counts["labelled"] else None}
            for name, counts in state.by_setting.items()
        },
        "energy": energy,
        "state": policy.state,
        "choices": [{"setting": str(option.setting), "accuracy": option.accuracy, "latency_ms": dict(option.latency_ms)}
                    for option in options],
        "decisions": [{**entry.to_dict(), "at_s": round(entry.at_s - start, 4)} for entry in policy.log],
        "interrupted": interrupted,
    }  # fmt: skip


def _percentiles(values: Sequence[float]) -> dict[str, float] | None:
    return {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)} if values else None


def _kept(budget: Budget, state: State, policy: Policy) -> dict[str, Any]:
    """How a budget was kept over the whole run; an accuracy floor by the table, for that is what it chooses by."""
    if budget.is_floor:
        used = [option.accuracy or 0.0 for one, option in policy.options.items() if str(one) in state.by_setting]
        worst = min(used, default=budget.limit)
        shown = f"{budget.show(worst)} by the table"
        return {"budget": str(budget), "value": worst, "met": budget.meets(worst), "shown": shown}
    value = (
        float(np.percentile(state.latencies_ms, budget.percentile))
        if budget.percentile is not None and state.latencies_ms
        else policy.window.observed(budget)
    )
    if value is None:
        return {"budget": str(budget), "value": None, "met": None, "shown": "not measured"}
    return {"budget": str(budget), "value": value, "met": budget.meets(value), "shown": budget.show(value)}

"""What a policy can choose from: settings, and what is known of each from a measured table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child, Widths
from emqdeploy.runtimes.policy.budgets import Budget


@dataclass(frozen=True)
class Setting:
    """One way to run the network; sorted by widths, then by names.

    Attributes:
        child: the network at one precision.
        mode: the name of the opened runtime, such as ``1 thread``; empty where there is only one.
    """

    child: Child
    mode: str = ""

    @property
    def widths(self) -> tuple[int, int]:
        """Bits of weights and of activations, of the layers that the child does not name."""
        return self.child.bits, self.child.activations.default

    def __lt__(self, other: Setting) -> bool:
        return (self.widths, self.child.name, self.mode) < (other.widths, other.child.name, other.mode)

    def __str__(self) -> str:
        return f"{self.child}, {self.mode}" if self.mode else str(self.child)


def is_narrower(one: Child, other: Child) -> bool:
    """Whether a child differs from another one and is wider than it nowhere."""
    pairs = ((one.weights, other.weights), (one.activations, other.activations))
    return one != other and all(_fits(ours, theirs) for ours, theirs in pairs)


def _fits(ours: Widths, theirs: Widths) -> bool:
    named = [name for name, _ in (*ours.layers, *theirs.layers)]
    return ours.default <= theirs.default and all(ours.of(name) <= theirs.of(name) for name in named)


@dataclass(frozen=True)
class Option:
    """A setting and what was measured of it before; None is "not measured".

    Attributes:
        accuracy: percent of a test set.
        latency_ms: by percentile, ``{"p50": 11.9, "p99": 13.0}``.
        energy_mj: per inference.
        power_w: while the network runs.
        memory_bytes: of the process.
    """

    setting: Setting
    accuracy: float | None = None
    latency_ms: Mapping[str, float] = field(default_factory=dict)
    energy_mj: float | None = None
    power_w: float | None = None
    memory_bytes: float | None = None

    def known(self, budget: Budget) -> float | None:
        """What the table says about a quantity."""
        if budget.percentile is not None:
            return self.latency_ms.get(budget.quantity.removeprefix("latency_"))
        fields = {"energy": self.energy_mj, "power": self.power_w, "memory": self.memory_bytes}
        return self.accuracy if budget.is_floor else fields.get(budget.quantity)


Accuracies = Mapping[Any, float]
"""Percent by child, by its name (as a card has them), or by the weight width that is its name."""


def by_name(accuracy: Accuracies) -> dict[str, float]:
    """Percent by the child's name."""
    return {key.name if isinstance(key, Child) else str(key): percent for key, percent in accuracy.items()}


def table_options(children: Iterable[Child], accuracy: Accuracies, modes: Sequence[str] = ("",)) -> list[Option]:
    """Options of which only accuracies are known, as a checkpoint or a bundle carries them."""
    known = by_name(accuracy)
    return [Option(Setting(child, mode), known.get(child.name)) for child in children for mode in modes]


def allowed_options(options: Sequence[Option], budgets: Sequence[Budget]) -> list[Option]:
    """The options at or above the accuracy floor: a policy never leaves them.

    Raises:
        UsageError: there are none; the sentence says by how much the best misses the floor.
    """
    if not options:
        raise UsageError("a policy needs at least one setting to choose from; give it the runtime's children")
    floors = [budget for budget in budgets if budget.is_floor]
    allowed = [option for option in options if all(_reaches(option, floor) for floor in floors)]
    if allowed:
        return allowed
    measured = [option for option in options if option.accuracy is not None]
    if not measured:
        raise UsageError(f"{floors[0]} needs measured accuracies and there are none; run: emqdeploy bench, or drop it")
    best = max(measured, key=lambda option: option.accuracy or 0.0)
    assert best.accuracy is not None
    raise UsageError(
        f"nothing meets {floors[0]}: the best is {best.setting} with {best.accuracy:.2f} %,"
        f" {floors[0].shortfall(best.accuracy)}; lower the floor or train longer"
    )


def _reaches(option: Option, floor: Budget) -> bool:
    return option.accuracy is not None and floor.meets(option.accuracy)


def speed_ratios(options: Sequence[Option]) -> dict[Setting, float]:
    """Measured medians in milliseconds, which only serve as ratios between settings of one mode."""
    return {option.setting: option.latency_ms["p50"] for option in options if option.latency_ms.get("p50", 0) > 0}


def describe(option: Option) -> dict[str, Any]:
    """Plain values for JSON."""
    return {
        "child": option.setting.child.name,
        "bits": option.setting.child.bits,
        "mode": option.setting.mode,
        "accuracy": option.accuracy,
        "latency_ms": dict(option.latency_ms),
        "energy_mj": option.energy_mj,
        "power_w": option.power_w,
        "memory_bytes": option.memory_bytes,
    }

"""The decision logic against simulated devices whose latencies are known: it finds what fits, and does not fidget."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.runtimes.policy import Decision, Measurement, Option, Policy, Setting, table_options
from emqdeploy.runtimes.policy.options import is_narrower


def at(bits: int, mode: str = "") -> Setting:
    """The setting of a plain bit-width."""
    return Setting(Child.of(bits), mode)


@dataclass
class World:
    """Runs a policy against known latencies.

    Attributes:
        latency_ms: true median of every setting on an idle device.
        load: by mode, how many times longer everything takes; a function of the time in seconds.
        spread: standard deviation of the log of the latency.
        sensors: further values of a measurement, a function of time and setting.
    """

    latency_ms: Mapping[Setting, float]
    load: Callable[[float, str], float] = lambda now_s, mode: 1.0
    spread: float = 0.02
    sensors: Callable[[float, Setting], Mapping[str, float | None]] = lambda now_s, setting: {}
    seed: int = 0
    now_s: float = 0.0
    times_s: list[float] = field(default_factory=list)
    taken_ms: list[float] = field(default_factory=list)
    used: list[Setting] = field(default_factory=list)
    switches: list[Decision] = field(default_factory=list)

    def run(self, policy: Policy, seconds: float) -> None:
        """Lets inferences follow one another for so many simulated seconds."""
        random = np.random.default_rng(self.seed)
        end = self.now_s + seconds
        while self.now_s < end:
            setting = policy.setting
            slow = self.load(self.now_s, setting.mode)
            taken = self.latency_ms[setting] * slow * float(np.exp(self.spread * random.standard_normal()))
            self.now_s += taken / 1000
            self.times_s.append(self.now_s)
            self.taken_ms.append(taken)
            self.used.append(setting)
            decision = policy.step(self.now_s, Measurement(taken, **self.sensors(self.now_s, setting)))
            if decision is not None:
                self.switches.append(decision)

    def share_over(self, limit_ms: float, start_s: float, end_s: float = float("inf")) -> float:
        """Share of the inferences between two moments that took longer than a limit."""
        inside = [ms for at, ms in zip(self.times_s, self.taken_ms, strict=True) if start_s <= at < end_s]
        return sum(ms > limit_ms for ms in inside) / len(inside)

    def switches_after(self, start_s: float) -> list[Decision]:
        """The switches from a moment on."""
        return [decision for decision in self.switches if decision.at_s >= start_s]


ACCURACY = {1: 97.8, 2: 98.0, 3: 98.4, 4: 98.9, 5: 98.9, 6: 99.1, 7: 99.1, 8: 99.2}
"""Percent, as a network of this project has them."""


def table(latency_ms: dict[Setting, float]) -> list[Option]:
    """What a bench of an idle device would have found."""
    return [
        Option(setting, ACCURACY[setting.child.bits], latency_ms={"p50": ms, "p99": 1.1 * ms})
        for setting, ms in latency_ms.items()
    ]


def step_at(second: float, factors: dict[str, float]) -> Callable[[float, str], float]:
    """A load that begins at a second and slows each mode by a factor."""
    return lambda now_s, mode: factors.get(mode, 1.0) if now_s >= second else 1.0


FASTER = {at(bits): 2.0 + 1.5 * bits for bits in (1, 2, 4, 8)}
"""A device on which fewer bits really are faster: 3.5, 5, 8, 14 ms."""

THREADS = {at(bits, mode): ms for bits in (2, 4, 8) for mode, ms in (("2 threads", 12.0), ("1 thread", 20.0))}
"""A device that computes everything in int8: only the threads matter."""


def test_a_load_step_is_answered_by_fewer_bits_and_undone_afterwards() -> None:
    """Accuracy is given up only while it must be."""

    def load(now_s: float, mode: str) -> float:
        return 2.0 if 5 <= now_s < 15 else 1.0

    world, policy = World(FASTER, load), Policy("latency_p99=18ms", table(FASTER))
    assert policy.setting == at(8)
    world.run(policy, 30)
    assert world.share_over(18, 7, 15) <= 0.01
    assert at(4) in world.used
    assert policy.setting == at(8)
    assert len(world.switches) <= 4


def test_threads_meet_the_budget_where_bits_cannot() -> None:
    """A process on one of two cores hurts two threads, not one."""
    world = World(THREADS, step_at(5, {"2 threads": 2.5}))
    policy = Policy("latency_p99=25ms,accuracy>=98.5", table(THREADS))
    assert policy.setting == at(8, "2 threads")
    world.run(policy, 20)
    assert policy.setting == at(8, "1 thread")
    assert len(world.switches) == 1
    assert world.share_over(25, 7) <= 0.01
    assert "should take" in world.switches[0].reason


def test_equal_speed_is_noticed_from_the_table() -> None:
    """It says so instead of switching in vain, and says what misses by how much."""
    same = {at(bits): 12.0 + 0.01 * bits for bits in (1, 2, 4, 8)}
    world, policy = World(same, step_at(3, {"": 3.0})), Policy("latency_p99=18ms", table(same))
    world.run(policy, 60)
    notes = [entry.reason for entry in policy.log if entry.kind == "note"]
    assert any("same speed" in note for note in notes)
    assert any("nothing to choose from meets it" in note and "over" in note for note in notes)
    assert world.switches == []
    assert policy.state == "infeasible"


def test_noise_of_the_table_promises_nothing() -> None:
    """A limit just below what every width takes: medians that differ by a few percent are no reason to switch."""
    same = {at(bits): 12.0 for bits in (1, 2, 4, 8)}
    options = [
        Option(setting, ACCURACY[setting.child.bits], latency_ms={"p50": 12.0 * factor, "p99": 12.0})
        for setting, factor in zip(same, (0.95, 0.94, 0.97, 1.0), strict=True)
    ]
    world, policy = World(same), Policy("latency_p99=12.3ms", options)
    world.run(policy, 60)
    assert world.switches == []
    assert policy.state == "infeasible"


def test_equal_speed_is_found_without_a_table_by_one_trial() -> None:
    """The lowest bit-width differs most: if it is no faster, none is; accuracy is taken back."""
    same = {at(bits): 12.0 for bits in (1, 2, 3, 4, 5, 6, 7, 8)}
    options = [Option(setting, ACCURACY[setting.child.bits]) for setting in same]
    world, policy = World(same), Policy("latency_p99=8ms", options)
    world.run(policy, 9)
    assert [decision.setting for decision in world.switches] == [at(1), at(8)]
    assert any("same speed" in entry.reason for entry in policy.log)


def test_without_a_table_a_faster_width_is_found() -> None:
    """Trying is bounded, and ends at the most accurate width that fits."""
    options = [Option(setting, ACCURACY[setting.child.bits]) for setting in FASTER]
    world, policy = World(FASTER), Policy("latency_p99=10ms", options)
    world.run(policy, 30)
    assert world.share_over(10, 2, 5) <= 0.01
    assert policy.setting == at(4)


def test_a_wrong_table_is_corrected() -> None:
    """A table from another device promises speed that is not there."""
    same = {at(bits): 12.0 for bits in (2, 8)}
    world = World(same, step_at(3, {"": 2.0}))
    policy = Policy("latency_p99=18ms", table({at(2): 6.0, at(8): 12.0}))
    world.run(policy, 120)
    assert len(world.switches) <= 4
    assert any("same speed" in entry.reason for entry in policy.log)


def test_what_nothing_can_meet_is_said_with_figures() -> None:
    """Which budget, how near, by how much."""
    policy = Policy("latency_p99=5ms,accuracy>=98.5", table(THREADS))
    assert "misses latency_p99<=5ms by 13.2 ms, 8.2 ms (164 %) over" in policy.log[0].reason


def test_an_accuracy_floor_that_nothing_reaches_is_refused() -> None:
    """At the start, because a floor is never broken."""
    with pytest.raises(UsageError, match=r"best is 8 bits with 99\.20 %, 0\.30 points short"):
        Policy("accuracy>=99.5", table(FASTER))
    with pytest.raises(UsageError, match="no"):
        Policy("accuracy>=90", [Option(at(8))])


def test_a_single_hiccup_moves_nothing() -> None:
    """50 ms of four times the latency every 7 s are 0.7 % of the inferences."""

    def load(now_s: float, mode: str) -> float:
        return 4.0 if now_s % 7 < 0.05 else 1.0

    world, policy = World(FASTER, load), Policy("latency_p99=18ms", table(FASTER))
    world.run(policy, 60)
    assert world.switches == []


def test_a_preference_for_energy_takes_the_cheapest_that_is_accurate_enough() -> None:
    """The preference decides among what fits."""
    options = [Option(at(bits), ACCURACY[bits], energy_mj=float(bits)) for bits in ACCURACY]
    assert Policy("accuracy>=98.3,prefer=energy", options).setting == at(3)


def test_power_is_kept_by_a_cheaper_setting() -> None:
    """The table knows the power of every setting."""
    watts = {1: 4.0, 2: 5.0, 4: 7.0, 8: 9.0}
    options = [
        Option(setting, ACCURACY[setting.child.bits], latency_ms={"p50": ms}, power_w=watts[setting.child.bits])
        for setting, ms in FASTER.items()
    ]
    world = World(FASTER, sensors=lambda now_s, setting: {"power_w": watts[setting.child.bits]})
    policy = Policy("power=6W", options)
    assert policy.setting == at(2)
    world.run(policy, 5)
    assert world.switches == []


def test_heat_asks_for_less_power_and_patience() -> None:
    """Heat follows slowly: the switch comes after seconds, not at once."""
    watts = {1: 4.0, 2: 5.0, 4: 7.0, 8: 9.0}
    options = [
        Option(setting, ACCURACY[setting.child.bits], latency_ms={"p50": ms}, power_w=watts[setting.child.bits])
        for setting, ms in FASTER.items()
    ]
    world = World(FASTER, sensors=lambda now_s, setting: {"temperature_c": 50 + 4 * watts[setting.child.bits]})
    policy = Policy("temperature=80C", options)
    world.run(policy, 4)
    assert policy.setting == at(8)
    world.run(policy, 20)
    assert policy.setting == at(4)
    assert len(world.switches) == 1


def test_heat_without_figures_switches_nothing() -> None:
    """No measured power: nothing speaks for any setting."""
    world = World(FASTER, sensors=lambda now_s, setting: {"temperature_c": 90.0})
    policy = Policy("temperature=80C", table(FASTER))
    world.run(policy, 30)
    assert world.switches == []
    assert policy.state == "infeasible"


def test_a_sensor_that_falls_silent_or_talks_nonsense_is_noted() -> None:
    """No switch on nonsense, one note on silence."""

    def sensors(now_s: float, setting: Setting) -> dict[str, float | None]:
        return {"power_w": 3.0 if now_s < 5 else float("nan") if now_s < 8 else None}

    world, policy = World(FASTER, sensors=sensors), Policy("power=6W,latency_p99=18ms", table(FASTER))
    world.run(policy, 20)
    assert world.switches == []
    assert [entry.reason for entry in policy.log if "not watched" in entry.reason] == [
        "no reading of power: the budget power<=6W is not watched"
    ]


def test_impossible_latencies_are_ignored() -> None:
    """Negative or missing times are no measurements."""
    policy = Policy("latency_p99=18ms", table(FASTER))
    for index in range(100):
        assert policy.step(index / 50, float("nan")) is None
        assert policy.step(index / 50, -5.0) is None
    assert policy.state == "waiting"


@st.composite
def worlds(draw: st.DrawFn) -> tuple[dict[Setting, float], dict[str, float], float, float, int]:
    """Latencies of up to eight widths in up to two modes, load factors, a limit, a floor, a seed."""
    widths = draw(st.lists(st.sampled_from(range(1, 9)), min_size=1, max_size=8, unique=True))
    gain = draw(st.sampled_from([0.0, 0.0, 0.3, 1.0]))  # 0: all at the same speed, as on every CPU today
    latency, factors = {}, {}
    for mode in ("a", "b")[: draw(st.integers(1, 2))]:
        base = draw(st.floats(2, 40))
        factors[mode] = draw(st.floats(1, 4))
        latency |= {at(bits, mode): base * (1 + gain * (bits - 1) / 7) for bits in widths}
    limit = draw(st.floats(2, 120))
    floor = draw(st.sampled_from([90.0, 98.0, 98.9]))
    return latency, factors, limit, floor, draw(st.integers(0, 2**16))


@settings(max_examples=25, deadline=None)
@given(worlds(), st.booleans())
def test_promises_hold_on_any_device(
    world: tuple[dict[Setting, float], dict[str, float], float, float, int], knows_table: bool
) -> None:
    """Back within 2 s wherever a setting can meet the budget; few switches; never below the floor."""
    latency, factors, limit, floor, seed = world
    if all(ACCURACY[setting.child.bits] < floor for setting in latency):
        return
    simulated = World(latency, step_at(6, factors), seed=seed)
    options = table(latency) if knows_table else [Option(setting, ACCURACY[setting.child.bits]) for setting in latency]
    policy = Policy(f"latency_p99={limit}ms,accuracy>={floor}", options)
    simulated.run(policy, 14)

    assert all(ACCURACY[setting.child.bits] >= floor for setting in simulated.used)
    allowed = [setting for setting in latency if ACCURACY[setting.child.bits] >= floor]
    # Clearly feasible: even 1.1 times the tail of a log-normal of 2 % spread stays below the limit.
    can = any(1.15 * latency[setting] * factors[setting.mode] <= limit for setting in allowed)
    if can and knows_table:
        assert simulated.share_over(limit, 8) <= 0.02
    for start in range(12):  # one a second, and a burst of three at the load step
        assert len([d for d in simulated.switches if start <= d.at_s < start + 2]) <= 5
    steady = simulated.switches_after(10)
    assert len(steady) <= 4
    spread = max(latency.values()) / min(latency.values())
    if len(factors) == 1 and spread == 1 and knows_table:
        assert simulated.switches == []


def named(*children: Child) -> list[Option]:
    """Options of which nothing is known."""
    return [Option(Setting(child)) for child in children]


MIXED = Child("mixed", {"*": 4, "conv1": 8, "conv2": 2}, {"*": 8, "conv2": 4})


def test_narrower_is_nowhere_wider() -> None:
    """Layer by layer, weights and activations; what is wider here and narrower there has no order."""
    assert is_narrower(Child.of(4, 2), Child.of(4))
    assert is_narrower(Child.of(2), Child.of(4))
    assert is_narrower(MIXED, Child.of(8))
    assert is_narrower(Child.of(2, 4), MIXED)
    for one, other in ((MIXED, Child.of(4)), (Child.of(4), MIXED), (Child.of(2), Child.of(4, 2)), (MIXED, MIXED)):
        assert not is_narrower(one, other)
    settings_of = [Setting(child, mode) for child in (Child.of(4), MIXED, Child.of(4, 2), Child.of(2)) for mode in "ba"]
    order = ["2 bits, a", "2 bits, b", "4a2, a", "4a2, b", "4 bits, a", "4 bits, b", "mixed, a", "mixed, b"]
    assert [str(setting) for setting in sorted(settings_of)] == order


def test_without_accuracies_the_widest_serves() -> None:
    """Weights count first, then activations."""
    assert Policy("prefer=accuracy", named(Child.of(2), Child.of(4, 2), Child.of(4))).setting == at(4)
    assert Policy("prefer=accuracy", named(Child.of(4, 2), Child.of(2))).setting == Setting(Child.of(4, 2))


def test_children_of_one_width_are_chosen_by_name() -> None:
    """A device on which narrow activations are faster, and a child with widths per layer between."""
    latency = {Setting(Child.of(4)): 12.0, Setting(MIXED): 8.0, Setting(Child.of(4, 2)): 5.0}
    accuracy = {"4": 98.9, "mixed": 98.7, "4a2": 97.0}
    options = [
        Option(setting, accuracy[setting.child.name], latency_ms={"p50": ms, "p99": 1.1 * ms})
        for setting, ms in latency.items()
    ]
    world = World(latency, step_at(5, {"": 2.0}))
    policy = Policy("latency_p99=18ms,accuracy>=98", options)
    assert policy.setting == at(4)
    world.run(policy, 15)
    assert policy.setting == Setting(MIXED)
    assert "mixed should take" in world.switches[0].reason
    assert policy.log[-1].to_dict()["setting"] == "mixed"
    assert json.loads(json.dumps([entry.to_dict() for entry in policy.log]))[0]["previous"] is None
    assert [one.accuracy for one in table_options((MIXED, Child.of(4)), {"mixed": 98.7, 4: 98.9})] == [98.7, 98.9]

"""The `adaptive` scenario: a policy serves images while another process takes a core and gives it back.

What stands under ``scenarios.adaptive``:

==============  =====================================================================================================
``policy``      the budgets as text; ``chosen``: how they came about where the settings named none
``limits``      the budgets: ``quantity``, ``limit``
``settings``    what there was to choose from: ``label``, ``child``, ``bits``, ``mode`` and the measured table
``t_s``, ``latency_ms``, ``setting``    of every inference: when it ended, how long it took, index of its setting;
                where there are too many, of the slowest in every ``stretch`` of so many
``phases``      ``name``, ``start_s``, ``end_s``, ``load`` (processes), ``inferences``, ``p50_ms``, ``p99_ms``,
                ``share_over`` (the latency budget), ``switches``, ``recovery_s`` (see `recovery`)
``decisions``   the policy's log: ``at_s``, ``kind``, ``setting``, ``previous``, ``reason``
``state``       of the policy at the end: ``met``, ``over``, ``infeasible`` or ``waiting``
==============  =====================================================================================================
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import CHILD
from emqdeploy.format.child import Child
from emqdeploy.measuring.choices import measured_options, thread_modes
from emqdeploy.measuring.load import load
from emqdeploy.measuring.workbench import CHECKS, SCENARIOS, Subject, Workbench
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.policy import Goals, Governed, Option, parse_policy
from emqdeploy.runtimes.policy.options import describe
from emqdeploy.runtimes.source import open_source

SECONDS = 6.0
"""Length of a phase."""

ROOM = 1.5
"""Without a policy the budget is so many times the p99 of the fastest mode before the load."""

KEPT = 20_000
"""Inferences that the result holds at most; of more, the slowest of every stretch, phases count all of them."""


@dataclass
class _Timeline:
    """What happened, inference by inference."""

    start: float = field(default_factory=time.perf_counter)
    times_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    settings: list[int] = field(default_factory=list)

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.start

    def kept(self) -> dict[str, Any]:
        """What the result holds, as ``t_s``, ``latency_ms``, ``setting`` and ``stretch`` (inferences per entry)."""
        stretch = -(-len(self.times_s) // KEPT) or 1
        latencies = np.asarray(self.latencies_ms)
        starts = range(0, len(latencies), stretch)
        slowest = [start + int(latencies[start : start + stretch].argmax()) for start in starts]
        return {
            "stretch": stretch,
            "t_s": [round(self.times_s[index], 5) for index in slowest],
            "latency_ms": [round(self.latencies_ms[index], 5) for index in slowest],
            "setting": [self.settings[index] for index in slowest],
        }


@CHECKS.register("adaptive")
def check(bench: Workbench) -> None:
    """Raises for a policy that does not parse."""
    if bench.settings.policy is not None:
        parse_policy(bench.settings.policy)


@SCENARIOS.register("adaptive")
def adaptive(bench: Workbench) -> dict[str, Any]:
    """Serves through a quiet phase, one with a core taken, and a quiet one again."""
    started = time.perf_counter()
    subject = next((one for one in bench.subjects if one.kind == CHILD), None)
    if subject is None:
        raise UsageError("the adaptive scenario chooses among children and there are none here; leave it out")
    children = [one.child for one in bench.subjects if one.runtime is subject.runtime and one.child is not None]
    with contextlib.ExitStack() as opened:
        runtimes = _open_modes(bench, subject, children, opened)
        bench.report(f"timing {len(children) * len(runtimes)} settings for the policy")
        options = measured_options(runtimes, children, subject.source.accuracy, bench.singles[0])
        goals, chosen = _goals(bench.settings.policy, options)
        timeline = _Timeline()
        network = Governed(runtimes, goals, options, clock=timeline.now)
        order = {option.setting: index for index, option in enumerate(options)}
        phases = _serve(bench, network, timeline, order)
    log = network.policy.log
    return {
        "policy": str(goals),
        "chosen": chosen,
        "limits": [{"quantity": budget.quantity, "limit": budget.limit} for budget in goals.budgets],
        "settings": [{"label": str(option.setting), **describe(option)} for option in options],
        "phases": [_summary(phase, timeline, goals, network) for phase in phases],
        **timeline.kept(),
        "decisions": [entry.to_dict() for entry in log],
        "state": network.policy.state,
        "seconds": time.perf_counter() - started,
    }


def _open_modes(
    bench: Workbench, subject: Subject, children: list[Child], opened: contextlib.ExitStack
) -> dict[str, Runtime]:
    """The runtime at several numbers of threads; at the one that was asked for, where one was."""
    if bench.settings.threads is not None:
        return {"": subject.runtime}
    runtimes = {}
    for mode, threads in thread_modes(usable_cores()).items():
        source = open_source(subject.source.path, children, subject.runtime.name, threads)
        runtimes[mode] = opened.enter_context(source.runtime)
    return runtimes


def _goals(text: str | None, options: Sequence[Option]) -> tuple[Goals, str | None]:
    if text is not None:
        return parse_policy(text), None
    modes = dict.fromkeys(option.setting.mode for option in options)
    tails = [[one.latency_ms["p99"] for one in options if one.setting.mode == mode] for mode in modes]
    fastest = min(float(np.median(tail)) for tail in tails)
    limit = float(f"{ROOM * fastest:.3g}")
    return parse_policy(f"latency_p99={limit}ms"), f"{ROOM} times the p99 of the fastest mode before the load"


def _serve(bench: Workbench, network: Governed, timeline: _Timeline, order: dict[Any, int]) -> list[dict[str, Any]]:
    images = bench.singles
    seconds = bench.settings.seconds or SECONDS
    phases = []
    for name, processes in (("quiet", 0), ("one core taken", 1), ("quiet again", 0)):
        if bench.stop():
            break
        bench.report(f"{name}: {seconds:g} s under {network.policy.goals}")
        with load(processes, seconds + 10):
            begin = timeline.now()
            while timeline.now() < begin + seconds and not bench.stop():
                setting = network.setting
                network(images[len(timeline.times_s) % len(images)])
                assert network.last is not None
                timeline.times_s.append(timeline.now())
                timeline.latencies_ms.append(network.last.latency_ms)
                timeline.settings.append(order[setting])
            phases.append({"name": name, "start_s": begin, "end_s": timeline.now(), "load": processes})
    return phases


def _summary(phase: dict[str, Any], timeline: _Timeline, goals: Goals, network: Governed) -> dict[str, Any]:
    times = np.asarray(timeline.times_s)
    inside = (times >= phase["start_s"]) & (times <= phase["end_s"])
    taken = np.asarray(timeline.latencies_ms)[inside]
    switches = [
        entry for entry in network.policy.log
        if entry.kind == "switch" and phase["start_s"] <= entry.at_s <= phase["end_s"]
    ]  # fmt: skip
    budget = next((budget for budget in goals.budgets if budget.percentile is not None), None)
    recovered = over = None
    if budget is not None and len(taken):
        assert budget.percentile is not None
        over = float((taken > budget.limit).mean())
        recovered = recovery(
            [float(at) - phase["start_s"] for at in times[inside]], taken.tolist(), budget.limit, budget.percentile
        )
    return {
        **phase,
        "inferences": len(taken),
        "p50_ms": float(np.percentile(taken, 50)) if len(taken) else None,
        "p99_ms": float(np.percentile(taken, 99)) if len(taken) else None,
        "share_over": over,
        "switches": len(switches),
        "recovery_s": recovered,
    }


def recovery(
    times_s: Sequence[float], latencies_ms: Sequence[float], limit_ms: float, percentile: float
) -> float | None:
    """The earliest moment from which on the percentile of all that follows is within the limit.

    Args:
        times_s: end of each inference, from the start of the phase.
        latencies_ms: of each.
        limit_ms: the budget.
        percentile: of the budget.

    Returns:
        seconds, 0 where it was within from the start; None where less than a quarter of the phase would remain.
    """
    slow = np.asarray(latencies_ms) > limit_ms
    count = len(slow)
    remaining = np.arange(count, 0, -1)
    share = slow[::-1].cumsum()[::-1] / remaining
    fits = np.flatnonzero(share <= 1 - percentile / 100 + 1e-12)
    if not len(fits):
        return None
    first = int(fits[0])
    if first == 0:
        return 0.0
    moment = float(times_s[first - 1])
    return None if moment > 0.75 * times_s[-1] else moment

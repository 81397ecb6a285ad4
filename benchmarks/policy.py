"""A policy meets a load step: another process takes one of two cores.

Both runtimes (one thread, two threads) of a network with random weights are timed under the load first; the latency
budget lies between the tails of the best and the worst setting, so that some setting can meet it and the load breaks
another. Random weights have no accuracy: how often a child answers like that of 8 bits stands for it, and the floor
excludes the children that do so least.

Bounds: back within the budget 2 s after the step, at most one switch per second from then on, the floor never crossed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.common import TRAINED, Subject, arguments, show, subject, verdict, write
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.measuring.choices import measured_options, thread_modes
from emqdeploy.measuring.load import load
from emqdeploy.measuring.scenarios.adaptive import recovery
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.policy import Governed, Option, Setting

CORES = 2
RECOVERY_BOUND_S = 2.0
SWITCH_BOUND = 1.0
PERCENTILE = 99


@dataclass
class Served:
    """One phase: when each inference ended, how long it took, what served it."""

    times_s: list[float] = field(default_factory=list)
    latencies_ms: list[float] = field(default_factory=list)
    settings: list[Setting] = field(default_factory=list)
    switches_s: list[float] = field(default_factory=list)

    def share_over(self, limit_ms: float) -> float:
        """Share of inferences beyond a limit."""
        return float((np.asarray(self.latencies_ms) > limit_ms).mean())


def serve(network: Governed, images: Floats, seconds: float) -> Served:
    """Runs one image at a time under the policy."""
    served = Served()
    start = time.perf_counter()
    while (now := time.perf_counter() - start) < seconds:
        setting = network.setting
        index = len(served.times_s) % len(images)
        network(images[index : index + 1])
        assert network.last is not None
        served.times_s.append(time.perf_counter() - start)
        served.latencies_ms.append(network.last.latency_ms)
        served.settings.append(setting)
        if network.decision is not None:
            served.switches_s.append(now)
    return served


def agreement(runtime: Runtime, images: Floats, children: Sequence[Child] = TRAINED) -> dict[Child, float]:
    """Percent of images that each child puts into the class of the last one.

    Classes are compared without their mean logits: random weights prefer one class whatever the image.
    """
    classes = {}
    for child in children:
        logits = np.concatenate([runtime.run(images[index : index + 1], child) for index in range(len(images))])
        classes[child] = CLASSIFICATION.decide(logits - logits.mean(axis=0))
    return {child: 100 * float((found == classes[children[-1]]).mean()) for child, found in classes.items()}


@contextlib.contextmanager
def on_cores(count: int) -> Iterator[int]:
    """This process and what it starts share so many cores, of which the load takes one."""
    if not hasattr(os, "sched_setaffinity"):
        yield min(count, os.cpu_count() or 1)
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(before)[:count])
    try:
        yield len(os.sched_getaffinity(0))
    finally:
        os.sched_setaffinity(0, before)


def tails(options: Sequence[Option]) -> dict[str, float]:
    """The p99 of each number of threads; children run alike, so the median over them is a steadier figure."""
    found: dict[str, list[float]] = {}
    for option in options:
        found.setdefault(option.setting.mode, []).append(option.latency_ms["p99"])
    return {mode: float(np.median(values)) for mode, values in found.items()}


def budget(loaded: Sequence[Option], quiet: Sequence[Option]) -> float:
    """Between what the best and the worst setting can keep under the load, and above what all keep without it."""
    under_load = tails(loaded).values()
    return float(f"{max(float(np.sqrt(min(under_load) * max(under_load))), 1.1 * max(tails(quiet).values())):.3g}")


def measure(network: Subject, cores: int, quick: bool) -> list[dict[str, Any]]:
    """The rounds of one network."""
    rounds, phases, timing_s = (1, (1.0, 2.0), 0.3) if quick else (3, (2.0, 5.0), 0.7)
    with contextlib.ExitStack() as opened:
        runtimes = {
            mode: opened.enter_context(OnnxRuntime(network.checkpoint, TRAINED, threads=threads))
            for mode, threads in thread_modes(cores).items()
        }
        images = network.images(8 if quick else 48)
        accuracy = agreement(next(iter(runtimes.values())), images)
        floor = sorted(accuracy.values())[len(accuracy) // 2]
        allowed = [child for child in TRAINED if accuracy[child] >= floor]
        quiet = measured_options(runtimes, TRAINED, accuracy, images[:1], timing_s)
        with load(1, 600):
            loaded = measured_options(runtimes, allowed, accuracy, images[:1], timing_s)
        limit = budget(loaded, quiet)
        rows = []
        for number in range(rounds):
            governed = Governed(runtimes, f"latency_p{PERCENTILE}={limit}ms,accuracy>={floor}", quiet)
            serve(governed, images, phases[0])
            with load(1, 600):
                stepped = serve(governed, images, phases[1])
            row = judged(stepped, limit, phases[1], accuracy, floor)
            rows.append(
                {
                    "model": network.model,
                    "round": number,
                    "limit_ms": limit,
                    "floor": floor,
                    "p99_under_load_ms": tails(loaded),
                    "can_be_met": min(tails(loaded).values()) <= limit,
                    **row,
                    "decisions": [entry.to_dict() for entry in governed.policy.log],
                }
            )
    return rows


def judged(
    served: Served,
    limit: float,
    seconds: float,
    accuracy: Mapping[Child, float],
    floor: float,
    percentile: int = PERCENTILE,
) -> dict[str, Any]:
    """The figures of a phase under load."""
    recovered = recovery(served.times_s, served.latencies_ms, limit, percentile)
    steady_s = None if recovered is None else seconds - recovered
    after = [at for at in served.switches_s if recovered is not None and at > recovered]
    return {
        "inferences": len(served.times_s),
        "share_over": served.share_over(limit),
        "recovery_s": recovered,
        "switches": len(served.switches_s),
        "switches_per_second_steady": None if not steady_s else len(after) / steady_s,
        "least_accuracy_used": min(accuracy[setting.child] for setting in served.settings),
        "floor_kept": all(accuracy[setting.child] >= floor for setting in served.settings),
        "settings": sorted({str(setting) for setting in served.settings}),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Measures, prints and writes the report."""
    options = arguments(__doc__, "policy").parse_args(argv)
    rows: list[dict[str, Any]] = []
    with on_cores(CORES) as cores:
        for model in ("resnet20",) if options.quick else ("resnet20", "resnet18"):
            rows += measure(subject(model), cores, options.quick)
    shown = [
        (
            f"{row['model']}, round {row['round'] + 1}",
            row["limit_ms"],
            f"{100 * row['share_over']:.2f} %",
            "not reached" if row["recovery_s"] is None else f"{row['recovery_s']:.2f} s",
            _verdict(row),
            "-" if row["switches_per_second_steady"] is None else f"{row['switches_per_second_steady']:.2f}",
            f"{row['least_accuracy_used']:.1f} of {row['floor']:.1f} %",
        )
        for row in rows
    ]
    columns = ("one core taken", "budget, p99 ms", "over it", "back after", "", "switches/s then", "least, floor")
    show("A policy under a load step", columns, shown)
    write(options.json, "policy", options.quick, rows)


def _verdict(row: Mapping[str, Any]) -> str:
    if not row["can_be_met"]:
        return "no setting can meet it"
    if row["recovery_s"] == 0 and not row["switches"]:
        return "never over, nothing to do"
    steady = row["switches_per_second_steady"]
    if row["recovery_s"] is None or steady is None or steady > SWITCH_BOUND or not row["floor_kept"]:
        return "MISSED"
    return verdict(row["recovery_s"], RECOVERY_BOUND_S)


if __name__ == "__main__":
    main()

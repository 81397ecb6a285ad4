"""The `single` scenario: one image at a time, the next when the last one is answered (MLPerf's SingleStream)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np

from emqdeploy.format.bundle import BASELINE, CHILD
from emqdeploy.format.precision import INT8
from emqdeploy.measuring.references import REFERENCES
from emqdeploy.measuring.references import RUNTIME as REFERENCE_RUNTIME
from emqdeploy.measuring.rows import Interval, Latency, Ratio
from emqdeploy.measuring.settings import MAX_SAMPLES, MIN_SAMPLES, MIN_SECONDS, BenchSettings
from emqdeploy.measuring.statistics import median_interval, median_ratio, percentiles
from emqdeploy.measuring.workbench import SCENARIOS, Subject, Workbench

BLOCK = 10
"""Inferences of one subject before the next one has its turn."""

SETTLED = 0.02
"""Warm-up ends when the medians of three blocks in a row differ by less than this share."""


@SCENARIOS.register("single")
def single(bench: Workbench) -> dict[str, Any]:
    """Latency of every subject, in alternating blocks, so that a drifting clock hits all alike."""
    settings = bench.settings
    started = time.perf_counter()
    bench.report(f"warming up {len(bench.subjects)} networks")
    warm_up = [_warm_up(bench, subject) for subject in bench.subjects]
    bench.report(f"timing {len(bench.subjects)} networks one image at a time, in turns")
    windows = len(bench.monitor.windows)
    samples = take_turns(bench)
    bench.monitor.look()
    first = samples[0]
    for subject, taken, warmed in zip(bench.subjects, samples, warm_up, strict=True):
        if not taken:
            continue
        row = bench.row(subject)
        interval = Interval(**median_interval(taken, BLOCK, settings.seed))
        row.latency_ms = Latency(**percentiles(taken), interval=interval)
        row.ratio_to_first = Ratio(**median_ratio(taken, first, BLOCK, settings.seed))
        row.samples_ms = [round(sample, 5) for sample in taken]
        row.disturbed += bench.monitor.reasons()
        if not warmed["settled"]:
            row.disturbed.append(f"its median had not settled after {warmed['seconds']:.1f} s of warm-up")
    _compare_with_references(bench, samples)
    compared = _compare_runtimes(bench, samples)
    bench.result["notes"] += [_verdict(one) for one in compared]
    return {
        "runtimes": compared,
        "clock": "host: from the call with a normalised image to the logits, the headline of every row",
        "headline": "p50, with its 95 % interval; MLPerf's single stream quotes p90",
        "block": BLOCK,
        "warm_up": warm_up,
        "monitor": bench.monitor.windows[windows:],
        "seconds": time.perf_counter() - started,
    }


def _compare_with_references(bench: Workbench, samples: list[list[float]]) -> None:
    """How many times as fast as onnxruntime's int8 and float32 of the same network every row is, rounds paired.

    Where the table has no row of the former, the widest child is it: in onnxruntime all children are int8.
    """
    timed = [(bench.row(one), taken) for one, taken in zip(bench.subjects, samples, strict=True) if taken]
    timed = [(row, taken) for row, taken in timed if row.runtime == REFERENCE_RUNTIME]
    bases = {str(row.flavour): taken for row, taken in timed if row.kind == BASELINE and row.flavour in REFERENCES}
    children = [(row.bits or 0, taken) for row, taken in timed if row.kind == CHILD and row.computed_as == INT8]
    if bases and children:
        bases.setdefault(INT8, max(children, key=lambda one: one[0])[1])
    for subject, taken in zip(bench.subjects, samples, strict=True):
        if taken:
            bench.row(subject).times_as_fast = {
                name: Ratio(**median_ratio(base, taken, BLOCK, bench.settings.seed)) for name, base in bases.items()
            }


def _compare_runtimes(bench: Workbench, samples: list[list[float]]) -> list[dict[str, Any]]:
    """The same child in two runtimes: how many times longer the second one takes, rounds paired."""
    found = []
    rows = [pair for pair in zip(bench.subjects, samples, strict=True) if pair[0].kind == CHILD and pair[1]]
    for (first, base), (second, taken) in combinations(rows, 2):
        if first.child == second.child and first.runtime.name != second.runtime.name:
            ratio = median_ratio(taken, base, BLOCK, bench.settings.seed)
            names = {"first": _named(first, bench.subjects), "second": _named(second, bench.subjects)}
            found.append({"label": str(first.child), **names, **ratio})
    return found


def _named(subject: Subject, subjects: Sequence[Subject]) -> str:
    """Its runtime, and its flavour where the child runs there in several."""
    alike = [one for one in subjects if (one.child, one.runtime.name) == (subject.child, subject.runtime.name)]
    flavours = {one.opening.flavour for one in alike if one.kind == CHILD}
    return f"{subject.runtime.name} ({subject.opening.flavour})" if len(flavours) > 1 else subject.runtime.name


def _verdict(compared: dict[str, Any]) -> str:
    low, high = compared["low"], compared["high"]
    fast, slow = compared["first"], compared["second"]
    if low <= 1 <= high:
        return f"{compared['label']}: {fast} and {slow} are equally fast here, as far as this run can tell"
    if high < 1:
        fast, slow, low, high = slow, fast, 1 / high, 1 / low
    return f"{compared['label']}: {fast} is faster here, {slow} takes {low:.2f} to {high:.2f} times as long"


def take_turns(bench: Workbench) -> list[list[float]]:
    """Milliseconds per subject; the first call of a block is not counted.

    Each order is random and then taken in reverse: drift cancels, and nobody has the same neighbour for the whole run.
    """
    images = bench.singles
    samples: list[list[float]] = [[] for _ in bench.subjects]
    clock = time.perf_counter_ns
    generator = np.random.default_rng(bench.settings.seed)
    order = list(range(len(bench.subjects)))
    backwards = True
    spent = 0.0
    while not bench.stop() and not _enough(bench.settings, len(samples[-1]), spent):
        order = order[::-1] if (backwards := not backwards) else [int(one) for one in generator.permutation(order)]
        for index in order:
            call, taken = bench.subjects[index].runtime, samples[index]
            bench.subjects[index].select()
            call(images[0])
            for number in range(len(taken), len(taken) + BLOCK):
                image = images[number % len(images)]
                start = clock()
                call(image)
                taken.append((clock() - start) / 1e6)
        spent += max(sum(taken[-BLOCK:]) for taken in samples) / 1e3
        bench.monitor.tick()
    wanted = bench.settings.samples
    return [taken[:wanted] for taken in samples]


def _enough(settings: BenchSettings, count: int, seconds: float) -> bool:
    """Says whether every row has what was asked for: a fixed count, a fixed time, or both of the defaults."""
    if settings.samples is not None:
        return count >= settings.samples
    if settings.seconds is not None:
        return count > 0 and seconds >= settings.seconds
    return count >= MAX_SAMPLES or (count >= MIN_SAMPLES and seconds >= MIN_SECONDS)


def _warm_up(bench: Workbench, subject: Subject) -> dict[str, Any]:
    """Runs until the median is stable, at most as long as the settings allow."""
    image = bench.singles[0]
    medians: list[float] = []
    subject.select()
    started = time.perf_counter()
    while True:
        block = []
        for _ in range(BLOCK):
            start = time.perf_counter_ns()
            subject(image)
            block.append((time.perf_counter_ns() - start) / 1e6)
        medians.append(float(np.median(block)))
        last = medians[-3:]
        settled = len(last) == 3 and max(last) - min(last) <= SETTLED * min(last)
        seconds = time.perf_counter() - started
        if settled or seconds >= bench.settings.warm_up_seconds or bench.stop():
            return {
                "label": subject.label,
                "settled": settled,
                "inferences": len(medians) * BLOCK,
                "seconds": round(seconds, 4),
            }

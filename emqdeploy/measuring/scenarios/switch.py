"""The `switch` scenario: a trace of bit-widths; what the call costs, when the first output is there, what follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.measuring.workbench import CHECKS, SCENARIOS, Subject, Workbench
from emqdeploy.registry import Registry

TRACES: Registry[Callable[[Sequence[int], int], Iterator[int]]] = Registry("trace")
"""Endless traces by name: ``(widths, seed)`` to one bit-width after the other."""


@TRACES.register("round-robin")
def _round_robin(widths: Sequence[int], seed: int) -> Iterator[int]:
    """Every width in turn; the first one is the start, so the second one comes first."""
    while True:
        yield from (*widths[1:], widths[0])


@TRACES.register("random")
def _random(widths: Sequence[int], seed: int) -> Iterator[int]:
    """Any width but the present one."""
    generator = np.random.default_rng(seed)
    present = widths[0]
    while True:
        present = int(generator.choice([width for width in widths if width != present]))
        yield present


def read_trace(name: str, widths: Sequence[int], count: int, seed: int) -> list[int]:
    """Returns the bit-widths to switch to, one after the other.

    Args:
        name: of a registered trace, or of a file with one bit-width a line.
        widths: that are there to switch between.
        count: length of a generated trace; a file is taken whole.
        seed: of a random trace.

    Raises:
        UsageError: neither a trace nor a file has this name.
        EmqError: the file holds something else than available bit-widths.
    """
    if name in TRACES:
        return list(islice(TRACES[name](widths, seed), count))
    path = Path(name)
    if not path.is_file():
        known = ", ".join(TRACES)
        raise UsageError(f"no trace {name!r}; known: {known}, or a file with one bit-width a line")
    trace = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if not line.strip():
            continue
        if not line.strip().isdecimal() or int(line) not in widths:
            have = ", ".join(map(str, widths))
            raise EmqError(
                f"{path} line {number} says {line.strip()[:20]!r}; a trace holds available bit-widths: {have}"
            )
        trace.append(int(line))
    if not trace:
        raise EmqError(f"{path} is empty; a trace holds one bit-width a line")
    return trace


@SCENARIOS.register("switch")
def switch(bench: Workbench) -> dict[str, Any]:
    """Follows the trace in every runtime that holds several widths; every switch is kept."""
    started = time.perf_counter()
    rows = []
    for group in _groups(bench):
        trace = _trace(bench, group)
        bench.report(f"switching {len(trace)} times in {group[0].runtime.name}")
        taken = _follow(bench, group, trace, started)
        bench.result["switches"] += taken
        for subject in group:
            arrived = [one for one in taken if one["to"] == subject.bits and one["from"] != subject.bits]
            if arrived:
                kinds = ("set_bits_ms", "first_output_ms", "steady_ms")
                rows.append(
                    {"label": subject.label, "bits": subject.bits}
                    | {kind: percentiles([one[kind] for one in arrived]) for kind in kinds}
                )
    return {
        "trace": bench.settings.trace,
        "steady": f"median of {bench.settings.steady} inferences after the first",
        "rows": rows,
        "seconds": time.perf_counter() - started,
    }


@CHECKS.register("switch")
def check(bench: Workbench) -> None:
    """Raises for a trace that cannot be followed."""
    for group in _groups(bench):
        _trace(bench, group)


def _groups(bench: Workbench) -> list[list[Subject]]:
    """The subjects that share a runtime, where there are several bit-widths to switch between."""
    groups: dict[int, list[Subject]] = {}
    for subject in bench.subjects:
        if subject.bits is not None:
            groups.setdefault(id(subject.runtime), []).append(subject)
    return [group for group in groups.values() if len(group) > 1]


def _trace(bench: Workbench, group: list[Subject]) -> list[int]:
    widths = [subject.bits for subject in group if subject.bits is not None]
    return read_trace(bench.settings.trace, widths, bench.settings.switches, bench.settings.seed)


def _follow(bench: Workbench, group: list[Subject], trace: list[int], started: float) -> list[dict[str, Any]]:
    """Times every switch of the trace."""
    runtime, images = group[0].runtime, bench.singles
    kind = group[0].kind
    taken = []
    clock = time.perf_counter_ns
    for subject in reversed(group):  # what a first use costs belongs to loading, not to switching
        subject.select()
        subject(images[0])
    for number, bits in enumerate(trace):
        if bench.stop():
            break
        before, image = runtime.bits, images[number % len(images)]
        start = clock()
        runtime.set_bits(bits)
        switched = clock()
        runtime(image)
        done = clock()
        steady = []
        for _ in range(bench.settings.steady):
            again = clock()
            runtime(image)
            steady.append((clock() - again) / 1e6)
        taken.append(
            {
                "from": before,
                "to": bits,
                "runtime": runtime.name,
                "kind": kind,
                "set_bits_ms": (switched - start) / 1e6,
                "first_output_ms": (done - switched) / 1e6,
                "steady_ms": float(np.median(steady)),
                "t_s": round(time.perf_counter() - started, 5),
            }
        )
        bench.monitor.tick()
    return taken

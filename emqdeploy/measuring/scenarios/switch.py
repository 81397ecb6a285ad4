"""The `switch` scenario: a trace of children; what the call costs, when the first output is there, what follows."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child, find_child
from emqdeploy.measuring.rows import Switch
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.measuring.workbench import CHECKS, SCENARIOS, Subject, Workbench
from emqdeploy.registry import Registry

TRACES: Registry[Callable[[Sequence[Child], int], Iterator[Child]]] = Registry("trace")
"""Endless traces by name: ``(children, seed)`` to one child after the other."""


@TRACES.register("round-robin")
def _round_robin(children: Sequence[Child], seed: int) -> Iterator[Child]:
    """Every child in turn; the first one is the start, so the second one comes first."""
    while True:
        yield from (*children[1:], children[0])


@TRACES.register("random")
def _random(children: Sequence[Child], seed: int) -> Iterator[Child]:
    """Any child but the present one."""
    generator = np.random.default_rng(seed)
    present = children[0]
    while True:
        others = [child for child in children if child != present]
        present = others[int(generator.integers(len(others)))]
        yield present


def read_trace(name: str, children: Sequence[Child], count: int, seed: int) -> list[Child]:
    """Returns the children to switch to, one after the other.

    Args:
        name: of a registered trace, or of a file with one child a line.
        children: that are there to switch between.
        count: length of a generated trace; a file is taken whole.
        seed: of a random trace.

    Raises:
        UsageError: neither a trace nor a file has this name.
        EmqError: the file holds something else than available children.
    """
    if name in TRACES:
        return list(islice(TRACES[name](children, seed), count))
    path = Path(name)
    if not path.is_file():
        known = ", ".join(TRACES)
        raise UsageError(f"no trace {name!r}; known: {known}, or a file with one child a line")
    trace = []
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        if line.strip():
            try:
                trace.append(find_child(children, line.strip()))
            except UsageError as error:
                have = ", ".join(child.name for child in children)
                raise EmqError(
                    f"{path} line {number} says {line.strip()[:20]!r}; a trace holds available children: {have}"
                ) from error
    if not trace:
        raise EmqError(f"{path} is empty; a trace holds one child a line")
    return trace


@SCENARIOS.register("switch")
def switch(bench: Workbench) -> dict[str, Any]:
    """Follows the trace in every runtime that holds several children; every switch is kept."""
    started = time.perf_counter()
    rows = []
    for group in _groups(bench):
        trace = _trace(bench, group)
        bench.report(f"switching {len(trace)} times in {group[0].runtime.name}")
        taken = _follow(bench, group, trace, started)
        bench.result["switches"] += [one.to_dict() for one in taken]
        for subject in group:
            name = _child(subject).name
            arrived = [one for one in taken if one.child == name != one.previous]
            if arrived:
                kinds = ("set_bits_ms", "first_output_ms", "steady_ms")
                rows.append(
                    {"label": subject.label, "child": name, "bits": _child(subject).bits}
                    | {kind: percentiles([getattr(one, kind) for one in arrived]) for kind in kinds}
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
    """The subjects that share a runtime, where there are several children to switch between."""
    groups: dict[int, list[Subject]] = {}
    for subject in bench.subjects:
        if subject.child is not None:
            groups.setdefault(id(subject.runtime), []).append(subject)
    return [group for group in groups.values() if len(group) > 1]


def _child(subject: Subject) -> Child:
    assert subject.child is not None, "groups hold no baselines"
    return subject.child


def _trace(bench: Workbench, group: list[Subject]) -> list[Child]:
    settings = bench.settings
    return read_trace(settings.trace, [_child(subject) for subject in group], settings.switches, settings.seed)


def _follow(bench: Workbench, group: list[Subject], trace: list[Child], started: float) -> list[Switch]:
    """Times every switch of the trace."""
    runtime, images = group[0].runtime, bench.singles
    taken = []
    clock = time.perf_counter_ns
    for subject in reversed(group):  # what a first use costs belongs to loading, not to switching
        subject.select()
        subject(images[0])
    for number, child in enumerate(trace):
        if bench.stop():
            break
        before, image = runtime.child, images[number % len(images)]
        start = clock()
        runtime.use(child)
        switched = clock()
        runtime(image)
        done = clock()
        steady = []
        for _ in range(bench.settings.steady):
            again = clock()
            runtime(image)
            steady.append((clock() - again) / 1e6)
        taken.append(
            Switch(
                previous=before.name,
                child=child.name,
                runtime=runtime.name,
                kind=group[0].kind,
                set_bits_ms=(switched - start) / 1e6,
                first_output_ms=(done - switched) / 1e6,
                steady_ms=float(np.median(steady)),
                t_s=round(time.perf_counter() - started, 5),
            )
        )
        bench.monitor.tick()
    return taken

"""Energy per inference of every row: idle first, then each network alone for a few seconds, then idle again."""

from __future__ import annotations

import time

from emqdeploy.errors import UsageError
from emqdeploy.measuring.energy import ENERGY_SOURCES, Energy, EnergySource, Meter, NotMeasured, summary
from emqdeploy.measuring.rows import EnergyUse
from emqdeploy.measuring.sysfs import Tree
from emqdeploy.measuring.workbench import Subject, Workbench

IDLE_SECONDS = 2.0
BLOCK = 10


def check_source(wanted: str) -> None:
    """Raises for a name that no source has."""
    if wanted not in ("auto", "none", *ENERGY_SOURCES):
        raise UsageError(f"unknown energy source {wanted!r}; known: auto, none, {', '.join(ENERGY_SOURCES)}")


def find_source(wanted: str, order: tuple[str, ...], tree: Tree) -> EnergySource:
    """Returns the source that was asked for, or the first one of a device's that works.

    Args:
        wanted: ``auto``, ``none`` or a registered name.
        order: the device's sources, best first.
        tree: where to read.

    Raises:
        NotMeasured: none works; the message says why, source by source.
    """
    if wanted == "none":
        raise NotMeasured("it was not asked for")
    reasons = []
    for name in order if wanted == "auto" else (wanted,):
        try:
            return ENERGY_SOURCES[name](tree)
        except NotMeasured as reason:
            reasons.append(str(reason))
    raise NotMeasured("; ".join(reasons))


def measure_energy(bench: Workbench, order: tuple[str, ...]) -> None:
    """Writes ``energy`` into every row."""
    try:
        source = find_source(bench.settings.energy, order, bench.monitor.tree)
        bench.report(f"idle power from {source.name}: {source.rail}")
        before = _idle(source)
    except NotMeasured as reason:
        for subject in bench.subjects:
            bench.row(subject).energy = EnergyUse(not_measured=str(reason))
        return
    taken: list[tuple[Subject, Energy | NotMeasured, int]] = []
    for subject in bench.subjects:
        if bench.stop():
            break
        bench.report(f"energy of {subject.label}, {bench.settings.energy_seconds:g} s")
        taken.append((subject, *_work(bench, source, subject)))
    try:
        idle = _mean(before, _idle(source))
    except NotMeasured:
        idle = before
    for subject, work, inferences in taken:
        bench.row(subject).energy = _use(source, idle, work, inferences)


def _use(source: EnergySource, idle: Energy, work: Energy | NotMeasured, inferences: int) -> EnergyUse:
    try:
        if isinstance(work, NotMeasured):
            raise work
        return summary(source, idle, work, inferences)
    except NotMeasured as reason:
        return EnergyUse(not_measured=str(reason))


def _idle(source: EnergySource) -> Energy:
    with Meter(source) as meter:
        time.sleep(IDLE_SECONDS)
    return meter.energy()


def _mean(before: Energy, after: Energy) -> Energy:
    """Idle before and after the work together: a board that warms up draws more when it is idle again."""
    trouble = before.trouble or after.trouble
    distinct = max(before.distinct, after.distinct)
    samples = before.samples + after.samples
    return Energy(before.joules + after.joules, before.seconds + after.seconds, samples, trouble, distinct)


def _work(bench: Workbench, source: EnergySource, subject: Subject) -> tuple[Energy | NotMeasured, int]:
    """Runs one network, one image after the other, under the meter."""
    images = bench.singles
    subject.select()
    subject(images[0])
    inferences = 0
    until = time.perf_counter() + bench.settings.energy_seconds
    with Meter(source) as meter:
        while time.perf_counter() < until and not bench.stop():
            for _ in range(BLOCK):
                subject(images[inferences % len(images)])
                inferences += 1
    try:
        return meter.energy(), max(inferences, 1)
    except NotMeasured as reason:
        return reason, max(inferences, 1)

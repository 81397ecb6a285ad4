"""What a scenario works with: the networks side by side, images, the monitor, and when to stop."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from emqdeploy.data import Split
from emqdeploy.ending import ASKED
from emqdeploy.format.bundle import Role
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.disturbance import Monitor
from emqdeploy.measuring.opening import Opening
from emqdeploy.measuring.rows import BenchRow
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.progress import Report
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.source import Source


@dataclass(frozen=True)
class Subject:
    """What a row of a bench measures: a child, or a baseline, in one runtime.

    Attributes:
        label: unique, shown to people.
        kind: ``child``, ``selector`` or ``baseline``.
        child: None for a baseline.
        runtime: the open adapter; several subjects share one.
        source: what it was opened from.
        opening: how to open it again, in a fresh process.
    """

    label: str
    kind: Role
    child: Child | None
    runtime: Runtime
    source: Source
    opening: Opening

    def select(self) -> None:
        """Makes the runtime answer as this subject."""
        if self.child is not None:
            self.runtime.use(self.child)

    def __call__(self, images: Floats) -> Floats:
        """Returns logits of normalised images."""
        return self.runtime(images)


@dataclass
class Stop:
    """Whether the user asked to stop: scenarios look between blocks and keep what they have."""

    requested: bool = False

    def __call__(self) -> bool:
        """Says whether to stop now."""
        return self.requested


@dataclass
class Workbench:
    """Everything that a scenario may use.

    Attributes:
        settings: what was asked for.
        subjects: the rows, in the order of the table.
        images: normalised images ``(N, C, H, W)`` to time with.
        test: the labelled test split, where it is at hand.
        monitor: tick it between timed blocks.
        report: receives progress, one line each.
        stop: says whether the user asked to stop.
        result: the result so far, without its rows.
        rows: one per subject, in their order.
    """

    settings: BenchSettings
    subjects: list[Subject]
    images: Floats
    test: Split | None
    monitor: Monitor
    report: Report
    stop: Stop
    result: dict[str, Any] = field(default_factory=dict)
    rows: list[BenchRow] = field(default_factory=list)

    @property
    def singles(self) -> list[Floats]:
        """The images one by one, each ``(1, C, H, W)`` and contiguous."""
        return [np.ascontiguousarray(self.images[index : index + 1]) for index in range(len(self.images))]

    def row(self, subject: Subject) -> BenchRow:
        """Returns the subject's row of the result, to write into."""
        return self.rows[self.subjects.index(subject)]


SCENARIOS: Registry[Callable[[Workbench], dict[str, Any]]] = Registry("scenario")
"""Scenarios by name: each measures, may write into rows and ``result["switches"]``, and returns what stands under
``result["scenarios"][name]``. It looks at ``stop`` between blocks and then returns what it has."""

CHECKS: Registry[Callable[[Workbench], None]] = Registry("check of a scenario")
"""By a scenario's name, where it has one: raises for settings that it cannot follow, before anything is timed."""


@contextlib.contextmanager
def stop_on_signals(stop: Stop) -> Iterator[None]:
    """Turns the first Ctrl-C, termination or hang-up into a request; a second Ctrl-C ends at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    signals = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]

    def request(number: int, frame: object) -> None:
        if stop.requested:
            raise KeyboardInterrupt
        stop.requested = True
        ASKED.append(number)

    before = {number: signal.signal(number, request) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

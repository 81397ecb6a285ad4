"""The `offline` scenario: images per second at several batch sizes (MLPerf's Offline)."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.measuring.workbench import SCENARIOS, Subject, Workbench

MIN_BATCHES = 5
SECONDS = 0.5
"""Every subject runs each batch size so often and so long, whichever is more."""


def _that_take(bench: Workbench, images: Floats, rows: list[dict[str, Any]]) -> list[Subject]:
    """Warms up and returns the subjects that take this batch; one built for smaller ones gets a row that says so."""
    found = []
    for subject in bench.subjects:
        try:
            subject.select()
            subject(images)
            found.append(subject)
        except EmqError as error:
            rows.append({"label": subject.label, "batch": len(images), "not_measured": str(error)})
    return found


def _enough(wanted: int | None, samples: list[float], seconds: float) -> bool:
    if wanted is not None:
        return len(samples) >= wanted
    return len(samples) >= MIN_BATCHES and sum(samples) >= 1e3 * seconds


@SCENARIOS.register("offline")
def offline(bench: Workbench) -> dict[str, Any]:
    """Throughput of every subject at every batch size, subjects in turns, one batch each."""
    started = time.perf_counter()
    rows: list[dict[str, Any]] = []
    seconds = bench.settings.seconds or SECONDS
    for size in bench.settings.batches:
        if bench.stop():
            break
        bench.report(f"throughput at batch {size}")
        repeats = -(-size // len(bench.images))
        images = np.ascontiguousarray(np.concatenate([bench.images] * repeats)[:size])
        subjects = _that_take(bench, images, rows)
        taken: list[list[float]] = [[] for _ in subjects]
        while not bench.stop() and subjects and not _enough(bench.settings.samples, taken[-1], seconds):
            for subject, samples in zip(subjects, taken, strict=True):
                subject.select()
                start = time.perf_counter_ns()
                subject(images)
                samples.append((time.perf_counter_ns() - start) / 1e6)
            bench.monitor.tick()
        for subject, samples in zip(subjects, taken, strict=True):
            if samples:
                rows.append(
                    {
                        "label": subject.label,
                        "batch": size,
                        "images_per_second": 1e3 * size * len(samples) / sum(samples),
                        "batch_ms": percentiles(samples),
                        "samples_ms": [round(sample, 5) for sample in samples],
                    }
                )
    return {"rows": rows, "seconds": time.perf_counter() - started}

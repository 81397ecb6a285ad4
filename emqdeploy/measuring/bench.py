"""The bench: opens what is to be measured, runs the scenarios, adds what each row costs; returns one result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.format.bundle import CHILD, SELECTOR
from emqdeploy.format.child import Child
from emqdeploy.measuring.devices import Device, find_device
from emqdeploy.measuring.disturbance import Monitor
from emqdeploy.measuring.fresh import cost_of_loading
from emqdeploy.measuring.journal import Journal
from emqdeploy.measuring.opening import Opening
from emqdeploy.measuring.power import check_source, measure_energy
from emqdeploy.measuring.result import SCHEMA
from emqdeploy.measuring.scenarios import SCENARIOS
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.subjects import describe_source, new_row, open_subjects, resident_size
from emqdeploy.measuring.workbench import CHECKS, Stop, Workbench, stop_on_signals
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.machine import environment
from emqdeploy.runtimes.native_library import forget_tuning
from emqdeploy.runtimes.source import Source
from emqdeploy.runtimes.test_images import TestSet, find_test_set, limited
from emqdeploy.runtimes.use import measured_accuracy

TIMED_IMAGES = 64
"""Different test images that latency is measured with, one after the other."""


def bench(settings: BenchSettings, report: Report = silent, journal: Journal | None = None) -> dict[str, Any]:
    """Measures everything that the settings ask for, on this machine.

    Args:
        settings: what to measure; `emqdeploy.remote.bench.bench_there` measures elsewhere.
        report: receives progress.
        journal: keeps every finished scenario, and may hold some of an earlier bench, which are not measured again.

    Returns:
        the result, as `emqdeploy.measuring.result` describes it; of an interrupted run, what there is.

    Raises:
        EmqError: nothing can be measured: a wrong setting, no such device, a damaged file.
    """
    settings.check()
    chosen = [(name, SCENARIOS[name]) for name in settings.scenarios]
    started = time.perf_counter()
    device = find_device(settings.device)
    check_source(settings.energy)
    if settings.tune:
        forget_tuning()
    subjects, missing = open_subjects(settings, device)
    images, test, notes = _images(settings, subjects[0].source, report)
    result = _new_result(settings, device, subjects[0].source, test, notes + missing)
    stop = Stop()
    monitor = Monitor(device.tree, device.readings)
    split = None if test is None else test.split
    rows = [new_row(subject) for subject in subjects]
    if journal is not None:
        journal.begin(result, rows)
    if test is not None and settings.whole_test_set is None:
        settings = replace(settings, whole_test_set=test.whole)
    workbench = Workbench(settings, subjects, images, split, monitor, report, stop, result, rows)
    for name in set(settings.scenarios) & set(CHECKS):
        CHECKS[name](workbench)
    with stop_on_signals(stop), _locked_clocks(device, settings.lock_clocks):
        for name, scenario in chosen:
            if not stop() and name not in result["scenarios"]:
                _run(name, scenario, workbench)
                if journal is not None and not stop():
                    journal.keep(result, rows)
        measure_energy(workbench, device.energy_sources)
        _accuracy(workbench)
        _loading(workbench)
    result["rows"] = [row.to_dict() for row in rows]
    result["environment"]["after"] = device.state()
    result["seconds"] = round(time.perf_counter() - started, 3)
    result["complete"] = not stop() and not any("failed" in one for one in result["scenarios"].values())
    if stop():
        result["notes"].append("interrupted: what was measured until then is here, the rest is missing")
    return result


def _run(name: str, scenario: Callable[[Workbench], dict[str, Any]], bench: Workbench) -> None:
    """Runs a scenario; one that fails after others succeeded is noted, so that what was measured is not lost."""
    scenarios = bench.result["scenarios"]
    try:
        scenarios[name] = scenario(bench)
    except EmqError as error:
        if not scenarios:
            raise
        scenarios[name] = {"failed": str(error)}
        bench.result["notes"].append(f"scenario {name} failed: {error}")


@contextlib.contextmanager
def _locked_clocks(device: Device, wanted: bool) -> Iterator[None]:
    """Fixes the clocks while the block runs, if that was asked for."""
    release = device.lock_clocks() if wanted else None
    try:
        yield
    finally:
        if release is not None:
            release()


def _new_result(
    settings: BenchSettings, device: Device, source: Source, test: TestSet | None, notes: list[str]
) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "command": settings.command(),
        "settings": settings.to_dict(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "seconds": None,
        "environment": environment() | {"device": device.describe(), "before": device.state(), "after": None},
        "source": describe_source(source) | {"images": None if test is None else len(test.split)},
        "rows": [],
        "resident": [],
        "scenarios": {},
        "switches": [],
        "notes": notes,
        "complete": False,
    }


def _images(settings: BenchSettings, source: Source, report: Report) -> tuple[Any, TestSet | None, list[str]]:
    """Images to time with, and the test set for accuracy where it is at hand."""
    try:
        test = limited(find_test_set(source.card, settings.data, settings.data_dir, source.path), settings.limit)
    except EmqError as error:
        if settings.data is not None:
            raise
        note = f"accuracy is not measured: {error}"
        report(note)
        pictures = _unlabelled(settings, source)
        if pictures is not None:
            return pictures, None, [note]
        noise = np.random.default_rng(settings.seed).integers(0, 256, (TIMED_IMAGES, *source.input_shape))
        return source.preprocessing.normalize(noise.astype(np.uint8)), None, [note, "latency is timed on noise images"]
    notes = [] if test.note is None else [test.note]
    return source.preprocessing.normalize(np.asarray(test.split.images[:TIMED_IMAGES])), test, notes


def _unlabelled(settings: BenchSettings, source: Source) -> Any:
    """Images to time with where their labels are unknown; None where there are none at all."""
    try:
        test = find_test_set(source.card, None, settings.data_dir, source.path, labelled=False)
    except EmqError:
        return None
    return source.preprocessing.normalize(np.asarray(test.split.images[:TIMED_IMAGES]))


def _accuracy(bench: Workbench) -> None:
    """Accuracy of every row, and what was lost against torch's as recorded at training."""
    if bench.test is None:
        return
    for subject in bench.subjects:
        if bench.stop():
            return
        bench.report(f"accuracy of {subject.label} on {len(bench.test)} test images")
        subject.select()
        row = bench.row(subject)
        row.accuracy = measured_accuracy(subject, bench.test, subject.source.preprocessing, bench.stop)
        reference = row.reference_accuracy
        if bench.settings.comparable and reference is not None and row.accuracy is not None:
            row.accuracy_drop = round(reference - row.accuracy, 4) + 0.0
    _check_selectors(bench)


def _check_selectors(bench: Workbench) -> None:
    """Notes a selector that answers otherwise than the separate network, as onnxruntime before 1.29 makes it do."""
    separate = {(row.runtime, row.child): row.accuracy for row in bench.rows if row.kind == CHILD}
    for row in bench.rows:
        expected = separate.get((row.runtime, row.child))
        if row.kind == SELECTOR and expected is not None and row.accuracy not in (None, expected):
            bench.result["notes"].append(
                f"{row.label} has {row.accuracy:.2f} % where the separate network has {expected:.2f} %: this"
                f" version of {row.runtime} computes it wrongly; use the separate networks"
            )


def _loading(bench: Workbench) -> None:
    """Memory and load time of every row alone, and of all children of a runtime together."""
    groups: dict[Opening, list[Child]] = {}
    for subject in bench.subjects:
        if bench.stop():
            return
        bench.report(f"memory and load time of {subject.label}, in a process of its own")
        row, children = bench.row(subject), [] if subject.child is None else [subject.child]
        cost = cost_of_loading(subject.opening, children)
        if "not_measured" in cost:
            row.disturbed.append(f"memory and load time are missing: {cost['not_measured']}")
        else:
            row.rss_bytes, row.load_ms = cost["rss_bytes"], cost["load_ms"]
            row.first_output_ms = cost["first_output_ms"]
        if children:
            groups.setdefault(subject.opening, []).extend(children)
    for opening, together in groups.items():
        if len(together) > 1 and not bench.stop():
            about = {"runtime": opening.runtime, "kind": opening.kind, "flavour": opening.flavour}
            names = {"children": [child.name for child in together], "size_bytes": resident_size(opening)}
            bench.result["resident"].append(about | names | cost_of_loading(opening, together))

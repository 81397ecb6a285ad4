"""The bench: opens what is to be measured, runs the scenarios, adds what each row costs; returns one result."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.bundle import Bundle
from emqdeploy.errors import EmqError
from emqdeploy.measuring.devices import Device, find_device
from emqdeploy.measuring.disturbance import Monitor
from emqdeploy.measuring.fresh import cost_of_loading
from emqdeploy.measuring.opening import Opening, find_network
from emqdeploy.measuring.power import check_source, measure_energy
from emqdeploy.measuring.result import SCHEMA
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.subjects import default_runtime, describe_source, new_row, open_subjects, resident_size
from emqdeploy.measuring.testset import TestSet, read_test_set
from emqdeploy.measuring.workbench import CHECKS, Stop, Subject, Workbench, stop_on_signals
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.machine import environment
from emqdeploy.runtimes.source import Source, is_bundle
from emqdeploy.runtimes.use import measured_accuracy

TIMED_IMAGES = 64
"""Different test images that latency is measured with, one after the other."""


def bench(settings: BenchSettings, report: Report = silent) -> dict[str, Any]:
    """Measures everything that the settings ask for.

    Args:
        settings: what to measure.
        report: receives progress.

    Returns:
        the result, as `emqdeploy.measuring.result` describes it; of an interrupted run, what there is.

    Raises:
        EmqError: nothing can be measured: a wrong setting, no such device, a damaged file.
    """
    from emqdeploy.measuring import scenarios

    settings.check()
    if settings.host is not None:
        from emqdeploy.remote.bench import bench_there

        return bench_there(settings, settings.host, report)
    chosen = [(name, scenarios.SCENARIOS[name]) for name in settings.scenarios]
    started = time.perf_counter()
    device = find_device(settings.device)
    check_source(settings.energy)
    _build_engines(settings, device, report)
    subjects = open_subjects(settings, device)
    images, test, notes = _images(settings, subjects[0].source, report)
    if subjects[0].runtime.name != device.runtimes[0] and not settings.runtimes:
        notes.append(
            f"{device.runtimes[0]} is not installed, so this is {subjects[0].runtime.name}, on the processor alone"
        )
    result = _new_result(settings, device, subjects, test, notes)
    stop = Stop()
    monitor = Monitor(device.tree, device.readings)
    workbench = Workbench(
        settings, subjects, images, None if test is None else test.split, monitor, report, stop, result
    )
    for name in set(settings.scenarios) & set(CHECKS):
        CHECKS[name](workbench)
    with stop_on_signals(stop), _locked_clocks(device, settings.lock_clocks):
        for name, scenario in chosen:
            if not stop():
                _run(name, scenario, workbench)
        measure_energy(workbench, device.energy_sources)
        _accuracy(workbench)
        _loading(workbench)
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


def _build_engines(settings: BenchSettings, device: Device, report: Report) -> None:
    """Builds the engines that this device lacks, where TensorRT is to run a bundle that has what they are made from."""
    path = find_network(None if settings.path is None else Path(settings.path))
    if "tensorrt" not in (settings.runtimes or (default_runtime(device),)) or not is_bundle(path):
        return
    from emqdeploy.runtimes import cuda
    from emqdeploy.workflows.engines import FORM, build_missing_engines

    if not any(artefact.target == FORM for artefact in Bundle.open(path).artefacts):
        return
    gpu = {"device": cuda.device_name(), "compute_capability": cuda.compute_capability()}
    build_missing_engines(path, gpu, report)


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
    settings: BenchSettings, device: Device, subjects: list[Subject], test: TestSet | None, notes: list[str]
) -> dict[str, Any]:
    source = describe_source(subjects[0].source)
    source["images"] = None if test is None else len(test.split)
    return {
        "schema": SCHEMA,
        "command": settings.command(),
        "settings": settings.to_dict(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
        "seconds": None,
        "environment": environment() | {"device": device.describe(), "before": device.state(), "after": None},
        "source": source,
        "rows": [new_row(subject) for subject in subjects],
        "resident": [],
        "scenarios": {},
        "switches": [],
        "notes": notes,
        "complete": False,
    }


def _images(settings: BenchSettings, source: Source, report: Report) -> tuple[Any, TestSet | None, list[str]]:
    """Images to time with, and the test set for accuracy where it is at hand."""
    try:
        test = read_test_set(settings, source.metadata)
    except EmqError as error:
        if settings.data is not None:
            raise
        note = f"accuracy is not measured: {error}"
        report(note)
        noise = np.random.default_rng(settings.seed).integers(0, 256, (TIMED_IMAGES, *source.input_shape))
        return source.preprocessing.normalize(noise.astype(np.uint8)), None, [note, "latency is timed on noise images"]
    return source.preprocessing.normalize(np.asarray(test.split.images[:TIMED_IMAGES])), test, []


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
        row["accuracy"] = measured_accuracy(subject, bench.test, subject.source.preprocessing, bench.stop)
        reference = row["reference_accuracy"]
        if bench.settings.comparable and reference is not None and row["accuracy"] is not None:
            row["accuracy_drop"] = round(reference - row["accuracy"], 4) + 0.0

    _check_selectors(bench)


def _check_selectors(bench: Workbench) -> None:
    """Notes a selector that answers otherwise than the separate network, as onnxruntime before 1.29 makes it do."""
    separate = {
        (row["runtime"], row["bits"]): row["accuracy"]
        for row in bench.result["rows"]
        if row["kind"] == "width" and row["accuracy"] is not None
    }
    for row in bench.result["rows"]:
        expected = separate.get((row["runtime"], row["bits"]))
        if row["kind"] == "selector" and expected is not None and row["accuracy"] not in (None, expected):
            bench.result["notes"].append(
                f"{row['label']} has {row['accuracy']:.2f} % where the separate network has {expected:.2f} %: this"
                f" version of {row['runtime']} computes it wrongly; use the separate networks"
            )


def _loading(bench: Workbench) -> None:
    """Memory and load time of every row alone, and of all bit-widths of a runtime together."""
    groups: dict[Opening, list[int]] = {}
    for subject in bench.subjects:
        if bench.stop():
            return
        bench.report(f"memory and load time of {subject.label}, in a process of its own")
        cost = cost_of_loading(subject.opening, None if subject.bits is None else (subject.bits,))
        bench.row(subject).update({key: value for key, value in cost.items() if key != "not_measured"})
        if "not_measured" in cost:
            bench.row(subject)["disturbed"].append(f"memory and load time are missing: {cost['not_measured']}")
        if subject.bits is not None:
            groups.setdefault(subject.opening, []).append(subject.bits)
    for opening, widths in groups.items():
        if len(widths) > 1 and not bench.stop():
            about = {"runtime": opening.runtime, "kind": opening.kind, "flavour": opening.flavour, "bits": widths}
            size = {"size_bytes": resident_size(opening)}
            bench.result["resident"].append(about | size | cost_of_loading(opening, widths))

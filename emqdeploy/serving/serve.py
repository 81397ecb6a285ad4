"""Classifies a stream of pictures under a policy and keeps account of what that costs."""

from __future__ import annotations

import contextlib
import itertools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import EmqError, UsageError, cannot_write
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.measuring.choices import measured_options, options_of_result, thread_modes
from emqdeploy.measuring.devices import find_device
from emqdeploy.measuring.workbench import Stop, stop_on_signals
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.policy import Governed, Option, parse_policy
from emqdeploy.runtimes.source import Source, open_source
from emqdeploy.serving.account import State, summary
from emqdeploy.serving.arrival import Arrival, SourceEnded
from emqdeploy.serving.sensors import Sensors
from emqdeploy.serving.settings import ServeSettings
from emqdeploy.serving.sources import pictures

VIEW_S = 0.1
"""Between two looks of the live view."""


View = Callable[[dict[str, Any]], None]
"""Receives `State.shown` ten times a second."""


def serve(
    settings: ServeSettings,
    table: Mapping[str, Any] | None = None,
    view: View = lambda _: None,
    report: Report = silent,
) -> dict[str, Any]:
    """Classifies until the sources, the limit or the user end it.

    Args:
        settings: what to do.
        table: a bench result to choose by; None times every setting first.
        view: shows what is going on.
        report: receives what is done before the first image.

    Returns:
        the summary: settings, images, accuracy, latency, switches, energy, every decision.

    Raises:
        EmqError: one sentence: a folder without images, a camera that is not there, a policy that cannot be kept, no
            picture that could be read.
    """
    settings.check()
    parse_policy(settings.policy)
    stop = Stop()
    with contextlib.ExitStack() as opened:
        opened.enter_context(stop_on_signals(stop))
        log = opened.enter_context(_log(settings.log))
        source, runtimes = _open(settings, table, opened)
        classes = list(source.card.classes)
        stream = pictures(settings.sources, classes, settings.watch, settings.repeat, stop, report)
        first = next(stream, None)  # nothing is timed for a folder that holds nothing
        options = _options(table, source, runtimes, report)
        sensors = Sensors(find_device(settings.device), settings.energy)
        network = Governed(runtimes, settings.policy, options, sensor=sensors, clock=time.perf_counter)
        state = State(network, classes, sensors)
        for entry in network.policy.log:
            report(entry.reason)
        seen_s = 0.0
        ended = None
        try:
            for arrival in _paced(itertools.chain([first], stream), settings, state, stop):
                if arrival is not None:
                    _classify(arrival, source, state, log, report)
                if state.seconds - seen_s >= VIEW_S:
                    seen_s = state.seconds
                    view(state.shown())
        except SourceEnded as error:
            ended = str(error)
        if state.unreadable and not state.images:
            raise EmqError(f"none of {state.unreadable} pictures could be read; {state.first_unreadable}")
        sources = list(settings.sources)
        return {"network": str(source.path), "source": sources, **summary(state, options, stop()), "ended": ended}


def _open(
    settings: ServeSettings, table: Mapping[str, Any] | None, opened: contextlib.ExitStack
) -> tuple[Source, dict[str, Runtime]]:
    """The network once per number of threads that the policy may choose."""
    if settings.threads is not None or table is not None or settings.runtime != "onnxruntime":
        threads = settings.threads
        if threads is None and table is not None:
            threads = table["settings"].get("threads")
        source = open_source(settings.path, settings.bits, settings.runtime, threads)
        return source, {"": opened.enter_context(source.runtime)}
    runtimes: dict[str, Runtime] = {}
    for mode, count in thread_modes(usable_cores()).items():
        source = open_source(settings.path, settings.bits, settings.runtime, count)
        runtimes[mode] = opened.enter_context(source.runtime)
    return source, runtimes


def _options(
    table: Mapping[str, Any] | None, source: Source, runtimes: dict[str, Runtime], report: Report
) -> Sequence[Option]:
    if table is not None:
        found = [one for one in options_of_result(table) if one.setting.child in source.children]
        if not found:
            raise UsageError(
                "the table holds none of this network's children; bench this network, or leave --table out"
            )
        return found
    report(f"timing {len(source.children) * len(runtimes)} settings for the policy")
    image = np.zeros((1, *source.input_shape), np.float32)
    return measured_options(runtimes, source.children, source.accuracy, image, seconds=0.2)


def _paced(
    stream: Iterator[Arrival | None], settings: ServeSettings, state: State, stop: Callable[[], bool]
) -> Iterator[Arrival | None]:
    """The stream, no faster than asked for, and no longer."""
    due = time.perf_counter()
    for arrival in stream:
        if settings.fps is not None and arrival is not None:
            while (left := due - time.perf_counter()) > 0 and not stop():
                time.sleep(min(left, 0.2))
            due = max(due, time.perf_counter() - 1 / settings.fps) + 1 / settings.fps
        if stop() or (settings.seconds is not None and state.seconds >= settings.seconds):
            return
        yield arrival
        if settings.limit is not None and state.images >= settings.limit:
            return


def _classify(arrival: Arrival, source: Source, state: State, log: IO[str] | None, report: Report) -> None:
    network = state.network
    began = time.perf_counter()
    try:
        image = arrival.read(source.preprocessing)
        read_ms = 1e3 * (time.perf_counter() - began)
        setting = network.setting
        logits = network(image)
        found = int(CLASSIFICATION.decide(logits)[0])
    except Exception as error:  # whatever a picture causes ends at this picture: more are waiting
        why = str(error) if isinstance(error, EmqError) else f"{type(error).__name__}: {error}"
        state.unreadable += 1
        state.first_unreadable = state.first_unreadable or why
        report(f"{arrival.name} is passed over: {why}")
        _write(log, {"event": "unreadable", "t_s": round(state.seconds, 4), "file": arrival.name, "why": why})
        return
    assert network.last is not None
    taken = network.last.latency_ms
    correct = None if arrival.label is None else found == arrival.label
    odds = round(float(CLASSIFICATION.odds(logits[0])[found]), 4)
    state.count(str(setting), taken, read_ms, correct)
    state.decided(arrival.name, state.classes[found], odds)
    state.latest = {
        "event": "image",
        "t_s": round(state.seconds, 4),
        "file": arrival.name,
        "class": state.classes[found],
        "probability": odds,
        "label": None if arrival.label is None else state.classes[arrival.label],
        "correct": correct,
        "child": setting.child.name,
        "bits": setting.child.bits,
        "mode": setting.mode,
        "latency_ms": round(taken, 4),
        "read_ms": round(read_ms, 4),
        **{key: value for key, value in asdict(network.last).items() if key != "latency_ms"},
    }
    _write(log, state.latest)
    if network.decision is not None:
        state.switches += 1
        _write(log, {"event": "switch", "t_s": round(state.seconds, 4), **network.decision.to_dict()})


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[IO[str] | None]:
    """The log, open from the start, so that a wrong place is noticed before the work."""
    if path is None:
        yield None
        return
    try:
        file = path.open("w", encoding="utf-8", buffering=1)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield file
    finally:
        with contextlib.suppress(OSError):  # every line was written through, or its failure was said
            file.close()


def _write(log: IO[str] | None, entry: dict[str, Any]) -> None:
    if log is not None:
        try:
            log.write(json.dumps(entry) + "\n")
        except OSError as error:
            raise cannot_write(log.name, error) from error

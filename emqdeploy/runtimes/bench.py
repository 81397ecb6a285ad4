"""Whole measurements of a network on this machine: accuracy, and everything that a bit-width costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.data import Dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.grid import Floats
from emqdeploy.runtimes.base import precision_summary
from emqdeploy.runtimes.machine import environment
from emqdeploy.runtimes.measure import (
    interleaved_latency,
    measured_accuracy,
    memory_of_one_width,
    percentiles,
    switch_latency,
)
from emqdeploy.runtimes.source import Source, dataset_of, open_source

Report = Callable[[str], None]
"""Receives one line about what is being done."""


def silent(_: str) -> None:
    """Reports nothing."""


DEVICES = ("auto", "cpu")


def bench(
    path: Path | None,
    bits: Sequence[int] | None = None,
    device: str = "auto",
    samples: int = 300,
    switches: int = 1000,
    threads: int | None = None,
    data_dir: Path | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Latency, accuracy, size, memory and switching of every bit-width on this machine, one image at a time."""
    if device not in DEVICES:
        raise UsageError(f"unknown device {device!r}; known: {', '.join(DEVICES)}")
    source = open_source(path, bits, threads=threads)
    runtime = source.runtime
    widths = list(bits or runtime.available_bits)
    images, dataset = _bench_images(source, data_dir, report)
    report(f"timing {len(widths)} bit-widths, {samples} samples each, interleaved")
    timings = interleaved_latency(runtime, widths, images[:1], samples)
    switching = switch_latency(runtime, widths, images[:1], switches) if len(widths) > 1 else {}
    rows = []
    for width in widths:
        report(f"accuracy and memory at {width} bits")
        switch = switching.get(width)
        summary = precision_summary(runtime.precision(width))
        rows.append(
            {
                "bits": width,
                "trained": width in source.metadata.get("trained_bits", [width]),
                "latency_ms": percentiles(timings[width]),
                "accuracy": None
                if dataset is None
                else measured_accuracy(runtime, width, dataset.test, source.preprocessing),
                "trained_accuracy": source.accuracy.get(width),
                "size_bytes": source.size_bytes[width],
                "rss_bytes": memory_of_one_width(source.path, width),
                "switch_ms": None if switch is None else switch["set_bits"]["p50"],
                "switch": switch,
                **{key: summary[key] for key in ("stored_as", "computed_as", "integer_layers", "layers")},
                "samples_ms": [round(sample, 5) for sample in timings[width]],
            }
        )
    return {
        "checkpoint": str(source.path),
        "runtime": runtime.name,
        "device": "cpu",
        "threads": threads,
        "batch": 1,
        "images": None if dataset is None else len(dataset.test),
        "rows": rows,
        "environment": environment(),
    }


def _bench_images(source: Source, data_dir: Path | None, report: Report) -> tuple[Floats, Dataset | None]:
    """Images to time with, and the data set for accuracy where it is at hand."""
    try:
        dataset = dataset_of(source.metadata, data_dir)
    except EmqError as error:
        report(f"accuracy is not measured: {error}")
        return np.zeros((1, *source.input_shape), np.float32), None
    return source.preprocessing.normalize(dataset.test.images[:1]), dataset


def evaluate(
    path: Path | None, bits: Sequence[int] | None, runtime: str, data_dir: Path | None, threads: int | None = None
) -> dict[str, Any]:
    """Accuracy on the test set in a runtime, per bit-width."""
    source = open_source(path, bits, runtime, threads)
    dataset = dataset_of(source.metadata, data_dir)
    widths = list(bits or source.runtime.available_bits)
    accuracy = {
        str(width): measured_accuracy(source.runtime, width, dataset.test, source.preprocessing) for width in widths
    }
    return {
        "checkpoint": str(source.path),
        "runtime": source.runtime.name,
        "data": dataset.name,
        "images": len(dataset.test),
        "trained_bits": source.metadata.get("trained_bits", widths),
        "accuracy": accuracy,
    }


def predict(path: Path | None, image: Path, bits: int | None, top: int = 5) -> dict[str, Any]:
    """Classifies one image file."""
    source = open_source(path, None if bits is None else (bits,))
    if bits is not None:
        source.runtime.set_bits(bits)
    logits = source.runtime(source.preprocessing.load_image(image))[0].astype(np.float64)
    odds = np.exp(logits - logits.max())
    odds /= odds.sum()
    best = np.argsort(-odds)[:top]
    classes = source.metadata["classes"]
    return {
        "image": str(image),
        "checkpoint": str(source.path),
        "bits": source.runtime.bits,
        "class": classes[int(best[0])],
        "predictions": [{"class": classes[int(index)], "probability": float(odds[index])} for index in best],
    }

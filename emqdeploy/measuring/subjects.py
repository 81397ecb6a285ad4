"""Which networks a bench measures side by side: every bit-width in every runtime that was asked for."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from emqdeploy.measuring.devices import Device
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Subject
from emqdeploy.runtimes.base import precision_summary
from emqdeploy.runtimes.source import Source, open_source


def open_subjects(settings: BenchSettings, device: Device) -> list[Subject]:
    """Opens everything that is to be measured, in the order of the table."""
    path = None if settings.path is None else Path(settings.path)
    runtimes = settings.runtimes or (default_runtime(device),)
    subjects = []
    for name in runtimes:
        source = open_source(path, settings.bits, name, settings.threads)
        for bits in settings.bits or source.runtime.available_bits:
            label = f"{bits} bit{'s' if bits > 1 else ''}" + (f" ({name})" if len(runtimes) > 1 else "")
            subjects.append(Subject(label, "width", bits, source.runtime, source, source.path))
    return subjects


def default_runtime(device: Device) -> str:
    """The best runtime of a device whose library is installed; the last one where none is, which then says so."""
    installed = [name for name in device.runtimes if importlib.util.find_spec(name) is not None]
    return (*installed, device.runtimes[-1])[0]


def new_row(subject: Subject) -> dict[str, Any]:
    """The row of a subject with what is known before anything is timed."""
    source, bits = subject.source, subject.bits
    summary = precision_summary(subject.runtime.precision(bits)) if bits is not None else {}
    return {
        "label": subject.label,
        "kind": subject.kind,
        "bits": bits,
        "trained": None if bits is None else bits in source.metadata.get("trained_bits", [bits]),
        "runtime": subject.runtime.name,
        "latency_ms": None,
        "clocks_ms": {},
        "ratio_to_first": None,
        "accuracy": None,
        "reference_accuracy": None if bits is None else source.accuracy.get(bits),
        "accuracy_drop": None,
        "size_bytes": None if bits is None else source.size_bytes[bits],
        "rss_bytes": None,
        "load_ms": None,
        "first_output_ms": None,
        **{key: summary.get(key) for key in ("stored_as", "computed_as", "integer_layers", "layers", "per_layer")},
        "energy": {"not_measured": "the run was interrupted before"},
        "samples_ms": [],
        "disturbed": [],
    }


def describe_source(source: Source) -> dict[str, Any]:
    """What was measured, so that nobody compares figures of different files by mistake."""
    metadata = source.metadata
    return {
        "path": str(source.path),
        "kind": "onnx" if source.path.suffix == ".onnx" else "checkpoint",
        "model": metadata.get("network", {}).get("model", metadata.get("model")),
        "data": metadata["data"]["name"],
        "input_shape": list(source.input_shape),
        "classes": len(metadata["classes"]),
        "trained_bits": metadata.get("trained_bits"),
        "sha256": hashlib.sha256(source.path.read_bytes()).hexdigest(),
        "images": None,
    }

"""Which networks a bench measures side by side: every bit-width in every runtime and form, and the baselines."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from typing import Any

from emqdeploy.bundle import MANIFEST_FILE, Bundle
from emqdeploy.errors import UsageError
from emqdeploy.measuring.devices import Device
from emqdeploy.measuring.opening import TARGETS, Opening, find_network, openings
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Subject
from emqdeploy.runtimes.base import find_adapter, precision_summary
from emqdeploy.runtimes.source import Source, is_bundle


def open_subjects(settings: BenchSettings, device: Device) -> list[Subject]:
    """Opens everything that is to be measured, in the order of the table."""
    path = find_network(None if settings.path is None else Path(settings.path))
    runtimes = settings.runtimes or (default_runtime(device),)
    for name in runtimes:
        find_adapter(name)  # an unknown name is refused before the first network is opened
    found = [one for name in runtimes for one in openings(path, name, settings.threads, settings.baselines)]
    subjects = [subject for opening in found for subject in _open(opening, found, settings)]
    labels = [subject.label for subject in subjects]
    if len(set(labels)) < len(labels):
        raise UsageError(f"bit-widths or runtimes are named twice: {', '.join(labels)}; name each once")
    return subjects


def default_runtime(device: Device) -> str:
    """The best runtime of a device whose library is installed; the last one where none is, which then says so."""
    installed = [name for name in device.runtimes if importlib.util.find_spec(name) is not None]
    return (*installed, device.runtimes[-1])[0]


def _open(opening: Opening, all_openings: list[Opening], settings: BenchSettings) -> list[Subject]:
    """The rows of one opening; they share a runtime."""
    several = len({one.runtime for one in all_openings}) > 1
    marks = [opening.runtime] if several else []
    if opening.kind == "baseline":
        source = opening.open(None)
        return [
            Subject(_label(opening.flavour or "baseline", marks), "baseline", None, source.runtime, source, opening)
        ]
    source = opening.open(settings.bits)
    alike = {one.flavour for one in all_openings if (one.kind, one.runtime) == (opening.kind, opening.runtime)}
    if opening.kind == "selector":
        marks = [f"selector {opening.flavour}", *marks]
    elif len(alike) > 1:
        marks = [str(opening.flavour), *marks]
    return [
        Subject(
            _label(f"{bits} bit{'s' if bits > 1 else ''}", marks), opening.kind, bits, source.runtime, source, opening
        )
        for bits in settings.bits or source.runtime.available_bits
    ]


def _label(name: str, marks: list[str]) -> str:
    return f"{name} ({', '.join(marks)})" if marks else name


def new_row(subject: Subject) -> dict[str, Any]:
    """The row of a subject with what is known before anything is timed."""
    source, bits = subject.source, subject.bits
    runtime: Any = subject.runtime
    summary = precision_summary(runtime.precision(bits))
    return {
        "label": subject.label,
        "kind": subject.kind,
        "bits": bits,
        "flavour": subject.opening.flavour,
        "trained": None if bits is None else bits in source.metadata.get("trained_bits", [bits]),
        "runtime": subject.runtime.name,
        "latency_ms": None,
        "clocks_ms": {},
        "ratio_to_first": None,
        "accuracy": None,
        "reference_accuracy": None if bits is None else source.accuracy.get(bits),
        "accuracy_drop": None,
        "size_bytes": _size(subject),
        "rss_bytes": None,
        "load_ms": None,
        "first_output_ms": None,
        **{key: summary.get(key) for key in ("stored_as", "computed_as", "integer_layers", "layers", "per_layer")},
        "energy": {"not_measured": "the run was interrupted before"},
        "samples_ms": [],
        "disturbed": [],
    }


def _size(subject: Subject) -> int | None:
    """Bytes of the files that a row needs; of a checkpoint, the part that its bit-width reads."""
    opening = subject.opening
    if not is_bundle(Path(opening.path)):
        return None if subject.bits is None else subject.source.size_bytes[subject.bits]
    bundle = Bundle.open(opening.path)
    for artefact in reversed(bundle.artefacts):
        of_runtime = artefact.target in TARGETS.get(opening.runtime, ()) and artefact.role == opening.kind
        named = artefact.id == opening.baseline if opening.baseline else opening.flavour in (None, artefact.flavour)
        if of_runtime and named and (subject.bits is None or subject.bits in artefact.bits):
            shared = sum(int(bundle.files[name]["size_bytes"]) for name in artefact.shared)
            return artefact.size_bytes + shared
    return subject.source.size_bytes.get(subject.bits or 0)


def resident_size(opening: Opening) -> int | None:
    """Bytes of all files of an opening together; what they share counts once."""
    path = Path(opening.path)
    if not is_bundle(path):
        return path.stat().st_size
    bundle = Bundle.open(path)
    held = [one for one in bundle.artefacts if one.target in TARGETS.get(opening.runtime, ())]
    held = [one for one in held if one.role == opening.kind and opening.flavour in (None, one.flavour)]
    shared = {name for artefact in held for name in artefact.shared}
    files = sum(int(bundle.files[name]["size_bytes"]) for name in shared)
    return files + sum(artefact.size_bytes for artefact in held) if held else None


def describe_source(source: Source) -> dict[str, Any]:
    """What was measured, so that nobody compares figures of different files by mistake."""
    metadata, path = source.metadata, source.path
    bundle = Bundle.open(path) if is_bundle(path) else None
    file = path if bundle is None else bundle.path / MANIFEST_FILE
    kind = "bundle" if bundle else "onnx" if path.suffix == ".onnx" else "checkpoint"
    return {
        "path": str(path),
        "kind": kind,
        "model": bundle.model if bundle else metadata.get("network", {}).get("model", metadata.get("model")),
        "data": metadata["data"]["name"],
        "input_shape": list(source.input_shape),
        "classes": len(metadata["classes"]),
        "trained_bits": metadata.get("trained_bits"),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "images": None,
    }

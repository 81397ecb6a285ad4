"""Which networks a bench measures side by side: every child in every runtime and form, and the baselines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import BASELINE, MANIFEST_FILE, SELECTOR, Bundle, is_bundle, sha256
from emqdeploy.format.precision import precision_summary
from emqdeploy.measuring.devices import Device
from emqdeploy.measuring.opening import Opening, openings
from emqdeploy.measuring.rows import BenchRow
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Subject
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.source import Source, find_network


def open_subjects(settings: BenchSettings, device: Device) -> list[Subject]:
    """Opens everything that is to be measured, in the order of the table."""
    path = find_network(settings.path)
    runtimes = settings.runtimes or (default_runtime(device),)
    for name in runtimes:
        find_adapter(name)  # an unknown name is refused before the first network is opened
    found = [one for name in runtimes for one in openings(path, name, settings.threads, settings.baselines)]
    subjects = [subject for opening in found for subject in _open(opening, found, settings)]
    labels = [subject.label for subject in subjects]
    if len(set(labels)) < len(labels):
        raise UsageError(f"runtimes are named twice: {', '.join(labels)}; name each once")
    return subjects


def default_runtime(device: Device) -> str:
    """The best runtime of a device that works here; the last one where none does, which then says why."""
    working = [name for name in device.runtimes if find_adapter(name).why_not() is None]
    return (*working, device.runtimes[-1])[0]


def _open(opening: Opening, all_openings: list[Opening], settings: BenchSettings) -> list[Subject]:
    """The rows of one opening; they share a runtime."""
    several = len({one.runtime for one in all_openings}) > 1
    marks = [opening.runtime] if several else []
    if opening.kind == BASELINE:
        source = opening.open(None)
        return [Subject(_label(opening.flavour or BASELINE, marks), BASELINE, None, source.runtime, source, opening)]
    source = opening.open(settings.bits)
    alike = {one.flavour for one in all_openings if (one.kind, one.runtime) == (opening.kind, opening.runtime)}
    if opening.kind == SELECTOR:
        marks = [f"selector {opening.flavour}", *marks]
    elif len(alike) > 1:
        marks = [str(opening.flavour), *marks]
    return [
        Subject(_label(str(child), marks), opening.kind, child, source.runtime, source, opening)
        for child in source.children
    ]


def _label(name: str, marks: list[str]) -> str:
    return f"{name} ({', '.join(marks)})" if marks else name


def new_row(subject: Subject) -> BenchRow:
    """The row of a subject with what is known before anything is timed."""
    card, child = subject.source.card, subject.child
    runtime: Any = subject.runtime
    layers = runtime.precision(child)
    summary = precision_summary(layers)
    return BenchRow(
        label=subject.label,
        kind=subject.kind,
        child=None if child is None else child.name,
        weights=None if child is None else child.weights.plain(),
        activations=None if child is None else child.activations.plain(),
        bits=None if child is None else child.bits,
        trained=None if child is None else card.is_trained(child),
        flavour=subject.opening.flavour,
        runtime=runtime.name,
        reference_accuracy=None if child is None else card.accuracy.get(child.name),
        size_bytes=_size(subject),
        per_layer=layers,
        **{key: summary[key] for key in ("stored_as", "computed_as", "integer_layers", "layers")},
    )


def _size(subject: Subject) -> int | None:
    """Bytes of the files that a row needs; of a checkpoint, the part that its child reads."""
    opening, child = subject.opening, subject.child
    if is_bundle(Path(opening.path)):
        bundle = Bundle.open(opening.path)
        for artefact in reversed(opening.held(bundle)):
            if child is None or artefact.serves(child):
                return artefact.size_bytes + sum(bundle.files[name].size_bytes for name in artefact.shared)
    return None if child is None else subject.source.size_bytes.get(child)


def resident_size(opening: Opening) -> int | None:
    """Bytes of all files of an opening together; what they share counts once."""
    path = Path(opening.path)
    if not is_bundle(path):
        return path.stat().st_size
    bundle = Bundle.open(path)
    held = opening.held(bundle)
    shared = {name for artefact in held for name in artefact.shared}
    files = sum(bundle.files[name].size_bytes for name in shared)
    return files + sum(artefact.size_bytes for artefact in held) if held else None


def describe_source(source: Source) -> dict[str, Any]:
    """What was measured, so that nobody compares figures of different files by mistake."""
    card, path = source.card, source.path
    bundled = is_bundle(path)
    file = path / MANIFEST_FILE if bundled else path
    return {
        "path": str(path),
        "kind": "bundle" if bundled else "onnx" if path.suffix == ".onnx" else "checkpoint",
        "model": card.model,
        "data": card.data.name,
        "input_shape": list(source.input_shape),
        "classes": len(card.classes),
        "trained": list(card.trained),
        "sha256": sha256(file),
        "images": None,
    }

"""Which networks a bench measures side by side: every child in every runtime and form, and the baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, Unsupported, UsageError
from emqdeploy.format.bundle import BASELINE, MANIFEST_FILE, SELECTOR, Bundle, is_bundle, sha256
from emqdeploy.format.emq import SUFFIX
from emqdeploy.format.precision import INT8, precision_summary
from emqdeploy.measuring.devices import Device
from emqdeploy.measuring.opening import Opening, openings
from emqdeploy.measuring.references import REFERENCES
from emqdeploy.measuring.references import RUNTIME as REFERENCE_RUNTIME
from emqdeploy.measuring.rows import BenchRow
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import Subject
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.source import Source, find_network


def open_subjects(settings: BenchSettings, device: Device) -> tuple[list[Subject], list[str]]:
    """Opens everything that is to be measured, in the order of the table.

    Returns:
        the rows, and sentences about what is not among them.
    """
    path = find_network(settings.path)
    if settings.runtimes:
        return _in_runtimes(path, settings.runtimes, settings), []
    subjects, notes = _in_best(path, device, settings)
    if settings.baselines and path.suffix == SUFFIX:
        found, missing = _references(path, subjects[0].runtime.name, settings)
        taken = {subject.label for subject in subjects}
        subjects += [one for one in found if one.label not in taken]
        notes += missing
    return subjects, notes


def _in_runtimes(path: Path, runtimes: Sequence[str], settings: BenchSettings) -> list[Subject]:
    """Everything that there is to measure in some runtimes."""
    for name in runtimes:
        find_adapter(name)  # an unknown name is refused before the first network is opened
    found = [one for name in runtimes for one in openings(path, name, settings.threads, settings.baselines)]
    subjects = [subject for opening in found for subject in _open(opening, found, settings)]
    labels = [subject.label for subject in subjects]
    if len(set(labels)) < len(labels):
        raise UsageError(f"runtimes are named twice: {', '.join(labels)}; name each once")
    return subjects


def _in_best(path: Path, device: Device, settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """The same in the best runtime of a device that works here and takes this network, and why no better one does.

    The last one is not asked: where it cannot work either, it says why itself.
    """
    *better, last = device.runtimes
    reasons = {}
    for name in better:
        reasons[name] = _why_not(path, name)
        if reasons[name] is None:
            try:
                return _in_runtimes(path, (name,), settings), _instead(name, device, reasons)
            except Unsupported as error:
                reasons[name] = str(error)
    return _in_runtimes(path, (last,), settings), _instead(last, device, reasons)


def _why_not(path: Path, name: str) -> str | None:
    """Why a runtime is not what a file is measured in; None where it may be tried."""
    adapter = find_adapter(name)
    reason: str | None = adapter.why_not()
    if reason is None and path.suffix != SUFFIX and not adapter.targets:
        reason = "no exported file is for it"
        if is_bundle(path):
            reason += f"; it computes from the checkpoint in the bundle with --runtime {name}"
    return reason


def _instead(used: str, device: Device, reasons: Mapping[str, str | None]) -> list[str]:
    where = "" if device.name == "cpu" else "on the processor alone, "
    return [f"this is {used}, {where}not {name}: {reason}" for name, reason in reasons.items() if reason is not None]


def _references(path: Path, used: str, settings: BenchSettings) -> tuple[list[Subject], list[str]]:
    """The rows that children are measured against, and why one is missing; in onnxruntime they are int8 themselves."""
    subjects, notes = [], []
    for name in [one for one in REFERENCES if (one, used) != (INT8, REFERENCE_RUNTIME)]:
        opening = Opening(str(path), REFERENCE_RUNTIME, settings.threads, BASELINE, name, name)
        try:
            source = opening.open(None)
        except EmqError as error:
            notes.append(f"there is no {name} of {REFERENCE_RUNTIME} to compare with: {error}")
            continue
        subjects.append(Subject(name, BASELINE, None, source.runtime, source, opening))
    return subjects, notes


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

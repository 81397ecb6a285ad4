"""What an export wrote, as a table."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.format.bundle import BASELINE
from emqdeploy.report.fitting import table
from emqdeploy.report.units import percent, size


def export_parts(result: dict[str, Any]) -> list[Table | str]:
    """The files with what is stored, what is computed and how it was proven, and what the user should know of them."""
    artefacts = result["artefacts"]
    if not artefacts:
        return [f"{result['bundle']} holds every file that was asked for; nothing was built"]
    columns = ("child", "file", "size", "stored as", "computed as", "integer layers", "differing codes", "agreement")
    files = table(f"Bundle {result['bundle']}", *columns)
    for artefact in artefacts:
        parity = artefact["parity"]
        files.add_row(
            ",".join(artefact["children"]) or artefact["flavour"],
            artefact["path"].removeprefix(result["bundle"]).lstrip("/"),
            size(artefact["total_bytes"]),
            artefact["stored_as"],
            artefact["computed_as"],
            _integer_layers(artefact),
            f"{parity['differing_codes']} of {parity['codes']}" if parity.get("codes") else "not compared",
            f"{100 * parity['top1_agreement']:.1f} %" if "top1_agreement" in parity else "",
        )
    return [files, *_notes(artefacts), *([result["note"]] if "note" in result else [])]


def _integer_layers(artefact: dict[str, Any]) -> str:
    if all(layer["integer"] is None for layer in artefact["layers"]):
        return "unknown"
    return f"{artefact['integer_layers']} of {len(artefact['layers'])}"


def _notes(artefacts: list[dict[str, Any]]) -> list[str]:
    """One line each, said once for all artefacts that share it."""
    notes: dict[str, None] = {}
    for artefact in artefacts:
        if artefact["role"] == BASELINE:
            accuracy = artefact["parity"]["accuracy"]
            notes[f"{artefact['id']}: accuracy {percent(accuracy)} of the test set, to compare with"] = None
        if artefact["parity"].get("note"):
            notes[artefact["parity"]["note"]] = None
        if artefact["cost"].get("latency_ratio"):
            cost = artefact["cost"]
            load = f"loads in {cost['load_ms']:.3g} ms (int8 file: {cost['load_ms_int8']:.3g} ms)"
            pace = f"runs at {cost['latency_ratio']:.2f}x of its latency (a few runs during the export)"
            notes[f"{artefact['id']}: {load}, {pace}"] = None
        if artefact["built_for"].get("note"):
            notes[artefact["built_for"]["note"]] = None
        if artefact["built_for"].get("command"):
            notes[f"build on the device: {artefact['built_for']['command']}"] = None
        if artefact["float_ops"]:
            found = ", ".join(f"{count} {name}" for name, count in artefact["float_ops"].items())
            notes[f"computed in float, whatever the child: {found}"] = None
    return list(notes)

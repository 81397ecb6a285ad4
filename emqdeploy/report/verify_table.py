"""What a verification found: a verdict for every way to run every child, and in words what differs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from emqdeploy.format.child import in_words
from emqdeploy.report.fitting import styled, table
from emqdeploy.report.terminal import fidelity_cells
from emqdeploy.report.units import MISSING

_OK, _WRONG, _NOT_JUDGED = "ok", "WRONG", "not judged"
_STYLES = {_OK: "green", _WRONG: "bold red"}


def verify_parts(result: Mapping[str, Any]) -> list[Table | str]:
    """The table, and a line each for what is wrong, what differs, what did not run and what was completed."""
    results = result["results"]
    rungs = table(
        f"Parity with the integer reference ({result['images']})",
        *("child", "rung", "verdict", "same class", "differing codes", "logits, steps"),
        keys=3,
    )
    for entry in results:
        rows = [*_origin_row(entry["origin"]), *map(_rung_row, entry["rungs"].items())]
        rows += [[name, _verdict(_WRONG), *[MISSING] * 3] for name in entry["failed"]]
        for index, row in enumerate(rows):
            rungs.add_row(entry["child"] if index == 0 else "", *row)
    lines = [*_faults(results), *_differences(results), *_skipped(results)]
    if result["not_compared"]:
        lines.append(f"not compared with the float model here: {result['not_compared']}")
    if result["completed"]:
        lines.append(f"completed in the manifest: {', '.join(result['completed'])}")
    return [rungs, *lines]


def _verdict(word: str) -> Text:
    return styled(word, _STYLES.get(word, ""))


def _origin_row(found: Mapping[str, Any] | None) -> list[list[str | Text]]:
    """The child beside the network that it was made from: no rung, but what all rungs have in common."""
    if found is None:
        return []
    snr, _ = fidelity_cells(dict(found))
    alike = round(found["agreement"] / 100 * found["decided"])
    verdict = _WRONG if found["wrong"] is not None else _OK if found["judged"] else _NOT_JUDGED
    name = found["against"] + ("" if found["measured"] else " *")
    return [[name, _verdict(verdict), f"{alike} of {found['decided']}", MISSING, snr]]


def _rung_row(named: tuple[str, Mapping[str, Any]]) -> list[str | Text]:
    name, rung = named
    return [
        name,
        _verdict(_OK if rung["wrong"] is None else _WRONG),
        f"{rung['images'] - rung['flips']} of {rung['images']}",
        f"{rung['differing_codes']} of {rung['codes']}" if rung["codes"] else "not visible",
        _steps(rung["max_output_steps"]),
    ]


def _steps(value: float) -> str:
    """How far logits are off, in steps of their quantizer."""
    return f"{value:.2g}" if value == 0 or value >= 0.01 else "< 0.01"


def _faults(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for entry in results:
        child = in_words(entry["child"])
        judged = dict(entry["rungs"])
        if entry["origin"] is not None:
            judged = {entry["origin"]["against"]: entry["origin"]} | judged
        for name, rung in judged.items():
            if rung["wrong"] is not None:
                where = f", first at {rung['first_layer']}" if rung["first_layer"] else ""
                yield f"{_WRONG}: {name} at {child}: {rung['wrong']}{where}"
        yield from (f"{_WRONG}: {name} at {child}: {reason}" for name, reason in entry["failed"].items())


def _differences(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where codes of a rung begin to differ that is right all the same, a line for all children."""
    found: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for entry in results:
        for name, rung in entry["rungs"].items():
            if rung["codes"] and rung["differing_codes"] and rung["wrong"] is None:
                found.setdefault(name, []).append((in_words(entry["child"]), rung))
    for name, rungs in found.items():
        steps = max(rung["max_step_error"] for _, rung in rungs)
        where = ", ".join(f"{rung['first_layer'] or 'the logits'} at {child}" for child, rung in rungs)
        yield f"{name} differs by at most {steps} step{'' if steps == 1 else 's'}, first in {where}"
    if any(entry["origin"] is not None and not entry["origin"]["measured"] for entry in results):
        yield "* as measured when the checkpoint was made; not measured here"


def _skipped(results: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Reasons are the same at every child."""
    reasons = {name: reason for entry in results for name, reason in entry["skipped"].items()}
    return (f"{name} was not run: {reason}" for name, reason in reasons.items())

"""What a bench hands back: one dictionary that JSON can hold, the contract between measuring and reporting.

Times are milliseconds, sizes bytes, power watts, energy millijoules, accuracy percent. A value that was not measured is
None, or a dictionary ``{"not_measured": why}`` where a reason is at hand; it is never 0. Children stand by their names.

======================  ==========================================================================================
``schema``              2; a reader refuses any other number
``command``             the command line that makes this measurement again
``settings``            `BenchSettings.to_dict`: everything that ``--replay`` needs
``started``             UTC, ISO 8601; ``seconds``: how long all of it took
``environment``         ``machine``, ``cpu``, ``cpu_flags``, ``cores``, ``system``, ``python``, ``packages``;
                        ``device``: name and what it is; ``before``, ``after``: ``load_average``, ``frequency_mhz``,
                        ``temperature_c`` by zone, ``throttling``, on a Jetson also ``power_mode`` and ``fan``
``source``              ``path``, ``kind`` (``checkpoint``, ``onnx``, ``bundle``), ``model``, ``data``, ``trained``,
                        ``sha256``, ``images``: test images that accuracy was measured on, or None
``rows``                what was measured, in the order of the table, see `emqdeploy.measuring.rows.BenchRow`
``resident``            all children of a runtime in one process: ``runtime``, ``kind``, ``flavour``, ``children``,
                        ``rss_bytes``, ``load_ms``, ``size_bytes``
``scenarios``           by name, what the scenario adds, or ``failed``: why it broke off. ``single``: ``clock``,
                        ``block``, ``warm_up``, ``monitor``, ``runtimes`` (the same child in two of them);
                        ``offline``: ``rows`` of label, batch and ``images_per_second`` or ``not_measured``;
                        ``switch``: ``rows``, a summary per child; and those that others register
``switches``            every timed switch in order, see `emqdeploy.measuring.rows.Switch`
``notes``               sentences a reader of the figures should know
``complete``            False where the run was interrupted or a scenario failed: what is there was measured
======================  ==========================================================================================
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy.errors import EmqError
from emqdeploy.files import atomic_write_text
from emqdeploy.format.card import convert, damaged
from emqdeploy.measuring.rows import BenchRow, Reason, Switch

SCHEMA = 2


class _Outline(msgspec.Struct):
    """What every result has, and its types."""

    settings: dict[str, Any]
    environment: dict[str, Any]
    source: dict[str, Any]
    rows: list[BenchRow]
    scenarios: dict[str, dict[str, Any]]
    switches: list[Switch]
    notes: list[Reason]
    complete: bool


def save_result(path: Path, result: dict[str, Any]) -> None:
    """Writes a result as JSON, whole or not at all."""
    atomic_write_text(path, json.dumps(result) + "\n")


def load_result(path: Path) -> dict[str, Any]:
    """Reads a result that `save_result` or ``bench --json`` wrote.

    Raises:
        EmqError: it is not there, not JSON, not a bench, damaged, or of another version of emqdeploy.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
        raise EmqError(f"cannot read {path}: {reason}; name a file that bench --out wrote") from error
    except (ValueError, RecursionError) as error:
        raise EmqError(f"{path} is not JSON ({error}); name a file that bench --out wrote") from error
    return check_result(path, result)


def check_result(path: Path, result: Any) -> dict[str, Any]:
    """Returns what was read from a file if it is a result.

    Raises:
        EmqError: it is something else, damaged, or of another version of emqdeploy.
    """
    if not isinstance(result, dict) or not isinstance(result.get("schema"), int):
        raise EmqError(f"{path} is not a result of emqdeploy bench; make one with: emqdeploy bench --out {path.name}")
    if result["schema"] != SCHEMA:
        remedy = "update emqdeploy to read it" if result["schema"] > SCHEMA else "measure again with: emqdeploy bench"
        raise EmqError(f"{path} has schema {result['schema']}, this emqdeploy reads {SCHEMA}; {remedy}")
    try:
        found = convert(_Outline, result)
        names = {None if child is None else child.name for child in (row.find_child() for row in found.rows)}
        strange = {name for one in found.switches for name in (one.previous, one.child)} - names
        if strange:
            raise ValueError(f"a switch names child {min(strange)!r}, which no row has")
    except ValueError as error:
        raise damaged(path, error, "measure again") from error
    return result

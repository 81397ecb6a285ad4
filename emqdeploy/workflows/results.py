"""Results of earlier benches: read from JSON or out of a report, compared, measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.measuring.comparison import compare
from emqdeploy.measuring.result import check_result, load_result
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.report.html.shell import carried_data

_FREE = {"path", "replay", "out", "csv", "html", "json_", "debug"}
"""Options that say nothing about what is measured; a path says where the same network lies now."""


def read_result(path: Path) -> dict[str, Any]:
    """Reads a result from what ``bench --out``, ``--json`` or ``--html`` wrote.

    Raises:
        EmqError: the file is none of these.
    """
    if path.suffix.lower() in (".html", ".htm"):
        return check_result(path, carried_data(path))
    return load_result(path)


def compare_files(a: Path, b: Path) -> dict[str, Any]:
    """Compares the results in two files, see `emqdeploy.measuring.comparison`.

    Raises:
        EmqError: one of them holds no result, or nothing was measured in both.
    """
    return compare(read_result(a), read_result(b), (str(a), str(b)))


def replay_settings(path: Path, network: str | None, given: set[str]) -> BenchSettings:
    """The settings of an earlier result, to measure the same again.

    Args:
        path: the result or the report.
        network: where the network lies now; None takes it from where it lay then.
        given: names of the options on the command line.

    Raises:
        UsageError: an option would change what is repeated.
    """
    other = sorted(given - _FREE)
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise UsageError(f"--replay repeats a bench with its own settings; leave out {options}, or leave out --replay")
    settings = BenchSettings.from_dict(read_result(path)["settings"])
    return settings if network is None else replace(settings, path=network)

"""Results of earlier benches: read from JSON or out of a report, compared, measured again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from emqdeploy.data import DATASETS
from emqdeploy.errors import UsageError
from emqdeploy.measuring.comparison import compare
from emqdeploy.measuring.result import check_result, load_result
from emqdeploy.measuring.scenarios.switch import TRACES
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.options import options_of
from emqdeploy.remote.place import Place
from emqdeploy.report.html.shell import carried_data

_FREE = {
    "path",
    "replay",
    "resume",
    "out",
    "csv",
    "html",
    "json_",
    "debug",
    "tune",
    *(one.argument for one in options_of(Place)),
}
"""Options that say nothing about what is measured; a path says where the same network lies now."""

_FILES = ("trace", "data", "data_dir")
"""Settings that may name a file: those are taken from the command line alone."""


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


def replay_settings(path: Path, now: BenchSettings, given: set[str], option: str = "--replay") -> BenchSettings:
    """The settings of an earlier result, to measure the same again.

    Args:
        path: the result or the report.
        now: from the command line: the network, and the files that were read.
        given: names of the options on the command line.
        option: that asks for it.

    Raises:
        UsageError: an option would change what is repeated, or the result names a network or a file that the command
            line does not: what is opened stands there, for a network may be a program.
    """
    other = sorted(given - _FREE - set(_FILES))
    if other:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in other)
        raise UsageError(f"{option} repeats a bench with its own settings; leave out {options}, or leave out {option}")
    settings = BenchSettings.from_dict(read_result(path)["settings"])
    if now.path is None and settings.path is not None:
        raise UsageError(
            f"this bench opened {settings.path}, and a result may not say what is opened; name the network before"
            f" {option}: emqdeploy bench PATH {option} ..."
        )
    again = {name: getattr(now, name) for name in _FILES if name in given}
    # What this machine keeps is not forgotten because a result says so.
    settings = replace(settings, **again, path=now.path, tune=now.tune)
    for name in _names_files(settings):
        if name not in given:
            flag = f"--{name.replace('_', '-')}"
            raise UsageError(f"this bench took {flag} from a file, which a result may not name; add {flag} to {option}")
    return settings


def _names_files(settings: BenchSettings) -> list[str]:
    """The settings that are no names of ours."""
    found = {
        "trace": settings.trace not in TRACES,
        "data": settings.data is not None and settings.data not in DATASETS,
        "data_dir": settings.data_dir is not None,
    }
    return [name for name, is_file in found.items() if is_file]

"""What was not the same in two benches, besides their figures, and how far that undermines a comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Result = Mapping[str, Any]

_MACHINE = ("machine", "cpu", "cores", "system", "cpu_flags")
_STATE = ("power_mode", "governor")
_SOURCE = ("model", "data", "images", "sha256", "trained")
_NO_SETTING = {"path"}


def different(a: Result, b: Result) -> list[dict[str, Any]]:
    """Everything that differs: ``part``, ``name``, and what it is in ``a`` and in ``b``."""
    ours, others = a["environment"], b["environment"]
    return [
        *_unequal("machine", ours, others, _MACHINE),
        *_unequal("machine", {"device": _device(ours)}, {"device": _device(others)}),
        *_unequal("software", {"python": ours.get("python")}, {"python": others.get("python")}),
        *_unequal("software", ours.get("packages", {}), others.get("packages", {})),
        *_unequal("state", ours.get("before") or {}, others.get("before") or {}, _STATE),
        *_unequal("settings", a["settings"], b["settings"], sorted({*a["settings"], *b["settings"]} - _NO_SETTING)),
        *_unequal("source", a["source"], b["source"], _SOURCE),
    ]


def _device(environment: Mapping[str, Any]) -> Any:
    return environment.get("device", {}).get("name")


def _unequal(
    part: str, ours: Mapping[str, Any], others: Mapping[str, Any], names: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    return [
        {"part": part, "name": name, "a": ours.get(name), "b": others.get(name)}
        for name in names or dict.fromkeys([*ours, *others])
        if ours.get(name) != others.get(name)
    ]


def cautions(a: Result, b: Result, rows: Sequence[Mapping[str, Any]], names: tuple[str, str] = ("A", "B")) -> list[str]:
    """Sentences, the gravest first.

    Args:
        a: the result that the other is measured against.
        b: the other one.
        rows: of the comparison.
        names: what to call the two.
    """
    found = different(a, b)
    parts: dict[str, list[dict[str, Any]]] = {}
    for one in found:
        parts.setdefault(one["part"], []).append(one)
    said = []
    if not found and a.get("started") == b.get("started") and a["rows"] == b["rows"]:
        said.append("Both are the same measurement.")
    if any(one["name"] in ("cpu", "machine", "cores", "device") for one in parts.get("machine", [])):
        said.append(
            f"Measured on other machines ({_listed(parts['machine'])}): the differences are those of the machines."
        )
    if any(one["name"] == "sha256" for one in parts.get("source", [])):
        said.append("The networks are not the same file.")
    if any(one["name"] in ("data", "images") for one in parts.get("source", [])):
        said.append("Accuracy was measured on other images: its differences may be those of the images.")
    if "settings" in parts:
        said.append(f"Measured with other settings: {_listed(parts['settings'])}.")
    if "software" in parts:
        said.append(f"Other software: {_listed(parts['software'])}.")
    if "state" in parts:
        said.append(f"Another state of the machine: {_listed(parts['state'])}.")
    said += [f"{side} was interrupted." for side, one in zip(names, (a, b), strict=True) if not one["complete"]]
    runtimes = [row["label"] for row in rows if " / " in row["runtime"]]
    if runtimes:
        said.append(f"In other runtimes: {', '.join(runtimes)}.")
    return said + _disturbed(rows) + _chance(rows)


def _disturbed(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The most disturbed rows are named with the reason; an interval does not cover what happened to one run only."""
    wrong = [row for row in rows if row["disturbed"]]
    if not wrong:
        return []
    reasons = list(dict.fromkeys(reason for row in wrong for reason in row["disturbed"]))
    labels = "all rows" if len(wrong) == len(rows) else ", ".join(row["label"] for row in wrong)
    more = f" and {len(reasons) - 2} more reasons" if len(reasons) > 2 else ""
    return [f"Disturbed ({labels}): {'; '.join(reasons[:2])}{more}. Measure again before you believe a difference."]


def _chance(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    timed = [row for row in rows if row["p50"]]
    if not timed:
        return ["Neither has enough samples of the same row for an interval."]
    return [
        "Intervals cover what varied within each run, not from one start to the next; of 20 that hold nothing but"
        " chance, one leaves 1 out."
    ]


def _listed(entries: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['name']} {_shown(one['a'])} against {_shown(one['b'])}" for one in entries)


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    return ",".join(map(str, value)) or "none" if isinstance(value, list | tuple) else str(value)

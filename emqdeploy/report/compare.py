"""Two benches side by side on the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from emqdeploy.report.fitting import table
from emqdeploy.report.units import MISSING, of_bytes, of_times


def compare_parts(result: Mapping[str, Any]) -> list[Table | str]:
    """Tables and lines of `emqdeploy.measuring.comparison.compare`."""
    parts: list[Table | str] = [_speed(result)]
    if any(row["size_bytes"] or row["rss_bytes"] for row in result["rows"]):
        parts.append(_costs(result))
    parts += result["findings"]
    for side, name in zip("ab", result["names"], strict=True):
        if result[f"only_{side}"]:
            parts.append(f"only in {name}: {', '.join(result[f'only_{side}'])}")
    return parts + [f"caution: {one}" for one in result["cautions"]]


def _speed(result: Mapping[str, Any]) -> Table:
    a, b = result["a"], result["b"]
    one, two = result["names"]
    medians = [row["p50"] or {} for row in result["rows"]]
    unit = of_times([one.get(side) for one in medians for side in ("a_ms", "b_ms")])
    speed = table(
        f"{one}: {a['path']}, {_when(a)}\n{two}: {b['path']}, {_when(b)}",
        *(
            "",
            f"{two} is",
            "p50 ratio [95 %]",
            f"p50 {one} {unit.name}",
            f"p50 {two} {unit.name}",
            "p99 ratio [95 %]",
            f"accuracy {one}",
            f"accuracy {two}",
            "points [95 %]",
        ),
        caption=f"ratio: {two} over {one}, with its interval; * disturbed",
    )
    for row in result["rows"]:
        p50, p99, accuracy = row["p50"] or {}, row["p99"], row["accuracy"] or {}
        speed.add_row(
            row["label"] + (" *" if row["disturbed"] else ""),
            p50.get("verdict", MISSING),
            ratio(row["p50"]),
            *(unit(p50.get(side)) for side in ("a_ms", "b_ms")),
            ratio(p99),
            *(f"{accuracy[side]:.2f} %" if accuracy else "-" for side in "ab"),
            points(row["accuracy"]),
        )
    return speed


def _costs(result: Mapping[str, Any]) -> Table:
    units = {
        key: of([value for row in result["rows"] if row[key] for value in (row[key]["a"], row[key]["b"])])
        for key, of in (("size_bytes", of_bytes), ("rss_bytes", of_bytes), ("load_ms", of_times))
    }
    names = [f"{name} {unit.name}" for name, unit in zip(("size", "memory", "load"), units.values(), strict=True)]
    costs = table(
        f"What each costs, {' to '.join(result['names'])}",
        *("", *names, "energy / image mJ", "first output ratio [95 %]"),
        caption="size, memory, load and energy were measured once in each: no interval",
    )
    for row in result["rows"]:
        costs.add_row(
            row["label"],
            *(pair(row[key], unit) for key, unit in units.items()),
            pair(row["energy_mj"], lambda value: f"{value:.3g}"),
            ratio(row["first_output"]),
        )
    return costs


def _when(side: Mapping[str, Any]) -> str:
    started = (side["started"] or "an unknown time")[:16].replace("T", " ")
    return f"{side['model']} on {side['data']}, {started}, {side['cpu']}"


def ratio(found: Mapping[str, Any] | None) -> str:
    """A ratio with its interval, or a dash."""
    return "-" if found is None else f"{found['ratio']:.3f} [{found['low']:.3f}, {found['high']:.3f}]"


def points(found: Mapping[str, Any] | None) -> str:
    """A difference of accuracies with its interval."""
    if found is None:
        return "-"
    if found["verdict"] == "equal":
        return "equal"
    return f"{found['difference']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def pair(found: Mapping[str, Any] | None, form: Any) -> str:
    """Both values, or one where they are shown alike."""
    if found is None:
        return "-"
    ours, others = form(found["a"]), form(found["b"])
    return ours if ours == others else f"{ours} to {others}"

"""The result of a bench on the terminal: speed and accuracy, what each row costs, and what disturbed the run."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.format.bundle import BASELINE
from emqdeploy.format.precision import INT8
from emqdeploy.measuring.rows import BenchRow, Ratio, compared_with, rows_of
from emqdeploy.report.fitting import table
from emqdeploy.report.units import MISSING, milliseconds, of_bytes, of_times, percent, size


def bench_parts(result: dict[str, Any]) -> list[Table | str]:
    """Tables and lines."""
    rows = rows_of(result)
    return [_speed(result, rows), _costs(result, rows), *_throughput(result), *_lines(result, rows)]


def _speed(result: dict[str, Any], rows: list[BenchRow]) -> Table:
    source = result["source"]
    images = "" if source["images"] is None else f", accuracy on {source['images']} test images"
    bases = compared_with(rows)
    shown = ("p50", "p99") if bases else ("p50", "p90", "p99")
    unit = of_times([getattr(row.latency_ms, key, None) for row in rows for key in shown])
    runtimes = dict.fromkeys(row.runtime for row in rows if row.kind != BASELINE)
    several = len(runtimes) > 1
    where = f" in {next(iter(runtimes))}" if bases and not several else ""
    speed = table(
        f"{source['path']} on {result['environment']['cpu']}{where}, one image at a time{images}",
        *(["", "runtime"] if several else [""]),
        *("accuracy", "drop", *(f"{key} {unit.name}" for key in shown)),
        *(f"as fast as {name}{' [95 %]' if name == INT8 else ''}" for name in bases),
        *(["computed as"] if bases else ["ratio of p50 [95 %]", "computed as"]),
        *([] if several or bases else ["runtime"]),
        caption=_about_speed(bases),
        keys=1 + several,
    )
    for row in rows:
        drop = row.accuracy_drop
        speed.add_row(
            row.label + (" *" if row.disturbed else ""),
            *([row.runtime] if several else []),
            percent(row.accuracy),
            MISSING if drop is None else f"{drop:.2f}",
            *(unit(getattr(row.latency_ms, key, None)) for key in shown),
            *(_ratio(row.times_as_fast.get(name), 2, whole=name == INT8) for name in bases),
            *([] if bases else [_ratio(row.ratio_to_first, 3)]),
            row.computed_as or MISSING,
            *([] if several or bases else [row.runtime]),
        )
    return speed


def _about_speed(bases: list[str]) -> str:
    drop = "drop: percentage points lost against torch at training"
    if not bases:
        return f"{drop}; ratio: to the first row, taken in turns"
    return f"{drop}; as fast as: how many times, of the same network in onnxruntime as {' and '.join(bases)}, in turns"


def _ratio(ratio: Ratio | None, digits: int, whole: bool = True) -> str:
    """A ratio, and its interval where that is wanted."""
    if ratio is None:
        return MISSING
    low, high = (f"{value:.{digits}f}" for value in (ratio.low, ratio.high))
    return f"{ratio.ratio:.{digits}f}" + (f" [{low}, {high}]" if whole else "")


def _costs(result: dict[str, Any], rows: list[BenchRow]) -> Table:
    switching = {row["label"]: row for row in result["scenarios"].get("switch", {}).get("rows", [])}
    found = [
        {
            "size": row.size_bytes,
            "memory": row.rss_bytes,
            "load": row.load_ms,
            "switch": switching.get(row.label, {}).get("set_bits_ms", {}).get("p50"),
            "first output": switching.get(row.label, {}).get("first_output_ms", {}).get("p50"),
        }
        for row in rows
    ]
    units = {
        name: (of_bytes if name in ("size", "memory") else of_times)([one[name] for one in found]) for name in found[0]
    }
    costs = table(
        "What each costs",
        *("", "stored as", *(f"{name} {unit.name}" for name, unit in units.items()), "energy / image", "idle power"),
        caption="size: bytes of the file that this row needs; memory, load: in a fresh process, the runtime's library"
        " not counted; switch: the call, between resident networks; first output: the inference after it",
    )
    for row, measured in zip(rows, found, strict=True):
        used, idle = row.energy.energy_mj_per_inference, row.energy.idle_power_w
        costs.add_row(
            row.label,
            row.stored_as or MISSING,
            *(unit(measured[name]) for name, unit in units.items()),
            "not measured" if used is None else f"{used:.3g} mJ",
            "not measured" if idle is None else f"{idle:.2f} W",
        )
    return costs


def _throughput(result: dict[str, Any]) -> list[Table]:
    rows = result["scenarios"].get("offline", {}).get("rows", [])
    if not rows:
        return []
    batches = sorted({row["batch"] for row in rows})
    speed = {(row["label"], row["batch"]): row.get("images_per_second") for row in rows}
    throughput = table("Images per second", "", *(f"batch {batch}" for batch in batches))
    for label in dict.fromkeys(row["label"] for row in rows):
        found = [speed.get((label, batch)) for batch in batches]
        throughput.add_row(label, *("-" if value is None else f"{value:,.0f}" for value in found))
    return [throughput]


def _lines(result: dict[str, Any], rows: list[BenchRow]) -> list[str]:
    lines = [
        f"all {len(one['children'])} children resident in {one['runtime']}"
        f"{' (' + one['flavour'] + ')' if one['flavour'] else ''}: {size(one.get('rss_bytes'))} of memory,"
        f" loaded in {milliseconds(one.get('load_ms'))}"
        for one in result["resident"]
    ]
    missing = dict.fromkeys(row.energy.not_measured for row in rows)
    lines += [f"energy is not measured: {reason}" for reason in missing if reason]
    wrong = dict.fromkeys(trouble for row in rows for trouble in row.energy.disturbed or ())
    lines += [f"energy: the sensor {trouble}" for trouble in wrong]
    sensors = dict.fromkeys((row.energy.rail, row.energy.rule) for row in rows)
    lines += [f"energy is of {rail}: {rule}; idle power is subtracted" for rail, rule in sensors if rail]
    disturbed = dict.fromkeys(reason for row in rows for reason in row.disturbed)
    return lines + result["notes"] + [f"* disturbed: {reason}" for reason in disturbed]

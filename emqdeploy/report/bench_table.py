"""The result of a bench on the terminal: speed and accuracy, what each row costs, and what disturbed the run."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.measuring.rows import BenchRow, rows_of
from emqdeploy.report.terminal import milliseconds, percent, size, table


def bench_parts(result: dict[str, Any]) -> list[Table | str]:
    """Tables and lines."""
    rows = rows_of(result)
    return [_speed(result, rows), _costs(result, rows), *_throughput(result), *_lines(result, rows)]


def _speed(result: dict[str, Any], rows: list[BenchRow]) -> Table:
    source = result["source"]
    images = "" if source["images"] is None else f", accuracy on {source['images']} test images"
    speed = table(
        f"{source['path']} on {result['environment']['cpu']}, one image at a time{images}",
        *("", "runtime", "accuracy", "drop", "p50", "p90", "p99", "ratio of p50 [95 %]", "computed as"),
        caption="drop: percentage points lost against torch at training; ratio: to the first row, taken in turns",
    )
    for row in rows:
        ratio, drop = row.ratio_to_first, row.accuracy_drop
        speed.add_row(
            row.label + (" *" if row.disturbed else ""),
            row.runtime,
            percent(row.accuracy),
            "-" if drop is None else f"{drop:.2f}",
            *(milliseconds(getattr(row.latency_ms, key, None)) for key in ("p50", "p90", "p99")),
            "-" if ratio is None else f"{ratio.ratio:.3f} [{ratio.low:.3f}, {ratio.high:.3f}]",
            row.computed_as or "-",
        )
    return speed


def _costs(result: dict[str, Any], rows: list[BenchRow]) -> Table:
    switching = {row["label"]: row for row in result["scenarios"].get("switch", {}).get("rows", [])}
    costs = table(
        "What each costs",
        *("", "stored as", "size", "memory", "load", "switch", "first output", "energy / image", "idle power"),
        caption="size: bytes of the file that this row needs; memory, load: in a fresh process, the runtime's library"
        " not counted; switch: the call, between resident networks; first output: the inference after it",
    )
    for row in rows:
        used, idle, switched = row.energy.energy_mj_per_inference, row.energy.idle_power_w, switching.get(row.label, {})
        costs.add_row(
            row.label,
            row.stored_as or "-",
            size(row.size_bytes),
            size(row.rss_bytes),
            milliseconds(row.load_ms),
            *(milliseconds(switched.get(key, {}).get("p50")) for key in ("set_bits_ms", "first_output_ms")),
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

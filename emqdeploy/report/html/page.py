"""The report of a bench as one HTML file."""

from __future__ import annotations

from collections.abc import Callable
from html import escape
from pathlib import Path
from typing import Any

from emqdeploy.files import atomic_write_text
from emqdeploy.report.findings import cautions, findings
from emqdeploy.report.html import charts, tables, timelines
from emqdeploy.report.html.shell import caution, figure, findings_list, heading, section, shell, table, tiles
from emqdeploy.report.html.words import colour, duration, energy, percent, size

Row = dict[str, Any]


def save_html(path: Path, result: dict[str, Any]) -> None:
    """Writes the report of a result, whole or not at all."""
    atomic_write_text(path, render(result))


def render(result: dict[str, Any]) -> str:
    """The page of a result, see `emqdeploy.measuring.result`."""
    source = result["source"]
    title = f"{source['model']} on {source['data']}"
    where = f"{result['environment']['cpu']}, {result['environment']['cores']} cores"
    lead = f"{source['path']}, measured on {where}, {result['started'][:16].replace('T', ' ')} UTC, one image at a time"
    header = (
        heading("emqdeploy bench", title, lead)
        + tiles(_tiles(result))
        + findings_list(findings(result))
        + caution(cautions(result))
    )
    body = "".join(
        [
            _fronts(result),
            section("All figures", "p50 with its 95 % interval; the ratio is to the first row, taken in turns. "
                    "Memory and load: in a fresh process. * disturbed.", tables.results(result)),
            _latency(result),
            _switching(result),
            _adaptive(result.get("scenarios", {}).get("adaptive")),
            _offline(result),
            section("Stored as, computed as", "Per layer: what the file holds, and in which type the kernel "
                    "that really ran multiplied. A float layer in an integer network stands out here.",
                    tables.layers(result["rows"])),
            section("Environment", "A figure belongs to a machine, its state and its software.",
                    tables.environment(result)),
            section("Settings", "The same measurement again: emqdeploy bench --replay with this file or its data.",
                    tables.settings(result)),
        ]
    )  # fmt: skip
    return shell(f"emqdeploy {title}", header, body, result)


def _tiles(result: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [row for row in result["rows"] if row["kind"] == "width"] or result["rows"]
    timed = [row for row in rows if row["latency_ms"]]
    known = [row for row in rows if row["accuracy"] is not None]
    entries = []
    if known:
        best = max(known, key=lambda row: (row["accuracy"], row["bits"] or 0))
        entries.append((f"accuracy, {best['label']}", percent(best["accuracy"])))
    if timed:
        shown = max(timed, key=lambda row: (row["accuracy"] or 0, row["bits"] or 0))
        entries.append((f"p50, {shown['label']}", duration(shown["latency_ms"]["p50"])))
        entries.append((f"p99, {shown['label']}", duration(shown["latency_ms"]["p99"])))
    sized = [row for row in rows if row["size_bytes"]]
    if sized:
        smallest = min(sized, key=lambda row: row["size_bytes"])
        entries.append((f"bytes to load, {smallest['label']}", size(smallest["size_bytes"])))
    return entries


def _fronts(result: dict[str, Any]) -> str:
    rows = result["rows"]
    costs: list[tuple[str, str, Callable[[Row], float | None], Callable[[float], str], str]] = [
        ("Latency", "latency, p50", lambda row: (row["latency_ms"] or {}).get("p50"), duration, "not timed"),
        ("Energy", "energy of an image", lambda row: row["energy"].get("energy_mj_per_inference"), energy, _why(rows)),
        ("Size", "bytes of the file", lambda row: row["size_bytes"], size, "not known"),
        ("Memory", "memory that it adds", lambda row: row["rss_bytes"], size, "not measured"),
    ]
    legend = "".join(
        f'<button type="button" aria-pressed="true" data-key="key-{index}"><i class="{colour(row)}"></i>'
        f"{escape(row['label'])}</button>"
        for index, row in enumerate(rows)
    )
    accuracy = any(row["accuracy"] is not None for row in rows)
    frames = []
    for caption, name, cost, form, missing in costs:
        why = missing if accuracy else "the accuracy was not measured: the data set was not at hand"
        frames.append(figure(f"Accuracy over {caption.lower()}", charts.pareto(rows, cost, name, form), why))
    return section(
        "What accuracy costs",
        "Up and to the left is better. The dashed line joins what nothing else beats; bars are 95 % intervals. "
        "Axes span at least a fifth of the value, so that noise does not look like a difference.",
        f'<div class="legend">{legend}</div><div class="halves fronts">{"".join(frames)}</div>',
    )


def _why(rows: list[Row]) -> str:
    reasons = [row["energy"].get("not_measured") for row in rows]
    found = next((reason for reason in reasons if reason), None)
    return f"not measured: {found}" if found else "not measured"


def _latency(result: dict[str, Any]) -> str:
    rows = [row for row in result["rows"] if row["samples_ms"]]
    if not rows:
        return ""
    block = result["scenarios"].get("single", {}).get("block", 10)
    return section(
        "Latency, every sample",
        "Long mark: median. Short mark: 99 of 100 inferences are faster. Below: a row that moves alone was disturbed "
        "alone; rows that move together felt the machine.",
        figure("Distribution", charts.distributions(rows)) + figure("Steadiness", charts.steadiness(rows, block)),
    )


def _switching(result: dict[str, Any]) -> str:
    taken = [one for one in result["switches"] if one["from"] is not None]
    if not taken:
        return ""
    calls = sorted(one["set_bits_ms"] for one in taken)
    worst = duration(calls[min(int(0.99 * len(calls)), len(calls) - 1)])
    hint = f"{len(taken)} switches, p99 of the call {worst}"
    return section(
        "Switching",
        "The call only changes what runs next; what a switch really costs shows in the first output after it, "
        "which reads weights that are no longer in the cache.",
        figure("Trace", timelines.switches(taken), hint=hint),
    )


def _adaptive(run: dict[str, Any] | None) -> str:
    if not run or not run["t_s"]:
        return ""
    phases = table(
        ["phase", "inferences", "p50", "p99", "over the budget", "switches", "within the budget after"],
        (
            [
                escape(phase["name"]),
                str(phase["inferences"]),
                duration(phase["p50_ms"]),
                duration(phase["p99_ms"]),
                "-" if phase["share_over"] is None else f"{100 * phase['share_over']:.2f} %",
                str(phase["switches"]),
                "not reached" if phase["recovery_s"] is None else f"{phase['recovery_s']:.2f} s",
            ]
            for phase in run["phases"]
            if phase["inferences"]
        ),
    )
    decisions = table(
        ["at", "", "setting", "why"],
        (
            [f"{one['at_s']:.2f} s", escape(one["kind"]), escape(one["setting"]), escape(one["reason"])]
            for one in run["decisions"]
        ),
        (0, 1, 2, 3),
    )
    return section(
        "The policy at work",
        f"{run['policy']}. Shaded: another process takes processor time. Triangles: switches.",
        figure("Timeline", timelines.adaptive(run)) + "<h3>Phases</h3>" + phases + "<h3>Decisions</h3>" + decisions,
    )


def _offline(result: dict[str, Any]) -> str:
    rows = result["scenarios"].get("offline", {}).get("rows", [])
    if not rows:
        return ""
    by_label = {row["label"]: row for row in result["rows"]}
    batches = sorted({row["batch"] for row in rows})
    speed = {(row["label"], row["batch"]): row["images_per_second"] for row in rows}
    lines = [
        [f'<i class="{colour(by_label[label])}"></i>{escape(label)}']
        + [f"{speed[label, batch]:,.0f}" if (label, batch) in speed else "-" for batch in batches]
        for label in dict.fromkeys(row["label"] for row in rows)
    ]
    chart = figure("Images per second", charts.throughput(rows, by_label)) if len(batches) > 1 else ""
    figures = table(["", *(f"batch {batch}" for batch in batches)], lines)
    return section(
        "Throughput",
        "Several images at a time, the next batch when the last one is answered.",
        f'<div class="halves">{chart}<div class="half">{figures}</div></div>',
    )

"""The report of a bench as one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from pathlib import Path
from typing import Any

from emqdeploy.files import atomic_write_text
from emqdeploy.format.bundle import CHILD
from emqdeploy.measuring.rows import BenchRow, compared_with, rows_of, switches_of
from emqdeploy.report.findings import cautions, findings
from emqdeploy.report.html import charts, tables, timelines
from emqdeploy.report.html.shell import advice, caution, figure, findings_list, heading, section, shell, table, tiles
from emqdeploy.report.html.words import colour_of, duration, energy, percent, size
from emqdeploy.report.recommendation import accuracy_interval, recommend


def save_html(path: Path, result: dict[str, Any]) -> None:
    """Writes the report of a result, whole or not at all."""
    atomic_write_text(path, render(result))


def render(result: dict[str, Any]) -> str:
    """The page of a result, see `emqdeploy.measuring.result`."""
    source, rows = result["source"], rows_of(result)
    title = f"{source['model']} on {source['data']}"
    where = f"{result['environment']['cpu']}, {result['environment']['cores']} cores"
    lead = f"{source['path']}, measured on {where}, {result['started'][:16].replace('T', ' ')} UTC, one image at a time"
    header = (
        heading("emqdeploy bench", title, lead)
        + _advice(result, rows)
        + findings_list(findings(result))
        + caution(cautions(result))
    )
    body = "".join(
        [
            _fronts(rows, source["images"]),
            section("All figures", f"Accuracy and p50 with their 95 % intervals; {_about_ratios(rows)}, taken "
                    "in turns. Memory and load: in a fresh process. * disturbed.", tables.results(result, rows)),
            _latency(result, rows),
            _switching(result, rows),
            _adaptive(result.get("scenarios", {}).get("adaptive")),
            _offline(result, rows),
            section("Stored as, computed as", "Per layer: what the file holds, and in which type the kernel "
                    "that really ran multiplied. A float layer in an integer network stands out here.",
                    tables.layers(rows)),
            section("Environment", "A figure belongs to a machine, its state and its software.",
                    tables.environment(result)),
            section("Settings", "The same measurement again: emqdeploy bench --replay with this file or its data.",
                    tables.settings(result)),
        ]
    )  # fmt: skip
    return shell(f"emqdeploy {title}", header, body, result)


def _about_ratios(rows: Sequence[BenchRow]) -> str:
    """What the ratios of the table are to."""
    bases = compared_with(rows)
    if not bases:
        return "the ratio is to the first row"
    return f"as fast as: how many times, of the same network in onnxruntime as {' and '.join(bases)}"


def _tiles(row: BenchRow, images: int | None) -> list[tuple[str, str]]:
    """Figures of one and the same setting."""
    entries = []
    if row.accuracy is not None:
        interval = accuracy_interval(row.accuracy, images)
        where = "" if interval is None else f" ({interval[0]:.1f} to {interval[1]:.1f} %)"
        entries.append((f"accuracy of {row.label}{where}", percent(row.accuracy)))
    if row.latency_ms is not None:
        entries += [(f"{key} of {row.label}", duration(getattr(row.latency_ms, key))) for key in ("p50", "p99")]
    return entries + ([(f"bytes of {row.label}", size(row.size_bytes))] if row.size_bytes else [])


def _advice(result: dict[str, Any], rows: Sequence[BenchRow]) -> str:
    """The setting that the figures speak for, and its figures; those of the most accurate where they speak for none."""
    images, found = result["source"]["images"], recommend(result, rows)
    if found is not None:
        box = advice(colour_of(found.row), f"Deploy {found.row.label}", (("Why", found.why), ("How sure", found.sure)))
        return box + tiles(_tiles(found.row, images))
    children = [row for row in rows if row.kind == CHILD] or list(rows)
    shown = max(children, key=lambda row: (row.accuracy or 0, row.bits or 0), default=None)
    return "" if shown is None else tiles(_tiles(shown, images))


def _fronts(rows: Sequence[BenchRow], images: int | None) -> str:
    costs: list[tuple[str, str, Callable[[BenchRow], float | None], Callable[[float], str], str]] = [
        ("Latency", "latency, p50", lambda row: getattr(row.latency_ms, "p50", None), duration, "not timed"),
        ("Energy", "energy of an image", lambda row: row.energy.energy_mj_per_inference, energy, ""),
        ("Size", "bytes of the file", lambda row: row.size_bytes, size, "not known"),
        ("Memory", "memory that it adds", lambda row: row.rss_bytes, size, "not measured"),
    ]
    legend = "".join(
        f'<button type="button" aria-pressed="true" data-key="key-{index}"><i class="{colour_of(row)}"></i>'
        f"{escape(row.label)}</button>"
        for index, row in enumerate(rows)
    )
    accuracy = any(row.accuracy is not None for row in rows)
    frames = []
    for caption, name, cost, form, missing in costs:
        if not missing and all(cost(row) is None for row in rows):
            continue  # the caution above says why
        why = missing if accuracy else "the accuracy was not measured: the data set was not at hand"
        frames.append(figure(f"Accuracy over {caption.lower()}", charts.pareto(rows, cost, name, form, images), why))
    return section(
        "What accuracy costs",
        "Up and to the left is better. The dashed line joins what nothing else beats. Bars are 95 % intervals: of the "
        "accuracy from the number of test images, of the median latency from the samples. Where bars overlap, the "
        "difference may be chance.",
        f'<div class="legend">{legend}</div><div class="halves fronts">{"".join(frames)}</div>',
    )


def _latency(result: dict[str, Any], all_rows: Sequence[BenchRow]) -> str:
    rows = [row for row in all_rows if row.samples_ms]
    if not rows:
        return ""
    block = result["scenarios"].get("single", {}).get("block", 10)
    return section(
        "Latency, every sample",
        "Long mark: median. Short mark: 99 of 100 inferences are faster. Below: a row that moves alone was disturbed "
        "alone; rows that move together felt the machine.",
        figure("Distribution", charts.distributions(rows)) + figure("Steadiness", charts.steadiness(rows, block)),
    )


def _switching(result: dict[str, Any], rows: Sequence[BenchRow]) -> str:
    taken = switches_of(result)
    if not taken:
        return ""
    calls = sorted(one.set_bits_ms for one in taken)
    worst = duration(calls[min(int(0.99 * len(calls)), len(calls) - 1)])
    hint = f"{len(taken)} switches, p99 of the call {worst}"
    return section(
        "Switching",
        "The call only changes what runs next; what a switch really costs shows in the first output after it, "
        "which reads weights that are no longer in the cache.",
        figure("Trace", timelines.switches(taken, rows), hint=hint),
    )


def _adaptive(run: dict[str, Any] | None) -> str:
    if not run or not run.get("t_s"):
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


def _offline(result: dict[str, Any], all_rows: Sequence[BenchRow]) -> str:
    by_label = {row.label: row for row in all_rows}
    found = result["scenarios"].get("offline", {}).get("rows", [])
    rows = [row for row in found if "images_per_second" in row and row["label"] in by_label]
    if not rows:
        return ""
    batches = sorted({row["batch"] for row in rows})
    speed = {(row["label"], row["batch"]): row["images_per_second"] for row in rows}
    lines = [
        [f'<i class="{colour_of(by_label[label])}"></i>{escape(label)}']
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

"""Two benches side by side as one HTML file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from emqdeploy.files import atomic_write_text
from emqdeploy.report.compare import pair, points, ratio
from emqdeploy.report.html.charts import HALF, WIDE, both
from emqdeploy.report.html.shell import caution, figure, findings_list, heading, section, shell, table
from emqdeploy.report.html.svg import CHARACTER, Drawing, Scale
from emqdeploy.report.html.words import colour, duration, energy, size

Row = Mapping[str, Any]
"""A row of the comparison, or what it says about one quantity."""


def save_comparison(path: Path, comparison: dict[str, Any]) -> None:
    """Writes the page of a comparison, whole or not at all."""
    atomic_write_text(path, render(comparison))


def render(comparison: dict[str, Any]) -> str:
    """The page of `emqdeploy.measuring.comparison.compare`."""
    a, b, rows = comparison["a"], comparison["b"], comparison["rows"]
    one, two = comparison["names"]
    lead = f"{one}: {_side(a)}. {two}: {_side(b)}."
    header = (
        heading("emqdeploy compare", f"{Path(b['path']).name} against {Path(a['path']).name}", lead)
        + findings_list(comparison["findings"])
        + caution(comparison["cautions"])
    )
    charts = "".join(
        figure(caption, ratios(rows, name, (one, two)), missing)
        for caption, name, missing in (
            ("Median latency", "p50", "too few samples in both"),
            ("99th percentile", "p99", "needs 500 samples of a row in both"),
        )
    )
    body = "".join(
        [
            section(f"How much {two} differs", f"Ratio of {two} to {one}, bars are 95 % intervals. Right of the line "
                    f"{two} is slower; a bar that crosses it shows no difference, nor does one within 3 %.", charts),
            section("All figures", "* disturbed. Size, memory, load and energy were measured once in each run: no "
                    "interval.", _figures(rows, (one, two))),
            section("What else differs", "A difference of the figures may come from any of these.",
                    _different(comparison)),
            section("Method", comparison["method"] + ".", " "),
        ]
    )  # fmt: skip
    return shell(f"emqdeploy {Path(b['path']).name} against {Path(a['path']).name}", header, body, comparison)


def ratios(rows: Sequence[Row], quantity: str, names: tuple[str, str] = ("A", "B")) -> str | None:
    """Every row's ratio with its interval beside the line of no difference."""
    found = [(row, row[quantity]) for row in rows if row[quantity]]
    return both(lambda width: _ratios(found, names, width), WIDE) if found else None


def _ratios(found: Sequence[tuple[Row, Row]], names: tuple[str, str], width: float) -> Drawing:
    narrow = width < HALF
    widest = CHARACTER * max(len(row["label"]) for row, _ in found) + 12
    left, right, top, band, bottom = (8.0 if narrow else max(widest, 90)), (8.0 if narrow else 190.0), 10.0, 30.0, 46.0
    band += 16 if narrow else 0
    height = top + band * len(found) + bottom
    reach = max(1.1, *(max(one["high"], 1 / one["low"]) for _, one in found)) * 1.03
    x = Scale(1 / reach, reach, left, width - right, log=True)
    drawing = Drawing(width, height, f"Ratio of {names[1]} to {names[0]}")
    drawing.x_axis(
        x, height - bottom, top, f"{names[1]} / {names[0]}", lambda value: f"{value:.3g}x", 4 if narrow else 8
    )
    drawing.line(x(1), top, x(1), height - bottom, "limit")
    for index, (row, one) in enumerate(found):
        y = top + band * (index + 1) - 12
        text = f"{one['ratio']:.3f}x, {one['verdict']}"
        above = y - 14 if narrow else y + 4
        drawing.text(left if narrow else left - 12, above, row["label"], "label strong", "start" if narrow else "end")
        drawing.text(width - right + (0 if narrow else 14), above, text, "tick", "end" if narrow else "start")
        drawing.line(x(one["low"]), y, x(one["high"]), y, f"whisker {colour(row['kind'], row['bits'])}")
        tip = (
            f"{row['label']}: {duration(one['a_ms'])} to {duration(one['b_ms'])}\n{ratio(one)}"
            + "".join(f"\ndisturbed, {reason}" for reason in row["disturbed"])
        )  # fmt: skip
        drawing.mark(
            min(max(x(one["ratio"]), left), width - right), y, "circle", colour(row["kind"], row["bits"]), tip, 5
        )
    return drawing


def _figures(rows: Sequence[Row], names: tuple[str, str]) -> str:
    one, two = names
    columns = (
        "", f"p50 {one}", f"p50 {two}", "p50 ratio", f"{two} is", "p99 ratio", "first output ratio", f"accuracy {one}",
        f"accuracy {two}", "points", "size", "memory", "load", "energy / image",
    )  # fmt: skip
    once: Sequence[tuple[str, Callable[[float], str]]] = (
        ("size_bytes", size),
        ("rss_bytes", size),
        ("load_ms", duration),
        ("energy_mj", energy),
    )
    lines = []
    for row in rows:
        p50, accuracy = row["p50"], row["accuracy"]
        mark = " *" if row["disturbed"] else ""
        lines.append(
            [
                f'<i class="{colour(row["kind"], row["bits"])}"></i>{escape(row["label"])}{mark}',
                *(duration(p50[f"{side}_ms"]) if p50 else "-" for side in "ab"),
                _ratio(p50),
                p50["verdict"] if p50 else "-",
                _ratio(row["p99"]),
                _ratio(row["first_output"]),
                *(f"{accuracy[side]:.2f} %" if accuracy else "-" for side in "ab"),
                escape(points(accuracy)),
                *(escape(pair(row[name], form)) for name, form in once),
            ]
        )
    return table(columns, lines, (0, 4))


def _ratio(found: Row | None) -> str:
    return "-" if found is None else f"{found['ratio']:.3f}<small>{found['low']:.3f} to {found['high']:.3f}</small>"


def _different(comparison: Mapping[str, Any]) -> str:
    lines = [
        [escape(str(value)) for value in (one["part"], one["name"], _text(one["a"]), _text(one["b"]))]
        for one in comparison["different"]
    ]
    for side in "ab":
        if comparison[f"only_{side}"]:
            labels = escape(", ".join(comparison[f"only_{side}"]))
            lines.append(["rows", "only there", *(labels if one == side else "-" for one in "ab")])
    if not lines:
        return "<p>Nothing: machine, software, settings and network are the same.</p>"
    return table(("", "what", *comparison["names"]), lines, (0, 1, 2, 3))


def _text(value: Any) -> str:
    return "-" if value is None else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _side(side: Mapping[str, Any]) -> str:
    started = (side["started"] or "unknown")[:16].replace("T", " ")
    return f"{side['path']} ({side['model']} on {side['data']}, {side['cpu']}, {started} UTC)"

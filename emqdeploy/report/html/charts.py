"""The pictures of a bench: fronts, distributions, steadiness, throughput. Every chart is drawn wide and narrow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from emqdeploy.measuring.rows import BenchRow
from emqdeploy.report.html.svg import CHARACTER, Drawing, Format, Scale, place_labels, span
from emqdeploy.report.html.words import colour_of, duration, shape, summary
from emqdeploy.report.recommendation import accuracy_interval

WIDE, HALF, NARROW = 1040.0, 500.0, 340.0
"""Widths in pixels: the whole page, half of it, a phone."""

ABOVE = 9.0
"""How far a label stands above its mark, in pixels: clear of the marks beside it and of the dashed line."""


def both(draw: Callable[[float], Drawing], width: float) -> str:
    """A chart for a screen and for a phone; the style sheet shows one of them."""
    return draw(width).render("wide") + draw(NARROW).render("narrow")


# --- fronts -------------------------------------------------------------------------------------------------------


Point = tuple[BenchRow, float, float]
"""A row, its cost and its accuracy."""


def pareto(
    rows: Sequence[BenchRow],
    cost: Callable[[BenchRow], float | None],
    name: str,
    form: Format,
    images: int | None = None,
) -> str | None:
    """Accuracy over a cost, every row a point; the line joins what nothing beats. None where nothing was measured.

    Args:
        rows: of a bench.
        cost: of a row.
        name: of the cost.
        form: writes it.
        images: that accuracy was measured on, for its interval.
    """
    costs = [(row, cost(row), row.accuracy) for row in rows]
    points = [(row, x, y) for row, x, y in costs if x is not None and y is not None]
    if not points:
        return None
    return both(lambda width: _pareto(points, name, form, images, width), HALF)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both (smaller first, larger second), by rising first coordinate."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def _pareto(points: Sequence[Point], name: str, form: Format, images: int | None, width: float) -> Drawing:
    height, left, right, top, bottom = 330.0, 52.0, 14.0, 26.0, 46.0
    costs, accuracies = [cost for _, cost, _ in points], [accuracy for _, _, accuracy in points]
    intervals = [_interval(row) if name.startswith("latency") else None for row, _, _ in points]
    reach = costs + [edge for interval in intervals if interval for edge in interval]
    log = max(reach) > 8 * min(reach)
    low, high = (min(reach) / 1.2, max(reach) * 1.2) if log else span(reach, 0.2 * float(np.median(costs)))
    bounds = [accuracy_interval(accuracy, images) for accuracy in accuracies]
    heights = accuracies + [edge for bound in bounds if bound for edge in bound]
    y = Scale(*span(heights, 1.0), height - bottom, top)
    room = CHARACTER * max(len(row.label) for row, _, _ in points) + 12
    x = Scale(low, high, left + 4, width - right - room, log)
    drawing = Drawing(width, height, f"Accuracy over {name}")
    drawing.text(2, 13, "accuracy", "name")
    drawing.y_axis(y, left, width - right, lambda value: f"{value:.4g} %")
    drawing.x_axis(x, height - bottom, top, name, form, 4 if width >= HALF else 3)
    best = front(list(zip(costs, accuracies, strict=True)))
    steps = [(x(best[0][0]), y.start)]
    for cost, accuracy in best:
        steps += [(x(cost), steps[-1][1]), (x(cost), y(accuracy))]
    drawing.path([*steps, (x.end, steps[-1][1])], "front")
    for index, ((row, cost, reached), interval, bound) in enumerate(zip(points, intervals, bounds, strict=True)):
        py = y(reached)
        if bound:
            drawing.line(x(cost), y(bound[0]), x(cost), y(bound[1]), f"whisker thin {colour_of(row)} key-{index}")
        if interval:
            drawing.line(x(interval[0]), py, x(interval[1]), py, f"whisker {colour_of(row)} key-{index}")
        drawing.mark(x(cost), py, shape(row), f"{colour_of(row)} key-{index}", summary(row))
    spots = [(x(cost), y(accuracy)) for _, cost, accuracy in points]
    labels = _labels([row.label for row, _, _ in points], spots)
    wanted = [(px + 6, py - ABOVE, CHARACTER * len(text)) for text, (px, py) in labels]
    for (text, (px, py)), (lx, ly) in zip(labels, place_labels(wanted, top, height - bottom - 3, width), strict=True):
        if abs(ly + ABOVE - py) > 9:
            drawing.line(px + 4, py, lx - 2, ly - 4, "leader")
        drawing.text(lx, ly, text, "label")
    return drawing


def _interval(row: BenchRow) -> tuple[float, float] | None:
    found = None if row.latency_ms is None else row.latency_ms.interval
    return None if found is None else (found.low, found.high)


def _labels(names: Sequence[str], spots: Sequence[tuple[float, float]]) -> list[tuple[str, tuple[float, float]]]:
    """Texts and the spot that each stands beside; points that touch share one."""
    groups: list[list[int]] = []
    for index in sorted(range(len(spots)), key=lambda index: (spots[index][1], spots[index][0])):
        near = [
            group
            for group in groups
            if abs(spots[index][1] - spots[group[-1]][1]) < 5 and abs(spots[index][0] - spots[group[-1]][0]) < 13
        ]
        if near:
            near[0].append(index)
        else:
            groups.append([index])
    return [(_joined([names[index] for index in sorted(group)]), max(spots[i] for i in group)) for group in groups]


def _joined(labels: list[str]) -> str:
    """``4, 6, 8 bits, float32``: labels that end alike share their end."""
    ends: dict[str, list[str]] = {}
    for label in labels:
        ends.setdefault(label.partition(" ")[2].replace("bits", "bit"), []).append(label)
    return ", ".join(
        ", ".join([*(label.partition(" ")[0] for label in alike[:-1]), alike[-1]]) for alike in ends.values()
    )


# --- distributions ------------------------------------------------------------------------------------------------


def distributions(rows: Sequence[BenchRow]) -> str:
    """The samples of every row as a hill, with median and tail."""
    return both(lambda width: _distributions(rows, width), WIDE)


def _distributions(rows: Sequence[BenchRow], width: float) -> Drawing:
    narrow = width < HALF
    left, right, top, band = (8.0 if narrow else 150.0), (8.0 if narrow else 210.0), 12.0, (58.0 if narrow else 46.0)
    height = top + band * len(rows) + 46
    samples = [np.asarray(row.samples_ms) for row in rows]
    low = max(min(float(values.min()) for values in samples) * 0.97, 1e-9)
    high = max(float(np.percentile(values, 99)) for values in samples) * 1.06
    log = high > 4 * low
    x = Scale(low, high, left, width - right, log)
    drawing = Drawing(width, height, "Latency distributions")
    drawing.x_axis(x, height - 46, top, "latency of one inference" + (" (log scale)" if log else ""), duration,
                   4 if narrow else 8)  # fmt: skip
    bins = np.geomspace(low, high, 111) if log else np.linspace(low, high, 111)
    for index, (row, values) in enumerate(zip(rows, samples, strict=True)):
        base = top + band * (index + 1) - 6
        p50, p99 = (float(quantile) for quantile in np.percentile(values, (50, 99)))
        text = f"p50 {duration(p50)} · p99 {duration(p99)}"
        if narrow:
            drawing.text(left, base - band + 20, row.label, "label strong")
            drawing.text(width - right, base - band + 20, text, "tick", "end")
        else:
            drawing.text(left - 14, base - 6, row.label, "label strong", "end")
            drawing.text(width - right + 14, base - 6, text, "tick")
        drawing.line(left, base, width - right, base, "grid")
        heights = _hill(values, bins) * (band - (28 if narrow else 12))
        centres = (bins[:-1] + bins[1:]) / 2
        hill = [(x(float(c)), base - float(h)) for c, h in zip(centres, heights, strict=True)]
        drawing.path([(hill[0][0], base), *hill, (hill[-1][0], base)], f"hill {colour_of(row)}", True, summary(row))
        for quantile, kind in ((p50, "median"), (p99, "tail")):
            if low <= quantile <= high:
                above = base - (band * 0.45 if kind == "median" else 9)
                drawing.line(x(quantile), above, x(quantile), base + 3, f"{kind} {colour_of(row)}")
    return drawing


def _hill(values: Any, bins: Any) -> Any:
    """Counts per bin, smoothed, the highest 1."""
    counts, _ = np.histogram(values, bins)
    smooth = np.convolve(counts, [0.1, 0.2, 0.4, 0.2, 0.1], "same")
    return smooth / max(float(smooth.max()), 1e-12)


# --- steadiness ---------------------------------------------------------------------------------------------------


def steadiness(rows: Sequence[BenchRow], block: int) -> str:
    """How the median of every row moved during the run, round by round."""
    return both(lambda width: _steadiness(rows, block, width), WIDE)


def _steadiness(rows: Sequence[BenchRow], block: int, width: float) -> Drawing:
    height, left, right, top, bottom = 210.0, 54.0, 12.0, 24.0, 46.0
    lines = []
    for row in rows:
        values = np.asarray(row.samples_ms)
        size = max(block, len(values) // 120 // max(block, 1) * block)
        count = max(len(values) // size, 1)
        medians = np.median(values[: count * size].reshape(count, -1), axis=1)
        lines.append(100 * (medians / np.median(values) - 1))
    reach = float(np.clip(max(np.abs(np.percentile(line, [2, 98])).max() for line in lines) * 1.15, 5, 400))
    y = Scale(max(-reach, -100), reach, height - bottom, top)
    x = Scale(0, 100, left, width - right)
    drawing = Drawing(width, height, "Median per round against the row's median")
    drawing.text(2, 13, "median of a round against the row's own", "name")
    drawing.y_axis(y, left, width - right, lambda value: f"{value:+.3g} %", 4)
    drawing.x_axis(x, height - bottom, top, "progress of the run", lambda value: f"{value:.0f} %", 5)
    for row, line in zip(rows, lines, strict=True):
        places = np.linspace(0, 100, len(line)) if len(line) > 1 else np.array([50.0])
        points = [(x(float(p)), y(float(np.clip(v, y.low, reach)))) for p, v in zip(places, line, strict=True)]
        drawing.path(points, f"trace {colour_of(row)}", tip=row.label)
    return drawing


# --- throughput ---------------------------------------------------------------------------------------------------


def throughput(rows: Sequence[dict[str, Any]], by_label: dict[str, BenchRow]) -> str:
    """Images per second over the batch size, a line per row."""
    return both(lambda width: _throughput(rows, by_label, width), HALF)


def _throughput(rows: Sequence[dict[str, Any]], by_label: dict[str, BenchRow], width: float) -> Drawing:
    height, left, right, top, bottom = 300.0, 56.0, 16.0, 26.0, 46.0
    batches = sorted({row["batch"] for row in rows})
    speeds = [row["images_per_second"] for row in rows]
    x = Scale(0, max(math.log2(batches[-1]), 1), left + 8, width - right - 8)
    y = Scale(0, max(speeds) * 1.08, height - bottom, top)
    drawing = Drawing(width, height, "Images per second over batch size")
    drawing.text(2, 13, "images per second", "name")
    drawing.y_axis(y, left, width - right, lambda value: f"{value:,.0f}", 5)
    for batch in batches:
        drawing.text(x(math.log2(batch)), height - bottom + 16, str(batch), "tick", "middle")
    drawing.line(left, height - bottom, width - right, height - bottom, "axis")
    drawing.text((left + width - right) / 2, height - bottom + 34, "batch size", "name", "middle")
    for label in dict.fromkeys(row["label"] for row in rows):
        mine = sorted((row for row in rows if row["label"] == label), key=lambda row: row["batch"])
        kind = colour_of(by_label[label])
        points = [(x(math.log2(row["batch"])), y(row["images_per_second"])) for row in mine]
        drawing.path(points, f"trace {kind}")
        for (px, py), row in zip(points, mine, strict=True):
            tip = f"{label}, batch {row['batch']}\n{row['images_per_second']:,.0f} images per second"
            drawing.mark(px, py, shape(by_label[label]), kind, tip, 4)
    return drawing

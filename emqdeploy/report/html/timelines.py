"""What happened over time: switches of a trace, and a policy at work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from emqdeploy.format.bundle import CHILD
from emqdeploy.format.child import Child, in_order
from emqdeploy.measuring.rows import BenchRow, Switch
from emqdeploy.report.html.charts import HALF, WIDE, both
from emqdeploy.report.html.svg import CHARACTER, Drawing, Scale, fitted
from emqdeploy.report.html.words import colour, duration

_MOST_DOTS = 1500
"""Dots of a picture; of more inferences the slowest of every stretch are drawn, for they are what matters."""


def switches(taken: Sequence[Switch], rows: Sequence[BenchRow]) -> str:
    """The trace of children above, below it what the first output after each switch took.

    Args:
        taken: in order.
        rows: of the bench, which know the children.
    """
    known = [row.find_child() for row in rows]
    named = {name for one in taken for name in (one.previous, one.child)}
    children = in_order({child for child in known if child is not None and child.name in named})
    return both(lambda width: _switches(taken, children, width), WIDE)


def _switches(taken: Sequence[Switch], children: Sequence[Child], width: float) -> Drawing:
    height, right, top, middle, bottom = 400.0, 12.0, 24.0, 178.0, 46.0
    rank = {child.name: index for index, child in enumerate(children)}
    kind = {child.name: colour(CHILD, child.bits) for child in children}
    left = max(58.0, min(CHARACTER * max(map(len, rank)) + 16, width / 3))
    x = Scale(0, max(one.t_s for one in taken) * 1.01, left, width - right)
    y = Scale(-0.4, len(rank) - 0.6, middle, top)
    drawing = Drawing(width, height, "Switches over time")
    drawing.text(2, 13, "child in use", "name")
    for name, number in rank.items():
        drawing.line(left, y(number), width - right, y(number), "grid")
        drawing.text(left - 8, y(number) + 4, fitted(name, left - 10), "tick", "end")
    steps = [(x(0), y(rank[taken[0].previous]))]
    for one in taken:
        steps += [(x(one.t_s), steps[-1][1]), (x(one.t_s), y(rank[one.child]))]
    drawing.path([*steps, (width - right, steps[-1][1])], "stairs")
    values = [value for one in taken for value in (one.first_output_ms, one.steady_ms)]
    low, high = min(values) * 0.85, float(np.percentile(values, 99)) * 1.2
    log = high > 8 * low
    cost = Scale(low if log else 0.0, high, height - bottom, middle + 40, log)
    drawing.text(2, middle + 29, "first output after a switch (dots), then steady (bars)", "name")
    drawing.y_axis(cost, left, width - right, duration, 4)
    drawing.x_axis(
        x, height - bottom, middle + 40, "time", lambda value: duration(value * 1000), 4 if width < HALF else 8
    )
    for one in taken:
        px, steady = x(one.t_s), cost(min(one.steady_ms, high))
        drawing.line(px - 3, steady, px + 3, steady, f"bar {kind[one.child]}")
        tip = (
            f"{one.previous} to {one.child}\nset_bits {duration(one.set_bits_ms)}\n"
            f"first output {duration(one.first_output_ms)}, then {duration(one.steady_ms)}"
        )
        drawing.mark(px, cost(min(one.first_output_ms, high)), "circle", kind[one.child], tip, 3.2)
    return drawing


def adaptive(run: dict[str, Any]) -> str:
    """Latency of every inference against the budget, the load, and which setting was in use."""
    return both(lambda width: _adaptive(run, width), WIDE)


def _adaptive(run: dict[str, Any], width: float) -> Drawing:
    narrow = width < HALF
    settings = run["settings"]
    used = sorted(set(run["setting"]), reverse=True)
    left, right, top, middle = (58.0 if narrow else 118.0), 12.0, 48.0, 298.0
    lane = 24.0
    height = middle + 44 + lane * len(used) + 46
    end = max(run["t_s"])
    x = Scale(0, end, left, width - right)
    latencies = np.asarray(run["latency_ms"])
    limits = [limit for limit in run["limits"] if limit["quantity"].startswith("latency")]
    most = max([float(np.percentile(latencies, 99.5)), *(limit["limit"] for limit in limits)]) * 1.15
    # A budget that single slow inferences exceed many times over would lie on the axis.
    log = bool(limits) and most > 8 * min(limit["limit"] for limit in limits)
    low = min(float(latencies.min()), *(limit["limit"] for limit in limits)) * 0.8 if log else 0.0
    y = Scale(low, most, middle, top, log)
    drawing = Drawing(width, height, "The policy over time")
    drawing.text(2, 13, "latency of each inference", "name")
    for phase in run["phases"]:
        begin, stop = x(min(phase["start_s"], end)), x(min(phase["end_s"], end))
        if phase["load"]:
            drawing.rect(begin, top - 24, stop - begin, height - 46 - top + 24, "shade")
        drawing.text((begin + stop) / 2, top - 12, phase["name"], "tick", "middle")
    drawing.y_axis(y, left, width - right, duration, 5)
    for group in used:
        chosen = _worst([
            (at, value) for at, value, setting in zip(run["t_s"], run["latency_ms"], run["setting"], strict=True)
            if setting == group
        ], _MOST_DOTS // len(used))  # fmt: skip
        drawing.dots([(x(at), y(min(value, most))) for at, value in chosen], 1.4, f"b{settings[group]['bits']}")
    for limit in limits:
        drawing.line(left, y(limit["limit"]), width - right, y(limit["limit"]), "limit")
        text = f"{limit['quantity']} {duration(limit['limit'])}"
        drawing.text(width - right - 4, y(limit["limit"]) - 6, text, "limit-name", "end")
    base = middle + 44
    drawing.text(2, base - 14, "setting in use", "name")
    for number, group in enumerate(used):
        label = settings[group]["label"]
        if narrow and len(label) * CHARACTER > left - 8:
            label = label.replace(" threads", "t").replace(" thread", "t").replace(" bits", "b").replace(" bit", "b")
        drawing.text(left - 8, base + lane * number + 15, fitted(label, left - 10), "tick", "end")
        drawing.line(left, base + lane * number + 11, width - right, base + lane * number + 11, "grid")
    for begin, stop, group in _stretches(run["t_s"], run["setting"]):
        top_edge = base + lane * used.index(group) + 4
        tip = f"{settings[group]['label']}\n{begin:.2f} s to {stop:.2f} s"
        drawing.rect(x(begin), top_edge, max(x(stop) - x(begin), 1.5), 14, f"lane b{settings[group]['bits']}", tip)
    for decision in run["decisions"]:
        if decision["kind"] == "switch":
            px = x(min(decision["at_s"], end))
            drawing.line(px, top, px, height - 46, "moment")
            drawing.mark(px, top, "triangle", "moment", f"{decision['at_s']:.2f} s\n{decision['reason']}", 4)
    drawing.x_axis(x, height - 46, height - 46, "seconds", lambda value: f"{value:.3g}", 5 if narrow else 10)
    return drawing


def _worst(points: list[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many points: of every stretch the slowest and the median one."""
    if len(points) <= most:
        return points
    kept = []
    for part in np.array_split(np.asarray(points), max(most // 2, 1)):
        order = part[:, 1].argsort()
        kept += [tuple(part[order[-1]]), tuple(part[order[len(order) // 2]])]
    return kept


def _stretches(times: Sequence[float], groups: Sequence[int]) -> list[tuple[float, float, int]]:
    """Runs of the same setting, with start and end."""
    found: list[tuple[float, float, int]] = []
    for at, group in zip(times, groups, strict=True):
        if found and found[-1][2] == group:
            found[-1] = (found[-1][0], at, group)
        else:
            if found:
                found[-1] = (found[-1][0], at, found[-1][2])
            found.append((at, at, group))
    return found

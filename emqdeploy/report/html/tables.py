"""The tables of the page: every row's figures, what each layer is, where and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from emqdeploy.format.card import WidthsRecord
from emqdeploy.format.child import Widths
from emqdeploy.measuring.rows import BenchRow, Ratio, compared_with
from emqdeploy.report.html.shell import facts, table
from emqdeploy.report.html.words import colour_of, duration, energy, percent, size, widths
from emqdeploy.report.recommendation import accuracy_interval

_NONE = '<span class="lead">-</span>'


def results(result: dict[str, Any], rows: Sequence[BenchRow]) -> str:
    """Every row with everything that was measured of it."""
    switching = {row["label"]: row for row in result["scenarios"].get("switch", {}).get("rows", [])}
    bases = compared_with(rows)
    ratios = [f"as fast as {name}" for name in bases] or ["ratio of p50"]
    columns = (
        "", "weights", "activations", "accuracy", "drop", "p50", "p90", "p99", *ratios, "size", "memory",
        "load", "switch", "first output", "energy / image", "stored as", "computed as",
    )  # fmt: skip
    images = result["source"]["images"]
    text = (0, len(columns) - 2, len(columns) - 1)
    return table(columns, (_cells(row, switching.get(row.label, {}), images, bases) for row in rows), text)


def _cells(row: BenchRow, switched: Mapping[str, Any], images: int | None, bases: Sequence[str]) -> list[str]:
    latency = row.latency_ms
    ratios = [row.times_as_fast.get(name) for name in bases] or [row.ratio_to_first]
    p50 = _or_none(getattr(latency, "p50", None), duration)
    if latency and latency.interval:
        p50 += f"<small>{duration(latency.interval.low)} to {duration(latency.interval.high)}</small>"
    bound = accuracy_interval(row.accuracy, images)
    accuracy = _or_none(row.accuracy, percent)
    accuracy += "" if bound is None else f"<small>{bound[0]:.1f} to {bound[1]:.1f} %</small>"
    unseen = "<small>unseen in training</small>" if row.trained is False else ""
    mark = " *" if row.disturbed else ""
    return [
        f'<i class="{colour_of(row)}"></i>{escape(row.label)}{mark}{unseen}',
        *(_widths(value) for value in (row.weights, row.activations)),
        accuracy,
        _or_none(row.accuracy_drop, lambda value: f"{value:.2f}"),
        p50,
        *(_or_none(getattr(latency, key, None), duration) for key in ("p90", "p99")),
        *(_ratio(one, 2 if bases else 3) for one in ratios),
        _or_none(row.size_bytes, size),
        _or_none(row.rss_bytes, size),
        _or_none(row.load_ms, duration),
        *(_or_none(switched.get(key, {}).get("p50"), duration) for key in ("set_bits_ms", "first_output_ms")),
        _or_none(row.energy.energy_mj_per_inference, energy),
        escape(row.stored_as or "-"),
        escape(row.computed_as or "-"),
    ]


def _ratio(ratio: Ratio | None, digits: int) -> str:
    """A ratio and its interval."""
    if ratio is None:
        return _NONE
    value, low, high = (f"{number:.{digits}f}" for number in (ratio.ratio, ratio.low, ratio.high))
    return f"{value}<small>{low} to {high}</small>"


def _widths(value: WidthsRecord | None) -> str:
    """The number; of a map that of most layers, all of them in the tip."""
    tip = escape(widths(value))
    return f'<span title="{tip}">{Widths.read(value).default} and others</span>' if isinstance(value, dict) else tip


def layers(rows: Sequence[BenchRow]) -> str:
    """What each layer is stored as and computed as, in every row that says so."""
    told = [(row, {layer.name: layer for layer in row.per_layer}) for row in rows if row.per_layer]
    if not told:
        return ""
    lines = []
    for name in dict.fromkeys(name for _, found in told for name in found):
        cells = [f"<code>{escape(name)}</code>"]
        for _, found in told:
            layer = found.get(name)
            if layer is None:
                cells.append(_NONE)
                continue
            kind = ' class="float32"' if layer.integer is False else ""
            cells.append(
                f"{escape(layer.stored_as)}, {layer.grid_bits} b<small{kind}>→ {escape(layer.computed_as)}</small>"
            )
        lines.append(cells)
    return table(["layer", *(row.label for row, _ in told)], lines)


def environment(result: dict[str, Any]) -> str:
    """The machine, before and after, and the software."""
    found = result["environment"]
    device = found.get("device", {})
    state = ((name, found.get(name) or {}) for name in ("before", "after"))
    entries = [
        ("device", ", ".join(f"{key}: {value}" for key, value in device.items() if value not in (None, {}, []))),
        ("processor", f"{found['cpu']}, {found['cores']} cores {' '.join(found.get('cpu_flags', []))}"),
        ("system", found["system"]),
        ("python", found["python"]),
        ("packages", ", ".join(f"{name} {version}" for name, version in found["packages"].items())),
        *((name, _state(values)) for name, values in state),
        ("source", f"{result['source']['path']} (sha256 {str(result['source'].get('sha256'))[:16]}…)"),
        ("started", f"{result['started']}, took {result['seconds']} s"),
    ]
    return facts(entries)


def _state(values: Mapping[str, Any]) -> str:
    said = []
    for name, value in values.items():
        if value in (None, {}, []):
            continue
        shown = ", ".join(f"{key} {item}" for key, item in value.items()) if isinstance(value, Mapping) else value
        said.append(f"{name.replace('_', ' ')}: {shown if not isinstance(shown, list) else '; '.join(map(str, shown))}")
    return "; ".join(said) or "the system tells nothing"


def settings(result: dict[str, Any]) -> str:
    """Everything that decided what was measured, and the command that measures it again."""
    entries = [(name, "default" if value is None else value) for name, value in result["settings"].items()]
    return f"<pre><code>{escape(result['command'])}</code></pre>" + facts(entries)


def _or_none(value: float | None, form: Any) -> str:
    return _NONE if value is None else escape(form(value))

"""The tables of the page: every row's figures, what each layer is, where and how it was measured."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from emqdeploy.report.html.shell import facts, table
from emqdeploy.report.html.words import colour, duration, energy, percent, size

Row = dict[str, Any]
_NONE = '<span class="lead">-</span>'


def results(result: dict[str, Any]) -> str:
    """Every row with everything that was measured of it."""
    switching = {row["label"]: row for row in result["scenarios"].get("switch", {}).get("rows", [])}
    columns = (
        "", "accuracy", "drop", "p50", "p90", "p99", "ratio of p50", "size", "memory", "load", "switch",
        "first output", "energy / image", "stored as", "computed as",
    )  # fmt: skip
    return table(columns, (_cells(row, switching.get(row["label"], {})) for row in result["rows"]), (0, 13, 14))


def _cells(row: Row, switched: Mapping[str, Any]) -> list[str]:
    latency, ratio, used = row["latency_ms"] or {}, row["ratio_to_first"], row["energy"]
    interval = latency.get("interval")
    p50 = _or_none(latency.get("p50"), duration)
    if interval:
        p50 += f"<small>{duration(interval['low'])} to {duration(interval['high'])}</small>"
    unseen = "<small>unseen in training</small>" if row["trained"] is False else ""
    mark = " *" if row["disturbed"] else ""
    return [
        f'<i class="{colour(row)}"></i>{escape(row["label"])}{mark}{unseen}',
        _or_none(row["accuracy"], percent),
        _or_none(row["accuracy_drop"], lambda value: f"{value:.2f}"),
        p50,
        *(_or_none(latency.get(key), duration) for key in ("p90", "p99")),
        _NONE if ratio is None else f"{ratio['ratio']:.3f}<small>{ratio['low']:.3f} to {ratio['high']:.3f}</small>",
        _or_none(row["size_bytes"], size),
        _or_none(row["rss_bytes"], size),
        _or_none(row["load_ms"], duration),
        *(_or_none(switched.get(key, {}).get("p50"), duration) for key in ("set_bits_ms", "first_output_ms")),
        _or_none(used.get("energy_mj_per_inference"), energy),
        escape(row["stored_as"] or "-"),
        escape(row["computed_as"] or "-"),
    ]


def layers(rows: list[Row]) -> str:
    """What each layer is stored as and computed as, in every row that says so."""
    told = [row for row in rows if row["per_layer"]]
    if not told:
        return ""
    names = list(dict.fromkeys(layer["name"] for row in told for layer in row["per_layer"]))
    by_row = [{layer["name"]: layer for layer in row["per_layer"]} for row in told]
    lines = []
    for name in names:
        cells = [f"<code>{escape(name)}</code>"]
        for found in by_row:
            layer = found.get(name)
            if layer is None:
                cells.append(_NONE)
                continue
            kind = ' class="float32"' if layer["computed_as"] != "int8" else ""
            cells.append(f"{escape(layer['stored_as'])}<small{kind}>→ {escape(layer['computed_as'])}</small>")
        lines.append(cells)
    return table(["layer", *(row["label"] for row in told)], lines)


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

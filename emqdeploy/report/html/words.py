"""Figures and rows in the words of the page."""

from __future__ import annotations

from typing import Any


def duration(value_ms: float) -> str:
    """Milliseconds with three significant digits; short ones in microseconds."""
    if value_ms < 0.001:
        return f"{value_ms * 1e6:.0f} ns" if value_ms else "0"
    if value_ms < 1:
        return f"{_three(value_ms * 1000)} µs"
    return f"{_three(value_ms)} ms" if value_ms < 1000 else f"{_three(value_ms / 1000)} s"


def size(count: float) -> str:
    """Bytes."""
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{_three(count / factor)} {unit}"
    return f"{count:.0f} B"


def percent(value: float) -> str:
    """An accuracy."""
    return f"{value:.2f} %"


def energy(value_mj: float) -> str:
    """Millijoules, small ones in microjoules."""
    return f"{_three(value_mj)} mJ" if value_mj >= 1 else f"{_three(value_mj * 1000)} µJ"


def _three(value: float) -> str:
    """Three significant digits without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def colour(row: dict[str, Any]) -> str:
    """The class that colours a row: its bits, or that it is a baseline."""
    if row["kind"] == "baseline" or row["bits"] is None:
        return "base"
    return f"b{min(max(int(row['bits']), 1), 8)}"


def shape(row: dict[str, Any]) -> str:
    """The mark of a row, so that colour is never the only difference."""
    return {"baseline": "diamond", "selector": "square"}.get(row["kind"], "circle")


def summary(row: dict[str, Any]) -> str:
    """Everything about a row in a few lines, for the tooltip."""
    lines = [row["label"] + (" (unseen in training)" if row["trained"] is False else "")]
    latency = row["latency_ms"]
    if row["accuracy"] is not None:
        lines.append(f"accuracy {percent(row['accuracy'])}")
    if latency:
        lines.append(f"p50 {duration(latency['p50'])}, p90 {duration(latency['p90'])}, p99 {duration(latency['p99'])}")
        interval = latency.get("interval")
        if interval:
            lines.append(f"95 % interval of p50: {duration(interval['low'])} to {duration(interval['high'])}")
    if row["size_bytes"] is not None:
        lines.append(f"size {size(row['size_bytes'])}")
    if row["energy"].get("energy_mj_per_inference") is not None:
        lines.append(f"energy {energy(row['energy']['energy_mj_per_inference'])} per image")
    if row["computed_as"]:
        lines.append(f"stored as {row['stored_as']}, computed as {row['computed_as']}")
    lines += [f"disturbed: {reason}" for reason in row["disturbed"]]
    return "\n".join(lines)

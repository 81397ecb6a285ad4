"""Figures and rows in the words of the page."""

from __future__ import annotations

from emqdeploy.format.bundle import BASELINE, CHILD
from emqdeploy.format.card import WidthsRecord
from emqdeploy.format.child import Widths
from emqdeploy.measuring.rows import BenchRow


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


def colour(kind: str, bits: int | None) -> str:
    """The class that colours a row: its nominal bits, or that it is a baseline."""
    return "base" if kind == BASELINE or bits is None else f"b{min(max(bits, 1), 8)}"


def colour_of(row: BenchRow) -> str:
    """The class that colours a row of a bench."""
    return colour(row.kind, row.bits)


def shape(row: BenchRow) -> str:
    """The mark of a row, so that colour is never the only difference; children of one width differ too."""
    if row.kind != CHILD:
        return "diamond" if row.kind == BASELINE else "square"
    return "circle" if row.child == str(row.bits) else "triangle"


def widths(value: WidthsRecord | None) -> str:
    """Bits of every layer in words: ``8``, or ``conv1 8, fc 8, every other layer 4``."""
    if value is None:
        return "-"
    found = Widths.read(value)
    named = [f"{layer} {bits}" for layer, bits in found.layers]
    return ", ".join([*named, f"every other layer {found.default}"]) if named else str(found.default)


def summary(row: BenchRow) -> str:
    """Everything about a row in a few lines, for the tooltip."""
    lines = [row.label + (" (unseen in training)" if row.trained is False else "")]
    latency = row.latency_ms
    if row.child is not None:
        lines.append(f"weights {widths(row.weights)}, activations {widths(row.activations)}")
    if row.accuracy is not None:
        lines.append(f"accuracy {percent(row.accuracy)}")
    if latency:
        lines.append(f"p50 {duration(latency.p50)}, p90 {duration(latency.p90)}, p99 {duration(latency.p99)}")
        if latency.interval:
            low, high = latency.interval.low, latency.interval.high
            lines.append(f"95 % interval of p50: {duration(low)} to {duration(high)}")
    lines += [f"{ratio.ratio:.2f} times as fast as {name}" for name, ratio in row.times_as_fast.items()]
    if row.size_bytes is not None:
        lines.append(f"size {size(row.size_bytes)}")
    if row.energy.energy_mj_per_inference is not None:
        lines.append(f"energy {energy(row.energy.energy_mj_per_inference)} per image")
    if row.computed_as:
        lines.append(f"stored as {row.stored_as}, computed as {row.computed_as}")
    lines += [f"disturbed: {reason}" for reason in row.disturbed]
    return "\n".join(lines)

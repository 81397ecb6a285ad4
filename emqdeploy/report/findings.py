"""What a result says in a few sentences, worked out from its figures."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emqdeploy.format.bundle import BASELINE, CHILD, SELECTOR
from emqdeploy.measuring.rows import BenchRow, rows_of

SAME = 1.05
"""Medians within this factor are called the same speed."""


def findings(result: dict[str, Any]) -> list[str]:
    """Sentences, the most important first; each follows from figures of the result and says which."""
    rows = rows_of(result)
    children = [row for row in rows if row.kind == CHILD and row.latency_ms]
    said = [_speed(children), _accuracy(children), *_baselines(rows, children), _selector(rows, children)]
    return [sentence for sentence in said if sentence]


def cautions(result: dict[str, Any]) -> list[str]:
    """Why a reader should trust the figures less, and what was not measured."""
    rows = rows_of(result)
    said = [] if result["complete"] else ["The run was interrupted: what is missing was not measured."]
    reasons: dict[str, list[str]] = {}
    for row in rows:
        for reason in row.disturbed:
            reasons.setdefault(reason, []).append(row.label)
    for reason, labels in reasons.items():
        everything = len(labels) == len(rows)
        said.append(f"Disturbed: {reason} ({'all rows' if everything else ', '.join(labels)}).")
    missing = dict.fromkeys(row.energy.not_measured for row in rows)
    said += [f"Energy is not measured: {reason}." for reason in missing if reason]
    return said + [note[:1].upper() + note[1:].rstrip(".") + "." for note in result["notes"]]


def _p50(row: BenchRow) -> float:
    assert row.latency_ms is not None, "only timed rows are compared"
    return row.latency_ms.p50


def _speed(children: Sequence[BenchRow]) -> str | None:
    if len(children) < 2 or len({row.runtime for row in children}) > 1:
        return None
    fast, slow = min(children, key=_p50), max(children, key=_p50)
    spread = _p50(slow) / _p50(fast)
    kinds = {row.computed_as for row in children}
    if spread < SAME:
        why = f": all are computed as {kinds.pop()}" if len(kinds) == 1 else ""
        sizes = [row.size_bytes for row in children if row.size_bytes]
        saves = max(sizes, default=1) / min(sizes, default=1)
        rest = f" Fewer bits save storage (up to {saves:.1f} times here), not time." if saves > SAME else ""
        return f"All {len(children)} children run at the same speed, within {100 * (spread - 1):.1f} %{why}.{rest}"
    if any(row.disturbed for row in children):
        return f"Medians differ by up to {100 * (spread - 1):.0f} %, but the run was disturbed: look at the intervals."
    return f"{fast.label} is the fastest, {slow.label} takes {spread:.2f} times as long."


def _accuracy(children: Sequence[BenchRow]) -> str | None:
    known = [(row.accuracy, row.size_bytes, row) for row in children if row.accuracy is not None and row.size_bytes]
    if len(known) < 2:
        return None
    most, all_bytes, best = max(known, key=lambda one: (one[0], one[2].bits or 0))
    accuracy, few_bytes, small = min((one for one in known if one[0] >= most - 0.5), key=lambda one: one[1])
    if small is best:
        return f"{best.label}: {most:.2f} %; nothing smaller comes within half a point."
    return (
        f"{small.label}: {accuracy:.2f} %, {most - accuracy:.2f} points below {best.label} with"
        f" {100 * few_bytes / all_bytes:.0f} % of its bytes."
    )


def _baselines(rows: Sequence[BenchRow], children: Sequence[BenchRow]) -> list[str]:
    found = []
    most = max(children, key=lambda row: row.bits or 0, default=None)
    for row in rows:
        if row.kind == BASELINE and row.latency_ms and most is not None:
            text = f"{most.label}: {_p50(most) / _p50(row):.2f} times the time of {row.label}"
            if row.accuracy is not None and most.accuracy is not None:
                text += f"; its accuracy differs by {most.accuracy - row.accuracy:+.2f} points"
            found.append(f"{text}.")
    return found


def _selector(rows: Sequence[BenchRow], children: Sequence[BenchRow]) -> str | None:
    """The single file with a selector against the separate networks."""
    apart = {row.child: _p50(row) for row in children}
    ratios = [
        _p50(row) / apart[row.child] for row in rows if row.kind == SELECTOR and row.latency_ms and row.child in apart
    ]
    if not ratios:
        return None
    return (
        f"The single file with a selector takes {min(ratios):.2f} to {max(ratios):.2f} times as long as separate ones."
    )

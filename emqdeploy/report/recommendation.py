"""The setting that a result speaks for, in words that are read in ten seconds: which, why, and how sure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from emqdeploy.format.bundle import CHILD
from emqdeploy.measuring.rows import BenchRow
from emqdeploy.measuring.statistics import wilson
from emqdeploy.report.findings import SAME
from emqdeploy.report.units import milliseconds, size

AS_GOOD = 0.5
"""Points of accuracy that one gives away for bytes or time."""


@dataclass(frozen=True)
class Recommendation:
    """What to deploy.

    Attributes:
        row: the setting.
        why: a sentence.
        sure: a sentence: what speaks against trusting that.
    """

    row: BenchRow
    why: str
    sure: str


def recommend(result: dict[str, Any], rows: Sequence[BenchRow]) -> Recommendation | None:
    """Returns the child to deploy; None where accuracy or time of fewer than two are known.

    Of the children within `AS_GOOD` points of the best, and within the latency budget if a policy had one, it is the
    fastest; of those that are equally fast the smallest; of those the most accurate.
    Where nothing meets the budget it is what comes nearest.
    """
    known = [row for row in rows if row.kind == CHILD and row.latency_ms and row.accuracy is not None]
    if len(known) < 2:
        return None
    limit = _limit(result)
    fitting = [row for row in known if limit is None or _at(row, limit[0]) <= limit[1]]
    best = max(_accuracy(row) for row in fitting or known)
    if fitting:
        good = [row for row in fitting if _accuracy(row) >= best - AS_GOOD]
        quickest = min(_at(row, "p50") for row in good)
        fast = [row for row in good if _at(row, "p50") <= SAME * quickest]
        chosen = min(fast, key=lambda row: (row.size_bytes or 0, -_accuracy(row)))
    else:
        assert limit is not None, "without a budget every row fits"
        chosen = min(known, key=lambda row: _at(row, limit[0]))
    return Recommendation(chosen, _why(chosen, known, best, limit, bool(fitting)), _sure(chosen, result, known, best))


def accuracy_interval(percent: float | None, images: int | None) -> tuple[float, float] | None:
    """Where an accuracy lies with 95 % confidence, in percent, from the images that it was measured on."""
    if percent is None or not images:
        return None
    low, high = wilson(percent / 100, images)
    return 100 * low, 100 * high


def _why(chosen: BenchRow, known: Sequence[BenchRow], best: float, limit: tuple[str, float] | None, fits: bool) -> str:
    lost = best - _accuracy(chosen)
    parts = ["the most accurate" if lost == 0 else f"{lost:.2f} points below the most accurate"]
    others = [row for row in known if row is not chosen]
    spread = max(_at(row, "p50") for row in known) / min(_at(row, "p50") for row in known)
    if spread < SAME:
        parts.append("no child is faster")
    elif all(_at(row, "p50") >= _at(chosen, "p50") for row in others):
        parts.append("the fastest")
    largest = max((row.size_bytes or 0 for row in known), default=0)
    if chosen.size_bytes and largest > SAME * chosen.size_bytes:
        parts.append(f"{size(chosen.size_bytes)} instead of {size(largest)} for the largest")
    said = f"{', '.join(parts)}."
    if limit is not None:
        name, most = limit
        taken = f"{name} is {milliseconds(_at(chosen, name))} and the budget {milliseconds(most)}"
        said += f" Its {taken}." if fits else f" Nothing meets the budget: its {taken}."
    return said[0].upper() + said[1:]


def _sure(chosen: BenchRow, result: dict[str, Any], known: Sequence[BenchRow], best: float) -> str:
    images = result["source"]["images"]
    interval = accuracy_interval(chosen.accuracy, images)
    said = "The accuracy was not measured here."
    if interval is not None:
        low, high = interval
        said = f"{images} images leave the accuracy between {low:.1f} and {high:.1f} %"
        alike = [row for row in known if row is not chosen and low <= _accuracy(row) <= high]
        said += f", which {len(alike)} of {len(known) - 1} other children lie in too." if alike else "."
    if not result["complete"]:
        return f"{said} The run was interrupted, so some figures are missing."
    if chosen.disturbed:
        return f"{said} Other work disturbed the run: measure again before you rely on the tail."
    return said


def _limit(result: dict[str, Any]) -> tuple[str, float] | None:
    """The first latency budget that a policy was run under: percentile and milliseconds."""
    for one in result["scenarios"].get("adaptive", {}).get("limits", []):
        kind, _, name = str(one["quantity"]).partition("_")
        if kind == "latency" and name in ("p50", "p90", "p95", "p99"):
            return name, float(one["limit"])
    return None


def _at(row: BenchRow, name: str) -> float:
    value: float = getattr(row.latency_ms, name)
    return value


def _accuracy(row: BenchRow) -> float:
    assert row.accuracy is not None, "only rows with an accuracy are compared"
    return row.accuracy

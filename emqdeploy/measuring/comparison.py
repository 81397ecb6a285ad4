"""Two results of a bench, row by row: how much differs, whether chance explains it, and what else was different.

What `compare` returns:

==============  =====================================================================================================
``a``, ``b``    ``path``, ``started``, ``model``, ``data``, ``images``, ``cpu``, ``complete`` of each result
``rows``        what both measured: ``label``, ``bits``, ``kind``, ``runtime``, and by quantity what is described below
``only_a``, ``only_b``    labels that the other result lacks
``different``   what else differs: ``part`` (machine, software, state, settings, source), ``name``, ``a``, ``b``
``findings``    sentences: what the figures show
``cautions``    sentences: why they deserve less trust
``method``      of the intervals, and their ``level``
==============  =====================================================================================================

Under ``p50``, ``p99`` and ``first_output`` of a row stand ``a_ms``, ``b_ms``, ``ratio`` (B over A), ``low``, ``high``
and a ``verdict``: ``alike`` (the interval lies within 3 % of 1, which repeating the same command may differ by), else
``faster`` or ``slower`` (B against A; the interval leaves 1 out) or ``unclear`` (it holds 1). Under ``accuracy``:
``a``, ``b`` in percent, ``difference``, ``low``, ``high`` in points, and a ``verdict``: ``better``, ``worse``,
``equal`` or ``unclear``. Sizes, memory, load time and energy were measured once each: ``a``, ``b`` and ``ratio``, no
verdict. ``disturbed`` holds the reasons of both sides. None stands for what one of the two did not measure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.measuring.differences import cautions, different
from emqdeploy.measuring.statistics import LEVEL, RESAMPLES, difference_interval, independent_ratios

Row = Mapping[str, Any]
Result = Mapping[str, Any]

ALIKE = 0.03
"""An interval within this of 1 shows no difference that counts: two starts of the same bench may be so far apart."""

LEAST = 10
"""Samples of each side without which no interval is given."""

LEAST_TAIL = 500
"""The same for the 99th percentile, which has few samples beyond it."""

_ONCE: Mapping[str, Callable[[Row], float | None]] = {
    "size_bytes": lambda row: row.get("size_bytes"),
    "rss_bytes": lambda row: row.get("rss_bytes"),
    "load_ms": lambda row: row.get("load_ms"),
    "energy_mj": lambda row: (row.get("energy") or {}).get("energy_mj_per_inference"),
}


def compare(a: Result, b: Result, names: tuple[str, str]) -> dict[str, Any]:
    """Compares two results of `emqdeploy.measuring.result`.

    Args:
        a: the result that the other is measured against.
        b: the other one.
        names: what to call the two, such as their files' names.

    Raises:
        EmqError: nothing was measured in both.
    """
    pairs = _pairs(a["rows"], b["rows"])
    if not pairs:
        labels = (", ".join(row["label"] for row in one["rows"]) or "nothing" for one in (a, b))
        raise EmqError(
            f"{names[0]} and {names[1]} have no row in common ({' against '.join(labels)}); bench the same bit-widths"
        )
    rows = [_compared(a, b, one, other) for one, other in pairs]
    taken = [id(row) for pair in pairs for row in pair]
    return {
        "a": _about(a, names[0]),
        "b": _about(b, names[1]),
        "rows": rows,
        "only_a": [row["label"] for row in a["rows"] if id(row) not in taken],
        "only_b": [row["label"] for row in b["rows"] if id(row) not in taken],
        "different": different(a, b),
        "findings": _findings(rows),
        "cautions": cautions(a, b, rows),
        "level": LEVEL,
        "method": f"Bootstrap of {RESAMPLES} resamples over the rounds of each result by itself; accuracy: Newcombe's"
        " interval, as if each had seen images of its own",
    }


def _about(result: Result, name: str) -> dict[str, Any]:
    source, machine = result["source"], result["environment"]
    return {
        "path": name,
        "started": result.get("started"),
        "model": source.get("model"),
        "data": source.get("data"),
        "images": source.get("images"),
        "cpu": machine.get("cpu"),
        "complete": result["complete"],
    }


def _pairs(ours: Sequence[Row], others: Sequence[Row]) -> list[tuple[Row, Row]]:
    """Rows that are the same thing; where none is, those that are called the same (in another runtime, say)."""
    found: dict[int, Row] = {}
    left = list(others)
    for key in (_identity, lambda row: row["label"]):
        for row in ours:
            match = next((other for other in left if key(other) == key(row)), None)
            if id(row) not in found and match is not None:
                found[id(row)] = match
                left.remove(match)
    return [(row, found[id(row)]) for row in ours if id(row) in found]


def _identity(row: Row) -> tuple[Any, ...]:
    named = row["label"] if row["kind"] == "baseline" else None
    return row["kind"], row["bits"], row.get("flavour"), row["runtime"], named


def _compared(a: Result, b: Result, one: Row, other: Row) -> dict[str, Any]:
    blocks = [result["scenarios"].get("single", {}).get("block") or 1 for result in (a, b)]
    samples = (one["samples_ms"], other["samples_ms"])
    p50, p99 = (_times(samples, blocks, q, least) for q, least in ((0.5, LEAST), (0.99, LEAST_TAIL)))
    switched = [_first_outputs(result, row) for result, row in ((a, one), (b, other))]
    runtimes = dict.fromkeys((one["runtime"], other["runtime"]))
    return {
        "label": one["label"],
        "kind": one["kind"],
        "bits": one["bits"],
        "runtime": " / ".join(runtimes),
        "p50": p50,
        "p99": p99,
        "first_output": _times((switched[0], switched[1]), [1, 1], 0.5, LEAST),
        "accuracy": _accuracies(one, other, a["source"].get("images"), b["source"].get("images")),
        **{name: _once(read(one), read(other)) for name, read in _ONCE.items()},
        "disturbed": [
            f"{side}: {reason}" for side, row in (("A", one), ("B", other)) for reason in row["disturbed"]
        ],
    }  # fmt: skip


def _first_outputs(result: Result, row: Row) -> list[float]:
    return [
        one["first_output_ms"] for one in result["switches"]
        if one["from"] is not None and one["to"] == row["bits"]
        and one.get("runtime") == row["runtime"] and one.get("kind", "width") == row["kind"]
    ]  # fmt: skip


def _times(
    samples: tuple[Sequence[float], Sequence[float]], blocks: Sequence[int], quantile: float, least: int
) -> dict[str, Any] | None:
    if min(map(len, samples)) < least:
        return None
    base, ours = samples
    (found,) = independent_ratios(ours, base, blocks[1], blocks[0], [quantile])
    levels = {"a_ms": float(np.quantile(base, quantile)), "b_ms": float(np.quantile(ours, quantile))}
    return {**levels, **found, "verdict": _verdict(found)}


def _verdict(found: Mapping[str, float]) -> str:
    if found["low"] >= 1 - ALIKE and found["high"] <= 1 + ALIKE:
        return "alike"
    if found["low"] <= 1 <= found["high"]:
        return "unclear"
    return "slower" if found["low"] > 1 else "faster"


def _accuracies(one: Row, other: Row, images: int | None, other_images: int | None) -> dict[str, Any] | None:
    base, ours = one["accuracy"], other["accuracy"]
    if base is None or ours is None or not images or not other_images:
        return None
    found = difference_interval(ours / 100, other_images, base / 100, images)
    verdict = "equal" if ours == base else "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "unclear"
    return {"a": base, "b": ours, **{key: 100 * value for key, value in found.items()}, "verdict": verdict}


def _once(base: float | None, ours: float | None) -> dict[str, Any] | None:
    if not base or ours is None:
        return None
    return {"a": base, "b": ours, "ratio": ours / base}


def _findings(rows: Sequence[Row]) -> list[str]:
    timed = [row for row in rows if row["p50"]]
    said = []
    by_verdict: dict[str, list[Row]] = {}
    for row in timed:
        by_verdict.setdefault(row["p50"]["verdict"], []).append(row)
    for verdict in ("slower", "faster", "alike", "unclear"):
        found = by_verdict.get(verdict, [])
        if found:
            doubt = ", disturbed" if any(row["disturbed"] for row in found) else ""
            said.append(f"{_named(found, timed)}: B {_WORDS[verdict]} ({_spread(found)} of A's p50{doubt}).")
    moved = by_verdict.get("slower", []) or by_verdict.get("faster", [])
    ratios = [row["p50"]["ratio"] for row in moved]
    if len(timed) > 2 and len(moved) == len(timed) and max(ratios) / min(ratios) < 1 + ALIKE:
        said.append("All rows moved alike: look for the reason in the machine, its load or the settings.")
    known = [row for row in rows if row["accuracy"]]
    changed = [row for row in known if row["accuracy"]["verdict"] in ("better", "worse")]
    said += [
        f"{row['label']}: accuracy {row['accuracy']['difference']:+.2f} points"
        f" [{row['accuracy']['low']:+.2f}, {row['accuracy']['high']:+.2f}]."
        for row in changed
    ]
    if known and not changed:
        same = all(row["accuracy"]["verdict"] == "equal" for row in known)
        said.append("Accuracy is equal in every row." if same else "No difference of accuracy is beyond chance.")
    return said


_WORDS = {
    "slower": "is slower",
    "faster": "is faster",
    "alike": "takes as long, within 3 %",
    "unclear": "may take as long, the intervals are too wide to tell",
}


def _named(rows: Sequence[Row], timed: Sequence[Row]) -> str:
    if len(rows) == len(timed) > 1:
        return f"All {len(rows)} rows"
    return ", ".join(row["label"] for row in rows)


def _spread(rows: Sequence[Row]) -> str:
    ratios = sorted(row["p50"]["ratio"] for row in rows)
    first, last = f"{ratios[0]:.3f}", f"{ratios[-1]:.3f}"
    return f"{first}x" if first == last else f"{first}x to {last}x"

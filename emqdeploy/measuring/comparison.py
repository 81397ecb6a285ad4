"""Two results of a bench, row by row: how much differs, whether chance explains it, and what else was different.

What `compare` returns:

==============  =====================================================================================================
``names``       what the two are called in headings and sentences, see `short_names`
``a``, ``b``    ``path``, ``started``, ``model``, ``data``, ``images``, ``cpu``, ``complete`` of each result
``rows``        what both measured: ``label``, ``kind``, ``child``, ``bits``, ``runtime``, and by quantity what follows
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
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError
from emqdeploy.measuring.differences import cautions, different
from emqdeploy.measuring.rows import BenchRow, Switch, rows_of, switches_of
from emqdeploy.measuring.statistics import LEVEL, RESAMPLES, difference_interval, independent_ratios

Compared = Mapping[str, Any]
"""A row of the comparison."""

Result = Mapping[str, Any]

ALIKE = 0.03
"""An interval within this of 1 shows no difference that counts: two starts of the same bench may be so far apart."""

LONGEST_NAME = 16
"""Letters of a file's name that a heading has room for."""

LEAST = 10
"""Samples of each side without which no interval is given."""

LEAST_TAIL = 500
"""The same for the 99th percentile, which has few samples beyond it."""

_ONCE: Mapping[str, Callable[[BenchRow], float | None]] = {
    "size_bytes": lambda row: row.size_bytes,
    "rss_bytes": lambda row: row.rss_bytes,
    "load_ms": lambda row: row.load_ms,
    "energy_mj": lambda row: row.energy.energy_mj_per_inference,
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
    ours, others = rows_of(a), rows_of(b)
    pairs = _pairs(ours, others)
    if not pairs:
        labels = (", ".join(row.label for row in one) or "nothing" for one in (ours, others))
        raise EmqError(
            f"{names[0]} and {names[1]} have no row in common ({' against '.join(labels)}); bench the same children"
        )
    switches = (switches_of(a), switches_of(b))
    called = short_names(names)
    rows = [_compared(a, b, pair, switches, called) for pair in pairs]
    taken = [id(row) for pair in pairs for row in pair]
    return {
        "a": _about(a, names[0]),
        "b": _about(b, names[1]),
        "names": list(called),
        "rows": rows,
        "only_a": [row.label for row in ours if id(row) not in taken],
        "only_b": [row.label for row in others if id(row) not in taken],
        "different": different(a, b),
        "findings": _findings(rows, called),
        "cautions": cautions(a, b, rows, called),
        "level": LEVEL,
        "method": f"Bootstrap of {RESAMPLES} resamples over the rounds of each result by itself; accuracy: Newcombe's"
        " interval, as if each had seen images of its own",
    }


def short_names(names: Sequence[str]) -> tuple[str, str]:
    """What two results are called in headings: their files' names where short and different, else A and B."""
    one, two = (Path(name).stem for name in names)
    short = all(0 < len(name) <= LONGEST_NAME for name in (one, two)) and one != two
    return (one, two) if short else ("A", "B")


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


def _pairs(ours: Sequence[BenchRow], others: Sequence[BenchRow]) -> list[tuple[BenchRow, BenchRow]]:
    """Rows that are the same thing; where none is, those that are called the same (in another runtime, say)."""
    found: dict[int, BenchRow] = {}
    left = list(others)
    for key in (_identity, lambda row: row.label):
        for row in ours:
            match = next((other for other in left if key(other) == key(row)), None)
            if id(row) not in found and match is not None:
                found[id(row)] = match
                left = [other for other in left if other is not match]
    return [(row, found[id(row)]) for row in ours if id(row) in found]


def _identity(row: BenchRow) -> tuple[Any, ...]:
    return row.kind, row.child, row.flavour, row.runtime, row.label if row.child is None else None


def _compared(
    a: Result,
    b: Result,
    pair: tuple[BenchRow, BenchRow],
    switches: tuple[Sequence[Switch], Sequence[Switch]],
    called: tuple[str, str],
) -> dict[str, Any]:
    one, other = pair
    blocks = [result["scenarios"].get("single", {}).get("block") or 1 for result in (a, b)]
    samples = (one.samples_ms, other.samples_ms)
    p50, p99 = (_times(samples, blocks, q, least) for q, least in ((0.5, LEAST), (0.99, LEAST_TAIL)))
    first, second = (_first_outputs(taken, row) for taken, row in zip(switches, pair, strict=True))
    return {
        "label": one.label,
        "kind": one.kind,
        "child": one.child,
        "bits": one.bits,
        "runtime": " / ".join(dict.fromkeys((one.runtime, other.runtime))),
        "p50": p50,
        "p99": p99,
        "first_output": _times((first, second), [1, 1], 0.5, LEAST),
        "accuracy": _accuracies(one, other, a["source"].get("images"), b["source"].get("images")),
        **{name: _once(read(one), read(other)) for name, read in _ONCE.items()},
        "disturbed": [f"{side}: {reason}" for side, row in zip(called, pair, strict=True) for reason in row.disturbed],
    }


def _first_outputs(switches: Sequence[Switch], row: BenchRow) -> list[float]:
    wanted = (row.child, row.runtime, row.kind)
    return [one.first_output_ms for one in switches if (one.child, one.runtime, one.kind) == wanted]


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


def _accuracies(one: BenchRow, other: BenchRow, images: int | None, other_images: int | None) -> dict[str, Any] | None:
    base, ours = one.accuracy, other.accuracy
    if base is None or ours is None or not images or not other_images:
        return None
    found = difference_interval(ours / 100, other_images, base / 100, images)
    verdict = "equal" if ours == base else "better" if found["low"] > 0 else "worse" if found["high"] < 0 else "unclear"
    return {"a": base, "b": ours, **{key: 100 * value for key, value in found.items()}, "verdict": verdict}


def _once(base: float | None, ours: float | None) -> dict[str, Any] | None:
    if not base or ours is None:
        return None
    return {"a": base, "b": ours, "ratio": ours / base}


def _findings(rows: Sequence[Compared], called: tuple[str, str]) -> list[str]:
    timed = [row for row in rows if row["p50"]]
    said = []
    by_verdict: dict[str, list[Compared]] = {}
    for row in timed:
        by_verdict.setdefault(row["p50"]["verdict"], []).append(row)
    for verdict in ("slower", "faster", "alike", "unclear"):
        found = by_verdict.get(verdict, [])
        if found:
            doubt = ", disturbed" if any(row["disturbed"] for row in found) else ""
            ratio = f"{_spread(found)} of the p50 of {called[0]}{doubt}"
            said.append(f"{_named(found, timed)}: {called[1]} {_WORDS[verdict]} ({ratio}).")
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


def _named(rows: Sequence[Compared], timed: Sequence[Compared]) -> str:
    if len(rows) == len(timed) > 1:
        return f"All {len(rows)} rows"
    return ", ".join(row["label"] for row in rows)


def _spread(rows: Sequence[Compared]) -> str:
    ratios = sorted(row["p50"]["ratio"] for row in rows)
    first, last = f"{ratios[0]:.3f}", f"{ratios[-1]:.3f}"
    return f"{first}x" if first == last else f"{first}x to {last}x"

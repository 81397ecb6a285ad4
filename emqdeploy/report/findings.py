"""What a result says in a few sentences, worked out from its figures."""

from __future__ import annotations

from typing import Any

SAME = 1.05
"""Medians within this factor are called the same speed."""


def findings(result: dict[str, Any]) -> list[str]:
    """Sentences, the most important first; each follows from figures of the result and says which."""
    widths = [row for row in result["rows"] if row["kind"] == "width" and row["latency_ms"]]
    said = [_speed(widths), _accuracy(widths), *_baselines(result["rows"], widths), _selector(result["rows"], widths)]
    return [sentence for sentence in said if sentence]


def cautions(result: dict[str, Any]) -> list[str]:
    """Why a reader should trust the figures less, and what was not measured."""
    said = [] if result["complete"] else ["The run was interrupted: what is missing was not measured."]
    reasons: dict[str, list[str]] = {}
    for row in result["rows"]:
        for reason in row["disturbed"]:
            reasons.setdefault(reason, []).append(row["label"])
    for reason, labels in reasons.items():
        everything = len(labels) == len(result["rows"])
        said.append(f"Disturbed: {reason} ({'all rows' if everything else ', '.join(labels)}).")
    missing = dict.fromkeys(row["energy"].get("not_measured") for row in result["rows"])
    said += [f"Energy is not measured: {reason}." for reason in missing if reason]
    return said + [note[:1].upper() + note[1:].rstrip(".") + "." for note in result["notes"]]


def _speed(widths: list[dict[str, Any]]) -> str | None:
    if len(widths) < 2 or len({row["runtime"] for row in widths}) > 1:
        return None
    medians = {row["label"]: row["latency_ms"]["p50"] for row in widths}
    fast, slow = min(medians, key=medians.__getitem__), max(medians, key=medians.__getitem__)
    spread = medians[slow] / medians[fast]
    kinds = {row["computed_as"] for row in widths}
    if spread < SAME:
        why = f": all are computed as {kinds.pop()}" if len(kinds) == 1 else ""
        sizes = [row["size_bytes"] for row in widths if row["size_bytes"]]
        saves = max(sizes, default=1) / min(sizes, default=1)
        rest = f" Fewer bits save storage (up to {saves:.1f} times here), not time." if saves > SAME else ""
        return f"All {len(widths)} bit-widths run at the same speed, within {100 * (spread - 1):.1f} %{why}.{rest}"
    if any(row["disturbed"] for row in widths):
        return f"Medians differ by up to {100 * (spread - 1):.0f} %, but the run was disturbed: look at the intervals."
    return f"{fast} is the fastest, {slow} takes {spread:.2f} times as long."


def _accuracy(widths: list[dict[str, Any]]) -> str | None:
    known = [row for row in widths if row["accuracy"] is not None and row["size_bytes"]]
    if len(known) < 2:
        return None
    best = max(known, key=lambda row: (row["accuracy"], row["bits"] or 0))
    good = [row for row in known if row["accuracy"] >= best["accuracy"] - 0.5]
    small = min(good, key=lambda row: row["size_bytes"])
    if small["label"] == best["label"]:
        return f"{best['label']}: {best['accuracy']:.2f} %; nothing smaller comes within half a point."
    lost = best["accuracy"] - small["accuracy"]
    share = 100 * small["size_bytes"] / best["size_bytes"]
    return (
        f"{small['label']}: {small['accuracy']:.2f} %, {lost:.2f} points below {best['label']} with {share:.0f} % of"
        f" its bytes."
    )


def _baselines(rows: list[dict[str, Any]], widths: list[dict[str, Any]]) -> list[str]:
    found = []
    most = max(widths, key=lambda row: row["bits"] or 0, default=None)
    for row in rows:
        if row["kind"] == "baseline" and row["latency_ms"] and most is not None:
            ratio = most["latency_ms"]["p50"] / row["latency_ms"]["p50"]
            text = f"{most['label']}: {ratio:.2f} times the time of {row['label']}"
            if row["accuracy"] is not None and most["accuracy"] is not None:
                text += f"; its accuracy differs by {most['accuracy'] - row['accuracy']:+.2f} points"
            found.append(f"{text}.")
    return found


def _selector(rows: list[dict[str, Any]], widths: list[dict[str, Any]]) -> str | None:
    """The single file with a selector against the separate networks."""
    apart = {row["bits"]: row["latency_ms"]["p50"] for row in widths}
    ratios = [
        row["latency_ms"]["p50"] / apart[row["bits"]]
        for row in rows
        if row["kind"] == "selector" and row["latency_ms"] and row["bits"] in apart
    ]
    if not ratios:
        return None
    return (
        f"The single file with a selector takes {min(ratios):.2f} to {max(ratios):.2f} times as long as separate ones."
    )

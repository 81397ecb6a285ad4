"""The summary of a stream on the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table

from emqdeploy.report.fitting import styled, table
from emqdeploy.report.units import milliseconds, percent

MOST_LISTED = 10
"""Pictures, or classes, that the table lists."""


def run_parts(result: dict[str, Any]) -> list[Table | str]:
    """Budgets, settings that served, decisions, and one line each for the rest."""
    budgets = table(f"{result['images']} images in {result['seconds']:.1f} s under {result['policy']}",
                    "budget", "over the whole run", "")  # fmt: skip
    for budget in result["budgets"]:
        known = {True: styled("met", "green"), False: styled("MISSED", "red")}
        verdict = known.get(budget["met"], "not measured")
        budgets.add_row(budget["budget"], budget["shown"], verdict)
    served = table("What served", "setting", "images", "accuracy")
    for setting, counts in result["by_setting"].items():
        served.add_row(setting, str(counts["images"]), percent(counts["accuracy"]))
    decisions = Table(title="Decisions", title_justify="left")
    for name in ("at", "", "setting", "why"):
        decisions.add_column(name, justify="right" if name == "at" else "left", overflow="fold")
    for entry in result["decisions"]:
        decisions.add_row(f"{entry['at_s']:.2f} s", entry["kind"], entry["setting"], entry["reason"])
    return [*([budgets] if result["budgets"] else []), served, _seen(result), decisions, *_lines(result)]


def _seen(result: dict[str, Any]) -> Table:
    """What pictures were taken for: each of a few, else how many of every class."""
    listed = result["predictions"]
    if len(listed) == result["images"] <= MOST_LISTED:
        return predictions_table("What was seen", listed)
    counts = list(result["classes"].items())
    more = len(counts) - MOST_LISTED
    seen = table("What was seen", "class", "images", caption=f"and {more} more classes" if more > 0 else None)
    for name, count in counts[:MOST_LISTED]:
        seen.add_row(name, str(count))
    return seen


def predictions_table(title: str, listed: Sequence[dict[str, Any]]) -> Table:
    """The class of each image, and how sure the network is."""
    found = table(title, "image", "class", "confidence")
    for entry in listed:
        found.add_row(entry["image"], entry["class"], percent(100 * entry["probability"]))
    return found


def _lines(result: dict[str, Any]) -> list[str]:
    latency, energy = result["latency_ms"], result["energy"]
    lines = []
    for name, values in (("latency", latency), ("reading and preprocessing", result["reading_ms"])):
        if values:
            lines.append(f"{name}: " + ", ".join(f"{p} {milliseconds(value)}" for p, value in values.items()))
    if result["labelled"]:
        lines.append(f"accuracy: {percent(result['accuracy'])} of {result['labelled']} labelled images")
    else:
        lines.append("accuracy: not measured, the folders of the images do not name classes")
    if "not_measured" in energy:
        lines.append(f"energy: not measured: {energy['not_measured']}")
    else:
        lines.append(
            f"energy: {energy['gross_mj_per_image']:.3g} mJ per image, idle power included, {energy['power_w']:.2f} W"
            f" ({energy['source']}: {energy['rail']})"
        )
    if result["unreadable"]:
        lines.append(f"{result['unreadable']} files were not readable as images")
    return lines

"""The summary of a stream on the terminal."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from emqdeploy.report.fitting import styled, table
from emqdeploy.report.units import milliseconds, percent


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
    return [*([budgets] if result["budgets"] else []), served, decisions, *_lines(result)]


def _lines(result: dict[str, Any]) -> list[str]:
    latency, energy = result["latency_ms"], result["energy"]
    lines = []
    if latency:
        lines.append("latency: " + ", ".join(f"{name} {milliseconds(value)}" for name, value in latency.items()))
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

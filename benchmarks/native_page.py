"""The tables of `docs/native.md`, made of what `benchmarks.native` and `native_costs` measured, and of nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, with_table

PAGE = Path(__file__).parent.parent / "docs" / "native.md"

Rows = Sequence[Mapping[str, Any]]

NAMES = {
    "resnet18": "ResNet-18, 224",
    "resnet20": "ResNet-20, 32",
    "mobilenet_v2": "MobileNetV2, 224",
    "timm/vit_tiny_patch16_224": "ViT-Tiny, 224",
}


def _cell(ratio: Mapping[str, float]) -> str:
    return "{ratio:.2f} [{low:.2f}, {high:.2f}]".format(**ratio)


def _table(rows: Rows, key: str, by: str) -> str:
    """Ratios of every child, a column for each network or instruction set."""
    columns = list(dict.fromkeys(row[by] for row in rows))
    children = list(dict.fromkeys(row["child"] for row in rows))
    cells = {(row["child"], row[by]): _cell(row[key]) for row in rows}
    lines = [
        "| child | " + " | ".join(NAMES.get(column, f"`{column}`") for column in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
        *("| " + " | ".join([child, *(cells[child, column] for column in columns)]) + " |" for child in children),
    ]
    return "\n".join(lines) + "\n"


def tables(report: Mapping[str, Any], costs: Mapping[str, Any]) -> dict[str, str]:
    """Every table of the page, by the name in its marker.

    Args:
        report: what `benchmarks.native` wrote.
        costs: what `benchmarks.native_costs` wrote.
    """

    def of(**wanted: object) -> list[Mapping[str, Any]]:
        return [row for row in report["rows"] if all(row[key] == value for key, value in wanted.items())]

    best = report["rows"][0]["instructions"]
    rows = [
        f"| {NAMES[cost['model']]} | {cost['first_output_ms']['one child']:.0f} ms | "
        f"{cost['eight_widths_mb']:.1f} MB | {cost['first_after_switch']['switch_us']:.1f} µs | "
        f"{cost['first_after_switch']['empty_call_us']:.1f} µs | {cost['first_after_switch']['median_ratio']:.2f} |"
        for cost in costs["rows"]
    ]
    head = (
        "| network | file to first output, one child | all eight widths | switch | empty call | first inference then |"
    )
    beside = costs["neighbour"]
    slower = [f"| {child} | {beside['slowdown'][child]:.2f} |" for child in beside["by_onnxruntime"]]
    ratios = [f" {_cell(ratio)} |" for ratio in beside["by_onnxruntime"].values()]
    return {
        "one thread": _table(of(host="alone", instructions=best, threads=1), "ratio", "model"),
        "two threads": _table(of(host="alone", instructions=best, threads=2), "ratio", "model"),
        "instruction sets": _table(of(host="alone", model="resnet18", threads=1), "own_ratio", "instructions"),
        "inside": _table(of(host="inside"), "ratio", "model"),
        "costs": "\n".join([head, "|---" * 6 + "|", *rows]) + "\n",
        "neighbour": "\n".join(
            [
                "| child | slowdown | by onnxruntime's |",
                "|---|---|---|",
                *map("".join, zip(slower, ratios, strict=True)),
            ]
        )
        + "\n",
    }


def updated(page: str, report: Mapping[str, Any], costs: Mapping[str, Any]) -> str:
    """The page with its tables made anew; each stands behind a comment with its name."""
    for name, fresh in tables(report, costs).items():
        page = with_table(page, name, fresh)
    return page


def write_page() -> None:
    """Makes the tables anew from the results that are kept."""
    report, costs = (json.loads((RESULTS / f"{name}.json").read_text()) for name in ("native", "native_costs"))
    PAGE.write_text(updated(PAGE.read_text(), report, costs))

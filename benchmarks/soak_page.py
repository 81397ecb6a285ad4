"""The tables of `docs/reliability.md`, made of what `benchmarks.soak` counted: the page cannot say anything else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "reliability.md"

Totals = Mapping[str, Mapping[str, int]]
"""How often what came of each kind."""


@dataclass(frozen=True)
class Table:
    """One table.

    Attributes:
        columns: heading of the first one, and of the others with the counter that each shows.
        rows: what the page calls each kind.
    """

    columns: Mapping[str, str]
    rows: Mapping[str, str]


TABLES = (
    Table(
        {
            **{"kind": "", "inputs": "done", "accepted": "accepted", "refused": "refused"},
            **{"foreign": "foreign", "over 5 s": "slow", "crashed": "crashed"},
        },
        {
            **{
                "emq": "`.emq`",
                "native": "`.emq` of branches, its graph",
                "opened": "`.emq` or bundle, opened in C",
                "tables": "`.emq` with tables (format 4), in Python and in C",
                "manifest": "manifest",
                "sealed": "exported ONNX",
                "ir": "OpenVINO's IR",
            },
            **{"result": "result", "report": "report", "picture": "picture", "answer": "device's answer"},
        },
    ),
    Table(
        {
            **{"command": "", "runs": "done", "kills": "killed", "of those from nothing": "anew"},
            **{"right afterwards": "right", "lost": "lost"},
        },
        {
            **{"kill-train": "train", "kill-quantize": "quantize", "kill-export": "export"},
            **{"kill-export-again": "export into a bundle of other files", "kill-bench": "bench", "kill-run": "run"},
        },
    ),
    Table(
        {
            **{"runtime": "", "inferences": "done", "switches": "switches", "mixed": "mixed"},
            **{"foreign": "foreign", "crashed": "crashed"},
        },
        {f"switch-{name}": name for name in ("onnxruntime", "native", "openvino", "torch")},
    ),
)


def table(form: Table, totals: Totals) -> str:
    """A table in Markdown: a row for every kind of which something was done, and their sum."""
    found = {label: totals[kind] for kind, label in form.rows.items() if kind in totals}
    counters = [counter for counter in form.columns.values() if counter]
    rows = {label: [counts.get(counter, 0) for counter in counters] for label, counts in found.items()}
    sums = [f"**{sum(column):,}**" for column in zip(*rows.values(), strict=True)]
    lines = [
        "| " + " | ".join(form.columns) + " |",
        "|---" * len(form.columns) + "|",
        *("| " + " | ".join([label, *(f"{value:,}" for value in values)]) + " |" for label, values in rows.items()),
        "| " + " | ".join(["**all**", *sums]) + " |",
    ]
    return "\n".join(lines) + "\n"


def updated(page: str, totals: Totals) -> str:
    """The page with its tables made anew."""
    for form in TABLES:
        head = re.escape("| " + " | ".join(form.columns) + " |\n")
        fresh = table(form, totals)
        page, count = re.subn(f"^{head}(?:\\|.*\n)+", lambda _, fresh=fresh: fresh, page, flags=re.MULTILINE)
        if count != 1:
            raise ValueError(f"the page has {count} tables with the columns {', '.join(form.columns)}")
    return page

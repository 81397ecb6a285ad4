"""What wrong labels cost, and how much of it ``train --clean ensemble`` wins back: digits, ResNet-8, three seeds.

Labels of a share of the training images are made wrong, those that validate too; the test images keep theirs. A second
table asks the same of coresets, which keep 40 % of the images: those of large error (EL2N), or any.

Rows are independent and each is kept when it is done: run the same command again to go on.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import RESULTS, arguments, by_width, machine
from emqdeploy.files import atomic_write_text
from emqdeploy.training.api import train
from emqdeploy.training.recipes import resolve
from emqdeploy.workflows.labels import labels

NOISE = ((0.0, "symmetric"), (0.2, "symmetric"), (0.4, "symmetric"), (0.2, "pairs"), (0.4, "pairs"))
SEEDS = 3

KEPT = {"": {}, "el2n": {"prune_rate": 0.6, "score": "el2n"}, "random": {"prune_rate": 0.6, "score": "random"}}
"""Coresets by score; at first every run has all images."""

CASES = [(share, kind, "") for share, kind in NOISE]
CASES += [
    (share, kind, score)
    for share, kind in ((0.0, "symmetric"), (0.4, "symmetric"), (0.4, "pairs"))
    for score in KEPT
    if score
]


def run(share: float, kind: str, score: str, clean: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains once; accuracy on the test images, and what was found."""
    values: dict[str, Any] = {"flip_labels": share, "flip_kind": kind, "clean": clean, "seed": seed, "threads": 1}
    values |= KEPT[score]
    values |= {"epochs": 2, "limit": 300} if quick else {}
    with tempfile.TemporaryDirectory() as folder:
        result = train(resolve(None, None, values), Path(folder) / "run", console=Console(file=io.StringIO()))
        found = labels(Path(folder) / "run", 1) if clean != "none" else {}
    row = {
        "share": share,
        "kind": kind,
        "score": score,
        "clean": clean,
        "seed": seed,
        "accuracy": by_width(result.accuracy),
    }
    return row | {key: found.get(key) for key in ("doubted", "precision", "recall")}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing and prints the table."""
    parser = arguments(__doc__, "noisy_labels")
    options = parser.parse_args(argv)
    path = options.json or RESULTS / "noisy_labels.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    done = {(row["share"], row["kind"], row["score"], row["clean"], row["seed"]) for row in held["rows"]}
    for seed in range(1 if options.quick else SEEDS):
        for case in CASES:
            for clean in ("none", "ensemble"):
                if (*case, clean, seed) not in done:
                    held["rows"].append(run(*case, clean, seed, options.quick))
                    held["machine"] = machine()
                    atomic_write_text(path, json.dumps(held, indent=1) + "\n")
                    print(held["rows"][-1], flush=True)
    print(table(held["rows"]))
    print()
    print(coreset_table(held["rows"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: per kind of noise the accuracy with and without, and what was found."""
    lines = [
        "| labels made wrong | 1 bit, as they are | 1 bit, `--clean ensemble` | 8 bits, as they are |"
        " 8 bits, `--clean ensemble` | doubted labels that were wrong | wrong labels found |",
        "|---|---|---|---|---|---|---|",
    ]
    for share, kind in NOISE:
        some = [row for row in rows if (row["share"], row["kind"], row["score"]) == (share, kind, "")]
        lines.append(f"| {' | '.join([_noise(share, kind), *_accuracies(some), *_findings(some)])} |")
    return "\n".join(lines)


def coreset_table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: the same of coresets."""
    lines = [
        "| labels made wrong | images kept | 1 bit, as they are | 1 bit, `--clean ensemble` | 8 bits, as they are |"
        " 8 bits, `--clean ensemble` |",
        "|---|---|---|---|---|---|",
    ]
    for share, kind, score in CASES:
        if score:
            some = [row for row in rows if (row["share"], row["kind"], row["score"]) == (share, kind, score)]
            lines.append(f"| {' | '.join([_noise(share, kind), f'`{score}`', *_accuracies(some)])} |")
    return "\n".join(lines)


def _noise(share: float, kind: str) -> str:
    return f"{share:.0%} {kind}" if share else "none"


def _accuracies(rows: Sequence[dict[str, Any]]) -> list[str]:
    cells = [
        [row["accuracy"][width] for row in rows if row["clean"] == clean]
        for width in ("1", "8")
        for clean in ("none", "ensemble")
    ]
    return [_spread(cell) for cell in cells]


def _findings(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [_spread([row[key] for row in rows if row[key] is not None]) for key in ("precision", "recall")]


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.ptp(values) / 2:.2f}" if len(values) else ""


if __name__ == "__main__":
    main()

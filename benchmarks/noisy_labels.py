"""What wrong labels cost, and how much of it ``train --clean ensemble`` wins back: digits, ResNet-8, three seeds.

Labels of a share of the training images are made wrong, those that validate too; the test images keep theirs. Rows are
independent and each is kept when it is done: run the same command again to go on.
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


def run(share: float, kind: str, clean: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains once; accuracy on the test images, and what was found."""
    values: dict[str, Any] = {"flip_labels": share, "flip_kind": kind, "clean": clean, "seed": seed, "threads": 1}
    values |= {"epochs": 2, "limit": 300} if quick else {}
    with tempfile.TemporaryDirectory() as folder:
        result = train(resolve(None, None, values), Path(folder) / "run", console=Console(file=io.StringIO()))
        found = labels(Path(folder) / "run", 1) if clean != "none" else {}
    row = {"share": share, "kind": kind, "clean": clean, "seed": seed, "accuracy": by_width(result.accuracy)}
    return row | {key: found.get(key) for key in ("doubted", "precision", "recall")}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing and prints the table."""
    parser = arguments(__doc__, "noisy_labels")
    options = parser.parse_args(argv)
    path = options.json or RESULTS / "noisy_labels.json"
    held: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"rows": []}
    done = {(row["share"], row["kind"], row["clean"], row["seed"]) for row in held["rows"]}
    for seed in range(1 if options.quick else SEEDS):
        for share, kind in NOISE:
            for clean in ("none", "ensemble"):
                if (share, kind, clean, seed) not in done:
                    held["rows"].append(run(share, kind, clean, seed, options.quick))
                    held["machine"] = machine()
                    atomic_write_text(path, json.dumps(held, indent=1) + "\n")
                    print(held["rows"][-1], flush=True)
    print(table(held["rows"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: per kind of noise the accuracy with and without, and what was found."""
    lines = [
        "| labels made wrong | 1 bit, as they are | 1 bit, `--clean ensemble` | 8 bits, as they are |"
        " 8 bits, `--clean ensemble` | doubted labels that were wrong | wrong labels found |",
        "|---|---|---|---|---|---|---|",
    ]
    for share, kind in NOISE:
        cells = [f"{share:.0%} {kind}" if share else "none"]
        some = [row for row in rows if (row["share"], row["kind"]) == (share, kind)]
        for width in ("1", "8"):
            for clean in ("none", "ensemble"):
                cells.append(_spread([row["accuracy"][width] for row in some if row["clean"] == clean]))
        for key in ("precision", "recall"):
            cells.append(_spread([row[key] for row in some if row[key] is not None]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.2f} ± {np.ptp(values) / 2:.2f}" if len(values) else ""


if __name__ == "__main__":
    main()

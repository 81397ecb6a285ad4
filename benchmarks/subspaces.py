"""The middle of a line, a curve or a simplex of networks against plain training and a moving average.

ResNet-8 on the embedded digits, three seeds. All rows make the same passes over the same images. Rows are independent
and each is kept when it is done: run the same command again to go on.
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

from benchmarks.common import arguments, by_width, machine
from emqdeploy.files import atomic_write_text
from emqdeploy.training.api import train
from emqdeploy.training.recipes import resolve

ROWS: dict[str, dict[str, Any]] = {
    "plain": {},
    "`--subspace line`": {"subspace": "line"},
    "`--ema 0.98`": {"ema": 0.98},
    "`--subspace precision`": {"subspace": "precision"},
    "`--subspace simplex`": {"subspace": "simplex"},
    "`--subspace curve`": {"subspace": "curve"},
}
SEEDS = 3
WIDTHS = ("1", "2")
COMMON: dict[str, Any] = {"bits": ",".join(WIDTHS), "limit": 300, "epochs": 12, "batch_size": 32, "threads": 1}


def run(name: str, seed: int, quick: bool) -> dict[str, Any]:
    """Trains once; accuracy of the deployed children on the test images, and what the files take."""
    values = {**COMMON, **ROWS[name], "seed": seed, **({"epochs": 2, "limit": 200} if quick else {})}
    with tempfile.TemporaryDirectory() as folder:
        result = train(resolve(None, None, values), Path(folder) / "run", console=Console(file=io.StringIO()))
        size = sum(path.stat().st_size for path in result.checkpoints)
    accuracy = by_width({child: percent for child, percent in result.accuracy.items() if child.name in WIDTHS})
    return {"row": name, "seed": seed, "accuracy": accuracy, "bytes": size, "seconds": round(result.seconds, 1)}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the rows that are missing and prints the table."""
    options = arguments(__doc__, "subspaces").parse_args(argv)
    held: dict[str, Any] = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    done = {(row["row"], row["seed"]) for row in held["rows"]}
    for name in ROWS:
        for seed in range(1 if options.quick else SEEDS):
            if (name, seed) not in done:
                held["rows"].append(run(name, seed, options.quick))
                held["machine"] = machine()
                atomic_write_text(options.json, json.dumps(held, indent=1) + "\n")
                print(held["rows"][-1], flush=True)
    print(table(held["rows"]))


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Markdown: test accuracy by width, mean and range over the seeds, and bytes of the files."""
    lines = ["| training | 1 bit | 2 bits | kB of all files |", "|---|---|---|---|"]
    for name in ROWS:
        some = [row for row in rows if row["row"] == name]
        if some:
            cells = [_spread([row["accuracy"][width] for row in some]) for width in WIDTHS]
            size = f"{some[0]['bytes'] / 1000:.0f}"
            lines.append(f"| {' | '.join([name, *cells, size])} |")
    return "\n".join(lines)


def _spread(values: Sequence[float]) -> str:
    return f"{np.mean(values):.1f} ({min(values):.1f} to {max(values):.1f})"


if __name__ == "__main__":
    main()

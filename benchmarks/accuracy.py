"""Accuracy of every child on the embedded digits, against float networks trained alike, over seeds.

A float network is trained twice: for as many epochs as every child (``float32``), and for as many sample passes as all
children together (``float32, same passes``), because children share their weights and so each learns from the others'
steps. Accuracy is that of the deployed network (integer weights and biases) on the test set, read once per finished
run; the best epoch is chosen on the validation tenth of the training images. Fashion-MNIST, baselines and ablations
stand in `benchmarks.paper_table`.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import arguments, by_width, show, write
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig

BOUND_POINTS = -0.5
FLOAT, FLOAT_PASSES, CHILDREN = "float32", "float32, same passes", "emqnet"
EPOCHS = 20
ROWS: dict[str, dict[str, Any]] = {
    FLOAT: {"bits": (32,)},
    FLOAT_PASSES: {"bits": (32,), "times": 4},
    CHILDREN: {},
}


def run(changes: dict[str, Any]) -> dict[str, Any]:
    """Trains once and returns accuracy, passes and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig(**changes), Path(folder) / "run", console=Console(file=io.StringIO()))
    return {
        "accuracy": by_width(result.accuracy),
        "sample_passes": result.sample_passes,
        "seconds": result.seconds,
        "config": changes,
    }


def measure(row: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Trains one row of the table."""
    changes = dict(ROWS[row])
    changes["epochs"] = (2 if quick else EPOCHS) * changes.pop("times", 1)
    return {"row": row, "seeds": seeds, "runs": [run({**changes, "seed": seed}) for seed in range(seeds)]}


def difference(children: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """8 bits minus float, paired by seed; 95 % bootstrap interval of the mean over seeds (with three, hardly a range).

    The bench's intervals are those of medians of latencies.
    """
    points = [
        child["accuracy"]["8"] - single["accuracy"]["32"]
        for child, single in zip(children["runs"], plain["runs"], strict=True)
    ]
    drawn = np.random.default_rng(0).choice(np.asarray(points), (10_000, len(points))).mean(axis=1)
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    return {"compared": f"8 bits minus {plain['row']}", "points": points, "interval": [low, high]}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args(argv)
    rows = {name: measure(name, 1 if options.quick else options.seeds, options.quick) for name in ROWS}
    comparisons = [difference(rows[CHILDREN], rows[plain]) for plain in (FLOAT, FLOAT_PASSES)]
    write(options.json, "accuracy", options.quick, [*rows.values(), *comparisons], bound_points=BOUND_POINTS)
    table = []
    for row in rows.values():
        means = {
            bits: np.mean([single["accuracy"][bits] for single in row["runs"]]) for bits in row["runs"][0]["accuracy"]
        }
        cells = [f"{means[str(bits)]:.2f}" if str(bits) in means else "" for bits in (*range(1, 9), 32)]
        seconds = np.mean([single["seconds"] for single in row["runs"]])
        table.append((row["row"], row["seeds"], *cells, row["runs"][0]["sample_passes"], f"{seconds:.0f}"))
    columns = ("row", "seeds", *(f"{bits}b" for bits in range(1, 9)), "float", "passes", "s")
    show(
        "Digits: test accuracy of the deployed network in percent (trained 1, 2, 4, 8; unseen 3, 5, 6, 7)",
        columns,
        table,
    )
    for entry in comparisons:
        low, high = entry["interval"]
        state = "holds" if low >= BOUND_POINTS else "MISSED"
        points = f"{np.mean(entry['points']):+.2f} [{low:+.2f}, {high:+.2f}] points"
        print(f"{entry['compared']}: {points}; bound {BOUND_POINTS}: {state}")


if __name__ == "__main__":
    main()

"""Accuracy per bit-width against float networks trained alike, over seeds, on digits and a part of Fashion-MNIST.

All rows of a data set share network, batches and schedule. A float network is trained twice: for as many epochs as
every child (``float32``), and for as many sample passes as all children together (``float32, same passes``), because
children share their weights and so each learns from the others' steps. Accuracy is that of the deployed network
(integer weights and biases) on the test set, read once per finished run; the best epoch is chosen on the validation
tenth of the training images. ``--ablate`` adds one-seed rows of other choices,
on half of that part. ``--resume`` keeps the rows that the report has already.
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

from benchmarks.common import arguments, show, write
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig

BOUND_POINTS = -0.5
FLOAT, FLOAT_PASSES, CHILDREN = "float32", "float32, same passes", "emqnet"
DATA: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "model": "resnet8", "epochs": 20},
    "fashion-mnist": {"data": "fashion-mnist", "model": "resnet8", "limit": 6000, "epochs": 8},
}
"""``fashion-mnist`` is 6,000 of its training images."""

ABLATED = "fashion-mnist, 3,000 images"
ABLATED_DATA: dict[str, Any] = {"data": "fashion-mnist", "model": "resnet8", "limit": 3000, "epochs": 6}

ROWS: dict[str, dict[str, Any]] = {
    FLOAT: {"bits": (32,)},
    FLOAT_PASSES: {"bits": (32,), "times": 4},
    CHILDREN: {},
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "no correction": {"correction": "none"},
    "no correction, shared statistics": {"correction": "none", "norm_adaptation": "shared"},
    "per layer, tanh, shared statistics": {
        **{"correction_group": "layer", "correction_reference": "tanh", "norm_adaptation": "shared"},
    },
    "per channel, w, shared statistics": {"norm_adaptation": "shared"},
    "banner form": {"correction": "banner"},
    "pruned 0.5, el2n sampled": {"prune_rate": 0.5},
    "all images, passes of pruned 0.5": {"times": 0.625},
}


def run(changes: dict[str, Any]) -> dict[str, Any]:
    """Trains once and returns accuracy, passes and seconds."""
    with tempfile.TemporaryDirectory() as folder:
        result = train(TrainConfig(**changes), Path(folder) / "run", console=Console(file=io.StringIO()))
    return {
        "accuracy": {str(bits): percent for bits, percent in sorted(result.accuracy.items())},
        "sample_passes": result.sample_passes,
        "seconds": result.seconds,
        "config": changes,
    }


def measure(name: str, row: str, seeds: int, quick: bool) -> dict[str, Any]:
    """Trains one row of the table."""
    changes = dict({**ROWS, **ABLATIONS}[row])
    base = dict(ABLATED_DATA if name == ABLATED else DATA[name])
    base["epochs"] = round((2 if quick else base["epochs"]) * changes.pop("times", 1))
    runs = [run({**base, **changes, "seed": seed}) for seed in range(seeds)]
    return {"data": name, "row": row, "seeds": seeds, "runs": runs}


def difference(children: dict[str, Any], plain: dict[str, Any]) -> dict[str, Any]:
    """8 bits minus float, paired by seed; 95 % bootstrap interval over seeds (with three, hardly their range)."""
    points = [
        child["accuracy"]["8"] - single["accuracy"]["32"]
        for child, single in zip(children["runs"], plain["runs"], strict=True)
    ]
    drawn = np.random.default_rng(0).choice(np.asarray(points), (10_000, len(points))).mean(axis=1)
    low, high = (float(value) for value in np.quantile(drawn, [0.025, 0.975]))
    return {
        "data": plain["data"],
        "compared": f"8 bits minus {plain['row']}",
        "points": points,
        "interval": [low, high],
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=[*DATA, "all"], default="all")
    parser.add_argument("--ablate", action="store_true", help="add one-seed rows of other choices")
    parser.add_argument("--resume", action="store_true", help="keep the rows that the report has")
    options = parser.parse_args(argv)
    kept = json.loads(options.json.read_text())["rows"] if options.resume and options.json.exists() else []
    rows = {(row["data"], row["row"]): row for row in kept if "row" in row}
    comparisons: list[dict[str, Any]] = []
    names = list(DATA) if options.data == "all" else [options.data]
    wanted = {(name, row): 1 if options.quick else options.seeds for name in names for row in ROWS}
    if options.ablate:
        wanted |= {(ABLATED, row): 1 for row in (CHILDREN, *ABLATIONS)}
    for (name, row), seeds in wanted.items():
        if (name, row) not in rows:
            rows[name, row] = measure(name, row, seeds, options.quick)
            write(options.json, "accuracy", options.quick, list(rows.values()))
    for name in names:
        comparisons += [difference(rows[name, CHILDREN], rows[name, plain]) for plain in (FLOAT, FLOAT_PASSES)]
    write(options.json, "accuracy", options.quick, [*rows.values(), *comparisons], bound_points=BOUND_POINTS)
    table = []
    for row in rows.values():
        means = {
            bits: np.mean([single["accuracy"][bits] for single in row["runs"]]) for bits in row["runs"][0]["accuracy"]
        }
        cells = [f"{means[str(bits)]:.2f}" if str(bits) in means else "" for bits in (*range(1, 9), 32)]
        seconds = np.mean([single["seconds"] for single in row["runs"]])
        table.append((row["data"], row["row"], row["seeds"], *cells, row["runs"][0]["sample_passes"], f"{seconds:.0f}"))
    columns = ("data", "row", "seeds", *(f"{bits}b" for bits in range(1, 9)), "float", "passes", "s")
    show("Test accuracy of the deployed network, percent (trained 1, 2, 4, 8; the others unseen)", columns, table)
    for entry in comparisons:
        low, high = entry["interval"]
        state = "holds" if low >= BOUND_POINTS else "MISSED"
        found = f"{entry['compared']} {np.mean(entry['points']):+.2f} [{low:+.2f}, {high:+.2f}] points"
        print(f"{entry['data']}: {found}; bound {BOUND_POINTS}: {state}")


if __name__ == "__main__":
    main()

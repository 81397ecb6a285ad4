"""Accuracy per bit-width against a float network trained alike, over seeds, on digits and a part of Fashion-MNIST.

Every row of a data set has the same network, epochs, batches and schedule. Accuracy is that of the deployed network
(integer weights, integer bias) on the test set, which is read once per finished run; the best epoch is chosen on the
validation tenth of the training images. ``--ablate`` adds one-seed rows without and with other forms of the correction
and of the normalization statistics.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import arguments, show, write
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig

BOUND_POINTS = 0.5
DATA: dict[str, dict[str, Any]] = {
    "digits": {"data": "digits", "model": "resnet8", "epochs": 20},
    "fashion-mnist, 6,000 training images": {
        "data": "fashion-mnist", "model": "resnet8", "limit": 6000, "epochs": 8,
    },
}  # fmt: skip
ABLATIONS: dict[str, dict[str, Any]] = {
    "no correction": {"correction": "none"},
    "per layer, reference tanh": {"correction_group": "layer", "correction_reference": "tanh"},
    "banner form": {"correction": "banner"},
    "shared statistics": {"norm_adaptation": "shared"},
    "no correction, shared statistics": {"correction": "none", "norm_adaptation": "shared"},
    "per layer, tanh, shared statistics": {
        "correction_group": "layer", "correction_reference": "tanh", "norm_adaptation": "shared",
    },
    "pruned 0.5, el2n sampled": {"prune_rate": 0.5},
    "same passes as pruned 0.5, all images": {"prune_rate": 0.0},
}  # fmt: skip


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


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """A 95 % bootstrap interval of the mean over seeds; with three seeds it is barely more than their range."""
    drawn = np.random.default_rng(0).choice(np.asarray(differences), (10_000, len(differences))).mean(axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(low), float(high)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "accuracy")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--data", choices=[*DATA, "all"], default="all")
    parser.add_argument("--ablate", action="store_true", help="add one-seed rows of other choices")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name, base in DATA.items():
        if options.data not in (name, "all"):
            continue
        base = {**base, "epochs": 2} if options.quick else base
        seeds = range(1 if options.quick else options.seeds)
        floats = [run({**base, "bits": (32,), "seed": seed}) for seed in seeds]
        children = [run({**base, "seed": seed}) for seed in seeds]
        for label, runs in (("float32", floats), ("emqnet", children)):
            rows.append({"data": name, "row": label, "seeds": len(runs), "runs": runs})
        differences = [
            child["accuracy"]["8"] - plain["accuracy"]["32"] for child, plain in zip(children, floats, strict=True)
        ]
        low, high = interval(differences)
        mean = float(np.mean(differences))
        rows.append(
            {"data": name, "row": "8 bits minus float32", "points": differences, "mean": mean, "interval": [low, high]}
        )
        print(f"{name}: 8 bits minus float32 {mean:+.2f} points [{low:+.2f}, {high:+.2f}], bound -{BOUND_POINTS}")
        if options.ablate:
            for label, changes in ABLATIONS.items():
                epochs = base["epochs"]
                if label.startswith("same passes"):
                    # Two score epochs and half the images afterwards: what that costs, spent on all images.
                    epochs = round(max(2, epochs // 10) + (epochs - max(2, epochs // 10)) / 2)
                rows.append(
                    {"data": name, "row": label, "seeds": 1, "runs": [run({**base, **changes, "epochs": epochs})]}
                )
    trained = [row for row in rows if "runs" in row]
    table = []
    for row in trained:
        per_bits = {
            bits: np.mean([single["accuracy"][bits] for single in row["runs"]]) for bits in row["runs"][0]["accuracy"]
        }
        cells = [f"{per_bits[str(bits)]:.2f}" if str(bits) in per_bits else "" for bits in (*range(1, 9), 32)]
        seconds = np.mean([single["seconds"] for single in row["runs"]])
        table.append((row["data"], row["row"], row["seeds"], *cells, row["runs"][0]["sample_passes"], f"{seconds:.0f}"))
        write(options.json, "accuracy", options.quick, rows)
    columns = ("data", "row", "seeds", *(f"{bits}b" for bits in range(1, 9)), "float", "passes", "s")
    show("Test accuracy of the deployed network, percent (trained 1, 2, 4, 8; the others unseen)", columns, table)


if __name__ == "__main__":
    main()

"""Families of quantizers at one, two and three bits: the same network, steps and seeds, one network per width.

The float network trains alone in the first half of every run.

``python -m benchmarks.low_bits``, or with more images ``--data cifar10 --data-dir DIR --limit 5000``.
"""

from __future__ import annotations

import io
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks.common import arguments, by_width, show, write
from emqdeploy.errors import UsageError
from emqdeploy.quant.families.base import family_options
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.methods import method_options

ROWS: dict[str, dict[str, Any]] = {
    "tanh": {"name": "tanh"},
    "lsq": {"name": "lsq"},
    "cpq": {"name": "cpq"},
    "cpq, mode": {"name": "cpq", "estimator": "mode"},
    "levels": {"name": "levels"},
    "levels, per channel": {"name": "levels", "per": "channel"},
    "levels, nearest": {"name": "levels", "assignment": "nearest"},
    "levels, nearest, per channel": {"name": "levels", "assignment": "nearest", "per": "channel"},
}
"""Families with their options; `lsq` is plain straight-through training."""


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "low_bits")
    parser.add_argument("--data", default="digits")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--limit", type=int, help="training images")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--bits", default="1,2,3")
    parser.add_argument("--rows", default=",".join(name for name in ROWS if "," not in name))
    parser.add_argument("--noise", type=float, help="of cpq")
    options = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    for name in options.rows.split(","):
        for bits in options.bits.split(","):
            rows.append(_measure(name.replace(":", ", "), bits, options))
    table = [(row["row"], row["bits"], *_summary(row["accuracy"]), row["seconds"]) for row in rows]
    show("Test accuracy, percent", ("quantizer", "bits", "mean", "seeds", "seconds a run"), table)
    write(options.json, "low_bits", options.quick, rows)


def _summary(accuracy: Sequence[float]) -> tuple[str, str]:
    """The mean, and every seed."""
    if not accuracy:
        return "-", "this family has no such width"
    return f"{np.mean(accuracy):.2f}", " ".join(f"{one:.2f}" for one in accuracy)


def _measure(name: str, bits: str, options: Any) -> dict[str, Any]:
    """Accuracy of one family at one width, by seed; none where it cannot make the width."""
    accuracy, started = [], time.perf_counter()
    seeds = range(1 if options.quick else options.seeds)
    extra = {"noise": options.noise} if options.noise and ROWS[name]["name"] == "cpq" else {}
    for seed in seeds:
        try:
            config = TrainConfig(
                model="resnet8",
                data=options.data,
                data_dir=options.data_dir,
                limit=options.limit,
                epochs=2 if options.quick else options.epochs,
                bits=(int(bits),),
                batch_size=options.batch_size,
                seed=seed,
                quantizer=family_options(ROWS[name] | extra),
                method=method_options({"name": "emqnet", "float_first": 0.5}),
            )
            with tempfile.TemporaryDirectory() as folder:
                result = train(config, Path(folder) / "run", console=Console(file=io.StringIO()))
        except UsageError:
            return {"row": name, "bits": bits, "accuracy": [], "seconds": None}
        accuracy += by_width(result.accuracy).values()
    return {
        "row": name,
        "bits": bits,
        "accuracy": accuracy,
        "seconds": round((time.perf_counter() - started) / len(seeds), 1),
    }


if __name__ == "__main__":
    main()

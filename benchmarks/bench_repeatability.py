"""Does the same command give the same answer: three benches in processes of their own, p50 ratios between children.

Bound: on an idle two-core machine every ratio stays within 3 % of its median over the three runs.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, show, subject, verdict, write
from emqdeploy.format.emq import save_checkpoint

RUNS = 3
BOUND = 0.03
BITS = "8,4,2,1"


def store(model: str, folder: Path) -> Path:
    """Writes a network with random weights, timed on noise, for its data set is nowhere."""
    path = folder / f"{model}.emq"
    save_checkpoint(path, subject(model).checkpoint)
    return path


def bench(path: Path, seconds: float) -> dict[str, Any]:
    """Runs the command as a person would."""
    options = ["--bits", BITS, "--scenario", "single", "--seconds", str(seconds), "--energy", "none", "--json"]
    command = [sys.executable, "-m", "emqdeploy", "bench", str(path), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def main() -> None:
    """Measures, prints and writes the report."""
    parser = arguments(__doc__, Path(__file__).stem)
    options = parser.parse_args()
    models = ("resnet8",) if options.quick else ("resnet8", "resnet20", "resnet18")
    seconds = 0.2 if options.quick else 3.0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for model in models:
            path = store(model, Path(folder))
            results = [bench(path, seconds) for _ in range(RUNS)]
            for index, label in enumerate(row["label"] for row in results[0]["rows"]):
                measured = [result["rows"][index] for result in results]
                ratios = [row["ratio_to_first"]["ratio"] for row in measured]
                rows.append(
                    {
                        "model": model,
                        "label": label,
                        "p50_ms": [row["latency_ms"]["p50"] for row in measured],
                        "ratios": ratios,
                        "spread": float(max(abs(ratio / np.median(ratios) - 1) for ratio in ratios)),
                        "intervals": [[row["ratio_to_first"][end] for end in ("low", "high")] for row in measured],
                        "disturbed": sorted({reason for row in measured for reason in row["disturbed"]}),
                    }
                )
    columns = ("model", "row", *(f"ratio {run + 1}" for run in range(RUNS)), "spread", "")
    shown = [(row["model"], row["label"], *row["ratios"], row["spread"], verdict(row["spread"], BOUND)) for row in rows]
    show(f"{RUNS} times the same bench: p50 over that of the first row", columns, shown)
    disturbed = sorted({reason for row in rows for reason in row["disturbed"]})
    for reason in disturbed:
        print(f"disturbed: {reason}")
    write(options.json, Path(__file__).stem, options.quick, rows, bound=BOUND)


if __name__ == "__main__":
    main()

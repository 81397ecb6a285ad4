"""Throughput of two processes, one thread each, against one process with one thread: real `torchrun`, gloo, CPU.

Both train the same steps of ResNet-20 on 32 x 32 images (batch 128) over random images; the time between the first and
the last epoch that the metrics note counts, so that start-up does not. Runs take turns; at least 1.6x is wanted.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.common import arguments, show, with_interval, write

BOUND = 1.6
BATCH = 128
CLASSES = 4
BITS = "2,8"


def picture_folder(root: Path, images: int) -> Path:
    """Writes an image folder of random 32 x 32 pictures."""
    random = np.random.default_rng(0)
    for part, count in (("train", images), ("test", 64)):
        for number in range(count):
            path = root / part / f"class{number % CLASSES}" / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(path)
    return root


def images_per_second(data: Path, out: Path, processes: int, epochs: int, options: Sequence[str]) -> float:
    """Trains with a number of processes of one thread; returns sample passes per second after the first epoch."""
    start = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    command = [sys.executable, *(start if processes > 1 else ["-m"]), "emqdeploy", "train", *options]
    command += ["--data", f"imagefolder:{data}", "--image-size", "32", "--model", "resnet20", "--bits", BITS]
    command += ["--batch-size", str(BATCH), "--epochs", str(epochs), "--validate-every", str(epochs)]
    command += ["--threads", "1", "--workers", "0", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(done.stderr)
    records = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first, last = records[0], records[-2]  # the last epoch holds the validation
    return float((last["sample_passes"] - first["sample_passes"]) / (last["seconds"] - first["seconds"]))


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "scaling").parse_args(argv)
    images, epochs, rounds = (2 * BATCH, 3, 1) if options.quick else (5 * BATCH, 4, 4)
    variants = {"one process": (1, ()), "one process, ghost batches": (1, ("--ghost-batches", "2")), "two": (2, ())}
    speeds: dict[str, list[float]] = {name: [] for name in variants}
    with tempfile.TemporaryDirectory() as folder:
        data = picture_folder(Path(folder) / "data", images)
        for turn in range(rounds):
            for name, (processes, extra) in list(variants.items())[:: 1 if turn % 2 == 0 else -1]:
                out = Path(folder) / f"{name.replace(' ', '-')}{turn}"
                speeds[name].append(images_per_second(data, out, processes, epochs, extra))
    rows: list[dict[str, Any]] = []
    for name, taken in speeds.items():
        ratios = [mine / base for mine, base in zip(taken, speeds["one process"], strict=True)]
        rows.append(
            {
                "variant": name,
                "samples_per_second": taken,
                "median_samples_per_second": median(taken),
                "to_one_process": {"ratio": median(ratios), "low": min(ratios), "high": max(ratios)},
            }
        )
    table = [
        (row["variant"], f"{row['median_samples_per_second']:.0f}", with_interval(row["to_one_process"]))
        for row in rows
    ]
    show(f"ResNet-20, 32 x 32, batch {BATCH}, one thread a process", ("variant", "samples/s", "to one process"), table)
    ratio = rows[-1]["to_one_process"]["ratio"]
    print(f"two processes: {ratio:.2f}x of one, {'holds' if ratio >= BOUND else 'MISSED'} (>= {BOUND}x)")
    write(options.json, "scaling", options.quick, rows)


if __name__ == "__main__":
    main()

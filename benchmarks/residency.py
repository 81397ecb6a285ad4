"""What resident children of ResNet-18 at 224 pixels cost: memory in fresh processes, and whether it costs latency.

* Four resident children above one (bound: 45 MB), and one and all eight, each in a process of its own, several times.
* The same network in OpenVINO, for comparison.
* Rules: what `lru:2` and `memory:64` keep after all eight were used.
* Latency of a child among four resident ones against the same alone, interleaved (it should be 1.0).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import arguments, interleave, show, subject, verdict, with_interval, write
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime

ABOVE_ONE_BOUND_MB = 45.0
BLOCK = 5

_FRESH = """
import gc, json, sys, time
import numpy as np
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.machine import resident_bytes
path, runtime, widths, used, residency = sys.argv[1], sys.argv[2], *map(json.loads, sys.argv[3:5]), sys.argv[5]
__import__(find_adapter(runtime).library)
before = resident_bytes()
checkpoint = load_checkpoint(path)
loaded = resident_bytes()
network = find_adapter(runtime)(checkpoint, children=widths, residency=residency, threads=2)
image = np.zeros((1, *network.input_shape), np.float32)
for bits in used:
    network.set_bits(bits)
    for _ in range(2):
        network.run(image)
gc.collect()
time.sleep(1.5)  # what is idle goes back to the system after a second
print(json.dumps({
    "resident": [child.name for child in network.resident],
    "added_mb": (resident_bytes() - before) / 1e6,
    "checkpoint_mb": (loaded - before) / 1e6,
}))
"""


def fresh(path: Path, runtime: str, widths: Sequence[int], used: Sequence[int], residency: str) -> dict[str, Any]:
    """Memory that a runtime with some children adds to a process of its own, after each was used."""
    command = [sys.executable, "-c", _FRESH, str(path), runtime, json.dumps(widths), json.dumps(used), residency]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    measured: dict[str, Any] = json.loads(result.stdout)
    return measured


def memory_rows(path: Path, repeats: int) -> list[dict[str, Any]]:
    """One row per runtime and set of children: the median over fresh processes, and the range."""
    every = (8, 7, 6, 5, 4, 3, 2, 1)
    cases = [
        ("onnxruntime", [8], "all"),
        ("onnxruntime", [8, 4, 2, 1], "all"),
        ("onnxruntime", list(every), "all"),
        ("onnxruntime", [8], "lru:2"),
        ("onnxruntime", [8], "memory:64"),
        ("openvino", [8], "all"),
        ("openvino", [8, 4, 2, 1], "all"),
    ]
    rows = []
    for runtime, widths, residency in cases:
        used = list(every) if residency != "all" else widths
        try:
            runs = [fresh(path, runtime, widths, used, residency) for _ in range(repeats)]
        except subprocess.CalledProcessError as error:
            print(f"{runtime} is left out: {error.stderr.strip().splitlines()[-1]}")
            continue
        added = sorted(run["added_mb"] for run in runs)
        rows.append(
            {
                "runtime": runtime,
                "residency": residency,
                "opened": widths,
                "resident": runs[-1]["resident"],
                "added_mb": added[len(added) // 2],
                "range_mb": [added[0], added[-1]],
                "checkpoint_mb": runs[-1]["checkpoint_mb"],
            }
        )
    return rows


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "residency").parse_args(argv)
    repeats, rounds = (1, 3) if options.quick else (5, 40)
    network = subject("resnet18")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.emq"
        save_checkpoint(path, network.checkpoint)
        rows = memory_rows(path, repeats)
    by_case = {(row["runtime"], row["residency"], len(row["opened"])): row["added_mb"] for row in rows}
    above = by_case["onnxruntime", "all", 4] - by_case["onnxruntime", "all", 1]

    image = network.images(1)
    with OnnxRuntime(network.checkpoint, [8], threads=1) as alone:
        among = OnnxRuntime(network.checkpoint, [8, 4, 2, 1], threads=1)
        samples = interleave({"alone": partial(alone, image), "among four": partial(among, image)}, rounds, BLOCK)
        among.close()
    ratio = median_ratio(samples["among four"], samples["alone"], BLOCK)

    columns = ("runtime", "residency", "resident", "added MB", "range")
    shown = [
        (
            row["runtime"],
            row["residency"],
            ",".join(row["resident"]),
            f"{row['added_mb']:.1f}",
            "{:.1f} to {:.1f}".format(*row["range_mb"]),
        )
        for row in rows
    ]
    show("Memory of resident children, ResNet-18 at 224, fresh processes", columns, shown)
    print(f"four above one: {above:.1f} MB, {verdict(above, ABOVE_ONE_BOUND_MB)}")
    print(f"latency among four / alone: {with_interval(ratio)}")
    write(
        options.json,
        "residency",
        options.quick,
        rows,
        four_above_one_mb=above,
        bound_mb=ABOVE_ONE_BOUND_MB,
        holds=above <= ABOVE_ONE_BOUND_MB,
        latency_ratio=ratio,
        latency_ms={name: percentiles(taken) for name, taken in samples.items()},
    )


if __name__ == "__main__":
    main()

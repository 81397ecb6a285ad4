"""The native runtime beside onnxruntime's int8: latency of every child, interleaved in one run, one thread.

``python -m benchmarks.native`` takes what ``EMQ_ISA`` names, else the best instruction set of the processor. Ratios are
time in onnxruntime at 8 bits by time of the child in the native runtime: above 1 is faster. Networks are made anew
between creations, and intervals are taken over those.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks.common import arguments, interleave_anew, show, subject, with_interval, write
from emqdeploy.format.child import Child, parse_children
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import NativeNetwork, instruction_sets

CHILDREN = parse_children("1a2,1a4,2a2,2a4,4a4,1,2,4,8")
NETWORKS = ("resnet18", "resnet20")
BASE = "onnxruntime, 8"


def measure(model: str, quick: bool) -> list[dict[str, Any]]:
    """The rows of a network."""
    found = subject(model)
    checkpoint, image = found.checkpoint_of(CHILDREN), found.images(1)
    kernels: dict[Child, str] = {}

    def opened() -> dict[str, Callable[[], object]]:
        native = NativeRuntime(checkpoint, threads=1)
        base = open_runtime(checkpoint, "onnxruntime", children=["8"], threads=1)
        for child in CHILDREN:
            ways = Counter(layer.computed_as for layer in native.precision(child))
            kernels[child] = ", ".join(f"{count} {way}" for way, count in ways.most_common())
        runs: dict[str, Callable[[], object]] = {BASE: partial(base.run, image)}
        return runs | {child.name: partial(native.run, image, child) for child in CHILDREN}

    creations, rounds, block = (2, 2, 2) if quick else (10, 4, 4)
    taken = interleave_anew(opened, creations, rounds, block)
    size_mb = NativeNetwork(checkpoint, threads=1).size_bytes / 1e6
    rows = []
    for child in CHILDREN:
        ratio = median_ratio(taken[BASE], taken[child.name], block=rounds * block)
        row = {"model": model, "child": child.name, "latency_ms": percentiles(taken[child.name]), "ratio": ratio}
        rows.append(row | {"base_ms": percentiles(taken[BASE]), "kernels": kernels[child], "all_children_mb": size_mb})
    return rows


def main() -> None:
    """Measures, prints and writes."""
    options = arguments(__doc__, "native").parse_args()
    instructions = os.environ.get("EMQ_ISA") or instruction_sets()[0]
    rows = [row for model in NETWORKS for row in measure(model, options.quick)]
    shown = [
        (row["model"], row["child"], row["latency_ms"]["p50"], with_interval(row["ratio"]), row["kernels"])
        for row in rows
    ]
    columns = ("network", "child", "p50, ms", "onnxruntime int8 / native", "layers")
    show(f"Native kernels ({instructions}) and onnxruntime's int8, one thread", columns, shown)
    write(options.json, "native", options.quick, rows, instructions=instructions)


if __name__ == "__main__":
    main()

"""The native kernels beside onnxruntime's int8: every child on every instruction set, in both hosts.

``python -m benchmarks.native`` times, interleaved and one image at a time, every instruction set of this processor (or
``--isa NAME``) with one thread, the best one with two as well, and our operators inside onnxruntime. Ratios are to
onnxruntime at 8 bits with as many threads, and to child 8 of the same kernels; above 1 is faster. Networks are made
anew between creations, and intervals are taken over those.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnxruntime

from benchmarks import native_page
from benchmarks.common import Subject, arguments, interleave_anew, show, subject, with_interval, write
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.graph.native_graph import native_model
from emqdeploy.graph.selector import selector_values
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import forget_tuning, instruction_sets
from emqdeploy.runtimes.native_operators import register_operators

CHILDREN = parse_children("1a2,1a4,2a2,2a4,4a4,1,2,3,4,8")
ALONE = ("resnet18", "resnet20", "mobilenet_v2")
INSIDE = ("resnet18", "timm/vit_tiny_patch16_224")
BASE = "onnxruntime, 8"
LAST = "8"

Runs = Mapping[str, Callable[[], object]]


def alone(checkpoint: Checkpoint, image: Floats, threads: int) -> tuple[Runs, dict[str, str]]:
    """Runs of every child in the library itself, and how its layers are computed."""
    runtime = NativeRuntime(checkpoint, threads=threads)
    kernels = {}
    for child in CHILDREN:
        ways = Counter(layer.computed_as for layer in runtime.precision(child))
        kernels[child.name] = ", ".join(f"{count} {way}" for way, count in ways.most_common())
    return {child.name: partial(runtime.run, image, child) for child in CHILDREN}, kernels


def inside(checkpoint: Checkpoint, image: Floats, threads: int) -> tuple[Runs, dict[str, str]]:
    """Runs of every child of one graph with our operators in onnxruntime."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    register_operators(options)
    model = native_model(checkpoint, CHILDREN).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])

    def run(value: int) -> object:
        return session.run(None, {"images": image, "bits": np.array([value], np.int64)})

    return {child.name: partial(run, value) for child, value in selector_values(CHILDREN).items()}, {}


def measure(found: Subject, host: str, isa: str, threads: int, quick: bool) -> list[dict[str, Any]]:
    """The rows of a network in a host."""
    checkpoint, image = found.checkpoint_of(CHILDREN), found.images(1)
    kernels: dict[str, str] = {}

    def opened() -> Runs:
        forget_tuning()
        base = open_runtime(checkpoint, "onnxruntime", children=[LAST], threads=threads)
        runs, ways = (alone if host == "alone" else inside)(checkpoint, image, threads)
        kernels.update(ways)
        return {BASE: partial(base.run, image), **runs}

    os.environ["EMQ_ISA"] = isa
    creations, rounds, block = (2, 2, 2) if quick else (10, 4, 4)
    taken = interleave_anew(opened, creations, rounds, block)
    rows = []
    for child in CHILDREN:
        row = {"model": found.model, "host": host, "instructions": isa, "threads": threads, "child": child.name}
        row |= {"latency_ms": percentiles(taken[child.name]), "base_ms": percentiles(taken[BASE])}
        row["ratio"] = median_ratio(taken[BASE], taken[child.name], block=rounds * block)
        row["own_ratio"] = median_ratio(taken[LAST], taken[child.name], block=rounds * block)
        rows.append(row | {"kernels": kernels.get(child.name)})
    return rows


def slower_than_wider(rows: list[dict[str, Any]]) -> float:
    """By how much a child is slower at most than one that is at least as wide in weights and activations."""
    worst = 1.0
    for one in rows:
        for other in rows:
            same = all(one[key] == other[key] for key in ("model", "host", "instructions", "threads"))
            narrow, wide = (parse_children(row["child"])[0] for row in (one, other))
            if same and narrow.bits <= wide.bits and narrow.activations.default <= wide.activations.default:
                worst = max(worst, one["latency_ms"]["p50"] / other["latency_ms"]["p50"])
    return worst


def main() -> None:
    """Measures, prints and writes."""
    parser = arguments(__doc__, "native")
    parser.add_argument("--isa", choices=instruction_sets(), help="this instruction set alone")
    parser.add_argument("--page", action="store_true", help="measure nothing: write what was measured into the page")
    options = parser.parse_args()
    if options.page:
        native_page.write_page()
        return
    best = options.isa or instruction_sets()[0]
    named = [options.isa] if options.isa else [name for name in instruction_sets() if name != "portable"]
    rows: list[dict[str, Any]] = []
    for model in dict.fromkeys((*ALONE, *INSIDE)):
        found = subject(model)
        if model in ALONE:
            for isa in named:
                rows += measure(found, "alone", isa, 1, options.quick)
            rows += measure(found, "alone", best, 2, options.quick)
        if model in INSIDE:
            rows += measure(found, "inside", best, 1, options.quick)
    shown = [
        (
            *(row[key] for key in ("model", "host", "instructions", "threads", "child")),
            row["latency_ms"]["p50"],
            *(with_interval(row[key]) for key in ("ratio", "own_ratio")),
        )
        for row in rows
    ]
    columns = ("network", "host", "isa", "threads", "child", "p50, ms", "onnxruntime int8 / native", "own 8 / native")
    show("Native kernels and onnxruntime's int8, one image at a time", columns, shown)
    print(f"a child is slower than a wider one by at most {100 * (slower_than_wider(rows) - 1):.1f} %")
    write(options.json, "native", options.quick, rows)


if __name__ == "__main__":
    main()

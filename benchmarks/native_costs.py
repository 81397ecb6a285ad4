"""What the native kernels cost beside their latency: opening, memory, switching, and a busy neighbour.

Of a switch the call is timed in Python, right after an inference, beside a call that does nothing: the inference has
pushed Python's own instructions out of the caches, and the library itself only stores a number. The neighbour is a
process that takes one core while two threads compute; its slowdown is compared with that of onnxruntime's int8, in
turns.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median
from typing import Any

from benchmarks.common import Subject, arguments, subject, with_interval, write
from benchmarks.native import ALONE, CHILDREN, LAST, Runs, alone
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.load import load
from emqdeploy.measuring.statistics import median_ratio
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import NativeNetwork, forget_tuning

BASE = "onnxruntime"
THREADS, TURN = 2, 5
SLOWDOWN_BOUND = 1.1


def cost(found: Subject, quick: bool) -> dict[str, Any]:
    """What opening takes, what all children weigh, and what the first inference after a switch takes."""
    image = found.images(1)
    one, every, all_widths = (found.checkpoint_of(c) for c in (parse_children(LAST), CHILDREN, parse_children("1-8")))
    opening = {}
    for name, checkpoint in (("one child", one), (f"{len(CHILDREN)} children", every)):
        times = []
        for _ in range(3 if quick else 11):
            forget_tuning()
            start = time.perf_counter()
            NativeRuntime(checkpoint, threads=1).run(image, checkpoint.network.children[0])
            times.append(1e3 * (time.perf_counter() - start))
        opening[name] = median(times)
    return {
        "model": found.model,
        "first_output_ms": opening,
        "eight_widths_mb": NativeNetwork(all_widths, threads=1).size_bytes / 1e6,
        "first_after_switch": after_switches(every, image, rounds=2 if quick else 15),
    }


def after_switches(checkpoint: Checkpoint, image: Floats, rounds: int) -> dict[str, float]:
    """Of all pairs of children: what the call takes at most, and the first inference after it by a steady one."""
    runtime = NativeRuntime(checkpoint, threads=1)
    steady: dict[Child, list[float]] = {child: [] for child in CHILDREN}
    first: dict[tuple[Child, Child], list[float]] = {}
    switches: list[float] = []
    empty: list[float] = []
    for _ in range(rounds):
        for before in CHILDREN:
            for after in CHILDREN:
                runtime.use(before)
                runtime.run(image)
                start = time.perf_counter_ns()
                runtime.use(after)
                switched = time.perf_counter_ns()
                runtime.run(image)
                ended = time.perf_counter_ns()
                runtime.run(image)
                steady[after].append(time.perf_counter_ns() - ended)
                first.setdefault((before, after), []).append(ended - switched)
                switches.append((switched - start) / 1e3)
                start = time.perf_counter_ns()
                _nothing(after)
                empty.append((time.perf_counter_ns() - start) / 1e3)
    ratios = [median(taken) / median(steady[after]) for (_, after), taken in first.items()]
    return {
        "switch_us": median(switches),
        "empty_call_us": median(empty),
        "largest_ratio": max(ratios),
        "median_ratio": median(ratios),
    }


def _nothing(child: Child) -> None:
    """A call that does nothing."""


def beside_neighbour(found: Subject, rounds: int) -> dict[str, Any]:
    """How much slower two threads are when another process takes one core, by onnxruntime's own slowdown.

    Every round times all of them in turns of a few inferences, first alone and then beside the neighbour.
    """
    checkpoint, image = found.checkpoint_of(CHILDREN), found.images(1)
    base = open_runtime(checkpoint, BASE, children=[LAST], threads=THREADS)
    runs: Runs = {BASE: partial(base.run, image), **alone(checkpoint, image, THREADS)[0]}
    quiet: dict[str, list[float]] = {name: [] for name in runs}
    loaded: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        _turns(runs, quiet)
        with load(1, 600):
            _turns(runs, loaded)
    slower = {name: [b / a for a, b in zip(quiet[name], loaded[name], strict=True)] for name in runs}
    return {
        "model": found.model,
        "threads": THREADS,
        "slowdown": {name: median(values) for name, values in slower.items()},
        "by_onnxruntime": {
            name: median_ratio(values, slower[BASE], block=1) for name, values in slower.items() if name != BASE
        },
    }


def _turns(runs: Runs, medians_ms: dict[str, list[float]]) -> None:
    """Adds the median of a turn of every run."""
    for name, run in runs.items():
        run()
        taken = []
        for _ in range(TURN):
            start = time.perf_counter_ns()
            run()
            taken.append((time.perf_counter_ns() - start) / 1e6)
        medians_ms[name].append(median(taken))


def main() -> None:
    """Measures, prints and writes."""
    options = arguments(__doc__, "native_costs").parse_args()
    rows = [cost(subject(model), options.quick) for model in ALONE]
    beside = beside_neighbour(subject("resnet18"), 2 if options.quick else 20)
    for row in rows:
        print(row)
    print(f"slowdown beside a busy process, {THREADS} threads: {beside['slowdown']}")
    for name, ratio in beside["by_onnxruntime"].items():
        print(f"child {name}, by onnxruntime's slowdown: {with_interval(ratio)} (bound {SLOWDOWN_BOUND})")
    write(options.json, "native_costs", options.quick, rows, neighbour=beside)


if __name__ == "__main__":
    main()

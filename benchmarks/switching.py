"""What a switch of precision costs, on ResNet-18 at 224 pixels, and what a start from the file costs.

* ``set_bits`` between resident children (bound: p99 0.1 ms);
* the first output after a switch, the switch included, against a steady one (bound: 1.10x, upper end of the interval);
* building a child that is not resident from the codes in memory (bound: median 20 ms), and its parts;
* ``set_bits`` to a child that was prefetched: what is left to wait for;
* cold load: a fresh process, the file dropped from the page cache, to the loaded checkpoint (bound: 60 ms from the
  first read) and to the first output.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, show, subject, timed, verdict, with_interval, write
from benchmarks.tree_worker import drop_from_page_cache
from emqdeploy.format.emq import Checkpoint, save_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options

SWITCH_BOUND_MS = 0.1
FIRST_OUTPUT_BOUND = 1.10
BUILD_BOUND_MS = 20.0
COLD_BOUND_MS = 60.0

_COLD = """
import json, sys, time
start = time.perf_counter_ns()
marks = {}
def mark(name):
    marks[name] = (time.perf_counter_ns() - start) / 1e6
import numpy as np
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
import onnxruntime
mark("imports")
begin = time.perf_counter_ns()
bits = int(sys.argv[2]) or None
checkpoint = load_checkpoint(sys.argv[1], bits)
marks["load of the checkpoint alone"] = (time.perf_counter_ns() - begin) / 1e6
mark("checkpoint")
runtime = OnnxRuntime(checkpoint, children=[bits or 8])
mark("session")
runtime(np.zeros((1, *runtime.input_shape), np.float32))
mark("first_output")
print(json.dumps(marks))
"""


def switch_calls(runtime: OnnxRuntime, calls: int) -> list[float]:
    """Milliseconds of single ``set_bits`` calls, each to a random other resident child."""
    widths = [child.bits for child in runtime.resident]
    steps = np.random.default_rng(0).integers(1, len(widths), size=calls)
    order = [widths[index] for index in np.cumsum(steps) % len(widths)]
    return [timed(partial(runtime.set_bits, bits))[0] for bits in order]


def first_outputs(
    runtime: OnnxRuntime, widths: Sequence[int], image: Floats, rounds: int
) -> tuple[list[float], list[float]]:
    """Milliseconds of switch and first output, and of steady outputs at the same widths, interleaved.

    A switch to a child that has not run for a while reads its weights from memory, not from the cache: the more
    children take turns, the likelier.

    Returns:
        for each round as many numbers as there are widths.
    """
    first, steady = [], []
    random = np.random.default_rng(0)
    for _ in range(rounds):
        # Two widths alternate; a random order would now and then ask for the one in use, which is no switch.
        for column in range(2) if len(widths) == 2 else random.permutation(len(widths)):

            def switch_and_run(bits: int = widths[column]) -> None:
                runtime.set_bits(bits)
                runtime(image)

            first.append(timed(switch_and_run)[0])
            runtime(image)
            steady.append(timed(partial(runtime, image))[0])
    return first, steady


def builds(checkpoint: Checkpoint, count: int) -> dict[str, list[float]]:
    """Milliseconds of making a child resident through the runtime, and of the two parts done apart."""
    parts = ("set_bits", "integers and biases", "session", "set_bits, prefetched")
    times: dict[str, list[float]] = {name: [] for name in parts}
    *others, home = checkpoint.network.children
    scratch = np.zeros(checkpoint.network.weight_count(), np.uint8)
    with OnnxRuntime(checkpoint, children=[home]) as runtime:
        for index in range(count + 1):
            child = others[index % len(others)]
            switch = partial(runtime.set_bits, child.bits)
            whole, _ = timed(switch)
            runtime.use(home)
            runtime.evict(child)
            runtime.prefetch(child)
            time.sleep(0.1)  # the application goes on with something else
            waiting, _ = timed(switch)
            runtime.use(home)
            runtime.evict(child)
            deriving, arrays = timed(partial(checkpoint.network.initializers, child, scratch))
            creating, session = timed(partial(create_session, checkpoint.skeleton, session_options(), arrays))
            del arrays, session
            if index > 0:  # the first one warms up
                for name, value in zip(times, (whole, deriving, creating, waiting), strict=True):
                    times[name].append(value)
    return times


def cold_starts(path: Path, bits: int | None, count: int) -> dict[str, list[float]]:
    """Milliseconds from the start of a fresh interpreter's first statement to each stage."""
    stages: dict[str, list[float]] = {}
    for _ in range(count):
        drop_from_page_cache(path)
        command = [sys.executable, "-c", _COLD, str(path), str(bits or 0)]
        result = subprocess.run(command, check=True, capture_output=True, text=True)
        for name, value in json.loads(result.stdout).items():
            stages.setdefault(name, []).append(value)
    return stages


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "switching").parse_args(argv)
    rounds, built, starts = (4, 7, 2) if options.quick else (60, 70, 10)
    network = subject("resnet18")
    rows: list[dict[str, Any]] = []
    notes: dict[str, str] = {}

    with OnnxRuntime(network.checkpoint) as runtime:
        calls = percentiles(switch_calls(runtime, 10_000))
        rows.append({"what": "set_bits, resident", "time_ms": calls, "bound_ms": SWITCH_BOUND_MS})
        rows[-1]["holds"] = calls["p99"] <= SWITCH_BOUND_MS
        notes["set_bits, resident"] = f"{verdict(calls['p99'], SWITCH_BOUND_MS)} at p99"
        image = network.images(1)
        for widths in ((2, 8), (1, 2, 4, 8), runtime.available_bits):
            # The same number of switches for two widths as for all of them.
            first, steady = first_outputs(runtime, widths, image, rounds * 8 // len(widths))
            ratio = median_ratio(first, steady, len(widths))
            name = f"among {len(widths)} widths"
            rows.append({"what": f"steady output, {name}", "time_ms": percentiles(steady)})
            rows.append({"what": f"switch and first output, {name}", "time_ms": percentiles(first)})
            rows[-1] |= {"ratio_to_steady": ratio}
            rows[-1] |= {"bound_ratio": FIRST_OUTPUT_BOUND, "holds": ratio["high"] <= FIRST_OUTPUT_BOUND}
            notes[rows[-1]["what"]] = f"{with_interval(ratio)}; {verdict(ratio['high'], FIRST_OUTPUT_BOUND)}"

    parts = builds(network.checkpoint, built)
    for name, values in parts.items():
        rows.append({"what": f"build: {name}", "time_ms": percentiles(values)})
    build = percentiles(parts["set_bits"])["p50"]
    rows[-len(parts)] |= {"bound_ms": BUILD_BOUND_MS, "holds": build <= BUILD_BOUND_MS}
    notes["build: set_bits"] = f"{verdict(build, BUILD_BOUND_MS)} at p50"

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet18.emq"
        save_checkpoint(path, network.checkpoint)
        for bits in (None, 4):
            for stage, values in cold_starts(path, bits, starts).items():
                what = f"cold start, {'all widths' if bits is None else '4 bit'}: {stage}"
                rows.append({"what": what, "time_ms": percentiles(values)})
                if stage == "load of the checkpoint alone":
                    cold = rows[-1]["time_ms"]["p50"]
                    rows[-1] |= {"bound_ms": COLD_BOUND_MS, "holds": cold <= COLD_BOUND_MS}
                    notes[what] = f"{verdict(cold, COLD_BOUND_MS)} at p50"

    columns = ("p50", "p99", "samples")
    shown = [(row["what"], *(row["time_ms"][key] for key in columns), notes.get(row["what"], "")) for row in rows]
    show("Switching, ResNet-18 at 224", ("what", "p50 ms", "p99 ms", "samples", "bound"), shown)
    write(options.json, "switching", options.quick, rows)


if __name__ == "__main__":
    main()

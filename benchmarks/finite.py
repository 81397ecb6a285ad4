"""What looking at every pixel costs: latency of small networks with and without `check_finite`, in turns.

``python -m benchmarks.finite`` times one image in one thread, in onnxruntime and in the native runtime, at 8 bits.
Runtimes are made anew between creations; a share above 1 % is why the check is off unless somebody asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

from benchmarks.common import Subject, arguments, interleave_anew, show, subject, verdict, with_interval, write
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import library_path

BOUND = 1.01
MODELS = ("resnet8", "resnet20")
BLOCK = 50


def calls(found: Subject, name: str, opened: ExitStack) -> dict[str, Callable[[], object]]:
    """A request of one image, with the check and without it, to a runtime each."""
    image = found.images(1)
    made: dict[str, Callable[[], object]] = {}
    for what in ("off", "on"):
        runtime = opened.enter_context(open_runtime(found.checkpoint, name, threads=1))
        runtime.check_finite = what == "on"
        made[what] = partial(runtime.run, image)
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "finite").parse_args(argv)
    creations, rounds = (2, 2) if options.quick else (12, 6)
    rows: list[dict[str, Any]] = []
    for model in MODELS:
        found = subject(model)
        for name in ("onnxruntime", *(["native"] if library_path() is not None else [])):
            with ExitStack() as opened:
                make = partial(calls, found, name, opened)
                samples = interleave_anew(make, creations, rounds, BLOCK)
            ratio = median_ratio(samples["on"], samples["off"], rounds * BLOCK)
            times = {what: percentiles(taken) for what, taken in samples.items()}
            rows.append({"model": model, "runtime": name, **times, "on_to_off": ratio, "bound": BOUND})
    shown = [
        (
            f"{row['model']} in {row['runtime']}",
            *(row[what]["p50"] for what in ("off", "on")),
            with_interval(row["on_to_off"]),
            verdict(row["on_to_off"]["high"], BOUND),
        )
        for row in rows
    ]
    show("One image, 8 bits, one thread, ms", ("network", "check off", "on", "on / off [95 %]", "upper end"), shown)
    write(options.json, "finite", options.quick, rows)


if __name__ == "__main__":
    main()

"""Cost of a quantized training step against the float step: ResNet-8 in batches of 64, ResNet-20 in batches of 128.

Images of 32 x 32; forward, loss, backward and optimizer step of one child on the CPU, in float32 and in bfloat16
(``--amp bf16``), eager (bound 1.2x of the float step of the same kind) and, with ``--compile``, compiled (bound 1.1x of
the compiled float step). Also counted: operators that a step starts, which is what it costs on a GPU. Freed memory is
kept, as in training; compiled networks store channels last, without which the compiler transposes every tensor that it
saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import arguments, interleave, show, subject, verdict, with_interval, write
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.training.memory import keep_freed_memory

BOUNDS = {"eager": 1.2, "compiled": 1.1}
BATCHES = {"resnet8": 64, "resnet20": 128}
FLOAT_WIDTH = 32
BLOCK = 2

Step = Callable[[], None]


def step_of(model: str, width: int, mixed: bool, compiled: bool) -> Step:
    """Returns one optimizer step at a weight width; ``mixed`` computes in bfloat16 where torch does."""
    found = subject(model)
    network: Any = found.network
    images = torch.from_numpy(found.images(BATCHES[model]))
    labels = torch.arange(len(images)) % 10
    if compiled:
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, nesterov=True)

    def step() -> None:
        network.train()
        network.set_bits(width)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed, cache_enabled=False):
            logits = forward(images).float()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits, labels).backward()
        optimizer.step()

    return step


def operators(step: Step) -> int:
    """Counts what a step asks torch for, views and what operators call in turn included."""
    step()
    with profile(activities=[ProfilerActivity.CPU]) as taken:
        step()
    return sum(event.count for event in taken.key_averages() if event.key.startswith("aten::"))


def measure(model: str, kind: str, widths: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Times the steps of a network in turns; returns a row for each."""
    steps = {
        (number, width): step_of(model, width, number == "bfloat16", kind == "compiled")
        for number in ("float32", "bfloat16")
        for width in (FLOAT_WIDTH, *widths)
    }
    names = {f"{number} {width}": step for (number, width), step in steps.items()}
    counts = {name: operators(step) for name, step in names.items()}
    samples = interleave(names, rounds, BLOCK)
    return [
        {
            "model": model,
            "batch": BATCHES[model],
            "kind": kind,
            "arithmetic": number,
            "weight_bits": width,
            "time_ms": percentiles(samples[f"{number} {width}"]),
            "to_float_alike": median_ratio(samples[f"{number} {width}"], samples[f"{number} {FLOAT_WIDTH}"], BLOCK),
            "operators": counts[f"{number} {width}"],
        }
        for number, width in steps
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "train_step")
    parser.add_argument("--compile", action="store_true", help="also compile (takes minutes)")
    parser.add_argument("--models", nargs="+", choices=list(BATCHES), default=list(BATCHES))
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args(argv)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    rows: list[dict[str, Any]] = []
    for model in options.models:
        for kind in BOUNDS if options.compile else ("eager",):
            widths = (1, 4, 8) if kind == "eager" and not options.quick else (4,)
            rows += measure(model, kind, widths, rounds=2 if options.quick else 8)
    table = []
    for row in rows:
        ratio = row["to_float_alike"]
        holds = verdict(ratio["high"], BOUNDS[row["kind"]]) if row["weight_bits"] != FLOAT_WIDTH else ""
        what = f"{row['model']}, {row['kind']}, {row['arithmetic']}, {row['weight_bits']} bits"
        table.append((what, row["time_ms"]["p50"], with_interval(ratio), holds, row["operators"]))
    columns = ("step", "p50 ms", "to float, same kind", "upper end", "operators")
    show(f"Training step, {options.threads} threads", columns, table)
    write(options.json, "train_step", options.quick, rows, threads=options.threads)


if __name__ == "__main__":
    main()

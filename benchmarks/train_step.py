"""Cost of a quantized training step against the float step: ResNet-20 at 32 x 32, batch 128, on the CPU.

Forward, loss, backward and optimizer step of one child; eager (bound 1.6x) and, with ``--compile``, compiled
(bound 1.3x of the compiled float step; the eager float step stands beside it). Freed memory is kept, as in training;
compiled networks store channels last, without which the compiler transposes every tensor that it saves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.common import arguments, interleave, show, subject, verdict, with_interval, write
from emqdeploy.measuring.statistics import median_ratio, percentiles
from emqdeploy.training.memory import keep_freed_memory

BOUND_EAGER, BOUND_COMPILED = 1.6, 1.3
BATCH = 128
BLOCK = 2


def step_of(network: Any, bits: int, images: torch.Tensor, labels: torch.Tensor, compiled: bool) -> Callable[[], None]:
    """Returns one optimizer step at a weight width."""
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, nesterov=True)
    if compiled:
        network, images = network.to(memory_format=torch.channels_last), images.to(memory_format=torch.channels_last)
    forward = torch.compile(network) if compiled else network

    def step() -> None:
        network.train()
        network.set_bits(bits)
        loss = F.cross_entropy(forward(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "train_step")
    parser.add_argument("--compile", action="store_true", help="also compile (takes minutes)")
    options = parser.parse_args(argv)
    keep_freed_memory()
    found = subject("resnet20")
    images = torch.from_numpy(found.images(BATCH))
    labels = torch.arange(BATCH) % 10
    widths = (2, 8) if options.quick else (1, 2, 4, 8)
    steps = {f"eager {bits}": step_of(found.network, bits, images, labels, False) for bits in (32, *widths)}
    if options.compile:
        for bits in (32, 4):
            steps[f"compiled {bits}"] = step_of(subject("resnet20").network, bits, images, labels, True)
            steps[f"compiled {bits}"]()
    samples = interleave(steps, rounds=3 if options.quick else 12, block=BLOCK)
    rows: list[dict[str, Any]] = []
    table = []
    for name, times in samples.items():
        kind, width = name.split()
        bound = BOUND_EAGER if kind == "eager" else BOUND_COMPILED
        ratio = median_ratio(times, samples[f"{kind} 32"], BLOCK)
        eager = median_ratio(times, samples["eager 32"], BLOCK)
        holds = verdict(ratio["high"], bound) if width != "32" else ""
        rows.append({"step": name, "time_ms": percentiles(times), "to_float_alike": ratio, "to_eager_float": eager})
        table.append((name, rows[-1]["time_ms"]["p50"], with_interval(ratio), with_interval(eager), holds))
    columns = ("step, bits", "p50 ms", "to float, same mode", "to eager float", "upper end")
    show(f"Training step, ResNet-20, batch {BATCH}, {torch.get_num_threads()} threads", columns, table)
    write(options.json, "train_step", options.quick, rows)


if __name__ == "__main__":
    main()

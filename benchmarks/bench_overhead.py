"""What the bench's own loop costs, measured on networks that do nothing (bound: 20 microseconds per inference).

Two figures: what it adds to every recorded latency (the sample that an empty call gives), and what an inference costs
in wall-clock time, warm-up of each block, switching and the look at the machine included.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import EVERY, arguments, show, verdict, write
from emqdeploy.format.bundle import CHILD
from emqdeploy.format.child import Child
from emqdeploy.format.grid import Floats
from emqdeploy.measuring.devices import find_device
from emqdeploy.measuring.disturbance import Monitor
from emqdeploy.measuring.opening import Opening
from emqdeploy.measuring.scenarios.single import BLOCK, take_turns
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.statistics import percentiles
from emqdeploy.measuring.workbench import Stop, Subject, Workbench
from emqdeploy.progress import silent

BOUND_US = 20.0


class Nothing:
    """A network that answers at once."""

    name = "nothing"

    def __init__(self) -> None:
        self.child = EVERY[-1]
        self._logits = np.zeros((1, 10), np.float32)

    def use(self, child: Child) -> None:
        """Switches at once too."""
        self.child = child

    def __call__(self, images: Floats) -> Floats:
        """Returns the same logits always."""
        return self._logits


def measure(samples: int, subjects: int) -> tuple[list[float], float]:
    """Returns the recorded samples in milliseconds and the microseconds of wall clock per recorded inference."""
    network: Any = Nothing()
    source: Any = None
    opening = Opening("nothing", "nothing")
    rows = [Subject(str(child), CHILD, child, network, source, opening) for child in EVERY[:subjects]]
    device = find_device("cpu")
    images = np.zeros((64, 1, 8, 8), np.float32)
    settings = BenchSettings(samples=samples)
    monitor = Monitor(device.tree, device.readings)
    bench = Workbench(settings, rows, images, None, monitor, silent, Stop())
    start = time.perf_counter()
    taken = take_turns(bench)
    seconds = time.perf_counter() - start
    flat = [sample for series in taken for sample in series]
    return flat, 1e6 * seconds / len(flat)


def main() -> None:
    """Measures, prints and writes the report."""
    parser = arguments(__doc__, Path(__file__).stem)
    options = parser.parse_args()
    samples = 2000 if options.quick else 20_000
    rows = []
    for subjects in (1, 3, 8):
        flat, wall_us = measure(samples, subjects)
        added = percentiles(flat)
        rows.append(
            {
                "networks": subjects,
                "recorded_p50_us": 1e3 * added["p50"],
                "recorded_p99_us": 1e3 * added["p99"],
                "wall_us_per_inference": wall_us,
                "samples": len(flat),
            }
        )
    columns = ("networks", "recorded p50 us", "recorded p99 us", "wall us / inference", "")
    shown = [
        (
            row["networks"],
            row["recorded_p50_us"],
            row["recorded_p99_us"],
            row["wall_us_per_inference"],
            verdict(max(row["recorded_p99_us"], row["wall_us_per_inference"]), BOUND_US),
        )
        for row in rows
    ]
    show("The bench's own cost, on networks that do nothing", columns, shown)
    write(options.json, Path(__file__).stem, options.quick, rows, bound_us=BOUND_US, block=BLOCK)


if __name__ == "__main__":
    main()

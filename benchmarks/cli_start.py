"""Wall time of ``emqdeploy --help`` in a fresh process: the command line must answer at once (bound 0.5 s)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.common import arguments, show, summary, verdict, write

BOUND_S = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "cli_start").parse_args(argv)
    times = []
    for _ in range(3 if options.quick else 20):
        start = time.perf_counter_ns()
        subprocess.run([sys.executable, "-m", "emqdeploy", "--help"], check=True, stdout=subprocess.DEVNULL)
        times.append((time.perf_counter_ns() - start) / 1e6)
    row = {"name": "emqdeploy --help", **summary(times), "bound_ms": 1e3 * BOUND_S}
    # The slowest counts, not the median: nobody waits for a median.
    row |= {"max_ms": max(times), "holds": max(times) <= 1e3 * BOUND_S}
    columns = ("command", "p50 ms", "slowest ms", "bound")
    show("Start", columns, [(row["name"], row["p50_ms"], row["max_ms"], verdict(max(times) / 1e3, BOUND_S) + " s")])
    write(options.json, "cli_start", options.quick, [row])


if __name__ == "__main__":
    main()

"""Wall time of ``emqdeploy --help`` in a fresh process: the command line must answer at once (bound 0.2 s)."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence

from benchmarks.common import arguments, show, timed, verdict, write
from emqdeploy.measuring.statistics import percentiles

BOUND_MS = 200.0


def show_help() -> None:
    """Runs the command and throws away what it says."""
    subprocess.run([sys.executable, "-m", "emqdeploy", "--help"], check=True, stdout=subprocess.DEVNULL)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    options = arguments(__doc__, "cli_start").parse_args(argv)
    times = percentiles([timed(show_help)[0] for _ in range(3 if options.quick else 20)])
    # The slowest counts, not the median: nobody waits for a median.
    row = {"name": "emqdeploy --help", "time_ms": times, "bound_ms": BOUND_MS, "holds": times["max"] <= BOUND_MS}
    columns = ("command", "p50 ms", "slowest ms", "bound, ms")
    show("Start", columns, [(row["name"], times["p50"], times["max"], verdict(times["max"], BOUND_MS))])
    write(options.json, "cli_start", options.quick, [row])


if __name__ == "__main__":
    main()

"""What loading costs, measured in a process of its own: ``python -m emqdeploy.measuring.fresh REQUEST``."""

from __future__ import annotations

import contextlib
import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from emqdeploy.format.child import Child
from emqdeploy.measuring.opening import Opening
from emqdeploy.processes import python_command
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.machine import resident_bytes


def cost_of_loading(opening: Opening, children: Sequence[Child]) -> dict[str, Any]:
    """Loads and runs once in a fresh process.

    Args:
        opening: what to load.
        children: those to hold; none for a baseline.

    Returns:
        ``rss_bytes`` (what it added to the process, the runtime's own library excluded; None where the system does
        not tell), ``load_ms`` (file to network), ``first_output_ms``; or ``not_measured`` with the reason.
    """
    request = {"opening": opening.to_dict(), "children": [child.name for child in children]}
    command = python_command("emqdeploy.measuring.fresh", json.dumps(request))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = done.stderr.strip().rpartition("\n")[2]
        return {"not_measured": f"a fresh process could not load it ({last or f'exit code {done.returncode}'})"}
    cost: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return cost


def main() -> None:
    """Prints what loading and one inference cost here."""
    # A Ctrl-C reaches the whole group; it is meant for the bench, which ends after this measurement.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    request = json.loads(sys.argv[1])
    opening, names = Opening(**request["opening"]), request["children"]
    # The runtime's library is loaded beforehand: its own memory is not the network's.
    with contextlib.suppress(ImportError):
        importlib.import_module(find_adapter(opening.runtime).library)
    before = resident_bytes()
    started = time.perf_counter()
    source = opening.open(names or None)
    loaded = time.perf_counter()
    for name in names or (None,):
        if name is not None:
            source.runtime.use(name)
        source.runtime(np.zeros((1, *source.input_shape), np.float32))
    done = time.perf_counter()
    after = resident_bytes()
    cost = {
        "rss_bytes": None if before is None or after is None else after - before,
        "load_ms": 1e3 * (loaded - started),
        "first_output_ms": 1e3 * (done - loaded),
    }
    print(json.dumps(cost))


if __name__ == "__main__":
    main()

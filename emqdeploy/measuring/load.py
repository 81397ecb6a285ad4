"""Load for the adaptive scenario: processes that each take a core, for a bounded time, whatever happens to us."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from emqdeploy.processes import python_code

_BUSY = """
import os, sys, time
parent, end = os.getppid(), time.monotonic() + float(sys.argv[1])
print("busy", flush=True)
while time.monotonic() < end and os.getppid() == parent:
    for _ in range(200_000):
        pass
"""


@contextlib.contextmanager
def load(processes: int, seconds: float) -> Iterator[None]:
    """Keeps so many processes busy while the block runs.

    Each ends by itself after ``seconds``, and at once when this process is gone. The block begins when all are busy.
    """
    command = python_code(_BUSY, str(seconds))
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True) for _ in range(processes)]
    try:
        for process in started:
            assert process.stdout is not None
            process.stdout.readline()
        yield
    finally:
        for process in started:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

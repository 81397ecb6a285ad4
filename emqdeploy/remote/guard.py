"""Runs one job on the device and never outlives the connection; copied there, needs Python 3.6 and nothing else.

It stands in the job's directory next to ``job.json`` (``command``). Standard input is the life line:
the workstation writes to it every few seconds; when it closes or falls silent, the job is ended. ``stop`` asks the job
to finish with what it has. In the end the directory is removed.
"""

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time

SILENCE_S = 20.0
GRACE_S = 3.0


def main():  # type: ignore[no-untyped-def]  # the device's Python may be too old for annotations of today
    """Runs the job; returns its exit code."""
    folder = os.path.dirname(os.path.abspath(__file__))
    with open(os.path.join(folder, "job.json")) as file:
        job = json.load(file)
    for number in (signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, _leave)
    child = None
    try:
        # Whatever the job and its libraries put into temporary files goes with the directory.
        environment = dict(os.environ, TMPDIR=folder)
        child = subprocess.Popen(
            job["command"], cwd=folder, env=environment, stdin=subprocess.DEVNULL, start_new_session=True
        )
        _watch(child)
    finally:
        if child is not None:
            _end(child)
        shutil.rmtree(folder, ignore_errors=True)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _watch(child):  # type: ignore[no-untyped-def]
    """Returns when the job is done or the life line is cut."""
    heard = time.monotonic()
    while child.poll() is None:
        ready, _, _ = select.select([0], [], [], 0.2)
        if ready:
            said = os.read(0, 4096)
            if not said:
                return
            heard = time.monotonic()
            if b"stop" in said:
                os.killpg(child.pid, signal.SIGINT)
        elif time.monotonic() - heard > SILENCE_S:
            return


def _end(child):  # type: ignore[no-untyped-def]
    """Ends the job and everything that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
        except OSError:
            break
        until = time.monotonic() + GRACE_S
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
    child.wait()


def _leave(number, frame):  # type: ignore[no-untyped-def]
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())

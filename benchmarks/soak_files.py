"""Damaged files: each is refused in one sentence or accepted, and nothing else ever happens.

Input number ``n`` of a kind (`benchmarks.soak_kinds`) is always the same. They are read in a forked process under a
limit of memory, which has everything imported already; where it dies or hangs, that input is counted and the next goes
on in another one.
"""

from __future__ import annotations

import os
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from mmap import mmap
from pathlib import Path

from benchmarks.soak_kinds import FILES
from emqdeploy.errors import EmqError

SLOW_S = 5.0
"""Of processor time: what else the machine does is no fault of a reader."""

MEMORY = 4 << 30
OUTCOMES = ("accepted", "refused", "foreign", "slow")
_PATIENCE_S = 120.0
_MEMORY_DISK = Path("/dev/shm")
GOAL = -(-1_000_000 // len(FILES))


def made(kind: str, number: int) -> bytes:
    """The n-th damaged input of a kind."""
    return FILES[kind].make(random.Random(f"{kind} {number}"))


def outcome(kind: str, data: bytes, folder: Path) -> tuple[str, str]:
    """Reads one input: ``accepted``, ``refused`` or ``foreign``, and what was said; a warning is foreign too."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.filterwarnings("ignore", module=r"PIL\.")  # as the command line does
            FILES[kind].read(data, folder)
    except EmqError as error:
        said = str(error)
        clean = all(ord(letter) >= 32 for letter in said)
        return ("refused", said) if clean else ("foreign", f"more than a sentence: {said!r}")
    except Exception:
        return "foreign", traceback.format_exc()
    return "accepted", ""


def sit(kind: str, first: int, count: int, found: Path) -> Counter[str]:
    """Reads ``count`` inputs of a kind from number ``first`` on.

    Args:
        kind: a name in `FILES`.
        first: number of the first input.
        count: how many.
        found: folder for inputs that showed a fault.

    Returns:
        how many had which outcome: those in `OUTCOMES`, and ``crashed``.
    """
    FILES[kind].needs()
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=_MEMORY_DISK if _MEMORY_DISK.is_dir() else None) as folder:
        # Libraries are loaded before the process is forked, and before its limit counts.
        outcome(kind, b"", Path(folder))
        board = mmap(-1, 8 * (1 + len(OUTCOMES)))
        done = memoryview(board).cast("q")  # the number that is being read, and the counts
        end, done[0] = first + count, first
        while done[0] < end:
            child = os.fork()
            if child == 0:
                _work(kind, end, Path(folder), found, done)
            code = _wait(child, done)
            if code != 0:
                said = "slow" if code == -signal.SIGALRM else "crashed"
                counts[said] += 1
                keep(found, kind, done[0], said, f"exit code {code}")
                done[0] += 1
        counts.update(dict(zip(OUTCOMES, done[1:], strict=True)))
        done.release()
    return +counts


def _work(kind: str, end: int, folder: Path, found: Path, done: memoryview[int]) -> None:
    """The forked process: reads inputs up to a number; the board says how far it is."""
    try:
        if "libasan" not in os.environ.get("LD_PRELOAD", ""):  # a sanitizer keeps terabytes of addresses for itself
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number in range(done[0], end):
            done[0] = number
            data = made(kind, number)
            began = time.process_time()
            result, said = outcome(kind, data, folder)
            if (taken := time.process_time() - began) > SLOW_S:
                result, said = "slow", f"{taken:.1f} s"
            if result in ("foreign", "slow"):
                keep(found, kind, number, result, said)
            done[1 + OUTCOMES.index(result)] += 1
        done[0] = end
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(70)


def _wait(child: int, done: memoryview[int]) -> int:
    """Waits for a process that gets on; its exit code, that of an alarm where it hung and was killed."""
    seen, since = done[0], time.monotonic()
    try:
        while time.monotonic() - since < _PATIENCE_S:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            if done[0] != seen:
                seen, since = done[0], time.monotonic()
            time.sleep(0.02)
    except BaseException:
        os.kill(child, signal.SIGKILL)
        raise
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGALRM


def keep(found: Path, kind: str, number: int, result: str, said: str) -> None:
    """Leaves an input and what happened with it."""
    found.mkdir(parents=True, exist_ok=True)
    (found / f"{kind}-{number}").write_bytes(made(kind, number))
    (found / f"{kind}-{number}.txt").write_text(f"{result}\n{said}\n", errors="replace")

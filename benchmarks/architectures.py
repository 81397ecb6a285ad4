"""Architectures from random float weights to verified int8 files; writes `docs/architectures.md`: what became of each.

Every network runs through trace, `quantize`, `export` and `verify` in a process of its own, with limits of memory and
time; results are JSON lines, so a run that was stopped goes on with ``--resume``. Weights are random with settled
statistics and images are small: what is shown is which networks are taken, what computes their layers, and how close
the integers come to the untouched float model beside a naive int8 of the same network. It says nothing about accuracy.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import signal
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict
from fnmatch import fnmatch
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from benchmarks.architecture_page import page, summary
from benchmarks.architecture_trial import attempt
from benchmarks.common import RESULTS
from benchmarks.outcomes import CRASH
from benchmarks.pictures import Counts, make_pictures
from benchmarks.zoo import Architecture, architectures
from emqdeploy.data.workers import usable_cores

PAGE = Path(__file__).parent.parent / "docs" / "architectures.md"

PROCESSES = multiprocessing.get_context("forkserver")
"""Each network gets a fresh process, forked off one that has loaded the packages and done nothing else."""

PROCESSES.set_forkserver_preload(["benchmarks.architecture_trial", "timm", "onnxscript", "onnxruntime"])

MEMORY_BYTES, SECONDS = 10 << 30, 300
"""What a network may use; seconds are those of the processor."""

SILENCE = 600
"""Seconds without any processor time after which a network is given up; a busy machine alone is no reason."""


def main(argv: Sequence[str] | None = None) -> None:
    """Tries the architectures and writes the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--only", nargs="+", default=["*"], metavar="PATTERN", help="names, such as 'timm/*' or '*vit*'"
    )
    parser.add_argument("--list", action="store_true", help="print the names and stop")
    parser.add_argument("--resume", action="store_true", help="keep the results that there are")
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photos to use; smooth pictures by default")
    parser.add_argument("--jobs", type=int, default=usable_cores(), help="processes at a time; every core by default")
    parser.add_argument("--json", type=Path, default=RESULTS / "architectures.jsonl", help="where results are kept")
    parser.add_argument("--out", type=Path, default=PAGE, help="the page to write")
    options = parser.parse_args(argv)
    every = architectures()
    wanted = [one for one in every if any(fnmatch(one.name, only) for only in options.only)]
    if options.list:
        print("\n".join(f"{one.name:45} {one.kind:22} {one.size}" for one in wanted))
        return
    os.environ |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # of the processes to come
    rows = read_rows(options.json)
    todo = [one for one in wanted if not (options.resume and one.name in rows)]
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(options.jobs) as pool:
        pictures = make_pictures(Path(folder), options.images)
        for done in as_completed([pool.submit(attempt_apart, one, pictures) for one in todo]):
            row = done.result()
            rows[row["name"]] = row
            write_rows(options.json, in_order(rows, every))
            print(summary(row), flush=True)
    options.out.write_text(page(in_order(rows, every), Counts().more))
    print(f"wrote {options.out}")


def read_rows(path: Path) -> dict[str, dict[str, Any]]:
    """Results by name; none where nothing was tried yet."""
    lines = path.read_text().splitlines() if path.exists() else []
    return {row["name"]: row for row in map(json.loads, lines)}


def in_order(rows: dict[str, dict[str, Any]], every: Sequence[Architecture]) -> list[dict[str, Any]]:
    """Results in the order of the list; what is on it no more is left out."""
    return [rows[one.name] for one in every if one.name in rows]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Replaces the results, all at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text("".join(json.dumps(row) + "\n" for row in rows))
    beside.replace(path)


def attempt_apart(architecture: Architecture, pictures: Path) -> dict[str, Any]:
    """Tries an architecture in a process of its own; what ends that process is a crash of the architecture."""
    started = time.monotonic()
    row = {"name": architecture.name, "kind": architecture.kind, "size": architecture.size, "outcome": CRASH}
    receiver, sender = PROCESSES.Pipe(duplex=False)
    process = PROCESSES.Process(target=_attempt, args=(architecture, pictures, sender))
    process.start()
    sender.close()
    try:
        row |= receiver.recv() if _answers(process.pid, receiver) else {"sentence": "it does nothing any more"}
    except EOFError:
        process.join()
        row |= {"sentence": _ending(process.exitcode)}
    process.kill()
    process.join()
    return row | {"wall_seconds": round(time.monotonic() - started, 1)}


def _answers(pid: int | None, receiver: Connection) -> bool:
    """Waits for an answer, or an end, as long as its process computes; how long it may do that has a limit."""
    before = ""
    while not receiver.poll(SILENCE):
        now = " ".join(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])
        if now == before:
            return False
        before = now
    return True


def _ending(code: int | None) -> str:
    stopped = code == -signal.SIGXCPU
    return f"stopped after {SECONDS} s of processor time" if stopped else f"its process ended with {code}"


def _attempt(architecture: Architecture, pictures: Path, sender: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 1))
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # what packages warn of
    torch.set_num_threads(1)
    sender.send(asdict(attempt(architecture, pictures)))


if __name__ == "__main__":
    main()

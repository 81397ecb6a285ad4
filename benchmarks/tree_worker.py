"""The worker of `benchmarks.compare_trees`: measures the checkout that is first on its path, whichever that is.

It runs as a script, so `emqdeploy` and `benchmarks` are those of the checkout, not those beside this file, and it keeps
to what every checkout offers; what has moved is looked up. Everything runs in one thread on one core.

Its first line on standard output names the package that it imported. Then it reads requests,
``{"what": "latency", "count": 20}``, and answers each with a line of so many numbers: milliseconds, for `memory` MB.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cached_property, partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

SMALL, LARGE = "resnet20", "resnet18"
BITS = 4
SWITCHES = 1000
BATCH = 64


class Measures:
    """What can be asked for: each is a method that warms up, then yields numbers without end.

    Args:
        folder: where the checkout's checkpoints lie; those that are missing are written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def latency(self) -> Iterator[float]:
        """A resident session at one child, one image."""
        self._runtime.set_bits(BITS)
        call = partial(self._runtime, self._image)
        call()
        while True:
            yield milliseconds(call)

    def switches(self) -> Iterator[float]:
        """Many switches between resident children."""
        order = list(islice(cycle((1, 2, 4, 8)), SWITCHES))

        def switch() -> None:
            for bits in order:
                self._runtime.set_bits(bits)

        switch()
        while True:
            yield milliseconds(switch)

    def first_output(self) -> Iterator[float]:
        """A switch and the first output after it."""

        def switch_and_run(bits: int) -> None:
            self._runtime.set_bits(bits)
            self._runtime(self._image)

        for bits in cycle(range(1, 9)):
            yield milliseconds(partial(switch_and_run, bits))

    def build(self) -> Iterator[float]:
        """Making a child that is not resident from the codes in memory."""
        runtime = self._runtime
        for number, bits in enumerate(cycle(range(1, 8))):
            runtime.set_bits(8)
            runtime.evict(bits)
            taken = milliseconds(partial(runtime.set_bits, bits))
            if number > 0:  # the first one warms up
                yield taken

    def load_all(self) -> Iterator[float]:
        """Loading all children of a file that is not in the page cache."""
        return self._load(None)

    def load_one(self) -> Iterator[float]:
        """Loading one child of it."""
        return self._load(BITS)

    def train_step(self) -> Iterator[float]:
        """Forward, loss, backward and optimizer step, eager."""
        import torch
        import torch.nn.functional as F

        from benchmarks.common import subject
        from emqdeploy.training.memory import keep_freed_memory

        keep_freed_memory()  # until the process ends, in both checkouts alike
        torch.set_num_threads(1)
        found = subject("resnet8")
        network = found.network
        images, labels = torch.from_numpy(found.images(BATCH)), torch.arange(BATCH) % 10
        optimizer = torch.optim.SGD(network.parameters(), lr=1e-6, momentum=0.9, nesterov=True)

        def step() -> None:
            network.train()
            network.set_bits(BITS)
            loss = F.cross_entropy(network(images), labels)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()

        step()
        while True:
            yield milliseconds(step)

    def show_help(self) -> Iterator[float]:
        """The command line's help, in a fresh process."""
        command = [sys.executable, "-m", "emqdeploy", "--help"]
        while True:
            yield milliseconds(partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL))

    def memory(self) -> Iterator[float]:
        """Megabytes that four resident children add to a fresh process."""
        from benchmarks.residency import fresh

        widths = [8, 4, 2, 1]
        while True:
            yield fresh(self._path(LARGE), "onnxruntime", widths, widths, "all")["added_mb"]

    def _load(self, bits: int | None) -> Iterator[float]:
        path, load = self._path(LARGE), checkpoints().load_checkpoint
        load(path, bits)
        while True:
            drop_from_page_cache(path)
            yield milliseconds(partial(load, path, bits))

    def _path(self, model: str) -> Path:
        path = self._folder / f"{model}.emq"
        if not path.exists():
            from benchmarks.common import subject

            checkpoints().save_checkpoint(path, subject(model).checkpoint)
        return path

    @cached_property
    def _runtime(self) -> Any:
        from emqdeploy.runtimes.base import open_runtime

        return open_runtime(checkpoints().load_checkpoint(self._path(SMALL)), threads=1)

    @cached_property
    def _image(self) -> Any:
        import numpy as np

        return np.random.default_rng(0).standard_normal((1, *self._runtime.input_shape), np.float32)


def checkpoints() -> Any:
    """The module of the checkout that reads and writes ``.emq``."""
    moved = importlib.util.find_spec("emqdeploy.format") is not None
    return importlib.import_module("emqdeploy.format.emq" if moved else "emqdeploy.checkpoint")


def drop_from_page_cache(path: Path) -> None:
    """Makes the next read of a file come from the disk, where the system lets us."""
    if hasattr(os, "posix_fadvise"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def milliseconds(function: Callable[[], object]) -> float:
    """Runs a function once."""
    start = time.perf_counter_ns()
    function()
    return (time.perf_counter_ns() - start) / 1e6


def main() -> None:
    """Answers requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not come between
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    package = importlib.import_module("emqdeploy")
    print(json.dumps(package.__file__), file=answers, flush=True)
    measures = Measures(Path(sys.argv[1]))
    for line in sys.stdin:
        request = json.loads(line)
        numbers = getattr(measures, request["what"])()
        print(json.dumps(list(islice(numbers, request["count"]))), file=answers, flush=True)


if __name__ == "__main__":
    main()

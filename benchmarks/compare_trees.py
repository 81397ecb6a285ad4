"""Did anything get slower: two checkouts of emqdeploy, measured in one interleaved run; upper ends at most 1.02.

``python -m benchmarks.compare_trees OLD_CHECKOUT`` compares this checkout (new) with another one (old). A round starts
a worker process per checkout (`benchmarks.tree_worker`) and asks both for every figure in turns (old, new, new, old, or
the other way round), figures and turns in random order. Every figure is the ratio new / old of medians with a bootstrap
95 % interval over rounds: what a process has by chance, such as the place of a session in memory, is drawn anew in each
of them. A checkout compared with itself shows what the machine can tell apart.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import arguments, show, verdict, with_interval, write
from emqdeploy.measuring.statistics import median_ratio, percentiles

BOUND = 1.02
ROUNDS = 30
OLD, NEW = "old", "new"
WORKER = Path(__file__).with_name("tree_worker.py")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


@dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        what: name of the worker's measure.
        label: for people.
        count: how many numbers a turn takes.
        unit: of the numbers.
    """

    what: str
    label: str
    count: int
    unit: str = "ms"


FIGURES = (
    Figure("latency", "latency, resident, ResNet-20 at 32, 4 bits", 100),
    Figure("switches", "1,000 switches between resident children", 10),
    Figure("first_output", "switch and first output", 64),
    Figure("build", "building a child that is not resident", 14),
    Figure("load_all", "cold load, ResNet-18, all children", 3),
    Figure("load_one", "cold load, ResNet-18, 4 bits", 3),
    Figure("train_step", "training step, ResNet-8, 4 bits, batch 64", 5),
    Figure("memory", "memory of four resident children, ResNet-18", 1, "MB"),
    Figure("show_help", "emqdeploy --help", 3),
)


class Worker:
    """A process that measures a checkout when it is asked to.

    Args:
        checkout: what it imports.
        folder: where its checkpoints lie.
    """

    def __init__(self, checkout: Path, folder: Path) -> None:
        self._checkout = checkout
        # Started elsewhere and without its own directory on the path, so that nothing else is imported by chance.
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(WORKER), str(folder)],
            env=os.environ | ONE_THREAD | {"PYTHONPATH": str(checkout)},
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        imported = self._answer()
        if not Path(imported).is_relative_to(checkout):
            self.close()
            raise SystemExit(f"{checkout} holds no package emqdeploy ({imported} was found); name another checkout")

    def ask(self, figure: Figure) -> list[float]:
        """Returns the numbers of one turn."""
        assert self._process.stdin is not None
        print(json.dumps({"what": figure.what, "count": figure.count}), file=self._process.stdin, flush=True)
        numbers: list[float] = self._answer()
        return numbers

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"the worker of {self._checkout} ended; it said why above")
        return json.loads(line)


def measure(
    checkouts: dict[str, Path], figures: Sequence[Figure], rounds: int, folder: Path
) -> dict[str, dict[str, list[float]]]:
    """Returns the numbers by figure and checkout, in rounds of equally many."""
    random = np.random.default_rng(0)
    taken: dict[str, dict[str, list[float]]] = {one.what: {name: [] for name in checkouts} for one in figures}
    for name in checkouts:
        (folder / name).mkdir()
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        with ExitStack() as started:
            workers = {
                name: started.enter_context(closing(Worker(checkout, folder / name)))
                for name, checkout in checkouts.items()
            }
            for index in random.permutation(len(figures)):
                figure = figures[index]
                order = [str(name) for name in random.permutation(list(workers))]
                for name in (*order, *reversed(order)):
                    taken[figure.what][name] += workers[name].ask(figure)
    return taken


def compared(figure: Figure, taken: dict[str, list[float]]) -> dict[str, Any]:
    """The row of a figure."""
    ratio = median_ratio(taken[NEW], taken[OLD], block=2 * figure.count)
    return {
        "what": figure.what,
        "label": figure.label,
        "unit": figure.unit,
        **{name: percentiles(numbers) for name, numbers in taken.items()},
        "ratio": ratio,
        "bound": BOUND,
        "holds": ratio["high"] <= BOUND,
    }


def revision(checkout: Path) -> str | None:
    """What git calls a checkout's state; None where git does not know it."""
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the benchmark."""
    parser = arguments(__doc__, "compare_trees")
    parser.add_argument("old", type=Path, metavar="OLD_CHECKOUT", help="a directory that holds another emqdeploy")
    parser.add_argument("--rounds", type=int, default=None, help=f"{ROUNDS} by default")
    parser.add_argument("--only", nargs="+", choices=[figure.what for figure in FIGURES], help="only these figures")
    options = parser.parse_args(argv)
    rounds = options.rounds or (2 if options.quick else ROUNDS)
    checkouts = {OLD: options.old.resolve(), NEW: Path(__file__).resolve().parents[1]}
    figures = [figure for figure in FIGURES if options.only is None or figure.what in options.only]
    with tempfile.TemporaryDirectory() as folder:
        taken = measure(checkouts, figures, rounds, Path(folder))
    rows = [compared(figure, taken[figure.what]) for figure in figures]
    shown = [
        (
            f"{row['label']}, {row['unit']}",
            *(row[name]["p50"] for name in (OLD, NEW)),
            with_interval(row["ratio"]),
            verdict(row["ratio"]["high"], BOUND),
        )
        for row in rows
    ]
    title = f"This checkout (new) against {options.old} (old), {rounds} rounds, one thread"
    show(title, ("median of", OLD, NEW, "new / old [95 %]", "upper end"), shown)
    revisions = {name: revision(checkout) for name, checkout in checkouts.items()}
    write(options.json, "compare_trees", options.quick, rows, rounds=rounds, revisions=revisions)


if __name__ == "__main__":
    main()

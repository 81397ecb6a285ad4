"""What the benchmarks share: fair timing, the machine's description, networks to measure, reports.

Percentiles and intervals are those of `emqdeploy.measuring.statistics`.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from emqdeploy.data.workers import usable_cores
from emqdeploy.errors import UsageError
from emqdeploy.format.card import Card, DataSource, Pixels
from emqdeploy.format.child import FLOAT, Child, children_between, parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.runtimes.machine import environment

RESULTS = Path(__file__).parent / "results"


# --- timing -------------------------------------------------------------------------------------------------------


def interleave(functions: Mapping[str, Callable[[], object]], rounds: int, block: int) -> dict[str, list[float]]:
    """Times functions in turns, so that a drift of the machine meets all of them alike.

    The bench's own `take_turns` does so for runtimes with images and until a budget is spent; what is timed here are
    bare sessions, compilers and training steps, a fixed number of times each, so that sessions can be made anew between
    the rounds.

    A round gives each function one discarded call and then ``block`` timed ones; every other round runs in reverse.

    Returns:
        by function, milliseconds, round by round.
    """
    samples: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds):
        for name in list(functions)[:: 1 if number % 2 == 0 else -1]:
            functions[name]()
            samples[name] += [timed(functions[name])[0] for _ in range(block)]
    return samples


def interleave_anew(
    make: Callable[[], Mapping[str, Callable[[], object]]], creations: int, rounds: int, block: int
) -> dict[str, list[float]]:
    """Times functions in turns, and makes what they run anew many times.

    Where the allocator puts a session moves its time by some percent, which no number of calls averages out; so the
    rounds of one creation belong together, and intervals are taken over creations.

    Args:
        make: opens everything and returns what is timed.
        creations: how often it is called.
        rounds: of each creation, see `interleave`.
        block: likewise.
    """
    samples: dict[str, list[float]] = {}
    for _ in range(creations):
        for name, taken in interleave(make(), rounds, block).items():
            samples.setdefault(name, []).extend(taken)
    return samples


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Runs a function once; returns milliseconds and its result."""
    start = time.perf_counter_ns()
    result = function()
    return (time.perf_counter_ns() - start) / 1e6, result


# --- the machine --------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describes the processor and the software that a figure belongs to, and how busy it was."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return environment() | {"usable_cores": usable_cores(), "load_average": load}


# --- networks to measure ------------------------------------------------------------------------------------------

IMAGES = {"resnet18": 224, "mobilenet_v2": 224, "timm/vit_tiny_patch16_224": 224, "resnet20": 32, "resnet8": 32}
CLASSES = {"resnet18": 1000, "mobilenet_v2": 1000, "timm/vit_tiny_patch16_224": 1000, "resnet20": 10, "resnet8": 10}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INPUT_RANGE = 2.64
"""The largest absolute value of an image normalised with this mean and standard deviation, those of ImageNet."""

TRAINED = parse_children("1,2,4,8")
EVERY = parse_children("1-8")


@dataclass(frozen=True)
class Subject:
    """A network with random weights and settled statistics; what is timed or weighed does not depend on training."""

    model: str
    network: Any
    spec: Any

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)``."""
        shape: tuple[int, int, int] = self.spec.input_shape
        return shape

    def images(self, count: int, seed: int = 1) -> Floats:
        """Random normalised images ``(count, C, H, W)``."""
        values = np.random.default_rng(seed).standard_normal((count, *self.input_shape), np.float32)
        return np.clip(values, -INPUT_RANGE, INPUT_RANGE)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """The checkpoint with all eight weight widths."""
        return self.checkpoint_of(EVERY)

    def checkpoint_of(self, children: Sequence[Child]) -> Checkpoint:
        """A checkpoint with these children; those that were not trained borrow clips and statistics."""
        from emqdeploy.quant.deploy import freeze
        from emqdeploy.quant.skeleton import export_skeleton

        frozen = freeze(self.network, children)
        skeleton = export_skeleton(self.network, frozen, self.input_shape)
        card = Card(
            model=self.model,
            classes=tuple(str(index) for index in range(self.spec.classes)),
            preprocessing=Pixels(*self.input_shape, MEAN, STD),
            data=DataSource("random images"),
            trained=tuple(child.name for child in TRAINED),
            structure=self.spec.to_dict(),
        )
        return Checkpoint(frozen, skeleton, card)


def subject(model: str) -> Subject:
    """Builds a network with random weights, clips from its own activations and settled norm statistics."""
    import torch

    from emqdeploy.quant.build import NetworkSpec

    torch.manual_seed(0)
    size = IMAGES[model]
    unseen = children_between(TRAINED, 8)
    spec = NetworkSpec(model, CLASSES[model], (3, size, size), INPUT_RANGE, TRAINED, unseen)
    found = Subject(model, spec.build(), spec)
    images = torch.from_numpy(found.images(8, seed=0))
    found.network.initialise_clips(images)
    found.network.train()
    norms = list(found.network.norms.values())
    for norm in norms:
        norm.momentum = 1.0  # one pass settles: the statistics of this batch, at every depth
    with torch.no_grad():
        for child in (*TRAINED, FLOAT):
            with found.network.at(child):
                found.network(images)
    found.network.eval()
    return found


# --- reports ------------------------------------------------------------------------------------------------------


def arguments(description: str | None, name: str) -> argparse.ArgumentParser:
    """A parser with the options that every benchmark has."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="few samples: shows that it runs, proves nothing")
    parser.add_argument("--json", type=Path, default=RESULTS / f"{name}.json", metavar="FILE", help="where to write")
    return parser


def write(path: Path, name: str, quick: bool, rows: list[dict[str, Any]], **extra: Any) -> None:
    """Writes a report with everything that is needed to judge its figures."""
    report = {
        "benchmark": name,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "quick": quick,
        "machine": machine(),
        **extra,
        "rows": rows,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"wrote {path}")


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a small table."""
    table = Table(title=title, title_justify="left")
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console()
    console.width = max(console.width, 130)  # a redirected report keeps its columns
    console.print(table)


def pyplot_for(name: str) -> Any:
    """Matplotlib's ``pyplot`` for a picture of that name, whose file is the same whenever it is drawn again.

    Save with ``metadata={"Date": None}`` where the file is an SVG.
    """
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name})
    from matplotlib import pyplot

    return pyplot


def earlier(path: Path, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The rows of a report that was made with the same settings.

    Raises:
        UsageError: it was made with others.
    """
    if not path.exists():
        return []
    report = json.loads(path.read_text())
    for name, value in settings.items():
        if report.get(name) != value:
            raise UsageError(
                f"{path} was measured with {name} {report.get(name)}, not {value}; leave out --resume, or name another"
                " file with --json"
            )
    rows: list[dict[str, Any]] = report["rows"]
    return rows


def with_table(page: str, name: str, table: str) -> str:
    """A page with a table made anew, behind the comment that marks its place: ``<!-- measured: NAME -->``."""
    marker = f"<!-- measured: {name} -->\n\n"
    page, count = re.subn(rf"{marker}(?:\|.*\n)*", lambda _: marker + table, page)
    if count != 1:
        raise ValueError(f"the page has {count} places for the table {name!r}")
    return page


def by_width(percents: Mapping[Child, float]) -> dict[str, float]:
    """Percents by weight width, ascending, of networks with one child for each; the float network's is 32."""
    return {str(child.bits): percents[child] for child in sorted(percents, key=lambda child: child.bits)}


def verdict(value: float, bound: float) -> str:
    """Says whether a bound holds."""
    return f"holds (<= {bound:g})" if value <= bound else f"MISSED (<= {bound:g})"


def with_interval(ratio: Mapping[str, float]) -> str:
    """A ratio and its interval, as people read them."""
    return "{ratio:.3f} [{low:.3f}, {high:.3f}]".format(**ratio)

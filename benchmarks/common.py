"""What the benchmarks share: fair timing, intervals, the machine's description, networks to measure, reports."""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from emqdeploy.runtimes.machine import environment

RESULTS = Path(__file__).parent / "results"

Samples = NDArray[np.float64]
"""Times in milliseconds, ``(rounds, block)``: what was taken in one round shares the machine's mood of that moment."""


# --- timing and intervals -----------------------------------------------------------------------------------------


def interleave(functions: dict[str, Callable[[], object]], rounds: int, block: int) -> dict[str, Samples]:
    """Times functions in turns, so that a drift of the machine meets all of them alike.

    A round gives each function one discarded call and then ``block`` timed ones; every other round runs in reverse.

    Returns:
        by function, milliseconds ``(rounds, block)``.
    """
    samples = {name: np.zeros((rounds, block)) for name in functions}
    for row in range(rounds):
        order = list(functions) if row % 2 == 0 else list(reversed(functions))
        for name in order:
            function = functions[name]
            function()
            for column in range(block):
                start = time.perf_counter_ns()
                function()
                samples[name][row, column] = (time.perf_counter_ns() - start) / 1e6
    return samples


@dataclass(frozen=True)
class Ratio:
    """A ratio of medians with its 95 % interval."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def to_dict(self) -> dict[str, float]:
        """Returns plain numbers for JSON."""
        return {"ratio": self.value, "low": self.low, "high": self.high}


def ratio_interval(a: Samples, b: Samples, resamples: int = 4000) -> Ratio:
    """Ratio of the medians of ``a`` and ``b`` with a bootstrap 95 % interval over their rows.

    Whole rounds are drawn, the same for both: samples of one round are not independent, and a slow round slows both.
    """
    rows = np.random.default_rng(0).integers(len(a), size=(resamples, len(a)))
    ratios = np.array([np.median(a[chosen]) / np.median(b[chosen]) for chosen in rows])
    low, high = np.quantile(ratios, [0.025, 0.975])
    return Ratio(float(np.median(a) / np.median(b)), float(low), float(high))


def summary(samples: Samples | Sequence[float]) -> dict[str, float]:
    """Median, tails and count of times in milliseconds."""
    flat = np.asarray(samples).reshape(-1)
    p50, p95, p99 = (float(value) for value in np.quantile(flat, [0.5, 0.95, 0.99]))
    return {"p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "min_ms": float(flat.min()), "samples": len(flat)}


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Runs a function once; returns milliseconds and its result."""
    start = time.perf_counter_ns()
    result = function()
    return (time.perf_counter_ns() - start) / 1e6, result


# --- the machine --------------------------------------------------------------------------------------------------


def machine() -> dict[str, Any]:
    """Describes the processor and the software that a figure belongs to, and how busy it was."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return environment() | {"usable_cores": usable, "load_average": load}


# --- networks to measure ------------------------------------------------------------------------------------------

IMAGES = {"resnet18": 224, "mobilenet_v2": 224, "timm/vit_tiny_patch16_224": 224, "resnet20": 32, "resnet8": 32}
CLASSES = {"resnet18": 1000, "mobilenet_v2": 1000, "timm/vit_tiny_patch16_224": 1000, "resnet20": 10, "resnet8": 10}
INPUT_RANGE = 2.64
"""The largest absolute value of an image normalised with ImageNet's mean and standard deviation."""


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

    def images(self, count: int, seed: int = 1) -> NDArray[np.float32]:
        """Random normalised images ``(count, C, H, W)``."""
        values = np.random.default_rng(seed).standard_normal((count, *self.input_shape), np.float32)
        return np.clip(values, -INPUT_RANGE, INPUT_RANGE)

    @cached_property
    def checkpoint(self) -> Any:
        """The `Checkpoint` with all eight bit-widths."""
        from emqdeploy.checkpoint import Checkpoint
        from emqdeploy.grid import ALL_BITS
        from emqdeploy.quant.deploy import freeze
        from emqdeploy.quant.skeleton import export_skeleton

        frozen = freeze(self.network, ALL_BITS)
        skeleton = export_skeleton(self.network, frozen, self.input_shape)
        described = {
            "network": self.spec.to_dict(),
            "classes": [str(index) for index in range(self.spec.classes)],
            "trained_bits": list(self.spec.trained_bits),
            "accuracy": {},
            "data": {"name": "random images", "image_size": None},
            "preprocessing": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        }
        return Checkpoint(frozen, skeleton, described)


def subject(model: str) -> Subject:
    """Builds a network with random weights, clips from its own activations and settled norm statistics."""
    import torch

    from emqdeploy.quant.build import NetworkSpec

    torch.manual_seed(0)
    size = IMAGES[model]
    spec = NetworkSpec(model, CLASSES[model], (3, size, size), INPUT_RANGE, (1, 2, 4, 8))
    found = Subject(model, spec.build(), spec)
    images = torch.from_numpy(found.images(8, seed=0))
    found.network.initialise_clips(images)
    found.network.train()
    norms = list(found.network.norms.values())
    for norm in norms:
        norm.momentum = 1.0  # one pass settles: the statistics of this batch, at every depth
    with torch.no_grad():
        for bits in (*spec.trained_bits, 32):
            with found.network.bits(bits):
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


def verdict(value: float, bound: float) -> str:
    """Says whether a bound holds."""
    return f"holds (<= {bound:g})" if value <= bound else f"MISSED (<= {bound:g})"


def median(values: Sequence[float]) -> float:
    """The median as a plain float."""
    return float(statistics.median(values))

"""Everything that decides what a bench measures, in one record that a result carries; its options are the flags."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.options import names, numbers, option, options_of, plain_values

MIN_SAMPLES = 300
MIN_SECONDS = 1.0
MAX_SAMPLES = 10_000
"""Without a wish: at least so many samples and seconds per row, and never more samples than this."""

LARGEST_BATCH = 65_536


@dataclass(frozen=True)
class BenchSettings:
    """What to measure and how.

    Attributes:
        path: a run directory, checkpoint, exported file or bundle; None takes the latest run.
        bits: which children, as a person writes it; None takes every one.
        device: ``auto``, ``cpu``, ``cuda`` or ``jetson``.
        runtimes: adapters to compare; empty takes the best one of the device that can compute the network.
        scenarios: names of registered scenarios, in order.
        samples: timed inferences per row; None together with ``seconds`` None applies the limits of this module.
        seconds: timed seconds per row.
        batches: batch sizes of the offline scenario.
        switches: switches of the switch scenario.
        trace: ``random``, ``round-robin``, or a file with one child a line.
        data: data set for accuracy; None takes the one that the source names.
        data_dir: where the data set's files lie.
        limit: at most so many test images; None takes all.
        threads: threads inside an operator; None uses every core.
        energy: ``auto``, ``none``, or the name of a registered source.
        energy_seconds: how long each row runs for the energy reading.
        lock_clocks: fix the clocks of a Jetson for the run and release them after it.
        policy: budgets of the adaptive scenario.
        tune: choose the native kernels of every layer anew, see `emqdeploy.runtimes.native_library.forget_tuning`.
        warm_up_seconds: the longest wait for a row's median to settle.
        steady: inferences after each switch that tell the steady state.
        baselines: also measure what children are compared with: the baselines that a bundle holds; of a checkpoint,
            where no runtimes are named, its int8 and float32 in onnxruntime.
        seed: of the random trace and of the bootstrap.
        whole_test_set: whether ``data`` holds all test images of the network's own data set, so that the recorded
            accuracy is comparable; None where that follows from ``data`` and ``limit``.
    """

    path: str | None = None
    bits: str | None = option(None, "Children: 2,4,8 or 2-8, 2a4, a name, or all.")
    device: str = option("auto", "Device to measure: auto, cpu, cuda or jetson.")
    runtimes: tuple[str, ...] = option(
        (), "Runtimes to compare, for example onnxruntime,openvino.", flag="runtime", parse=names
    )
    scenarios: tuple[str, ...] = option(
        ("single", "switch"),
        "Scenarios to run, in order: single, offline, switch or adaptive.",
        flag="scenario",
        parse=names,
    )
    samples: int | None = option(None, "Number of timed inferences per row.", least=1)
    seconds: float | None = option(None, "Timed seconds per row, instead of a count.")
    batches: tuple[int, ...] = option(
        (1, 4, 16, 64), "Batch sizes of the offline scenario.", flag="batch", parse=numbers
    )
    switches: int = option(200, "Number of timed switches.", least=1)
    trace: str = option("random", "Order of switches: random, round-robin, or a file with one child per line.")
    data: str | None = option(None, "Data set to measure accuracy on; the network's own by default.")
    data_dir: Path | None = option(None, "Folder with the data set's files.")
    limit: int | None = option(None, "Use at most this many test images.", least=1)
    threads: int | None = option(None, "Threads inside an operator; every core by default.", least=1)
    energy: str = option("auto", "Energy source to read: auto, none, or its name.")
    energy_seconds: float = option(3.0, "Seconds that each row runs to measure its energy.")
    lock_clocks: bool = option(False, "Fix a Jetson's clocks during the run, and release them afterwards.")
    policy: str | None = option(None, "Budgets of the adaptive scenario, such as latency_p99=20ms,accuracy>=97.")
    tune: bool = option(False, "Time the native kernels again instead of using those that were fastest before.")
    warm_up_seconds: float = 2.0
    steady: int = 10
    baselines: bool = option(
        True,
        "Also measure what children are compared with: int8 and float32 in onnxruntime, or the baselines of a bundle.",
    )
    seed: int = 0
    whole_test_set: bool | None = None

    @property
    def comparable(self) -> bool:
        """Whether accuracy is measured on what training measured it on."""
        if self.whole_test_set is not None:
            return self.whole_test_set
        return self.data is None and self.limit is None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return plain_values(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchSettings:
        """Reads what `to_dict` wrote.

        Raises:
            EmqError: a setting is unknown, or of another type: the file comes from another version.
        """
        unknown = sorted(set(values) - {field.name for field in fields(cls)})
        if unknown:
            raise EmqError(f"unknown settings {', '.join(unknown)}; this file comes from another version of emqdeploy")
        try:
            return msgspec.convert(values, cls, dec_hook=lambda kind, value: kind(value))
        except (msgspec.ValidationError, TypeError) as error:
            raise EmqError(
                f"a setting is wrong ({error}); this file comes from another version of emqdeploy"
            ) from error

    def check(self) -> None:
        """Raises one sentence for a value that no bench can have."""
        for name in ("samples", "switches", "steady", "limit", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"{name} is {value}; it must be at least 1")
        for name in ("seconds", "energy_seconds"):
            value = getattr(self, name)
            if value is not None and not 0 < value <= 3600:
                raise UsageError(f"{name} is {value:g}; it must be above 0 and at most 3600")
        if not self.batches or not all(1 <= batch <= LARGEST_BATCH for batch in self.batches):
            raise UsageError(f"batches are {self.batches}; give numbers from 1 to {LARGEST_BATCH}, for example 1,8,32")

    def command(self) -> str:
        """Returns the command line that measures this again; what has no flag stands in `to_dict` only."""
        words = ["emqdeploy", "bench", *([self.path] if self.path else [])]
        for one in options_of(BenchSettings):
            value = getattr(self, one.name)
            if value == one.default:
                continue
            words.append(f"--{one.flag}" if value is not False else f"--no-{one.flag}")
            if not isinstance(value, bool):
                words.append(",".join(map(str, value)) if isinstance(value, tuple) else str(value))
        return shlex.join(words)

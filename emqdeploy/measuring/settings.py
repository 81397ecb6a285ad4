"""Everything that decides what a bench measures, in one record that a result carries."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from emqdeploy.errors import EmqError, UsageError

MIN_SAMPLES = 300
MIN_SECONDS = 1.0
MAX_SAMPLES = 10_000
"""Without a wish: at least so many samples and seconds per row, and never more samples than this."""


@dataclass(frozen=True)
class BenchSettings:
    """What to measure and how.

    Attributes:
        path: a run directory, checkpoint, exported file or bundle; None takes the latest run.
        bits: bit-widths; None takes every stored one.
        runtimes: adapters to compare; empty takes the device's own.
        device: ``auto``, ``cpu``, ``cuda`` or ``jetson``.
        scenarios: names of registered scenarios, in order.
        samples: timed inferences per row; None together with ``seconds`` None applies the limits of this module.
        seconds: timed seconds per row.
        warm_up_seconds: the longest wait for a row's median to settle.
        batches: batch sizes of the offline scenario.
        switches: switches of the switch scenario.
        trace: ``random``, ``round-robin``, or a file with one bit-width a line.
        steady: inferences after each switch that tell the steady state.
        data: data set for accuracy; None takes the one that the source names.
        data_dir: where the data set's files lie.
        limit: at most so many test images; None takes all.
        threads: threads inside an operator; None uses every core.
        baselines: also measure the float32 and int8 baselines that the source holds.
        energy: ``auto``, ``none``, or the name of a registered source.
        energy_seconds: how long each row runs for the energy reading.
        lock_clocks: fix the clocks of a Jetson for the run and release them after it.
        policy: budgets of the adaptive scenario.
        seed: of the random trace and of the bootstrap.
        whole_test_set: whether ``data`` holds all test images of the network's own data set, so that the recorded
            accuracy is comparable; None where that follows from ``data`` and ``limit``.
        host: measure there, over ssh; None measures here.
        ssh: the ssh command.
        host_python: the Python of the host.
    """

    path: str | None = None
    bits: tuple[int, ...] | None = None
    runtimes: tuple[str, ...] = ()
    device: str = "auto"
    scenarios: tuple[str, ...] = ("single", "switch")
    samples: int | None = None
    seconds: float | None = None
    warm_up_seconds: float = 2.0
    batches: tuple[int, ...] = (1, 4, 16, 64)
    switches: int = 200
    trace: str = "random"
    steady: int = 10
    data: str | None = None
    data_dir: str | None = None
    limit: int | None = None
    threads: int | None = None
    baselines: bool = True
    energy: str = "auto"
    energy_seconds: float = 3.0
    lock_clocks: bool = False
    policy: str | None = None
    seed: int = 0
    whole_test_set: bool | None = None
    host: str | None = None
    ssh: str = "ssh"
    host_python: str | None = None

    @property
    def comparable(self) -> bool:
        """Whether accuracy is measured on what training measured it on."""
        if self.whole_test_set is not None:
            return self.whole_test_set
        return self.data is None and self.limit is None

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BenchSettings:
        """Reads what `to_dict` wrote.

        Raises:
            EmqError: a setting is unknown: the file comes from another version.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise EmqError(f"unknown settings {', '.join(unknown)}; this file comes from another version of emqdeploy")
        plain: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**plain)

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
        if any(batch < 1 for batch in self.batches) or not self.batches:
            raise UsageError(f"batches are {self.batches}; give positive numbers, for example 1,8,32")

    def command(self) -> str:
        """Returns the command line that measures this again."""
        words = ["emqdeploy", "bench", *([self.path] if self.path else [])]
        plain = BenchSettings()
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "path" or value == getattr(plain, field.name):
                continue
            option = _OPTIONS.get(field.name, f"--{field.name.replace('_', '-')}")
            if isinstance(value, bool):
                words.append(option if value else f"--no-{field.name}")
            else:
                words += [option, ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
        return shlex.join(words)


_OPTIONS = {"runtimes": "--runtime", "scenarios": "--scenario", "batches": "--batch"}
"""Where the option's name is not the field's."""

"""What a stream is served with; its options are the flags of the command."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emqdeploy.errors import UsageError
from emqdeploy.options import option


@dataclass(frozen=True)
class ServeSettings:
    """What to classify, with what, under which policy.

    Attributes:
        path: the network; None takes the latest run.
        sources: files and folders of images, videos, the number of a camera.
        policy: budgets, as text.
        bits: which children to choose from, as a person writes it; None takes every one.
        runtime: the adapter.
        threads: fixes the threads; None lets the policy choose.
        fps: images a second at most.
        watch: wait for new files after the last one.
        repeat: begin again after the last one.
        limit: images at most.
        seconds: time at most.
        device: ``auto``, ``cpu``, ``cuda`` or ``jetson``: whose sensors to read.
        energy: ``auto``, ``none`` or the name of an energy source.
        log: file for one JSON object per image and decision.
    """

    path: Path | None
    sources: tuple[str, ...]
    policy: str = option(
        "prefer=accuracy",
        "Budgets on latency_p50 to latency_p99, energy, power, temperature, memory or accuracy, such as"
        " latency_p99=20ms.",
    )
    bits: str | None = option(None, "Children: 2,4,8 or 2-8, 2a4, a name, or all.")
    runtime: str = option("onnxruntime", "Runtime to use: onnxruntime, native, openvino, tensorrt or torch.")
    threads: int | None = option(None, "Number of threads; by default the policy chooses.", least=1)
    fps: float | None = option(None, "At most this many images per second; by default as many as possible.")
    watch: bool = option(False, "Wait for new files after the last one, until Ctrl-C.")
    repeat: bool = option(False, "Start again after the last image, until Ctrl-C.")
    limit: int | None = option(None, "Stop after this many images.", least=1)
    seconds: float | None = option(None, "Stop after this many seconds.")
    device: str = option("auto", "Device whose sensors to read: auto, cpu, cuda or jetson.")
    energy: str = option("auto", "Energy source to read: auto, none, or its name.")
    log: Path | None = option(None, "Write a JSON line per image and per switch.")

    def check(self) -> None:
        """Raises one sentence for what cannot be."""
        for name in ("fps", "seconds", "limit"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1e9:
                raise UsageError(f"--{name} is {value:g}; it must be above 0")
        if self.repeat and self.watch:
            raise UsageError("--repeat begins again at the end and --watch waits there; give one of them")

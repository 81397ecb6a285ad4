"""What a GPU is needed for: the cost of a training step, the paper's table on all of CIFAR-10, the dial's children.

``python -m benchmarks.gpu --data-dir DIR`` does what is missing within ``--minutes``; every finished row is kept in
``--json``, so several short sittings do as well as a long one. Rows take turns, seed by seed, each with the GPU to
itself: side by side they only take its time from one another (eight at once took eight times as long each).
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.common import RESULTS, machine
from benchmarks.gpu_rows import DIAL, OURS, TABLE
from emqdeploy.data import load_dataset
from emqdeploy.files import atomic_write_text
from emqdeploy.training.api import network_spec, train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.loop import Trainer
from emqdeploy.training.recipes import resolve
from emqdeploy.training.run import METRICS_FILE

BATCH = 128
PARTS = {"table": TABLE, "dial": DIAL}

ALL = ("steps", *PARTS)

KINDS = {"eager": {"cuda_graphs": False}, "graphs": {}}
"""How a step may run, and the options for it."""

GUESS_S = 1.0
"""Seconds that a child's pass over all images takes, to guess whether a row still fits."""


def config_of(part: str, row: str, seed: int, data_dir: Path, epochs: int) -> TrainConfig:
    """The configuration of a row; ``epochs`` is the length of the longest."""
    found = PARTS[part][row]
    values = {
        **{"data": "cifar10", "data_dir": data_dir, "batch_size": BATCH, "amp": "bf16", "channels_last": True},
        **{"device": "cuda" if torch.cuda.is_available() else "cpu", "seed": seed},
        **found.values,
        "epochs": max(1, round(epochs * found.share)),
    }
    return resolve(found.recipe, None, values)


def run(part: str, row: str, seed: int, data_dir: Path, epochs: int) -> dict[str, Any]:
    """Trains one row with one seed; what fails is a result too."""
    started = time.perf_counter()
    figures: dict[str, Any] = {"part": part, "row": row, "seed": seed, "epochs": epochs}
    try:
        config = config_of(part, row, seed, data_dir, epochs)
        with tempfile.TemporaryDirectory() as folder:
            result = train(config, Path(folder) / "run", console=Console(file=io.StringIO()))
            lines = [json.loads(line) for file in sorted(Path(folder).rglob(METRICS_FILE)) for line in file.open()]
    except Exception as error:  # one row must not end the sitting
        return figures | {"failed": f"{type(error).__name__}: {error}"}
    curve = [
        {key: line[key] for key in ("epoch", "seconds", "sample_passes", "validation_accuracy", "loss")}
        for line in lines
    ]
    return figures | {
        "accuracy": {child.name: round(value, 3) for child, value in result.accuracy.items()},
        "sample_passes": result.sample_passes,
        "seconds": round(result.seconds, 2),
        "whole_seconds": round(time.perf_counter() - started, 2),
        "curve": curve,
        "config": {key: value for key, value in config.to_dict().items() if value is not None and key != "data_dir"},
    }


def steps(data_dir: Path, models: Sequence[str], rounds: int = 40) -> list[dict[str, Any]]:
    """Milliseconds of a training step: float and children, operator by operator, as graphs, and those compiled."""
    found = []
    for model in models:
        for kind, how in KINDS.items():
            values = {"data": "cifar10", "data_dir": data_dir, "batch_size": BATCH, "amp": "bf16", "model": model}
            config = resolve("emqnet", None, {**values, "channels_last": True, **OURS, **how})
            with tempfile.TemporaryDirectory() as folder:
                times = _time_steps(config, Path(folder), rounds)
            found += [{"part": "steps", "model": model, "kind": kind, "child": c, "step_ms": t} for c, t in times]
            print(model, kind, times, flush=True)
    return found


def _time_steps(config: TrainConfig, folder: Path, rounds: int) -> list[tuple[str, float]]:
    from emqdeploy.format.child import FLOAT
    from emqdeploy.training.batches import image_source
    from emqdeploy.training.run import RunDirectory
    from emqdeploy.training.steps import Step

    dataset = load_dataset(config.data, config.data_dir, limit=4096)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    source = image_source(dataset.train, dataset.preprocessing, "crop-flip", device)
    network = network_spec(config, dataset).build().to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.initialise_clips(source.plain(torch.arange(512).numpy()))
    trainer = Trainer(config, network, source, source, 10, RunDirectory(folder), Console(quiet=True))
    indices = torch.arange(BATCH).numpy()
    times = []
    network.train()
    for child in (FLOAT, *network.trained):
        step = Step((child,), indices)
        for number in range(5 + rounds):
            if number == 5:
                _wait(device)
                started = time.perf_counter()
            images = next(iter(trainer.passes.batches([step], number)))
            trainer._step(step, images, False, True, False)
        _wait(device)
        times.append((child.name, round(1000 * (time.perf_counter() - started) / rounds, 3)))
    return times


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def main(argv: Sequence[str] | None = None) -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True, help="where CIFAR-10 lies")
    parser.add_argument("--json", type=Path, default=RESULTS / "gpu.json", help="where results go, and are read from")
    parser.add_argument("--minutes", type=float, default=9, help="no row starts that would probably end later")
    parser.add_argument("--epochs", type=int, default=24, help="of the longest rows")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--parts", nargs="*", default=[*ALL], choices=ALL)
    parser.add_argument("--rows", nargs="*", help="only these")
    parser.add_argument("--models", nargs="*", default=["resnet8", "resnet20"], help="whose steps are timed")
    options = parser.parse_args(argv)
    ends = time.time() + 60 * options.minutes
    held = json.loads(options.json.read_text()) if options.json.exists() else {"rows": []}
    held["machine"] = machine() | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}

    def keep(rows: Sequence[dict[str, Any]]) -> None:
        held["rows"] += rows
        atomic_write_text(options.json, json.dumps(held, indent=1) + "\n")

    if "steps" in options.parts:
        keep(steps(options.data_dir, options.models))
    done = {(row["part"], row["row"], row["seed"]) for row in held["rows"] if "accuracy" in row}
    for seed, part in itertools.product(range(options.seeds), PARTS):
        for row, found in PARTS[part].items():
            wanted = part in options.parts and (not options.rows or row in options.rows) and seed < found.seeds
            if not wanted or (part, row, seed) in done:
                continue
            config = config_of(part, row, seed, options.data_dir, options.epochs)
            if time.time() + GUESS_S * config.epochs * len(config.trained) > ends:
                print(part, row, seed, "too little time is left", flush=True)
                continue
            result = run(part, row, seed, options.data_dir, options.epochs)
            keep([result])
            said = result.get("failed") or (result["accuracy"], result["seconds"], result["whole_seconds"])
            print(part, row, seed, said, flush=True)


if __name__ == "__main__":
    main()

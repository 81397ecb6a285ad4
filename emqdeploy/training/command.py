"""`emqdeploy train`: from parsed flags to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.report.terminal import accuracy_table
from emqdeploy.runs import RUNS_ROOT, next_run_path
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig

_FIELD_OF_FLAG = {"act_bits": "activation_bits", "lr": "learning_rate", "adapt_norm": "norm_adaptation"}


def train_command(
    flags: dict[str, Any],
    explicit: set[str],
    bits: tuple[int, ...] | None,
    out: Path | None,
    resume: Path | None,
) -> tuple[dict[str, Any], list[Any]]:
    """Trains or resumes; returns the JSON object and what to print.

    Args:
        flags: the value of every configuration flag, by flag name.
        explicit: the flags that the user really gave.
        bits: the parsed bit-widths.
        out: a new run directory, or None for the default one.
        resume: a run to continue.
    """
    if resume is not None:
        refused = sorted(explicit) + (["out"] if out is not None else [])
        if refused:
            names = ", ".join("--" + name.replace("_", "-") for name in refused)
            raise UsageError(f"--resume continues a run as it was configured; leave out {names}, or start a new run")
        path, config = resume, TrainConfig()
    else:
        config = _config(flags, bits)
        path = out or next_run_path(RUNS_ROOT, config.data, config.model)
    result = train(config, path, resume=resume is not None)
    checkpoint = str(result.checkpoints[0])
    values: dict[str, Any] = {
        "checkpoint": checkpoint,
        "checkpoints": [str(file) for file in result.checkpoints],
        "run": str(result.run),
        "accuracy": {str(width): percent for width, percent in sorted(result.accuracy.items())},
        "trained_bits": sorted(result.trained_bits),
        "seconds": round(result.seconds, 3),
        "sample_passes": result.sample_passes,
    }
    title = f"{checkpoint}: test accuracy of the deployed network, {values['seconds']:.0f} s of training"
    hints = f"next: emqdeploy export {path} --bits 4 --target onnx\n      emqdeploy bench {path} --device cpu"
    return values, [accuracy_table(title, values["accuracy"], values["trained_bits"]), hints]


def _config(flags: dict[str, Any], bits: tuple[int, ...] | None) -> TrainConfig:
    fields = {field.name for field in dataclasses.fields(TrainConfig)}
    values = {_FIELD_OF_FLAG.get(flag, flag): value for flag, value in flags.items()}
    values = {name: value for name, value in values.items() if name in fields}
    values["bits"] = bits
    values["activation_bits"] = _activation_bits(str(values["activation_bits"]))
    values["data_dir"] = None if values["data_dir"] is None else str(values["data_dir"])
    kept = str(values["keep_8bit"])
    values["keep_8bit"] = () if kept == "none" else tuple(part.strip() for part in kept.split(","))
    return TrainConfig(**values)


def _activation_bits(text: str) -> int | str:
    if text == "same":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--act-bits is {text!r}; allowed: 2..8, or 'same' to follow the weight bits") from error

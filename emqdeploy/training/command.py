"""`emqdeploy train`: from parsed flags to a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.report.terminal import accuracy_table
from emqdeploy.runs import RUNS_ROOT, next_run_path
from emqdeploy.training.api import train
from emqdeploy.training.config import FLOAT_NETWORK, TrainConfig, flag_of
from emqdeploy.training.distributed import join_world, leave_world
from emqdeploy.training.recipes import resolve
from emqdeploy.training.run import RunDirectory

AUTO = "auto"
"""Value of ``--resume`` that continues the run in ``--out`` where there is one, else starts it."""


def train_command(
    flags: dict[str, Any], recipe: str | None, file: Path | None, out: Path | None, resume: str | None
) -> tuple[dict[str, Any], list[Any]] | None:
    """Trains or resumes; returns the JSON object and what to print, None where another process prints.

    Args:
        flags: configuration fields that the user gave as flags.
        recipe: a recipe's name.
        file: a TOML file of options.
        out: the run directory, or None for a new default one.
        resume: a run to continue, or ``auto``.
    """
    world = join_world(str(flags.get("device", "auto")))
    plan = _plan(flags, recipe, file, out, resume) if world.leads else None
    config, path, resuming = world.agree(plan)
    result = train(config, path, resume=resuming, world=world)
    leave_world()
    if not world.leads:
        return None
    trained = sorted(result.trained_bits)
    values: dict[str, Any] = {
        "checkpoint": str(result.checkpoints[0]) if result.checkpoints else None,
        "checkpoints": [str(made) for made in result.checkpoints],
        "run": str(result.run),
        "accuracy": {str(width): percent for width, percent in sorted(result.accuracy.items())},
        "trained_bits": trained,
        "seconds": round(result.seconds, 3),
        "sample_passes": result.sample_passes,
    }
    what = values["checkpoint"] or f"{path}/latent.safetensors (float network)"
    title = f"{what}: test accuracy of the deployed network, {values['seconds']:.0f} s of training"
    hints = f"next: emqdeploy export {path} --bits 4 --target onnx\n      emqdeploy bench {path} --device cpu"
    if config.bits == FLOAT_NETWORK:
        hints = f"next: emqdeploy quantize {path} --data {config.data} --model {config.model}"
    return values, [accuracy_table(title, values["accuracy"], trained), hints]


def _plan(
    flags: dict[str, Any], recipe: str | None, file: Path | None, out: Path | None, resume: str | None
) -> tuple[TrainConfig, Path, bool]:
    """What to train, where, and whether it goes on."""
    given = bool(flags) or recipe is not None or file is not None
    if resume is not None and resume != AUTO:
        path = Path(resume)
        if out is not None and out != path:
            raise UsageError(f"--resume {path} continues that run where it lies; leave out --out {out}")
        stored = RunDirectory.open(path)[1]
        # What the user says again must be what the run was configured with; RunDirectory.open names what is not.
        wanted = stored if not given else _as_stored(stored, flags, recipe, file)
        return RunDirectory.open(path, wanted)[1], path, True
    config = resolve(recipe, file, flags)
    if resume == AUTO and out is None:
        raise UsageError("--resume auto needs --out, the directory of the run to continue or to start")
    path = out or next_run_path(RUNS_ROOT, config.data, config.model)
    if resume == AUTO and RunDirectory.holds_run(path):
        return RunDirectory.open(path, config)[1], path, True
    return config, path, False


def _as_stored(stored: TrainConfig, flags: dict[str, Any], recipe: str | None, file: Path | None) -> TrainConfig:
    """The stored configuration with what the user said again on top."""
    said = flags if recipe is None and file is None else resolve(recipe, file, flags).to_dict()
    return TrainConfig.from_dict(stored.to_dict() | said)


def parse_flags(given: dict[str, Any]) -> dict[str, Any]:
    """Configuration fields from flags as the command line knows them; what the user did not give is left out."""
    fields = {flag_of(item.name).replace("-", "_"): item.name for item in dataclasses.fields(TrainConfig)}
    values = {fields[flag]: value for flag, value in given.items() if flag in fields and value is not None}
    for name, parse in (
        ("bits", _bits),
        ("activation_bits", _activation_bits),
        ("keep_8bit", _names),
        ("keep_float", _names),
    ):
        if name in values:
            values[name] = parse(values[name])
    return values


def _bits(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UsageError(f"--bits is {text!r}; give numbers from 1 to 8, for example --bits 2,4,8") from error


def _activation_bits(text: str) -> int | str:
    if text == "same":
        return text
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(f"--act-bits is {text!r}; allowed: 2..8, or 'same' to follow the weight bits") from error


def _names(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(part.strip() for part in text.split(","))

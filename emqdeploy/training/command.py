"""`emqdeploy train`: from flags to a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.runs import RUNS_ROOT, next_run_path
from emqdeploy.models.external import is_users
from emqdeploy.training.api import TrainResult, train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.distributed import join_world, leave_world
from emqdeploy.training.recipes import changed, resolve, stored_config
from emqdeploy.training.run import RunDirectory

AUTO = "auto"
"""Value of ``--resume`` that continues the run in ``--out`` where there is one, else starts it."""


def train_from_flags(
    flags: Mapping[str, Any], recipe: str | None, file: Path | None, out: Path | None, resume: str | None
) -> tuple[TrainConfig, TrainResult] | None:
    """Trains or resumes; None in all but one of several processes.

    Args:
        flags: options as the command line received them; None counts as not given.
        recipe: a recipe's name.
        file: a TOML file of options.
        out: the run directory, or None for a new default one.
        resume: a run to continue, or ``auto``.
    """
    world = join_world(str(flags.get("device") or "auto"))
    plan = _plan(flags, recipe, file, out, resume) if world.leads else None
    config, path, resuming = world.agree(plan)
    result = train(config, path, resume=resuming, world=world)
    leave_world()
    return (config, result) if world.leads else None


def _plan(
    flags: Mapping[str, Any], recipe: str | None, file: Path | None, out: Path | None, resume: str | None
) -> tuple[TrainConfig, Path, bool]:
    """What to train, where, and whether it goes on."""
    if resume is not None and resume != AUTO:
        path = Path(resume)
        if out is not None and out != path:
            raise UsageError(f"--resume {path} continues that run where it lies; leave out --out {out}")
        stored = stored_config(path)
        # What is said again must be what the run was configured with.
        said = changed(stored, flags) if recipe is None and file is None else resolve(recipe, file, flags)
        said.check_resumes(stored, path)
        _check_named(stored, flags)
        return stored, path, True
    config = resolve(recipe, file, flags)
    _check_named(config, flags)
    if resume == AUTO and out is None:
        raise UsageError("--resume auto needs --out, the directory of the run to continue or to start")
    path = out or next_run_path(RUNS_ROOT, config.data, config.model)
    return config, path, resume == AUTO and RunDirectory.holds_run(path)


def _check_named(config: TrainConfig, flags: Mapping[str, Any]) -> None:
    """Raises where only a file names the user's own function: a file may not have code imported."""
    if is_users(config.model) and not flags.get("model"):
        raise UsageError(
            f"the model is your own function {config.model}, and a file may not have code imported; name it yourself:"
            f" --model {config.model}"
        )

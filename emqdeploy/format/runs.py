"""Where runs and their checkpoints lie, so that commands without a path find the latest one; needs no torch."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

from emqdeploy.errors import UsageError, cannot_write
from emqdeploy.format.emq import SUFFIX

RUNS_ROOT = Path("runs")
CHECKPOINT_FILE = f"model{SUFFIX}"


def next_run_path(root: Path, data: str, model: str) -> Path:
    """Makes the next unused ``root/DATA-MODEL-NNN``, so that of two that ask at once each has its own.

    Args:
        root: where runs lie.
        data: a data set; of a path the last part is taken.
        model: its name, or the file that holds it.
    """
    source = Path(data).stem if "/" in data.partition(":")[0] else data.partition(":")[0]
    network = Path(model).stem if model.endswith(".onnx") else model
    stem = re.sub(r"[^\w.-]+", "-", f"{source}-{network}")
    taken = [int(path.name.rpartition("-")[2]) for path in root.glob(f"{stem}-[0-9][0-9][0-9]")]
    for number in itertools.count(max(taken, default=0) + 1):
        path = root / f"{stem}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        except OSError as error:
            raise cannot_write(path, error) from error
        return path
    raise AssertionError("there is always a next number")


def find_checkpoint(path: Path | None, root: Path = RUNS_ROOT) -> Path:
    """Returns the checkpoint that a command means.

    Args:
        path: a checkpoint, a run directory, or None for the newest checkpoint of all runs.
        root: where runs lie.
    """
    if path is None:
        found = sorted(root.glob(f"*/*{SUFFIX}"), key=lambda file: file.stat().st_mtime)
        if not found:
            raise UsageError(f"no trained run in {root.resolve()}; train one with: emqdeploy train")
        return found[-1]
    if path.is_dir():
        found = sorted(path.glob(f"*{SUFFIX}"))
        if len(found) > 1:
            names = ", ".join(file.name for file in found)
            raise UsageError(f"{path} holds several checkpoints ({names}); name one of them")
        inside = sorted(path.glob(f"*/{CHECKPOINT_FILE}"))
        if not found and inside:
            raise UsageError(
                f"{path} holds no checkpoint itself; name one of those in it: {', '.join(map(str, inside))}"
            )
        if not found:
            raise UsageError(f"{path} holds no {SUFFIX} file; train one with: emqdeploy train --out {path}")
        return found[0]
    if not path.exists():
        raise UsageError(f"{path} does not exist; name an {SUFFIX} file or a run directory")
    return path

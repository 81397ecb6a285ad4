"""A run directory: configuration, metrics, the state to resume from, and what training produced."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from emqdeploy.errors import EmqError, UsageError, writable_dir
from emqdeploy.files import atomic_path, atomic_write_bytes, atomic_write_text
from emqdeploy.training.config import TrainConfig

CONFIG_FILE = "config.json"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"
LATENT_FILE = "latent.safetensors"


class RunDirectory:
    """The files of one run; every write is atomic, so an interrupted run leaves whole files only."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, config: TrainConfig) -> RunDirectory:
        """Starts a new run; a directory that holds one already is never overwritten."""
        if (path / CONFIG_FILE).exists():
            raise UsageError(f"{path} already holds a run; continue it with --resume {path} or choose another --out")
        run = cls(writable_dir(path))
        atomic_write_text(path / CONFIG_FILE, json.dumps(config.to_dict(), indent=2) + "\n")
        return run

    @classmethod
    def open(cls, path: Path) -> tuple[RunDirectory, TrainConfig]:
        """Opens an existing run to resume it."""
        try:
            values = json.loads((path / CONFIG_FILE).read_text())
            return cls(writable_dir(path)), TrainConfig.from_dict(values)
        except OSError as error:
            raise UsageError(f"{path} holds no run to resume; start one with: emqdeploy train --out {path}") from error
        except (ValueError, TypeError, KeyError) as error:
            raise EmqError(f"{path / CONFIG_FILE} is damaged ({error}); start a new run") from error

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to the metrics."""
        try:
            with (self.path / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise EmqError(f"cannot write {self.path / METRICS_FILE}: {error.strerror}; free some space") from error

    def truncate_metrics(self, epochs: int) -> None:
        """Drops the metrics of epochs that the saved state does not include; they will be trained again."""
        path = self.path / METRICS_FILE
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if json.loads(line)["epoch"] < epochs]
        atomic_write_text(path, "".join(line + "\n" for line in kept))

    def save_state(self, state: dict[str, Any]) -> None:
        """Saves what `load_state` needs to continue exactly."""
        with atomic_path(self.path / STATE_FILE) as temporary:
            try:
                torch.save(state, temporary)
            except RuntimeError as error:  # torch reports a full disk as its own error
                raise EmqError(f"cannot write {self.path / STATE_FILE}: {str(error).splitlines()[0]}") from error

    def load_state(self) -> dict[str, Any] | None:
        """Returns the saved state, or None where the run was stopped before its first save."""
        path = self.path / STATE_FILE
        if not path.exists():
            return None
        try:
            state: dict[str, Any] = torch.load(path, weights_only=True)
        except Exception as error:
            raise EmqError(f"{path} is damaged; delete it to start this run over") from error
        return state

    def save_latent(self, tensors: dict[str, Tensor]) -> None:
        """Writes the float weights, for fine-tuning and baselines."""
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()})
        atomic_write_bytes(self.path / LATENT_FILE, data)

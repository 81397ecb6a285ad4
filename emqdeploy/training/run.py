"""A run directory: configuration, metrics, the state to resume from, and what training produced."""

from __future__ import annotations

import contextlib
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError, UsageError, cannot_write, writable_dir
from emqdeploy.files import LARGEST_TEXT, atomic_path, atomic_write_bytes, atomic_write_text, open_regular, read_bytes
from emqdeploy.format.card import encode
from emqdeploy.locks import locked

CONFIG_FILE = "config.toml"
METRICS_FILE = "metrics.jsonl"
STATE_FILE = "state.pt"
SCORES_FILE = "scores.pt"
LATENT_FILE = "latent.safetensors"
LABELS_FILE = "labels.safetensors"

PIXELS_KEY = "preprocessing"
"""Under which float weights say how their network sees pictures."""


class RunDirectory:
    """The files of one run; every write is atomic, so an interrupted run leaves whole files only.

    Args:
        path: the directory.
        writes: False for all but one of several processes that train together: they read, and write nothing.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = path
        self.writes = writes

    @staticmethod
    def holds_run(path: Path) -> bool:
        """Whether a run was started in a directory."""
        return (path / CONFIG_FILE).exists()

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Keeps other processes out while the block runs; what is refused in it leaves no empty directory behind.

        Raises:
            EmqError: another process is at work here, or nothing can be written.
        """
        if not self.writes:
            yield
            return
        busy = f"another process is working in {self.path}; wait for it or choose another --out"
        with locked(writable_dir(self.path), busy):
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    self.path.rmdir()

    def check_new(self) -> None:
        """Raises where a run lies in the directory already."""
        if self.holds_run(self.path):
            raise UsageError(
                f"{self.path} already holds a run; continue it with --resume {self.path} or choose another --out"
            )

    def start(self, config: str) -> None:
        """Begins a new run with its configuration, as TOML."""
        self.check_new()
        if self.writes:
            atomic_write_text(writable_dir(self.path) / CONFIG_FILE, config)

    def log(self, record: dict[str, Any]) -> None:
        """Appends one line to the metrics."""
        if not self.writes:
            return
        try:
            with (self.path / METRICS_FILE).open("a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise cannot_write(self.path / METRICS_FILE, error) from error

    def truncate_metrics(self, epochs: int) -> None:
        """Drops the metrics of epochs that the saved state does not include; they will be trained again."""
        if not self.writes:
            return
        path = self.path / METRICS_FILE
        held = read_bytes(path, LARGEST_TEXT, "remove it to go on without") if path.exists() else b""
        lines = held.decode(errors="replace").splitlines()
        kept = [line for line in lines if _epoch_of(line) < epochs]
        atomic_write_text(path, "".join(line + "\n" for line in kept))

    def save_state(self, state: dict[str, Any]) -> None:
        """Saves what `load_state` needs to continue exactly."""
        self._save(STATE_FILE, state)

    def load_state(self) -> dict[str, Any] | None:
        """Returns the saved state, or None where the run was stopped before its first save."""
        path = self.path / STATE_FILE
        return _load(path, "delete it to start this run over") if path.exists() else None

    def save_scores(self, scores: dict[str, Any]) -> None:
        """Keeps what coresets were chosen by, for other runs."""
        self._save(SCORES_FILE, scores)

    @staticmethod
    def load_scores(run: str | Path) -> dict[str, Any]:
        """Returns what `save_scores` kept in a run directory."""
        path = Path(run) / SCORES_FILE
        if not path.exists():
            raise UsageError(f"--scores-from {run} holds no scores; name a run that was trained with --prune-rate")
        return _load(path, "score anew")

    def save_verdicts(self, verdicts: dict[str, Tensor]) -> None:
        """Keeps what training found out about the labels, where it looked."""
        if self.writes and verdicts:
            atomic_write_bytes(self.path / LABELS_FILE, safetensors.torch.save(verdicts))

    def save_latent(self, tensors: dict[str, Tensor], seen: Preprocessing) -> None:
        """Writes the float weights, for fine-tuning and baselines, and how their network sees pictures."""
        about = {PIXELS_KEY: encode(seen.pixels()).decode()}
        data = safetensors.torch.save({name: tensor.contiguous() for name, tensor in tensors.items()}, about)
        atomic_write_bytes(self.path / LATENT_FILE, data)

    def _save(self, name: str, values: dict[str, Any]) -> None:
        if not self.writes:
            return
        with atomic_path(self.path / name) as temporary:
            try:
                with temporary.open("wb") as file:
                    torch.save(values, file)
            except RuntimeError as error:  # torch makes an error of its own of a full disk
                if isinstance(error.__context__, OSError):
                    raise error.__context__ from None
                raise EmqError(f"cannot write {self.path / name}: {str(error).splitlines()[0]}") from error


def _load(path: Path, remedy: str) -> dict[str, Any]:
    """What `_save` wrote: an archive as long as what it holds, of tensors and plain values."""
    with open(open_regular(path, remedy), "rb") as file:
        try:
            check_stored(file)
            file.seek(0)
            values: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except Exception as error:
            raise EmqError(f"{path} is damaged; {remedy}") from error
    return values


def check_stored(file: BinaryIO) -> None:
    """Raises `ValueError` for an archive that is compressed: torch writes none, and it could unfold to any size."""
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in zipfile.ZipFile(file).infolist()):
        raise ValueError("it is a compressed archive, which torch.save does not write")


def _epoch_of(line: str) -> float:
    """The epoch of a line of the metrics; a line that a crash tore counts as not yet trained."""
    try:
        return int(json.loads(line)["epoch"])
    except (ValueError, KeyError):
        return float("inf")

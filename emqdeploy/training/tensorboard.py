"""Metrics as scalars for TensorBoard; an extra, because it is a large package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.errors import cannot_write, require


class TensorBoardLog:
    """Writes the records of ``metrics.jsonl`` as scalars over sample passes.

    Args:
        path: directory of the event files; made if it is not there. A resumed run adds a file, and TensorBoard reads
            them as one.

    Raises:
        EmqError: TensorBoard is not installed, or the directory cannot be written.
    """

    def __init__(self, path: Path) -> None:
        require("tensorboard", "tensorboard")
        from torch.utils.tensorboard import SummaryWriter

        try:
            self.writer = SummaryWriter(str(path))
        except OSError as error:
            raise cannot_write(path, error) from error

    def log(self, record: dict[str, Any]) -> None:
        """Writes one record: loss and validation accuracy per child, their averages, the learning rate."""
        passes = int(record["sample_passes"])
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, passes)
        self.writer.flush()

    def close(self) -> None:
        """Ends the event file."""
        self.writer.close()


def scalars(record: dict[str, Any]) -> dict[str, float]:
    """Names and values of one record of the metrics."""
    values: dict[str, float] = {"epoch": record["epoch"], "learning_rate": record["learning_rate"]}
    for key in ("loss", "validation_accuracy"):
        per_child: dict[str, float] = record[key]
        values |= {f"{key}/{name}-bit" if name.isdecimal() else f"{key}/{name}": v for name, v in per_child.items()}
        if per_child:
            values[f"{key}/average"] = sum(per_child.values()) / len(per_child)
    return values

"""What a person sees while training: one bar with accuracy per bit-width and the time left."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainProgress:
    """Shows training on standard error: a live bar on a terminal, one line an epoch elsewhere.

    Args:
        console: where to write.
        total_steps: optimizer steps of the whole run.
        done_steps: steps that a resumed run has behind it.
    """

    def __init__(self, console: Console, total_steps: int, done_steps: int) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[accuracy]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=done_steps, accuracy="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def step(self, losses: dict[str, float], images: int) -> None:
        """Counts one step: the loss of each of its children, on this many images."""
        self.progress.advance(self.task)

    def epoch(self, epoch: int, epochs: int, phase: str, losses: dict[str, float], accuracy: dict[int, float]) -> None:
        """Reports the validation accuracy after an epoch."""
        shown = "  ".join(f"{bits}-bit {percent:.1f}%" for bits, percent in accuracy.items())
        self.progress.update(self.task, description=f"{phase} {epoch + 1}/{epochs}", accuracy=shown)
        if not self.console.is_terminal:
            loss = sum(losses.values()) / len(losses)
            said = f"  validation {shown}" if accuracy else ""
            self.console.print(f"{phase} epoch {epoch + 1}/{epochs}  loss {loss:.3f}{said}", highlight=False)

"""What a person sees while training: a live table of loss and accuracy per child, speed, and the time left."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

WINDOW_S = 20.0
"""Seconds over which the speed is averaged."""

SMOOTHING = 0.95
"""Weight of the past in the loss shown."""


class TrainProgress:
    """Shows training on standard error: a live table on a terminal, one line an epoch elsewhere.

    Args:
        console: where to write.
        total_steps: optimizer steps of the whole run.
        done_steps: steps that a resumed run has behind it.
        children: names of the trained children, in the order of the table.
    """

    def __init__(self, console: Console, total_steps: int, done_steps: int, children: Sequence[str]) -> None:
        self.console = console
        self.children = list(children)
        self.losses: dict[str, float] = {}
        self.accuracy: dict[str, float] = {}
        self.speed = Speed()
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[speed]}"),
        )
        self.task = self.progress.add_task("train", total=total_steps, completed=done_steps, speed="")
        self.live = Live(console=console, get_renderable=self.render, refresh_per_second=2, transient=False)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.live.stop()

    def step(self, losses: dict[str, float], images: int) -> None:
        """Counts one step: the loss of each child that it trained, on this many images."""
        for child, loss in losses.items():
            before = self.losses.get(child, loss)
            self.losses[child] = SMOOTHING * before + (1 - SMOOTHING) * loss
        self.speed.add(images * len(losses), time.monotonic())
        self.progress.advance(self.task)

    def epoch(self, epoch: int, epochs: int, phase: str, losses: dict[str, float], accuracy: dict[str, float]) -> None:
        """Reports an epoch: the mean loss of each child and, where it was measured, the validation accuracy."""
        self.accuracy = accuracy or self.accuracy
        self.progress.update(self.task, description=f"{phase} {epoch + 1}/{epochs}")
        if not self.console.is_terminal:
            shown = "  ".join(f"{_short(name)} {percent:.1f}%" for name, percent in accuracy.items())
            loss = sum(losses.values()) / len(losses)
            said = f"  validation {shown}" if accuracy else ""
            speed = f"  {self.speed}" if str(self.speed) else ""
            line = f"{phase} epoch {epoch + 1}/{epochs}  loss {loss:.3f}{said}{speed}"
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def render(self) -> RenderableType:
        """The table and, below it, the bar."""
        self.progress.update(self.task, speed=str(self.speed))
        table = Table(box=None, pad_edge=False, header_style="dim")
        table.add_column("child", justify="right")
        table.add_column("loss", justify="right", min_width=7)
        table.add_column("validation", justify="right")
        seen = {*self.losses, *self.accuracy}
        shown = [name for name in self.children if name in seen] + sorted(seen - set(self.children))
        for name in shown:
            loss, percent = self.losses.get(name), self.accuracy.get(name)
            table.add_row(
                Text(name),
                "" if loss is None else f"{loss:.3f}",
                "-" if percent is None else f"{percent:.1f} %",
                style="bold",
            )
        return Group(table, self.progress) if shown else self.progress


def _short(name: str) -> str:
    return f"{name}-bit" if name.isdecimal() else name


class Speed:
    """Sample passes per second over the last seconds; a child's pass over an image counts as one."""

    def __init__(self) -> None:
        self.marks: deque[tuple[float, int]] = deque()
        self.passes = 0

    def add(self, passes: int, now: float) -> None:
        """Notes passes that were done by ``now``, in seconds of any clock."""
        self.passes += passes
        self.marks.append((now, self.passes))
        while self.marks[-1][0] - self.marks[0][0] > WINDOW_S:
            self.marks.popleft()

    def __str__(self) -> str:
        """For people; empty until there is something to measure."""
        if len(self.marks) < 2 or self.marks[-1][0] <= self.marks[0][0]:
            return ""
        (start, before), (end, after) = self.marks[0], self.marks[-1]
        return f"{(after - before) / (end - start):,.0f} samples/s"

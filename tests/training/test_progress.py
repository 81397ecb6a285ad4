"""What a person sees while training."""

from __future__ import annotations

import io

from rich.console import Console

from emqdeploy.training.progress import Speed, TrainProgress


def test_a_terminal_shows_every_child() -> None:
    """Loss and accuracy per child, in the order of their widths, steps, speed and the time left stand in the table."""
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with TrainProgress(console, total_steps=100, done_steps=0, children=["1", "2a4", "8"]) as shown:
        for _ in range(50):
            shown.step({"8": 1.25, "1": 2.5, "2a4": 2.0, "drawn": 3.0}, images=64)
        shown.epoch(0, 2, "train", {"8": 1.25, "1": 2.5}, {"1": 61.2, "8": 72.9})
        plain = Console(file=io.StringIO(), width=120)
        plain.print(shown.render())
        text = plain.file.getvalue()
    lines = text.splitlines()
    assert [line.split()[0] for line in lines[1:5]] == ["1", "2a4", "8", "drawn"]
    assert lines[1].split() == ["1", "2.500", "61.2", "%"]
    assert lines[4].split() == ["drawn", "3.000", "-"]
    assert "train 1/2" in lines[5]
    assert "50/100" in lines[5]
    assert "samples/s" in lines[5]


def test_elsewhere_there_is_one_line_an_epoch() -> None:
    """A log file gets no control characters, and no line is wrapped."""
    console = Console(file=io.StringIO(), width=40)
    with TrainProgress(console, total_steps=4, done_steps=2, children=["1", "8"]) as shown:
        shown.step({"8": 1.0}, images=64)
        shown.epoch(1, 2, "score", {"8": 1.0, "1": 2.0}, {"1": 61.25, "8": 72.0})
        shown.epoch(1, 2, "train", {"8": 1.0}, {})
    lines = console.file.getvalue().splitlines()
    assert lines == ["score epoch 2/2  loss 1.500  validation 1-bit 61.2%  8-bit 72.0%", "train epoch 2/2  loss 1.000"]


def test_the_speed_is_that_of_the_last_seconds() -> None:
    """An early slow start (a compilation) is forgotten."""
    speed = Speed()
    assert str(speed) == ""
    speed.add(1, 0.0)
    for second in range(100, 130):
        speed.add(500, float(second))
    assert str(speed) == "500 samples/s"

"""Tables in a real terminal of 80 columns: none is cut, and what matters stands in the first of its parts."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest


def on_terminal(folder: Path, *arguments: str, python: str = sys.executable) -> list[str]:
    """Lines that a command of a Python's emqdeploy prints to a terminal of 80 columns, without colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    unset = ("COLUMNS", "LINES", "NO_COLOR")
    shell = {name: value for name, value in os.environ.items() if name not in unset} | {"TERM": "xterm-256color"}
    command = [python, "-m", "emqdeploy", *arguments]
    process = subprocess.Popen(command, cwd=folder, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL, env=shell)
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end was closed
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait() == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", printed.decode()).splitlines()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("verify --bits 2,8 --images 8", ("verdict", "ok", "same class", "differing codes")),
        ("bench --bits 2,8 --samples 20 --energy none", ("accuracy", "p50 µs", "p99", "size")),
        (
            "bench --bits 2,8 --samples 20 --energy none --runtime onnxruntime",
            ("accuracy", "p50 µs", "p99", "ratio of p50 [95 %]", "size"),
        ),
        ("export --bits 2,8", ("file", "size", "differing codes", "agreement 100.0 %")),
        ("inspect", ("weights", "accuracy", "bytes to load")),
        ("eval", ("accuracy", "trained")),
    ],
)
def test_nothing_is_cut(trained: Path, command: str, words: tuple[str, ...]) -> None:
    """No line of a table is longer than the terminal, no cell ends in dots, and every figure that counts is there."""
    lines = on_terminal(trained, *command.split())
    tables = [line for line in lines if re.search("[│┃┏┌]", line)]
    assert tables
    assert all(len(line) <= 80 for line in tables)
    assert "…" not in "".join(lines)
    heads = [[cell.strip() for cell in line.split("┃")] for line in lines if "┃" in line]
    columns = [" ".join(filter(None, cells)) for cells in zip(*heads[:3], strict=False)] if heads else []
    said = " ".join([*columns, *(" ".join(row) for row in heads), *lines])
    for word in words:
        assert word in " ".join(said.split()), word

"""How long work tells what it is doing: a function that receives one line."""

from __future__ import annotations

from collections.abc import Callable

Report = Callable[[str], None]
"""Receives one line about what is being done."""


def silent(_: str) -> None:
    """Reports nothing."""

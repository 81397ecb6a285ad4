"""How long work tells what it is doing: a function that receives one line."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import Protocol, TypeVar

Report = Callable[[str], None]
"""Receives one line about what is being done."""


def silent(_: str) -> None:
    """Reports nothing."""


T = TypeVar("T", covariant=True)


class Countable(Sized, Iterable[T], Protocol[T]):
    """What has a length and can be gone through."""


QUIET_S = 10.0
"""Seconds of work that nobody needs to hear of."""


def paced(work: Countable[T], what: str, report: Report) -> Iterator[T]:
    """Goes through work, and says every ten seconds how far it is and how long the rest will take.

    Args:
        work: its parts, of about the same length.
        what: is being done.
        report: receives the lines.
    """
    started = said = time.monotonic()
    for done, part in enumerate(work):
        now = time.monotonic()
        if done and now - said >= QUIET_S:
            left = (now - started) / done * (len(work) - done)
            report(f"{what}: {done} of {len(work)}, about {left:.0f} s left")
            said = now
        yield part

"""What has to hold a million times: damaged files, kills at any moment, and switching under load.

``python -m benchmarks.soak --minutes 10`` goes on where the last sitting ended (``--state``), kind by kind, until each
has reached its goal; ``--kind emq --count 2000`` does so many of one kind. It works at a low priority. ``--page``
brings the tables of `docs/reliability.md` up to what was counted and does nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import soak_files, soak_kills, soak_page, soak_switches
from emqdeploy.files import atomic_write_text

LEDGER = Path(__file__).parent / "results" / "soak.json"
FOUND = Path("soak/found")
"""What showed a fault: for whoever looks into it, on this machine."""

FAULTS = ("foreign", "slow", "crashed", "lost", "mixed")
"""Outcomes that must not be."""


@dataclass(frozen=True)
class Kind:
    """One kind of what is done over and over.

    Attributes:
        sit: does so many from a number on, leaves what showed a fault in a folder, returns how often what came of it.
        goal: how many are meant to be done.
        at_once: how many until the state is written.
    """

    sit: Callable[[int, int, Path], Counter[str]]
    goal: int
    at_once: int


KINDS = {name: Kind(partial(soak_files.sit, name), soak_files.GOAL, 2500) for name in soak_files.FILES}
KINDS |= {name: Kind(partial(soak_kills.sit, name), goal, 20) for name, goal in soak_kills.GOALS.items()}
KINDS |= {
    name: Kind(partial(soak_switches.sit, name), goal, min(50_000, goal // 4))
    for name, goal in soak_switches.GOALS.items()
}


def soak(kinds: list[str], minutes: float, count: int | None, state: Path) -> int:
    """Goes through the kinds in turn until the time is over; returns how many faults all sittings saw."""
    totals: dict[str, dict[str, int]] = json.loads(state.read_text()) if state.exists() else {}
    until = time.monotonic() + 60 * minutes
    done = {kind: totals.get(kind, {}).get("done", 0) for kind in kinds}
    ends = {kind: max(done[kind], KINDS[kind].goal) if count is None else done[kind] + count for kind in kinds}
    while any(done[kind] < ends[kind] for kind in kinds) and (count is not None or time.monotonic() < until):
        for kind in kinds:
            take = min(KINDS[kind].at_once, ends[kind] - done[kind])
            if not take or (count is None and time.monotonic() >= until):
                continue
            counts = Counter(totals.get(kind, {})) + KINDS[kind].sit(done[kind], take, FOUND)
            counts["done"] = done[kind] = done[kind] + take
            totals[kind] = dict(counts)
            atomic_write_text(state, json.dumps(totals, indent=1) + "\n")
            print(kind, " ".join(f"{name} {value:,}" for name, value in counts.items()), flush=True)
    return sum(held.get(name, 0) for held in totals.values() for name in FAULTS)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kind", action="append", choices=list(KINDS), help="only this kind; may be repeated")
    parser.add_argument("--minutes", type=float, default=10.0, help="how long, unless --count says how many")
    parser.add_argument("--count", type=int, help="how many of each kind")
    parser.add_argument("--state", type=Path, default=LEDGER, help="where the counters stand")
    parser.add_argument("--page", action="store_true", help="only write the tables of docs/reliability.md anew")
    given = parser.parse_args()
    if given.page:
        page = soak_page.updated(soak_page.PAGE.read_text(), json.loads(given.state.read_text()))
        atomic_write_text(soak_page.PAGE, page)
        return
    os.nice(15)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up
    sys.exit(1 if soak(given.kind or list(KINDS), given.minutes, given.count, given.state) else 0)


if __name__ == "__main__":
    main()

"""A stream under a policy, as it happens: a panel on a terminal, a line every few seconds elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from emqdeploy.errors import plain_text
from emqdeploy.report.fitting import styled
from emqdeploy.report.units import milliseconds, percent

if TYPE_CHECKING:
    from typing import Self

LINE_S = 2.0
"""Between two lines where there is no terminal."""

_BARS = "▁▂▃▄▅▆▇█"
_STYLES = {"met": "green", "over": "bold yellow", "infeasible": "bold red", "waiting": "dim"}
_WORDS = {
    "met": "within the budgets",
    "over": "over a budget, acting",
    "infeasible": "over a budget, and nothing helps",
    "waiting": "measuring",
}


class LiveView:
    """Shows what `emqdeploy.serving.account.State.shown` tells, on standard error.

    Args:
        console: where to draw; standard error by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._next_s = LINE_S

    def __call__(self, shown: dict[str, Any]) -> None:
        """Draws the present state."""
        if self._console.is_terminal:
            self._live.start()  # the first time; until then lines may be printed as usual
            self._live.update(panel(shown), refresh=True)
        elif shown["seconds"] >= self._next_s:
            self._next_s = shown["seconds"] + LINE_S
            print(plain_text(line(shown)), file=sys.stderr, flush=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()


def line(shown: dict[str, Any]) -> str:
    """One line for a log."""
    recent = shown["recent_ms"]
    p50 = milliseconds(float(np.percentile(recent, 50))) if recent else "-"
    p99 = milliseconds(float(np.percentile(recent, 99))) if recent else "-"
    return (
        f"{shown['seconds']:.0f} s: {shown['images']} images, {shown['setting']}, p50 {p50}, p99 {p99},"
        f" accuracy {percent(shown['accuracy'])}, {shown['switches']} switches, {_WORDS[shown['state']]}"
    )


def panel(shown: dict[str, Any]) -> RenderableType:
    """The picture on a terminal."""
    recent, limits = shown["recent_ms"], shown["limits"]
    limit = next((value for name, value in limits.items() if name.startswith("latency")), None)
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim")
    facts.add_column()
    facts.add_row("setting", styled(shown["setting"], "bold cyan"))
    facts.add_row("state", Text(_WORDS[shown["state"]], style=_STYLES[shown["state"]]))
    if recent:
        percentiles = "  ".join(f"{name} {milliseconds(float(np.percentile(recent, q)))}" for name, q in
                                (("p50", 50), ("p99", 99), ("worst", 100)))  # fmt: skip
        facts.add_row("latency", f"{percentiles}  (last {len(recent)})")
        facts.add_row("", _sparkline(recent, limit))
    rate = shown["images"] / shown["seconds"] if shown["seconds"] else 0.0
    facts.add_row("images", f"{shown['images']}, {rate:.1f} a second" + _unreadable(shown["unreadable"]))
    labels = f"of {shown['labelled']} labelled" if shown["labelled"] else "the folders name no classes"
    facts.add_row("accuracy", f"{percent(shown['accuracy'])} {labels}")
    power = shown["power_w"]
    missing = f"not measured: {shown['no_power'] or 'no reading'}"
    facts.add_row("power", styled(missing) if power is None else f"{power:.2f} W")
    if shown["temperature_c"] is not None:
        facts.add_row("hottest", f"{shown['temperature_c']:.0f} °C")
    latest = shown["latest"]
    if latest:
        facts.add_row("latest", styled(f"{latest['class']} ({100 * latest['probability']:.0f} %)  {latest['file']}"))
    facts.add_row("decision", styled(shown["last_decision"]))
    footer = Text("Ctrl-C ends and prints the summary", style="dim")
    return Panel(Group(facts, footer), title=styled(f"emqdeploy run: {shown['policy']}"), title_align="left")


def _sparkline(values: Sequence[float], limit: float | None, width: int = 60) -> Text:
    """The latest latencies as bars, red above the budget; the height is the slower of budget and slowest."""
    recent = list(values)[-width:]
    top = max([*recent, *([limit] if limit is not None else [])])
    text = Text()
    for value in recent:
        bar = _BARS[min(int(value / top * len(_BARS)), len(_BARS) - 1)]
        text.append(bar, style="red" if limit is not None and value > limit else "green")
    return text


def _unreadable(count: int) -> str:
    return f", {count} unreadable" if count else ""

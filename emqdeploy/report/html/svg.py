"""Drawing: a plot area with axes, and marks in it, as SVG text. Colours come from the page's style sheet."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

Format = Callable[[float], str]

CHARACTER = 6.3
"""Width of an average character of a label, in pixels."""


_LEAST, _LEAST_SHARE = 1e-12, 1e-9
"""Where an axis of a logarithm begins at least: a value, and a share of its end."""


@dataclass(frozen=True)
class Scale:
    """Maps values to pixels.

    Attributes:
        low: the value at ``start``.
        high: the value at ``end``.
        start: a pixel.
        end: a pixel.
        log: equal ratios take equal room.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __post_init__(self) -> None:
        """Gives equal ends some room, and a logarithm nothing that it has none of."""
        low = max(self.low, self.high * _LEAST_SHARE, _LEAST) if self.log else self.low
        object.__setattr__(self, "low", low)
        if not self.high > low:
            object.__setattr__(self, "high", low + max(abs(low), 1.0) * 1e-3)

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        if self.log:
            share = math.log(max(value, self.low * 1e-3) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int) -> list[float]:
        """Round values inside the scale, about so many."""
        return _log_ticks(self.low, self.high, about) if self.log else _ticks(self.low, self.high, about)


def span(values: Sequence[float], least: float, pad: float = 0.08) -> tuple[float, float]:
    """Room for values: at least ``least`` wide, so that noise does not look like a difference, with a margin."""
    low, high = min(values), max(values)
    width = max(high - low, least)
    middle = (low + high) / 2
    return middle - width * (0.5 + pad), middle + width * (0.5 + pad)


def _ticks(low: float, high: float, about: int) -> list[float]:
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _log_ticks(low: float, high: float, about: int) -> list[float]:
    decades = math.log10(high / low)
    if decades < 1:
        return _ticks(low, high, about)
    factors = (1, 2, 5) if decades < about / 2 else (1,)
    first = math.floor(math.log10(low))
    values = [10.0**power * factor for power in range(first, first + math.ceil(decades) + 2) for factor in factors]
    return [value for value in values if low * 0.999 <= value <= high * 1.001]


class Drawing:
    """SVG elements in the order in which they are painted.

    Args:
        width: of the view box, which is also the natural size in pixels.
        height: likewise.
        title: read by screen readers.
    """

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width = width
        self.height = height
        self.title = title
        self.parts: list[str] = []

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
        """A straight line of a class."""
        self.parts.append(f'<line class="{kind}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>')

    def path(self, points: Sequence[tuple[float, float]], kind: str, closed: bool = False, tip: str = "") -> None:
        """A polyline, or an area."""
        steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        self.parts.append(f'<path class="{kind}"{_tip(tip)} d="M{steps}{"Z" if closed else ""}"/>')

    def rect(self, x: float, y: float, width: float, height: float, kind: str, tip: str = "") -> None:
        """A rectangle."""
        size = f'width="{max(width, 0):.1f}" height="{max(height, 0):.1f}"'
        self.parts.append(f'<rect class="{kind}"{_tip(tip)} x="{x:.1f}" y="{y:.1f}" {size}/>')

    def text(self, x: float, y: float, content: str, kind: str = "", anchor: str = "start") -> None:
        """A line of text; ``y`` is its base line."""
        named = f' class="{kind}"' if kind else ""
        where = f' text-anchor="{anchor}"' if anchor != "start" else ""
        self.parts.append(f'<text{named} x="{x:.1f}" y="{y:.1f}"{where}>{escape(content)}</text>')

    def dots(self, points: Sequence[tuple[float, float]], radius: float, kind: str) -> None:
        """Many small dots as one element: round line ends of no length."""
        steps = "".join(f"M{x:.1f} {y:.1f}h0" for x, y in points)
        self.parts.append(f'<path class="dots {kind}" style="stroke-width:{2 * radius:g}" d="{steps}"/>')

    def mark(self, x: float, y: float, shape: str, kind: str, tip: str = "", radius: float = 6.5) -> None:
        """A point that the pointer and the keyboard can reach."""
        r = radius
        shapes = {
            "circle": f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r}"/>',
            "square": f'<rect x="{x - r:.1f}" y="{y - r:.1f}" width="{2 * r:g}" height="{2 * r:g}"/>',
            "diamond": f'<path d="M{x:.1f} {y - r * 1.25:.1f}l{r * 1.25:.1f} {r * 1.25:.1f}l{-r * 1.25:.1f} '
            f'{r * 1.25:.1f}l{-r * 1.25:.1f} {-r * 1.25:.1f}Z"/>',
            "triangle": f'<path d="M{x:.1f} {y - r * 1.2:.1f}l{r * 1.2:.1f} {r * 2.1:.1f}h{-r * 2.4:.1f}Z"/>',
        }
        focus = ' tabindex="0"' if tip else ""
        self.parts.append(f'<g class="mark {kind}"{_tip(tip)}{focus}>{shapes[shape]}</g>')

    def x_axis(self, scale: Scale, y: float, top: float, title: str, form: Format, about: int = 5) -> None:
        """Tick labels below ``y``, a grid up to ``top``, and the axis' name."""
        edge = -math.inf
        for value in scale.ticks(about):
            x, label = scale(value), _short(form(value))
            self.line(x, top, x, y, "grid")
            half = len(label) * CHARACTER / 2
            if x - half > edge:
                self.text(x, y + 16, label, "tick", "middle")
                edge = x + half + 4
        self.line(scale.start, y, scale.end, y, "axis")
        self.text((scale.start + scale.end) / 2, y + 34, title, "name", "middle")

    def y_axis(self, scale: Scale, x: float, right: float, form: Format, about: int = 5) -> None:
        """Tick labels left of ``x`` and a grid up to ``right``."""
        for value in scale.ticks(about):
            y = scale(value)
            self.line(x, y, right, y, "grid")
            self.text(x - 7, y + 4, _short(form(value)), "tick", "end")

    def render(self, kind: str) -> str:
        """The whole picture, in a class."""
        box = f'viewBox="0 0 {self.width:g} {self.height:g}"'
        named = f'class="{kind}" role="img" aria-label="{escape(self.title)}"'
        return f'<svg {named} {box} style="max-width:{self.width:g}px">{"".join(self.parts)}</svg>'


def place_labels(
    wanted: Sequence[tuple[float, float, float]], top: float, bottom: float, right: float
) -> list[tuple[float, float]]:
    """Finds places for texts so that none covers another.

    Args:
        wanted: left end, base line and width of each text.
        top: no base line lies higher than a text below this.
        bottom: no base line lies lower.
        right: no text reaches further.

    Returns:
        left end and base line of each; where there is no room at all, the wanted one.
    """
    taken: list[tuple[float, float, float]] = []
    places = []
    for left, base, width in wanted:
        start = min(left, right - width)
        spots = [base + sign * step * 3.5 for step in range(40) for sign in (1, -1)]
        free = (
            spot
            for spot in spots
            if top + 10 <= spot <= bottom
            and all(abs(spot - y) >= 14 or start + width < x or x + other < start for x, y, other in taken)
        )
        y = next(free, base)
        taken.append((start, y, width))
        places.append((start, y))
    return places


def fitted(text: str, pixels: float) -> str:
    """A text cut so that it needs at most so many pixels."""
    most = max(int(pixels / CHARACTER), 1)
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _short(label: str) -> str:
    """Without zeros behind the point: ticks are round."""
    return re.sub(r"(\.\d*?)0+(?!\d)", lambda found: found.group(1).rstrip("."), label)


def _tip(tip: str) -> str:
    return f' data-tip="{escape(tip)}"' if tip else ""

"""One scale of colours for bit-widths, wherever they are drawn: from orange to blue, and away from the paper."""

from __future__ import annotations

LIGHT = ("#dd7b2b", "#d26046", "#bf4b5d", "#a53b70", "#86307d", "#642984", "#402282", "#161d77")
DARK = ("#cb6620", "#e06a5c", "#ec7490", "#f084c2", "#ea98f1", "#d5b9ff", "#cfd3fe", "#d7e6fd")
"""1 to 8 bits on white and on black: steps of equal lightness (OKLCH), each with a contrast of 3 or more."""


def of_bits(bits: int) -> str:
    """The colour of a bit-width on white; of more than eight bits as of eight."""
    return LIGHT[min(max(bits, 1), len(LIGHT)) - 1]


def style() -> str:
    """The scale as variables of a style sheet: ``--b1`` to ``--b8``."""

    def named(scale: tuple[str, ...]) -> str:
        return "; ".join(f"--b{bits}: {colour}" for bits, colour in enumerate(scale, 1))

    return f':root {{ {named(LIGHT)}; }}\n:root[data-theme="dark"] {{ {named(DARK)}; }}\n'

"""Bit-widths as users write them."""

from __future__ import annotations

from emqdeploy.errors import UsageError
from emqdeploy.grid import ALL_BITS


def check_bits(bits: tuple[int, ...]) -> None:
    """Raises for an empty list, a bit-width outside 1..8 or one that is named twice."""
    given = ",".join(map(str, bits))
    if not bits or any(width not in ALL_BITS for width in bits):
        raise UsageError(f"--bits is {given or 'empty'}; allowed: 1..8, for example --bits 2,4,8")
    if len(set(bits)) != len(bits):
        raise UsageError(f"--bits {given} names a bit-width twice; name each once")

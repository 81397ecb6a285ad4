"""How much of int8 and uint8 a network uses, which decides the kernels that compute it exactly.

An x86 kernel without VNNI adds two products of a uint8 code and an int8 weight in int16, and saturates. At `HALF`
levels no pair of products leaves int16, and a tensor that is never negative has the 128 codes that symmetric int8 has
for it, so every target is exact. At `FULL` levels every code is used, with zero of a signed tensor where its range asks
for it: an 8-bit network is one to two decibels nearer to its float model, and exact where products are added in int32,
that is with VNNI, AMX or on ARM, and in onnxruntime's exact kernels elsewhere.
"""

from __future__ import annotations

from typing import Literal, get_args

Levels = Literal["half", "full"]
HALF: Levels = "half"
FULL: Levels = "full"
LEVELS: tuple[Levels, ...] = get_args(Levels)


def largest_weight(signed: bool, levels: Levels = HALF) -> int:
    """The largest ``|z|`` of a layer.

    Args:
        signed: whether the layer reads a signed tensor, uint8 with zero point 128: ``2 * 255 * 64 <= 32767``. Codes
            0..127 allow more: ``2 * 127 * 127 <= 32767``.
        levels: of the network.
    """
    return 64 if signed and levels == HALF else 127


def largest_code(levels: Levels = HALF) -> int:
    """The largest code of a tensor that is never negative."""
    return 255 if levels == FULL else 127

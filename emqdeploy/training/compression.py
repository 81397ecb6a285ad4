"""Messages of few bits: what processes tell one another is quantized at random, to as many levels as the loss allows.

Stochastic uniform quantization (QSGD, arXiv 1610.02132): a number of a vector ``v`` is sent as its sign and one of
``s + 1`` levels of the vector's norm, ``Q(v_i) = |v| sign(v_i) l_i / s``. ``l_i`` is ``s |v_i| / |v|``, rounded up with
the probability of what is behind the point, so that the mean of ``Q(v)`` is ``v``.

AdaQuantFL (arXiv 2102.04487) has few levels at first and more as the loss falls, ``s = ceil(sqrt(F_0 / F) s_0)`` with
``s_0 = 2``: coarse updates are good enough as long as there is much to win. Of the paper the abstract could be read,
and the rule in the code of others. How the loss is measured here is reconstructed: by what training says as it goes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from emqdeploy.errors import UsageError
from emqdeploy.registry import Registry
from emqdeploy.training.distributed import World

START_LEVELS = 2
"""``s_0`` of AdaQuantFL."""

WIDTHS = range(2, 17)
"""Bits of a number, its sign included; beyond them a message is hardly better for being longer."""

MEMORY = 15 / 16
"""Share of the smoothed loss that another step leaves as it was: the loss of one batch says little."""


def bits_of(levels: int) -> int:
    """Bits of a number in a message: one of ``levels + 1`` levels, and a sign."""
    return 1 + levels.bit_length()


def encode(values: Tensor, levels: int, generator: torch.Generator, bucket: int = 0) -> Tensor:
    """Quantizes numbers and packs them.

    Args:
        values: ``(N,)`` float32.
        levels: ``s``.
        generator: decides which way each number is rounded; on the device of the numbers.
        bucket: numbers that share a norm; 0 is all of them.

    Returns:
        the message, bytes ``(M,)``: a float32 norm per bucket, then `bits_of` bits per number.
    """
    rows = _rows(values, bucket)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).float()
    place = (rows.abs() / norms.clamp(min=1e-38)[:, None] * levels).clamp(max=levels)
    drawn = torch.rand(place.shape, generator=generator, device=place.device)
    codes = (place + drawn).floor().clamp(max=levels).flatten()[: len(values)].nan_to_num().long()
    codes += (values < 0) * 2 ** levels.bit_length()
    return torch.cat([norms.view(torch.uint8), _packed(codes, bits_of(levels))])


def decode(message: Tensor, count: int, levels: int, bucket: int = 0) -> Tensor:
    """The inverse of `encode`, up to rounding: ``(count,)`` float32."""
    norms, packed = message.split([4 * _buckets(count, bucket), len(message) - 4 * _buckets(count, bucket)])
    codes = _unpacked(packed, count, bits_of(levels))
    top = 2 ** levels.bit_length()
    values = torch.where(codes >= top, top - codes, codes).float() / levels
    rows = _rows(values, bucket) * norms.clone().view(torch.float32)[:, None]
    return rows.flatten()[:count]


def _buckets(count: int, bucket: int) -> int:
    return 1 if bucket == 0 else -(-count // bucket)


def _rows(values: Tensor, bucket: int) -> Tensor:
    """Numbers ``(N,)`` by bucket, the last one filled up with zeros."""
    rows = _buckets(len(values), bucket)
    size = bucket or len(values)
    return torch.nn.functional.pad(values, (0, rows * size - len(values))).view(rows, size)


def _packed(codes: Tensor, bits: int) -> Tensor:
    """Whole numbers ``(N,)`` of so many bits each, as bytes."""
    bit = codes[:, None] >> torch.arange(bits, device=codes.device) & 1
    whole = torch.nn.functional.pad(bit.flatten(), (0, -codes.numel() * bits % 8)).view(-1, 8)
    return (whole << torch.arange(8, device=codes.device)).sum(1).to(torch.uint8)


def _unpacked(packed: Tensor, count: int, bits: int) -> Tensor:
    bit = (packed.long()[:, None] >> torch.arange(8, device=packed.device) & 1).flatten()[: count * bits]
    return (bit.view(count, bits) << torch.arange(bits, device=packed.device)).sum(1)


class Compression:
    """Every number as it is, 32 bits; the base of the others.

    Args:
        bucket: numbers that share a norm; 0 is all of a message.

    Attributes:
        levels: of the next message; 0 where numbers are sent as they are.
    """

    def __init__(self, bucket: int = 0) -> None:
        self.bucket = bucket
        self.levels = 0

    def sum_(self, world: World, plain: Sequence[Tensor], learned: Sequence[Tensor], draw: tuple[int, ...]) -> None:
        """Adds up tensors over all processes, in place; all of them hold the same afterwards.

        Args:
            world: the processes.
            plain: tensors that are sent as they are, losses and statistics.
            learned: gradients or updates, which may be compressed.
            draw: numbers that decide the random choices of this message.
        """
        world.sum_([*plain, *learned])

    def hear(self, loss: Tensor, steps: int) -> None:
        """Told the mean training loss of all processes over so many steps, the same everywhere."""

    def state(self) -> dict[str, Any]:
        """What continuing exactly needs."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""


COMPRESSIONS: Registry[type[Compression]] = Registry("compression")
COMPRESSIONS.register("none")(Compression)


class FixedWidth(Compression):
    """Numbers of a few bits.

    Args:
        bucket: see `Compression`.
        bits: of a number, its sign included.
    """

    def __init__(self, bucket: int = 0, bits: int = bits_of(START_LEVELS)) -> None:
        super().__init__(bucket)
        self.levels = 2 ** (bits - 1) - 1

    def sum_(self, world: World, plain: Sequence[Tensor], learned: Sequence[Tensor], draw: tuple[int, ...]) -> None:
        """Sends what was learned in few bits; also what this process adds itself is what the others hear of it."""
        super().sum_(world, plain, (), draw)
        if not learned:
            return
        flat = torch.cat([tensor.detach().reshape(-1).to(torch.float32) for tensor in learned])
        generator = torch.Generator(flat.device).manual_seed(hash((*draw, world.rank)) & (2**63 - 1))
        message = encode(flat, self.levels, generator, self.bucket)
        total = torch.zeros_like(flat)
        for heard in world.collect(message):
            total += decode(heard, len(flat), self.levels, self.bucket)
        for tensor, values in zip(learned, total.split([tensor.numel() for tensor in learned]), strict=True):
            tensor.detach().copy_(values.view_as(tensor))


@COMPRESSIONS.register("adaptive")
class Adaptive(FixedWidth):
    """More levels as the loss falls (AdaQuantFL); fewer again where it rises."""

    def __init__(self, bucket: int = 0) -> None:
        super().__init__(bucket)
        self.levels = START_LEVELS
        self.first = self.recent = 0.0

    def hear(self, loss: Tensor, steps: int) -> None:
        """Smooths the loss; the first one heard is what all others are measured by."""
        value = float(loss)
        if not math.isfinite(value):  # it ends the run, with a sentence of its own
            return
        if self.first == 0:
            self.first = self.recent = value
        self.recent += (1 - MEMORY**steps) * (value - self.recent)
        wanted = math.ceil(math.sqrt(self.first / max(self.recent, 1e-30)) * START_LEVELS)
        self.levels = max(1, min(wanted, 2 ** (WIDTHS[-1] - 1) - 1))

    def state(self) -> dict[str, Any]:
        """The losses."""
        return {"first": self.first, "recent": self.recent, "levels": self.levels}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.first, self.recent, self.levels = state["first"], state["recent"], state["levels"]


def read_compression(value: object) -> str:
    """Reads ``none``, ``adaptive`` or a number of bits.

    Raises:
        UsageError: it is neither.
    """
    text = str(value)
    if text in COMPRESSIONS or (text.isdecimal() and int(text) in WIDTHS):
        return text
    raise UsageError(
        f"--compress is {text!r}; allowed: {', '.join(COMPRESSIONS)}, or {WIDTHS[0]} to {WIDTHS[-1]} bits a number"
    )


def compression_of(name: str, bucket: int) -> Compression:
    """The compression that `read_compression` read."""
    return FixedWidth(bucket, int(name)) if name.isdecimal() else COMPRESSIONS[name](bucket)

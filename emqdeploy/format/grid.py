"""The numeric contract: nested codes, integer grids, and the exact arithmetic of integer kernels.

Everything here is numpy; `emqdeploy.quant` mirrors the weight side in torch so that it can be trained.

A weight tensor has shape ``(C, ...)``, output channels first. Its master is one uint8 code per weight. The code at
bit-width ``b`` is the ``b`` most significant bits of the master, so one tensor holds every bit-width:

    x   = tanh(w) / (2 max|tanh w|) + 1/2          in [0, 1]
    c_b = min(floor(2^b x), 2^b - 1) = c_8 >> (8 - b)
    u_b = 2 c_b - (2^b - 1)                        odd integers

Integer kernels know neither float offsets nor half steps, so a channel is deployed on an integer grid
``weight = scale * z`` with ``z = m u + k`` and ``|z| <= limit``. The arithmetic below is what a fused onnxruntime
graph computes, operation by operation; a difference of one code is a defect.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from emqdeploy.format.child import MASTER_BITS
from emqdeploy.format.levels import HALF, Levels, largest_code

Kind = Literal["odd", "integer", "table"]
ODD: Kind = "odd"
INTEGER: Kind = "integer"
TABLE: Kind = "table"
"""Kinds of grid: a code stands for ``u = 2 c - (2^b - 1)``, for ``u = c - 2^(b-1)``, which has a zero, or for a number
of its channel's table."""

WIDEST_TABLE = 4
"""Bits of a code that stands for a number of a table: more would cost as much as they say."""

BIAS_HEADROOM = 2.0**30
"""Largest integer bias; what is left of int32 holds the products."""

SMALLEST_SCALE = 1e-20
"""A scale must be positive and its products must stay normal float32 numbers."""

_BLOCK = 1 << 15
"""Words of eight codes that are transposed at a time: they stay in the cache."""

Codes = NDArray[np.uint8]
Floats = NDArray[np.float32]


# --- codes and bit-planes -----------------------------------------------------------------------------------------


def encode(weights: NDArray[np.floating[Any]]) -> Codes:
    """Returns the master code of every weight of one layer; see the module's formula. An all-zero layer gives 128."""
    squashed = np.tanh(weights.astype(np.float32))
    peak = np.float32(max(float(np.abs(squashed).max(initial=0.0)), 1e-30))
    unit = squashed / (2 * peak) + np.float32(0.5)
    return np.minimum(np.floor(unit * 256), 255).astype(np.uint8)


def truncate(codes: Codes, bits: int) -> Codes:
    """Returns the ``bits`` most significant bits of the master codes."""
    return codes >> np.uint8(MASTER_BITS - bits)


def odd_integers(codes: Codes, bits: int) -> NDArray[np.int16]:
    """Returns ``u = 2 c_b - (2^b - 1)``, the odd integers that a code of ``bits`` bits stands for."""
    return 2 * truncate(codes, bits).astype(np.int16) - np.int16(2**bits - 1)


def pack_planes(codes: Codes, planes: int = MASTER_BITS) -> list[Codes]:
    """Splits flat master codes into bit-planes, most significant first, eight weights in a byte, the first lowest."""
    padded = np.zeros(-(-codes.size // 8) * 8, np.uint8)
    padded[: codes.size] = codes.reshape(-1)
    words, spare = padded.view("<u8"), np.empty(min(padded.size // 8, _BLOCK), "<u8")
    for start in range(0, len(words), _BLOCK):
        _transpose_bits(words[start : start + _BLOCK], spare)
    rows = padded.reshape(-1, 8)
    return [np.ascontiguousarray(rows[:, 7 - plane]) for plane in range(planes)]


def unpack_planes(planes: Sequence[Codes], count: int) -> Codes:
    """Rebuilds ``count`` flat codes from their leading bit-planes; the bits of absent planes are zero."""
    rows = np.zeros((-(-count // 8), 8), np.uint8)
    words, spare = rows.reshape(-1).view("<u8"), np.empty(min(len(rows), _BLOCK), "<u8")
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        for plane, packed in enumerate(planes):
            rows[part, 7 - plane] = packed[part]
        _transpose_bits(words[part], spare)
    return rows.reshape(-1)[:count]


def _transpose_bits(words: NDArray[np.uint64], spare: NDArray[np.uint64]) -> None:
    """Transposes every 64-bit word as an 8 x 8 bit matrix, in place; ``spare`` is memory for as many or more."""
    swap = spare[: len(words)]
    for shift, mask in ((7, 0x00AA00AA00AA00AA), (14, 0x0000CCCC0000CCCC), (28, 0x00000000F0F0F0F0)):
        np.right_shift(words, np.uint64(shift), out=swap)
        np.bitwise_xor(swap, words, out=swap)
        np.bitwise_and(swap, np.uint64(mask), out=swap)
        np.bitwise_xor(words, swap, out=words)
        np.left_shift(swap, np.uint64(shift), out=swap)
        np.bitwise_xor(words, swap, out=words)


# --- the integer grid of a layer's weights ------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """How one layer's codes become integer weights at one bit-width, per output channel, each of shape ``(C,)``.

    Attributes:
        scale: positive float32, the value of one integer step (after folding: of the folded weights).
        slope: ``m`` of ``z = m u + k``; negative where folding met a negative norm gain.
        offset: ``k`` of ``z = m u + k``.
        bits: the bits of the code that the channel really uses; less than asked for where ``u`` would leave int8.
        kind: what a code stands for, `ODD`, `INTEGER` or `TABLE`.
        table: of kind `TABLE`, int8 ``(C, 2^b)``, ascending: the ``u`` of every code.
    """

    scale: Floats
    slope: NDArray[np.int16]
    offset: NDArray[np.int16]
    bits: NDArray[np.uint8]
    kind: Kind = ODD
    table: NDArray[np.int8] | None = None

    def affine(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Returns gain and shift of ``z = gain c + shift``, each ``(C,)``, of a grid that is no `TABLE`."""
        slope, offset = self.slope.astype(np.int32), self.offset.astype(np.int32)
        steps = np.int32(1) << self.bits.astype(np.int32)
        if self.kind == ODD:
            return 2 * slope, offset - slope * (steps - 1)
        return slope, offset - slope * (steps >> 1)

    def looked_up(self) -> NDArray[np.int8]:
        """Returns the ``z`` of every code, ``(C, 2^b)``, of a `TABLE`; nothing but this and `affine` makes integers."""
        assert self.table is not None
        return (self.slope[:, None] * self.table + self.offset[:, None]).astype(np.int8)

    def integers(self, codes: Codes, out: NDArray[np.uint8] | None = None) -> NDArray[np.int8]:
        """Returns ``z = m u + k`` for master codes of shape ``(C, ...)``, in the memory of ``out`` where it is given.

        The arithmetic runs modulo 256, which is exact because every ``z`` fits int8: this is the hot path of building a
        session, and bytes move four times faster than the int32 that the formula suggests.
        """
        column = (-1,) + (1,) * (codes.ndim - 1)
        if self.kind == TABLE:
            places = (codes >> (MASTER_BITS - self.bits).reshape(column)).reshape(len(codes), -1)
            found = np.take_along_axis(self.looked_up(), places.astype(np.intp), 1).reshape(codes.shape)
            if out is not None:
                out.view(np.int8)[...] = found
            return found
        gain, shift = ((numbers & 255).astype(np.uint8).reshape(column) for numbers in self.affine())
        drop = (MASTER_BITS - self.bits).astype(np.uint8)
        same = (drop == drop[0]).all()
        integers = np.right_shift(codes, drop[0] if same else drop.reshape(column), out=out)
        np.multiply(integers, gain, out=integers)
        np.add(integers, shift, out=integers)
        return integers.view(np.int8)


def usable_bits(codes: Codes, bits: int, limit: int) -> NDArray[np.uint8]:
    """Returns per channel the largest bit-width up to ``bits`` whose odd integers stay within ``limit``."""
    flat = codes.reshape(len(codes), -1)
    usable = np.zeros(len(flat), np.uint8)
    for width in range(1, bits + 1):
        largest = np.abs(odd_integers(flat, width)).max(axis=1)
        usable = np.where(largest <= limit, np.uint8(width), usable)
    return usable


def snap(
    largest: NDArray[np.int64], gain: NDArray[np.float64], origin: NDArray[np.float64], limit: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Snaps the affine map ``gain * u + origin`` to an integer grid ``scale * (m u + k)``, per channel.

    ``m_max`` is the largest ``m`` with ``m U + |k| <= limit``, ``k = round(m origin / gain)``; the ``m`` in
    ``[m_max / 2, m_max]`` that leaves the smallest ``|m origin / gain - k| / m`` wins, the larger one on a tie.

    Args:
        largest: ``U``, the largest ``|u|`` in the channel, ``(C,)``, at most ``limit``.
        gain: positive slope of the real map, ``(C,)``; 0 marks a constant channel.
        origin: offset of the real map, ``(C,)``.
        limit: the largest ``|z|`` allowed.

    Returns:
        scale, m, k, each ``(C,)``. A constant channel gets ``m = 0`` and ``k = limit * sign(origin)``.
    """
    constant = gain <= 0
    ratio = np.where(constant, 0.0, origin / np.where(constant, 1.0, gain))
    m = np.arange(1, limit + 1)
    exact = m * ratio[:, None]
    k = np.rint(exact)
    fits = m * largest[:, None] + np.abs(k) <= limit
    m_max = np.where(fits, m, 0).max(axis=1)
    candidate = fits & (2 * m >= m_max[:, None])
    error = np.where(candidate, np.abs(exact - k) / m, np.inf)
    best = limit - 1 - np.argmin(error[:, ::-1], axis=1)
    room = limit - largest
    best_m = np.where(m_max > 0, m[best], 1)
    best_k = np.where(m_max > 0, k[np.arange(len(k)), best], np.clip(np.rint(ratio), -room, room))
    scale = gain / best_m
    best_m = np.where(constant, 0, best_m)
    best_k = np.where(constant, limit * np.sign(origin), best_k)
    scale = np.where(constant, np.abs(origin) / limit, scale)
    return scale, best_m.astype(np.int64), best_k.astype(np.int64)


def fold(
    grid: Grid, bias: NDArray[np.float64], gain: NDArray[np.float64], shift: NDArray[np.float64], input_scale: float
) -> tuple[Grid, Floats]:
    """Folds a normalization ``y = gain * x + shift`` behind a layer into its grid and bias.

    The integers keep their magnitude; a negative gain flips their sign, so that scales stay positive. The scale is
    kept large enough for the bias to fit int32 however small the gain is (zero-initialised gains are common).

    Args:
        grid: the layer's grid before folding.
        bias: the layer's own bias, ``(C,)``.
        gain: ``gamma / sqrt(var + eps)``, ``(C,)``.
        shift: ``beta - gamma mean / sqrt(var + eps)``, ``(C,)``.
        input_scale: scale of the tensor that the layer reads.

    Returns:
        the folded grid and the folded float32 bias ``(C,)``.
    """
    folded_bias = (bias * gain + shift).astype(np.float32)
    smallest = np.maximum(np.abs(folded_bias.astype(np.float64)) / (input_scale * BIAS_HEADROOM), SMALLEST_SCALE)
    scale = np.maximum(grid.scale * np.abs(gain), smallest).astype(np.float32)
    sign = np.where(gain < 0, -1, 1).astype(np.int16)
    return replace(grid, scale=scale, slope=grid.slope * sign, offset=grid.offset * sign), folded_bias


def integer_bias(bias: Floats, input_scale: float, weight_scale: Floats) -> tuple[NDArray[np.int32], Floats]:
    """Returns ``rint(bias / (s_x s_w))`` as int32 and its float32 scale ``s_x s_w``, both ``(C,)``."""
    scale = np.float32(input_scale) * weight_scale
    return np.rint(bias.astype(np.float64) / scale).astype(np.int32), scale


# --- activations --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CodeRange:
    """The uint8 codes of one activation tensor: ``value = scale * (code - zero_point)``, ``low <= code <= high``."""

    zero_point: int
    low: int
    high: int

    @property
    def levels(self) -> int:
        """How many values the tensor can take."""
        return self.high - self.low + 1

    @property
    def steps(self) -> int:
        """Steps from zero to the clip value; ``scale = clip / steps``."""
        return self.high - self.zero_point

    @property
    def below(self) -> int:
        """Steps from the lowest value to zero."""
        return self.zero_point - self.low


HIGHEST_ZERO = 192
"""The highest code that zero may have: two bits still have a step above it."""


def code_range(bits: int, signed: bool, levels: Levels = HALF, zero_point: int | None = None) -> CodeRange:
    """Returns the codes of an activation of ``bits`` bits.

    Never-negative tensors use 0..127 at 8 bits and half levels, 0..255 at full ones. Signed ones use all 256 codes
    around 128, exactly TensorRT's int8; around ``zero_point`` where they have one of their own, of which narrower
    widths have the same share below it.
    """
    if zero_point is not None:
        steps = (1 << bits) - 1
        low = zero_point - (zero_point * steps + 127) // 255
        return CodeRange(zero_point, low, low + steps)
    if signed:
        half = 1 << (bits - 1)
        return CodeRange(128, 128 - half, 127 + half)
    return CodeRange(0, 0, min((1 << bits) - 1, largest_code(levels)))


def needs_clamp(signed: bool, widths: Iterable[int]) -> bool:
    """Whether uint8 is wider than the codes of a tensor at some of its widths."""
    return any((codes.low, codes.high) != (0, 255) for codes in (code_range(bits, signed) for bits in widths))


def quantize(values: Floats, scale: float, codes: CodeRange) -> Codes:
    """QuantizeLinear followed by the integer clamp: round half to even, in float32 as the runtime does."""
    steps = np.rint(values / np.float32(scale)).astype(np.float64) + codes.zero_point
    return np.clip(steps, codes.low, codes.high).astype(np.uint8)


def dequantize(codes: Codes, scale: float, zero_point: int) -> Floats:
    """DequantizeLinear."""
    return (codes.astype(np.int32) - zero_point).astype(np.float32) * np.float32(scale)


# --- exact integer operators --------------------------------------------------------------------------------------


def requantize(accumulators: NDArray[np.int64], multiplier: Floats, codes: CodeRange) -> Codes:
    """int32 accumulators ``(N, C, ...)`` to codes: one float32 product, round half to even, zero point, clamp."""
    column = (1, -1) + (1,) * (accumulators.ndim - 2)
    scaled = accumulators.astype(np.float32) * multiplier.reshape(column)
    return np.clip(np.rint(scaled).astype(np.float64) + codes.zero_point, codes.low, codes.high).astype(np.uint8)


def integer_conv(
    inputs: NDArray[np.int16],
    weights: NDArray[np.int8],
    bias: NDArray[np.int32],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    groups: int,
) -> NDArray[np.int64]:
    """Two-dimensional convolution in exact integers.

    The products are summed by BLAS in float64, which holds every integer below 2^53: exact, and fast enough to check a
    whole test set.

    Args:
        inputs: zero-point-free inputs ``(N, C_in, H, W)``.
        weights: ``(C_out, C_in / groups, kH, kW)``.
        bias: ``(C_out,)``.
        strides: ``(sH, sW)``.
        pads: ``(top, left, bottom, right)``, filled with zero.
        dilations: ``(dH, dW)``.
        groups: channel groups.

    Returns:
        accumulators ``(N, C_out, H', W')``.
    """
    top, left, bottom, right = pads
    padded = np.pad(inputs, ((0, 0), (0, 0), (top, bottom), (left, right))).astype(np.float64)
    count = len(padded)
    out_channels, group_channels, k_h, k_w = weights.shape
    span_h, span_w = (k_h - 1) * dilations[0] + 1, (k_w - 1) * dilations[1] + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (span_h, span_w), axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1], :: dilations[0], :: dilations[1]]
    out_h, out_w = windows.shape[2:4]
    windows = windows.reshape(count, groups, group_channels, out_h, out_w, k_h, k_w)
    columns = windows.transpose(1, 0, 3, 4, 2, 5, 6).reshape(groups, count * out_h * out_w, -1)
    kernels = weights.astype(np.float64).reshape(groups, out_channels // groups, -1)
    sums = columns @ kernels.transpose(0, 2, 1)
    sums = sums.reshape(groups, count, out_h, out_w, -1).transpose(1, 0, 4, 2, 3)
    sums = sums.reshape(count, out_channels, out_h, out_w) + bias.reshape(1, -1, 1, 1)
    return np.rint(sums).astype(np.int64)


def integer_linear(inputs: NDArray[np.int16], weights: NDArray[np.int8], bias: NDArray[np.int32]) -> NDArray[np.int64]:
    """``inputs (N, K) @ weights (C, K).T + bias (C,)`` in exact integers."""
    return np.rint(inputs.astype(np.float64) @ weights.astype(np.float64).T).astype(np.int64) + bias


def _fused_multiply_add(a: NDArray[Any], b: np.float32, c: NDArray[Any] | np.float32) -> Floats:
    """One rounding for ``a * b + c``: a float64 holds the product of a byte and a float32 exactly."""
    return (a.astype(np.float64) * np.float64(b) + np.asarray(c, np.float64)).astype(np.float32)


def integer_add(
    a: Codes, b: Codes, scales: tuple[float, float, float], zeros: tuple[int, int], codes: CodeRange
) -> Codes:
    """Adds codes of scales ``(s_a, s_b)`` into codes of scale ``s_y``, rounded as onnxruntime's fused kernel rounds."""
    ratio_a = np.float32(scales[0]) / np.float32(scales[2])
    ratio_b = np.float32(scales[1]) / np.float32(scales[2])
    # Its first product is fused as well; that shows where a zero point is no power of two.
    zero = _fused_multiply_add(np.array(zeros[0]), ratio_a, ratio_b * np.float32(zeros[1]))
    fixed = np.float32(codes.zero_point) - zero
    total = _fused_multiply_add(a, ratio_a, _fused_multiply_add(b, ratio_b, np.float32(fixed)))
    return np.clip(np.rint(total), codes.low, codes.high).astype(np.uint8)


def integer_mean(
    inputs: NDArray[np.int16], input_scale: float | Floats, output_scale: float, codes: CodeRange
) -> Codes:
    """Global average pooling ``(N, C, H, W) -> (N, C, 1, 1)``: integer sum, one float32 multiplier, round, clamp.

    ``input_scale`` may be that of each channel ``(C,)``.
    """
    area = inputs.shape[2] * inputs.shape[3]
    multiplier = np.asarray(input_scale, np.float32) / (np.float32(output_scale) * np.float32(area))
    sums = inputs.astype(np.int64).sum(axis=(2, 3), keepdims=True)
    return requantize(sums, np.full(inputs.shape[1], multiplier, np.float32), codes)

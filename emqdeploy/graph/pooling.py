"""Pooling in plain numpy: ONNX's own evaluator takes seconds for a picture, and has `ceil_mode` with padding wrong."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

POOLS = ("MaxPool", "AveragePool")


@dataclass(frozen=True)
class Windows:
    """Where the windows of a pooling stand; one number per spatial axis.

    Attributes:
        kernel: values of a window.
        strides: from one window to the next.
        dilations: from one value of a window to the next.
        before: padding in front of an axis.
        behind: padding behind it.
        ceil: whether a last window may reach beyond the padding; it starts inside it all the same.
    """

    kernel: Sequence[int]
    strides: Sequence[int]
    dilations: Sequence[int]
    before: Sequence[int]
    behind: Sequence[int]
    ceil: bool

    @classmethod
    def of(cls, attributes: dict[str, Any]) -> Windows:
        """Reads the attributes of an ONNX node, whose padding is explicit."""
        kernel = attributes["kernel_shape"]
        ones, pads = [1] * len(kernel), attributes.get("pads", [0] * 2 * len(kernel))
        return cls(
            kernel,
            attributes.get("strides", ones),
            attributes.get("dilations", ones),
            pads[: len(kernel)],
            pads[len(kernel) :],
            bool(attributes.get("ceil_mode", 0)),
        )

    def counts(self, sizes: Sequence[int]) -> list[int]:
        """How many windows there are along each axis of so many values."""
        found = []
        for axis, size in enumerate(sizes):
            room = size + self.before[axis] + self.behind[axis] - self.dilations[axis] * (self.kernel[axis] - 1) - 1
            count = (-(-room // self.strides[axis]) if self.ceil else room // self.strides[axis]) + 1
            starts_outside = (count - 1) * self.strides[axis] >= size + self.before[axis]
            found.append(count - 1 if self.ceil and starts_outside else count)
        return found

    def parts(self, values: NDArray[Any], around: Any, beyond: Any) -> Iterator[NDArray[Any]]:
        """One value of all windows after the other, ``(N, C, *counts)`` each.

        Args:
            values: ``(N, C, *sizes)``.
            around: what the padding holds.
            beyond: what a last window finds behind the padding.
        """
        padding = list(zip(self.before, self.behind, strict=True))
        padded = np.pad(values, [(0, 0), (0, 0), *padding], constant_values=around)
        counts = self.counts(values.shape[2:])
        lengths = [(count - 1) * stride + 1 for count, stride in zip(counts, self.strides, strict=True)]
        spans = [dilation * (kernel - 1) for dilation, kernel in zip(self.dilations, self.kernel, strict=True)]
        needed = [length + span for length, span in zip(lengths, spans, strict=True)]
        missing = [(0, max(need - size, 0)) for need, size in zip(needed, padded.shape[2:], strict=True)]
        padded = np.pad(padded, [(0, 0), (0, 0), *missing], constant_values=beyond)
        for place in product(*(range(0, span + 1, step) for span, step in zip(spans, self.dilations, strict=True))):
            axes = zip(place, lengths, self.strides, strict=True)
            window = [slice(start, start + length, stride) for start, length, stride in axes]
            yield padded[(slice(None), slice(None), *window)]


def pool(operator: str, attributes: dict[str, Any], values: NDArray[Any]) -> NDArray[Any]:
    """Pools ``(N, C, *sizes)`` as ONNX's ``MaxPool`` or ``AveragePool`` does.

    Args:
        operator: one of `POOLS`.
        attributes: of the node, by name.
        values: floats, or codes for the largest of them.
    """
    windows = Windows.of(attributes)
    if operator == "MaxPool":
        lowest = -np.inf if np.issubdtype(values.dtype, np.floating) else np.iinfo(values.dtype).min
        largest: NDArray[Any] = reduce(np.maximum, windows.parts(values, lowest, lowest))
        return largest
    # Padding counts where the node says so; what a last window reaches beyond it never does.
    inside, counted = np.ones((1, 1, *values.shape[2:]), values.dtype), attributes.get("count_include_pad", 0)
    means: NDArray[Any] = reduce(np.add, windows.parts(values, 0, 0)) / reduce(
        np.add, windows.parts(inside, counted, 0)
    )
    return means

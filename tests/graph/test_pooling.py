"""Pooling in numpy is torch's, at every kernel, stride, padding and rounding of the size."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from hypothesis import example, given
from hypothesis import strategies as st

from emqdeploy.graph.pooling import pool


@st.composite
def windows(draw: st.DrawFn) -> tuple[tuple[int, int], dict[str, Any]]:
    """A size, and a pooling that torch takes: at most half a window of padding."""
    axes = [(draw(st.integers(4, 9)), draw(st.integers(1, 4)), draw(st.integers(1, 3))) for _ in range(2)]
    sizes, kernel, strides = zip(*axes, strict=True)
    pads = [draw(st.integers(0, extent // 2)) for extent in kernel]
    ceil = draw(st.booleans())
    return sizes, {"kernel_shape": list(kernel), "strides": list(strides), "pads": pads * 2, "ceil_mode": int(ceil)}


def values(sizes: tuple[int, int]) -> torch.Tensor:
    """Numbers of both signs."""
    return torch.from_numpy(np.random.default_rng(0).standard_normal((2, 3, *sizes)).astype(np.float32))


@given(windows(), st.integers(1, 2))
def test_largest(drawn: tuple[tuple[int, int], dict[str, Any]], dilation: int) -> None:
    """MaxPool to the last bit, also where a window reaches beyond the padding."""
    sizes, attributes = drawn
    spans = [dilation * (extent - 1) + 1 for extent in attributes["kernel_shape"]]
    if any(span > size for span, size in zip(spans, sizes, strict=True)):
        return
    x, pads = values(sizes), attributes["pads"][:2]
    wanted = F.max_pool2d(
        x, attributes["kernel_shape"], attributes["strides"], pads, dilation, bool(attributes["ceil_mode"])
    )
    found = pool("MaxPool", attributes | {"dilations": [dilation] * 2}, x.numpy())
    np.testing.assert_array_equal(found, wanted.numpy())


@example(((5, 5), {"kernel_shape": [2, 2], "strides": [3, 3], "pads": [1] * 4, "ceil_mode": 1}), True)
@given(windows(), st.booleans())
def test_average(drawn: tuple[tuple[int, int], dict[str, Any]], counted: bool) -> None:
    """AveragePool up to the order of its sums, whether padding counts or not."""
    sizes, attributes = drawn
    x, pads = values(sizes), attributes["pads"][:2]
    wanted = F.avg_pool2d(
        x, attributes["kernel_shape"], attributes["strides"], pads, bool(attributes["ceil_mode"]), counted
    )
    found = pool("AveragePool", attributes | {"count_include_pad": int(counted)}, x.numpy())
    np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-5, atol=1e-6)


def test_codes_and_one_axis() -> None:
    """Codes stay codes; a pooling over one axis works alike."""
    codes = np.arange(10, dtype=np.uint8).reshape(1, 1, 10)
    found = pool("MaxPool", {"kernel_shape": [3], "strides": [2], "pads": [1, 1]}, codes)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, [[[1, 3, 5, 7, 9]]])

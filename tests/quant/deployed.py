"""What holds for every family of learned grids: what training computes with is what is deployed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emqdeploy.format.grid import Grid, Kind
from emqdeploy.quant.families.base import WeightQuantizer


def assert_deployed(one: WeightQuantizer, weight: Tensor, bits: int, limit: int, kind: Kind) -> Tensor:
    """The value is ``scale * z``, every ``z`` keeps the limit, and the grid makes it of the stored code; returns it."""
    quantized = one(weight, bits)
    stored = Grid(
        quantized.scale.detach().numpy(),
        *(part.numpy().astype(np.int16) for part in (quantized.slope, quantized.offset)),
        quantized.bits.numpy().astype(np.uint8),
        one.kind,
        None if quantized.table is None else quantized.table.numpy().astype(np.int8),
    )
    integers = stored.integers(quantized.codes.numpy().astype(np.uint8))
    assert one.kind == kind
    assert np.abs(integers.astype(int)).max() <= limit
    if stored.table is not None:
        assert (np.diff(stored.table.astype(int)) >= 0).all()
    value = quantized.scale.detach()[:, None] * torch.from_numpy(integers)
    torch.testing.assert_close(quantized.value, value, rtol=0, atol=0)
    torch.testing.assert_close(one.value(weight, bits), value, rtol=0, atol=0)
    return value

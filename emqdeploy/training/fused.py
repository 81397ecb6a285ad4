"""Weight quantizers compiled into a few kernels, which all layers and widths of a network share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial

import torch
from torch import Tensor

from emqdeploy.quant.families.base import WeightQuantizer
from emqdeploy.quant.network import MultiBitNetwork

VARIANTS = 64
"""Compiled forms that are kept: a few per family and its options; shapes and widths are numbers to them."""


@contextmanager
def fused_quantizers(network: MultiBitNetwork) -> Iterator[None]:
    """Lets the layers of a network quantize by compiled code, while a training pass is captured.

    A quantizer is dozens of small operators, forward and backward, in every layer: on a GPU they take longer than the
    convolutions.
    """
    quantizers = [layer.quantizer for layer in network.layers.values() if not layer.pinned]
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VARIANTS)
    for quantizer in quantizers:
        quantizer.__dict__["value"] = partial(_by_rows, quantizer)
    try:
        yield
    finally:
        for quantizer in quantizers:
            del quantizer.__dict__["value"]


def _by_rows(quantizer: WeightQuantizer, weight: Tensor, bits: int) -> Tensor:
    """What a quantizer says of a channel does not depend on the order of its weights, so it sees them as they lie."""
    last = weight.dim() == 4 and not weight.is_contiguous()
    seen = weight.permute(0, 2, 3, 1) if last else weight
    value = _compiled()(quantizer, seen.reshape(len(seen), -1), bits).reshape(seen.shape)
    return value.permute(0, 3, 1, 2) if last else value


def _quantize(quantizer: WeightQuantizer, rows: Tensor, bits: int) -> Tensor:
    return type(quantizer).value(quantizer, rows, bits)


@cache
def _compiled() -> Callable[[WeightQuantizer, Tensor, int], Tensor]:
    """The compiled function; made once, because what it has compiled stays with it."""
    compiled: Callable[[WeightQuantizer, Tensor, int], Tensor] = torch.compile(_quantize, dynamic=True)
    return compiled

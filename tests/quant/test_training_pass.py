"""What a training pass asks of torch: nothing that waits for the device, few operators, no float32 under autocast."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from emqdeploy.format.child import Child, parse_children
from emqdeploy.quant.families.base import FamilyOptions
from emqdeploy.quant.families.lsq import LsqOptions
from emqdeploy.quant.families.tanh import TanhOptions
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.norms import NORMS

READ_BACK = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2"}
"""Operators that answer what the host has to know: a CUDA graph cannot hold them, and without one they wait."""


class Operators(TorchDispatchMode):
    """Counts operators, backward passes included, and notes the types of large results."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.large: dict[str, torch.dtype] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator."""
        name = str(function).split(".")[1]
        result = function(*args, **(kwargs or {}))
        self.counts[name] += 1
        if isinstance(result, Tensor) and result.dim() == 4 and len(result) == 16:
            self.large[name] = result.dtype
        return result


def network(config: InsertionConfig) -> MultiBitNetwork:
    """Two quantized convolutions between two that stay at 8 bits."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for channels in (3, 8, 8):
        layers += [nn.Conv2d(channels, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8 * 36, 5))
    made = insert_quantizers(model, config, parse_children("2,8"), (), 2.0, (3, 6, 6))
    made.initialise_clips(torch.randn(16, 3, 6, 6))
    return made.train()


def train_once(made: MultiBitNetwork, child: Child, mixed: bool = False) -> Operators:
    """Runs a forward and a backward pass."""
    images = torch.randn(16, 3, 6, 6)
    made.use(child)
    with Operators() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            logits = made(images)
        logits.float().square().mean().backward()
    return seen


@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("norm", list(NORMS))
@pytest.mark.parametrize("quantizer", [TanhOptions(), TanhOptions(group="layer", correction="sat"), LsqOptions()])
def test_nothing_is_read_back(quantizer: FamilyOptions, norm: str, bits: int) -> None:
    """No policy and no family waits for a value, neither in the first step nor later."""
    made = network(InsertionConfig(quantizer, norm=norm))
    for _ in range(2):
        assert not READ_BACK & set(train_once(made, Child.of(bits)).counts)


def test_mixed_precision_stays_in_bfloat16() -> None:
    """Behind the first layer no tensor of the batch is float32: what reads it would compute in it too."""
    large = train_once(network(InsertionConfig()), Child.of(8), mixed=True).large
    assert large["round"] == large["hardtanh_backward"] == large["clamp_"] == torch.bfloat16


@pytest.mark.parametrize(("bits", "bound"), [(2, 140), (8, 165)])
def test_a_layer_starts_few_operators(bits: int, bound: int) -> None:
    """Small networks spend their time on starting them; views count too. Autograd alone would start 180 and 200."""
    quantizer = TanhOptions().quantizer(torch.zeros(0), 127, (2, 8))
    weight = torch.randn(32, 32, 3, 3, requires_grad=True)
    with Operators() as seen:
        quantizer.value(weight, bits).backward(torch.ones_like(weight))
    assert sum(seen.counts.values()) <= bound

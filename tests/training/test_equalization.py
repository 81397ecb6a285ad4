"""Equalization: the float network stays as it is to the bit, and every channel gets all levels, whatever its size."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emqdeploy.format.child import FLOAT, Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.families.base import EqualizedQuantizer, family_options, load_families
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import calibrate
from emqdeploy.training.posttraining.stages import EQUALIZATIONS

TWO, EIGHT = Child.of(2), Child.of(8)
FAMILIES = ("resnet8", "preact-resnet8", "mobilenet-micro", "vit-micro")
PINNED = ("first", "last")
SOUND_DB = 20.0


@functools.cache
def images() -> Tensor:
    """Sixty-four random images in one batch."""
    return torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(5)).clamp(-2, 2)


@functools.cache
def built(model: str, keep_8bit: tuple[str, ...]) -> tuple[MultiBitNetwork, dict[str, Tensor]]:
    """A network of a family, built once, with the state that it starts from."""
    torch.manual_seed(3)
    insertion = InsertionConfig(keep_8bit=keep_8bit)
    network = NetworkSpec(model, 10, (1, 8, 8), 2.0, (TWO, EIGHT), insertion=insertion).build().eval()
    return network, {name: tensor.clone() for name, tensor in network.state_dict().items()}


def start(model: str, keep_8bit: tuple[str, ...] = PINNED) -> MultiBitNetwork:
    """The network as it was built."""
    network, state = built(model, keep_8bit)
    for layer in network.layers.values():
        if isinstance(layer.quantizer, EqualizedQuantizer):
            layer.quantizer = layer.quantizer.quantizer
    network.load_state_dict(state)
    return network


@torch.no_grad()
def scatter(network: MultiBitNetwork, random: np.random.Generator) -> None:
    """Channels of tiny and of huge weights, variances down to nothing, gains of both signs and of zero."""

    def like(tensor: Tensor, values: np.ndarray) -> Tensor:
        return torch.from_numpy(values.astype(np.float32)).reshape(tensor.shape)

    for layer in network.layers.values():
        if layer.weight.requires_grad:
            sizes = 10.0 ** random.uniform(-6, 4, len(layer.weight)) * (random.random(len(layer.weight)) > 0.1)
            layer.weight.mul_(torch.from_numpy(sizes.astype(np.float32)).reshape(-1, *[1] * (layer.weight.dim() - 1)))
    for norm in network.norms.values():
        count = norm.num_features
        norm.running_mean.copy_(like(norm.running_mean, random.normal(0, 10.0 ** random.uniform(-3, 3), count)))
        norm.running_var.copy_(
            like(norm.running_var, 10.0 ** random.uniform(-12, 6, count) * (random.random(count) > 0.2))
        )
        norm.weight.copy_(like(norm.weight, random.normal(0, 1, count) * (random.random(count) > 0.2)))


@settings(max_examples=25)
@given(st.sampled_from(FAMILIES), st.integers(0, 2**32 - 1))
def test_the_float_network_stays_the_same_function(model: str, seed: int) -> None:
    """Not even the last bit of an answer changes, once or twice equalized, for the wildest weights and statistics."""
    network = start(model)
    scatter(network, np.random.default_rng(seed))
    with torch.no_grad(), network.at(FLOAT):
        before = network(images())
        for _ in range(2):
            EQUALIZATIONS["peak"](network)
            torch.testing.assert_close(network(images()), before, rtol=0, atol=0, equal_nan=True)


@settings(max_examples=25)
@given(st.sampled_from(FAMILIES), st.integers(0, 2**32 - 1))
def test_eight_bits_hold_the_weights_of_every_channel(model: str, seed: int) -> None:
    """Small channels beside large ones, and weights above one, keep 7 bits of their own largest weight."""
    network = start(model, ("last",))
    scatter(network, np.random.default_rng(seed))
    EQUALIZATIONS["peak"](network)
    for layer in network.layers.values():
        if layer.fan_in < 32:  # of so few weights mean and norm are not exact
            continue
        quantized = layer.quantized(8)
        error = (quantized.value - layer.weight).flatten(1).abs().amax(1)
        assert (error <= 0.03 * layer.weight.flatten(1).abs().amax(1)).all()
        column = (-1,) + (1,) * (layer.weight.dim() - 1)
        integers = quantized.value / quantized.scale.clamp(min=1e-30).reshape(column)
        torch.testing.assert_close(integers, integers.round(), rtol=0, atol=1e-3)


def test_what_has_8_bits_at_every_child_is_rounded_plainly() -> None:
    """No narrower child shares its codes, so it need not do with the half of them that nest."""
    mixed = (Child("mixed", {"*": 2, "stage2.0.conv2": 8}), EIGHT)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, mixed).build()
    EQUALIZATIONS["peak"](network)
    layer, other = network.layers["stage2.0.conv2"], network.layers["stage2.0.conv1"]
    assert layer.pinned
    assert not other.pinned
    codes = layer.quantized(8).codes
    assert (codes.unique() % 2 == 0).any()
    assert codes.flatten(1).abs().amax(1).eq(layer.quantizer.limit).all()


@pytest.mark.parametrize("family", load_families())
def test_every_quantizer_family_can_be_equalized(family: str) -> None:
    """The wrapper knows nothing of the family: the answer for ``f w`` divided by ``f`` in every number that scales."""
    weight = torch.randn(6, 40, generator=torch.Generator().manual_seed(0)) * torch.logspace(-4, 3, 6)[:, None]
    inner = family_options({"name": family}).quantizer(weight / weight.abs().amax(1, keepdim=True), 127, (2, 8))
    outer = EqualizedQuantizer(inner, weight, 1.0)
    assert (outer.kind, outer.limit) == (inner.kind, inner.limit)
    factor = outer.factor[:, None]
    seen, given_back = inner(weight * factor, 8), outer(weight, 8)
    torch.testing.assert_close(given_back.value * factor, seen.value)
    torch.testing.assert_close(given_back.scale * outer.factor, seen.scale)
    torch.testing.assert_close(given_back.residual * outer.factor, seen.residual)
    for field in ("codes", "slope", "offset", "bits"):
        assert torch.equal(getattr(given_back, field), getattr(seen, field))


class Plain(nn.Module):
    """No normalization, weights of several units, as VGG and its kind may have."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(1, 16, 3, 2, 1), nn.Conv2d(16, 32, 3, 2, 1), nn.Conv2d(32, 32, 3, 1, 1)
        self.head = nn.Linear(32, 4)
        for conv in (self.a, self.b, self.c):
            nn.init.normal_(conv.weight, 0, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        return self.head(F.relu(self.c(F.relu(self.b(F.relu(self.a(x)))))).mean((2, 3)))


class Faint(nn.Module):
    """Large weights that read a faint tensor, behind which the epsilon is most of what the normalization divides by."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm_a = nn.Conv2d(1, 16, 3, 1, 1), nn.BatchNorm2d(16)
        self.b, self.norm_b = nn.Conv2d(16, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 4)
        with torch.no_grad():
            self.norm_a.weight.fill_(2e-5)
            self.b.weight.mul_(torch.logspace(0, 2, 32).reshape(-1, 1, 1, 1))
            self.norm_b.weight.copy_(torch.linspace(-2, 2, 32))

    def forward(self, x: Tensor) -> Tensor:
        """Returns logits."""
        x = F.relu(self.norm_a(self.a(x)))
        return self.head(F.relu(self.norm_b(self.b(x))).mean((2, 3)))


@pytest.mark.parametrize("network", [Plain, Faint])
def test_eight_bits_answer_as_the_float_model(network: type[nn.Module]) -> None:
    """The deployed network against the untouched float model, of networks that used to lose most of their weights."""
    torch.manual_seed(2)
    model = network()
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model(images())
        wanted = model.eval()(images())
    children = (TWO, EIGHT)
    multi = insert_quantizers(model, InsertionConfig(), children, (), 2.0).eval()
    config = QuantizeConfig(Path("w.pth"), "x", "digits", bits=(2, 8), reconstruction="none")
    frozen = calibrate(multi, [images()], config)
    with torch.no_grad():
        found = deployed_reference(multi, frozen, EIGHT)(images())
    noise = (found - wanted).square().sum() / (wanted - wanted.mean(0)).square().sum()
    assert -10 * torch.log10(noise) > SOUND_DB

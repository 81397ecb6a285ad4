"""Normalization statistics after training."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.format.child import Child
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.norms import NORM_ADAPTATIONS, measure_input_means

TWO, THREE, FOUR, EIGHT = map(Child.of, (2, 3, 4, 8))


@pytest.fixture
def network() -> MultiBitNetwork:
    """A small network with initialised clips."""
    torch.manual_seed(0)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (TWO, EIGHT), (THREE,)).build()
    network.initialise_clips(torch.randn(32, 1, 8, 8))
    return network


def _first_layer_statistics(network: MultiBitNetwork, images: torch.Tensor, child: Child) -> torch.Tensor:
    norm = next(iter(network.norm_of.values()))
    seen: list[torch.Tensor] = []
    handle = network.norms[norm].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), network.at(child):
        network(images)
    handle.remove()
    return seen[0].mean((0, 2, 3))


def test_statistics_per_child_are_those_of_the_batches(network: MultiBitNetwork) -> None:
    """Estimated means are plain averages over the batches, at trained and unseen children alike."""
    batches = [torch.randn(16, 1, 8, 8) for _ in range(3)]
    NORM_ADAPTATIONS["bits"](network, batches, (TWO, THREE))
    norm = next(iter(network.norms.values()))
    network.eval()
    for child in (TWO, THREE):
        expected = torch.stack([_first_layer_statistics(network, batch, child) for batch in batches]).mean(0)
        assert torch.allclose(norm.statistics(child)[0], expected, atol=1e-5)
    assert torch.equal(norm.statistics(EIGHT)[0], norm.running_mean)


def test_gain_and_shift_stay_as_trained(network: MultiBitNetwork) -> None:
    """Adaptation moves buffers only."""
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    NORM_ADAPTATIONS["bits"](network, [torch.randn(16, 1, 8, 8)], (TWO, EIGHT))
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_shared_adaptation_serves_every_child_alike(network: MultiBitNetwork) -> None:
    """With it the network really has one set of statistics."""
    network.train()
    for child in (TWO, EIGHT):
        with network.at(child):
            network(torch.randn(16, 1, 8, 8))
    NORM_ADAPTATIONS["shared"](network, [torch.randn(16, 1, 8, 8)], (TWO, EIGHT))
    for norm in network.norms.values():
        assert torch.equal(norm.statistics(TWO)[0], norm.statistics(EIGHT)[0])
        assert torch.equal(norm.statistics(TWO)[0], norm.running_mean)


def test_training_keeps_statistics_per_child(network: MultiBitNetwork) -> None:
    """Validation during training must not judge 1 bit by the statistics of 8."""
    network.train()
    with network.at(TWO):
        network(torch.randn(16, 1, 8, 8))
    norm = next(iter(network.norms.values()))
    assert not torch.equal(norm.statistics(TWO)[0], norm.running_mean)
    assert torch.equal(norm.statistics(EIGHT)[0], norm.running_mean)


def test_no_adaptation_keeps_what_training_tracked(network: MultiBitNetwork) -> None:
    """Statistics per child stay, and nothing is added to the bias that they hold already."""
    network.train()
    with network.at(TWO):
        network(torch.randn(16, 1, 8, 8))
    norm = next(iter(network.norms.values()))
    before = norm.statistics(TWO)[0].clone()
    measure_input_means(network, [torch.rand(16, 1, 8, 8)], network.quantized)
    NORM_ADAPTATIONS["none"](network, [torch.rand(16, 1, 8, 8)], (TWO, EIGHT))
    assert torch.equal(norm.statistics(TWO)[0], before)
    assert all(float(layer.input_mean) == 0 for layer in network.layers.values())


def test_input_means_are_measured(network: MultiBitNetwork) -> None:
    """The mean of a layer's input turns a rounded offset into bias; the first layer's is that of the images."""
    batch = torch.rand(16, 1, 8, 8)
    measure_input_means(network, [batch], network.quantized)
    first, *others = network.layers.values()
    assert abs(float(first.input_mean) - float(batch.mean())) < 0.01
    assert all(float(layer.input_mean) != 0 for layer in others)

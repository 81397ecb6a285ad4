"""Normalization statistics after training."""

from __future__ import annotations

import pytest
import torch

from emqdeploy.data import load_dataset
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.batches import image_source
from emqdeploy.training.norms import NORM_ADAPTATIONS, calibrate, measure_input_means


@pytest.fixture
def network() -> MultiBitNetwork:
    """A small network with initialised clips."""
    torch.manual_seed(0)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (2, 8)).build()
    network.initialise_clips(torch.randn(32, 1, 8, 8))
    return network


def _first_layer_statistics(network: MultiBitNetwork, images: torch.Tensor, bits: int) -> torch.Tensor:
    norm = next(iter(network.norm_of.values()))
    seen: list[torch.Tensor] = []
    handle = network.norms[norm].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    with torch.no_grad(), network.bits(bits):
        network(images)
    handle.remove()
    return seen[0].mean((0, 2, 3))


def test_statistics_per_bits_are_those_of_the_batches(network: MultiBitNetwork) -> None:
    """Estimated means are plain averages over the batches, at trained and unseen bit-widths alike."""
    batches = [torch.randn(16, 1, 8, 8) for _ in range(3)]
    NORM_ADAPTATIONS["bits"](network, batches, (2, 3, 8))
    norm = next(iter(network.norms.values()))
    network.eval()
    for bits in (2, 3, 8):
        expected = torch.stack([_first_layer_statistics(network, batch, bits) for batch in batches]).mean(0)
        assert torch.allclose(norm.statistics(bits)[0], expected, atol=1e-5)
    assert not bool(norm.estimated[0])


def test_gain_and_shift_stay_as_trained(network: MultiBitNetwork) -> None:
    """Adaptation moves buffers only."""
    before = {name: parameter.clone() for name, parameter in network.named_parameters()}
    NORM_ADAPTATIONS["bits"](network, [torch.randn(16, 1, 8, 8)], (2, 8))
    assert all(torch.equal(before[name], parameter) for name, parameter in network.named_parameters())


def test_shared_adaptation_serves_every_bit_width_alike(network: MultiBitNetwork) -> None:
    """With it the network really has one set of statistics."""
    network.train()
    for bits in (2, 8):
        with network.bits(bits):
            network(torch.randn(16, 1, 8, 8))
    NORM_ADAPTATIONS["shared"](network, [torch.randn(16, 1, 8, 8)], (2, 8))
    for norm in network.norms.values():
        assert torch.equal(norm.statistics(2)[0], norm.statistics(8)[0])
        assert torch.equal(norm.statistics(2)[0], norm.running_mean)


def test_training_keeps_statistics_per_bit_width(network: MultiBitNetwork) -> None:
    """Validation during training must not judge 1 bit by the statistics of 8."""
    network.train()
    with network.bits(2):
        network(torch.randn(16, 1, 8, 8))
    norm = next(iter(network.norms.values()))
    assert norm.estimated.tolist() == [False, True] + [False] * 6
    assert torch.equal(norm.bit_mean[7], torch.zeros_like(norm.bit_mean[7]))


def test_no_adaptation_keeps_what_training_tracked(network: MultiBitNetwork) -> None:
    """Statistics per bit-width stay, and nothing is added to the bias that they hold already."""
    network.train()
    with network.bits(2):
        network(torch.randn(16, 1, 8, 8))
    norm = next(iter(network.norms.values()))
    before = norm.statistics(2)[0].clone()
    measure_input_means(network, [torch.rand(16, 1, 8, 8)])
    NORM_ADAPTATIONS["none"](network, [torch.rand(16, 1, 8, 8)], (2, 8))
    assert torch.equal(norm.statistics(2)[0], before)
    assert all(float(layer.input_mean) == 0 for layer in network.layers.values())


def test_calibration_trains_the_norms_of_unseen_widths_only() -> None:
    """Any-Precision's stage: rows of the given widths move, everything else stays to the bit."""
    torch.manual_seed(0)
    spec = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, (2, 8), InsertionConfig(norm="private"))
    network = spec.build()
    network.initialise_clips(torch.randn(32, 1, 8, 8))
    dataset = load_dataset("digits", limit=80)
    source = image_source(dataset.train, dataset.preprocessing, "none", torch.device("cpu"))
    before = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
    assert calibrate(network, source, (4,), epochs=2, batch_size=20, learning_rate=0.1, seed=0) == 160
    for name, parameter in network.named_parameters():
        moved = (parameter.detach() != before[name]).reshape(len(parameter), -1).any(1).tolist()
        # Row 3 is 4 bits: it started from 8 bits' row and was trained.
        assert moved == [row == 3 for row in range(8)] if ".bit_" in name else not any(moved), name
    assert all(parameter.requires_grad for parameter in network.layers["conv1"].parameters())
    norm = next(iter(network.norms.values()))
    assert bool(norm.estimated[3])


def test_input_means_are_measured(network: MultiBitNetwork) -> None:
    """The mean of a layer's input turns a rounded offset into bias; the first layer's is that of the images."""
    batch = torch.rand(16, 1, 8, 8)
    measure_input_means(network, [batch])
    first, *others = network.layers.values()
    assert abs(float(first.input_mean) - float(batch.mean())) < 0.01
    assert all(float(layer.input_mean) != 0 for layer in others)

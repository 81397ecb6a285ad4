"""Weights learned again without labels: few bits get nearer to the float network, wide ones and float stay near."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from emqdeploy.data import Dataset, load_dataset
from emqdeploy.format.child import FLOAT, Child, parse_children
from emqdeploy.graph.fidelity import snr_db
from emqdeploy.progress import silent
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import deployed_reference
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.augment import keep_images, shift_one
from emqdeploy.training.posttraining import answering, reconstruction
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.learned import LearnedWeights, Moments, matched
from emqdeploy.training.posttraining.quantize import calibrate, calibration_batches
from emqdeploy.training.posttraining.reconstruction import RECONSTRUCTIONS

CHILDREN = ONE, TWO, EIGHT = parse_children("1,2,8")


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """Digits to learn from."""
    return calibration_batches(load_dataset("digits"), 64, seed=0)


def small_network(model: str, batches: list[Tensor], children: tuple[Child, ...] = CHILDREN) -> MultiBitNetwork:
    """A network that was trained in float for a moment, with images as their own targets."""
    torch.manual_seed(0)
    network = NetworkSpec(model, 10, (1, 8, 8), 2.0, children).build()
    images = torch.cat(batches)
    targets = images.flatten(1) @ torch.randn(64, 10)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    with network.at(FLOAT):
        for _ in range(40):
            optimizer.zero_grad()
            F.mse_loss(network(images), targets).backward()
            optimizer.step()
    return network.eval()


def classifier(dataset: Dataset) -> MultiBitNetwork:
    """A network that was trained in float to tell digits."""
    torch.manual_seed(0)
    network = NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, CHILDREN).build()
    images = torch.from_numpy(dataset.preprocessing.normalize(dataset.train.images[:512]))
    labels = torch.from_numpy(dataset.train.labels[:512])
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    with network.at(FLOAT):
        for part in torch.randint(512, (100, 64)):
            optimizer.zero_grad()
            F.cross_entropy(network(images[part]), labels[part]).backward()
            optimizer.step()
    return network.eval()


def decibels(network: MultiBitNetwork, batches: list[Tensor], way: str, steps: int = 15) -> dict[Child, float]:
    """Of the deployed children against the float network."""
    options = {"reconstruction": way, "reconstruction_steps": steps}
    frozen = calibrate(network, batches, QuantizeConfig(Path(), "resnet8", "digits", **options))  # type: ignore[arg-type]
    images = torch.cat(batches)
    with torch.no_grad(), network.at(FLOAT):
        wanted = network(images).numpy()
        return {child: snr_db(wanted, deployed_reference(network, frozen, child)(images).numpy()) for child in CHILDREN}


@pytest.mark.parametrize("model", ["resnet8", "vit-micro"])
def test_few_bits_get_nearer_to_the_float_network_which_stays(model: str, batches: list[Tensor]) -> None:
    """One and two bits gain decibels; the float network is the same to the last bit; eight bits stay near it."""
    rounded = decibels(small_network(model, batches), batches, "none")
    network = small_network(model, batches)
    with torch.no_grad(), network.at(FLOAT):
        before = network(batches[0])
    learned = decibels(network, batches, "blocks")
    with torch.no_grad(), network.at(FLOAT):
        assert torch.equal(network(batches[0]), before)
    assert learned[ONE] > rounded[ONE] + 0.5
    assert learned[TWO] > rounded[TWO] + 0.5
    assert learned[EIGHT] > 25


def test_wide_children_alone_are_only_rounded(batches: list[Tensor]) -> None:
    """Without a child of under four bits there is nothing to learn."""
    for names, learns in (("4,8", False), ("3,8", True)):
        for way in ("blocks", "together"):
            network = small_network("resnet8", batches[:1], parse_children(names))
            RECONSTRUCTIONS[way](network, batches, 1, keep_images, silent)
            assert any(isinstance(layer.quantizer, LearnedWeights) for layer in network.layers.values()) == learns


@pytest.mark.parametrize(("shape", "exact"), [((4, 6, 3, 3), 1e-5), ((1, 6, 1, 1), 0.01)])
def test_layers_get_the_moments_of_the_float_network(
    shape: tuple[int, ...], exact: float, batches: list[Tensor]
) -> None:
    """Mean and deviation of a channel; a single value, which has no deviation, becomes about the mean."""
    network = small_network("resnet8", batches)
    name = next(name for name in network.layers if name in network.norm_of)
    layer = torch.nn.Conv2d(shape[1], shape[1], 1)
    column = torch.arange(1.0, 7).reshape(1, 6, 1, 1)
    with matched(network, {name: layer}, {name: Moments(column, 2 * column)}):
        found = layer(torch.randn(shape))
    assert torch.allclose(found.mean((0, 2, 3)), column.flatten(), atol=exact)
    if len(found) > 1:
        assert torch.allclose(found.std((0, 2, 3), correction=0), 2 * column.flatten(), atol=1e-4)


def test_large_tensors_are_kept_in_half_precision(monkeypatch: pytest.MonkeyPatch, batches: list[Tensor]) -> None:
    """That changes little: the grid of what a block reads is coarser than half precision."""
    monkeypatch.setattr(answering, "STEPS", 0)
    exact = decibels(small_network("resnet8", batches), batches, "blocks", 5)
    monkeypatch.setattr(reconstruction, "EXACT_VALUES", 0)
    halves = decibels(small_network("resnet8", batches), batches, "blocks", 5)
    assert exact != halves
    assert all(abs(exact[child] - halves[child]) < 1 for child in CHILDREN)


def test_all_layers_together_get_nearer_to_what_the_float_network_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """After blocks alone, children of few bits are further from it, in nats, on images that are new."""
    dataset = load_dataset("digits")
    batches = calibration_batches(dataset, 128, seed=0)
    images = torch.from_numpy(dataset.preprocessing.normalize(dataset.test.images[:]))
    config = QuantizeConfig(Path(), "resnet8", "digits", reconstruction="blocks", reconstruction_steps=15)

    def nats(steps: int) -> dict[Child, float]:
        monkeypatch.setattr(answering, "STEPS", steps)
        network = classifier(dataset)
        frozen = calibrate(network, batches, config)
        with torch.no_grad(), network.at(FLOAT):
            wanted = network(images).log_softmax(1)
            found = {child: deployed_reference(network, frozen, child)(images).log_softmax(1) for child in CHILDREN}
        return {
            child: float(F.kl_div(one, wanted, reduction="batchmean", log_target=True)) for child, one in found.items()
        }

    blocks_alone, together = nats(0), nats(6)
    assert together[ONE] + together[TWO] < 0.8 * (blocks_alone[ONE] + blocks_alone[TWO])
    assert together[EIGHT] < 0.01


def test_all_layers_together_learn_without_blocks_too(batches: list[Tensor]) -> None:
    """From the float weights on, one and two bits gain decibels, and eight bits stay near the float network."""
    rounded, learned = (decibels(small_network("resnet8", batches), batches, way) for way in ("none", "together"))
    assert learned[ONE] > rounded[ONE] + 0.5
    assert learned[TWO] > rounded[TWO] + 0.5
    assert learned[EIGHT] > 25


def test_images_are_varied_with_every_step(batches: list[Tensor]) -> None:
    """What learns from the float network's answers sees no image as it came, and as many as asked for."""
    seen: list[int] = []

    def vary(images: Tensor, random: torch.Generator) -> Tensor:
        seen.append(len(images))
        return shift_one(images, random)

    RECONSTRUCTIONS["blocks"](small_network("resnet8", batches), batches, 3, vary, silent)
    assert seen == [64] * 3 * answering.STEPS


@pytest.mark.parametrize(("size", "learns"), [(32, True), (90, True), (224, False)])
def test_only_small_images_are_learned_from_together_after_blocks(size: int, learns: bool) -> None:
    """A step of large ones takes too long."""
    assert answering.small(torch.empty(2, 3, size, size)) == learns

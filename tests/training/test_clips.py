"""Activation clips that most channels ask for: each channel counts alike, whatever its variance."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emqdeploy.format.child import Child
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.training.clips import CLIP_CHOICES, calibrate_clips, start_clips

COARSE = Child("coarse", 8, 3)


def channels_of(powers: list[float], seed: int) -> tuple[Tensor, Tensor]:
    """Values ``(K, 1)`` of channels that differ in size alone, and which channel each is of."""
    noise = torch.randn(400, len(powers), generator=torch.Generator().manual_seed(seed))
    values = (noise * torch.tensor(powers)).T.reshape(-1, 1)
    return values, torch.arange(len(powers)).repeat_interleave(400)


def relative(values: Tensor, channels: Tensor, clip: float, steps: int) -> list[float]:
    """Squared error by mean square, channel by channel."""
    scale = clip / steps
    wrong = (values / scale).round().clamp(-steps, steps) * scale - values
    parts = [channels == channel for channel in range(int(channels.max()) + 1)]
    return [float(wrong[part].square().sum() / values[part].square().sum()) for part in parts]


def test_a_few_large_channels_do_not_decide() -> None:
    """Of eight channels one is ten times as large: seven get their steps, and least squares serves the one."""
    values, channels = channels_of([1.0] * 7 + [10.0], 0)
    clips = {name: CLIP_CHOICES[name](values, 7, 7, channels) for name in ("mse", "majority")}
    errors = {name: relative(values, channels, clip, 7) for name, clip in clips.items()}
    assert clips["majority"] < 0.5 * clips["mse"]
    assert max(errors["majority"][:7]) < 0.2 * min(errors["mse"][:7])
    assert errors["majority"][7] > errors["mse"][7]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**31), st.sampled_from([3, 7, 127]), st.floats(0.01, 100), st.integers(1, 5))
def test_the_mean_of_relative_errors_is_smallest(seed: int, steps: int, size: float, count: int) -> None:
    """No clip of a fine search does better by more than the search of the choice is coarse; dead channels are fine."""
    powers = [size * 3.0**index for index in range(count)] + [0.0]
    values, channels = channels_of(powers, seed)
    found = CLIP_CHOICES["majority"](values, steps, steps, channels)
    top = float(values.abs().max())
    assert 0 < found <= top

    def mean(clip: float) -> float:
        return sum(relative(values, channels, clip, steps)[:-1]) / count

    assert mean(found) <= 1.05 * min(mean(top * share) for share in torch.linspace(0.1, 1, 37).tolist())


def test_channels_of_one_size_ask_for_the_same_as_the_tensor() -> None:
    """Where all channels are alike there is no minority."""
    values, channels = channels_of([2.0] * 6, 1)
    found = [CLIP_CHOICES[name](values, 7, 7, channels) for name in ("mse", "majority")]
    assert found[1] == pytest.approx(found[0], rel=0.05)


@pytest.mark.parametrize("behind", [nn.Identity(), nn.AvgPool2d(2)])
def test_channels_are_told_apart_in_a_network(behind: nn.Module) -> None:
    """One loud channel of a convolution, read as it is or by a mean, widens the clip of least squares alone."""
    torch.manual_seed(0)
    first = nn.Conv2d(3, 8, 3)
    with torch.no_grad():
        first.weight[5] *= 12
    model = nn.Sequential(first, nn.ReLU(), behind, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    model(torch.zeros(1, 3, 10, 10))
    network = insert_quantizers(model, InsertionConfig(keep_8bit=()), (COARSE,), (), 3.0, (3, 10, 10)).eval()
    clips = []
    for choice in ("mse", "majority"):
        calibrate_clips(network, [torch.randn(64, 3, 10, 10)], choice)
        clips.append(network.sites["_1"].clips()[COARSE])
    assert clips[1] < 0.6 * clips[0]


def test_training_starts_from_the_chosen_clips() -> None:
    """By the statistics of the batch, for a fresh network has no others, and without a trace in the running ones."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.Flatten())
    model[0].weight.data[0] *= 30  # what normalization takes back, but for which all other channels look small
    images = torch.rand(16, 3, 7, 7)
    network = insert_quantizers(model, InsertionConfig(keep_8bit=()), (COARSE,), (), 1.0, (3, 7, 7))
    before = {name: value.clone() for name, value in network.state_dict().items() if "running" in name}
    starts = {}
    for choice in (None, "max", "mse"):
        start_clips(network.train(), images, choice)
        starts[choice] = [site.clips()[COARSE] for site in network.sites.values() if not site.fixed]
    seen = torch.relu(model[1].train()(model[0](images))).detach().max()
    assert starts["max"] == pytest.approx([float(seen)], rel=1e-4)
    assert starts["mse"][0] < starts["max"][0] != starts[None][0]
    assert network.training
    for name, value in before.items():
        assert torch.equal(network.state_dict()[name], value)

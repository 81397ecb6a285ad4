"""Optimizers, schedules and the options around them: what learns at which rate, and wrong options in one sentence."""

from __future__ import annotations

import copy
import json
import re
from typing import Any

import pytest
import torch

from emqdeploy.errors import UsageError
from emqdeploy.format.child import FLOAT, Child, parse_children
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.lsq import LsqOptions
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.nonfinite import name_of_nonfinite
from emqdeploy.training.optimizers import OPTIMIZERS, SCHEDULES, parameter_groups
from emqdeploy.training.recipes import resolve
from emqdeploy.training.scales import child_scale

CHILDREN = parse_children("2,4")


def network(model: str = "resnet8", size: int = 8) -> MultiBitNetwork:
    """A fresh network with learned steps."""
    return NetworkSpec(model, 10, (1, size, size), 2.0, CHILDREN, (), InsertionConfig(LsqOptions())).build()


def grouped(model: MultiBitNetwork, **arguments: Any) -> dict[str, dict[str, Any]]:
    """The group of every parameter by its name."""
    groups = parameter_groups(model, 0.1, **arguments)
    of = {id(parameter): group for group in groups for parameter in group["params"]}
    names = dict(model.graph.named_parameters())
    assert sum(len(group["params"]) for group in groups) == sum(p.requires_grad for p in names.values())
    return {name: of[id(parameter)] for name, parameter in names.items() if parameter.requires_grad}


# --- groups ---


def test_every_parameter_is_in_the_group_of_its_kind() -> None:
    """Weights of layers alone decay, and each kind has its factor of the rate."""
    model = network()
    found = grouped(model, scales=("norms=2", "clips=0.5"))
    kinds = {
        "stage1.0.conv1.weight": ("weights", 0.1, 1.0),
        "fc.weight": ("weights", 0.1, 1.0),
        "fc.bias": ("biases", 0.0, 1.0),
        "bn1.weight": ("norms", 0.0, 2.0),
        "bn1.bias": ("norms", 0.0, 2.0),
        "stage1.0.conv1.quantizer.step": ("quantizer", 0.0, 1.0),
        "emq_sites._relu.log_clip": ("clips", 0.0, 0.5),
    }
    assert {name: tuple(found[name][key] for key in ("name", "weight_decay", "lr_scale")) for name in kinds} == kinds
    assert parameter_groups(model, 0.1)[0]["name"] == "weights"


@pytest.mark.parametrize(
    ("model", "size", "kept", "free", "neither"),
    [
        ("resnet8", 8, ["conv1", "stage2.0.shortcut.0"], [], ["fc"]),
        ("mobilenet-micro", 16, ["0", "24"], [], ["3", "9", "29"]),
        ("vit-micro", 16, [], ["patches", "blocks.0.qkv"], ["fc"]),
    ],
)
def test_matrices_are_found(model: str, size: int, kept: list[str], free: list[str], neither: list[str]) -> None:
    """Depthwise filters map nothing to one another, and the last layer answers; norms stay where one follows."""
    found = grouped(network(model, size))
    flags = {
        name.removesuffix(".weight"): (group["matrices"], group["keeps_norm"])
        for name, group in found.items()
        if name.endswith(".weight")
    }
    assert {flags[name] for name in kept} <= {(True, True)}
    assert {flags[name] for name in free} <= {(True, False)}
    assert {flags[name] for name in neither} == {(False, False)}


# --- optimizers ---


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_first_gradient_may_come_late(name: str) -> None:
    """The float network trains alone at first, so clips see theirs hundreds of steps later; the state survives that."""
    early, late = torch.ones(4, 6), torch.ones(3)
    groups = [{"params": [early, late], "weight_decay": 0.0}]
    optimizer = OPTIMIZERS[name](groups, 0.1, 0.9)
    early.grad = torch.ones(4, 6)
    optimizer.step()
    assert torch.equal(late, torch.ones(3))
    late.grad = torch.ones(3)
    optimizer.step()
    assert (late < 1).all()
    again = OPTIMIZERS[name]([{"params": [early.clone(), late.clone()], "weight_decay": 0.0}], 0.1, 0.9)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    (one, other) = again.param_groups[0]["params"]
    one.grad, other.grad = early.grad, late.grad
    optimizer.step()
    again.step()
    assert torch.equal(one, early)
    assert torch.equal(other, late)


def test_buffers_of_zeros_change_no_step_of_sgd() -> None:
    """They are there before the first gradient, and the first step is torch's to the bit."""
    ours, torchs = torch.linspace(-1, 1, 7), torch.linspace(-1, 1, 7)
    sgd = OPTIMIZERS["sgd"]([{"params": [ours], "weight_decay": 1e-3}], 0.1, 0.9)
    plain = torch.optim.SGD([torchs], 0.1, 0.9, weight_decay=1e-3, nesterov=True, fused=True)
    for step in range(3):
        ours.grad = torchs.grad = torch.linspace(step, 1, 7)
        sgd.step()
        plain.step()
    assert torch.equal(ours, torchs)


def test_the_default_rate_is_the_optimizers() -> None:
    """0.1 would be far too much for Adam; trained weights take a tenth."""
    rates = {
        name: (TrainConfig(optimizer=name).learning_rate, TrainConfig(optimizer=name).momentum) for name in OPTIMIZERS
    }
    assert rates == {"sgd": (0.1, 0.9), "muon": (0.1, 0.6), "adam": (1e-3, 0.9), "adamw": (1e-3, 0.9)}
    assert resolve(None, None, {"optimizer": "adam", "pretrained": "w.pth"}).learning_rate == 1e-4


# --- schedules ---


@pytest.mark.parametrize("name", list(SCHEDULES))
@pytest.mark.parametrize("warm_up", [0.0, 0.05, 0.3])
def test_schedules_rise_and_never_stand_at_zero(name: str, warm_up: float) -> None:
    """The peak comes at the end of the warm-up, nothing is above it, and the last step still moves."""
    factors = [SCHEDULES[name](step / 1000, warm_up) for step in range(1000)]
    peak = round(1000 * warm_up)
    assert factors[peak] == max(factors) == 1
    assert factors[:peak] == sorted(factors[:peak])
    assert factors[peak:] == sorted(factors[peak:], reverse=True)
    assert min(factors) > 0


def test_linear_is_a_straight_line() -> None:
    """Half way down it stands at a half."""
    assert SCHEDULES["linear"](0.6, 0.2) == pytest.approx(0.5)
    assert SCHEDULES["linear"](0.1, 0.2) == pytest.approx(0.5)
    assert SCHEDULES["linear"](0.999, 0.2) < 0.002


# --- options ---


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"warm_up": 1.0}, "--warm-up is 1.0; allowed: 0 up to, not including, 1"),
        ({"warm_up": -0.1}, "--warm-up is -0.1; it must be at least 0"),
        ({"label_smoothing": 1.0}, "--label-smoothing is 1.0; allowed: 0 up to, not including, 1"),
        ({"label_smoothing": float("nan")}, "--label-smoothing is nan"),
        ({"ema": 1}, "--ema is 1; allowed: 0 up to, not including, 1"),
        ({"momentum": 1.5}, "--momentum is 1.5; allowed: 0 up to, not including, 1"),
        ({"clip_norm": -1.0}, "--clip-norm is -1.0; it must be at least 0"),
        ({"optimizer": "mun"}, "did you mean 'muon'"),
        ({"schedule": "liner"}, "did you mean 'linear'"),
        ({"lr_scale": "norm=2"}, "--lr-scale names 'norm', which is neither a group of parameters nor a trained child;"
         " allowed: weights, norms, biases, clips, quantizer, 1, 2, 4, 8, float (did you mean 'norms'?)"),
        ({"lr_scale": "3=2"}, "--lr-scale names '3', which is neither"),
        ({"lr_scale": "norms"}, "--lr-scale has 'norms'; write for example norms=2,clips=0.5,4=0.5"),
        ({"lr_scale": "norms=-1"}, "--lr-scale has 'norms=-1'"),
        ({"lr_scale": "norms=1,norms=2"}, "--lr-scale names 'norms' twice"),
        ({"lr_scale": 3}, "--lr-scale is 3; write"),
    ],
)  # fmt: skip
def test_wrong_options_are_named(values: dict[str, Any], sentence: str) -> None:
    """Each message says what was given and what is allowed."""
    with pytest.raises(UsageError, match=re.escape(sentence)):
        resolve(None, None, values)


def test_factors_are_read_from_text_lists_and_tables() -> None:
    """A command line, a stored run and a file of one's own say the same; a child without a factor has 1."""
    config = resolve(None, None, {"lr_scale": " norms=2, 4=.5 "})
    assert config.lr_scale == ("norms=2", "4=0.5")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert resolve(None, None, {"lr_scale": {"norms": 2, "4": 0.5}}) == config
    assert [child_scale(config.lr_scale, child) for child in (Child.of(4), Child.of(8), FLOAT)] == [0.5, 1.0, 1.0]
    assert resolve(None, None, {"lr_scale": "none"}).lr_scale == ()


def test_an_older_runs_options_are_read() -> None:
    """A run that was stored before an option existed is one with its default."""
    new = ("warm_up", "lr_scale", "clip_norm", "label_smoothing", "ema")
    config = TrainConfig()
    stored = {key: value for key, value in config.to_dict().items() if key not in new}
    assert TrainConfig.from_dict(stored) == config


# --- what is not finite ---


def test_what_is_spoiled_is_named() -> None:
    """Of several layers the one nearest to the output; weights before gradients."""
    model = network()
    assert name_of_nonfinite(model) is None
    for name in ("conv1", "stage2.0.conv1"):
        weight = model.layers[name].weight
        weight.grad = torch.full_like(weight, torch.inf)
    assert name_of_nonfinite(model) == "gradient of stage2.0.conv1.weight"
    with torch.no_grad():
        model.layers["conv1"].weight[0] = torch.nan
    assert name_of_nonfinite(model) == "weight of conv1"
    with torch.no_grad():
        model.sites["stage3_0_relu1"].log_clip[0] = torch.nan
    assert name_of_nonfinite(model) == "log_clip of stage3_0_relu1"

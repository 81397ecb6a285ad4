"""The safety net of quantizing and training: refused before any work, measured, and stopped where it went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from emqdeploy.cli import main
from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import read_card
from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.graph.fidelity import FLOAT_MODEL, TRAINED_NETWORK
from emqdeploy.models import create_model
from emqdeploy.quant import insertion
from emqdeploy.training import api
from emqdeploy.training.api import train
from emqdeploy.training.config import TrainConfig
from emqdeploy.training.posttraining import quantize as quantizing
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import quantize
from emqdeploy.training.pretrained import load_pretrained

LAYER = "stage2.0.conv1"


def config(weights: Path, **changes: Any) -> QuantizeConfig:
    """Quantizes it at 8 bits, quickly."""
    return replace(QuantizeConfig(weights, "resnet8", "digits", bits=(8,), images=64), **changes)


def spoiled(frozen: FrozenNetwork) -> FrozenNetwork:
    """One layer has the weights of its channels in another order."""
    layer = frozen.layers[LAYER]
    wrong = replace(layer, codes=np.ascontiguousarray(layer.codes[::-1]))
    return replace(frozen, layers={**frozen.layers, LAYER: wrong})


@pytest.fixture
def wrong_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tracing takes one layer for another function."""
    real = insertion.trace

    def trace(model: nn.Module, *rest: Any) -> Any:
        other = create_model("resnet8", 10, 1, 8)
        other.load_state_dict(model.state_dict())
        with torch.no_grad():
            other.get_submodule(LAYER).weight.mul_(0.5)
        return real(other, *rest)

    monkeypatch.setattr(insertion, "trace", trace)


@pytest.fixture
def wrong_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is deployed is not what was calibrated, or trained."""
    for module, name in ((quantizing, "calibrate"), (api, "freeze")):
        real: Callable[..., FrozenNetwork] = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, real=real: spoiled(real(*given)))


def test_a_rewrite_that_changes_the_function_is_refused_before_any_work(
    float_weights: Path, tmp_path: Path, wrong_trace: None
) -> None:
    """Before calibration and before the first epoch: the sentence says that quantization is not to blame, and where."""
    sentence = rf"resnet8 became another function when it was traced, .* first at module '{LAYER}'"
    lines: list[str] = []
    with pytest.raises(EmqError, match=sentence) as error:
        quantize(config(float_weights), tmp_path / "run", lines.append, threads=1)
    assert "\n" not in str(error.value)
    assert not any("calibrating" in line for line in lines)
    for pretrained in (None, float_weights):
        with pytest.raises(EmqError, match=sentence):
            train(TrainConfig(epochs=1, limit=64, pretrained=pretrained), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_quantizing_tells_how_far_every_child_is(float_weights: Path, tmp_path: Path) -> None:
    """In the result, in the card, in fewer decibels with fewer bits; the user's weights lie beside the checkpoint."""
    result = quantize(config(float_weights, bits=(3, 8), reconstruction_steps=20), tmp_path / "run", threads=1)
    assert result.wrong is None
    assert result.checkpoint is not None
    found = list(result.fidelity.values())
    assert [child.name for child in result.fidelity] == ["3", "4", "5", "6", "7", "8"]
    assert found[0].snr_db < found[2].snr_db < found[-1].snr_db
    assert found[-1].snr_db > 20
    assert found[-1].images == 256
    card, _ = read_card(result.checkpoint)
    assert card.fidelity == {child.name: one for child, one in result.fidelity.items()}
    assert {one.against for one in found} == {FLOAT_MODEL}
    assert set(card.only([Child.of(8)]).fidelity) == {"8"}
    kept = safetensors.torch.load_file(tmp_path / "run" / "latent.safetensors")
    given = torch.load(float_weights)
    assert set(kept) == set(given)
    assert all(torch.equal(kept[name], given[name]) for name in given)
    model = create_model("resnet8", 10, 1, 8)
    assert load_pretrained(model, tmp_path / "run", fresh_head=False)


def test_a_child_that_is_not_the_float_model_is_not_written(
    float_weights: Path, tmp_path: Path, wrong_numbers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with the layer and an option of this command, the numbers are shown; who accepts it has the file."""
    options = f"--data digits --model resnet8 --bits 8 --images 64 --out {tmp_path / 'run'} --json"
    command = ["quantize", str(float_weights), *options.split()]
    with pytest.raises(SystemExit, match="1"):
        main(command)
    printed = capsys.readouterr()
    shown = json.loads(printed.out)
    assert shown["checkpoint"] is None
    assert shown["fidelity"]["8"]["snr_db"] < 15
    assert "child 8 does not answer like the float model: a signal to noise of" in printed.err
    assert f"goes wrong first at layer '{LAYER}'" in printed.err
    assert f"--keep-float {LAYER}" in printed.err
    assert "--accept-difference" in printed.err
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit, match="0"):
        main([*command, "--accept-difference"])
    printed = capsys.readouterr()
    assert "accepted: child 8 does not answer like the float model" in printed.err
    assert (tmp_path / "run" / "model.emq").exists()
    assert json.loads(printed.out)["wrong"] is not None


def test_children_of_fewer_bits_are_not_held_to_the_float_model(
    float_weights: Path, tmp_path: Path, wrong_numbers: None
) -> None:
    """What they lose is shown, and training wins it back."""
    result = quantize(config(float_weights, bits=(4,)), tmp_path / "run", threads=1)
    assert result.wrong is None
    assert result.checkpoint is not None
    assert result.fidelity[Child.of(4)].snr_db < 15


def test_layers_can_stay_in_float(float_weights: Path, tmp_path: Path) -> None:
    """The way that the sentence of refusal names exists, and it leads to fewer quantized layers."""
    result = quantize(config(float_weights, keep_float=(LAYER,)), tmp_path / "run", threads=1)
    card, _ = read_card(result.checkpoint or tmp_path)
    assert card.structure["insertion"]["keep_float"] == [LAYER]
    assert card.recipe["keep_float"] == [LAYER]


def test_training_measures_the_file_by_what_was_trained(tmp_path: Path) -> None:
    """At every child by the network fake-quantized at it, which the deployed numbers equal up to their rounding."""
    result = train(TrainConfig(epochs=1, limit=128, bits=(1, 4)), tmp_path / "run")
    assert result.wrong is None
    card, children = read_card(result.checkpoints[0])
    assert set(card.fidelity) == {child.name for child in children}
    assert {one.against for one in card.fidelity.values()} == {TRAINED_NETWORK}
    assert min(one.snr_db for one in card.fidelity.values()) > 25


def test_training_that_deploys_something_else_says_so(
    tmp_path: Path, wrong_numbers: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1 with child and layer; hours of work are kept all the same, and what the card says is true."""
    command = ["train", "--epochs", "1", "--limit", "128", "--bits", "2", "--out", str(tmp_path / "run"), "--json"]
    with pytest.raises(SystemExit, match="1"):
        main(command)
    printed = capsys.readouterr()
    assert "child 2 does not answer like the trained network" in printed.err
    assert f"first at layer '{LAYER}'" in printed.err
    assert json.loads(printed.out)["fidelity"]["2"]["snr_db"] < 15
    card, _ = read_card(tmp_path / "run" / "model.emq")
    assert card.fidelity["2"].snr_db < 15

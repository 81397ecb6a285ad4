"""What a network was made from: compared where it is at hand, remembered where it is not, never left out silently."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.card import FidelityRecord
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint, load_checkpoint, save_checkpoint
from emqdeploy.graph.fidelity import FLOAT_MODEL, TRAINED_NETWORK
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.runtimes.use import evaluate
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.quantize import quantize
from emqdeploy.workflows import origin as origins
from emqdeploy.workflows.baselines import float_onnx
from emqdeploy.workflows.comparing import ParityImages, parity_images
from emqdeploy.workflows.evaluation import float_beside
from emqdeploy.workflows.origin import Origin
from emqdeploy.workflows.verify import verify

IMAGES = 40
EIGHT = Child.of(8)
LAYER = "stage2.0.conv1"


@pytest.fixture(scope="module")
def made(float_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `quantize` at 4 to 8 bits."""
    run = tmp_path_factory.mktemp("made") / "run"
    quantize(QuantizeConfig(float_weights, "resnet8", "digits", bits=(4, 8), images=64), run, threads=1)
    return run


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(made, tmp_path / "run"))


@pytest.fixture(scope="module")
def images(made: Path) -> ParityImages:
    """A few test images."""
    return parity_images(load_checkpoint(made / "model.emq").card, IMAGES, None)


def spoil(run: Path) -> None:
    """Gives the channels of one layer each other's weights, as a fault that every runtime then computes exactly."""
    checkpoint = load_checkpoint(run / "model.emq")
    layer = checkpoint.network.layers[LAYER]
    wrong = replace(layer, codes=np.ascontiguousarray(layer.codes[::-1]))
    layers = {**checkpoint.network.layers, LAYER: wrong}
    save_checkpoint(run / "model.emq", replace(checkpoint, network=replace(checkpoint.network, layers=layers)))


def compared(run: Path, images: ParityImages, child: Child = EIGHT, **changes: Any) -> dict[str, Any] | None:
    """What `verify` finds for a child: with the float weights that lie in the run, or those that are named."""
    checkpoint = load_checkpoint(run / "model.emq")
    card = msgspec.structs.replace(checkpoint.card, **changes)
    checkpoint = replace(checkpoint, card=card)
    found = Origin.find(checkpoint, None, [run], images)
    return found.compare(child, answers(checkpoint, images, child))


def answers(checkpoint: Checkpoint, images: ParityImages, child: Child) -> Any:
    """Logits of the deployed integers."""
    return IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images.inputs)[0]


def test_a_sound_network_is_near_its_float_model(run: Path, images: ParityImages) -> None:
    """8 bits are judged, 4 are shown, with the untouched weights that `quantize` left."""
    eight, four = (compared(run, images, Child.of(bits)) for bits in (8, 4))
    assert eight is not None
    assert four is not None
    assert (eight["against"], eight["measured"], eight["judged"], eight["wrong"]) == (FLOAT_MODEL, True, True, None)
    assert eight["snr_db"] > 20 > four["snr_db"] > 0
    assert eight["images"] == IMAGES
    assert not four["judged"]


def test_a_file_that_is_wrong_in_itself_fails_though_every_rung_agrees(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The worst fault of all: exact everywhere, and another network. The layer is named, and the exit code is 1."""
    spoil(run)
    result = verify(run, bits=[8], count=IMAGES)
    (entry,) = result["results"]
    assert not result["ok"]
    assert all(rung["wrong"] is None for rung in entry["rungs"].values())
    assert entry["origin"]["first_layer"] == LAYER
    assert "dB, below 15" in entry["origin"]["wrong"]
    monkeypatch.setattr("emqdeploy.workflows.verify.verify", lambda *given: result)
    with pytest.raises(SystemExit, match="1"):
        main(["verify", str(run)])
    printed = capsys.readouterr()
    assert LAYER in printed.out
    assert "verification failed at child 8" in printed.err


def test_eval_shows_the_float_network_beside_its_children(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As it came, from the weights beside the file; without them there is no row, and with others one line says why."""

    def beside() -> dict[str, Any]:
        return float_beside(evaluate(run, "8", "onnxruntime", None, threads=1), None, None)

    measured = beside()
    known = load_checkpoint(run / "model.emq").card.provenance["float_accuracy"]
    assert measured["float_accuracy"] == pytest.approx(known, abs=1e-3)
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit, match="0"):
        main(["eval", str(run), "--bits", "8"])
    assert "as it came" in capsys.readouterr().out
    (run / "latent.safetensors").write_bytes(b"no weights")
    spoiled = beside()
    assert spoiled["float_accuracy"] is None
    assert str(spoiled["float_missing"]).startswith("the float network was not measured: ")
    (run / "latent.safetensors").unlink()
    assert beside() == {"float_accuracy": None, "float_missing": None}


def test_without_the_float_weights_the_card_is_what_is_known(run: Path, images: ParityImages) -> None:
    """One line says why nothing was compared; what was measured when the file was made is shown and judged."""
    (run / "latent.safetensors").unlink()
    checkpoint = load_checkpoint(run / "model.emq")
    found = Origin.find(checkpoint, None, [run], images)
    assert found.missing is not None
    assert "name the float weights with --pretrained FILE" in found.missing
    shown = compared(run, images)
    assert shown is not None
    assert not shown["measured"]
    assert shown["snr_db"] == checkpoint.card.fidelity["8"].snr_db
    low = FidelityRecord(FLOAT_MODEL, 3.0, 50.0, 200, 256)
    bad = compared(run, images, fidelity={"8": low})
    assert bad is not None
    assert bad["wrong"] == "a signal to noise of 3.0 dB, below 15"
    assert compared(run, images, fidelity={}) is None


def test_a_device_without_torch_says_that_it_did_not_compare(
    run: Path, images: ParityImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, and nothing else fails."""

    def without_torch(package: str, extra: str) -> Any:
        if package == "torch":
            raise EmqError("this needs torch, which is not installed")
        return require(package, extra)

    monkeypatch.setattr(origins, "require", without_torch)
    found = Origin.find(load_checkpoint(run / "model.emq"), None, [run], images)
    assert found.model is None
    assert found.missing == "this needs torch, which is not installed"


def test_noise_is_shown_and_not_judged(run: Path, images: ParityImages) -> None:
    """Clips were calibrated on pictures, so noise may be cut off without a fault."""
    spoil(run)
    noise = replace(images, labels=None, missing="the data are not at hand")
    shown = compared(run, noise)
    assert shown is not None
    assert shown["snr_db"] < 15
    assert shown["wrong"] is None
    assert not shown["judged"]


def test_the_weights_that_the_user_names_go_first(
    run: Path, images: ParityImages, float_weights: Path, tmp_path: Path
) -> None:
    """And what is wrong with them is an error, not a line."""
    (run / "latent.safetensors").unlink()
    checkpoint = load_checkpoint(run / "model.emq")
    found = Origin.find(checkpoint, float_weights, [run], images).compare(EIGHT, answers(checkpoint, images, EIGHT))
    assert found is not None
    assert found["measured"]
    assert found["wrong"] is None
    with pytest.raises(UsageError, match="there is no file"):
        Origin.find(checkpoint, tmp_path / "none.pth", [run], images)


def test_a_trained_network_is_measured_by_what_was_trained(run: Path, images: ParityImages) -> None:
    """Its latent weights are no float model: they lie there and are left alone; a model that is named is only shown."""
    recipe = {"method": {"name": "emqnet"}}
    trained = {"8": FidelityRecord(TRAINED_NETWORK, 45.0, 100.0, 200, 256)}
    found = compared(run, images, recipe=recipe, fidelity=trained)
    assert found is not None
    assert (found["against"], found["measured"], found["judged"]) == (TRAINED_NETWORK, False, True)
    assert found["snr_db"] == 45
    checkpoint = load_checkpoint(run / "model.emq")
    checkpoint = replace(checkpoint, card=msgspec.structs.replace(checkpoint.card, recipe=recipe))
    spoiled = answers(checkpoint, images, EIGHT)[::-1]
    named = Origin.find(checkpoint, run, [], images).compare(EIGHT, spoiled)
    assert named is not None
    assert named["snr_db"] < 15
    assert (named["judged"], named["wrong"]) == (False, None)


def test_baselines_take_the_users_model_as_it_is(
    made: Path, images: ParityImages, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what training leaves has statistics that are wrong in float, and are measured anew."""
    card = load_checkpoint(made / "model.emq").card
    exported: list[Any] = []
    monkeypatch.setattr("emqdeploy.workflows.baselines.export_float", lambda model, shape: exported.append(model))
    float_onnx(card, made / "latent.safetensors", images.inputs)
    float_onnx(msgspec.structs.replace(card, recipe={}), made / "latent.safetensors", images.inputs)
    given, again = (model.bn1.running_mean.numpy() for model in exported)
    saved: Callable[..., Any] = require("safetensors.numpy", "train").load_file
    assert (given == saved(made / "latent.safetensors")["bn1.running_mean"]).all()
    assert not np.allclose(given, again)

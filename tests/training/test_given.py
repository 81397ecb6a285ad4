"""What users bring to be quantized: a network in an ONNX file, weights of other classes, images of unknown classes."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from rich.console import Console

from emqdeploy.cli import main
from emqdeploy.data import load_dataset
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import load_checkpoint
from emqdeploy.models import create_model, import_torchvision
from emqdeploy.training.api import train
from emqdeploy.training.posttraining.config import QuantizeConfig
from emqdeploy.training.posttraining.given import open_given
from emqdeploy.training.posttraining.judging import LOST, UNSURE, USABLE, share, verdict
from emqdeploy.training.posttraining.quantize import QuantizeResult, quantize
from emqdeploy.training.pretrained import load_pretrained
from emqdeploy.training.published import is_published, published_weights
from emqdeploy.training.recipes import resolve

FOUR, EIGHT = Child.of(4), Child.of(8)


@pytest.fixture(scope="module")
def folder(trained_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-8 trained on the digits: as weights, and as ONNX files for any number of images and for one."""
    place = tmp_path_factory.mktemp("given")
    shutil.copy(trained_digits, place)
    digits = load_dataset("digits")
    images = torch.from_numpy(digits.preprocessing.normalize(digits.train.images[:1]))
    model = create_model("resnet8", 10, 1, 8)
    model.load_state_dict(safetensors.torch.load_file(trained_digits))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, axes in (("any", {"x": {0: "n"}}), ("one", None)):
            path = place / f"{name}.onnx"
            torch.onnx.export(model.eval(), (images,), path, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return place


def made(folder: Path, out: Path, **options: Any) -> tuple[QuantizeResult, list[str]]:
    """The result for the weights, and what was told."""
    lines: list[str] = []
    weights, model = options.pop("weights", folder / "digits.safetensors"), options.pop("model", "resnet8")
    config = QuantizeConfig(weights, model, "digits", **({"bits": (4, 8), "images": 200} | options))
    return quantize(config, out, lines.append, threads=1), lines


def test_a_network_in_a_file_goes_all_the_way(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Read, compared with onnxruntime, quantized, exported beside its float baseline, and verified."""
    monkeypatch.chdir(tmp_path)
    for command in (
        [
            "quantize",
            str(folder / "one.onnx"),
            "--data",
            "digits",
            "--bits",
            "4,8",
            "--out",
            "run",
            "--threads",
            "1",
            "--images",
            "128",
        ],
        ["export", "run", "--bits", "4,8", "--target", "onnx", "--with-baselines"],
        ["verify", "run", "--images", "16"],
    ):
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--json"])
    captured = capsys.readouterr()
    assert "the network answers as" in captured.err
    assert "onnxruntime: 1" in captured.err  # more than 100 dB
    quantized, exported, verified = map(json.loads, captured.out.splitlines())
    assert quantized["float_accuracy"] > 95
    assert quantized["verdicts"]["8"]["word"] == USABLE
    assert [row["parity"]["differing_codes"] for row in exported["artefacts"] if row["parity"].get("codes")] == [0, 0]
    baselines = {
        row["flavour"]: row["parity"]["accuracy"] for row in exported["artefacts"] if row["role"] == "baseline"
    }
    assert baselines["float32"] == pytest.approx(quantized["float_accuracy"], abs=0.01)
    assert verified["ok"]
    card = load_checkpoint(tmp_path / "run" / "model.emq").card
    assert card.model == "one.onnx"
    assert card.structure["description"]["steps"]


def test_a_network_in_a_file_is_its_own_model(folder: Path, tmp_path: Path) -> None:
    """And weights alone need one."""
    with pytest.raises(UsageError, match="leave out --model resnet8"):
        made(folder, tmp_path / "run", weights=folder / "any.onnx")
    with pytest.raises(UsageError, match="holds weights alone; name the network that weights belong to with --model"):
        made(folder, tmp_path / "run", model=None)
    config = QuantizeConfig(folder / "any.onnx", None, "cifar10", images=64)
    with pytest.raises(EmqError):
        quantize(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_head_of_other_classes_is_judged_by_its_own_decisions(folder: Path, tmp_path: Path) -> None:
    """The labels mean nothing to it; the file says so, and comparing goes on without them."""
    state = safetensors.torch.load_file(folder / "digits.safetensors")
    state["head.weight"], state["head.bias"] = state.pop("fc.weight")[:7], state.pop("fc.bias")[:7]
    safetensors.torch.save_file(state, tmp_path / "seven.safetensors")
    result, lines = made(folder, tmp_path / "run", weights=tmp_path / "seven.safetensors")
    assert (result.float_accuracy, result.accuracy) == (None, {})
    assert any("the last layer is 'head' there and 'fc' here" in line for line in lines)
    assert any("the network has 7 classes and digits 10" in line for line in lines)
    assert result.verdicts[EIGHT].lost < 2
    card = load_checkpoint(tmp_path / "run" / "model.emq").card
    assert card.classes == tuple("0123456")
    assert not card.data.labelled
    assert card.accuracy == {}


def test_a_network_that_guesses_stops_with_the_causes(folder: Path, tmp_path: Path) -> None:
    """Before any calibration; what the user knows of it, or that labels are others', lets it go on."""
    state = safetensors.torch.load_file(folder / "digits.safetensors")
    order = [3, 4, 5, 6, 7, 8, 9, 0, 1, 2]
    state["fc.weight"], state["fc.bias"] = state["fc.weight"][order].clone(), state["fc.bias"][order].clone()
    safetensors.torch.save_file(state, tmp_path / "mixed.safetensors")
    mixed = {"weights": tmp_path / "mixed.safetensors", "bits": (8,)}
    with pytest.raises(EmqError, match=r"always naming the commonest class.*classes in another order.*--unlabelled"):
        made(folder, tmp_path / "run", **mixed)
    with pytest.raises(
        EmqError, match=r"--expect says 99.*: with its classes in another order it decides 2\d\d of 256"
    ):
        made(folder, tmp_path / "run", **mixed, expect=99.0)
    seen = {"mean": (5.0,), "std": (0.1,)}
    with pytest.raises(
        EmqError, match=r"tried on a few: with --mean (0|0.5) --std (1|0.5) it decides 2\d\d of 256 rightly"
    ):
        made(folder, tmp_path / "run", expect=99.0, **seen)
    assert not (tmp_path / "run").exists()
    result, _ = made(folder, tmp_path / "run", **mixed, unlabelled=True)
    assert result.verdicts[EIGHT].lost < 2
    with pytest.raises(UsageError, match="leave one of them out"):
        made(folder, tmp_path / "run", expect=99.0, unlabelled=True)


def test_one_test_image_tells_nothing(folder: Path, tmp_path: Path) -> None:
    """Neither that a network guesses nor that a child is usable."""
    result, lines = made(folder, tmp_path / "run", bits=(8,), test_images=1)
    assert result.float_accuracy in (0, 100)
    assert result.verdicts[EIGHT].word == UNSURE
    assert any("on 1 test image" in line for line in lines)


def test_bounds_hold_what_was_seen() -> None:
    """And are as narrow as the number of images allows."""
    assert share(0, 100) == pytest.approx((0, 2.63), abs=0.01)  # z^2 / (n + z^2)
    least, most = share(50, 100)
    assert (least + most) / 2 == pytest.approx(50)
    assert share(5000, 10000)[1] - share(5000, 10000)[0] < (most - least) / 9
    labels = np.zeros(1000, np.int64)
    model = np.r_[np.zeros(900, np.int64), np.ones(100, np.int64)]
    same = verdict(model, model, labels, 1.0)
    assert (same.lost, same.word) == (0, USABLE)
    assert same.least < 0 < same.most < 0.3
    worse = model.copy()
    worse[:50] = 1
    assert verdict(worse, model, labels, 1.0).word == LOST
    worse[10:50] = 0
    close = verdict(worse, model, labels, 1.0)
    assert (close.lost, close.word) == (1.0, UNSURE)
    assert close.least < 1 < close.most
    # As many lost as gained: nothing is lost, but it is less sure.
    worse[900:910] = 0
    assert verdict(worse, model, labels, 1.0).lost == 0
    assert verdict(worse, model, labels, 1.0).most > same.most
    assert verdict(worse, model, None, 1.0).lost == 2.0  # of 1,000 decisions 20 are others


def test_an_exported_program_is_made_data_first(folder: Path, tmp_path: Path) -> None:
    """Opening one can run code; the sentence says how to make a file that cannot, and that file is taken."""
    model = create_model("resnet8", 10, 1, 8)
    model.load_state_dict(safetensors.torch.load_file(folder / "digits.safetensors"))
    program = torch.export.export(
        model.eval(), (torch.randn(2, 1, 8, 8),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    path = tmp_path / "digits.pt2"
    torch.export.save(program, path)
    for name in (None, "resnet8"):
        with pytest.raises(UsageError, match=r"can run code .*torch\.onnx\.export\(torch\.export\.load") as caught:
            made(folder, tmp_path / "run", weights=path, model=name)
    command = str(caught.value).partition("alone: ")[2].replace('f="', f'f="{tmp_path}/')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(command, {"torch": torch})
    result, _ = made(folder, tmp_path / "run", weights=tmp_path / "digits.onnx", model=None)
    assert result.float_accuracy is not None
    assert result.float_accuracy > 95


@pytest.mark.slow
def test_training_goes_on_from_a_network_in_a_file(folder: Path, tmp_path: Path) -> None:
    """The command that `quantize` prints works, at a learning rate that leaves the weights what they know."""
    config = resolve(None, None, {"model": str(folder / "any.onnx"), "data": "digits", "bits": "2,8", "epochs": 1})
    assert config.learning_rate == 0.01
    assert resolve(None, None, {"data": "digits"}).learning_rate == 0.1
    assert resolve(None, None, {"pretrained": "w.pth", "lr": 0.3}).learning_rate == 0.3
    result = train(config, tmp_path / "run", console=Console(quiet=True))
    assert result.accuracy[Child.of(8)] > 95
    again = replace(config, pretrained=tmp_path / "run", epochs=1)
    assert train(again, tmp_path / "again", console=Console(quiet=True)).accuracy[Child.of(8)] > 95
    # Whatever a rate destroys, a run does not end below the weights that it started from.
    wild = train(replace(config, learning_rate=2.0), tmp_path / "wild", console=Console(quiet=True))
    assert wild.accuracy[Child.of(8)] > 95
    with pytest.raises(EmqError, match="leave --image-size out"):
        train(replace(config, image_size=16), tmp_path / "other", console=Console(quiet=True))


def test_trained_weights_come_from_the_caches(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of torch and of the hub that timm uses; elsewhere one sentence says which file is wanted, and where."""
    import_torchvision()  # which timm imports
    timm = pytest.importorskip("timm")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    found = hub.try_to_load_from_cache
    monkeypatch.setattr(hub, "try_to_load_from_cache", lambda repo, file: found(repo, file, cache_dir=tmp_path))
    for name, file in (("resnet18", "resnet18-f37072fd.pth"), ("timm/test_vit", "model.safetensors of timm/test_vit")):
        with pytest.raises(EmqError, match=rf"{name} \({file}.* are not in .* quantize FILE --model {name}"):
            published_weights(name)
    with pytest.raises(EmqError, match="no trained weights of 'no_such_net'"):
        published_weights("timm/no_such_net")
    (tmp_path / "checkpoints").mkdir()
    torch.save({}, tmp_path / "checkpoints" / "resnet18-f37072fd.pth")
    assert published_weights("resnet18").name == "resnet18-f37072fd.pth"
    repository = timm.models.get_pretrained_cfg("test_vit").hf_hub_id
    home = tmp_path / f"models--{repository.replace('/', '--')}"
    (home / "snapshots" / "abc").mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    weights = home / "snapshots" / "abc" / "model.safetensors"
    safetensors.torch.save_file(timm.create_model("test_vit").state_dict(), weights)
    assert published_weights("timm/test_vit") == weights
    assert is_published("resnet18")
    assert not is_published("resnet8")
    config = QuantizeConfig(Path("timm/test_vit"), None, "digits", images=64)
    with pytest.raises(EmqError, match="timm/test_vit does not take images of 1 x 8 x 8"):
        open_given(config)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"epoch": 3, "state_dict": {f"model.{name}": tensor for name, tensor in state.items()}},
        lambda state: {"model": {f"module.{name}": tensor.half() for name, tensor in state.items()}},
        lambda state: {"state_dict": state, "state_dict_ema": {name: tensor + 1 for name, tensor in state.items()}},
        lambda state: {f"backbone.{name}".replace("backbone.fc", "head.fc"): tensor for name, tensor in state.items()},
    ],
)
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".th", ".ckpt"])
def test_weights_come_in_every_usual_wrapping(wrap: Any, suffix: str, folder: Path, tmp_path: Path) -> None:
    """The same numbers are loaded, but for what half precision rounds off."""
    state = safetensors.torch.load_file(folder / "digits.safetensors")
    floats = {name: tensor for name, tensor in state.items() if tensor.is_floating_point()}
    torch.save(wrap(floats), tmp_path / f"weights{suffix}")
    model = create_model("resnet8", 10, 1, 8)
    load_pretrained(model, tmp_path / f"weights{suffix}", fresh_head=False)
    for name, tensor in floats.items():
        torch.testing.assert_close(model.state_dict()[name], tensor, rtol=1e-3, atol=1e-6)

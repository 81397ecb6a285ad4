"""Using a network: accuracy per child, and the classes of one image."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.models import external
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes import Runtime
from emqdeploy.runtimes.native_library import library_path
from emqdeploy.runtimes.source import other_classes
from emqdeploy.runtimes.use import evaluate
from emqdeploy.serving.predict import predict

from ..conftest import deploy
from ..mixing import mixed_network


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint with a mixed child beside plain ones."""
    file = tmp_path_factory.mktemp("use") / "model.emq"
    save_checkpoint(file, mixed_network().checkpoint)
    return file


def test_accuracy_is_measured_per_child(path: Path) -> None:
    """Of those that were asked for, in their order; of all without a wish."""
    asked = evaluate(path, "mixed,4", "onnxruntime", None, threads=1)
    assert list(asked["accuracy"]) == ["mixed", "4"]
    assert (asked["runtime"], asked["data"], asked["method"]) == ("onnxruntime", "digits", "training")
    assert asked["trained"] == ["4", "mixed", "8"]
    everything = evaluate(path, None, "onnxruntime", None, threads=1)["accuracy"]
    assert list(everything) == ["4", "mixed", "8"]
    assert {name: everything[name] for name in asked["accuracy"]} == asked["accuracy"]
    assert all(0 <= percent <= 100 for percent in everything.values())


def test_a_data_set_of_other_classes_is_refused(tmp_path: Path) -> None:
    """A folder that was changed since, or another one of that name: its labels mean something else."""
    made = mixed_network().checkpoint
    card = structs.replace(made.card, classes=("zero", *made.card.classes[1:]))
    save_checkpoint(tmp_path / "model.emq", replace(made, card=card))
    said = "class 0 of digits is '0', and the network was trained on 'zero' there; name the folder of its own data with"
    with pytest.raises(EmqError, match=f"^{said} --data-dir; or name other images with --data$"):
        evaluate(tmp_path, "8", "onnxruntime", None, threads=1)
    assert other_classes("digits", "01", card) == "digits has 2 classes, and the network was trained on 10"


OWN_NETWORK = """
from torch import nn

def net(num_classes):
    layers = nn.Conv2d(1, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, num_classes))
"""


def test_eval_in_torch_imports_a_users_network_only_where_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a file says is never imported; named again it is, and answers as onnxruntime does."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(external, "_named_by_user", set())
    Path("digits_of_mine.py").write_text(OWN_NETWORK)
    name = "digits_of_mine:net"
    external.trust(name)
    save_checkpoint(Path("model.emq"), deploy(NetworkSpec(name, 10, (1, 8, 8), 2.0, parse_children("2,8"))).checkpoint)
    monkeypatch.setattr(external, "_named_by_user", set())
    monkeypatch.delitem(sys.modules, "digits_of_mine")

    def eval_(*options: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as exited:
            main(["eval", "model.emq", "--json", *options])
        printed = capsys.readouterr()
        return int(exited.value.code or 0), printed.out, printed.err

    code, _, said = eval_("--runtime", "torch")
    assert code == 1
    assert f"name it yourself: --model {name}" in said
    code, _, said = eval_("--runtime", "torch", "--model", "another:net")
    assert code == 2
    assert f"this network is {name}, not another:net; name the same model, or none" in said
    assert "digits_of_mine" not in sys.modules
    accuracies = []
    for options in (["--runtime", "torch", "--model", name], ["--model", name], []):
        code, out, _ = eval_(*options)
        assert code == 0
        accuracies.append(json.loads(out)["accuracy"])
    assert accuracies[1] == accuracies[2]
    assert accuracies[0] == pytest.approx(accuracies[1], abs=0.6)


def test_an_image_is_classified_at_a_child(path: Path, tmp_path: Path) -> None:
    """Best class first; the widest child without a wish."""
    image = tmp_path / "eight.png"
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8) * 4).save(image)
    result = predict(path, [image], "mixed", top=3)
    found = result["images"][0]
    assert (result["child"], result["bits"]) == ("mixed", 4)
    odds = [entry["probability"] for entry in found["predictions"]]
    assert len(odds) == 3
    assert odds == sorted(odds, reverse=True)
    assert found["class"] == found["predictions"][0]["class"]
    assert predict(path, [image])["child"] == "8"


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch", "native"])
def test_a_pixel_that_is_no_number_is_refused(runtime: str, path: Path) -> None:
    """No code stands for it, so that a network would answer anything; what is large but finite is clipped."""
    if runtime == "native" and library_path() is None:
        pytest.skip("emqdeploy-native is not installed")
    with Runtime.from_bundle(path, runtime, bits=4, threads=1) as network:
        network.check_finite = True
        for wrong in (np.nan, np.inf, -np.inf):
            images = np.zeros((3, *network.input_shape), np.float32)
            images[2, 0, 1, 1] = wrong
            with pytest.raises(UsageError, match="images hold a pixel that is infinite or not a number"):
                network.run(images)
            with pytest.raises(UsageError, match="not a number"):
                network(images[:, :, ::-1])
        network.check_finite = False
        network.run(images)
        network.check_finite = True
        images[2, 0, 1, 1] = 3e38
        assert np.isfinite(network.run(images)).all()
        with pytest.raises(UsageError, match=r"\(N, 1, 8, 8\)"):
            network.run(images[0])

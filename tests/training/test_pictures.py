"""A folder of photos without labels, numbers of preprocessing on the command line: into the file, onto the device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emqdeploy.cli import main
from emqdeploy.data import load_dataset
from emqdeploy.format.emq import read_card
from emqdeploy.runtimes import Runtime
from emqdeploy.training.expectations import class_names, expected_pixels

MEAN, STD = "77.85", "95.88"
"""The digits' own, of pixels from 0 to 255."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits as pictures of a phone: in one folder, numbered."""
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(load_dataset("digits").train.images[:60]):
        Image.fromarray(pixels[0]).save(folder / f"IMG_{number:04}.png")
    return folder


def quantize(float_weights: Path, data: object, *more: str) -> list[str]:
    """The command with few images and children."""
    words = ["quantize", str(float_weights), "--model", "resnet8", "--data", str(data), "--bits", "8", *more]
    return [*words, "--images", "100", "--threads", "1", "--accept-difference", "--json"]


def test_photos_without_labels(
    float_weights: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The line says how they are seen; the file has every number; the device needs nothing else."""
    monkeypatch.chdir(photos.parent)
    seen = ("--channel-order", "grey", "--mean", MEAN, "--std", STD, "--image-size", "8")
    with pytest.raises(SystemExit) as ended:
        main(quantize(float_weights, photos.name, *seen, "--out", str(tmp_path / "run")))
    out, err = capsys.readouterr()
    assert not ended.value.code, err
    line = "preprocessing: the whole picture to 8 x 8 (bilinear), grey, pixels / 255, mean 0.3053, std 0.376; from"
    assert f"{line} --image-size, --mean, --std, --channel-order" in err
    assert f"60 images without labels in {photos}: 48 to calibrate, 12 to test" in err
    assert "children are judged by the float model's decisions, because the images have no labels" in err
    assert "all 48 training images calibrate, 100 were asked for" in err
    assert json.loads(out)["accuracy"] == {}
    card, _ = read_card(tmp_path / "run" / "model.emq")
    assert (card.data.name, card.data.labelled) == (f"imagefolder:{photos}", False)
    assert (card.preprocessing.channel_order, card.preprocessing.resized) == ("grey", (8, 8))
    again = expected_pixels("resnet8", tmp_path / "run")
    assert again.pixels.mean == card.preprocessing.mean
    picture = photos / "IMG_0007.png"
    with Runtime.from_bundle(tmp_path / "run", bits=8) as network:
        inputs = network.preprocess(np.asarray(Image.open(picture)))
        np.testing.assert_array_equal(inputs, network.preprocessing.load_image(picture))
        decided = network.classes[network.run(inputs).argmax()]
    with pytest.raises(SystemExit):
        main(["predict", str(tmp_path / "run"), str(picture), "--json"])
    assert json.loads(capsys.readouterr().out)["images"][0]["class"] == decided
    with pytest.raises(SystemExit) as ended:
        main(["eval", str(tmp_path / "run"), "--data", str(photos)])
    assert ended.value.code == 2
    assert "have no labels, so accuracy cannot be measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--channel-order", "grey", "--mean", "0.5,0.5,0.5"), "--mean has 3 values and the network's images have 1"),
        (("--mean", "0.5,0.5"), "--mean is '0.5,0.5'; give one number, or three as in 0.485,0.456,0.406"),
    ],
)
def test_wrong_numbers_write_nothing(
    float_weights: Path, photos: Path, more: tuple[str, ...], says: str, tmp_path: Path, capsys: Any
) -> None:
    """One sentence, and exit code 2."""
    with pytest.raises(SystemExit) as ended:
        main(quantize(float_weights, photos, *more, "--out", str(tmp_path / "run")))
    assert ended.value.code == 2
    assert says in capsys.readouterr().err.splitlines()[-1]
    assert not (tmp_path / "run").exists()


def test_photos_that_nobody_can_read(float_weights: Path, tmp_path: Path, capsys: Any) -> None:
    """All of them, counted; training asks for labels first."""
    for number in range(40):
        (tmp_path / f"IMG_{number}.jpg").write_bytes(b"no photo")
    with pytest.raises(SystemExit) as ended:
        main(quantize(float_weights, tmp_path, "--channel-order", "grey", "--image-size", "8", "--out", "run"))
    assert ended.value.code == 1
    assert "error: none of 32 pictures can be read, not " in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["train", "--data", str(tmp_path), "--image-size", "8", "--out", str(tmp_path / "run")])
    assert ended.value.code == 2
    assert "have no labels, which training needs; sort them into a folder per class" in capsys.readouterr().err


def test_a_library_names_its_classes() -> None:
    """Of a network by its name with ImageNet's number of classes; nobody else's are guessed."""
    assert class_names("timm/resnet18", 1000)[281] == class_names("resnet18", 1000)[281] == "tabby"
    assert class_names("resnet18", 10) == class_names("resnet20", 1000) == class_names(None, 1000) == ()

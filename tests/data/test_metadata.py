"""What an exported file says of its pictures is enough for a program that knows nothing of us."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnxruntime
import pytest
import safetensors.torch
import torch
from msgspec import structs

from emqdeploy.data import Preprocessing
from emqdeploy.data.wishes import WHOLE
from emqdeploy.errors import UsageError
from emqdeploy.exporters.storage import store_int8
from emqdeploy.format.card import encode
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes import Runtime
from emqdeploy.training.expectations import expected_pixels
from emqdeploy.training.run import PIXELS_KEY

from ..conftest import TRAINED, deploy

SEEN = Preprocessing(3, 64, 64, (0.1, 0.5, 0.6), (0.2, 0.3, 0.4), "bgr", "cover", (72, 72), "bilinear")

RESNET50 = "torchvision's ResNet50_Weights.IMAGENET1K_V"


def test_opencv_and_the_metadata_are_enough(tmp_path: Path) -> None:
    """A frame in OpenCV, what the file says of it, onnxruntime: the logits that our own runtime gives."""
    deployed = deploy(NetworkSpec("resnet8", 10, (3, 64, 64), SEEN.input_range, TRAINED))
    card = structs.replace(deployed.checkpoint.card, preprocessing=SEEN.pixels())
    checkpoint = replace(deployed.checkpoint, card=card)
    path = tmp_path / "model.onnx"
    path.write_bytes(store_int8(checkpoint, Path(), checkpoint.network.find(4)).data)
    frame = cv2.resize(np.random.default_rng(5).integers(0, 256, (9, 12, 3), np.uint8), (40, 30))

    session = onnxruntime.InferenceSession(path)
    said: dict[str, Any] = json.loads(session.get_modelmeta().custom_metadata_map["emqdeploy_preprocessing"])
    assert (said["channel_order"], said["layout"], said["dtype"]) == ("bgr", "NCHW", "float32")
    assert (said["resize"], said["interpolation"], said["crop"]) == ("cover", "bilinear", "center")
    assert said["value_range"] == [0, 1]
    zoom = max(said["resized"][0] / frame.shape[0], said["resized"][1] / frame.shape[1])
    covering = (int(frame.shape[1] * zoom), int(frame.shape[0] * zoom))
    resized = cv2.resize(frame, covering, interpolation=cv2.INTER_LINEAR)
    left, top = (covering[0] - said["width"]) // 2, (covering[1] - said["height"]) // 2
    pixels = resized[top : top + said["height"], left : left + said["width"]].astype(np.float32) / 255
    images = ((pixels - said["mean"]) / said["std"]).transpose(2, 0, 1)[None].astype(np.float32)

    with Runtime.from_bundle(path) as network:
        ours = network.preprocess(frame, "bgr")
        assert np.abs(ours - images).max() <= 1.01 / 255 / min(SEEN.std)
        np.testing.assert_allclose(session.run(None, {"images": ours})[0], network.run(ours), rtol=1e-5)
        with pytest.raises(UsageError, match="frames are uint8"):
            network.preprocess(ours)


@pytest.mark.parametrize(
    ("model", "weights", "source", "wanted"),
    [
        ("timm/tf_efficientnet_lite0", None, "timm's tf_efficientnet_lite0.in1k", (224, (0.5,) * 3, 0.875, "bicubic")),
        ("timm/resnet18", "resnet18-f37072fd.pth", "timm's resnet18.tv_in1k", (224, None, 0.875, "bilinear")),
        ("timm/resnet18", "mine.pth", "timm's resnet18.a1_in1k", (224, None, 0.95, "bicubic")),
        ("timm/beit_large_patch16_384", None, None, (384, (0.5,) * 3, 1.0, "bicubic")),
        ("resnet50", "resnet50-11ad3fa6.pth", f"{RESNET50}2", (224, None, 224 / 232, "bilinear")),
        ("resnet50", None, f"{RESNET50}1", (224, None, 0.875, "bilinear")),
        ("resnet20", None, "", (None, None, None, None)),
        ("timm/nothing_of_the_kind", None, "", (None, None, None, None)),
        (None, "mine.onnx", "", (None, None, None, None)),
    ],
)  # fmt: skip
def test_what_libraries_say_of_their_weights(
    model: str | None, weights: str | None, source: str | None, wanted: tuple[Any, ...], tmp_path: Path
) -> None:
    """By the file's name where it is one of theirs, else those that come first; of ours and the user's nothing."""
    found = expected_pixels(model, None if weights is None else tmp_path / weights)
    pixels = found.pixels
    mean = None if wanted[1] is None else pixels.mean
    assert (pixels.image_size, mean, pixels.crop, pixels.interpolation) == wanted
    assert source in (None, found.source)
    assert not found.certain


def test_what_lies_beside_the_weights_goes_first(tmp_path: Path) -> None:
    """Timm's own config, and what a run wrote into its weights; a strange one is a sentence."""
    config = {"input_size": [3, 96, 96], "mean": [0, 0, 0], "std": [1, 1, 1], "crop_mode": "squash", "crop_pct": 1.0}
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config}))
    found = expected_pixels("timm/resnet18", tmp_path / "model.safetensors")
    assert (found.pixels.image_size, found.pixels.std, found.pixels.crop) == (96, (1.0,) * 3, WHOLE)
    assert found.source == str(tmp_path / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": config | {"interpolation": "random"}}))
    with pytest.raises(UsageError, match=r"config.json says what is not known here: --interpolation is 'random'"):
        expected_pixels("timm/resnet18", tmp_path / "model.safetensors")
    about = {PIXELS_KEY: encode(SEEN.pixels()).decode()}
    safetensors.torch.save_file({"weight": torch.zeros(1)}, tmp_path / "latent.safetensors", about)
    for place in (tmp_path, tmp_path / "latent.safetensors"):
        found = expected_pixels("resnet8", place)
        assert found.certain
        assert (found.pixels.mean, found.pixels.crop, found.pixels.channel_order) == (SEEN.mean, 64 / 72, "bgr")

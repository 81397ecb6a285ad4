"""Preprocessing as the user says, then as the weights expect, then as the data have it; and what a file says of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Preprocessing, load_dataset
from emqdeploy.data.preprocessing import USUAL
from emqdeploy.data.repair import import_torchvision
from emqdeploy.data.wishes import WHOLE, Expected, PixelOptions, over, wished
from emqdeploy.errors import UsageError
from emqdeploy.format.card import Pixels, convert, decode, encode
from emqdeploy.options import from_flags

GREY = Preprocessing(1, 28, 28, (0.286,), (0.353,))


def asked(**flags: str) -> PixelOptions:
    """Flags as they are typed."""
    return PixelOptions(**from_flags(PixelOptions, flags))


@pytest.mark.parametrize(
    ("flags", "wanted"),
    [
        ({"mean": "0.5"}, {"mean": (0.5,) * 3, "std": USUAL.std}),
        ({"mean": "0.1,0.2,0.3", "std": "1,1,1"}, {"mean": (0.1, 0.2, 0.3), "std": (1.0,) * 3}),
        ({"mean": "51,102,153", "std": "51"}, {"mean": (0.2, 0.4, 0.6), "std": (0.2,) * 3}),
        ({"mean": "102", "std": "1"}, {"mean": (0.4,) * 3, "std": (1 / 255,) * 3}),
        ({"crop": "0.95"}, {"resize": "cover", "resized": (235, 235)}),
        ({"crop": "1", "image_size": 96}, {"resize": "cover", "resized": (96, 96), "height": 96}),
        ({"crop": WHOLE}, {"resize": "stretch", "resized": (224, 224)}),
        ({"image_size": 32}, {"resize": "stretch", "resized": (32, 32)}),
        ({"image_size": 288}, {"resize": "cover", "resized": (329, 329)}),
        ({"channel_order": "bgr"}, {"channel_order": "bgr", "channels": 3}),
        ({"channel_order": "grey"}, {"channels": 1, "mean": (0.449,), "std": (0.226,)}),
    ],
)
def test_every_number_can_be_said(flags: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Of pixels from 0 to 1, or from 0 to 255; what is not said stays."""
    found = wished(asked(**flags), USUAL)
    for name, value in wanted.items():
        shown = getattr(found, name)
        assert shown == (pytest.approx(value) if isinstance(value, tuple) and name != "resized" else value), name


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"mean": "0.5,0.5"}, "--mean is '0.5,0.5'; give one number, or three"),
        ({"mean": "dark"}, "--mean is 'dark'"),
        ({"mean": "nan"}, "--mean is 'nan'"),
        ({"std": "0,1,1"}, "--std is '0,1,1'"),
        ({"crop": "0"}, "--crop is '0'; give the network's share"),
        ({"crop": "224"}, "or whole to stretch whole pictures"),
        ({"interpolation": "area"}, "--interpolation is 'area'; allowed: nearest, box, bilinear, bicubic, lanczos"),
        ({"channel_order": "gbr"}, "--channel-order is 'gbr'; allowed: rgb, bgr, grey"),
    ],
)
def test_what_cannot_be_is_one_sentence(flags: dict[str, str], says: str) -> None:
    """The flag, what was given, what is allowed."""
    with pytest.raises(UsageError, match=says):
        asked(**flags)


def test_a_mean_of_three_channels_for_a_grey_network() -> None:
    """One for all is fine."""
    assert wished(asked(mean="0.5", std="0.5"), GREY).mean == (0.5,)
    with pytest.raises(
        UsageError, match=r"--std has 3 values and .* 1 channel, grey; give one value, or --channel-order"
    ):
        wished(asked(std="0.5,0.5,0.5"), GREY)


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (120, 500), (224, 257)])
@pytest.mark.parametrize("kind", ["bilinear", "bicubic"])
@pytest.mark.parametrize("share", [0.875, 0.95, 1.0])
def test_a_crop_is_what_timm_and_torchvision_mean(size: tuple[int, int], kind: str, share: float) -> None:
    """The same pixels as their resizing of the shorter side and the middle of that, within a step, see test_frames."""
    coarse = np.random.default_rng(size).integers(0, 256, (size[0] // 4, size[1] // 4, 3), np.uint8)
    picture = Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC)
    usual = import_torchvision().transforms
    resize = usual.Resize(int(192 / share), usual.InterpolationMode(kind))
    wanted = np.asarray(usual.CenterCrop(192)(resize(picture))).transpose(2, 0, 1).astype(int)
    found = wished(PixelOptions(image_size=192, crop=share, interpolation=kind), USUAL).pixels_of(picture)
    difference = np.abs(found - wanted)
    assert difference.max() <= (4 if kind == "bicubic" else 1)
    assert (difference > 1).mean() < 1e-3


def test_the_user_comes_before_the_weights_and_these_before_the_data() -> None:
    """Digits have statistics of their own, which weights of a kind do not change, but weights of a run do."""
    expected = PixelOptions(mean=(0.5,), std=(0.5,), interpolation="bicubic", crop=0.9)
    for certain, mean in ((False, (0.3053,)), (True, (0.5,))):
        digits = load_dataset("digits", pixels=asked(), expected=Expected(expected, "weights", certain))
        assert digits.preprocessing.mean == mean
        assert digits.preprocessing.interpolation == "bicubic"
    said = load_dataset("digits", pixels=asked(mean="0.25"), expected=Expected(expected, "weights", True))
    assert said.preprocessing.mean == (0.25,)
    assert said.notes[0].startswith(
        "preprocessing: the whole picture to 8 x 8 (bicubic), grey, pixels / 255, mean 0.25,"
    )
    assert said.notes[0].endswith("; from --mean, weights")
    assert over(asked(image_size=32), expected).crop is None


def test_small_pictures_are_enlarged_on_request_alone(tmp_path: Path) -> None:
    """In memory, in files of one size, and a question where they have several."""
    large = Expected(PixelOptions(image_size=224), "weights")
    kept = load_dataset("digits", pixels=asked(), expected=large)
    assert kept.preprocessing.size == (8, 8)
    assert kept.notes[-1] == "the pictures of digits keep their 8 pixels (weights: 224); --image-size 224 resizes them"
    enlarged = load_dataset("digits", pixels=asked(image_size=24))
    assert enlarged.train.images.shape == (1438, 1, 24, 24)
    assert enlarged.train.images[:2].shape == (2, 1, 24, 24)
    colour = load_dataset("digits", pixels=asked(channel_order="rgb")).test.images[:3]
    np.testing.assert_array_equal(colour[:, 0], colour[:, 2])
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            Image.new("RGB", (32, 32)).save(tmp_path / name / f"{number}.png")
    folder = load_dataset(str(tmp_path), pixels=asked())
    assert folder.preprocessing.size == (32, 32)
    assert folder.notes[-1].endswith("keep their 32 pixels; --image-size 224 enlarges them")
    for number in range(4):
        Image.new("RGB", (40 + number, 50)).save(tmp_path / "a" / f"{number}.png")
    with pytest.raises(
        UsageError, match=r"and the network would see them at 224; --image-size 224 enlarges them, --im"
    ):
        load_dataset(str(tmp_path), pixels=asked())
    assert load_dataset(str(tmp_path), pixels=asked(image_size=224)).preprocessing.size == (224, 224)


def test_a_little_enlarged_is_said(tmp_path: Path) -> None:
    """Pictures of more than half the usual size are enlarged without a question, and not without a word."""
    enlarged = "the pictures of imagefolder:150 have 150 pixels and are enlarged to 224; --image-size 150 keeps them"
    for side, note in ((150, [enlarged]), (224, [])):
        for name in "ab":
            (tmp_path / f"{side}" / name).mkdir(parents=True)
            for number in range(4):
                Image.new("RGB", (side + number, side)).save(tmp_path / f"{side}" / name / f"{number}.png")
        folder = load_dataset(str(tmp_path / f"{side}"), pixels=asked())
        assert folder.preprocessing.size == (224, 224)
        assert [said for said in folder.notes if "enlarged" in said] == note


def test_a_card_says_all_of_it() -> None:
    """Nothing is left to guess, and files of before are read as they were meant."""
    seen = wished(asked(mean="0.4", crop="0.9", interpolation="bicubic", channel_order="bgr"), USUAL)
    written = decode(Pixels, encode(seen.pixels()))
    assert Preprocessing.of(written) == seen
    said = {"channel_order": "bgr", "resize": "cover", "resized": (248, 248), "interpolation": "bicubic"}
    said |= {"antialias": True, "crop": "center", "value_range": (0, 1), "layout": "NCHW", "dtype": "float32"}
    assert {name: getattr(written, name) for name in said} == said
    before = {"channels": 3, "height": 224, "width": 224, "mean": [0.5] * 3, "std": [0.5] * 3}
    assert Preprocessing.of(convert(Pixels, before)) == Preprocessing(3, 224, 224, (0.5,) * 3, (0.5,) * 3)
    assert convert(Pixels, before).resized == (256, 256)
    for change in ({"layout": "NHWC"}, {"value_range": [0, 255]}, {"resized": [0, 1]}, {"channel_order": "gbr"}):
        with pytest.raises(ValueError, match=r"Invalid enum value|Expected `int` >= 1"):
            convert(Pixels, before | change)

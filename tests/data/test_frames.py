"""Frames of a camera become inputs: as image files do, with Pillow or without, of OpenCV or not."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from emqdeploy.data import Preprocessing
from emqdeploy.data.resampling import FILTERS, INTERPOLATIONS, resampled
from emqdeploy.errors import UsageError

STEP = 1 / 255
SIZES = [(72, 128), (128, 72), (30, 20), (56, 56), (300, 40)]


def noise(*shape: int) -> np.ndarray:
    """Every pixel another one: what is rounded differently shows."""
    return np.random.default_rng(shape).integers(0, 256, shape, np.uint8)


def smooth(rows: int, columns: int) -> np.ndarray:
    """Pixels (rows, columns, 3) without hard edges."""
    coarse = Image.fromarray(noise(rows // 4, columns // 4, 3))
    return np.asarray(coarse.resize((columns, rows), Image.Resampling.BICUBIC))


def network(channels: int = 3, **more: Any) -> Preprocessing:
    """A network of 56 x 48 pixels that sees the middle of what covers 64 x 55."""
    return Preprocessing(
        channels, 56, 48, (0.0,) * channels, (1.0,) * channels, resize="cover", resized=(64, 55), **more
    )


@pytest.mark.parametrize("interpolation", INTERPOLATIONS)
@pytest.mark.parametrize("size", SIZES)
def test_numpy_resizes_as_pillow_does(size: tuple[int, int], interpolation: str) -> None:
    """Within one step in 256, whatever the sizes, for a part of a picture that begins anywhere.

    But for one pixel in a hundred where the sharper filters overshoot: what is cut off there between the two passes
    depends on which comes first, and Pillow's choice has changed over its versions.
    """
    frame, box = smooth(*size), (1.25, 0.5, size[1] - 2.75, size[0] - 1.0)
    wanted = Image.fromarray(frame).resize((24, 28), Image.Resampling[interpolation.upper()], box=box)
    found = resampled(frame, box, (28, 24), interpolation)
    difference = np.abs(found.astype(int) - np.asarray(wanted).transpose(2, 0, 1))
    assert difference.max() <= (4 if interpolation in ("bicubic", "lanczos") else 1)
    assert (difference > 1).mean() < 1e-2


def test_opencv_enlarges_alike() -> None:
    """Its bilinear enlargement is ours; it does not average where it makes smaller, which a network was trained on."""
    frame = noise(16, 20, 3)
    wanted = cv2.resize(frame, (50, 40), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1).astype(int)
    assert np.abs(resampled(frame, (0, 0, 20, 16), (40, 50), "bilinear") - wanted).max() <= 1
    assert set(FILTERS) < set(INTERPOLATIONS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_frame_is_its_file(size: tuple[int, int], channels: int, tmp_path: Path) -> None:
    """Red first as Pillow reads it, blue first as OpenCV does: exactly what the file gives."""
    Image.fromarray(noise(*size, 3)).save(tmp_path / "a.png")
    seen = network(channels)
    wanted = seen.load_image(tmp_path / "a.png")
    with Image.open(tmp_path / "a.png") as picture:
        np.testing.assert_array_equal(seen.prepare(np.asarray(picture)), wanted)
    blue_first = cv2.imread(str(tmp_path / "a.png"))
    np.testing.assert_allclose(seen.prepare(blue_first, "bgr"), wanted, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_numpy_alone_is_enough(channels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Pillow the same within one step."""
    frame, seen = smooth(72, 128), network(channels, interpolation="bicubic")
    monkeypatch.setitem(sys.modules, "PIL", None)
    alone = seen.prepare(frame[..., ::-1], "bgr")
    monkeypatch.undo()
    np.testing.assert_allclose(alone, seen.prepare(frame), atol=STEP + 1e-6)


def test_several_frames_of_several_sizes_and_kinds() -> None:
    """An array of them, a list, grey ones; each as by itself."""
    frames, seen = [noise(*size, 3) for size in SIZES], network()
    np.testing.assert_array_equal(seen.prepare(frames), np.concatenate([seen.prepare(one) for one in frames]))
    np.testing.assert_array_equal(seen.prepare(np.stack([frames[0]] * 2))[1], seen.prepare(frames[0])[0])
    grey = noise(30, 20)
    np.testing.assert_array_equal(seen.prepare(grey), seen.prepare(np.dstack([grey] * 3)))
    assert seen.prepare(frames).shape == (len(SIZES), 3, 56, 48)


def test_a_network_that_takes_blue_first() -> None:
    """Mean and deviation are in its own order, whatever the order of the frame."""
    blue_first = Preprocessing(3, 4, 4, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7), "bgr")
    red_first = Preprocessing(3, 4, 4, (0.3, 0.2, 0.1), (0.7, 0.6, 0.5))
    frame = noise(4, 4, 3)
    wanted = red_first.prepare(frame)[:, ::-1]
    np.testing.assert_array_equal(blue_first.prepare(frame), wanted)
    np.testing.assert_array_equal(blue_first.prepare(frame[..., ::-1], "bgr"), wanted)
    assert blue_first.prepare(frame).flags.c_contiguous


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        (np.zeros((4, 4, 3), np.float32), r"shape \(4, 4, 3\) and type float32; frames are uint8, 0 to 255"),
        (np.zeros((3, 8, 8), np.uint8), r"channels come last: frame.transpose\(1, 2, 0\)"),
        (np.zeros((8, 8, 4), np.uint8), r"leave its fourth channel out"),
        (np.zeros((5, 8, 8), np.uint8), r"a frame is \(H, W, 3\) or \(H, W\), several are \(N, H, W, C\) or a list"),
        (np.zeros((0, 8, 3), np.uint8), r"a frame is \(H, W, 3\)"),
        (np.zeros(8, np.uint8), r"a frame is \(H, W, 3\)"),
        ([], "there is no frame"),
        (["photo.jpg"], "a frame is a str; give a uint8 array"),
    ],
)
def test_wrong_frames_are_one_sentence(frame: Any, says: str) -> None:
    """What was given, and what is taken."""
    with pytest.raises(UsageError, match=says):
        network().prepare(frame)
    with pytest.raises(UsageError, match="'bgrx'; allowed: rgb, bgr"):
        network().prepare(noise(4, 4, 3), "bgrx")

"""Where pictures come from: files, folders, videos, cameras; and the classes of a few of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.report.run_table import run_parts
from emqdeploy.runtimes import Runtime
from emqdeploy.serving.predict import predict, separated
from emqdeploy.serving.serve import serve
from emqdeploy.serving.settings import ServeSettings

from ..conftest import Deployed


@pytest.fixture(scope="module")
def network(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network, of grey images of 8 x 8 pixels, as a checkpoint."""
    path = tmp_path_factory.mktemp("network") / "model.emq"
    save_checkpoint(path, small.checkpoint)
    return path


def pixels(seed: int, *shape: int) -> np.ndarray:
    """Noise."""
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Three grey files."""
    paths = [tmp_path / f"{number}.png" for number in range(3)]
    for number, path in enumerate(paths):
        Image.fromarray(pixels(number, 8, 8)).save(path)
    return paths


def film(path: Path, count: int) -> list[np.ndarray]:
    """Writes a video without loss; returns its frames, blue first."""
    frames = [pixels(number, 24, 32, 3) for number in range(count)]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (32, 24))
    assert writer.isOpened()
    for frame in frames:
        writer.write(frame)
    writer.release()
    return frames


def run(network: Path, *sources: object, **more: Any) -> tuple[dict[str, Any], list[str]]:
    """Serves one child; returns the summary and what was said."""
    told: list[str] = []
    settings = ServeSettings(network, tuple(map(str, sources)), bits="8", threads=1, energy="none", **more)
    return serve(settings, report=told.append), told


def test_files_a_folder_and_a_video_are_one_stream(network: Path, photos: list[Path], tmp_path: Path) -> None:
    """In the order of their naming; the classes are those that the network gives each picture by itself."""
    (tmp_path / "more").mkdir()
    Image.fromarray(pixels(9, 8, 8)).save(tmp_path / "more" / "a.png")
    frames = film(tmp_path / "clip.avi", 4)
    result, told = run(network, photos[1], tmp_path / "more", tmp_path / "clip.avi")
    with Runtime.from_bundle(network, bits=8) as direct:
        inputs = [direct.preprocess(pixels(1, 8, 8)), direct.preprocess(pixels(9, 8, 8))]
        inputs += [direct.preprocess(frame, "bgr") for frame in frames]
        wanted = [direct.classes[direct.run(one).argmax()] for one in inputs]
    assert [entry["class"] for entry in result["predictions"]] == wanted
    assert [Path(entry["image"]).name for entry in result["predictions"][:3]] == [
        "1.png",
        "a.png",
        "clip.avi picture 1",
    ]
    assert sum(result["classes"].values()) == result["images"] == 6
    assert any("clip.avi ended after 4 pictures" in line for line in told)
    assert result["ended"] is None
    assert result["reading_ms"]["p50"] > 0
    assert any("reading and preprocessing: p50" in str(part) for part in run_parts(result))
    json.dumps(result)


def test_a_video_begins_again(network: Path, tmp_path: Path) -> None:
    """With ``--repeat``."""
    film(tmp_path / "clip.avi", 3)
    assert run(network, tmp_path / "clip.avi", repeat=True, limit=7)[0]["images"] == 7


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("97", "there is no camera 97, or another program has it"),
        ("/dev/video97", "there is no camera /dev/video97"),
        ("no.mp4", "there is no video no.mp4; check the path"),
        ("broken.mp4", "broken.mp4 cannot be read as a video"),
        ("no.png", "there is no image no.png; check the path"),
        ("notes.txt", "notes.txt is not an image, a video or a folder; name images"),
    ],
)
def test_what_cannot_be_read_is_one_sentence(
    network: Path, tmp_path: Path, source: str, says: str, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    """Before anything is timed, and without the library's own words."""
    monkeypatch.chdir(tmp_path)
    Path("broken.mp4").write_bytes(b"no video")
    Path("notes.txt").write_text("no image")
    with pytest.raises(EmqError, match=says):
        run(network, source)
    assert "WARN" not in capfd.readouterr().err


def test_nothing_and_impossible_combinations(network: Path, photos: list[Path], tmp_path: Path) -> None:
    """``--watch`` waits in a folder."""
    with pytest.raises(UsageError, match="nothing to classify"):
        run(network)
    with pytest.raises(UsageError, match=r"waits for files in a folder, and .*0.png is none"):
        run(network, photos[0], watch=True)
    for path in photos:
        path.write_bytes(b"cut")
    with pytest.raises(EmqError, match=r"none of 3 pictures could be read; .*0.png is not a readable image"):
        run(network, tmp_path)


class Unplugged:
    """A camera that gives two pictures and is gone: no camera can be pulled out of a test."""

    def __init__(self, number: int) -> None:
        self.left = 2

    def isOpened(self) -> bool:
        """Yes."""
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        """As OpenCV answers."""
        self.left -= 1
        return (True, pixels(self.left, 24, 32, 3)) if self.left >= 0 else (False, None)

    def get(self, _: int) -> float:
        """It has no number of pictures."""
        return -1.0

    def release(self) -> None:
        """Nothing to give back."""


def test_a_camera_that_disappears(network: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """What it gave counts; the summary is printed, then the sentence, and the exit code is 1."""
    monkeypatch.setattr(cv2, "VideoCapture", Unplugged)
    flags = ["--bits", "8", "--threads", "1", "--energy", "none", "--json"]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(network), "--source", "0", *flags])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert json.loads(out)["images"] == 2
    assert "error: camera 0 gives no more pictures after 2; connect it again, and start anew" in err


def test_the_network_stands_before_or_behind(network: Path, photos: list[Path]) -> None:
    """It is known by what it is, not by its place."""
    assert separated([*photos, network]) == separated([network, *photos]) == (network, photos)
    assert separated([network.parent, photos[0]])[0] == network.parent
    assert separated(photos)[0] is None
    with pytest.raises(UsageError, match="are both networks; name one"):
        separated([network, network.parent])


def test_many_images_are_predicted(network: Path, photos: list[Path], tmp_path: Path, capsys: Any) -> None:
    """Each as by itself; what is unreadable is passed over and makes the exit code 1."""
    alone = [predict(network, [path], "2")["images"][0] for path in photos]
    together = predict(network, [tmp_path], "2")
    assert [entry["class"] for entry in together["images"]] == [entry["class"] for entry in alone]
    assert together["child"] == "2"
    (tmp_path / "broken.png").write_bytes(b"cut")
    with pytest.raises(SystemExit) as ended:
        main(["predict", str(tmp_path), str(network), "--json"])
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert len(json.loads(out)["images"]) == 3
    assert "error: 1 of 4 images could not be read" in err
    with pytest.raises(EmqError, match=r"none of 2 images could be read; .*broken.png is not a readable image"):
        predict(network, [tmp_path / "broken.png", tmp_path / "broken.png"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="empty holds no images"):
        predict(network, [tmp_path / "empty"])


def test_a_table_says_class_and_confidence(network: Path, photos: list[Path], capsys: Any) -> None:
    """For one image its likeliest classes, for several one line each."""
    for images in ([photos[0]], photos):
        with pytest.raises(SystemExit) as ended:
            main(["predict", *map(str, images), str(network)])
        assert not ended.value.code
        assert "confidence" in capsys.readouterr().out

"""`emqdeploy run`: a folder or a camera's folder is classified under a policy, and accounted for."""

from __future__ import annotations

import io
import itertools
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image
from rich.console import Console

from emqdeploy.data.preprocessing import Preprocessing
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.report.live import LiveView, line
from emqdeploy.report.run_table import run_parts
from emqdeploy.serving.folder import arrivals, unknown_folders
from emqdeploy.serving.serve import serve
from emqdeploy.serving.settings import ServeSettings

from ..conftest import Deployed


@pytest.fixture(scope="module")
def network(small: Deployed, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small network as a checkpoint with everything that serving asks for."""
    accuracy = {str(bits): 90.0 + bits for bits in range(1, 9)}
    path = tmp_path_factory.mktemp("network") / "model.emq"
    save_checkpoint(path, replace(small.checkpoint, card=structs.replace(small.checkpoint.card, accuracy=accuracy)))
    return path


def picture(path: Path, seed: int) -> None:
    """A grey image of 8 x 8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(pixels).save(path)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Images of two classes, one of a folder that is no class, and a file that is no image."""
    for number in range(6):
        picture(tmp_path / "photos" / ("3" if number % 2 else "7") / f"{number}.png", number)
    picture(tmp_path / "photos" / "holiday" / "beach.png", 9)
    (tmp_path / "photos" / "7" / "broken.png").write_bytes(b"not an image")
    (tmp_path / "photos" / "notes.txt").write_text("no image at all")
    return tmp_path / "photos"


def settings(network: Path, folder: Path, **more: Any) -> ServeSettings:
    """Two children, one thread, no sensors."""
    sources = (str(folder),)
    return ServeSettings(network, sources, "latency_p99=5s,accuracy>=92", "2,8", threads=1, energy="none", **more)


def test_a_folder_is_classified_and_logged(network: Path, photos: Path, tmp_path: Path) -> None:
    """Labels come from folder names; a line per image; what is unreadable is counted, not fatal."""
    told: list[str] = []
    result = serve(settings(network, photos, log=tmp_path / "log.jsonl"), report=told.append)
    assert (result["images"], result["labelled"], result["unreadable"]) == (7, 6, 1)
    assert result["by_setting"]["8 bits"]["accuracy"] == result["accuracy"]
    assert [budget["met"] for budget in result["budgets"]] == [True, True]
    assert result["energy"] == {"not_measured": "it was not asked for"}
    lines = [json.loads(entry) for entry in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [entry["event"] for entry in lines].count("image") == 7
    assert [entry["event"] for entry in lines].count("unreadable") == 1
    assert {(entry["child"], entry["bits"]) for entry in lines if entry["event"] == "image"} == {("8", 8)}
    assert {entry["label"] for entry in lines if entry["event"] == "image"} == {"3", "7", None}
    assert any("holiday" in one and "unlabelled" in one for one in told)
    assert run_parts(result)[-1] == "1 files were not readable as images"
    json.dumps(result)


def test_limits_and_repetition(network: Path, photos: Path) -> None:
    """As many images as asked for, however few there are; a rate is an upper bound."""
    result = serve(settings(network, photos, repeat=True, limit=20))
    assert result["images"] == 20
    result = serve(settings(network, photos, repeat=True, seconds=0.4, fps=10.0))
    assert 1 <= result["images"] <= 6


class Camera:
    """Writes two pictures, a piece at every look of whoever waits for them; its clock stands between two looks."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        picture(folder / "first.png", 1)
        self.now = 1000.0
        os.utime(folder / "first.png", (self.now, self.now))
        whole = (folder / "first.png").read_bytes()
        self.pieces = [whole[start : start + 20] for start in range(0, len(whole), 20)]
        self.second = folder / "second.png"

    def time(self) -> float:
        """Now."""
        return self.now

    def sleep(self, seconds: float) -> None:
        """A while later."""
        self.now += seconds
        if self.pieces:
            with self.second.open("ab") as file:
                file.write(self.pieces.pop(0))
            os.utime(self.second, (self.now, self.now))


def test_new_files_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A camera writes slowly: a file counts when its size stands still, and only once."""
    camera = Camera(tmp_path / "camera")
    monkeypatch.setattr("emqdeploy.serving.folder.time", camera)
    found: list[Path] = []
    looks = itertools.count()
    for arrival in arrivals(tmp_path / "camera", (), True, lambda: next(looks) > 100):
        if arrival is not None:
            assert Image.open(arrival.name).size == (8, 8)
            found.append(Path(arrival.name))
    assert camera.pieces == []
    assert [path.name for path in found] == ["first.png", "second.png"]


def test_bad_input_is_one_sentence(network: Path, photos: Path, tmp_path: Path) -> None:
    """Folders, rates, policies, tables and logs that cannot be."""
    (tmp_path / "empty").mkdir()
    for folder, says in ((tmp_path / "nowhere", "is not there; name images"), (tmp_path / "empty", "holds no images")):
        with pytest.raises(UsageError, match=says):
            serve(settings(network, folder))
    for more, says in (({"fps": 0.0}, "--fps is 0"), ({"repeat": True, "watch": True}, "one of them")):
        with pytest.raises(UsageError, match=says):
            serve(settings(network, photos, **more))
    with pytest.raises(UsageError, match=r"0\.50 points short"):
        serve(replace(settings(network, photos), policy="accuracy>=98.5"))
    with pytest.raises(EmqError, match="cannot write"):
        serve(settings(network, photos, log=tmp_path / "no" / "log.jsonl"))
    assert unknown_folders(photos, ["3", "7"]) == ["holiday"]


def test_what_nothing_can_meet_is_in_the_summary(network: Path, photos: Path) -> None:
    """A microsecond: the run goes on, the account says that the budget was missed, and by what."""
    tight = replace(settings(network, photos, repeat=True, limit=400), policy="latency_p50=1us")
    result = serve(tight)
    assert result["budgets"][0]["met"] is False
    assert any("misses latency_p50<=0.001ms by" in entry["reason"] for entry in result["decisions"])


def test_the_live_view_draws_a_panel_on_a_terminal(network: Path, photos: Path) -> None:
    """On a terminal a panel, elsewhere a line; the words are those of the state."""
    seen: list[dict[str, Any]] = []
    serve(settings(network, photos, repeat=True, seconds=0.5), view=seen.append)
    screen = io.StringIO()
    with LiveView(Console(file=screen, force_terminal=True, width=100)) as view:
        view(seen[-1])
    drawn = screen.getvalue()
    for word in ("8 bits", "p99", "accuracy", "power", "not measured", "Ctrl-C"):
        assert word in drawn
    assert "8 bits" in line(seen[-1])


def test_ctrl_c_ends_with_a_summary(network: Path, photos: Path) -> None:
    """The first one stops after the image at hand; --json still prints one object."""
    command = [
        sys.executable,
        "-m",
        "emqdeploy",
        "run",
        str(network),
        "--source",
        str(photos),
        "--bits",
        "8",
        "--watch",
    ]
    process = subprocess.Popen(
        [*command, "--threads", "1", "--energy", "none", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stderr is not None
    while b"images," not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=600)
    result = json.loads(out)
    assert process.returncode == 0
    assert result["interrupted"] is True
    assert result["images"] == 7
    assert b"Traceback" not in err


@pytest.mark.parametrize("error", [MemoryError("no room"), ValueError("strange bytes"), EmqError("cannot run this")])
def test_whatever_a_picture_causes_ends_at_that_picture(
    network: Path, photos: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """It is named, with the reason, and the next one is classified."""
    real = Preprocessing.load_image

    def load(self: Preprocessing, path: Path) -> Any:
        if path.name == "beach.png":
            raise error
        return real(self, path)

    monkeypatch.setattr(Preprocessing, "load_image", load)
    told: list[str] = []
    result = serve(settings(network, photos), report=told.append)
    assert (result["images"], result["unreadable"]) == (6, 2)
    passed = [line for line in told if "beach.png is passed over" in line]
    assert len(passed) == 1
    assert str(error) in passed[0]

"""The scripts in ``examples/`` do what they say, each as a user starts it."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

import emqdeploy
from emqdeploy.data import load_dataset

EXAMPLES = Path(__file__).parent.parent / "examples"


def start(name: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Runs a script in a process of its own."""
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def bundle(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two exported children of the digits."""
    return emqdeploy.export(digits, bits=[2, 8], out=tmp_path_factory.mktemp("examples") / "bundle").bundle


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits as pictures of the size that the network was trained on, a folder per class."""
    from PIL import Image

    home, digits = tmp_path_factory.mktemp("photos"), load_dataset("digits")
    for place, (image, label) in enumerate(zip(digits.train.images, digits.train.labels, strict=True)):
        folder = home / f"digit {label}"
        folder.mkdir(exist_ok=True)
        Image.fromarray(image[0]).convert("RGB").save(folder / f"{place}.png")
    return home


def test_camera_loop_classifies_a_folder(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """A line per frame, the bit-width changes on the way, and the classes are right."""
    done = start("camera_loop.py", bundle, photos / "digit 3", "--frames", 40)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 41
    assert {line.split()[1] for line in lines[:40]} == {"2", "8"}
    assert sum(line.split()[-1] == "3" for line in lines[:40]) > 20
    nothing = start("camera_loop.py", bundle, tmp_path)
    assert nothing.returncode == 1
    assert nothing.stderr.strip() == f"{tmp_path} has no frame that can be read"


@pytest.mark.slow
def test_camera_loop_reads_a_video(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """As OpenCV gives its frames: blue first."""
    cv2 = pytest.importorskip("cv2")
    film = cv2.VideoWriter(str(tmp_path / "film.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 25, (32, 32))
    for file in sorted((photos / "digit 0").iterdir())[:5]:
        film.write(cv2.resize(cv2.imread(str(file)), (32, 32)))
    film.release()
    done = start("camera_loop.py", bundle, tmp_path / "film.avi", "--bits", "8")
    assert done.returncode == 0, done.stderr
    assert "5 frames" in done.stdout
    wrong = start("camera_loop.py", bundle, tmp_path / "none.avi")
    assert wrong.returncode == 1
    assert "does not open" in wrong.stderr


@pytest.mark.slow
def test_policy_says_what_it_decided(bundle: Path) -> None:
    """What it served with, how often it was right, and why."""
    done = start("policy.py", bundle, "--seconds", 0.3)
    assert done.returncode == 0, done.stderr
    assert "% right, at the end with" in done.stdout
    assert "best accuracy within the budgets" in done.stdout


@pytest.mark.slow
def test_a_timm_model_becomes_a_bundle(photos: Path, tmp_path: Path) -> None:
    """A float network of timm, trained here for a moment, quantized without training, proven and measured."""
    if importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    floats = emqdeploy.train(
        data=f"imagefolder:{photos}", model="timm/test_resnet", bits=32, image_size=32, epochs=4, lr=0.05,
        out=tmp_path / "float",
    )  # fmt: skip
    weights = floats.run / "latent.safetensors"
    done = start(
        "bring_a_timm_model.py", "timm/test_resnet", weights, photos,
        "--image-size", 32, "--images", 64, "--out", tmp_path / "quantized",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for words in ("without training", "Bundle", "Parity with the integer reference", "p50"):
        assert words in done.stdout
    assert (tmp_path / "quantized" / "bundle" / "manifest.json").exists()

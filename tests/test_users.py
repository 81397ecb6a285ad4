"""The device's part in environments of its own: ``[runtime]`` alone, in this Python and in 3.10."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emqdeploy.cli import main

ROOT = Path(__file__).parent.parent
PHOTOS = 3


def _python310() -> str | None:
    """An interpreter of Python 3.10, which is what JetPack 6 and Ubuntu 22.04 have."""
    named = [shutil.which("python3.10"), *map(str, Path.home().glob(".pyenv/versions/3.10*/bin/python"))]
    for found in filter(None, named):
        try:
            told = subprocess.run([found, "--version"], capture_output=True, text=True, check=False).stdout
        except OSError:
            continue
        if told.startswith("Python 3.10"):
            return found
    return None


PYTHONS = {"this Python": sys.executable, "Python 3.10": _python310()}


@pytest.fixture(scope="module")
def shipped(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with what a workstation sends to a device: a bundle, and a few photos."""
    from PIL import Image

    from emqdeploy.data import load_dataset

    home = tmp_path_factory.mktemp("shipped")
    run = shutil.copytree(trained / "runs" / "digits-resnet8-001", home / "run")
    with pytest.raises(SystemExit):
        main(["export", str(run), "--bits", "2,8", "--out", str(home / "bundle"), "--json"])
    shutil.rmtree(run)
    (home / "photos").mkdir()
    for place, image in enumerate(load_dataset("digits").test.images[:PHOTOS, 0]):
        Image.fromarray(image).resize((64, 48)).save(home / "photos" / f"{place}.png")
    return home


@pytest.fixture(scope="module", params=list(PYTHONS))
def device(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ``bin`` of a fresh environment with ``emqdeploy[runtime]``."""
    python = PYTHONS[request.param]
    if python is None:
        pytest.skip("there is no Python 3.10 here")
    home = tmp_path_factory.mktemp("device") / "venv"
    subprocess.run([python, "-m", "venv", str(home)], check=True, capture_output=True)
    pip = [str(home / "bin" / "python"), "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    made = subprocess.run([*pip, f"{ROOT}[runtime]"], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"packages cannot be installed here: {made.stderr.splitlines()[-1]}")
    held = subprocess.run([*pip[:-1], "list"], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "onnx", "scikit-learn"} & set(held)
    return home / "bin"


def _device_part() -> tuple[list[list[str]], list[str]]:
    """Commands and Python of the README's section for devices."""
    text = (ROOT / "README.md").read_text()
    section = re.search(r"^## On a device\n(.*?)^## ", text, re.MULTILINE | re.DOTALL)
    assert section is not None
    consoles = re.findall(r"^```console\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    commands = [line[2:].split() for block in consoles for line in block.splitlines() if line.startswith("$ ")]
    blocks = re.findall(r"^```python\n(.*?)^```", section[1], re.MULTILINE | re.DOTALL)
    assert len(commands) >= 3
    assert blocks
    return commands, blocks


@pytest.mark.slow
def test_the_readme_works_on_a_device(device: Path, shipped: Path, tmp_path: Path) -> None:
    """Every command and every example of the section, in the directory that has the bundle."""
    home = shutil.copytree(shipped, tmp_path / "home")
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    commands, blocks = _device_part()
    for name, *arguments in commands:
        assert name == "emqdeploy"
        less = ["--samples", "20", "--energy", "none"] if arguments[0] == "bench" else []
        assert run(str(device / name), *arguments, *less)
    for block in blocks:
        run(str(device / "python"), "-c", block)
    for bits in ("2", "8"):
        assert "ok" in run(str(device / "emqdeploy"), "verify", "bundle", "--bits", bits)
    shown = run(str(device / "python"), str(ROOT / "examples" / "camera_loop.py"), "bundle", "photos")
    assert f"{PHOTOS} frames" in shown
    shown = run(str(device / "python"), str(ROOT / "examples" / "policy.py"), "bundle", "--seconds", "0.5")
    assert "% right" in shown
    files = run(str(device / "emqdeploy"), "materialize", "bundle", "--bits", "4")
    assert "model-w4.onnx" in files

"""Users who have the docs and nothing else, on real images, at 80 columns.

An embedded engineer with a bundle (in environments of their own: ``[runtime]`` alone, in this Python and in 3.10), a
researcher, and a lead who wants one report. What they type stands in README or docs; only names of files are theirs,
and options that make it less work. An engineer with a model of timm is in ``test_examples.py``.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import emqdeploy
from emqdeploy.cli import main
from emqdeploy.data import load_dataset
from tests.cli.test_terminal import on_terminal

ROOT = Path(__file__).parent.parent
PHOTOS = 3
LESS = ["--samples", "20", "--energy", "none"]
"""Of a bench."""


def typed(page: str, start: str = "emqdeploy") -> list[list[str]]:
    """Arguments of the commands in a page's blocks that begin with some words; there is one or more."""
    blocks = re.findall(r"^```(?:console)?\n(.*?)^```", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    lines = [line.removeprefix("$ ").partition("  #")[0] for block in blocks for line in block.splitlines()]
    found = [line.split()[1:] for line in lines if line.startswith(start)]
    assert found, f"{page} has no command {start!r}"
    return found


def narrow(lines: list[str]) -> list[str]:
    """The lines, of which no table is wider than 80 columns or cut."""
    assert all(len(line) <= 80 for line in lines if re.search("[│┃┏┌]", line))
    assert "…" not in "".join(lines)
    return lines


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


def _section(page: str, title: str) -> str:
    """A section of a page."""
    found = re.search(rf"^## {title}\n(.*?)^## ", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL)
    assert found is not None
    return found[1]


def _device_part() -> tuple[list[list[str]], list[str]]:
    """Commands and Python of the README's section for devices, and the commands of the page about the first one."""
    section = _section("README.md", "On a device")
    consoles = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    commands = [line[2:].split() for block in consoles for line in block.splitlines() if line.startswith("$ ")]
    blocks = re.findall(r"^```python\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    first = _section("docs/first-device.md", "x86-64")
    commands += [line.partition("  #")[0].split() for line in first.splitlines() if line.startswith("emqdeploy")]
    assert len(commands) >= 6
    assert blocks
    return commands, blocks


@pytest.mark.slow
def test_an_embedded_engineer_with_a_bundle(device: Path, shipped: Path, tmp_path: Path) -> None:
    """Every command and every example of the README's section and of the page, where the bundle was copied to."""
    home = shutil.copytree(shipped, tmp_path / "home")
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    clean |= {"COLUMNS": "80"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=home, env=clean, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        assert "Traceback" not in done.stderr
        return done.stdout

    commands, blocks = _device_part()
    for name, *arguments in commands:
        assert name == "emqdeploy"
        less = LESS if arguments[0] == "bench" else []
        assert run(str(device / name), *arguments, *less)
        if arguments[0] in ("bench", "eval", "verify"):
            assert narrow(on_terminal(home, *arguments, *less, python=str(device / "python")))
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


@pytest.mark.slow
def test_a_researcher(tmp_path: Path) -> None:
    """A run, the same run once more from its own options, a baseline in the same code base, and one picture of both."""
    (train, *_) = typed("docs/training.md", "emqdeploy train  ")
    (again,) = typed("docs/training.md", "emqdeploy train --config runs/digits-resnet8-001/config.toml")
    (baseline,) = typed("docs/training.md", "emqdeploy train --recipe any-precision --data cifar10")
    less = ["--epochs", "2", "--limit", "400"]
    narrow(on_terminal(tmp_path, *train, *less))
    repeated = narrow(on_terminal(tmp_path, *again))
    narrow(on_terminal(tmp_path, *["digits" if part == "cifar10" else part for part in baseline], *less))
    runs = [tmp_path / "runs" / f"digits-resnet8-00{number}" for number in (1, 2, 3)]
    assert len(list(runs[2].glob("model-w*.emq"))) == 8  # its codes do not nest
    first, second = (emqdeploy.load(run) for run in runs[:2])
    with first, second:
        images = emqdeploy.sample_images(runs[0]).images[:32]
        inputs = first.preprocessing.normalize(images)
        for bits in (1, 8):
            first.use(bits)
            second.use(bits)
            assert (first.run(inputs) == second.run(inputs)).all()
    assert any("trained" in line for line in repeated)
    on_terminal(tmp_path, "plot", *map(str, runs[::2]), "--out", "both")
    assert list(tmp_path.glob("both*"))


@pytest.mark.slow
def test_a_lead_who_wants_one_report(trained: Path, tmp_path: Path) -> None:
    """Every command of the page about reading numbers; the report opens without a network and says what to deploy."""
    home = shutil.copytree(trained, tmp_path / "home")
    narrow(on_terminal(home, "export", "--bits", "2,8"))
    commands = typed("docs/reading.md")
    assert [command[0] for command in commands] == ["bench", "bench", "bench", "compare"]
    for command in commands:
        replayed = command[0] == "compare" or "--replay" in command
        narrow(on_terminal(home, *command, *([] if replayed else LESS)))
    for name, words in (("report.html", "Deploy "), ("both.html", "before")):
        page = (home / name).read_text()
        assert words in page
        assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//""", page)
    assert json.loads((home / "after.json").read_text())["rows"]

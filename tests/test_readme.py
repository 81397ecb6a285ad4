"""The README's commands run as they stand, in their order, and so does the Python in README and docs."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from emqdeploy.cli import main

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def _blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def _ship(home: Path) -> None:
    """Puts what the section about devices has copied beside the runs: the bundle, once there is one, and photos."""
    made = home / "runs" / "digits-resnet8-001" / "bundle"
    if made.exists() and not (home / "bundle").exists():
        from PIL import Image

        from emqdeploy.data import load_dataset

        shutil.copytree(made, home / "bundle")
        (home / "photos").mkdir()
        for place, image in enumerate(load_dataset("digits").test.images[:3, 0]):
            Image.fromarray(image).save(home / "photos" / f"{place}.png")


LESS = {
    "train": [("--epochs", "3"), ("--limit", "400")],
    "bench": [("--samples", "20")],
    "verify": [("--images", "64")],
}
"""The first of these that a command does not say itself is added to it, for it to be done in seconds."""


def _commands(home: Path) -> list[list[str]]:
    """Writes the TOML files of the README; returns the arguments of every console command of it."""
    for block in _blocks(README, "toml"):
        (home / block.splitlines()[0].removeprefix("# ")).write_text(block)
    lines = [line[2:] for block in _blocks(README, "console") for line in block.splitlines() if line.startswith("$ ")]
    assert len(lines) >= 5
    assert all(line.startswith("emqdeploy ") for line in lines)
    return [line.split()[1:] for line in lines]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the TOML files of the README, in which every console command of it has run on less."""
    home = tmp_path_factory.mktemp("readme")
    for arguments in _commands(home):
        more = next((less for less in LESS.get(arguments[0], []) if less[0] not in arguments), ())
        _ship(home)
        printed, complaints = io.StringIO(), io.StringIO()
        with (
            contextlib.chdir(home),
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(complaints),
            pytest.raises(SystemExit) as ended,
        ):
            main([*arguments, *more])
        assert not ended.value.code, f"{arguments}: {complaints.getvalue()}"
        assert printed.getvalue()
    return home


@pytest.mark.slow
def test_commands_run_to_the_letter(tmp_path: Path) -> None:
    """In a process each, with nothing added."""
    for arguments in _commands(tmp_path):
        _ship(tmp_path)
        run = [sys.executable, "-m", "emqdeploy", *arguments]
        result = subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert result.returncode == 0, f"{arguments}: {result.stderr}"
        assert result.stdout


def test_commands_leave_what_the_readme_shows(home: Path) -> None:
    """A trained checkpoint, a proven 4-bit file, and one of a child with widths per layer."""
    assert (home / "runs/digits-resnet8-001/model.emq").exists()
    assert (home / "runs/digits-resnet8-001/bundle/model-w4.onnx").exists()
    assert (home / "bundle/test-images.npz").exists()
    assert (home / "runs/mixed/bundle/model-mixed.onnx").exists()


DOCUMENTS = ["README.md", *(f"docs/{name}.md" for name in ("runtimes", "export", "policy", "python", "data"))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_python_examples_run(home: Path, document: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Examples are executed beside the run that the commands made."""
    from PIL import Image

    from emqdeploy.data import load_dataset

    Image.fromarray(load_dataset("digits").test.images[0, 0]).save(home / "digit.png")
    blocks = _blocks((ROOT / document).read_text(), "python")
    assert blocks
    monkeypatch.chdir(home)
    for block in blocks:
        exec(compile(block, document, "exec"), {"__name__": "__main__"})


def test_documents_have_no_gaps() -> None:
    """No placeholder was left where a figure belongs, and every relative link leads somewhere."""
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        text = path.read_text()
        assert "@@" not in text, path
        for link in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (path.parent / link).exists(), f"{path}: {link}"


@pytest.mark.slow
def test_demo_runs(tmp_path: Path) -> None:
    """What `make demo` runs, with the accuracy that it has to reach."""
    import json

    run = [sys.executable, "-m", "emqdeploy", "demo", "--json"]
    result = json.loads(subprocess.run(run, cwd=tmp_path, capture_output=True, text=True, check=True).stdout)
    rows = {row["bits"]: row for row in result["rows"]}
    assert set(rows) == {8, 4, 2}
    assert rows[8]["accuracy"] >= 97
    assert rows[2]["accuracy"] >= rows[8]["accuracy"] - 2
    assert all(row["parity"]["differing_codes"] == 0 for row in rows.values())

"""Processes of ours import from where we do, whatever lies in the working directory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from emqdeploy.format.child import Child
from emqdeploy.measuring.fresh import cost_of_loading
from emqdeploy.measuring.load import load
from emqdeploy.measuring.opening import Opening
from emqdeploy.processes import archive_command, python_code, search_path
from emqdeploy.remote import probe
from emqdeploy.remote.parcel import package


@pytest.fixture
def hostile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with modules that note that they ran; returns where they note it."""
    folder, ran = tmp_path / "bundle", tmp_path / "ran"
    folder.mkdir()
    for name in ("numpy", "onnxruntime", "msgspec", "json", "runpy", "platform", "emqdeploy_extra"):
        (folder / f"{name}.py").write_text(f"open({str(ran)!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return ran


def test_measuring_imports_nothing_from_the_working_directory(digits: Path, hostile: Path) -> None:
    """Neither the process that loads a network alone nor the one that takes a core."""
    cost = cost_of_loading(Opening(str(digits), "onnxruntime"), [Child.of(2)])
    assert cost.get("load_ms", 0) > 0, cost
    with load(1, 0.1):
        pass
    assert not hostile.exists()


@pytest.mark.slow
def test_the_module_as_a_program_leaves_the_working_directory(hostile: Path) -> None:
    """Also where a person starts it with ``python -m``."""
    command = [sys.executable, "-m", "emqdeploy", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert json.loads(done.stdout)["version"]
    assert not hostile.exists()


def test_a_device_imports_nothing_from_where_its_shell_starts(hostile: Path) -> None:
    """The probe comes over standard input, the bench out of an archive."""
    script = Path(probe.__file__).read_bytes()
    done = subprocess.run([sys.executable, "-"], input=script, capture_output=True, check=True)
    os.rmdir(json.loads(done.stdout)["folder"])
    Path("emqdeploy.zip").write_bytes(package())
    done = subprocess.run(
        archive_command(sys.executable, "emqdeploy.zip", "emqdeploy.measuring", "none.json"),
        capture_output=True,
        check=False,
    )
    assert b"emqdeploy.zip" in done.stderr
    assert b"none.json" in done.stderr
    assert not hostile.exists()


def test_the_search_path_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the working directory under any of its names, with the folder of this package; arguments arrive."""
    (tmp_path / "link").symlink_to(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", ".", str(tmp_path), str(tmp_path / "link"), *sys.path])
    assert not {"", ".", str(tmp_path), str(tmp_path / "link")} & set(search_path())
    code = "import emqdeploy; print(emqdeploy.__file__, *sys.argv[1:])"
    done = subprocess.run(python_code(code, "one", "two"), capture_output=True, text=True, check=True)
    import emqdeploy

    assert done.stdout.split() == [str(Path(emqdeploy.__file__).resolve()), "one", "two"]


def test_a_working_directory_may_be_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removed it: nothing of it is in the way."""
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert search_path()
    monkeypatch.chdir(tmp_path)

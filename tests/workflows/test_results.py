"""A bench that is measured again: a result says what was measured, and nothing that runs or is opened for it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.cli import main
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.options import options_of
from emqdeploy.remote.place import Place
from emqdeploy.workflows.results import replay_settings

RESULT = Path(__file__).parents[1] / "data" / "bench.json"
HERE = BenchSettings(path="here")


def _result(folder: Path, **settings: Any) -> Path:
    result = json.loads(RESULT.read_text())
    result["settings"] |= settings
    path = folder / "result.json"
    path.write_text(json.dumps(result))
    return path


@pytest.mark.parametrize("name", ["host", "ssh", "host_python"])
def test_no_result_says_how_to_reach_a_machine(name: str, tmp_path: Path) -> None:
    """It has no such settings, and one that brings them is refused."""
    assert name not in BenchSettings().to_dict()
    with pytest.raises(EmqError, match=f"unknown settings {name}; this file comes from another version"):
        replay_settings(_result(tmp_path, **{name: "x"}), HERE, set())


def test_no_program_of_a_result_runs(
    tmp_path: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What ran a shell once ends in one sentence."""
    monkeypatch.chdir(tmp_path)
    path = _result(tmp_path, path=str(digits), host="device", ssh=f"sh -c 'touch {tmp_path}/ran'")
    with pytest.raises(SystemExit) as ended:
        main(["bench", "--replay", str(path)])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("error: unknown settings host, ssh")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("trace", "/etc/hosts"),
        ("data", "test.npz"),
        ("data", "imagefolder:/home"),
        ("data_dir", "/home"),
    ],
)
def test_files_are_named_on_the_command_line(name: str, value: str, tmp_path: Path) -> None:
    """A result's own are refused; what stands beside --replay is taken."""
    path, flag = _result(tmp_path, **{name: value}), f"--{name.replace('_', '-')}"
    with pytest.raises(UsageError, match=f"took {flag} from a file, which a result may not name; add {flag}"):
        replay_settings(path, HERE, {"replay"})
    now = BenchSettings(path="here", **{name: Path("mine") if name == "data_dir" else "mine"})
    assert getattr(replay_settings(path, now, {"replay", name}), name) == getattr(now, name)


@pytest.mark.parametrize("asked", [False, True])
def test_only_the_command_line_forgets_what_the_machine_keeps(tmp_path: Path, asked: bool) -> None:
    """Which kernels were fastest is a file of the user's, which a result of somebody else may not have removed."""
    path = _result(tmp_path, tune=not asked)
    assert replay_settings(path, replace(HERE, tune=asked), {"replay", "tune"}).tune is asked


@pytest.mark.parametrize("option", ["--replay", "--resume"])
def test_the_network_is_named_on_the_command_line(option: str, tmp_path: Path) -> None:
    """What lies at a result's path may be a program for the GPU; of the latest run of one's own it says nothing."""
    with pytest.raises(UsageError, match=rf"opened engines, and .* may not say .*: emqdeploy bench PATH {option}"):
        replay_settings(_result(tmp_path, path="engines"), BenchSettings(), set(), option)
    assert replay_settings(_result(tmp_path, path="engines"), HERE, {"path"}, option).path == "here"
    assert replay_settings(_result(tmp_path, path=None), BenchSettings(), set(), option).path is None


def test_names_of_ours_are_replayed(tmp_path: Path) -> None:
    """A registered trace and data set are no files."""
    settings = replay_settings(_result(tmp_path, trace="round-robin", data="digits"), HERE, {"replay"})
    assert (settings.trace, settings.data) == ("round-robin", "digits")


def test_the_way_to_a_machine_stands_beside_replay(tmp_path: Path) -> None:
    """But not what would change what is measured."""
    place = {one.argument for one in options_of(Place)}
    assert place == {"host", "ssh", "host_python"}
    assert replay_settings(_result(tmp_path), BenchSettings(path="here"), {"path", "replay", *place}).path == "here"
    with pytest.raises(UsageError, match="leave out --bits, --threads"):
        replay_settings(_result(tmp_path), HERE, {"threads", "bits"})

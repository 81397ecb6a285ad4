"""A bench over ssh, against a real server: what comes back, and what is left behind when things go wrong."""

from __future__ import annotations

import ast
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import emqdeploy
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.sysfs import ROOT_VARIABLE
from emqdeploy.remote.bench import bench_there, check, read_answer
from emqdeploy.remote.connection import Connection, pump
from emqdeploy.remote.parcel import Parcel
from emqdeploy.remote.place import Place
from tests.measuring.trees import TREES, plant
from tests.remote.conftest import Device

Start = Callable[..., Device]


def _settings(path: Path) -> BenchSettings:
    return BenchSettings(str(path), "8,2", samples=20, switches=10)


def _place(device: Device) -> Place:
    return Place("device", device.ssh, sys.executable)


def _nothing_left(device: Device) -> None:
    """No directory, and no process that works in one, two minutes later at the latest."""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        listed = subprocess.run(["ps", "-eo", "args="], capture_output=True, text=True, check=True).stdout
        running = [line for line in listed.splitlines() if f"{device.temporary}/" in line]
        files = list(device.temporary.rglob("*"))
        if not files and not running:
            return
        time.sleep(0.1)
    raise AssertionError(f"left behind: {files}, {running}")


def test_a_jetson_is_measured_from_a_workstation(
    digits: Path,
    start_device: Start,
    tmp_path: Path,
) -> None:
    """The network, its test images and this package travel; the result comes back as if measured here."""
    tree = plant(tmp_path / "orin", TREES["orin nano"]())
    device = start_device(**{ROOT_VARIABLE: str(tree)})
    lines: list[str] = []
    settings = replace(_settings(digits), device="jetson", energy="none")
    result = bench_there(settings, _place(device), lines.append)
    assert result["complete"] is True
    assert device.ssh not in json.dumps(result)
    assert "host" not in result["environment"]
    assert result["environment"]["device"]["model"].startswith("NVIDIA Jetson Orin Nano")
    assert result["source"]["path"] == str(digits)
    assert BenchSettings.from_dict(result["settings"]) == settings
    assert len(result["switches"]) == 10
    for row in result["rows"]:
        assert len(row["samples_ms"]) == 20
        assert row["kind"] == "baseline" or row["accuracy_drop"] == pytest.approx(0, abs=0.6)
        assert row["rss_bytes"] > 0
    assert any(line.startswith("copying") for line in lines)
    assert any(line.startswith("accuracy of 8 bits") for line in lines)
    _nothing_left(device)


def test_a_lost_connection_leaves_nothing_running(digits: Path, start_device: Start) -> None:
    """One sentence here; there the guard notices, ends the bench and cleans up."""
    device = start_device()

    def pull(line: str) -> None:
        if line.startswith("timing"):
            threading.Thread(target=device.stop).start()

    with pytest.raises(EmqError, match=r"the connection to device was lost.*run it again"):
        bench_there(replace(_settings(digits), samples=None, seconds=600.0), _place(device), pull)
    _nothing_left(device)


def test_an_interrupted_bench_brings_back_what_there_is(digits: Path, start_device: Start) -> None:
    """Ctrl-C here asks the device to stop; the partial result is marked."""
    device = start_device()
    told: list[str] = []

    def interrupt(line: str) -> None:
        # Once: a second Ctrl-C would hit whatever runs after the bench.
        told.append(line)
        if sum(one.startswith("timing") for one in told) == 1 and line.startswith("timing"):
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGINT)).start()

    result = bench_there(replace(_settings(digits), samples=None, seconds=600.0), _place(device), interrupt)
    assert result["complete"] is False
    assert result["rows"][0]["latency_ms"]["samples"] > 0
    assert any("interrupted" in note for note in result["notes"])
    _nothing_left(device)


def test_errors_there_are_errors_here(digits: Path, start_device: Start) -> None:
    """The device's own sentence, a Python that is not there."""
    device = start_device()
    settings = _settings(digits)
    with pytest.raises(EmqError, match=r"on device: this machine is not a Jetson"):
        bench_there(replace(settings, device="jetson"), _place(device))
    with pytest.raises(EmqError, match=r"name one with --host-python"):
        bench_there(settings, replace(_place(device), host_python="/nowhere/python"))
    _nothing_left(device)


@pytest.mark.parametrize(
    ("modules", "runtimes", "lacks"),
    [
        ((), (), "numpy and msgspec and onnxruntime"),
        (("numpy", "msgspec"), ("tensorrt",), "tensorrt"),
        (("numpy", "onnxruntime"), (), "msgspec"),
        (("numpy", "msgspec", "onnxruntime"), ("torch",), "torch"),
        (("numpy", "msgspec", "tensorrt_rtx"), ("tensorrt",), None),
        (("numpy", "msgspec", "openvino"), (), None),
    ],
)
def test_packages_that_a_device_lacks_are_named(
    modules: tuple[str, ...], runtimes: tuple[str, ...], lacks: str | None
) -> None:
    """All at once, with the command that installs them; either TensorRT is enough for engines."""
    found = {
        "python": [3, 10, 4],
        "executable": "python3",
        "modules": modules,
        "folder": "/tmp/x",
        "free_bytes": 1 << 30,
    }
    parcel = Parcel(BenchSettings(runtimes=runtimes))
    if lacks is None:
        check("device", found, parcel)
        return
    with pytest.raises(EmqError, match=f"device lacks {lacks} for .*pip install {lacks.replace(' and', '')}$"):
        check("device", found, parcel)


def test_a_host_that_does_not_answer(digits: Path, tmp_path: Path) -> None:
    """The sentence holds ssh's own reason and the command to try."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, but nobody listens
        ssh = f"ssh -p {taken.getsockname()[1]} -o StrictHostKeyChecking=yes"
        with pytest.raises(EmqError, match=r"cannot connect to 127.0.0.1: .*refused; check that this works"):
            bench_there(BenchSettings(str(digits)), Place("127.0.0.1", ssh))


def test_a_silent_line_ends_the_job(tmp_path: Path) -> None:
    """A cable that is cut closes nothing: the guard counts the seconds since it last heard something."""
    import emqdeploy.remote.guard as guard

    folder = tmp_path / "job"
    folder.mkdir()
    source = Path(guard.__file__).read_text()
    assert "SILENCE_S = 20.0" in source
    (folder / "guard.py").write_text(source.replace("SILENCE_S = 20.0", "SILENCE_S = 0.5"))
    endless = f"import time; print('{folder}', flush=True); time.sleep(600)"
    (folder / "job.json").write_text(json.dumps({"command": [sys.executable, "-c", endless]}))
    command = [sys.executable, str(folder / "guard.py")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.wait(20) == 128 + signal.SIGTERM
    assert not folder.exists()
    out, _ = process.communicate()  # would hang if the job still held the pipe
    assert out.decode().strip() == str(folder)


@pytest.mark.parametrize("host", ["", "-oProxyCommand=reboot", "two words"])
def test_a_host_is_never_an_option(host: str) -> None:
    """What begins with a dash would be read by ssh as an option."""
    with pytest.raises(UsageError, match="name it as ssh would"):
        Connection(host)


def test_the_package_that_travels_needs_numpy_and_a_runtime_only(digits: Path, tmp_path: Path) -> None:
    """Beside them msgspec; neither the command line's packages nor torch nor safetensors are on a plain device."""
    from emqdeploy.remote.parcel import package

    (tmp_path / "emqdeploy.zip").write_bytes(package())
    settings: dict[str, Any] = BenchSettings(str(digits), "4", samples=10, switches=5).to_dict()
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    code = (
        "import runpy, sys\n"
        "class Bare:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name.partition('.')[0] in ('typer', 'rich', 'torch', 'safetensors', 'onnx', 'sklearn', 'click'):\n"
        "            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Bare())\n"
        "sys.path.insert(0, 'emqdeploy.zip')\n"
        "sys.argv = ['bench', 'settings.json']\n"
        "runpy.run_module('emqdeploy.measuring', run_name='__main__')\n"
    )
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"PYTHONPATH": "emqdeploy.zip"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=clean, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["rows"][0]["latency_ms"]["samples"] == 10
    assert any("accuracy is not measured" in note for note in result["notes"])


TRAVELS = (
    *("data", "errors", "files", "format", "graph", "measuring", "options", "processes", "progress", "registry"),
    *("remote", "runtimes", "serving"),
)
NEWER = {"UTC", "Self", "StrEnum", "file_digest", "ExceptionGroup", "assert_never", "tomllib", "TaskGroup", "chdir"}
"""Names of the standard library that Python 3.10, which JetPack 6 ties its TensorRT to, does not have."""


@pytest.mark.parametrize("name", TRAVELS)
def test_what_travels_is_python_310(name: str) -> None:
    """Its syntax, and the names that it imports when it runs."""
    root = Path(emqdeploy.__file__).parent
    files = [root / f"{name}.py"] if (root / f"{name}.py").exists() else sorted((root / name).rglob("*.py"))
    assert files
    for file in files:
        tree = ast.parse(file.read_text(), feature_version=(3, 10))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        for node in tree.body:  # not what stands below `if TYPE_CHECKING`
            if isinstance(node, ast.Import | ast.ImportFrom):
                used |= {alias.name for alias in node.names}
        assert not used & NEWER, file


RESULT = Path(__file__).parents[1] / "data" / "bench.json"


def test_what_a_device_sends_is_plain_text() -> None:
    """No escape sequence of its comes into a result, wherever it stands."""
    result = json.loads(RESULT.read_text())
    result["notes"] = ["\x1b]0;owned\x07"]
    result["environment"]["\x1b[2J"] = [{"cpu": "\x9b31m"}]
    found = json.dumps(read_answer("device", json.dumps(result)))
    assert "\\\\x1b]0;owned" in found
    assert not any(code in found for code in ("\\u001b", "\\u0007", "\\u009b"))


@pytest.mark.parametrize(
    "change",
    [
        {"rows": {}},
        {"rows": [{"label": 1}]},
        {"schema": 1},
        {"notes": "x"},
        {"environment": None},
        {"source": []},
        {"complete": "yes"},
    ],
)
def test_what_a_device_sends_is_checked_like_a_file(change: dict[str, Any]) -> None:
    """Another type, another schema: one sentence that names the device."""
    line = json.dumps(json.loads(RESULT.read_text()) | change)
    with pytest.raises(EmqError, match=r"^device answered with something that is no result of a bench"):
        read_answer("device", line)


@pytest.mark.parametrize("line", ["", "[]", "{", "[" * 100_000, '{"a":' * 100_000, "\x1b[2J", "NaN"])
def test_what_is_no_result_at_all(line: str) -> None:
    """Nothing of it reaches the sentence as it came."""
    with pytest.raises(EmqError, match=r"^device answered") as refused:
        read_answer("device", line)
    assert "\x1b" not in str(refused.value)


def test_a_device_that_never_stops_talking_is_given_up() -> None:
    """Neither many lines nor one without end fill the memory."""
    for endless in (b"line\n" * 100, b"x" * 500):
        heard: list[str] = []
        given_up: list[int] = []
        pump(io.BytesIO(endless), heard.append, lambda: given_up.append(1), 100)  # noqa: B023
        assert given_up == [1]
        assert sum(map(len, heard)) <= 100


def _ssh_that_says(folder: Path, words: str) -> str:
    """An ssh that connects to nothing and answers every question alike."""
    program = folder / "ssh"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nif '-fN' not in sys.argv and 'exit' not in sys.argv:\n    {words}\n"
    )
    program.chmod(0o755)
    return str(program)


@pytest.mark.parametrize(
    "words",
    [
        "print('hello')",
        'print(\'{"python": [3, 11, 0], "executable": 1}\')',
        'print(\'{"python": "3", "folder": null}\')',
        "print('[' * 90000)",
        'print(r\'{"python": [3,11,0], "executable": "\\u001b[2J", "machine": "", "modules": [], "folder": "/x",'
        ' "free_bytes": 9}\')',
    ],
)
def test_a_host_that_is_no_device(words: str, digits: Path, tmp_path: Path) -> None:
    """What it says about itself is checked before anything is made of it."""
    place = Place("device", _ssh_that_says(tmp_path, words), "python3")
    with pytest.raises(EmqError, match="device does not answer as a device should") as refused:
        bench_there(BenchSettings(str(digits)), place)
    assert "\x1b" not in str(refused.value)


def test_a_host_that_floods(digits: Path, tmp_path: Path) -> None:
    """It is cut off, in one sentence."""
    ssh = _ssh_that_says(tmp_path, "print('x' * (2 << 20))\n    while True: print('x' * 1000)")
    with pytest.raises(EmqError, match="device"):
        bench_there(BenchSettings(str(digits)), Place("device", ssh, "python3"))

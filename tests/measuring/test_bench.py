"""A bench as a whole: what comes back, what is kept when it is stopped, what it refuses."""

from __future__ import annotations

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

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.emq import read_card
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.journal import Journal
from emqdeploy.measuring.result import load_result, save_result
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.workbench import SCENARIOS, Workbench
from emqdeploy.runtimes.test_images import find_test_set, limited, load_test_set, save_test_set


def test_every_row_says_everything(measured: dict[str, Any]) -> None:
    """The contract of `emqdeploy.measuring.result`, on a real run."""
    assert measured["complete"] is True
    assert measured["schema"] == 2
    assert [row["label"] for row in measured["rows"]] == ["8 bits", "4 bits", "2 bits"]
    for row in measured["rows"]:
        latency = row["latency_ms"]
        assert latency["min"] <= latency["interval"]["low"] <= latency["p50"] <= latency["interval"]["high"]
        assert len(row["samples_ms"]) == latency["samples"] == 60
        assert row["ratio_to_first"]["low"] <= row["ratio_to_first"]["ratio"] <= row["ratio_to_first"]["high"]
        assert row["accuracy_drop"] == pytest.approx(row["reference_accuracy"] - row["accuracy"], abs=1e-3)
        assert row["computed_as"] == "int8"
        assert row["rss_bytes"] > 0
        assert row["load_ms"] > 0
        assert {layer["stored_as"] for layer in row["per_layer"]} >= {row["stored_as"]}
        assert all(layer["integer"] is True for layer in row["per_layer"])
        assert (row["kind"], row["child"], row["weights"], row["activations"]) == (
            "child",
            str(row["bits"]),
            row["bits"],
            8,
        )
    (resident,) = measured["resident"]
    assert resident["children"] == ["8", "4", "2"]
    assert measured["rows"][0]["ratio_to_first"]["ratio"] == 1


def test_switches_follow_the_trace(measured: dict[str, Any]) -> None:
    """Every switch is there, goes to another child, and costs time."""
    switches = measured["switches"]
    assert len(switches) == 30
    assert switches[0]["from"] == "8"
    for before, after in itertools.pairwise(switches):
        assert after["from"] == before["to"]
        assert after["t_s"] > before["t_s"]
    assert all(one["from"] != one["to"] and one["first_output_ms"] > 0 for one in switches)
    assert {row["child"] for row in measured["scenarios"]["switch"]["rows"]} == {"8", "4", "2"}


def test_offline_has_a_row_per_batch(measured: dict[str, Any]) -> None:
    """Throughput of every network at every batch size."""
    rows = measured["scenarios"]["offline"]["rows"]
    assert {(row["label"], row["batch"]) for row in rows} == {
        (label, batch) for label in ("8 bits", "4 bits", "2 bits") for batch in (1, 8)
    }
    assert all(row["images_per_second"] > 0 for row in rows)


def test_settings_survive_json(measured: dict[str, Any]) -> None:
    """What ``--replay`` reads back is what was asked for, and the command line says the same."""
    settings = BenchSettings.from_dict(measured["settings"])
    assert settings.bits == "8,4,2"
    assert settings.to_dict() == measured["settings"]
    assert "--bits 8,4,2 --runtime onnxruntime --scenario single,offline,switch" in measured["command"]
    with pytest.raises(EmqError, match="another version"):
        BenchSettings.from_dict({"speed": "high"})
    with pytest.raises(EmqError, match="another version"):
        BenchSettings.from_dict({"bits": [8, 4]})


def test_the_trace_of_a_file_is_followed(digits: Path, tmp_path: Path) -> None:
    """One child a line; anything else is refused with its line."""
    trace = tmp_path / "trace.txt"
    trace.write_text("2\n\n8\n8\n2\n")
    settings = BenchSettings(str(digits), "2,8", scenarios=("switch",), trace=str(trace), energy="none", limit=20)
    result = bench(settings)
    assert [one["to"] for one in result["switches"]] == ["2", "8", "8", "2"]
    assert result["rows"][0]["latency_ms"] is None
    trace.write_text("2\n5\n")
    with pytest.raises(EmqError, match=r"line 2 says '5'; a trace holds available children: 2, 8"):
        bench(settings)


def test_labels_that_do_not_match_are_refused(digits: Path, tmp_path: Path) -> None:
    """Accuracy on other classes would be a number without meaning."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "one.png")
    with pytest.raises(UsageError, match=r"has 2 classes, and the network was trained on 10; name its own data set"):
        bench(BenchSettings(str(digits), data=f"imagefolder:{tmp_path}"))


def test_results_are_read_back_or_refused(measured: dict[str, Any], tmp_path: Path) -> None:
    """A reader gets the whole result or one sentence."""
    path = tmp_path / "bench.json"
    save_result(path, measured)
    assert load_result(path) == measured
    for damage, sentence in (
        ("{", "is not JSON"),
        ("[]", "is not a result"),
        ('{"schema": 99}', "has schema 99"),
        ('{"schema": 1}', "has schema 1, this emqdeploy reads 2; measure again"),
        ('{"schema": 2}', "missing required field `settings`"),
        (json.dumps(measured | {"command": "\ud800"}), "surrogates not allowed"),
    ):
        path.write_text(damage)
        with pytest.raises(EmqError, match=sentence):
            load_result(path)
    with pytest.raises(EmqError, match="cannot read"):
        load_result(tmp_path / "nowhere.json")


def test_measuring_needs_no_torch(digits: Path) -> None:
    """A device has no torch: the whole bench runs with it blocked."""
    code = (
        "def block(name, *rest):\n"
        "    if name == 'torch': raise ImportError(name)\n"
        "import sys; sys.meta_path.insert(0, type('Block', (), {'find_spec': staticmethod(block)}));"
        "from emqdeploy.cli import main;"
        f"main(['bench', {str(digits)!r}, '--bits', '4', '--samples', '10', '--limit', '20', '--json'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["complete"] is True


def test_an_interrupted_bench_keeps_what_it_has(digits: Path, tmp_path: Path) -> None:
    """Ctrl-C in the middle: the file is written, marked as incomplete, and the exit code says so."""
    script, out = tmp_path / "script.py", tmp_path / "bench.json"
    script.write_text(
        "import itertools, os, signal\n"
        "from emqdeploy.__main__ import main\n"
        "from emqdeploy.measuring.scenarios import single\n"
        "take_turns = single.take_turns\n"
        "def interrupted(bench):\n"
        "    stop, rounds = bench.stop, itertools.count()\n"
        "    def interrupt_third():\n"
        "        if next(rounds) == 2:\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "        return stop()\n"
        "    bench.stop = interrupt_third\n"
        "    return take_turns(bench)\n"
        "single.take_turns = interrupted\n"
        "main()\n"
    )
    arguments = ["bench", str(digits), "--bits", "8,2", "--seconds", "600", "--energy", "none", "--out", str(out)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 130
    result = load_result(out)
    assert result["complete"] is False
    assert all(row["latency_ms"]["samples"] > 0 and row["accuracy"] is None for row in result["rows"])
    assert "interrupted: what was measured until then is here" in done.stdout


def test_a_killed_bench_goes_on(digits: Path, tmp_path: Path) -> None:
    """Finished scenarios are on the disk, are not measured again, and the result says that it has two halves."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal\n"
        "from emqdeploy.cli import main\n"
        "from emqdeploy.measuring.scenarios import SCENARIOS\n"
        "@SCENARIOS.register('deadly')\n"
        "def deadly(bench):\n"
        "    if not os.path.exists('again'):\n"
        "        open('again', 'w').close()\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return {'survived': True}\n"
        "main()\n"
    )
    search = {"PYTHONPATH": str(Path(__file__).parents[2])}

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(script), "bench", *arguments]
        environment = os.environ | search
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    scenarios = "single,switch,deadly"
    fixed = ("--bits", "8,2", "--samples", "20", "--switches", "10", "--limit", "20", "--energy", "none")
    killed = call(str(digits), *fixed, "--scenario", scenarios, "--out", "bench.json")
    assert killed.returncode == -signal.SIGKILL
    partial = load_result(tmp_path / "bench.json.partial")
    assert not (tmp_path / "bench.json").exists()
    assert partial["complete"] is False
    assert list(partial["scenarios"]) == ["single", "switch"]
    refused = call(str(digits), "--resume", "bench.json", "--samples", "30")
    assert refused.returncode == 2
    assert "leave out --samples, or leave out --resume" in refused.stderr
    done = call(str(digits), "--resume", "bench.json")
    assert done.returncode == 0, done.stderr
    assert "timing" not in done.stderr
    result = load_result(tmp_path / "bench.json")
    assert result["complete"] is True
    assert list(result["scenarios"]) == ["single", "switch", "deadly"]
    assert [row["samples_ms"] for row in result["rows"]] == [row["samples_ms"] for row in partial["rows"]]
    assert all(row["accuracy"] is not None and row["rss_bytes"] for row in result["rows"])
    assert len(result["switches"]) == 10
    assert "resumed after an interruption: single, switch measured before it, deadly after it" in result["notes"]
    assert not (tmp_path / "bench.json.partial").exists()
    nothing = call(str(digits), "--resume", "bench.json")
    assert nothing.returncode == 2
    assert "nothing to resume" in nothing.stderr


def test_two_halves_are_of_one_network(digits: Path, measured: dict[str, Any], tmp_path: Path) -> None:
    """A journal of another network or machine is refused before anything is timed."""
    changes: list[tuple[str, dict[str, Any], str]] = [
        ("source", {"sha256": "0" * 64}, "another network"),
        ("environment", {"cpu": "abacus"}, "another cpu"),
    ]
    for part, change, reason in changes:
        save_result(tmp_path / "bench.json.partial", measured | {part: measured[part] | change})
        journal = Journal(tmp_path / "bench.json")
        journal.resume()
        with pytest.raises(EmqError, match=reason):
            bench(BenchSettings.from_dict(measured["settings"]), journal=journal)


def test_a_scenario_that_fails_loses_nothing(digits: Path) -> None:
    """What was measured before stays, the failure is noted; a bench of which nothing works is an error."""

    @SCENARIOS.register("broken")
    def broken(workbench: Workbench) -> dict[str, Any]:
        raise EmqError("the engine is gone")

    try:
        settings = BenchSettings(str(digits), "8", scenarios=("single", "broken"), samples=10, limit=20, energy="none")
        result = bench(settings)
        assert result["rows"][0]["latency_ms"]["samples"] == 10
        assert result["scenarios"]["broken"] == {"failed": "the engine is gone"}
        assert result["complete"] is False
        with pytest.raises(EmqError, match="the engine is gone"):
            bench(replace(settings, scenarios=("broken",)))
    finally:
        del SCENARIOS._entries["broken"]


def test_a_test_set_travels_as_a_file(digits: Path, tmp_path: Path) -> None:
    """The images that went along to a device give the same accuracy; anything else is refused."""
    path = tmp_path / "test.npz"
    test = find_test_set(read_card(digits)[0])
    save_test_set(path, test)
    back = load_test_set(path)
    assert (back.name, back.classes) == (test.name, test.classes)
    assert np.array_equal(back.split.images, test.split.images)
    assert np.array_equal(back.split.labels, test.split.labels)
    spread = limited(test, 10).split.labels
    assert len(spread) == 10
    assert (spread[0], spread[-1]) == (test.split.labels[0], test.split.labels[-1])
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EmqError, match="not a test set"):
        load_test_set(path)
    with pytest.raises(EmqError, match="cannot read"):
        load_test_set(tmp_path / "nowhere.npz")

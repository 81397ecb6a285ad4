"""A bench as a whole: what comes back, what is kept when it is stopped, what it refuses."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.result import load_result, save_result
from emqdeploy.measuring.settings import BenchSettings


def test_every_row_says_everything(measured: dict[str, Any]) -> None:
    """The contract of `emqdeploy.measuring.result`, on a real run."""
    assert measured["complete"] is True
    assert measured["schema"] == 1
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
    (resident,) = measured["resident"]
    assert resident["bits"] == [8, 4, 2]
    assert measured["rows"][0]["ratio_to_first"]["ratio"] == 1


def test_switches_follow_the_trace(measured: dict[str, Any]) -> None:
    """Every switch is there, goes to another width, and costs time."""
    switches = measured["switches"]
    assert len(switches) == 30
    assert switches[0]["from"] == 8
    for before, after in itertools.pairwise(switches):
        assert after["from"] == before["to"]
        assert after["t_s"] > before["t_s"]
    assert all(one["from"] != one["to"] and one["first_output_ms"] > 0 for one in switches)
    assert {row["bits"] for row in measured["scenarios"]["switch"]["rows"]} == {8, 4, 2}


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
    assert settings.bits == (8, 4, 2)
    assert settings.to_dict() == measured["settings"]
    assert "--scenario single,offline,switch" in measured["command"]
    with pytest.raises(EmqError, match="another version"):
        BenchSettings.from_dict({"speed": "high"})


def test_the_trace_of_a_file_is_followed(digits: Path, tmp_path: Path) -> None:
    """One bit-width a line; anything else is refused with its line."""
    trace = tmp_path / "trace.txt"
    trace.write_text("2\n\n8\n8\n2\n")
    settings = BenchSettings(str(digits), (2, 8), scenarios=("switch",), trace=str(trace), energy="none", limit=20)
    result = bench(settings)
    assert [one["to"] for one in result["switches"]] == [2, 8, 8, 2]
    assert result["rows"][0]["latency_ms"] is None
    trace.write_text("2\n5\n")
    with pytest.raises(EmqError, match=r"line 2 says '5'; a trace holds available bit-widths: 2, 8"):
        bench(settings)


def test_labels_that_do_not_match_are_refused(digits: Path, tmp_path: Path) -> None:
    """Accuracy on other classes would be a number without meaning."""
    from PIL import Image

    for split in ("train", "test"):
        for name in ("cat", "dog"):
            folder = tmp_path / split / name
            folder.mkdir(parents=True)
            Image.new("L", (8, 8)).save(folder / "one.png")
    with pytest.raises(UsageError, match=r"the labels of .* \(2 classes, cat first\) are not those"):
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
        ('{"schema": 1}', "lacks settings"),
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

"""Two results side by side: a real difference is found, chance is not called one, and doubts are named."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.cli import main
from emqdeploy.errors import EmqError
from emqdeploy.measuring.comparison import compare
from emqdeploy.measuring.result import save_result
from emqdeploy.measuring.statistics import difference_interval, independent_ratios
from emqdeploy.report.html.page import save_html
from emqdeploy.report.html.shell import carried_data
from emqdeploy.workflows.results import compare_files

RESULT = Path(__file__).parents[1] / "data" / "bench.json"
NAMES = ("a.json", "b.json")


@pytest.fixture
def result() -> dict[str, Any]:
    """A real bench of eight children on a busy machine."""
    loaded: dict[str, Any] = json.loads(RESULT.read_text())
    return loaded


def calm(result: dict[str, Any], seed: int, factor: float = 1.0, count: int = 1000) -> dict[str, Any]:
    """The same rows, undisturbed, with samples drawn around 50 microseconds times a factor."""
    made = copy.deepcopy(result)
    random = np.random.default_rng(seed)
    for row in made["rows"]:
        row["samples_ms"] = (0.05 * factor * random.lognormal(0, 0.1, count)).tolist()
        row["disturbed"] = []
    return made


def test_chance_is_not_called_a_difference(result: dict[str, Any]) -> None:
    """Two runs from one distribution: alike, accuracy equal, nothing else differs."""
    found = compare(calm(result, 1), calm(result, 2), NAMES)
    verdicts = [row["p50"]["verdict"] for row in found["rows"]]
    assert set(verdicts) == {"alike"}
    assert all(0.97 < row["p50"]["low"] < row["p50"]["ratio"] < row["p50"]["high"] < 1.03 for row in found["rows"])
    assert {row["accuracy"]["verdict"] for row in found["rows"]} == {"equal"}
    assert found["different"] == []
    assert "Accuracy is equal in every row." in found["findings"]


def test_a_difference_is_found_with_its_size(result: dict[str, Any]) -> None:
    """One row a tenth slower, seen in median and tail, named; all of them slower points at the machine."""
    other = calm(result, 2)
    slow = calm(result, 3, factor=1.1)
    other["rows"][3] = slow["rows"][3]
    found = compare(calm(result, 1), other, NAMES)
    _, called = found["names"]
    row = found["rows"][3]
    assert row["p50"]["verdict"] == row["p99"]["verdict"] == "slower"
    assert row["p50"]["low"] < 1.1 < row["p50"]["high"]
    assert any("4 bits" in one and f"{called} is slower" in one for one in found["findings"])
    everything = compare(calm(result, 1), slow, NAMES)
    assert any("All rows moved alike" in one for one in everything["findings"])
    assert {one["p50"]["verdict"] for one in compare(slow, calm(result, 1), NAMES)["rows"]} == {"faster"}


def test_doubts_are_named(result: dict[str, Any]) -> None:
    """Disturbed rows, another machine, software, settings, network, images, and a run that broke off."""
    other = copy.deepcopy(result)
    other["environment"]["cpu"] = "Cortex-A78AE"
    other["environment"]["packages"]["onnxruntime"] = "1.30.0"
    other["settings"] |= {"threads": 1, "path": "elsewhere"}
    other["source"] |= {"sha256": "0" * 64, "images": 100}
    other["complete"] = False
    found = compare(result, other, NAMES)
    said = " ".join(found["cautions"])
    for words in (
        *("AMD EPYC against Cortex-A78AE", "onnxruntime 1.32.0 against 1.30.0", "threads none against 1"),
        *("not the same file", "other images", "b was interrupted", "Disturbed (all rows)"),
    ):
        assert words in said
    assert "elsewhere" not in json.dumps(found["different"])
    assert compare(result, result, NAMES)["cautions"][0] == "Both are the same measurement."


def test_rows_meet_by_what_they_are(result: dict[str, Any]) -> None:
    """The same child in the same runtime, whatever it is called; else by name, and that is said."""
    both = copy.deepcopy(result)
    for row in both["rows"]:
        row["label"] += " (onnxruntime)"
    twin = copy.deepcopy(both["rows"][3]) | {"label": "4 bits (openvino)", "runtime": "openvino"}
    both["rows"].insert(0, twin)
    found = compare(result, both, NAMES)
    assert [row["label"] for row in found["rows"]] == [row["label"] for row in result["rows"]]
    assert (found["only_a"], found["only_b"]) == ([], ["4 bits (openvino)"])
    moved = copy.deepcopy(result)
    for row in moved["rows"]:
        row["runtime"] = "openvino"
    assert any("In other runtimes: 1 bit" in one for one in compare(result, moved, NAMES)["cautions"])


def test_what_was_not_measured_has_no_verdict(result: dict[str, Any]) -> None:
    """No samples, few samples, no data set, no energy: None, never a figure."""
    poor = copy.deepcopy(result)
    for row in poor["rows"]:
        row |= {"samples_ms": row["samples_ms"][:5], "accuracy": None, "rss_bytes": None}
    poor["switches"] = []
    rows = compare(result, poor, NAMES)["rows"]
    for name in ("p50", "p99", "first_output", "accuracy", "rss_bytes", "energy_mj"):
        assert all(row[name] is None for row in rows), name
    assert all(row["p99"] is None for row in compare(result, result, NAMES)["rows"])  # 100 samples


def test_bad_input_is_one_sentence(result: dict[str, Any], tmp_path: Path) -> None:
    """Nothing in common, no result, rows and switches that are damaged, another schema."""
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    save_result(good, result)
    cases: list[tuple[Any, str]] = [
        (result | {"rows": [], "switches": []}, "no row in common"),
        (result | {"rows": [{"label": "4 bits"}]}, "is damaged .*missing required field `kind`"),
        (result | {"rows": "none"}, r"is damaged .*Expected `array`.*\$\.rows"),
        (result | {"rows": [result["rows"][0] | {"accuracy": 101}]}, r"is damaged .*<= 100.*accuracy"),
        (result | {"rows": [result["rows"][0] | {"weights": 9}]}, "is damaged .*weight width 9; allowed: 1..8"),
        (result | {"rows": result["rows"][:1]}, "is damaged .*a switch names child '2', which no row has"),
        (result | {"schema": 1}, "has schema 1, this emqdeploy reads 2; measure again with: emqdeploy bench"),
        (result | {"schema": 3}, "schema 3, .*update emqdeploy"),
        ([1, 2], "not a result of emqdeploy bench"),
    ]
    for value, words in cases:
        other.write_text(json.dumps(value))
        with pytest.raises(EmqError, match=words):
            compare_files(good, other)
    with pytest.raises(EmqError, match="cannot read"):
        compare_files(good, tmp_path)


def test_the_command_reads_reports_and_prints_one_object(
    result: dict[str, Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A report against a JSON file; the page carries the same object; the table names every row."""
    save_html(tmp_path / "a.html", result)
    save_result(tmp_path / "b.json", calm(result, 1))
    arguments = ["compare", str(tmp_path / "a.html"), str(tmp_path / "b.json"), "--html", str(tmp_path / "ab.html")]
    with pytest.raises(SystemExit) as stop:
        main([*arguments, "--json"])
    assert not stop.value.code
    printed = json.loads(capfd.readouterr().out)
    assert carried_data(tmp_path / "ab.html") == printed
    with pytest.raises(SystemExit):
        main(arguments)
    shown = capfd.readouterr().out
    assert all(row["label"] in shown for row in result["rows"])
    assert "caution: Disturbed" in shown


@given(st.floats(0.5, 2.0), st.integers(20, 400), st.integers(1, 10))
def test_a_scaled_copy_has_the_ratio_inside_its_interval(factor: float, count: int, block: int) -> None:
    """Whatever the block, and the interval of nothing but a constant has no width."""
    samples = np.random.default_rng(count).lognormal(0, 0.2, count)
    (found,) = independent_ratios((factor * samples).tolist(), samples.tolist(), block, block, [0.5])
    assert found["low"] * 0.999 <= found["ratio"] <= found["high"] * 1.001
    assert found["ratio"] == pytest.approx(factor)
    (still,) = independent_ratios([factor] * count, [1.0] * count, block, 1, [0.5])
    assert still["low"] == still["high"] == pytest.approx(factor)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    """100 pairs of runs without a difference: 95 % intervals leave 1 out in few of them."""
    random = np.random.default_rng(0)
    missed = 0
    for _ in range(100):
        a, b = random.lognormal(0, 0.2, (2, 100))
        (found,) = independent_ratios(b.tolist(), a.tolist(), 1, 1, [0.5])
        missed += not found["low"] <= 1 <= found["high"]
    assert missed <= 12


def test_accuracy_interval_is_newcombes() -> None:
    """The paper's example (a) of method 10: 56/70 against 48/80."""
    found = difference_interval(56 / 70, 70, 48 / 80, 80)
    assert found["difference"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == (pytest.approx(0.0524, abs=5e-5), pytest.approx(0.3339, abs=5e-5))


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (("runs/before.json", "runs/after.html"), ["before", "after"]),
        (("a/bench.json", "b/bench.json"), ["A", "B"]),
        (("a-name-that-is-too-long-for-a-heading.json", "b.json"), ["A", "B"]),
    ],
)
def test_results_are_called_by_their_files(result: dict[str, Any], paths: tuple[str, str], names: list[str]) -> None:
    """In headings and sentences alike; by letters where names would not tell them apart."""
    found = compare(result, result, paths)
    assert found["names"] == names
    assert any(f"of the p50 of {names[0]}" in one for one in found["findings"])

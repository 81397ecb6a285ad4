"""Tables on the terminal: children by their names, and nothing cut off at 80 columns."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any, cast

import pytest
from rich.console import Console
from rich.table import Table

from emqdeploy.cli import main
from emqdeploy.cli.common import say
from emqdeploy.measuring.comparison import compare
from emqdeploy.report import terminal
from emqdeploy.report.bench_csv import save_csv
from emqdeploy.report.bench_table import bench_parts
from emqdeploy.report.compare import compare_parts
from emqdeploy.report.fitting import fitting, styled, table
from emqdeploy.report.live import LiveView, panel
from emqdeploy.report.terminal import accuracy_table, doctor_parts, inspect_parts, quantize_table, show
from emqdeploy.report.units import of_bytes, of_times
from emqdeploy.report.verify_table import verify_parts

RESULT = Path(__file__).parents[1] / "data" / "bench.json"


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Prints as `show` does on a terminal of 80 columns."""

    def call(*parts: Table | str) -> str:
        screen = io.StringIO()
        shape: dict[str, Any] = {"file": screen, "width": 80, "force_terminal": True, "color_system": None}
        monkeypatch.setattr(terminal, "Console", lambda **options: Console(**shape | options))
        show(*parts)
        return screen.getvalue()

    return call


DESCRIPTION = {
    "path": "model.emq",
    "children": [
        {
            **{"name": name, "weights": weights, "activations": activations, "trained": name in ("2", "mixed")},
            **{"accuracy": 97.5, "size_bytes": 12_345, "by_default": by_default},
        }
        for name, weights, activations, by_default in (
            *((str(bits), bits, 8, {}) for bits in range(1, 9)),
            ("4a2", 4, 2, {}),
            (
                "mixed",
                {"*": 4, "conv1": 8, "layers.0.conv1": 2},
                {"*": 8, "fc": 4},
                {"weights": ["fc", "layers.0.conv2"], "activations": []},
            ),
        )
    ],
    "weights": 75_000,
    "size_bytes": 123_456,
    "layers": [
        {
            **{"name": name, "kind": "convolution", "shape": [16, 16, 3, 3], "stored_as": "8 bit-planes", "input": "x"},
            "effective_bits": {
                child: 8.5 if name == "fc" else 8.25 for child in (*map(str, range(1, 9)), "4a2", "mixed")
            },
            "channels_below_nominal": {"8": 3},
        }
        for name in ("conv1", "layers.0.conv1", "layers.0.conv2", "fc")
    ],
    "activations": [],
    "float_ops": {"Softmax": 2},
    "card": {
        **{"model": "resnet8", "classes": ["a", "b"], "data": {"name": "digits"}, "trained": ["2", "mixed"]},
        "preprocessing": {"channels": 1, "height": 8, "width": 8, "mean": [0.5], "std": [0.25]},
        "fidelity": {},
    },
}


def test_inspect_lists_the_widths_of_layers(printed: Any) -> None:
    """What a child names and what takes its default; every column of every child is there, uncut."""
    text = printed(*inspect_parts(DESCRIPTION))
    words = " ".join(text.split())
    assert "bits of mixed's weights: conv1 8, layers.0.conv1 2, the 2 layers that it does not name 4" in words
    assert "bits of mixed's activations: fc 4 Layers" in words
    assert "computed in float, whatever the bit-width: 2 Softmax" in text
    rows = [line.split("│") for line in text.splitlines() if "│" in line]
    sizes = {cells[1].strip(): [cell.strip() for cell in cells[2:6]] for cells in rows if len(cells) == 8}
    assert sizes["mixed"] == ["2 to 8", "4 to 8", "trained", "97.50 %"]
    assert sizes["4a2"] == ["4", "2", "unseen", "97.50 %"]
    assert "…" not in text
    assert (text.count("8.25"), text.count("8.50")) == (3 * 10, 10)
    assert all(len(line) <= 80 for line in text.splitlines() if "│" in line or "┃" in line)


def test_every_table_of_a_bench_fits_80_columns(printed: Any) -> None:
    """Tables that are too wide are shown in parts, each with the labels; figures are never cut off."""
    result = json.loads(RESULT.read_text())
    text = printed(*bench_parts(result))
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    for word in ("accuracy", "ratio of p50 [95 %]", "computed as int8", "energy / image", "memory", "p99"):
        assert word in " ".join(text.split())
    assert text.count("8 bits") == 3
    assert "all 8 children resident in onnxruntime" in text


def test_brackets_are_text(printed: Any) -> None:
    """What a file or an error says is never read as markup; a cell's colour is."""
    result = json.loads(RESULT.read_text())
    result["rows"][0]["label"] = "[/x] 1 bit"
    result["notes"] = ['run: pip install "emqdeploy[tensorrt]"']
    colours = table("[/title]", "", caption="[/caption]")
    colours.add_row("[bold]plain")
    colours.add_row(styled("styled", "green"))
    text = printed(*bench_parts(result), *compare_parts(compare(result, result, ("[/a]", "b"))), colours)
    for words in ("[/x] 1 bit", "emqdeploy[tensorrt]", "[/title]", "[/caption]", "[/a]"):
        assert words in text
    assert "[bold]plain" in text
    assert "styled" in text


HOSTILE = "cat\x1b]0;owned\x07\x1b[2J\u202e\x9b31m\r[red]\udcff"
"""Sets the title, clears the screen, turns text around, returns to the start of the line; no character at the end."""


def found(*entries: dict[str, Any]) -> dict[str, Any]:
    """A verification with these children."""
    return {"results": list(entries), "images": "9 images", "not_compared": None, "completed": []}


FIDELITY = {"against": "float model", "snr_db": 31.26, "agreement": 99.2, "decided": 250, "images": 256}


def test_no_escape_sequence_reaches_the_terminal(printed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Titles, headings, cells, captions, lines, progress, errors, and the picture of a stream."""
    hostile = table(HOSTILE, HOSTILE, caption=HOSTILE)
    hostile.add_row(HOSTILE)
    doctor = {
        **{"version": "1", "runtimes": {}, "integer_kernels": "other", "native_kernels": [], "providers": []},
        "checks": [
            {"part": "x", "for": "y", "state": f"missing ({HOSTILE})", "advice": 'pip install "emqdeploy[train]"'}
        ],
        "environment": {"cpu": HOSTILE, "cores": 1, "python": "3", "packages": {}},
    }
    bad = {"wrong": HOSTILE, "images": 1, "flips": 1, "codes": 0, "max_output_steps": 1.0, "first_layer": HOSTILE}
    origin = {**FIDELITY, "against": HOSTILE, "measured": True, "judged": True} | bad
    rung = {"child": "4", "rungs": {HOSTILE: bad}, "failed": {"t": "emqdeploy[openvino]"}, "skipped": {}}
    rung["origin"] = origin
    shown = {
        **{"recent_ms": [1.0], "limits": {}, "setting": HOSTILE, "state": "met", "images": 1, "seconds": 1.0},
        **{"unreadable": 0, "labelled": 0, "accuracy": None, "power_w": None, "no_power": HOSTILE},
        **{"temperature_c": None, "last_decision": HOSTILE, "policy": HOSTILE, "switches": 0},
        "latest": {"class": HOSTILE, "probability": 0.5, "file": HOSTILE},
    }
    screen = Console(file=io.StringIO(), width=200, color_system=None, force_terminal=True)
    screen.print(panel(shown))
    text = printed(hostile, HOSTILE, *doctor_parts(doctor), *verify_parts(found(rung)))
    text += cast(io.StringIO, screen.file).getvalue()
    say(HOSTILE)
    LiveView(Console(file=io.StringIO()))({**shown, "seconds": 9.0})
    with pytest.raises(SystemExit):
        main(["inspect", HOSTILE])
    text += "".join(capsys.readouterr())
    assert not set(text) & set("\x1b\x07\u202e\x9b\r\udcff")
    assert "cat\\x1b]0;owned" in text
    assert "[red]" in text
    assert "emqdeploy[train]" in text
    assert "emqdeploy[openvino]" in text


def test_a_table_that_fits_stays_whole() -> None:
    """Parts begin where the terminal ends, each with what tells rows apart; a key that is too wide is not alone."""
    console = Console(width=40, force_terminal=True)

    def shapes(made: Table) -> list[int]:
        return [len(part.columns) if isinstance(part, Table) else 0 for part in fitting(made, console)]

    narrow = table("t", "a", "b", "c")
    narrow.add_row("1", "2", "3")
    assert shapes(narrow) == [3]
    wide = table("t", "", *"bcd")
    wide.add_row("a" * 30, *(letter * 12 for letter in "bcd"))
    wide.add_row("A" * 30, *(letter * 12 for letter in "BCD"))
    assert shapes(wide) == [2, 2, 2]
    keyed = table("t", *"kabcd", keys=2)
    for row in ("kabcd", "KABCD"):
        keyed.add_row(*(letter * 8 for letter in row))
    assert shapes(keyed) == [3, 3, 3]


def test_what_every_row_shares_is_said_once(printed: Any) -> None:
    """From the right, as much as it takes; never what tells rows apart. One row alone is turned."""
    names = ("child", "verdict", "p50 of everything µs", "kept", "kind", "stored as")
    made = table("t", *names, keys=2)
    for child in "842":
        made.add_row(child, "ok", child * 20, "k" * 10, "x" * 10, "y" * 16)
    text = printed(made)
    assert f"every row: stored as {'y' * 16}\n" in text
    assert [line.split("│")[2].strip() for line in text.splitlines() if "│" in line] == ["ok"] * 3
    assert text.count("x" * 10) == text.count("k" * 10) == 3
    alone = table("t", *names)
    alone.add_row("8", "ok", "1.5", *(letter * 30 for letter in "abc"))
    text = printed(alone)
    assert "│ p50 of everything µs │" in text
    assert "every row" not in text


def test_a_column_has_one_unit() -> None:
    """That of its median, so that one disturbed figure changes nothing; decimals for the smallest."""
    times = [0.0521, 0.1031, 3.25, None]
    unit = of_times([*times[:2], 0.05])
    assert (unit.name, [unit(one) for one in times]) == ("µs", ["52.1", "103.1", "3250.0", "-"])
    unit = of_times([0.0084, 30.0, 31.0])
    assert (unit.name, unit(0.0084), unit(30.0)) == ("ms", "0.008", "30.000")
    unit = of_bytes([94_100, 98_700, 1_200_000])
    assert (unit.name, unit(94_100), unit(1_200_000)) == ("kB", "94.1", "1200.0")
    assert of_bytes([12, 999])(12) == "12"
    assert of_times([]).name == "µs"


LONG = "features.stage3.block11.branch2.depthwise_convolution.weight_fake_quantized"
REASON = "differs from the integer reference at " + ", ".join(f"{LONG}.{index}" for index in range(4))


def wide_table() -> Table:
    """Names and reasons as long as those of real networks."""
    made = table("Parity", "child", "rung", *(f"figure {index}" for index in range(12)), "first difference", "")
    made.add_row("8", "onnxruntime", *(f"{index}.25" for index in range(12)), LONG, styled(REASON, "red"))
    return made


def test_a_pipe_gets_every_column_and_whole_reasons(capsys: pytest.CaptureFixture[str]) -> None:
    """One line per row, as wide as it takes: what is cut off in a log is lost."""
    show(wide_table(), "a line " * 40)
    lines = capsys.readouterr().out.splitlines()
    row = next(line for line in lines if "onnxruntime" in line)
    assert all(f"{index}.25" in row for index in range(12))
    assert LONG in row
    assert REASON in row
    assert lines[-1] == "a line " * 40


def test_a_terminal_folds_what_is_too_wide_by_itself(printed: Any) -> None:
    """In parts of 80 columns; a name or a sentence that is longer goes on in the next line."""
    text = printed(wide_table())
    assert "…" not in text
    assert all(len(line) <= 80 for line in text.splitlines())
    cells = [line.split("│")[-2].strip() for line in text.splitlines() if "│" in line]
    folded = "".join(cells)
    assert LONG in folded
    assert REASON.replace(" ", "") in folded.replace(" ", "")


def test_tables_of_training_take_names(printed: Any) -> None:
    """Trained, unseen, calibrated; usable or worth training; how far from what a child was made from."""
    text = printed(accuracy_table("Accuracy", {"8": 99.0, "4": 98.0, "2a4": 97.0}, ["8", "2a4"]))
    assert "signal to noise" not in text
    assert [line.split("│")[3].strip() for line in text.splitlines() if "%" in line] == ["trained", "unseen", "trained"]
    assert "calibrated" in printed(accuracy_table("Accuracy", {"8": 99.0}, [], "post-training"))
    result = {
        **{"checkpoint": "model.emq", "seconds": 3.0, "calibration_images": 512, "float_accuracy": 99.1},
        "accuracy": {"8": 99.0, "mixed": 90.0},
        "verdicts": {
            "8": {"lost": 0.1, "least": -0.3, "most": 0.5, "word": "usable"},
            "mixed": {"lost": 9.1, "least": 7.0, "most": 11.2, "word": "lost"},
        },
        "fidelity": {"8": FIDELITY, "mixed": FIDELITY | {"snr_db": 200.0}},
    }
    text = printed(quantize_table(result, 1.0))
    assert "-0.3 to 0.5" in text
    assert [line.split("│")[-2].strip() for line in text.splitlines() if " to " in line and "│" in line] == [
        *("usable", "train it")
    ]
    unlabelled = {**result, "float_accuracy": None, "accuracy": {}}
    assert "9.10 (7.0 to 11.2)" in printed(quantize_table(unlabelled, 1.0))
    assert re.search(r"31.3 dB │ +99.2 % │", text)
    assert " equal │" in text
    text = printed(accuracy_table("Accuracy", {"8": 99.0}, ["8"], fidelity={"8": FIDELITY}))
    assert "31.3 dB" in text
    assert "to the float model, 256 images" in " ".join(text.split())


def test_a_child_stands_beside_what_it_was_made_from() -> None:
    """First of its rows; judged or only shown, measured here or when it was made."""
    rung = {"wrong": None, "images": 9, "flips": 0, "codes": 0, "max_output_steps": 0.0, "first_layer": None}
    here = {**FIDELITY, "measured": True, "judged": True, "wrong": None, "first_layer": None}
    entries = [
        {"child": child, "rungs": {"torch": rung}, "failed": {}, "skipped": {}, "origin": origin}
        for child, origin in (
            ("8", here),
            ("4", here | {"judged": False, "measured": False}),
            ("a8", here | {"wrong": "a signal to noise of 9.0 dB, below 15", "first_layer": "conv2"}),
            ("2", None),
        )
    ]
    rungs, *lines = verify_parts(found(*entries))
    assert isinstance(rungs, Table)
    rows = [list(map(str, cells)) for cells in zip(*(column.cells for column in rungs.columns), strict=True)]
    assert rows[0] == ["8", "float model", "ok", "248 of 250", "-", "31.3 dB"]
    assert rows[2][1:3] == ["float model *", "not judged"]
    assert rows[4][2] == "WRONG"
    assert [row[0] for row in rows] == ["8", "", "4", "", "a8", "", "2"]
    assert lines == [
        "WRONG: float model at a8: a signal to noise of 9.0 dB, below 15, first at conv2",
        "* as measured when the checkpoint was made; not measured here",
    ]


def test_a_verification_says_what_differs(printed: Any) -> None:
    """Wrong or not, where it begins; what did not run, and why; the verdict stands in every part of the table."""
    right = {"wrong": None, "images": 359, "flips": 0, "codes": 2_619_264, "max_output_steps": 0.0, "first_layer": None}
    right |= {"differing_codes": 0, "max_step_error": 0}
    off = right | {"differing_codes": 90, "max_step_error": 1, "max_output_steps": 0.39, "first_layer": "stage2_0_bn2"}
    bad = off | {"wrong": "its class differs at 3 images", "first_layer": "conv1"}
    entry = {"rungs": {"onnxruntime": right, "torch": off, "openvino": bad}, "failed": {"native": "it stopped"}}
    entry |= {"skipped": {"tensorrt": "there is no GPU"}, "origin": None}
    result = found(*({"child": child, **entry} for child in "24"))
    text = printed(*verify_parts(result | {"completed": ["onnx-w2"], "not_compared": "torch is not installed"}))
    words = " ".join(text.split())
    assert all(len(line) <= 80 for line in text.splitlines())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if "│" in line]
    assert rows[:4] == [
        ["2", "onnxruntime", "ok", "359 of 359", "0 of 2619264", "0"],
        ["", "torch", "ok", "359 of 359", "90 of 2619264", "0.39"],
        ["", "openvino", "WRONG", "359 of 359", "90 of 2619264", "0.39"],
        ["", "native", "WRONG", "-", "-", "-"],
    ]
    assert "torch differs by at most 1 step, first in stage2_0_bn2 at 2 bits, stage2_0_bn2 at 4 bits" in words
    assert "WRONG: openvino at 4 bits: its class differs at 3 images, first at conv1" in words
    assert "WRONG: native at 2 bits: it stopped" in words
    assert text.count("tensorrt was not run: there is no GPU") == 1
    assert "completed in the manifest: onnx-w2" in words
    assert "not compared with the float model here: torch is not installed" in words


def test_no_cell_of_a_csv_is_a_formula(tmp_path: Path) -> None:
    """A name comes from a file of anybody; a spreadsheet would run it."""
    result = json.loads(RESULT.read_text())
    for row, label in zip(result["rows"], ("=1+1", "+1", "-1", "@SUM(A1)"), strict=False):
        row["label"] = label
    result["rows"][0]["accuracy_drop"] = -0.5
    save_csv(tmp_path / "bench.csv", result)
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows[:4]] == ["'=1+1", "'+1", "'-1", "'@SUM(A1)"]
    assert rows[0]["accuracy_drop"] == "-0.5"


def test_csv_says_how_many_times_as_fast(tmp_path: Path) -> None:
    """As onnxruntime's int8 and float32, where they were timed."""
    result = json.loads(RESULT.read_text())
    result["rows"][1]["times_as_fast"] = {"int8": {"ratio": 1.4, "low": 1.3, "high": 1.5}}
    save_csv(tmp_path / "bench.csv", result)
    with (tmp_path / "bench.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["times_as_fast_as_int8"] for row in rows[:3]] == ["", "1.4", ""]
    assert {row["times_as_fast_as_float32"] for row in rows} == {""}


def test_csv_says_what_a_child_is(tmp_path: Path) -> None:
    """Widths as numbers, a map as JSON; one line per row."""
    result = json.loads(RESULT.read_text())
    result["rows"][0] |= {"label": "mixed", "weights": {"*": 4, "conv1": 8}}
    save_csv(tmp_path / "bench.csv", result)
    lines = (tmp_path / "bench.csv").read_text().splitlines()
    assert lines[0].startswith("label,kind,child,weights,activations,bits,trained,runtime,accuracy,")
    assert lines[1].startswith('mixed,child,1,"{""*"": 4, ""conv1"": 8}",8,1,True,onnxruntime,98.3')
    assert lines[2].startswith("2 bits,child,2,2,8,2,True,onnxruntime,")
    assert len(lines) == 1 + len(result["rows"])

"""`emqdeploy plot`: what is drawn is what the metrics say, and bad input is one sentence."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.report.curves import plot_runs, read_curves


def write_run(path: Path, accuracies: list[dict[str, float]]) -> Path:
    """A run directory with one record an epoch, as training writes it."""
    path.mkdir(parents=True)
    lines = [
        json.dumps(
            {
                "epoch": epoch,
                "phase": "train",
                "loss": dict.fromkeys(accuracy or ("1", "8"), 1.0 / (epoch + 1)),
                "validation_accuracy": accuracy,
                "learning_rate": 0.1,
                "sample_passes": 4000 * (epoch + 1),
                "seconds": 30.0 * (epoch + 1),
            }
        )
        for epoch, accuracy in enumerate(accuracies)
    ]
    (path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    return path


def test_curves_are_what_the_metrics_say(tmp_path: Path) -> None:
    """Epochs without validation have no point; children stand in the order of their widths."""
    run = write_run(tmp_path / "a", [{"8": 50.0, "1": 40.0}, {}, {"8": 70.0, "1": 60.0}])
    curves = read_curves(run)
    assert list(curves) == ["1", "8"]
    names = ["mixed", "float", "16", "4", "4a2", "2a4"]
    assert list(read_curves(write_run(tmp_path / "b", [dict.fromkeys(names, 50.0)]))) == [
        *("2a4", "4a2", "4", "16", "float", "mixed")
    ]
    assert curves["8"] == [
        {"passes": 4000, "minutes": 0.5, "accuracy": 50.0},
        {"passes": 12000, "minutes": 1.5, "accuracy": 70.0},
    ]


def test_pictures_are_written_as_png_and_svg(tmp_path: Path) -> None:
    """Every run and bit-width stands in the legend, and every curve is in the picture."""
    one = write_run(tmp_path / "one", [{"1": 40.0, "8": 50.0}, {"1": 45.0, "8": 55.0}])
    two = write_run(tmp_path / "two", [{"1": 41.0, "4": 52.0}])
    result = plot_runs([one, two], tmp_path / "new" / "both.png")
    assert result["files"] == [str(tmp_path / "new" / f"both{suffix}") for suffix in (".png", ".svg")]
    assert Path(result["files"][0]).read_bytes().startswith(b"\x89PNG")
    assert b"<svg" in Path(result["files"][1]).read_bytes()
    assert result["accuracy"] == {str(one): {"1": 45.0, "8": 55.0}, str(two): {"1": 41.0, "4": 52.0}}
    alone = plot_runs([one])
    assert alone["files"] == [str(one / "accuracy.png"), str(one / "accuracy.svg")]


def test_networks_trained_one_per_bit_width_are_one_run(tmp_path: Path) -> None:
    """Dedicated networks lie in directories of their own below the run."""
    for bits in ("1", "4"):
        write_run(tmp_path / "run" / f"w{bits}", [{bits: 40.0}])
    assert list(read_curves(tmp_path / "run")) == ["1", "4"]


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    """The picture can be drawn while the run goes on; damage elsewhere is named."""
    run = write_run(tmp_path / "a", [{"8": 50.0}, {"8": 60.0}])
    file = run / "metrics.jsonl"
    file.write_text(file.read_text()[:-30])
    assert len(read_curves(run)["8"]) == 1
    file.write_text('{"epoch": 0}\n' + file.read_text())
    with pytest.raises(EmqError, match=r"line 1 of .* is damaged"):
        read_curves(run)


def test_bad_input_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No metrics, none with an accuracy, no matplotlib."""
    with pytest.raises(UsageError, match=r"holds no metrics\.jsonl; name the directory of a run"):
        plot_runs([tmp_path])
    with pytest.raises(UsageError, match="no accuracy yet"):
        plot_runs([write_run(tmp_path / "young", [{}])])
    blocked: Any = None
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", blocked)
    with pytest.raises(EmqError, match=r'needs matplotlib.*pip install "emqdeploy\[plot\]"'):
        plot_runs([write_run(tmp_path / "run", [{"8": 50.0}])])

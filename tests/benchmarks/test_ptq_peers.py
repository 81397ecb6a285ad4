"""Peers are measured row by row, each where it is installed, and the page says what was measured."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch

from benchmarks import ptq_peers
from benchmarks.common import RESULTS
from benchmarks.ptq_tools import TOOLS, WIDTHS
from emqdeploy.errors import UsageError
from emqdeploy.models import create_model
from emqdeploy.registry import UnknownNameError


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a ResNet-8 for the digits; how good they are does not matter here."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("peers") / "digits.safetensors"
    safetensors.torch.save_file(create_model("resnet8", 10, 1, 8).state_dict(), path)
    return path


def run(weights: Path, *more: str) -> None:
    """Runs the benchmark on a hundred digits."""
    ptq_peers.main(["--weights", str(weights), "--model", "resnet8", "--data", "digits", "--quick", *more])


def test_a_tool_after_the_other(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What one run measured the next one keeps; what is not installed is named."""
    out = ("--json", str(tmp_path / "peers.json"), "--images", "32")
    run(weights, *out, "--only", "onnxruntime static")
    run(weights, *out, "--only", "ours rounded,AIMET AdaRound", "--bits", "8,2", "--resume")
    rows = json.loads((tmp_path / "peers.json").read_text())["rows"]
    assert [(row["tool"], row["bits"]) for row in rows[:3]] == [
        ("onnxruntime static", 8),
        ("ours rounded", 8),
        ("ours rounded", 2),
    ]
    assert rows[1]["snr_db"] > rows[2]["snr_db"]
    printed = capsys.readouterr().out
    assert "NNCF was not measured: it was left out" in printed or "brings nncf" in printed
    with pytest.raises(UsageError, match="was measured with images 32, not 64"):
        run(weights, *out[:2], "--images", "64", "--only", "ours rounded", "--resume")
    with pytest.raises(UnknownNameError, match="did you mean"):
        run(weights, *out, "--only", "ours round")


def test_the_page_says_what_was_measured() -> None:
    """Its table is that of the results, and changes with them; ``--page`` writes it."""
    page, report = ptq_peers.PAGE.read_text(), json.loads((RESULTS / "ptq_peers.json").read_text())
    assert ptq_peers.updated(page, report) == page
    other = copy.deepcopy(report)
    other["rows"][0]["accuracy"] += 1
    assert ptq_peers.updated(page, other) != page
    assert {row["bits"] for row in report["rows"]} == set(WIDTHS)
    assert {row["tool"] for row in report["rows"]} <= set(TOOLS)

"""`emqdeploy train` and `quantize` as commands: flags made from options, and what they refuse."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from emqdeploy.cli import main
from emqdeploy.errors import UsageError
from emqdeploy.training.command import train_from_flags

QUICK = ["--epochs", "1", "--limit", "100", "--batch-size", "32"]


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Runs a command line; returns its exit code, output and errors."""
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    printed = capsys.readouterr()
    return int(ended.value.code or 0), printed.out, " ".join(printed.err.split())


def test_the_name_of_a_command_needs_nothing_heavy() -> None:
    """Flags of methods and quantizers need torch; the list of commands does not."""
    code = (
        "import sys\nfrom emqdeploy.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print([name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
    assert "train" in done.stdout
    assert "quantize" in done.stdout


def test_help_lists_the_options_of_methods_and_quantizers(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flag per option, under its heading."""
    monkeypatch.setenv("COLUMNS", "200")
    code, shown, _ = run(capsys, "train", "--help-all")
    assert code == 0
    for flag in ("--bits", "--children", "--method", "--prune-rate", "--calibrate-epochs", "--partition", "--lsq-step"):
        assert shown.count(f"{flag} ") >= 1, flag
    assert "Coresets" in shown
    code, shown, _ = run(capsys, "quantize", "--help")
    assert code == 0
    assert "--bias-correction" in shown


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["--recipe", "adabits", "--prune-rate", "0.5"],
            "of method emqnet and dedicated, but method adabits was",
        ),
        (["--partition", "dorefa", "--quantizer", "lsq", "--bits", "2"], "option of quantizer tanh, but quantizer lsq"),
        (["--quantizer", "lsq"], "child '1' has 1-bit weights, which quantizer 'lsq' cannot make"),
        (["--method", "emq"], "unknown method 'emq'"),
        (["--bits", "4,4"], "--bits names child '4' twice"),
        (["--children", "none.toml"], "cannot read none.toml"),
        (["--resume", "auto"], "--resume auto needs --out"),
    ],
)
def test_what_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str) -> None:
    """One sentence and exit code 2, before anything is written."""
    code, out, said = run(capsys, "train", *arguments)
    assert (code, out) == (2, "")
    assert said.startswith("error: ")
    assert sentence in said


def test_from_flags_to_a_run_and_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Children by name in the JSON object; the same flags continue the run, others are refused."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mixed.toml").write_text('[children.mixed]\nweights = {"*" = 4, "stage1.0.conv1" = 8}\n')
    flags = ["--bits", "4,2a4", "--children", "mixed.toml", *QUICK, "--out", "run"]
    code, out, _ = run(capsys, "train", *flags, "--json")
    values = json.loads(out)
    assert code == 0
    assert list(values["accuracy"]) == values["trained"] == ["2a4", "4", "mixed"]
    assert values["checkpoint"] == "run/model.emq"
    code, out, _ = run(capsys, "train", *flags, "--resume", "auto", "--json")
    assert json.loads(out)["accuracy"] == values["accuracy"]
    code, _, said = run(capsys, "train", "--resume", "run", "--prune-rate", "0.5")
    assert code == 2
    assert "run was configured with --prune-rate 0.0 (now 0.5); leave these out" in said


def test_a_run_lies_where_it_lies(tmp_path: Path) -> None:
    """--resume and --out cannot name two places, and there must be a run."""
    nothing: dict[str, Any] = {}
    with pytest.raises(UsageError, match=r"continues that run where it lies; leave out --out other"):
        train_from_flags(nothing, None, None, Path("other"), str(tmp_path))
    with pytest.raises(UsageError, match="holds no run to resume; start one with: emqdeploy train --out"):
        train_from_flags(nothing, None, None, None, str(tmp_path))


@pytest.mark.parametrize("given", [["--resume", "run"], ["--config", "run/config.toml"]])
def test_a_file_names_no_code(
    given: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The user's own function is imported where it stands on this command line, and only there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_network.py").write_text(
        "from pathlib import Path\nfrom emqdeploy.models import create_model\nPath('ran').touch()\n"
        "def net(num_classes, in_channels, image_size):\n"
        "    return create_model('resnet8', num_classes, in_channels, image_size)\n"
    )
    named = ["--model", "own_network:net"]
    code, _, said = run(capsys, "train", *named, *QUICK, "--bits", "8", "--out", "run", "--json")
    assert code == 0, said
    sys.modules.pop("own_network")
    (tmp_path / "ran").unlink()
    code, _, said = run(capsys, "train", *given)
    assert code == 2
    assert "a file may not have code imported; name it yourself: --model own_network:net" in said
    assert not (tmp_path / "ran").exists()
    code, _, said = run(capsys, "train", *given, *named, "--json", *(["--out", "other"] if "--config" in given else []))
    assert code == 0, said
    assert (tmp_path / "ran").exists()
    sys.modules.pop("own_network")

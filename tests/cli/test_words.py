"""What a person may type, and what help and completion answer, in a process each as a shell starts it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from emqdeploy.cli.common import lists_joined


def say(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs the command line on 80 columns."""
    run = "from emqdeploy.__main__ import main; main()"
    shell = {**os.environ, "COLUMNS": "80", **environment}
    shell |= {"_EMQDEPLOY_COMPLETE": environment["COMPLETE"]} if "COMPLETE" in environment else {}
    code = f"import sys; sys.argv[0] = 'emqdeploy'; {run}"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=shell)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("--bits 4 8", "--bits 4,8"),
        ("--bits 2-4, 8 2a4 --json", "--bits 2-4,8,2a4 --json"),
        ("--bits 4 runs/a 8", "--bits 4 runs/a 8"),
        ("--bits mixed 8", "--bits mixed 8"),
        ("--epochs 4 8", "--epochs 4 8"),
        ("--bits all", "--bits all"),
    ],
)
def test_widths_behind_bits_are_one_list(typed: str, meant: str) -> None:
    """A path and a name are none."""
    assert lists_joined(typed.split()) == meant.split()


def test_no_command_is_a_question() -> None:
    """Help on standard output, and nothing failed."""
    bare = say()
    assert bare.returncode == 0
    assert "Commands:" in bare.stdout
    assert bare.stderr == ""


def test_help_of_train_fits_two_screens() -> None:
    """And every option is named in it; --help-all describes each, whole."""
    brief, whole = say("train", "--help").stdout, say("train", "--help-all").stdout
    assert len(brief.splitlines()) <= 48
    assert all(len(line) <= 80 for line in (brief + whole).splitlines())
    flags = {word.strip(",;") for word in whole.split() if word.startswith("--") and "no-" not in word}
    assert len(flags) > 40
    assert not {flag for flag in flags if flag not in brief}
    assert "Passes of every child over its images. [default: 10]" in whole
    assert " ..." in brief


def test_export_takes_format_for_target() -> None:
    """The other usual word for it; a wrong value is answered as under the first."""
    assert "--target, --format TEXT" in say("export", "--help").stdout
    assert "did you mean 'onnx'" in say("export", "--format", "onx").stderr


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("emqdeploy ex", "export"),
        ("emqdeploy export --format tensorrt-o", "tensorrt-onnx"),
        ("emqdeploy train --recipe adab", "adabits"),
        ("emqdeploy eval --runtime onnx", "onnxruntime"),
    ],
)
def test_the_shell_completes(line: str, expected: str) -> None:
    """Commands, and names out of the registries that the commands look in."""
    count = str(len(line.split()) - 1)
    answer = say(COMPLETE="complete_bash", COMP_WORDS=line, COMP_CWORD=count)
    assert answer.stdout.split() == [expected]

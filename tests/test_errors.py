"""Errors are one sentence with a way out."""

from __future__ import annotations

import errno
import tempfile
from pathlib import Path

import pytest

from emqdeploy.errors import EmqError, UsageError, cannot_write, require, writable_dir


def test_exit_codes_tell_usage_from_failure() -> None:
    """Scripts tell a wrong argument (2) from a failed run (1)."""
    assert (EmqError("x").exit_code, UsageError("x").exit_code) == (1, 2)
    assert issubclass(UsageError, EmqError)


def test_require_returns_a_submodule() -> None:
    """A dotted name gives the inner module, as `import a.b as c` does."""
    assert require("os.path", "runtime").join("a", "b") == "a/b"


@pytest.mark.parametrize("package", ["emq_no_such_package", "emq_no_such_package.inner"])
def test_missing_package_names_the_extra(package: str) -> None:
    """Whoever lacks an optional package reads the command that installs it."""
    with pytest.raises(EmqError, match="is not installed") as caught:
        require(package, "train")
    assert 'pip install "emqdeploy[train]"' in str(caught.value)


def test_broken_package_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package that is there but lacks something of its own must not be reported as absent."""
    (tmp_path / "emq_broken.py").write_text("import emq_no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(EmqError, match=r"emq_broken, which does not load .*emq_no_such_dependency"):
        require("emq_broken", "train")


def test_writable_dir_creates_parents_and_leaves_no_probe(tmp_path: Path) -> None:
    """The probe that proves the directory writable is not left behind."""
    made = writable_dir(tmp_path / "a" / "b")
    assert made.is_dir()
    assert not list(made.iterdir())
    assert writable_dir(made) == made


@pytest.mark.parametrize("below", ["", "deeper"])
def test_writable_dir_refuses_a_file_in_the_way(tmp_path: Path, below: str) -> None:
    """A path that runs through a file gives a sentence, also to root, who passes permissions."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(EmqError, match=r"cannot write .*taken.* file"):
        writable_dir(tmp_path / "taken" / below)


def test_writable_dir_notices_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk stops a run before it starts, not when it has a result to write."""

    def full(**_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(EmqError, match="the disk is full"):
        writable_dir(tmp_path)


def test_unusual_reasons_are_passed_on() -> None:
    """A reason that we have no words for is still shown."""
    assert "Input/output error" in str(cannot_write("x", OSError(errno.EIO, "Input/output error")))


def test_a_sentence_is_one_line_of_plain_text() -> None:
    """What it quotes from a file or a device can neither command a terminal nor look like a line of ours."""
    assert str(EmqError("unknown settings \x1b[2J\na\u202eb; measure\n  again")) == (
        "unknown settings \\x1b[2J a\\u202eb; measure again"
    )

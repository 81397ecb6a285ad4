"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from emqdeploy.errors import EmqError
from emqdeploy.files import atomic_path, atomic_write_bytes, atomic_write_text


def test_bytes_and_text_arrive(tmp_path: Path) -> None:
    """Contents come back as written, over an older file too, and nothing else is left."""
    atomic_write_bytes(tmp_path / "a.bin", b"\x00\xff")
    atomic_write_text(tmp_path / "a.txt", "old")
    atomic_write_text(tmp_path / "a.txt", "neu: ä\n")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    assert (tmp_path / "a.txt").read_bytes() == "neu: ä\n".encode()
    assert {path.name for path in tmp_path.iterdir()} == {"a.bin", "a.txt"}


def test_temporary_file_has_directory_and_suffix_of_the_target(tmp_path: Path) -> None:
    """A rename is atomic only within a directory, and numpy appends suffixes that miss."""
    with atomic_path(tmp_path / "weights.npz") as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".npz"
        assert not (tmp_path / "weights.npz").exists()


def test_permissions_follow_the_umask(tmp_path: Path) -> None:
    """Results must be readable by whom the umask allows, not by their owner alone."""
    plain, atomic = tmp_path / "plain", tmp_path / "atomic"
    plain.write_text("")
    atomic_write_text(atomic, "")
    assert atomic.stat().st_mode == plain.stat().st_mode


def test_failure_in_the_block_keeps_the_old_file(tmp_path: Path) -> None:
    """An exception or Ctrl-C in the middle loses neither the old file nor disk space."""
    path = tmp_path / "a"
    path.write_text("old")

    def interrupted() -> None:
        with atomic_path(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the device that is always full")
def test_full_disk_is_one_sentence(tmp_path: Path) -> None:
    """The kernel's own "no space left" in the middle of a write becomes a sentence."""
    path = tmp_path / "a"

    def write() -> None:
        with atomic_path(path), Path("/dev/full").open("wb", buffering=0) as full:
            full.write(b"x")

    with pytest.raises(EmqError, match=f"cannot write {path}: the disk is full"):
        write()
    assert not list(tmp_path.iterdir())


def test_full_disk_at_the_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some file systems notice only at the flush; the old file must survive that as well."""
    path = tmp_path / "a"
    path.write_text("old")

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(EmqError, match="the disk is full"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_read_only_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A read-only device image is named as the reason."""

    def refuse(*_: object) -> int:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(EmqError, match="the file system is read-only"):
        atomic_write_text(tmp_path / "a", "new")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("missing/a", "its directory does not exist"),
        ("file/a", "is a file, not a directory"),
        (".", "it is a directory"),
        ("x" * 300, "the name is too long"),
    ],
)
def test_impossible_paths(tmp_path: Path, name: str, reason: str) -> None:
    """Each wrong path gets its own reason; all of these hold for root as well."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EmqError, match=reason):
        atomic_write_text(tmp_path / name, "new")


def test_devices_are_refused() -> None:
    """Output to /dev/null, run as root, must not replace the device by a file."""
    with pytest.raises(EmqError, match="not a regular file"):
        atomic_write_text("/dev/null", "new")
    assert Path("/dev/null").is_char_device()


def test_links_are_followed(tmp_path: Path) -> None:
    """A link to a file elsewhere stays a link."""
    link, target = tmp_path / "link", tmp_path / "target"
    target.write_text("old")
    link.symlink_to(target)
    atomic_write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_errors_about_other_files_pass_through(tmp_path: Path) -> None:
    """A missing input that the block reads is not blamed on the output."""

    def copy_missing() -> None:
        with atomic_path(tmp_path / "a") as temporary:
            temporary.write_bytes((tmp_path / "input").read_bytes())

    with pytest.raises(FileNotFoundError, match="input"):
        copy_missing()
    assert not list(tmp_path.iterdir())


def test_the_next_write_takes_away_what_a_killed_one_left(tmp_path: Path) -> None:
    """Of the same file only, and never what another process is writing at this moment."""
    child = os.fork()
    if child == 0:
        with atomic_path(tmp_path / "state.pt"):
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert [path.name for path in tmp_path.iterdir()] == [left.name for left in tmp_path.glob(".state.*.pt")]
    for name in (".hidden", ".config.toml", ".other.0123abcd.pt"):
        (tmp_path / name).write_text("mine")
    with atomic_path(tmp_path / "state.pt") as mine:
        atomic_write_text(tmp_path / "state.pt", "of another")
        mine.write_text("whole")
    assert (tmp_path / "state.pt").read_text() == "whole"
    assert {path.name for path in tmp_path.iterdir()} == {".config.toml", ".hidden", ".other.0123abcd.pt", "state.pt"}

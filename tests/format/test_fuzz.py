"""A small share of `benchmarks.soak_files`: whatever a file holds, it is accepted or refused in one sentence."""

from __future__ import annotations

import os
import threading
import warnings
from pathlib import Path

import pytest

from benchmarks import soak_files
from benchmarks.soak_files import made, outcome, sit
from benchmarks.soak_kinds import FILES, FileKind
from emqdeploy.runtimes.native_library import library_path

SHARE = {
    "emq": 300,
    "manifest": 300,
    "sealed": 300,
    "ir": 80,
    "result": 100,
    "report": 100,
    "picture": 300,
    "opened": 300,
}


FOUND = {"opened": [14188], "tables": [10101, 10341]}
"""Numbers that showed a fault once: a shape that is there twice, which C took the last of; a table that no layer uses,
and one that is looked up by fewer bits than it has."""


@pytest.mark.parametrize("kind", FILES)
def test_damage_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """The same inputs every time; both ends are reached, so that the damage is neither all nor nothing."""
    if kind == "opened" and library_path() is None:
        pytest.skip("emqdeploy-native is not installed")
    found = {
        number: outcome(kind, made(kind, number), tmp_path)
        for number in (*range(SHARE.get(kind, 60)), *FOUND.get(kind, ()))
    }
    strange = {f"{kind} {number}": said for number, (result, said) in found.items() if result == "foreign"}
    assert not strange
    assert {result for result, _ in found.values()} == {"accepted", "refused"}


def test_faults_are_counted_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A soak that cannot see a crash, a foreign exception, a warning, too much memory or a hang would prove nothing."""
    deeds = [b"fine", b"foreign", b"warning", b"crash", b"memory", b"hang", b"fine"]

    def read(data: bytes, folder: Path) -> None:
        if data == b"foreign":
            raise KeyError(data)
        if data == b"warning":
            warnings.warn("of a library", RuntimeWarning, stacklevel=1)
        if data == b"crash":
            os._exit(9)
        if data == b"memory":
            bytearray(soak_files.MEMORY)
        if data == b"hang":
            threading.Event().wait()

    monkeypatch.setitem(FILES, "bad", FileKind(lambda dice: b"", read))
    monkeypatch.setattr(soak_files, "made", lambda kind, number: deeds[number])
    monkeypatch.setattr(soak_files, "_PATIENCE_S", 5.0)
    counts = sit("bad", 0, len(deeds), tmp_path)
    assert counts == {"accepted": 2, "foreign": 3, "crashed": 1, "slow": 1}
    kept = sorted(path.name for path in tmp_path.glob("*.txt"))
    assert kept == [f"bad-{number}.txt" for number in (1, 2, 3, 4, 5)]

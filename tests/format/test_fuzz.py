"""A small share of `benchmarks.soak`: whatever a file holds, it is accepted or refused in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.soak import KINDS, made, outcome

SHARE = {"emq": 300, "manifest": 300, "sealed": 300, "result": 100, "report": 100, "picture": 300, "answer": 30}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_one_sentence(kind: str, tmp_path: Path) -> None:
    """The same inputs every time; both ends are reached, so that the damage is neither all nor nothing."""
    found = {number: outcome(kind, made(kind, number), tmp_path) for number in range(SHARE[kind])}
    strange = {f"{kind} {number}": said for number, (result, said) in found.items() if result == "foreign"}
    assert not strange
    assert {result for result, _ in found.values()} == {"accepted", "refused"}

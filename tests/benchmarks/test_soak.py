"""A small share of `benchmarks.soak_kills` and `benchmarks.soak_switches`, and that they would see a fault."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import soak, soak_page, soak_switches
from benchmarks.soak_kills import facts, sit
from emqdeploy.runtimes.native_library import library_path


def test_a_killed_export_ends_as_an_undisturbed_one(tmp_path: Path) -> None:
    """One that starts from nothing, one between two writes, one twice; strays would stand out."""
    counts = sit("kill-export", 14, 3, tmp_path)
    assert (counts["right"], counts["lost"]) == (3, 0)
    assert counts["killed"] + counts["ended"] == 4
    assert counts["anew"] == 1
    assert not list(tmp_path.iterdir())


def test_facts_see_strays_and_changes(tmp_path: Path) -> None:
    """What two runs measure differently is no difference, all else is."""
    (tmp_path / "run.jsonl").write_text('{"class": "a", "latency_ms": 1}\n')
    before = facts(tmp_path)
    (tmp_path / "run.jsonl").write_text('{"class": "a", "latency_ms": 2}\n')
    assert facts(tmp_path) == before
    (tmp_path / "run.jsonl").write_text('{"class": "b", "latency_ms": 2}\n')
    assert facts(tmp_path) != before
    (tmp_path / ".run.0123abcd.jsonl").write_text("")
    assert set(facts(tmp_path)) - set(before) == {".run.0123abcd.jsonl"}


RUNTIMES = ["onnxruntime", "native", "openvino", pytest.param("torch", marks=pytest.mark.slow)]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_switches_under_load_mix_nothing(runtime: str) -> None:
    """Eight threads, every residency policy."""
    if runtime == "openvino":
        pytest.importorskip("openvino")
    if runtime == "native" and library_path() is None:
        pytest.skip("emqdeploy-native is not installed")
    counts, said = soak_switches._sit(runtime, 0, 400)
    assert (counts["right"], counts["mixed"], counts["foreign"]) == (400, 0, 0), said
    assert counts["switches"] > 30


def test_a_mixed_answer_is_seen() -> None:
    """An answer of another child, and one that is between two."""
    image = np.zeros((1, 1), np.float32)
    children = ("2", "8")
    answers = [{name: np.full((1, 3), number, np.float32) for number, name in enumerate(children)}]

    class Mixing:
        """Answers with a child that was not asked for, or with the mean of two."""

        children = ("2", "8")

        def use(self, child: str) -> None:
            """Nothing is ever switched."""

        def run(self, images: object, child: str | None = None) -> object:
            """What no child, or another child, answers."""
            return np.full((1, 3), 0.5, np.float32) if child is None else answers[0]["2"]

    counts: Counter[str] = Counter()
    said: list[str] = []
    soak_switches._ask(Mixing(), [image], answers, counts, said, 2, 100, random.Random(0))
    assert counts["mixed"] > 50
    assert len(said) == counts["mixed"] == 100 - counts["right"]


def test_a_sitting_goes_on_where_the_last_one_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counters add up, numbers go on, faults of an earlier sitting are not forgotten."""
    asked: list[tuple[int, int]] = []

    def sit(first: int, count: int, found: Path) -> Counter[str]:
        asked.append((first, count))
        return Counter(accepted=count - (first == 0), foreign=int(first == 0))

    monkeypatch.setitem(soak.KINDS, "some", soak.Kind(sit, 25, 10))
    state = tmp_path / "state.json"
    assert soak.soak(["some"], 10, 12, state) == 1
    assert soak.soak(["some"], 10, None, state) == 1
    assert asked == [(0, 10), (10, 2), (12, 10), (22, 3)]
    assert json.loads(state.read_text())["some"] == {"accepted": 24, "foreign": 1, "done": 25}


def test_the_page_says_what_was_counted() -> None:
    """Its tables are those of the ledger, and say so when the ledger goes on; ``--page`` writes them."""
    page, totals = soak_page.PAGE.read_text(), json.loads(soak.LEDGER.read_text())
    assert soak_page.updated(page, totals) == page
    totals["emq"]["done"] += 1
    assert soak_page.updated(page, totals) != page
    assert set(totals) <= set(soak.KINDS) == {kind for form in soak_page.TABLES for kind in form.rows}


def test_goals_are_those_of_the_page() -> None:
    """A million damaged files, a thousand kills, ten million inferences."""
    goals = [sum(soak.KINDS[kind].goal for kind in form.rows) for form in soak_page.TABLES]
    assert all(done >= goal for done, goal in zip(goals, (1_000_000, 1_000, 10_000_000), strict=True))

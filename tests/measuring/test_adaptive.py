"""The adaptive scenario for real, its load, and how recovery is counted."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.format.child import Child
from emqdeploy.format.emq import read_card
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.choices import options_of_result, thread_modes
from emqdeploy.measuring.load import load
from emqdeploy.measuring.scenarios.adaptive import recovery
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.report.html.page import render
from emqdeploy.runtimes.policy import Setting


def settings(path: Path, policy: str | None) -> BenchSettings:
    """Short phases."""
    return BenchSettings(
        str(path),
        "2,8",
        scenarios=("single", "adaptive"),
        samples=20,
        seconds=0.4,
        energy="none",
        policy=policy,
        limit=20,
    )


def test_a_policy_serves_under_load(digits: Path) -> None:
    """Phases, every inference, decisions with reasons; the floor holds; the page shows it."""
    floor = read_card(digits)[0].accuracy["8"]
    result = json.loads(json.dumps(bench(settings(digits, f"latency_p99=1s,accuracy>={floor}"))))
    run = result["scenarios"]["adaptive"]
    assert [phase["load"] for phase in run["phases"]] == [0, 1, 0]
    assert sum(phase["inferences"] for phase in run["phases"]) >= len(run["t_s"]) > 0
    assert all(phase["recovery_s"] == 0 for phase in run["phases"])
    used = {run["settings"][index]["label"] for index in run["setting"]}
    allowed = {entry["label"] for entry in run["settings"] if entry["accuracy"] >= floor}
    assert used <= allowed
    assert run["decisions"][0]["kind"] == "start"
    assert "within the budgets" in run["decisions"][0]["reason"]
    assert run["state"] in ("met", "waiting")
    assert "The policy at work" in render(result)


def test_a_policy_that_does_not_parse_stops_before_anything_is_timed(digits: Path) -> None:
    """One sentence."""
    with pytest.raises(UsageError, match="no unit"):
        bench(settings(digits, "latency_p99=20"))


def test_load_lasts_as_long_as_the_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processes run inside and are gone outside, and gone without us, although their time is not over."""
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen

    def noted(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
        started.append(start(*arguments, **options))
        return started[-1]

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", noted)
        with load(2, 3600.0):
            assert [process.poll() for process in started] == [None, None]
    assert [process.returncode for process in started] == [-signal.SIGKILL] * 2
    script = "from emqdeploy.measuring.load import load\nimport os\nwith load(1, 3600.0): os._exit(0)"
    # The load inherits standard error: reading it to the end waits for the load as well.
    subprocess.run([sys.executable, "-c", script], check=True, stderr=subprocess.PIPE, timeout=600)


def test_recovery_is_where_the_rest_is_within_the_budget() -> None:
    """By hand: ten inferences, two slow ones at the start."""
    times = [0.1 * (index + 1) for index in range(10)]
    assert recovery(times, [9, 9, 1, 1, 1, 1, 1, 1, 1, 1], 5, 99) == pytest.approx(0.2)
    assert recovery(times, [1] * 10, 5, 99) == 0
    assert recovery(times, [9] * 10, 5, 99) is None
    assert recovery(times, [1] * 9 + [9], 5, 99) is None
    assert recovery(times, [9, 1, 1, 1, 1, 1, 1, 1, 1, 1], 5, 90) == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.sampled_from([50.0, 90.0, 99.0]))
def test_after_recovery_the_share_of_slow_ones_is_allowed(latencies: list[float], percentile: float) -> None:
    """The definition itself, and that no earlier moment would do."""
    times = [float(index + 1) for index in range(len(latencies))]
    found = recovery(times, latencies, 5.0, percentile)

    def share(start: int) -> float:
        return sum(value > 5 for value in latencies[start:]) / (len(latencies) - start)

    allowed = 1 - percentile / 100 + 1e-9
    good = [start for start in range(len(latencies)) if share(start) <= allowed]
    if found is not None:
        assert good[0] == int(found)
    else:
        assert not good or good[0] > 0.75 * len(latencies) - 1e-9


def test_settings_of_a_bench_are_a_table(measured: dict[str, object]) -> None:
    """Latencies, accuracies and memory of the children that it timed; nothing timed is refused."""
    options = options_of_result(measured, "2 threads")
    assert {option.setting for option in options} == {Setting(Child.of(bits), "2 threads") for bits in (8, 4, 2)}
    assert all(option.accuracy and option.latency_ms["p99"] and option.memory_bytes for option in options)
    with pytest.raises(UsageError, match="no timed"):
        options_of_result({"rows": []})


def test_thread_modes_are_distinct() -> None:
    """All, half, one; a machine with one core has one mode."""
    assert thread_modes(8) == {"8 threads": 8, "4 threads": 4, "1 thread": 1}
    assert thread_modes(1) == {"1 thread": 1}

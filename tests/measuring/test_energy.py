"""Energy: which rail, how much, and what happens when a sensor lies, freezes or goes away."""

from __future__ import annotations

import itertools
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from emqdeploy.errors import UsageError
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.energy import ENERGY_SOURCES, Energy, EnergySource, Meter, NotMeasured, summary
from emqdeploy.measuring.power import check_source, find_source
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.sysfs import ROOT_VARIABLE, Tree
from tests.measuring.trees import TREES, plant

READINGS = 6
"""Of a source that a test waits for."""

RAILS = {
    "orin nano": ("VDD_IN", 4.984, "read alone"),
    "agx orin": ("VDD_GPU_SOC + VDD_CPU_CV + VIN_SYS_5V0", 10.2, "not added: VDDQ_VDD2_1V8AO"),
    "xavier nx": ("VDD_IN", 4.2, "read alone"),
    "thor": ("VIN", 23.1, "not added: VDD_GPU, VDD_CPU_SOC_MSS, VIN_SYS_5V0"),
}


@pytest.mark.parametrize("board", TREES)
def test_the_rail_is_the_input_or_a_sum_without_double_counting(board: str, tmp_path: Path) -> None:
    """Rails overlap: what is read and what is left out is part of the result."""
    rail, watts, rule = RAILS[board]
    source = find_source("auto", ("hwmon",), Tree(plant(tmp_path, TREES[board]())))
    assert source.rail == rail
    assert source.read() == pytest.approx(watts)
    assert rule in source.rule


def test_power_is_integrated_over_time(tmp_path: Path) -> None:
    """4.984 W for a stretch of time is that many joules, and a meter says how often it looked."""
    source = find_source("hwmon", (), Tree(plant(tmp_path, TREES["orin nano"]())))
    energy = _measure(source)
    assert energy.watts == pytest.approx(4.984)
    assert energy.joules == pytest.approx(4.984 * energy.seconds)
    assert energy.samples >= READINGS
    assert energy.trouble == ""


class Scripted:
    """A source that says what it is told to."""

    name, rail, rule, period_s = "scripted", "a rail", "as told", 0.001

    def __init__(self, values: list[float | None], counts: bool = False, wraps_at: float = float("inf")) -> None:
        self.counts, self.wraps_at = counts, wraps_at
        self._values = itertools.chain(values, itertools.repeat(values[-1]))

    def read(self) -> float | None:
        """Returns the next value; the last one for ever."""
        return next(self._values)


def _measure(source: EnergySource) -> Energy:
    """What a meter says once a source was read a few times, however long that takes."""
    read, left, enough = source.read, itertools.count(1), threading.Event()

    def counted() -> float | None:
        value = read()
        if next(left) >= READINGS:
            enough.set()
        return value

    with pytest.MonkeyPatch.context() as patch, Meter(source) as meter:
        patch.setattr(source, "read", counted)
        assert enough.wait(600)
    return meter.energy()


def test_a_sensor_that_goes_away_is_marked() -> None:
    """What was read until then counts; the rest is said."""
    energy = _measure(Scripted([5.0, 5.0, 5.0, None]))
    assert energy.watts == pytest.approx(5.0)
    assert energy.trouble.startswith("did not answer")
    with pytest.raises(NotMeasured, match="did not answer"):
        _measure(Scripted([None]))


@pytest.mark.parametrize("nonsense", [float("nan"), float("inf"), 1e6, -1e6])
def test_nonsense_is_left_out_and_marked(nonsense: float) -> None:
    """One wild value does not spoil the sum."""
    energy = _measure(Scripted([5.0, 5.0, nonsense, 5.0]))
    assert energy.watts == pytest.approx(5.0)
    assert energy.trouble.startswith("reported nonsense 1 of")


def test_a_mean_that_cannot_be_is_refused() -> None:
    """No power and negative power are not energy for free."""
    for watts in (0.0, -0.4):
        with pytest.raises(NotMeasured, match="which cannot be"):
            _measure(Scripted([watts]))


def test_a_sensor_that_stands_still_is_refused() -> None:
    """NVML of some boards: it answers, and always the same."""
    idle, work = (Energy(10.0, 2.0, 40, "", 1) for _ in range(2))
    with pytest.raises(NotMeasured, match="stands still at 5 W"):
        summary(Scripted([5.0]), idle, work, 100)


def test_idle_is_subtracted() -> None:
    """Net is what the work added, gross what the board drew."""
    row = summary(Scripted([5.0]), Energy(8.0, 2.0, 40, "", 9), Energy(21.0, 3.0, 60, "", 9), 1000)
    assert row.energy_mj_per_inference == pytest.approx(9.0)
    assert row.gross_mj_per_inference == pytest.approx(21.0)
    assert row.idle_power_w == pytest.approx(4.0)
    assert row.power_w == pytest.approx(7.0)
    assert row.disturbed == []
    nothing = summary(Scripted([5.0]), Energy(8.0, 2.0, 40, "", 9), Energy(11.0, 3.0, 60, "", 9), 1000)
    assert nothing.disturbed is not None
    assert "no more power at work than idle" in nothing.disturbed[0]


@given(st.lists(st.floats(0.1, 50.0), min_size=2, max_size=20), st.floats(60.0, 100.0))
def test_a_counter_may_begin_again(steps: list[float], limit: float) -> None:
    """The sum of steps comes out whatever the counter's range, as long as a step is smaller than it."""
    values = [total % limit for total in itertools.accumulate(steps)]
    meter = Meter(Scripted([0.0], counts=True, wraps_at=limit))
    meter._readings = [(0.01 * index, value) for index, value in enumerate(values)]
    seconds = 0.01 * (len(values) - 1)
    if sum(steps[1:]) / seconds <= 2000:
        assert meter.energy().joules == pytest.approx(sum(steps[1:]), rel=1e-6)


def test_rapl_adds_packages_and_memory_and_turns_over(tmp_path: Path) -> None:
    """Parts of a package are not added again, and each counter has its own range."""
    names = {"intel-rapl:0": "package-0", "intel-rapl:0:0": "core", "intel-rapl:0:1": "dram", "intel-rapl:1": "psys"}
    files = {}
    for folder, name in names.items():
        files[f"sys/class/powercap/{folder}/name"] = name
        files[f"sys/class/powercap/{folder}/energy_uj"] = "900000"
        files[f"sys/class/powercap/{folder}/max_energy_range_uj"] = "1000000"
    tree = Tree(plant(tmp_path, files))
    source = ENERGY_SOURCES["rapl"](tree)
    assert source.rail == "package-0 + dram"
    assert source.read() == pytest.approx(1.8)
    tree.path("sys/class/powercap/intel-rapl:0/energy_uj").write_text("100000")
    assert source.read() == pytest.approx(2.0)


def test_a_battery_is_read_while_it_discharges(tmp_path: Path) -> None:
    """Plugged in, it knows nothing; a mouse's battery never does."""
    battery = "sys/class/power_supply/BAT0"
    files = {
        "sys/class/power_supply/hid-mouse/type": "Battery",
        "sys/class/power_supply/hid-mouse/scope": "Device",
        f"{battery}/type": "Battery",
        f"{battery}/status": "Discharging",
        f"{battery}/voltage_now": "12000000",
        f"{battery}/current_now": "1000000",
    }
    tree = Tree(plant(tmp_path, files))
    source = ENERGY_SOURCES["battery"](tree)
    assert (source.rail, source.read()) == ("BAT0", pytest.approx(12.0))
    tree.path(f"{battery}/status").write_text("Charging")
    assert source.read() is None
    with pytest.raises(NotMeasured, match="unplug"):
        ENERGY_SOURCES["battery"](tree)


def test_without_a_sensor_the_reason_is_said(tmp_path: Path) -> None:
    """Never a zero: every source that was tried says why not."""
    with pytest.raises(NotMeasured, match=r"powercap; there is no battery"):
        find_source("auto", ("rapl", "battery"), Tree(tmp_path))
    with pytest.raises(NotMeasured, match="INA3221"):
        find_source("hwmon", (), Tree(tmp_path))
    with pytest.raises(NotMeasured, match="not asked for"):
        find_source("none", ("rapl",), Tree(tmp_path))
    with pytest.raises(UsageError, match="known: auto, none, battery, hwmon, nvml, rapl"):
        check_source("plasma")


def test_a_jetson_is_measured_whole(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bench on a tree of an Orin Nano whose rail moves: energy, rail, rule and state are in the result."""
    tree = Tree(plant(tmp_path, TREES["orin nano"]()))
    monkeypatch.setenv(ROOT_VARIABLE, str(tmp_path))
    done = threading.Event()

    def live() -> None:
        """The current swings between 1000 and 1400 mA."""
        current, fresh = tree.path("sys/class/hwmon/hwmon1/curr1_input"), tmp_path / "fresh"
        for step in itertools.count():
            # A file of the kernel is never seen half written.
            fresh.write_text(str(1000 + 100 * (step % 5)))
            fresh.replace(current)
            if done.wait(0.02):
                return

    writer = threading.Thread(target=live)
    writer.start()
    try:
        settings = BenchSettings(
            str(digits), "8,2", scenarios=("single",), samples=20, limit=20, device="jetson", energy_seconds=0.4
        )
        result = bench(settings)
    finally:
        done.set()
        writer.join()
    assert result["environment"]["device"]["jetpack"] == "6.2+b77"
    assert result["environment"]["after"]["power_mode"]["name"] == "MAXN_SUPER"
    assert any("this is onnxruntime, on the processor alone, not tensorrt: " in note for note in result["notes"])
    for row in result["rows"]:
        energy = row["energy"]
        assert (energy["source"], energy["rail"]) == ("hwmon", "VDD_IN")
        assert 4.9 < energy["power_w"] < 7.1
        assert 4.9 < energy["idle_power_w"] < 7.1
        assert energy["gross_mj_per_inference"] * energy["inferences"] == pytest.approx(
            1e3 * energy["power_w"] * energy["seconds"]
        )
        assert 40 <= energy["sample_period_ms"] < 200

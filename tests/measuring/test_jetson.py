"""What is read from a Jetson, on trees that reproduce four generations; and what a machine that is none says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.measuring.devices import Device, find_device
from emqdeploy.measuring.disturbance import Monitor
from emqdeploy.measuring.sysfs import Tree
from tests.measuring.trees import TREES, plant

EXPECTED: dict[str, dict[str, Any]] = {
    "orin nano": {
        "jetson_linux": "36.4.3",
        "jetpack": "6.2+b77",
        "tensorrt": "10.3.0.30-1+cuda12.5",
        "power_mode": {"id": 2, "name": "MAXN_SUPER"},
        "frequency_mhz": 1728.0,
        "gpu_frequency_mhz": 1020.0,
        "temperature_c": {"cpu-thermal": 48.5, "gpu-thermal": 47.2, "tj-thermal": 48.5},
        "fan": {"rpm": 2140, "drive": 94},
        "over_current_events": {"oc1": 0, "oc2": 0, "oc3": 4},
    },
    "agx orin": {
        "jetson_linux": "35.4.1",
        "jetpack": "5",
        "tensorrt": None,
        "power_mode": {"id": 0, "name": "MAXN"},
        "frequency_mhz": 2201.6,
        "gpu_frequency_mhz": 1300.5,
        "fan": {},
    },
    "xavier nx": {
        "jetson_linux": "32.7.1",
        "jetpack": "4",
        "power_mode": {"id": 8, "name": "MODE_20W_6CORE"},
        "gpu_frequency_mhz": 1109.2,
        "over_current_events": {},
    },
    "thor": {
        "jetson_linux": "38.2.0",
        "jetpack": "7",
        "power_mode": {"id": 1, "name": "120W"},
        "frequency_mhz": 2601.0,
        "gpu_frequency_mhz": 1575.0,
        "temperature_c": {"cpu-thermal": 53.7, "tj-thermal": 55.1},
    },
}


@pytest.mark.parametrize("board", TREES)
def test_every_board_is_recognised(board: str, tmp_path: Path) -> None:
    """Model, software, power mode, clocks, temperatures; sensors that are switched off are left out."""
    files = TREES[board]()
    tree = Tree(plant(tmp_path, files))
    device = find_device("auto", tree)
    found = device.describe() | device.state()
    assert found["name"] == "jetson"
    assert found["model"] == files["proc/device-tree/model"].strip("\0")
    assert found["throttling"] == []
    assert found["clocks_locked"] is False
    assert {key: found[key] for key in EXPECTED[board]} == EXPECTED[board]


def test_throttling_is_seen_when_it_happens(tmp_path: Path) -> None:
    """Counters that rise during the run and active alarms, not those of last week."""
    tree = Tree(plant(tmp_path, TREES["orin nano"]()))
    device = find_device("jetson", tree)
    monitor = Monitor(tree, device.readings)
    monitor.look()
    assert monitor.reasons() == []
    tree.path("sys/class/hwmon/hwmon3/oc3_event_cnt").write_text("9")
    tree.path("sys/class/thermal/cooling_device1/cur_state").write_text("1")
    monitor.look()
    tree.path("sys/class/thermal/cooling_device1/cur_state").write_text("0")
    monitor.look()
    assert monitor.reasons() == [
        "clocks are held down against heat (cpu-throttle-alert)",
        "the board throttled: peak over-current (counter oc3 rose)",
    ]


def test_locked_clocks_are_recognised(tmp_path: Path) -> None:
    """After jetson_clocks the lowest clock is the highest one."""
    tree = Tree(plant(tmp_path, TREES["thor"]()))
    for core in tree.glob("sys/devices/system/cpu/cpu*/cpufreq"):
        (core / "scaling_min_freq").write_text("2601000")
    (tree.path("sys/class/devfreq/gpu-gpc-0") / "min_freq").write_text("1575000000")
    assert find_device("jetson", tree).state()["clocks_locked"] is True


def test_files_that_are_missing_leave_values_out(tmp_path: Path) -> None:
    """A container shows the release file and little else."""
    tree = Tree(plant(tmp_path, {"etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 1"}))
    device = find_device("jetson", tree)
    assert device.describe()["model"] is None
    state = device.state()
    assert (state["power_mode"], state["frequency_mhz"], state["clocks_locked"]) == (None, None, None)


def test_a_machine_that_is_no_jetson_says_so(tmp_path: Path) -> None:
    """The sentence names --host, and auto takes the processor."""
    tree = Tree(tmp_path)
    with pytest.raises(EmqError, match=r"not a Jetson.*--host") as refused:
        find_device("jetson", tree)
    assert refused.value.exit_code == 1
    assert type(find_device("auto", tree)) is Device
    with pytest.raises(UsageError, match="--lock-clocks works on a Jetson only"):
        find_device("cpu", tree).lock_clocks()


def test_clocks_are_locked_and_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The order of calls is kept, restore, and the sentence where the program is missing or refuses."""
    device = find_device("jetson", Tree(plant(tmp_path / "root", TREES["agx orin"]())))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmqError, match="which is not on the path"):
        device.lock_clocks()
    log, program = tmp_path / "log", tmp_path / "jetson_clocks"
    for name in ("sudo", "jetson_clocks"):
        path = tmp_path / name
        # sudo runs what it is given, after -n.
        path.write_text('#!/bin/sh\nshift; exec "$@"\n' if name == "sudo" else f'#!/bin/sh\necho "$*" >> {log}\n')
        path.chmod(0o755)
    device.lock_clocks()()
    stored, locked, restored = log.read_text().splitlines()
    assert stored.startswith("--store ")
    assert locked == ""
    assert restored == stored.replace("--store", "--restore")
    program.write_text("#!/bin/sh\necho 'must be root' >&2; exit 1\n")
    with pytest.raises(EmqError, match="must be root"):
        device.lock_clocks()

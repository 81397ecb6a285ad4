"""Devices and energy sources by name: what they rely on exists, and a new one is one new module."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from emqdeploy.errors import EmqError
from emqdeploy.format.emq import save_checkpoint
from emqdeploy.measuring import devices, energy, scenarios
from emqdeploy.measuring.bench import bench
from emqdeploy.measuring.devices import DEVICES, find_device
from emqdeploy.measuring.energy import ENERGY_SOURCES
from emqdeploy.measuring.power import find_source
from emqdeploy.measuring.settings import BenchSettings
from emqdeploy.measuring.sysfs import Tree
from emqdeploy.measuring.workbench import SCENARIOS
from emqdeploy.registry import load_package
from emqdeploy.runtimes.base import RUNTIMES, find_adapter

from ..conftest import Deployed


def test_every_device_names_what_exists(tmp_path: Path) -> None:
    """An adapter or a source that nobody registered would end a plain bench on that device."""
    find_device("cpu", Tree(tmp_path))
    for device in DEVICES.values():
        assert set(device.runtimes) <= set(RUNTIMES)
        assert set(device.energy_sources) <= set(ENERGY_SOURCES)
    ranks = [device.rank for device in DEVICES.values()]
    assert len(set(ranks)) == len(ranks)


@pytest.fixture
def rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML as a machine with an RTX GPU shows it."""

    class NvmlError(Exception):
        pass

    def refuse(handle: Any) -> float:
        raise NvmlError

    nvml: Any = SimpleNamespace(
        NVMLError=NvmlError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetName=lambda handle: b"NVIDIA RTX A4000",
        nvmlSystemGetDriverVersion=lambda: "570.1",
        nvmlDeviceGetClockInfo=lambda handle, clock: 1560,
        nvmlDeviceGetTemperature=lambda handle, sensor: 51,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda handle: 0x24,
        nvmlDeviceGetTotalEnergyConsumption=refuse,
        nvmlDeviceGetPowerUsage=lambda handle: 32_000,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)


def test_an_rtx_gpu_runs_its_engines_in_tensorrt(
    rtx: None, small: Deployed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either TensorRT is behind the one adapter: a plain bench asks that one, not one that does not exist."""
    monkeypatch.setattr(find_adapter("tensorrt"), "why_not", lambda: None)
    device = find_device("auto", Tree(tmp_path))
    assert device.describe() == {"name": "cuda", "model": "NVIDIA RTX A4000", "driver": "570.1"}
    assert device.runtimes == ("tensorrt",)
    readings = device.readings()
    assert (readings["gpu_frequency_mhz"], readings["temperature_c"]) == (1560, {"gpu": 51})
    assert readings["throttling"] == ["the GPU throttled: power cap", "the GPU throttled: heat"]
    assert find_source("auto", device.energy_sources, device.tree).read() == 32.0
    save_checkpoint(tmp_path / "model.emq", small.checkpoint)
    with pytest.raises(EmqError, match="TensorRT runs engines, not checkpoints"):
        bench(BenchSettings(str(tmp_path / "model.emq"), energy="none"))


def test_a_gpu_without_tensorrt_is_no_device(rtx: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The adapter's own reason is quoted; ``auto`` takes the processor."""
    monkeypatch.setattr(find_adapter("tensorrt"), "why_not", lambda: "TensorRT is not installed")
    with pytest.raises(EmqError, match="--device cuda needs TensorRT: TensorRT is not installed; or measure with"):
        find_device("cuda", Tree(tmp_path))
    assert find_device("auto", Tree(tmp_path)).name == "cpu"


NEW = {
    energy: (ENERGY_SOURCES, '@ENERGY_SOURCES.register("{name}")\ndef open_it(tree):\n    return tree\n'),
    devices: (DEVICES, '@DEVICES.register("{name}")\nclass Board(Device):\n    rank = 9\n'),
    scenarios: (SCENARIOS, '@SCENARIOS.register("{name}")\ndef run(bench):\n    return {{}}\n'),
}


@pytest.mark.parametrize("package", NEW, ids=lambda package: package.__name__.rpartition(".")[2])
def test_a_new_one_is_one_new_module(package: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file in the package is found, and nothing else has to know of it."""
    registry, text = NEW[package]
    (tmp_path / "invented.py").write_text(f"from {package.__name__} import *\n" + text.format(name="invented"))
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    try:
        load_package(package.__name__)
        assert "invented" in registry
    finally:
        sys.modules.pop(f"{package.__name__}.invented", None)
        registry._entries.pop("invented", None)  # type: ignore[attr-defined]

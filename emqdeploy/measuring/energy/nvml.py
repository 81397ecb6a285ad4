"""Discrete NVIDIA GPUs, through NVML: its energy counter where there is one (Volta and later), else its power."""

from __future__ import annotations

from typing import Any

from emqdeploy.measuring.energy.base import ENERGY_SOURCES, EnergySource, NotMeasured
from emqdeploy.measuring.sysfs import Tree


class NvmlSource:
    """The board power of one GPU.

    Args:
        nvml: the module ``pynvml``, initialised.
        handle: of the GPU.
        counts: whether the GPU counts energy.
    """

    name = "nvml"
    wraps_at = float("inf")
    period_s = 0.1

    def __init__(self, nvml: Any, handle: Any, counts: bool) -> None:
        self._nvml, self._handle, self.counts = nvml, handle, counts
        name = nvml.nvmlDeviceGetName(handle)
        self.rail = f"board of {name.decode() if isinstance(name, bytes) else name}"
        self.rule = "the GPU's energy counter" if counts else "the GPU's power, which it averages over up to a second"
        self.rule += "; processor and memory of the host are not in it"

    def read(self) -> float | None:
        """Returns joules or watts."""
        if self.counts:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._handle)) / 1e3


@ENERGY_SOURCES.register("nvml")
def open_nvml(tree: Tree) -> EnergySource:
    """Opens the first GPU; it has to give a value: on a Jetson NVML starts and then knows no power."""
    try:
        import pynvml
    except ImportError:
        raise NotMeasured("NVML needs nvidia-ml-py; run: pip install nvidia-ml-py") from None
    try:
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByIndex(0)
    except pynvml.NVMLError as error:
        raise NotMeasured(f"NVML finds no GPU ({error})") from None
    for counts in (True, False):
        source = NvmlSource(pynvml, handle, counts)
        try:
            if source.read():
                return source
        except pynvml.NVMLError:
            continue
    raise NotMeasured(f"NVML starts, but reports neither energy nor power of the {source.rail}")

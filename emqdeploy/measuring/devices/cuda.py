"""A discrete NVIDIA GPU."""

from __future__ import annotations

from typing import Any

from emqdeploy.measuring.devices.base import DEVICES, Device
from emqdeploy.runtimes.base import find_adapter


@DEVICES.register("cuda")
class Cuda(Device):
    """The first GPU that NVML lists, next to the host's processor."""

    name = "cuda"
    rank = 1
    runtimes = ("tensorrt",)
    energy_sources = ("nvml",)

    def why_not(self) -> str | None:
        """Needs a GPU, NVML to watch it and TensorRT to compute on it."""
        if self._nvml() is None:
            return (
                "there is no NVIDIA GPU here that NVML can see (it needs the driver and: pip install nvidia-ml-py);"
                " measure the processor with --device cpu"
            )
        reasons = [find_adapter(name).why_not() for name in self.runtimes]
        if None not in reasons:
            return f"--device cuda needs TensorRT: {reasons[0]}; or measure with --device cpu"
        return None

    def describe(self) -> dict[str, Any]:
        """GPU and driver."""
        nvml, handle = self._nvml() or (None, None)
        if nvml is None:
            return {"name": self.name}
        return {
            "name": self.name,
            "model": _text(nvml.nvmlDeviceGetName(handle)),
            "driver": _text(nvml.nvmlSystemGetDriverVersion()),
        }

    def readings(self) -> dict[str, Any]:
        """Adds the GPU's clock, temperature and reasons for throttling."""
        readings = super().readings()
        nvml, handle = self._nvml() or (None, None)
        if nvml is None:
            return readings
        try:
            readings["gpu_frequency_mhz"] = nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            readings["temperature_c"]["gpu"] = nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            reasons = nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle)
        except nvml.NVMLError:
            return readings
        for name, bit in (("power cap", 0x4), ("hardware slowdown", 0x8), ("heat", 0x20 | 0x40), ("power brake", 0x80)):
            if reasons & bit:
                readings["throttling"].append(f"the GPU throttled: {name}")
        return readings

    def _nvml(self) -> tuple[Any, Any] | None:
        """The library and the first GPU; None where either is missing."""
        try:
            import pynvml

            pynvml.nvmlInit()
            return pynvml, pynvml.nvmlDeviceGetHandleByIndex(0)
        except Exception:  # not installed, no driver, no GPU: all the same here
            return None


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value

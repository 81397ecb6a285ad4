"""File trees as Jetson modules show them under ``/``: places, names and units as their kernels have them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Files = dict[str, str]


def _clocks(cores: int, khz: int, gpu: str, gpu_hz: int) -> Files:
    files = {}
    for core in range(cores):
        folder = f"sys/devices/system/cpu/cpu{core}/cpufreq"
        files[f"{folder}/scaling_cur_freq"] = str(khz)
        files[f"{folder}/scaling_min_freq"] = "115200"
        files[f"{folder}/scaling_max_freq"] = str(khz)
        files[f"{folder}/scaling_governor"] = "schedutil"
    for name, value in (("cur_freq", gpu_hz), ("min_freq", 306_000_000), ("max_freq", gpu_hz)):
        files[f"sys/class/devfreq/{gpu}/{name}"] = str(value)
    return files


def _rails(number: int, *channels: tuple[str, int, int] | None) -> Files:
    """An INA3221: label, millivolts and milliamperes of each channel; None is one that is not connected."""
    folder = f"sys/class/hwmon/hwmon{number}"
    files = {f"{folder}/name": "ina3221", f"{folder}/in7_label": "sum of shunt voltages", f"{folder}/in7_input": "12"}
    for index, channel in enumerate(channels, 1):
        label, millivolts, milliamperes = channel or ("NC", 0, 0)
        files[f"{folder}/in{index}_label"] = label
        files[f"{folder}/in{index}_input"] = str(millivolts)
        files[f"{folder}/curr{index}_input"] = str(milliamperes)
    return files


def _zones(**temperatures: int) -> Files:
    files = {}
    for index, (name, millidegrees) in enumerate(temperatures.items()):
        files[f"sys/class/thermal/thermal_zone{index}/type"] = f"{name}-thermal"
        files[f"sys/class/thermal/thermal_zone{index}/temp"] = str(millidegrees)
    return files


def _over_currents(number: int, *counts: int) -> Files:
    folder = f"sys/class/hwmon/hwmon{number}"
    counters = {f"{folder}/oc{index}_event_cnt": str(count) for index, count in enumerate(counts, 1)}
    return {f"{folder}/name": "soctherm_oc", **counters}


def _system(model: str, release: str, mode: int, modes: dict[int, str]) -> Files:
    config = "".join(
        f"< POWER_MODEL ID={number} NAME={name} >\nCPU_ONLINE CORE_0 1\n" for number, name in modes.items()
    )
    return {
        "proc/device-tree/model": f"{model}\0",
        "etc/nv_tegra_release": release,
        "var/lib/nvpmodel/status": f"pmode:{mode:04d} fmode:fan_mode_quiet",
        "etc/nvpmodel.conf": f"< PARAM TYPE=FILE NAME=CPU_ONLINE >\n{config}< PM_CONFIG DEFAULT={mode} >\n",
    }


def orin_nano() -> Files:
    """Jetson Orin Nano, JetPack 6: one INA3221 whose ``VDD_IN`` is the module's input."""
    return {
        **_system(
            "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super",
            "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64",
            2,
            {0: "15W", 1: "25W", 2: "MAXN_SUPER"},
        ),
        "var/lib/dpkg/status": "Package: bash\nVersion: 5.1\n\nPackage: nvidia-jetpack\nStatus: install ok installed\n"
        "Version: 6.2+b77\n\nPackage: libnvinfer10\nVersion: 10.3.0.30-1+cuda12.5\n",
        **_clocks(6, 1_728_000, "17000000.ga10b", 1_020_000_000),
        **_rails(1, ("VDD_IN", 4984, 1000), ("VDD_CPU_GPU_CV", 4984, 300), ("VDD_SOC", 4984, 250)),
        **_over_currents(3, 0, 0, 4),
        **_zones(cpu=48_500, gpu=47_250, tj=48_500),
        "sys/class/thermal/thermal_zone3/type": "cv0-thermal",
        "sys/class/thermal/thermal_zone3/temp": "-256000",
        "sys/class/thermal/cooling_device0/type": "pwm-fan",
        "sys/class/thermal/cooling_device0/cur_state": "2",
        "sys/class/thermal/cooling_device1/type": "cpu-throttle-alert",
        "sys/class/thermal/cooling_device1/cur_state": "0",
        "sys/class/hwmon/hwmon2/name": "pwmfan",
        "sys/class/hwmon/hwmon2/pwm1": "94",
        "sys/class/hwmon/hwmon0/name": "pwm_tach",
        "sys/class/hwmon/hwmon0/rpm": "2140",
    }


def agx_orin() -> Files:
    """Jetson AGX Orin, JetPack 5: two INA3221 and no common input."""
    return {
        **_system(
            "NVIDIA Jetson AGX Orin Developer Kit",
            "# R35 (release), REVISION: 4.1, GCID: 33958178, BOARD: t186ref, EABI: aarch64",
            0,
            {0: "MAXN", 1: "MODE_15W", 2: "MODE_30W", 3: "MODE_50W"},
        ),
        **_clocks(12, 2_201_600, "17000000.ga10b", 1_300_500_000),
        **_rails(3, ("VDD_GPU_SOC", 19_000, 200), ("VDD_CPU_CV", 19_000, 100), ("VIN_SYS_5V0", 5000, 900)),
        **_rails(4, None, ("VDDQ_VDD2_1V8AO", 5000, 100), None),
        **_over_currents(5, 0, 0, 0),
        **_zones(CPU=50_000, GPU=47_500, tj=50_000),
    }


def xavier_nx() -> Files:
    """Jetson Xavier NX, JetPack 4: the INA3221 is an iio device."""
    folder = "sys/bus/i2c/drivers/ina3221x/7-0040/iio:device0"
    rails = (("VDD_IN", 4200), ("VDD_CPU_GPU_CV", 900), ("VDD_SOC", 1100))
    files = {}
    for channel, (label, milliwatts) in enumerate(rails):
        files[f"{folder}/rail_name_{channel}"] = label
        files[f"{folder}/in_power{channel}_input"] = str(milliwatts)
    return {
        **_system(
            "NVIDIA Jetson Xavier NX Developer Kit",
            "# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t186ref, EABI: aarch64",
            8,
            {2: "MODE_15W_6CORE", 8: "MODE_20W_6CORE"},
        ),
        **_clocks(6, 1_420_800, "17000000.gv11b", 1_109_250_000),
        **_zones(CPU=41_000, GPU=40_000),
        **files,
    }


def thor() -> Files:
    """Jetson AGX Thor, JetPack 7: an INA238 measures the carrier's supply next to the module's INA3221."""
    return {
        **_system(
            "NVIDIA Jetson AGX Thor Developer Kit",
            "# R38 (release), REVISION: 2.0, GCID: 41844464, BOARD: generic, EABI: aarch64",
            1,
            {0: "MAXN", 1: "120W"},
        ),
        **_clocks(14, 2_601_000, "gpu-gpc-0", 1_575_000_000),
        **_rails(2, ("VDD_GPU", 20_000, -20), ("VDD_CPU_SOC_MSS", 20_000, 196), ("VIN_SYS_5V0", 5000, 1300)),
        "sys/class/hwmon/hwmon4/name": "ina238",
        "sys/class/hwmon/hwmon4/power1_input": "23100000",
        "sys/class/hwmon/hwmon4/in1_input": "20100",
        "sys/class/hwmon/hwmon4/curr1_input": "1149",
        **_over_currents(5, 0, 0, 179),
        **_zones(cpu=53_700, tj=55_100),
    }


TREES: dict[str, Callable[[], Files]] = {
    "orin nano": orin_nano,
    "agx orin": agx_orin,
    "xavier nx": xavier_nx,
    "thor": thor,
}


def plant(root: Path, files: Files) -> Path:
    """Writes a tree below a directory."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root

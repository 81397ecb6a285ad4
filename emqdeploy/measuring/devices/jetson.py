"""NVIDIA Jetson: which board, which software, which power mode, how fast and how warm, and whether it throttles.

Read from files, so that neither root nor another program is needed. The places are those of Jetson Linux 32 to 39
(JetPack 4 to 7); a file that a release lacks leaves its value out.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.measuring.devices.base import DEVICES, Device
from emqdeploy.measuring.sysfs import Tree

JETPACKS = {"32": "4", "34": "5", "35": "5", "36": "6", "38": "7", "39": "7"}
"""Jetson Linux by its first number to JetPack."""

_RELEASE = re.compile(r"R(\d+) \(release\), REVISION: ([\d.]+)")
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_GPU = re.compile(r"(ga10b|gv11b|gp10b|gm20b|gpu)")
_OVER_CURRENT = {"oc1": "under-voltage", "oc2": "average over-current", "oc3": "peak over-current"}
"""What the counters of Orin and Thor mean."""


@DEVICES.register("jetson")
class Jetson(Device):
    """A Jetson module on any carrier board."""

    name = "jetson"
    rank = 2
    runtimes = ("tensorrt", "onnxruntime")
    energy_sources = ("hwmon",)

    def __init__(self, tree: Tree) -> None:
        super().__init__(tree)
        self._gpus = [path for path in tree.glob("sys/class/devfreq/*") if _GPU.search(path.name)]
        self._counters = tree.glob("sys/class/hwmon/hwmon*/oc*_event_cnt")
        self._counted = self._over_currents()

    def why_not(self) -> str | None:
        """This machine is a Jetson if its device tree or its release file says so."""
        if self._release() is not None or "jetson" in (self._model() or "").lower():
            return None
        return (
            "this machine is not a Jetson; to measure on one from here, name it:"
            " emqdeploy bench --device jetson --host USER@ADDRESS"
        )

    def describe(self) -> dict[str, Any]:
        """Board, software and power modes."""
        release = self._release()
        jetpack = self._installed("nvidia-jetpack") or (JETPACKS.get(release.partition(".")[0]) if release else None)
        return {
            "name": self.name,
            "model": self._model(),
            "jetson_linux": release,
            "jetpack": jetpack,
            "tensorrt": self._installed("libnvinfer10") or self._installed("libnvinfer8"),
            "power_modes": self._modes(),
        }

    def readings(self) -> dict[str, Any]:
        """Adds the GPU's clock and the board's own alarms."""
        readings = super().readings()
        readings["gpu_frequency_mhz"] = self._gpu_frequency()
        now = self._over_currents()
        for name, count in now.items():
            if count > self._counted.get(name, count):
                kind = _OVER_CURRENT.get(name, name)
                readings["throttling"].append(f"the board throttled: {kind} (counter {name} rose)")
        self._counted = now
        return readings

    def state(self) -> dict[str, Any]:
        """Adds power mode, fan and whether clocks are locked."""
        return super().state() | {
            "power_mode": self._mode(),
            "fan": self._fan(),
            "clocks_locked": self._locked(),
            "over_current_events": self._over_currents(),
        }

    def lock_clocks(self) -> Callable[[], None]:
        """Runs ``jetson_clocks``, keeping the present settings in a file that is restored afterwards."""
        program = shutil.which("jetson_clocks")
        if program is None:
            raise EmqError("--lock-clocks needs jetson_clocks, which is not on the path; leave --lock-clocks out")
        # Without a terminal sudo must not wait for a password: it is asked for none, and fails in a sentence.
        prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
        folder = Path(tempfile.mkdtemp(prefix="emqdeploy-clocks-"))
        kept = str(folder / "clocks.conf")

        def call(*arguments: str) -> None:
            done = subprocess.run([*prefix, program, *arguments], capture_output=True, text=True, check=False)
            if done.returncode != 0:
                said = (done.stderr or done.stdout).strip().rpartition("\n")[2]
                raise EmqError(f"jetson_clocks failed ({said}); run bench as root, or leave --lock-clocks out")

        def release() -> None:
            call("--restore", kept)
            shutil.rmtree(folder, ignore_errors=True)

        try:
            call("--store", kept)
            call()
        except EmqError:
            shutil.rmtree(folder, ignore_errors=True)
            raise
        return release

    def _model(self) -> str | None:
        return self.tree.text("proc/device-tree/model") or self.tree.text("sys/firmware/devicetree/base/model")

    def _release(self) -> str | None:
        """Jetson Linux as ``36.4.3``."""
        found = _RELEASE.search(self.tree.text("etc/nv_tegra_release") or "")
        return None if found is None else f"{found[1]}.{found[2]}"

    def _installed(self, package: str) -> str | None:
        """Version of a Debian package, from the package manager's own list."""
        text = self.tree.text("var/lib/dpkg/status") or ""
        found = re.search(rf"^Package: {package}\n(?:.+\n)*?Version: (\S+)", text, re.MULTILINE)
        return None if found is None else found[1]

    def _modes(self) -> dict[str, str]:
        return dict(_MODE.findall(self.tree.text("etc/nvpmodel.conf") or ""))

    def _mode(self) -> dict[str, Any] | None:
        """The power mode that nvpmodel keeps for the next start too."""
        found = re.search(r"pmode:(\d+)", self.tree.text("var/lib/nvpmodel/status") or "")
        if found is None:
            return None
        number = str(int(found[1]))
        return {"id": int(number), "name": self._modes().get(number)}

    def _gpu_frequency(self) -> float | None:
        values = [self.tree.number(path / "cur_freq") for path in self._gpus]
        clocks = [value / 1e6 for value in values if value is not None]
        return round(max(clocks), 1) if clocks else None

    def _fan(self) -> dict[str, Any]:
        """The fan's drive (0..255) and speed, as far as there is one."""
        fan: dict[str, Any] = {}
        for chip in self.tree.glob("sys/class/hwmon/hwmon*"):
            for file, key in (("pwm1", "drive"), ("rpm", "rpm"), ("fan1_input", "rpm")):
                value = self.tree.number(chip / file)
                if value is not None:
                    fan.setdefault(key, int(value))
        return fan

    def _locked(self) -> bool | None:
        """True where every core and the GPU have their lowest clock at the highest, as after jetson_clocks."""
        limits = [
            (self.tree.number(path / "scaling_min_freq"), self.tree.number(path / "scaling_max_freq"))
            for path in self.tree.glob("sys/devices/system/cpu/cpu[0-9]*/cpufreq")
        ]
        limits += [(self.tree.number(path / "min_freq"), self.tree.number(path / "max_freq")) for path in self._gpus]
        known = [(low, high) for low, high in limits if low is not None and high is not None]
        return all(low == high for low, high in known) if known else None

    def _over_currents(self) -> dict[str, int]:
        """Events since the board started, per counter."""
        values = {path.name.partition("_")[0]: self.tree.number(path) for path in self._counters}
        return {name: int(value) for name, value in values.items() if value is not None}

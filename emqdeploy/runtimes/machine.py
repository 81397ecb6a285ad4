"""What the machine is: the part of every measurement that people forget to write down."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

_PACKAGES = (
    "emqdeploy",
    "numpy",
    "onnxruntime",
    "onnx",
    "onnx-ir",
    "torch",
    "torchvision",
    "scikit-learn",
    "safetensors",
)
_CPU_FLAGS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "asimddp", "i8mm")
_VNNI = {"avx_vnni", "avx512_vnni"}


def environment() -> dict[str, Any]:
    """Processor, operating system and package versions."""
    info = _cpu_info()
    flags = set(info.get("flags", info.get("Features", "")).split())
    return {
        "machine": platform.machine(),
        "cpu": info.get("model name") or info.get("Model") or platform.processor() or "unknown",
        "cpu_flags": [flag for flag in _CPU_FLAGS if flag in flags],
        "cores": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version for name in _PACKAGES if (version := package_version(name))},
    }


def saturates() -> bool:
    """Whether 8-bit kernels here may add two products in int16, as they do on x86 without VNNI."""
    here = environment()
    return here["machine"].lower() in ("x86_64", "amd64") and not _VNNI & set(here["cpu_flags"])


def package_version(name: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def resident_bytes() -> int | None:
    """Resident memory of this process; None where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


def _cpu_info() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines if ":" in line)
    return {key.strip(): value.strip() for key, _, value in pairs}

"""What this machine can do, and what to install for the rest."""

from __future__ import annotations

import importlib
import time
from typing import Any

from emqdeploy import __version__
from emqdeploy.registry import load_package
from emqdeploy.runtimes.base import RUNTIMES, find_adapter
from emqdeploy.runtimes.machine import environment
from emqdeploy.runtimes.native_library import instruction_sets, library_path

_PARTS = {
    "onnxruntime": ("run checkpoints and exported files", "runtime"),
    "PIL": ("read image files", "runtime"),
}
"""What a device needs."""

_OPTIONAL = {
    "onnx": ("packed and shared files, selectors, other targets", "export"),
    "torch": ("train, and the torch reference", "train"),
    "onnxscript": ("write the ONNX skeleton after training", "train"),
    "torchvision": ("resnet18, mobilenet_v2, downloads of data sets", "train"),
    "sklearn": ("the embedded digits", "train"),
    "openvino": ("export to OpenVINO, and run there", "openvino"),
    "tensorrt_rtx": ("build engines for RTX GPUs, on any machine", "tensorrt"),
    "tensorrt": ("build and run engines on an NVIDIA GPU; JetPack has its own", "tensorrt-classic"),
    "timm": ("models of timm", "timm"),
}
"""What only some need, to train, to export or for another runtime; missing is no fault."""


def examine() -> dict[str, Any]:
    """Imports every optional part for real and says what works and what to do about the rest."""
    checks = []
    for package, (purpose, extra) in (_PARTS | _OPTIONAL).items():
        started = time.perf_counter()
        try:
            if package == "torchvision":
                from emqdeploy.models import import_torchvision

                import_torchvision()
            else:
                importlib.import_module(package)
            state, advice = "ok", ""
        except ImportError as error:
            state = "not installed" if package in _OPTIONAL else f"missing ({error})"
            advice = f'pip install "emqdeploy[{extra}]"'
        except Exception as error:
            state, advice = f"broken ({str(error).splitlines()[0]})", f"pip install --force-reinstall {package}"
        seconds = round(time.perf_counter() - started, 2)
        row = {"part": package, "for": purpose, "state": state, "advice": advice, "import_seconds": seconds}
        checks.append(row | {"optional": package in _OPTIONAL})
    found = environment()
    flags = set(found["cpu_flags"])
    vector = "VNNI" if flags & {"avx_vnni", "avx512_vnni"} else "AVX2" if "avx2" in flags else "other"
    return {
        "version": __version__,
        "ok": all(check["state"] == "ok" for check in checks if not check["optional"]),
        "checks": checks,
        "runtimes": _runtimes(),
        "integer_kernels": vector,
        "native_kernels": instruction_sets() if library_path() is not None else [],
        "providers": _providers(),
        "environment": found,
    }


def _runtimes() -> dict[str, str | None]:
    """Every runtime by name, and why it cannot run here; None where it can."""
    load_package("emqdeploy.runtimes.adapters")
    return {name: find_adapter(name).why_not() for name in RUNTIMES}


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())

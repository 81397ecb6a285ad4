"""The two flavours of TensorRT, classic and RTX: how each is imported, and a logger that keeps quiet."""

from __future__ import annotations

import importlib.util
from typing import Any

from emqdeploy.errors import UsageError, require

CLASSIC, RTX = "tensorrt", "tensorrt-rtx"
"""Their names as export targets and in manifests."""

MODULES = {CLASSIC: "tensorrt", RTX: "tensorrt_rtx"}
"""The Python module of each."""

EXTRAS = {CLASSIC: "tensorrt-classic", RTX: "tensorrt"}
"""The extra of emqdeploy that installs each."""


def is_installed(flavour: str) -> bool:
    """Whether a flavour can be imported."""
    return importlib.util.find_spec(MODULES[flavour]) is not None


def installed_flavour() -> str | None:
    """The first flavour that can be imported, None where there is none."""
    return next(filter(is_installed, MODULES), None)


def load_tensorrt(flavour: str) -> Any:
    """Imports a flavour, or raises the sentence that says how to install it."""
    if flavour not in MODULES:
        raise UsageError(f"unknown TensorRT {flavour!r}; known: {', '.join(MODULES)}")
    return require(MODULES[flavour], EXTRAS[flavour])


def quiet_logger(trt: Any) -> Any:
    """Returns a logger that prints nothing and keeps TensorRT's first and last error for our own sentence.

    Args:
        trt: from `load_tensorrt`.
    """

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.first = self.last = ""

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message.strip().partition("\n")[0]
                self.first = self.first or self.last

        def why(self) -> str:
            return self.last or "it does not say why"

    return Logger()

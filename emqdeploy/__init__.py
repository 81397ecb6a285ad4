"""Train one multi-bit quantized vision network, export it, switch its precision on the device.

The functions here do what the commands of the same names do: `train`, `quantize`, `mix`, `export`, `verify`, `bench`;
`load` opens a network to run it, and `sample_images` returns pictures to try it on. Errors of a user are `EmqError`.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emqdeploy.api import bench, export, load, mix, quantize, sample_images, train, verify
    from emqdeploy.errors import EmqError

__version__ = "0.1.0"
__all__ = ["EmqError", "__version__", "bench", "export", "load", "mix", "quantize", "sample_images", "train", "verify"]

# onnxruntime 1.29 and later report to their maker, and write into the user's cache, unless told so before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")


def __getattr__(name: str) -> Any:
    """Loads what stands behind a public name when it is asked for: `import emqdeploy` alone is cheap."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = "emqdeploy.errors" if name == "EmqError" else "emqdeploy.api"
    return getattr(importlib.import_module(home), name)


def __dir__() -> list[str]:
    return __all__

"""Train one multi-bit quantized vision network, export it, switch its precision on the device."""

from __future__ import annotations

import os

__version__ = "0.1.0"

# onnxruntime 1.29 and later report to their maker, and write into the user's cache, unless told so before they load.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

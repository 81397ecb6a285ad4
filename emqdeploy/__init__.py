"""Train one multi-bit quantized vision network, export it, switch its precision on the device."""

from __future__ import annotations

__version__ = "0.1.0"

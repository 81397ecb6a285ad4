"""What narrower layers save in time, as `emqdeploy mix` measured it where the network will run."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.errors import UsageError
from emqdeploy.format.child import MASTER_BITS

MEASURE = "emqdeploy mix RUN --budget latency=100% --json > FILE"

_LARGEST_BYTES = 64 * 2**20


def read_savings(path: Path, layers: Sequence[str]) -> NDArray[np.float64]:
    """Shares of the time of the widest child that every layer saves by itself, ``(layers, widths 0..8)``.

    Widths that were not measured lie on the line between their neighbours, or are worth what the narrowest is.

    Args:
        path: what ``mix --json`` printed for a budget of latency.
        layers: those that are wanted, by name.

    Raises:
        UsageError: the file cannot be read or is no such result, or a layer is not in it.
    """
    try:
        if path.stat().st_size > _LARGEST_BYTES or not path.is_file():
            raise ValueError("it is no file of a few kilobytes")
        found = json.loads(path.read_text(encoding="utf-8"))
        whole = _amount(found["whole"]["latency"])
        saves = {str(row["name"]): _by_width(row["saves"]["latency"]) for row in found["layers"]}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(
            f"--latencies {path} is not what a measurement of latencies prints ({type(error).__name__}: {error});"
            f" make it with: {MEASURE}"
        ) from error
    missing = [name for name in layers if not saves.get(name)]
    if missing:
        raise UsageError(f"--latencies {path} has no latency of layer {missing[0]!r}; measure this network: {MEASURE}")
    table = np.zeros((len(layers), MASTER_BITS + 1))
    for row, name in zip(table, layers, strict=True):
        known = {**saves[name], MASTER_BITS: 0.0}
        row[:] = np.interp(np.arange(len(row)), sorted(known), [known[bits] for bits in sorted(known)])
    return table / whole


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"a latency is {value!r}")
    return float(value)


def _by_width(values: Any) -> dict[int, float]:
    """Milliseconds by width; a narrower layer may be slower."""
    found = {int(bits): float(value) for bits, value in values.items()}
    if not all(1 <= bits < MASTER_BITS and math.isfinite(value) for bits, value in found.items()):
        raise ValueError(f"a layer saves {values!r}")
    return found

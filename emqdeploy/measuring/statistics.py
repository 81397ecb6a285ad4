"""What raw samples say: percentiles, and intervals that respect that neighbouring samples are alike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_GROUPS = 200
"""Rounds are drawn in at most so many groups of neighbours: enough for an interval, quick for long runs."""


def percentiles(samples_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p95, p99, mean, fastest and slowest of raw samples in milliseconds, and their number."""
    values = np.asarray(samples_ms)
    named = {f"p{q}": float(np.percentile(values, q)) for q in (50, 90, 95, 99)}
    return {
        **named,
        "mean": float(values.mean()),
        "min": float(values.min()),
        "max": float(values.max()),
        "samples": len(values),
    }


def median_interval(samples_ms: Sequence[float], block: int, seed: int = 0) -> dict[str, Any]:
    """Bootstrap interval of the median; whole rounds of ``block`` samples are drawn, for these share a mood.

    Returns:
        ``low``, ``high``, ``level`` and ``method``.
    """
    medians = _resampled_medians([samples_ms], block, seed)[0]
    low, high = np.quantile(medians, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    method = f"bootstrap of {RESAMPLES} resamples over rounds"
    return {"low": float(low), "high": float(high), "level": LEVEL, "method": method}


def median_ratio(samples_ms: Sequence[float], base_ms: Sequence[float], block: int, seed: int = 0) -> dict[str, float]:
    """Ratio of two medians with its bootstrap interval; the same rounds are drawn for both, so that drift cancels."""
    count = min(len(samples_ms), len(base_ms))
    ours, base = _resampled_medians([samples_ms[:count], base_ms[:count]], block, seed)
    low, high = np.quantile(ours / base, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    ratio = float(np.median(samples_ms) / np.median(base_ms))
    return {"ratio": ratio, "low": float(low), "high": float(high)}


def _resampled_medians(series: Sequence[Sequence[float]], block: int, seed: int) -> list[NDArray[np.float64]]:
    """Medians of resamples, the same rounds for every series; a rest that fills no group is left out."""
    arrays = [np.asarray(samples, np.float64) for samples in series]
    size = block * max(1, len(arrays[0]) // block // _GROUPS)
    groups = len(arrays[0]) // size
    if groups < 2:  # too few to draw rounds: single samples are the rounds
        size, groups = 1, len(arrays[0])
    chosen = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups))
    grouped = [array[: groups * size].reshape(groups, size) for array in arrays]
    return [np.array([np.median(rows[draw]) for draw in chosen]) for rows in grouped]

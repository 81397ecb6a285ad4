"""What raw samples say: percentiles, and intervals that respect that neighbouring samples are alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
LEVEL = 0.95
_GROUPS = 200
"""Rounds are drawn in at most so many groups of neighbours: enough for an interval, quick for long runs."""


def percentiles(samples_ms: Sequence[float]) -> dict[str, Any]:
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


def independent_ratios(
    samples_ms: Sequence[float], base_ms: Sequence[float], block: int, base_block: int, quantiles: Sequence[float]
) -> list[dict[str, float]]:
    """Ratios of quantiles of two runs that share no rounds: each is resampled by itself.

    Args:
        samples_ms: of one run.
        base_ms: of the run that it is divided by.
        block: inferences of a round of the first run.
        base_block: the same of the other run.
        quantiles: for example 0.5 and 0.99.

    Returns:
        for each quantile ``ratio``, ``low`` and ``high``.
    """
    ours = _resampled_quantiles(samples_ms, block, 1, quantiles)
    base = _resampled_quantiles(base_ms, base_block, 2, quantiles)
    low, high = np.quantile(ours / base, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    ratios = np.quantile(samples_ms, quantiles) / np.quantile(base_ms, quantiles)
    return [
        {"ratio": float(ratios[index]), "low": float(low[index]), "high": float(high[index])}
        for index in range(len(quantiles))
    ]


def difference_interval(right: float, of: int, base_right: float, base_of: int) -> dict[str, float]:
    """Interval of the difference of two accuracies that were measured apart.

    Newcombe, "Interval estimation for the difference between independent proportions", Statistics in Medicine 17
    (1998), method 10: two Wilson intervals, combined.

    Args:
        right: share of right answers, 0 to 1.
        of: images that it was measured on.
        base_right: the share that is subtracted.
        base_of: images of that.

    Returns:
        ``difference``, ``low``, ``high``, as shares.
    """
    low, high = wilson(right, of)
    base_low, base_high = wilson(base_right, base_of)
    difference = right - base_right
    return {
        "difference": difference,
        "low": difference - math.hypot(right - low, base_high - base_right),
        "high": difference + math.hypot(high - right, base_right - base_low),
    }


def wilson(share: float, count: int) -> tuple[float, float]:
    """Where a share lies that was counted on so many, by Wilson's score interval.

    Args:
        share: 0 to 1.
        count: on how many.

    Returns:
        both ends, as shares.
    """
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return middle - half, middle + half


def _resampled_quantiles(
    samples_ms: Sequence[float], block: int, seed: int, quantiles: Sequence[float]
) -> NDArray[np.float64]:
    """Quantiles of resamples ``(resamples, quantiles)``; samples are sorted once, a draw only weighs them."""
    values = np.asarray(samples_ms, np.float64)
    size = block * max(1, len(values) // block // _GROUPS)
    groups = len(values) // size
    if groups < 2:
        size, groups = 1, len(values)
    order = values[: groups * size].argsort()
    ordered, group = values[order], order // size
    resamples = np.arange(RESAMPLES)[:, None]
    chosen = np.random.default_rng(seed).integers(groups, size=(RESAMPLES, groups)) + groups * resamples
    drawn = np.bincount(chosen.ravel(), minlength=chosen.size).reshape(chosen.shape).astype(np.float64)
    # A quantile is looked for among stretches of neighbours first, then among the samples of one stretch.
    length = math.isqrt(len(ordered))
    members = np.zeros((groups, -(-len(ordered) // length)))
    np.add.at(members, (group, np.arange(len(ordered)) // length), 1)
    passed = (drawn @ members).cumsum(axis=1)
    found = np.empty((RESAMPLES, len(quantiles)))
    for column, quantile in enumerate(quantiles):
        wanted = quantile * len(ordered)
        stretch = (passed < wanted).sum(axis=1, keepdims=True)
        before = np.where(stretch > 0, np.take_along_axis(passed, np.maximum(stretch - 1, 0), axis=1), 0)
        inside = np.minimum(stretch * length + np.arange(length), len(ordered) - 1)
        place = (before + drawn[resamples, group[inside]].cumsum(axis=1) < wanted).sum(axis=1)
        found[:, column] = ordered[stretch[:, 0] * length + place]
    return found


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

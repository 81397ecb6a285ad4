"""Opening exported ONNX files, and what a form other than plain int8 costs in onnxruntime."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.export.storage import store_int8
from emqdeploy.export.targets import Product
from emqdeploy.grid import Floats
from emqdeploy.runtimes.onnx_kernels import profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options

ROUNDS = 5
"""Interleaved rounds of a cost that is measured during the export; `bench` measures in earnest."""


def load(path: Path) -> Any:
    """Opens a file in onnxruntime as any program would."""
    return create_session(path, session_options())


def profile(product: Product, feeds: dict[str, Any], input_shape: Sequence[int]) -> dict[str, str]:
    """Returns the kernel of every layer of a staged file, by layer name."""
    return profile_kernels(product.path, session_options(), None, tuple(input_shape), feeds=feeds)


def selection(product: Product, bits: int) -> dict[str, Any]:
    """The further input of a selector."""
    return {"bits": np.array([bits], np.int64)} if product.role == "selector" else {}


def measured_cost(checkpoint: Checkpoint, product: Product, image: Floats) -> dict[str, Any]:
    """What another form than plain int8 costs in onnxruntime, beside the int8 file of the same bit-width."""
    if product.flavour == "int8":
        return {}
    bits = max(product.bits)
    plain = store_int8(checkpoint, product.path, bits).data
    makers = {
        "plain": lambda: create_session(plain, session_options()),
        "this": lambda: load(product.path),
    }
    load_ms = {name: min(_timed(make) for _ in range(2)) for name, make in makers.items()}
    feeds = {"plain": {"images": image}, "this": {"images": image, **selection(product, bits)}}
    sessions = {name: make() for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            run = functools.partial(session.run, None, feeds[name])
            run()
            times[name] += [_timed(run) for _ in range(3)]
    latency_ms = {name: float(np.median(samples)) for name, samples in times.items()}
    return {
        "compared_with": f"int8 file at {bits} bits, onnxruntime, one image, measured during the export",
        "load_ms": round(load_ms["this"], 2),
        "load_ms_int8": round(load_ms["plain"], 2),
        "latency_ms": round(latency_ms["this"], 4),
        "latency_ms_int8": round(latency_ms["plain"], 4),
        "latency_ratio": round(latency_ms["this"] / latency_ms["plain"], 3),
    }


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)

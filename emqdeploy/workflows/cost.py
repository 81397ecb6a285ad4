"""What a form other than plain int8 costs in onnxruntime."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.exporters.products import Product
from emqdeploy.exporters.storage import store_int8
from emqdeploy.format.bundle import INPUT, SELECTOR
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.segment import NATIVE
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.runtimes.native_operators import register_operators
from emqdeploy.runtimes.onnx_session import create_session, session_options

ROUNDS = 5
"""Interleaved rounds of a cost that is measured during the export; `bench` measures in earnest."""


def measured_cost(checkpoint: Checkpoint, product: Product, image: Floats) -> dict[str, Any]:
    """What a staged file costs in onnxruntime, beside the int8 file of the same child; nothing where it is one."""
    if product.flavour == "int8":
        return {}
    child = product.children[-1]
    plain = store_int8(checkpoint, product.path, child).data
    models: dict[str, bytes | Path] = {"plain": plain, "this": product.path}
    sessions: dict[str, Any] = {}
    load_ms: dict[str, float] = {}
    for name, model in models.items():
        times = []
        for _ in range(2):
            start = time.perf_counter()
            options = session_options()
            if name == "this" and product.flavour == NATIVE:
                register_operators(options)
            sessions[name] = create_session(model, options)
            times.append(1000 * (time.perf_counter() - start))
        load_ms[name] = min(times)
    chosen = selection(selector_values(product.children)[child]) if product.role == SELECTOR else {}
    feeds = {"plain": {INPUT: image}, "this": {INPUT: image, **chosen}}
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(ROUNDS):
        for name, session in sessions.items():
            run = functools.partial(session.run, None, feeds[name])
            run()
            samples[name] += [_timed(run) for _ in range(3)]
    latency_ms = {name: float(np.median(times)) for name, times in samples.items()}
    return {
        "compared_with": f"int8 file at {child}, onnxruntime, one image, measured during the export",
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

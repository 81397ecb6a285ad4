"""Which kernels of onnxruntime really ran: read from a profile of one inference, never assumed."""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.format.bundle import INPUT
from emqdeploy.format.precision import FLOAT32, INT8, UNKNOWN
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.runtimes.onnx_session import create_session

INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
_LAYER_KERNELS = (*INTEGER_KERNELS, "Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


Arithmetic = tuple[str, bool | None]
"""How a layer is computed and whether that is in integers: the last two fields of a `LayerPrecision`."""

UNREAD: Arithmetic = (UNKNOWN, None)
"""Of a layer whose kernel the runtime does not tell."""


def computed_as(kernel: str | None) -> Arithmetic:
    """The arithmetic of a kernel."""
    if kernel is None:
        return UNREAD
    return (INT8, True) if kernel in INTEGER_KERNELS else (FLOAT32, False)


def profile_kernels(
    model: bytes | Path,
    options: Any,
    arrays: dict[str, Any] | None,
    input_shape: tuple[int, ...],
    provider: str = "cpu",
    feeds: dict[str, Any] | None = None,
) -> dict[str, str]:
    """Runs one inference under onnxruntime's profiler; returns the kernel that computed each layer, by layer name.

    A fused kernel carries the name of the operator that it replaced, with a suffix of onnxruntime's own. TensorRT
    swallows whole subgraphs, so its layers are missing here: they are unknown, not assumed.
    """
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = create_session(model, options, arrays, provider)
        session.run((CLASSIFICATION.output,), {INPUT: np.zeros((1, *input_shape), np.float32), **(feeds or {})})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels: dict[str, str] = {}
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if operator in _LAYER_KERNELS and event["name"].endswith("_kernel_time"):
            name = re.sub(
                r"(_quant|_nchwc|_nhwc|_token_\d+|/?QLinear\w*)*$", "", event["name"].removesuffix("_kernel_time")
            )
            kernels[name] = operator
    return kernels

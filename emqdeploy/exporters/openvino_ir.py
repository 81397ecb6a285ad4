"""OpenVINO's IR, made from the same uint8 graph that onnxruntime runs."""

from __future__ import annotations

from pathlib import Path

from emqdeploy.errors import EmqError, require
from emqdeploy.graph.openvino_rounding import keep_rounding


def write_ir(graph: bytes, xml: Path) -> str:
    """Writes an ONNX graph as an ``.xml`` and a ``.bin`` beside it; returns OpenVINO's version.

    Raises:
        EmqError: OpenVINO is missing, or does not take the graph; the sentence has its reason.
    """
    openvino, onnx = require("openvino", "openvino"), require("onnx", "openvino")
    model = onnx.load_from_string(graph)
    keep_rounding(model)
    try:
        openvino.save_model(openvino.Core().read_model(model.SerializeToString()), xml, compress_to_fp16=False)
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        raise EmqError(f"OpenVINO does not take the graph: {reason}; use --target onnx") from error
    return str(openvino.__version__)

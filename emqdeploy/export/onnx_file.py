"""Per-bit ONNX files in QDQ form: the checkpoint's skeleton with one bit-width filled in."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy import __version__
from emqdeploy.artefact import seal
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, require
from emqdeploy.files import atomic_write_bytes
from emqdeploy.registry import Registry


@dataclass(frozen=True)
class Artefact:
    """One exported file: where it is, which bit-width it holds, how it stores the weights."""

    bits: int
    target: str
    path: Path
    size_bytes: int
    stored_as: str


TARGETS: Registry[Any] = Registry("target")
"""Exporters by name: ``(checkpoint, bits, directory) -> Artefact``."""


@TARGETS.register("onnx")
def export_onnx(checkpoint: Checkpoint, bits: int, directory: Path) -> Artefact:
    """Writes ``directory/model-w<bits>.onnx``: standard operators, int8 weights, free batch dimension."""
    path = directory / f"model-w{bits}.onnx"
    data = build_onnx(checkpoint, bits)
    atomic_write_bytes(path, data)
    return Artefact(bits, "onnx", path, len(data), "int8")


def build_onnx(checkpoint: Checkpoint, bits: int) -> bytes:
    """Returns the ONNX model of one bit-width, with what a user of the file needs to know in its metadata."""
    onnx = require("onnx", "export")
    arrays = checkpoint.network.initializers(bits)
    model = onnx.load_from_string(checkpoint.skeleton)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    model.producer_version = __version__
    metadata = {
        "bits": bits,
        "input_shape": checkpoint.metadata["network"]["input_shape"],
        "classes": checkpoint.classes,
        "preprocessing": checkpoint.metadata["preprocessing"],
        "data": checkpoint.metadata["data"],
        "accuracy": checkpoint.metadata["accuracy"].get(str(bits)),
        "grid_bits": {name: layer.grid_bits(bits) for name, layer in checkpoint.network.layers.items()},
    }
    try:
        onnx.checker.check_model(model, full_check=True)
    except onnx.checker.ValidationError as error:
        raise EmqError(f"the {bits}-bit graph is not valid ONNX: {str(error).splitlines()[0]}") from error
    return seal(model, json.dumps(metadata))

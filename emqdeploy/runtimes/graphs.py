"""Where an adapter gets the graph of a bit-width: from a checkpoint's codes, or from the files of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import require


@dataclass(frozen=True)
class Graphs:
    """Graphs by bit-width, made or read when they are asked for.

    Attributes:
        input_shape: ``(C, H, W)`` of one image.
        sources: per bit-width, returns a serialised ONNX model or the path of a checked file.
        layers: per bit-width, the layers as a manifest lists them.
    """

    input_shape: tuple[int, ...]
    sources: dict[int, Callable[[], bytes | Path]]
    layers: dict[int, list[dict[str, Any]]]

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Graphs:
        """Fills the checkpoint's graph with the numbers of a bit-width when it is asked for."""
        network = checkpoint.network

        def source(bits: int) -> Callable[[], bytes]:
            return lambda: filled_model(checkpoint.skeleton, network.initializers(bits))

        return cls(
            tuple(checkpoint.metadata["network"]["input_shape"]),
            {bits: source(bits) for bits in network.widths},
            {
                bits: [
                    {"name": name, "grid_bits": layer.grid_bits(bits), "stored_as": "int8"}
                    for name, layer in network.layers.items()
                ]
                for bits in network.widths
            },
        )

    @classmethod
    def of_artefacts(cls, bundle: Bundle, artefacts: Sequence[Artefact]) -> Graphs:
        """Reads files of one bit-width each; of several for one bit-width the newest."""

        def source(artefact: Artefact) -> Callable[[], Path]:
            return lambda: bundle.file_of(artefact)

        return cls(
            tuple(bundle.input["shape"]),
            {artefact.bits[0]: source(artefact) for artefact in artefacts},
            {artefact.bits[0]: list(artefact.layers) for artefact in artefacts},
        )


def filled_model(skeleton: bytes, arrays: dict[str, NDArray[Any]]) -> bytes:
    """Returns a checkpoint's graph as a serialised ONNX model with every number in it."""
    onnx = require("onnx", "export")
    model = onnx.load_from_string(skeleton)
    for tensor in model.graph.initializer:
        if tensor.name in arrays:
            tensor.CopyFrom(onnx.numpy_helper.from_array(arrays[tensor.name], tensor.name))
    data: bytes = model.SerializeToString()
    return data

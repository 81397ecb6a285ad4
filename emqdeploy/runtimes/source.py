"""Whatever a person names on the command line, opened as one runnable thing: a checkpoint or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import Runtime, open_runtime
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime


@dataclass(frozen=True)
class Source:
    """A network that runs, and what a user of it needs to know.

    Attributes:
        path: the file.
        runtime: ready to call.
        metadata: of the file.
        size_bytes: per bit-width, the bytes that the file spends on it.
    """

    path: Path
    runtime: Runtime
    metadata: dict[str, Any]
    size_bytes: dict[int, int]

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input."""
        return Preprocessing.from_dict(self.metadata["preprocessing"])

    @property
    def input_shape(self) -> tuple[int, int, int]:
        """``(C, H, W)`` of one image."""
        pre = self.preprocessing
        return (pre.channels, pre.height, pre.width)

    @property
    def accuracy(self) -> dict[int, float]:
        """Percent of the test set per bit-width, as measured after training."""
        stored = self.metadata["accuracy"]
        if isinstance(stored, dict):
            return {int(bits): percent for bits, percent in stored.items()}
        return {} if stored is None else {self.metadata["bits"]: stored}


def open_source(
    path: Path | None, bits: Sequence[int] | None = None, runtime: str = "onnxruntime", threads: int | None = None
) -> Source:
    """Opens a checkpoint, a run directory or an exported ``.onnx`` file; None means the latest run.

    Args:
        path: what to open.
        bits: bit-widths wanted; None takes every stored one.
        runtime: adapter for checkpoints; exported files run in onnxruntime.
        threads: threads inside an operator; None uses every core.
    """
    if path is not None and path.suffix == ".onnx":
        opened = OnnxFileRuntime(path, threads=threads)
        for width in bits or ():
            opened.check_bits(width)
        return Source(path, opened, opened.metadata, {opened.bits: path.stat().st_size})
    found = find_checkpoint(path)
    only = bits[0] if bits is not None and len(bits) == 1 else None
    checkpoint = load_checkpoint(found, bits=only)
    sizes = {width: load_checkpoint(found, bits=width).bytes_read for width in checkpoint.network.widths}
    adapter = open_runtime(checkpoint, runtime, bits=bits, threads=threads)
    return Source(found, adapter, checkpoint.metadata, sizes)


def dataset_of(metadata: dict[str, Any], data_dir: Path | None) -> Dataset:
    """Loads the data set that a network was trained on."""
    data = metadata["data"]
    return load_dataset(data["name"], data_dir, data["image_size"])

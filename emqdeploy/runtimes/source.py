"""Whatever a person names, opened as one runnable thing: a checkpoint, a bundle or an exported file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.bundle import MANIFEST_FILE, Bundle
from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.data import Dataset, Preprocessing, load_dataset
from emqdeploy.errors import UsageError
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import Runtime, exported_bits, find_adapter, open_runtime
from emqdeploy.runtimes.onnx_file import open_file, read_sealed


@dataclass(frozen=True)
class Source:
    """A network that runs, and what a user of it needs to know.

    Attributes:
        path: the file, or the bundle's directory.
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
            return {int(bits): percent for bits, percent in stored.items() if percent is not None}
        return {} if stored is None else {self.metadata["bits"]: stored}


def open_source(
    path: Path | str | None,
    bits: Sequence[int] | None = None,
    runtime: str = "onnxruntime",
    threads: int | None = None,
    **options: Any,
) -> Source:
    """Opens a checkpoint, a run directory, a bundle or an exported ``.onnx`` file; None means the latest run.

    Args:
        path: what to open.
        bits: bit-widths wanted; None takes every one that was exported, of a checkpoint every stored one.
        runtime: adapter; single exported files run in onnxruntime.
        threads: threads inside an operator; None uses every core.
        **options: of the adapter, for example ``residency``, ``flavour``, ``provider``.
    """
    options |= {"bits": bits, "threads": threads}
    path = None if path is None else Path(path)
    if path is not None and path.suffix == ".onnx":
        if runtime != "onnxruntime":
            raise UsageError(
                f"{path} is one ONNX file, which runs in onnxruntime here, not in {runtime!r}; name its bundle"
            )
        opened = open_file(path, **options)
        metadata = read_sealed(path)
        return Source(path, opened, metadata, dict.fromkeys(opened.available_bits, path.stat().st_size))
    if path is not None and is_bundle(path):
        bundle = Bundle.open(path)
        network = find_adapter(runtime).open_bundle(bundle, **options)
        return Source(bundle.path, network, _bundle_metadata(bundle), _bundle_sizes(bundle))
    found = find_checkpoint(path)
    only = bits[0] if bits is not None and len(bits) == 1 else None
    checkpoint = load_checkpoint(found, bits=only)
    sizes = {width: load_checkpoint(found, bits=width).bytes_read for width in checkpoint.network.widths}
    return Source(found, open_runtime(checkpoint, runtime, **options), checkpoint.metadata, sizes)


def open_network(path: Path, runtime: str, **options: Any) -> Runtime:
    """Opens what `open_source` opens, with every bit-width of a checkpoint at hand; see `Runtime.from_bundle`."""
    if path.suffix == ".onnx" or is_bundle(path):
        source = open_source(path, runtime=runtime, **options)
        network, metadata = source.runtime, source.metadata
    else:
        checkpoint = load_checkpoint(find_checkpoint(path))
        network, metadata = open_runtime(checkpoint, runtime, **options), checkpoint.metadata
    network.metadata = metadata
    return network


def is_bundle(path: Path) -> bool:
    """Whether a path names a bundle: its directory or its manifest."""
    return path.name == MANIFEST_FILE or (path / MANIFEST_FILE).exists()


def dataset_of(metadata: dict[str, Any], data_dir: Path | None) -> Dataset:
    """Loads the data set that a network was trained on."""
    data = metadata["data"]
    return load_dataset(data["name"], data_dir, data["image_size"])


def _bundle_metadata(bundle: Bundle) -> dict[str, Any]:
    return {
        "preprocessing": bundle.preprocessing,
        "classes": list(bundle.classes),
        "data": bundle.data,
        "accuracy": {str(bits): percent for bits, percent in bundle.accuracy.items()},
        "trained_bits": list(bundle.trained_bits),
        "input_shape": list(bundle.input["shape"]),
    }


def _bundle_sizes(bundle: Bundle) -> dict[int, int]:
    """Bytes of the first artefact that serves a bit-width; of one that was not exported, of the checkpoint."""
    stored = (
        dict.fromkeys(bundle.trained_bits, bundle.files[bundle.checkpoint]["size_bytes"]) if bundle.checkpoint else {}
    )
    sizes = {width: artefact.size_bytes for artefact in reversed(bundle.artefacts) for width in artefact.bits}
    return stored | {width: sizes[width] for width in exported_bits(bundle)}

"""How a network of the table is opened: here for the bench, and once more in a fresh process to see what that costs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emqdeploy.artefact import read_metadata
from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.errors import UsageError
from emqdeploy.grid import Floats
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import LayerPrecision, find_adapter, read_model_file
from emqdeploy.runtimes.source import Source, is_bundle, open_source

TARGETS = {
    "onnxruntime": ("onnx",),
    "openvino": ("openvino",),
    "tensorrt": ("tensorrt", "tensorrt-rtx"),
}
"""What a bundle holds for each runtime, by the artefacts' targets."""


@dataclass(frozen=True)
class Opening:
    """Everything that it takes to open one network at some bit-widths.

    Attributes:
        path: a checkpoint, an exported file or a bundle.
        runtime: the adapter.
        threads: threads inside an operator; None leaves that to the runtime.
        kind: ``width``, ``selector`` or ``baseline``.
        flavour: of a bundle's artefacts; None takes what the adapter takes.
        baseline: id of a bundle's artefact without bit-widths.
    """

    path: str
    runtime: str
    threads: int | None = None
    kind: str = "width"
    flavour: str | None = None
    baseline: str | None = None

    def open(self, bits: Sequence[int] | None) -> Source:
        """Opens it with these bit-widths ready; None takes all, and is what a baseline has."""
        path = Path(self.path)
        if self.baseline is not None:
            return _open_baseline(Bundle.open(path), self.baseline, self.threads)
        options = {} if self.flavour is None else {"flavour": self.flavour}
        return open_source(path, bits, self.runtime, self.threads, **options)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for another process."""
        return asdict(self)


def openings(path: Path, runtime: str, threads: int | None, baselines: bool) -> list[Opening]:
    """What there is to open: of a bundle each flavour, then its selectors, then its baselines; else the one thing."""
    if not is_bundle(path):
        return [Opening(str(path), runtime, threads)]
    bundle = Bundle.open(path)
    held = [artefact for artefact in bundle.artefacts if artefact.target in TARGETS.get(runtime, ())]
    takes_flavour = "flavour" in inspect.signature(find_adapter(runtime).open_bundle).parameters
    found = []
    for kind in ("width", "selector"):
        flavours = dict.fromkeys(artefact.flavour for artefact in held if artefact.role == kind)
        found += [
            Opening(str(path), runtime, threads, kind, flavour if takes_flavour else None) for flavour in flavours
        ]
    # A runtime that none of the files is for may still build its networks from the checkpoint in the bundle.
    found = found or [Opening(str(path), runtime, threads)]
    if baselines and runtime == "onnxruntime":
        for artefact in bundle.baselines:
            if artefact.target == "onnx":
                found.append(Opening(str(path), runtime, threads, "baseline", artefact.flavour, artefact.id))
    return found


class BaselineNetwork:
    """A bundle's float32 network, or the runtime's own int8 of it; it has no bit-widths.

    Args:
        path: the ONNX file.
        artefact: what the manifest says about it.
        input_name: of its input.
        threads: threads inside an operator.
    """

    name = "onnxruntime"
    available_bits: tuple[int, ...] = ()

    def __init__(self, path: Path, artefact: Artefact, input_name: str, threads: int | None) -> None:
        from emqdeploy.runtimes.onnx_session import create_session, session_options

        self._session = create_session(path, session_options(threads))
        self._input = input_name
        self._artefact = artefact

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        logits: Floats = self._session.run(None, {self._input: images})[0]
        return logits

    def precision(self, bits: int | None = None) -> list[LayerPrecision]:
        """What the manifest says, which the export read from the kernels that ran."""
        return [
            LayerPrecision(layer["name"], layer["grid_bits"], layer["stored_as"], layer["computed_as"])
            for layer in self._artefact.layers
        ]


def _open_baseline(bundle: Bundle, name: str, threads: int | None) -> Source:
    artefact = next((one for one in bundle.baselines if one.id == name), None)
    if artefact is None:
        raise UsageError(f"{bundle.path} holds no baseline {name!r}; add it with: emqdeploy export --with-baselines")
    network: Any = BaselineNetwork(bundle.file_of(artefact), artefact, bundle.input["name"], threads)
    return Source(bundle.path, network, metadata_of(bundle.path) | {"accuracy": {}}, {})


def metadata_of(path: Path) -> dict[str, Any]:
    """What a checkpoint, an exported file or a bundle says about its network, without a runtime to open it with."""
    if path.suffix == ".onnx":
        return read_metadata(read_model_file(path))
    if not is_bundle(path):
        return load_checkpoint(path).metadata
    bundle = Bundle.open(path)
    return {
        "preprocessing": bundle.preprocessing,
        "classes": list(bundle.classes),
        "data": bundle.data,
        "accuracy": bundle.accuracy,
        "trained_bits": list(bundle.trained_bits),
    }


def find_network(path: Path | None) -> Path:
    """Returns what a command means: an exported file, a bundle, or the checkpoint of a run, the latest by default."""
    if path is not None and (path.suffix == ".onnx" or is_bundle(path)):
        return path
    return find_checkpoint(path)

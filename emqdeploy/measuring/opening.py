"""How a network of the table is opened: here for the bench, and once more in a fresh process to see what that costs."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import BASELINE, CHILD, INPUT, SELECTOR, Artefact, Bundle, Role, is_bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.gate import Expected, check_graph
from emqdeploy.format.grid import Floats
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.measuring.references import open_reference
from emqdeploy.runtimes.base import find_adapter
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.source import Source, open_source


@dataclass(frozen=True)
class Opening:
    """Everything that it takes to open one network at some children.

    Attributes:
        path: a checkpoint, an exported file or a bundle.
        runtime: the adapter.
        threads: threads inside an operator; None leaves that to the runtime.
        kind: ``child``, ``selector`` or ``baseline``.
        flavour: of a bundle's artefacts; None takes what the adapter takes.
        baseline: id of a bundle's artefact that has no children; of a checkpoint, a name in
            `emqdeploy.measuring.references.REFERENCES`.
    """

    path: str
    runtime: str
    threads: int | None = None
    kind: Role = CHILD
    flavour: str | None = None
    baseline: str | None = None

    def open(self, children: str | Sequence[ChildLike] | None) -> Source:
        """Opens it with these children ready; None takes all, and is what a baseline has."""
        path = Path(self.path)
        if self.baseline is not None and is_bundle(path):
            return _open_baseline(Bundle.open(path), self.baseline, self.threads)
        if self.baseline is not None:
            return open_reference(path, self.baseline, self.threads)
        options = {} if self.flavour is None else {"flavour": self.flavour}
        return open_source(path, children, self.runtime, self.threads, **options)

    def held(self, bundle: Bundle) -> list[Artefact]:
        """The artefacts of a bundle that it may open."""
        if self.baseline is not None:
            return [one for one in bundle.baselines if one.id == self.baseline]
        targets = find_adapter(self.runtime).targets
        found = [one for one in bundle.artefacts if one.target in targets and one.role == self.kind]
        return [one for one in found if self.flavour in (None, one.flavour)]

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for another process."""
        return asdict(self)


def openings(path: Path, runtime: str, threads: int | None, baselines: bool) -> list[Opening]:
    """What there is to open: of a bundle each flavour, then its selectors, then its baselines; else the one thing."""
    if not is_bundle(path):
        return [Opening(str(path), runtime, threads)]
    bundle, adapter = Bundle.open(path), find_adapter(runtime)
    held = [artefact for artefact in bundle.artefacts if artefact.target in adapter.targets]
    takes_flavour = "flavour" in inspect.signature(adapter.open_bundle).parameters
    found = []
    kinds: tuple[Role, ...] = (CHILD, SELECTOR)
    for kind in kinds:
        flavours = dict.fromkeys(artefact.flavour for artefact in held if artefact.role == kind)
        found += [
            Opening(str(path), runtime, threads, kind, flavour if takes_flavour else None) for flavour in flavours
        ]
    # A runtime that none of the files is for may still build its networks from the checkpoint in the bundle.
    found = found or [Opening(str(path), runtime, threads)]
    if baselines and runtime == BaselineNetwork.name:
        for artefact in bundle.baselines:
            if artefact.target in adapter.targets:
                found.append(Opening(str(path), runtime, threads, BASELINE, artefact.flavour, artefact.id))
    return found


class BaselineNetwork:
    """A bundle's float32 network, or the runtime's own int8 of it; it has no children.

    Args:
        model: the ONNX graph, once it has passed the gate.
        artefact: what the manifest says about it.
        threads: threads inside an operator.
    """

    name = "onnxruntime"
    children: tuple[Child, ...] = ()

    def __init__(self, model: bytes, artefact: Artefact, threads: int | None) -> None:
        self._session = create_session(model, session_options(threads))
        self._artefact = artefact

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        logits: Floats = self._session.run(None, {INPUT: images})[0]
        return logits

    def precision(self, child: Child | None = None) -> list[LayerPrecision]:
        """What the manifest says, which the export read from the kernels that ran."""
        return list(self._artefact.layers)


def _open_baseline(bundle: Bundle, name: str, threads: int | None) -> Source:
    artefact = next((one for one in bundle.baselines if one.id == name), None)
    if artefact is None:
        raise UsageError(f"{bundle.path} holds no baseline {name!r}; add it with: emqdeploy export --with-baselines")
    model = bundle.content_of(artefact)
    check_graph(model, Expected(bundle.card, {}), bundle.path / artefact.file)
    network: Any = BaselineNetwork(model, artefact, threads)
    return Source(bundle.path, network, bundle.card, {})

"""Exported ONNX files in onnxruntime, no checkpoint at hand: a file per child, or one with a selector input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.files import LARGEST_MODEL, read_bytes
from emqdeploy.format.bundle import BASELINE, CHILD, SELECTOR, Bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import SUFFIX
from emqdeploy.format.gate import Expected, check_graph
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.seal import Sealed, read_seal
from emqdeploy.format.segment import NATIVE
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.runtimes.base import Runtime
from emqdeploy.runtimes.native_operators import register_operators, told_methods
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options
from emqdeploy.runtimes.scratch import trim_heap

SELECTOR_SINCE = (1, 29)
"""The first onnxruntime that gives a selector's answers: 1.20 to 1.28 were tried and did not."""


class OnnxFiles(Runtime):
    """What onnxruntime opens from exported files, whatever they hold."""

    name = library = "onnxruntime"
    targets = ("onnx",)

    @classmethod
    def open_bundle(
        cls, bundle: Bundle, children: Sequence[ChildLike] | None, flavour: str | None = None, **options: Any
    ) -> Runtime:
        """Opens the ONNX files of a bundle.

        Args:
            bundle: what `emqdeploy export` wrote.
            children: those to keep ready; None keeps all.
            flavour: of the artefacts, for example ``packed`` or ``if``; None takes the first one with a file per child.
            **options: of the adapter.
        """
        held = [one for one in bundle.artefacts if one.target in cls.targets and one.role != BASELINE]
        flavours = list(dict.fromkeys(artefact.flavour for artefact in held))
        if not held:
            raise UsageError(
                f"{bundle.path} holds no ONNX artefacts and no checkpoint to build sessions from; add them with:"
                " emqdeploy export --target onnx"
            )
        if flavour is None:
            flavour = next((artefact.flavour for artefact in held if artefact.role == CHILD), flavours[0])
        chosen = [artefact for artefact in held if artefact.flavour == flavour]
        if not chosen:
            raise UsageError(
                f"{bundle.path} holds no ONNX artefacts of flavour {flavour!r}; it holds {', '.join(flavours)}"
            )
        if chosen[-1].role == SELECTOR:
            return open_selector(bundle.file_of(chosen[-1]), flavour, children=children, **options)
        files = {child: bundle.file_of(artefact) for artefact in chosen for child in bundle.children_of(artefact)}
        return OnnxFileRuntime(files, children, **options)

    @classmethod
    def open_file(cls, path: Path, **options: Any) -> Runtime:
        """Opens one exported ``.onnx`` file, with or without a selector."""
        selector = read_sealed(path).selector
        return OnnxFileRuntime(path, **options) if selector is None else open_selector(path, selector, **options)


class OnnxFileRuntime(OnnxFiles):
    """Runs exported files of one child each.

    Args:
        files: the file of each child, or one file.
        children: those to keep ready; None keeps all.
        residency: what stays in memory, see `Runtime`.
        threads: threads inside an operator; None uses every core.
        provider: what computes, see `OnnxRuntime`.

    Raises:
        EmqError: a file is missing, truncated, altered or of another program.
    """

    def __init__(
        self,
        files: Path | Mapping[Child, Path],
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        self.threads = threads
        self.device = provider
        if isinstance(files, Path):
            about = read_sealed(files)
            files = dict.fromkeys(about.read_children(), files)
        else:
            about = read_sealed(next(iter(files.values())))
        self._files = dict(files)
        self.card, self._levels = about.card, about.card.levels
        super().__init__(self._files, about.card.input_shape, children, residency)
        trim_heap()

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        child = self.find(child)
        about, data = open_sealed(self._files[child])
        kernels = profile_kernels(data, self._options(child), None, self.input_shape, self.device)
        return _precision(about, child, kernels)

    def _build(self, child: Child) -> SessionEngine:
        path = self._files[child]
        about, data = open_sealed(path)
        held = about.read_children()
        if held != (child,):
            names = ", ".join(one.name for one in held)
            raise EmqError(f"{path} holds child {names}, not {child.name}; export the bundle again")
        return SessionEngine(create_session(data, self._options(child), None, self.device), len(data))

    def _options(self, child: Child) -> Any:
        folder = self._files[child].absolute().parent
        return session_options(self.threads, external_folder=folder, levels=self._levels)


class OnnxSelectorRuntime(OnnxFiles):
    """Runs one exported file that holds several children behind the input ``bits``.

    The bare graph answers a value that it does not hold with the next higher one; here that is refused.

    Args:
        path: the file.
        children: all of them are in the one session, which is resident as a whole; the widest of these is used first.
        residency: only ``all``, for the same reason.
        threads: threads inside an operator; None uses every core.
        provider: what computes, see `OnnxRuntime`.
    """

    def __init__(
        self,
        path: Path,
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        if residency != "all":
            raise UsageError(
                f"residency is {residency!r}, but {path.name} holds all children in one session; leave it at all, or"
                " use the separate artefacts"
            )
        self.threads = threads
        self.device = provider
        self._path = path
        self._about, data = open_sealed(path)
        self._size_bytes = len(data)
        self._values = selector_values(self._about.read_children())
        self.card = self._about.card
        self._session = self._open(data)
        super().__init__(self._values, self.card.input_shape, children)
        for child in self._values:
            self._residency.get(child)
        trim_heap()

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        child = self.find(child)
        about, data = open_sealed(self._path)
        feeds = selection(self._values[child])
        kernels = profile_kernels(data, self._options(), None, self.input_shape, self.device, feeds)
        return _precision(about, child, kernels)

    def _open(self, data: bytes) -> Any:
        _require_selector_support(self._path)
        return create_session(data, self._options(), None, self.device)

    def close(self) -> None:
        """Drops the session."""
        super().close()
        self._session = None

    def _build(self, child: Child) -> SessionEngine:
        # The one session is counted once, at the widest child.
        size = self._size_bytes if child == self.children[-1] else 0
        return SessionEngine(self._session, size, selection(self._values[child]))

    def _options(self) -> Any:
        folder = self._path.absolute().parent
        return session_options(self.threads, external_folder=folder, levels=self._about.card.levels)


class OnnxNativeRuntime(OnnxSelectorRuntime):
    """The same for a file whose integer parts our own kernels compute, which refuses a value that it does not hold."""

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer, with the kernel that was chosen for it when the session was created."""
        child = self.find(child)
        place = list(self._values).index(child)
        return [
            LayerPrecision(name, bits, self._about.stored_as, self._methods[name, place], True)
            for name, bits in self._about.grid_bits[child.name].items()
        ]

    def _open(self, data: bytes) -> Any:
        options = self._options()
        with told_methods() as self._methods:
            return create_session(data, options, None, self.device)

    def _options(self) -> Any:
        options = super()._options()
        register_operators(options)
        return options


def open_selector(path: Path, kind: str, **options: Any) -> OnnxSelectorRuntime:
    """Opens a file that holds several children behind the input ``bits``.

    Args:
        path: the file.
        kind: of its selector.
        **options: of the runtime.
    """
    return (OnnxNativeRuntime if kind == NATIVE else OnnxSelectorRuntime)(path, **options)


def read_sealed(path: Path) -> Sealed:
    """Checks a file's seal and its graph, and returns what it says about itself."""
    return open_sealed(path)[0]


def open_sealed(path: Path) -> tuple[Sealed, bytes]:
    """The same with the bytes that were checked, so that no runtime reads the file another time."""
    data = read_bytes(path, LARGEST_MODEL, "name an existing file")
    return check_sealed(path, data), data


def check_sealed(path: Path, data: bytes) -> Sealed:
    """The same for bytes that were read already."""
    about = read_seal(path, data)
    expected = Expected(about.card, {}, _checkpoints_beside(path), about.selector is not None, about.selector == NATIVE)
    check_graph(data, expected, path)
    return about


def _checkpoints_beside(path: Path) -> dict[str, int]:
    """Sizes of the checkpoints in a file's own folder, which a ``master`` file reads its weights from; no links."""
    found = path.absolute().parent.glob(f"*{SUFFIX}")
    return {one.name: one.stat().st_size for one in found if one.is_file() and not one.is_symlink()}


def _require_selector_support(path: Path) -> None:
    """Raises where onnxruntime would answer wrongly: up to 1.28 it computes layers inside an If differently."""
    version = require("onnxruntime", "runtime").__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < SELECTOR_SINCE:
        raise EmqError(
            f"{path.name} holds a selector, which onnxruntime {version} computes wrongly; install onnxruntime"
            f" {'.'.join(map(str, SELECTOR_SINCE))} or newer, or use the separate artefacts"
        )


def _precision(about: Sealed, child: Child, kernels: dict[str, str]) -> list[LayerPrecision]:
    """Joins what a file says about its weights with the kernels that ran."""
    return [
        LayerPrecision(name, bits, about.stored_as, *computed_as(kernels.get(name)))
        for name, bits in about.grid_bits[child.name].items()
    ]

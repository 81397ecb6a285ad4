"""Exported ONNX files in onnxruntime, no checkpoint at hand: a file per bit-width, or one with a selector input."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.artefact import check_seal, read_metadata
from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.runtimes.base import LayerPrecision, Runtime, read_model_file
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_runtime import SessionEngine
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.scratch import trim_heap

SELECTOR_INPUT = "bits"
"""The further input of a selector graph, int64 ``(1,)``."""


SELECTOR_SINCE = (1, 29)
"""The first onnxruntime that gives a selector's answers: 1.20 to 1.28 were tried and did not."""


class OnnxFileRuntime(Runtime):
    """Runs exported files of one bit-width each.

    Args:
        files: the file of each bit-width, or one file.
        bits: bit-widths to keep ready; None keeps all.
        residency: what stays in memory, see `Runtime`.
        threads: threads inside an operator; None uses every core.
        provider: what computes, see `OnnxRuntime`.

    Raises:
        EmqError: a file is missing, truncated, altered or of another program.

    Attributes:
        metadata: what the file of the highest bit-width says about itself.
    """

    name = "onnxruntime"

    def __init__(
        self,
        files: Path | Mapping[int, Path],
        bits: Sequence[int] | None = None,
        residency: str = "all",
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        self.threads = threads
        self.device = provider
        if isinstance(files, Path):
            files = {read_sealed(files)["bits"]: files}
        self._files = dict(files)
        self.metadata = read_sealed(self._files[max(self._files)])
        super().__init__(tuple(self._files), tuple(self.metadata["input_shape"]), bits, residency)
        trim_heap()

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        self.check_bits(bits)
        path = self._files[bits]
        metadata = read_sealed(path)
        kernels = profile_kernels(path, session_options(self.threads), None, self.input_shape, self.device)
        return _precision(metadata, metadata["grid_bits"], kernels)

    def _build(self, bits: int) -> SessionEngine:
        path = self._files[bits]
        held = read_sealed(path)["bits"]
        if held != bits:
            raise EmqError(f"{path} holds the {held}-bit network, not the {bits}-bit one; export the bundle again")
        return SessionEngine(
            create_session(path, session_options(self.threads), None, self.device), path.stat().st_size
        )


def _require_selector_support(path: Path) -> None:
    """Raises where onnxruntime would answer wrongly: up to 1.28 it computes layers inside an If differently."""
    version = require("onnxruntime", "runtime").__version__
    if tuple(int(part) for part in re.findall(r"\d+", version)[:2]) < SELECTOR_SINCE:
        raise EmqError(
            f"{path.name} holds a selector, which onnxruntime {version} computes wrongly; install onnxruntime"
            f" {'.'.join(map(str, SELECTOR_SINCE))} or newer, or use the separate artefacts"
        )


class OnnxSelectorRuntime(Runtime):
    """Runs one exported file that holds several bit-widths behind the input ``bits``.

    The bare graph answers a bit-width that it does not hold with the next higher one; here that is refused.

    Args:
        path: the file.
        bits: accepted for symmetry: all of them are in the one session, which is resident as a whole.
        residency: only ``all``, for the same reason.
        threads: threads inside an operator; None uses every core.
        provider: what computes, see `OnnxRuntime`.

    Attributes:
        metadata: what the file says about itself.
    """

    name = "onnxruntime"

    def __init__(
        self,
        path: Path,
        bits: Sequence[int] | None = None,
        residency: str = "all",
        threads: int | None = None,
        provider: str = "cpu",
    ) -> None:
        if residency != "all":
            raise UsageError(
                f"residency is {residency!r}, but {path.name} holds all bit-widths in one session; leave it at all, or"
                " use the separate artefacts"
            )
        self.threads = threads
        self.device = provider
        self._path = path
        self._about = self.metadata = read_sealed(path)
        _require_selector_support(path)
        self._session = create_session(path, session_options(threads), None, provider)
        super().__init__(tuple(self._about["bits"]), tuple(self._about["input_shape"]))
        trim_heap()
        self.set_bits(self.bits if bits is None else max(bits, default=self.bits))

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        self.check_bits(bits)
        options, feeds = session_options(self.threads), {SELECTOR_INPUT: _selection(bits)}
        kernels = profile_kernels(self._path, options, None, self.input_shape, self.device, feeds)
        return _precision(self._about, self._about["grid_bits"][str(bits)], kernels)

    def close(self) -> None:
        """Drops the session."""
        super().close()
        self._session = None

    def _build(self, bits: int) -> SessionEngine:
        # The one session is counted once, at the highest bit-width.
        size = self._path.stat().st_size if bits == max(self.available_bits) else 0
        return SessionEngine(self._session, size, {SELECTOR_INPUT: _selection(bits)})


def open_file(path: Path, **options: Any) -> OnnxFileRuntime | OnnxSelectorRuntime:
    """Opens one exported ``.onnx`` file, with or without a selector."""
    single = isinstance(read_sealed(path)["bits"], int)
    return OnnxFileRuntime(path, **options) if single else OnnxSelectorRuntime(path, **options)


def open_files(bundle: Bundle, bits: Sequence[int] | None, flavour: str | None, **options: Any) -> Runtime:
    """Opens the ONNX files of a bundle.

    Args:
        bundle: what `emqdeploy export` wrote.
        bits: bit-widths to keep ready; None keeps all.
        flavour: of the artefacts, for example ``packed`` or ``if``; None takes the first one with files per bit-width.
        **options: of the adapter.
    """
    artefacts = [artefact for artefact in bundle.artefacts if artefact.target == "onnx" and artefact.role != "baseline"]
    flavours = list(dict.fromkeys(artefact.flavour for artefact in artefacts))
    if not artefacts:
        raise UsageError(
            f"{bundle.path} holds no ONNX artefacts and no checkpoint to build sessions from; add them with: emqdeploy"
            " export --target onnx"
        )
    if flavour is None:
        flavour = next((artefact.flavour for artefact in artefacts if artefact.role == "width"), flavours[0])
    chosen = [artefact for artefact in artefacts if artefact.flavour == flavour]
    if not chosen:
        raise UsageError(
            f"{bundle.path} holds no ONNX artefacts of flavour {flavour!r}; it holds {', '.join(flavours)}"
        )
    return open_artefacts(bundle, chosen, bits=bits, **options)


def open_artefacts(bundle: Bundle, chosen: Sequence[Artefact], **options: Any) -> Runtime:
    """Opens artefacts of one flavour: the newest selector, or the files of all bit-widths."""
    if chosen[-1].role == "selector":
        return OnnxSelectorRuntime(bundle.file_of(chosen[-1]), **options)
    return OnnxFileRuntime({artefact.bits[0]: bundle.file_of(artefact) for artefact in chosen}, **options)


def read_sealed(path: Path) -> dict[str, Any]:
    """Checks a file's seal and returns its metadata."""
    data = read_model_file(path)
    check_seal(path, data)
    return read_metadata(data)


def _selection(bits: int) -> NDArray[np.int64]:
    return np.array([bits], np.int64)


def _precision(metadata: dict[str, Any], grid_bits: dict[str, int], kernels: dict[str, str]) -> list[LayerPrecision]:
    """Joins what a file says about its weights with the kernels that ran."""
    stored = metadata["stored_as"]
    return [LayerPrecision(name, bits, stored, computed_as(kernels.get(name))) for name, bits in grid_bits.items()]

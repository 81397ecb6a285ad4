"""What every runtime adapter offers, and how to open one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.grid import Floats
from emqdeploy.registry import Registry


@dataclass(frozen=True)
class LayerPrecision:
    """What a layer is, honestly: its grid, its bytes and its kernel.

    Attributes:
        grid_bits: bits of the weight grid, which decide the accuracy.
        stored_as: the type in which the artefact keeps the weights.
        computed_as: the type in which the runtime multiplies, read from the kernels that really ran.
    """

    name: str
    grid_bits: int
    stored_as: str
    computed_as: str


class Runtime(Protocol):
    """A network that runs here and switches its bit-width.

    `set_bits` may be called from any thread: a request keeps the bit-width that it started with.
    """

    name: str
    available_bits: tuple[int, ...]
    bits: int

    def set_bits(self, bits: int) -> None:
        """Switches to a bit-width; raises a one-sentence error that lists the available ones."""

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)`` for normalised images ``(N, C, H, W)``."""

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer at one bit-width."""

    def close(self) -> None:
        """Releases what the runtime holds."""


class RuntimeBase:
    """Checks and bookkeeping that the adapters share."""

    def __init__(self, available_bits: tuple[int, ...], input_shape: tuple[int, ...]) -> None:
        self.available_bits = available_bits
        self.input_shape = tuple(input_shape)
        self.bits = max(available_bits)

    def check_bits(self, bits: int) -> None:
        """Raises for a bit-width that this runtime does not have."""
        if bits not in self.available_bits:
            have = ", ".join(map(str, self.available_bits))
            raise UsageError(f"no {bits}-bit network here; available bit-widths: {have}")

    def check_images(self, images: Floats) -> None:
        """Raises for a batch that does not fit the network."""
        if images.ndim != 4 or images.shape[1:] != self.input_shape or images.dtype != np.float32:
            expected = ", ".join(map(str, self.input_shape))
            raise UsageError(
                f"images have shape {tuple(images.shape)} and type {images.dtype}; the network takes float32"
                f" (N, {expected})"
            )

    def close(self) -> None:
        """Releases what the runtime holds."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


RUNTIMES: Registry[Callable[..., Any]] = Registry("runtime")
"""Adapters by name; each takes a `Checkpoint` and keyword options."""


def open_runtime(checkpoint: Checkpoint, runtime: str = "onnxruntime", **options: Any) -> Runtime:
    """Opens a checkpoint in a runtime.

    Args:
        checkpoint: what to run.
        runtime: ``onnxruntime`` or ``torch``.
        **options: of the adapter: ``bits`` (the bit-widths wanted), ``threads``.
    """
    from emqdeploy.runtimes import onnx_runtime, torch_reference  # noqa: F401  (registers the adapters)

    adapter: Runtime = RUNTIMES[runtime](checkpoint, **options)
    return adapter


def read_model_file(path: Path) -> bytes:
    """Reads an artefact, or raises one sentence."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EmqError(f"cannot read {path}: {error.strerror}; name an existing file") from error


def precision_summary(layers: list[LayerPrecision]) -> dict[str, Any]:
    """What a network is stored and computed as, and how many of its layers run as integer kernels."""
    integer = [layer for layer in layers if layer.computed_as == "int8"]
    others = [layer for layer in layers if layer.computed_as != "int8"]
    computed = "int8" if not others else f"int8 ({len(integer)} of {len(layers)} layers), else {others[0].computed_as}"
    return {
        "stored_as": Counter(layer.stored_as for layer in layers).most_common(1)[0][0],
        "computed_as": computed,
        "integer_layers": len(integer),
        "layers": len(layers),
        "float_layers": [layer.name for layer in others],
        "per_layer": [asdict(layer) for layer in layers],
    }

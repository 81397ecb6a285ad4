"""A network that runs here and switches its bit-width: what every runtime offers, and how to open one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.grid import Floats
from emqdeploy.registry import Registry
from emqdeploy.runtimes.residency import Active, Engine, Residency, parse_policy

if TYPE_CHECKING:
    from typing import Self

    from emqdeploy.bundle import Bundle
    from emqdeploy.checkpoint import Checkpoint
    from emqdeploy.data import Preprocessing

_CLOSED = "this runtime is closed; open it again"


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


class Runtime(ABC):
    """A network that runs here and switches its bit-width; every method may be called from any thread.

    A request keeps the bit-width that it started with, whatever others switch to meanwhile, so each output is exactly
    that of one bit-width.

    Args:
        available_bits: the bit-widths that it can have.
        input_shape: ``(C, H, W)`` of one image.
        bits: the bit-widths to build at once; the highest one is in use first.
        residency: ``all``, ``lru:N`` or ``memory:MB``: what stays in memory, see `emqdeploy.runtimes.residency`.

    Attributes:
        name: of the runtime.
        device: what computes, in the runtime's own words.
        metadata: what the bundle or checkpoint says about the network; empty where it was not opened by `from_bundle`.

    Example:
        >>> from emqdeploy.runtimes import Runtime
        >>> with Runtime.from_bundle("runs/digits-resnet8-001/bundle") as network:  # doctest: +SKIP
        ...     network.set_bits(4)
        ...     logits = network.run(network.preprocessing.load_image("digit.png"))
    """

    name: ClassVar[str]
    device: str = "cpu"
    metadata: Mapping[str, Any] = MappingProxyType({})

    def __init__(
        self,
        available_bits: Sequence[int],
        input_shape: Sequence[int],
        bits: Sequence[int] | None = None,
        residency: str = "all",
    ) -> None:
        self.available_bits = tuple(sorted(available_bits))
        self.input_shape = tuple(input_shape)
        self._residency: Residency[Any] = Residency(self._build, parse_policy(residency), _CLOSED)
        wanted = self.available_bits if bits is None else tuple(bits)
        for width in wanted:
            self.check_bits(width)
        if not wanted:
            raise UsageError("no bit-width was asked for; give at least one, or None for all")
        first = max(wanted)
        self._residency.switch(first)
        # A policy that keeps fewer than all starts with one: the others would be built only to be given back.
        if residency == "all":
            for width in sorted(set(wanted) - {first}, reverse=True):
                self._residency.get(width)

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        runtime: str = "onnxruntime",
        bits: int | Sequence[int] | None = None,
        residency: str = "all",
        threads: int | None = None,
        **options: Any,
    ) -> Runtime:
        """Opens what `emqdeploy export` wrote, or a checkpoint; needs no torch, except for the runtime of that name.

        Args:
            path: the bundle's directory; a run, an ``.emq`` or one exported ``.onnx`` file will do as well.
            runtime: ``onnxruntime``, ``openvino``, ``tensorrt`` or ``torch``.
            bits: the bit-width, or those to keep ready; None keeps every exported one. Others of the bundle are built
                when they are asked for.
            residency: ``all``, ``lru:N`` or ``memory:MB``.
            threads: threads inside an operator; None leaves that to the runtime.
            **options: of the adapter, for example ``flavour="if"`` or ``provider="cuda"``.

        Raises:
            EmqError: one sentence: a damaged bundle, a missing package, a bit-width that it does not have, an engine
                that was built for another device.
        """
        from emqdeploy.runtimes.source import open_network

        widths = (bits,) if isinstance(bits, int) else bits
        return open_network(Path(path), runtime, bits=widths, residency=residency, threads=threads, **options)

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input; of a network that was opened by `from_bundle`."""
        from emqdeploy.data import Preprocessing

        return Preprocessing.from_dict(self.metadata["preprocessing"])

    @property
    def classes(self) -> list[str]:
        """Class names, by index; of a network that was opened by `from_bundle`."""
        return list(self.metadata["classes"])

    @property
    def bits(self) -> int:
        """The bit-width in use."""
        return self._in_use().bits

    @property
    def resident_bits(self) -> tuple[int, ...]:
        """The bit-widths that switch at once."""
        return self._residency.resident

    def set_bits(self, bits: int) -> None:
        """Switches; a bit-width that is not resident is built first, one that is being prefetched is waited for.

        Raises:
            UsageError: the network has no such bit-width; the sentence lists those it has.
            EmqError: it cannot be built (in the background or now); what was in use stays in use.
        """
        self.check_bits(bits)
        self._residency.switch(bits)

    def prefetch(self, bits: int) -> None:
        """Starts to build a bit-width in the background and returns; a failure is raised by `set_bits`."""
        self.check_bits(bits)
        self._residency.prefetch(bits)

    def evict(self, bits: int) -> None:
        """Gives the memory of a resident bit-width back; the one in use stays."""
        self._residency.evict(bits)

    def run(self, images: Floats, bits: int | None = None) -> Floats:
        """Returns logits ``(N, classes)`` for normalised images, float32 ``(N, C, H, W)``.

        Args:
            images: the batch.
            bits: the bit-width of this request alone; None takes the one in use.
        """
        engine = self._engine(bits)
        self.check_images(images)
        logits: Floats = engine.run(images)
        return logits

    def __call__(self, images: Floats) -> Floats:
        """The same as `run` at the bit-width in use."""
        return self.run(images)

    @abstractmethod
    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer at one bit-width."""

    @abstractmethod
    def _build(self, bits: int) -> Engine:
        """Makes the engine of a bit-width; called by any thread."""

    def _engine(self, bits: int | None) -> Any:
        active = self._in_use()
        if bits is None or bits == active.bits:
            return active.engine
        self.check_bits(bits)
        return self._residency.get(bits)

    def _in_use(self) -> Active[Any]:
        active = self._residency.active
        if active is None:
            raise EmqError(_CLOSED)
        return active

    def check_bits(self, bits: int) -> None:
        """Raises for a bit-width that this runtime does not have."""
        if bits not in self.available_bits:
            have = ", ".join(map(str, self.available_bits))
            raise UsageError(f"no {bits}-bit network here; available bit-widths: {have}")

    def check_images(self, images: Floats) -> None:
        """Raises for a batch that does not fit the network."""
        if (
            not isinstance(images, np.ndarray)
            or images.ndim != 4
            or images.shape[1:] != self.input_shape
            or images.dtype != np.float32
            or not len(images)
        ):
            expected = ", ".join(map(str, self.input_shape))
            kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise UsageError(
                f"images have shape {np.shape(images)} and type {kind}; the network takes float32 (N, {expected}), N at"
                " least 1"
            )

    def close(self) -> None:
        """Releases what the runtime holds; requests in flight end as they began, later ones are refused."""
        self._residency.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


RUNTIMES: Registry[Callable[..., Any]] = Registry("runtime")
"""Adapters by name; each takes a `Checkpoint` and the options ``bits``, ``residency``, ``threads`` and its own."""

_ADAPTERS = ("onnx_runtime", "openvino_runtime", "tensorrt_runtime", "torch_reference")


def find_adapter(runtime: str) -> Any:
    """Returns the adapter class of a name; raises a sentence that lists the names."""
    import importlib

    for module in _ADAPTERS:
        importlib.import_module(f"emqdeploy.runtimes.{module}")
    return RUNTIMES[runtime]


def open_runtime(checkpoint: Checkpoint, runtime: str = "onnxruntime", **options: Any) -> Runtime:
    """Opens a checkpoint in a runtime.

    Args:
        checkpoint: what to run.
        runtime: its name in `RUNTIMES`.
        **options: of the adapter: ``bits`` (the bit-widths wanted), ``residency``, ``threads``.
    """
    adapter: Runtime = find_adapter(runtime)(checkpoint, **options)
    return adapter


def exported_bits(bundle: Bundle) -> tuple[int, ...]:
    """The bit-widths of all artefacts of a bundle, ascending."""
    return tuple(sorted({width for artefact in bundle.artefacts for width in artefact.bits}))


def wanted_bits(bundle: Bundle, bits: Sequence[int] | None) -> Sequence[int] | None:
    """The bit-widths that were asked for, else the exported ones, else all that there are."""
    return bits if bits is not None else exported_bits(bundle) or None


def bundled_checkpoint(bundle: Bundle, runtime: str) -> Checkpoint:
    """Loads the checkpoint that lies in a bundle, or raises one sentence."""
    from emqdeploy.checkpoint import load_checkpoint

    path = bundle.checkpoint_path
    if path is None:
        raise EmqError(f"{bundle.path} holds no checkpoint, which runtime {runtime!r} needs; export again")
    return load_checkpoint(path)


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
    computed = "int8"
    if others:
        part = f"int8 ({len(integer)} of {len(layers)} layers), else " if integer else ""
        computed = f"{part}{others[0].computed_as}"
    return {
        "stored_as": Counter(layer.stored_as for layer in layers).most_common(1)[0][0],
        "computed_as": computed,
        "integer_layers": len(integer),
        "layers": len(layers),
        "float_layers": [layer.name for layer in others],
        "per_layer": [asdict(layer) for layer in layers],
    }

"""A network that runs here and switches its child: what every runtime offers, and how to open one."""

from __future__ import annotations

import functools
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from math import isfinite
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar, cast

import numpy as np

from emqdeploy.data import Preprocessing
from emqdeploy.data.frames import Frames
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import Bundle, is_bundle
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child, ChildLike, find_child, in_order, select_children
from emqdeploy.format.emq import Checkpoint, load_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.levels import Levels
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.registry import Registry, load_package
from emqdeploy.runtimes.proof import Proof, naming
from emqdeploy.runtimes.residency import Active, Engine, Residency, parse_residency

if TYPE_CHECKING:
    from typing import Self

    from emqdeploy.runtimes.download import Download

_FLOAT32 = np.dtype(np.float32)
"""Made once: to compare a type with ``np.float32`` makes it anew each time, which a small network feels."""

_CLOSED = "this runtime is closed; open it again"


class Runtime(ABC):
    """A network that runs here and switches its child; every method may be called from any thread.

    A request keeps the child that it started with, whatever others switch to meanwhile, so each output is exactly that
    of one child. Wherever a child is asked for, its name or a short form (``4``, ``"4a8"``) will do.

    Args:
        available: the children that it can have.
        input_shape: ``(C, H, W)`` of one image.
        children: those to build at once; the widest one is in use first. None builds all.
        residency: ``all``, ``lru:N`` or ``memory:MB``: what stays in memory, see `emqdeploy.runtimes.residency`.

    Attributes:
        name: of the runtime.
        library: the Python module that it computes with; its memory is not the network's.
        targets: what of a bundle it runs, by the artefacts' targets.
        device: what computes, in the runtime's own words.
        check_finite: whether `run` refuses pixels that are infinite or not a number; off, because looking at every
            pixel takes a share of a tiny network's time.
        children: those that it can have, by ascending width.
        card: what the bundle or checkpoint says about the network; None where it was not opened by `from_bundle`.

    Example:
        >>> from emqdeploy.runtimes import Runtime
        >>> with Runtime.from_bundle("runs/digits-resnet8-001/bundle") as network:  # doctest: +SKIP
        ...     network.set_bits(4)
        ...     logits = network.run(network.preprocessing.load_image("digit.png"))
    """

    name: ClassVar[str]
    library: ClassVar[str]
    targets: ClassVar[tuple[str, ...]] = ()
    device: str = "cpu"
    check_finite: bool = False
    card: Card | None = None
    _proof: Proof | None = None

    def __init__(
        self,
        available: Iterable[Child],
        input_shape: Sequence[int],
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
    ) -> None:
        self.children = in_order(available)
        self.input_shape = tuple(input_shape)
        self._known: dict[tuple[type, ChildLike], Child] = {}
        self._residency: Residency[Any] = Residency(self._build, parse_residency(residency), _CLOSED)
        wanted = self.children if children is None else in_order(self._wanted(children))
        if not wanted:
            raise UsageError("no child was asked for; name at least one, or None for all")
        *others, first = wanted
        self._residency.switch(first)
        # A rule that keeps fewer than all starts with one: the others would be built only to be given back.
        if residency == "all":
            for child in reversed(others):
                self._residency.get(child)

    def _wanted(self, children: Sequence[ChildLike]) -> set[Child]:
        """The children that are meant; a text may name several, as on the command line."""
        found: set[Child] = set()
        for child in children:
            found.update(select_children(self.children, child) if isinstance(child, str) else (self.find(child),))
        return found

    @classmethod
    def from_bundle(
        cls,
        path: str | Path,
        runtime: str = "onnxruntime",
        bits: ChildLike | Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        **options: Any,
    ) -> Runtime:
        """Opens what `emqdeploy export` wrote, or a checkpoint; needs no torch, except for the runtime of that name.

        Args:
            path: the bundle's directory; a run, an ``.emq`` or one exported ``.onnx`` file will do as well.
            runtime: a name in `RUNTIMES`, such as ``onnxruntime`` or ``openvino``.
            bits: the child, or those to keep ready (weight widths, ``"2a4"``, ``"2-4"``); None keeps the exported ones.
                Others of the bundle are built when they are asked for.
            residency: ``all``, ``lru:N`` or ``memory:MB``.
            threads: threads inside an operator; None leaves that to the runtime.
            **options: of the adapter, for example ``flavour="if"`` or ``provider="cuda"``.

        Raises:
            EmqError: one sentence: a damaged bundle, a missing package, a child that it does not have, an engine that
                was built for another device.
        """
        children = (bits,) if isinstance(bits, (int, str, Child)) else bits
        return open_network(Path(path), runtime, children=children, residency=residency, threads=threads, **options)

    @staticmethod
    def from_url(url: str, runtime: str = "onnxruntime", **options: Any) -> Download:
        """Opens the base of what `emqdeploy split` wrote, on a web server, and grows while it serves: a `Download`."""
        from emqdeploy.runtimes.download import Download

        return Download(url, runtime, **options)

    @classmethod
    def why_not(cls) -> str | None:
        """Why this runtime cannot run here, in one sentence; None where its library is installed."""
        if importlib.util.find_spec(cls.library) is not None:
            return None
        return f"{cls.library} is not installed, which runtime {cls.name!r} needs; run: emqdeploy doctor"

    @classmethod
    def needs_proof(cls, levels: Levels) -> bool:
        """Whether its kernels may answer otherwise here than the network was trained, so that they are tried first.

        Args:
            levels: of the network, see `emqdeploy.format.levels`.
        """
        return False

    @property
    def unproven(self) -> str | None:
        """Why what this runtime needs to prove before it serves could not be proven here; None where all was."""
        return None if self._proof is None else self._proof.missing

    @classmethod
    @abstractmethod
    def open_bundle(cls, bundle: Bundle, children: Sequence[ChildLike] | None, **options: Any) -> Runtime:
        """Opens what a bundle holds for this runtime.

        Args:
            bundle: what `emqdeploy export` wrote.
            children: those to keep ready; None keeps the exported ones.
            **options: of the adapter.
        """

    @classmethod
    def open_file(cls, path: Path, **options: Any) -> Runtime:
        """Opens one exported ``.onnx`` file, where the runtime takes such files."""
        raise UsageError(
            f"{path} is one ONNX file, which runs in onnxruntime here, not in {cls.name!r}; name its bundle"
        )

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become the network's input; of a network that was opened by `from_bundle`."""
        return Preprocessing.of(self._opened_card.preprocessing)

    def preprocess(self, frames: Frames, channel_order: str = "rgb") -> Floats:
        """Returns what `run` takes for frames of a camera; needs neither Pillow nor OpenCV.

        Args:
            frames: one uint8 array (H, W, 3) or (H, W), an array (N, H, W, C), or a sequence of arrays of any sizes.
            channel_order: of the frames: ``rgb``, or ``bgr`` as OpenCV gives them.

        Returns:
            Inputs (N, C, H, W), float32.

        Raises:
            UsageError: one sentence: these are no such arrays.
        """
        return self._seen.prepare(frames, channel_order)

    @functools.cached_property
    def _seen(self) -> Preprocessing:
        return self.preprocessing

    @property
    def classes(self) -> list[str]:
        """Class names, by index; of a network that was opened by `from_bundle`."""
        return list(self._opened_card.classes)

    @property
    def _opened_card(self) -> Card:
        if self.card is None:
            raise EmqError("this runtime was opened without a card; open it with Runtime.from_bundle")
        return self.card

    @property
    def available_bits(self) -> tuple[int, ...]:
        """Weight widths of the children that have one for all layers, ascending."""
        return tuple(sorted({child.bits for child in self.children if child.uniform}))

    @property
    def child(self) -> Child:
        """The child in use."""
        return self._in_use().child

    @property
    def bits(self) -> int:
        """Weight width of the child in use."""
        return self.child.bits

    @property
    def resident(self) -> tuple[Child, ...]:
        """The children that switch at once."""
        return self._residency.resident

    def use(self, child: ChildLike) -> None:
        """Switches; a child that is not resident is built first, one that is being prefetched is waited for.

        Raises:
            UsageError: the network has no such child; the sentence lists those it has.
            EmqError: it cannot be built (in the background or now); what was in use stays in use.
        """
        self._residency.switch(self.find(child))

    def set_bits(self, bits: int) -> None:
        """The same as `use`, for a weight width."""
        self.use(bits)

    def prefetch(self, child: ChildLike) -> None:
        """Starts to build a child in the background and returns; a failure is raised by `use`."""
        self._residency.prefetch(self.find(child))

    def evict(self, child: ChildLike) -> None:
        """Gives the memory of a resident child back; the one in use stays."""
        self._residency.evict(self.find(child))

    def run(self, images: Floats, child: ChildLike | None = None) -> Floats:
        """Returns logits ``(N, classes)`` for normalised images, float32 ``(N, C, H, W)``.

        Args:
            images: the batch.
            child: of this request alone; None takes the one in use.
        """
        engine = self._engine(child)
        self.check_images(images)
        logits: Floats = engine.run(images)
        return logits

    def __call__(self, images: Floats) -> Floats:
        """The same as `run` at the child in use."""
        return self.run(images)

    def find(self, wanted: ChildLike) -> Child:
        """Returns the child that is meant; raises a sentence that lists those there are."""
        key = (type(wanted), wanted)
        try:
            child = self._known.get(key)
        except TypeError:  # not hashable
            return find_child(self.children, wanted)
        if child is None:
            child = self._known[key] = find_child(self.children, wanted)
        return child

    @abstractmethod
    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer at one child."""

    @abstractmethod
    def _build(self, child: Child) -> Engine:
        """Makes the engine of a child; called by any thread."""

    def _engine(self, child: ChildLike | None) -> Any:
        active = self._in_use()
        if child is None:
            return active.engine
        wanted = self.find(child)
        return active.engine if wanted is active.child else self._residency.get(wanted)

    def _in_use(self) -> Active[Any]:
        return self._residency.active or self._residency.in_use()

    def check_images(self, images: Floats) -> None:
        """Raises for a batch that does not fit the network, or that holds a pixel which is no number."""
        if (
            not isinstance(images, np.ndarray)
            or images.dtype != _FLOAT32
            or images.shape[1:] != self.input_shape
            or not len(images)
        ):
            expected = ", ".join(map(str, self.input_shape))
            kind = images.dtype if isinstance(images, np.ndarray) else type(images).__name__
            raise UsageError(
                f"images have shape {np.shape(images)} and type {kind}; the network takes float32 (N, {expected}), N at"
                " least 1"
            )
        if not self.check_finite:
            return
        flat = images.ravel()
        # A sum of squares is finite unless a pixel is not, or is huge: half the time of looking at each.
        if not isfinite(flat.dot(flat)) and not np.isfinite(flat).all():
            raise UsageError(
                "images hold a pixel that is infinite or not a number, which no code stands for; mend them"
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
"""Adapters by name; each takes a `Checkpoint` and the options ``children``, ``residency``, ``threads`` and its own."""


def find_adapter(runtime: str) -> Any:
    """Returns the adapter class of a name; raises a sentence that lists the names."""
    load_package("emqdeploy.runtimes.adapters")
    return RUNTIMES[runtime]


def open_runtime(checkpoint: Checkpoint, runtime: str = "onnxruntime", **options: Any) -> Runtime:
    """Opens a checkpoint in a runtime.

    Args:
        checkpoint: what to run.
        runtime: its name in `RUNTIMES`.
        **options: of the adapter: ``children`` (those wanted), ``residency``, ``threads``.
    """
    adapter: Runtime = find_adapter(runtime)(checkpoint, **options)
    return adapter


def open_network(path: Path, runtime: str, **options: Any) -> Runtime:
    """Opens a bundle, one exported file, a checkpoint or a run, with every child of a checkpoint at hand.

    Args:
        path: what to open.
        runtime: its name in `RUNTIMES`.
        **options: of the adapter.
    """
    adapter = find_adapter(runtime)
    network: Runtime
    if path.suffix == ".onnx":
        return cast(Runtime, adapter.open_file(path, **options))
    if is_bundle(path):
        bundle = Bundle.open(path)
        with naming(path):
            network = adapter.open_bundle(bundle, **options)
        network.card = bundle.card
        return network
    checkpoint = load_checkpoint(find_checkpoint(path))
    with naming(path):
        network = adapter(checkpoint, **options)
    network.card = checkpoint.card
    return network


def wanted_children(bundle: Bundle, children: Sequence[ChildLike] | None) -> Sequence[ChildLike] | None:
    """The children that were asked for, else the exported ones, else all that there are."""
    return children if children is not None else bundle.exported or None


def loader_of(bundle: Bundle, runtime: str) -> Callable[[], Checkpoint] | None:
    """What loads the checkpoint that lies in a bundle; None where none does."""
    return None if bundle.checkpoint is None else functools.partial(bundled_checkpoint, bundle, runtime)


def bundled_checkpoint(bundle: Bundle, runtime: str) -> Checkpoint:
    """Loads the checkpoint that lies in a bundle, or raises one sentence."""
    name = bundle.checkpoint
    if name is None:
        raise EmqError(f"{bundle.path} holds no checkpoint, which runtime {runtime!r} needs; export again")
    return load_checkpoint(bundle.path / name, sha256=bundle.files[name].sha256)

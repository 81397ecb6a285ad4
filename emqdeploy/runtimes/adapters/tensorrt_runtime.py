"""The TensorRT adapter, classic and RTX by one code path: engines stay resident and share one scratch buffer.

An engine belongs to the device, the compute capability and the version that it was built for, so that is compared
before anything is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import CHILD, INPUT, SELECTOR, Artefact, Bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.levels import Levels
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.selector import SELECTOR_INPUT, selection, selector_values
from emqdeploy.graph.tensorrt_flavours import CLASSIC, MODULES, installed_flavour, load_tensorrt, quiet_logger
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.base import RUNTIMES, Runtime, loader_of
from emqdeploy.runtimes.proof import Proof
from emqdeploy.runtimes.tensorrt_engines import check_artefact, flavour_of, inspect_engine, open_engine, tensorrt_here

_LOGITS = CLASSIFICATION.output


class _Shared:
    """What the engines of one runtime share: TensorRT itself, the stream, and memory that one of them uses at a time.

    Engines run one after the other: two in parallel would each need a scratch buffer of their own, and a GPU gains
    nothing from it at batch 1.
    """

    def __init__(self, trt: Any) -> None:
        self.trt = trt
        self.lock = threading.Lock()
        self.stream = cuda.Stream()
        self.logger = quiet_logger(trt)
        self.runtime = trt.Runtime(self.logger)
        self._buffers: dict[str, cuda.Buffer] = {}

    def buffer(self, name: str, size_bytes: int) -> cuda.Buffer:
        """Returns memory of at least a size; the lock is held."""
        held = self._buffers.get(name)
        if held is None or held.size_bytes < size_bytes:
            held = self._buffers[name] = cuda.Buffer(size_bytes)
        return held


class _Engine:
    """An engine and its execution context, which owns no scratch memory."""

    def __init__(self, shared: _Shared, data: bytes, name: str) -> None:
        trt = shared.trt
        engine = open_engine(trt, shared.runtime, data, name)
        self.shared, self.engine = shared, engine
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.scratch_bytes = int(engine.device_memory_size_v2)
        self.size_bytes = len(data)
        self.largest = int(next(iter(engine.get_tensor_profile_shape(INPUT, 0)[-1])))
        self.classes = int(tuple(engine.get_tensor_shape(_LOGITS))[-1])
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.selector_on_host = SELECTOR_INPUT in names and (
            engine.get_tensor_location(SELECTOR_INPUT) == trt.TensorLocation.HOST
        )

    def run(self, images: Floats, value: int | None) -> Floats:
        """Returns logits; a batch beyond the engine's largest is cut into pieces.

        Args:
            images: the batch.
            value: of the selector's input, None where the engine has none.
        """
        starts = range(0, len(images), self.largest)
        return np.concatenate([self._run(images[start : start + self.largest], value) for start in starts])

    def _run(self, images: Floats, value: int | None) -> Floats:
        shared, context = self.shared, self.context
        images = np.ascontiguousarray(images)
        chosen = None if value is None else selection(value)[SELECTOR_INPUT]
        logits = np.empty((len(images), self.classes), np.float32)
        with shared.lock:
            scratch = shared.buffer("scratch", self.scratch_bytes)
            context.set_device_memory(scratch.address, scratch.size_bytes)
            inputs, outputs = shared.buffer(INPUT, images.nbytes), shared.buffer(_LOGITS, logits.nbytes)
            shared.stream.upload(images, inputs)
            context.set_input_shape(INPUT, images.shape)
            context.set_tensor_address(INPUT, inputs.address)
            context.set_tensor_address(_LOGITS, outputs.address)
            if chosen is not None:
                context.set_tensor_address(SELECTOR_INPUT, self._selection_address(chosen))
            if not context.execute_async_v3(shared.stream.handle):
                raise EmqError(f"TensorRT could not run a batch of shape {images.shape}: {shared.logger.why()}")
            shared.stream.download(outputs, logits)
            shared.stream.wait()
        return logits

    def _selection_address(self, chosen: np.ndarray) -> int:
        if self.selector_on_host:
            return int(chosen.ctypes.data)
        buffer = self.shared.buffer(SELECTOR_INPUT, chosen.nbytes)
        self.shared.stream.upload(chosen, buffer)
        return buffer.address


class _Choice:
    """One child of an engine."""

    def __init__(self, engine: _Engine, value: int | None, size_bytes: int) -> None:
        self.engine, self.value, self.size_bytes = engine, value, size_bytes

    def run(self, images: Floats) -> Floats:
        return self.engine.run(images, self.value)


@RUNTIMES.register("tensorrt")
class TensorRtRuntime(Runtime):
    """Runs the engines of a bundle, or its selector engine.

    Args:
        bundle: with engines of one flavour of TensorRT.
        artefacts: one engine per child, or one selector.
        children: those to load at once; None loads all.
        residency: what stays in memory, see `Runtime`.
        threads: accepted for symmetry; a GPU has its own.
        prove: compare each child with the integer reference before it serves, see `emqdeploy.runtimes.proof`.

    Raises:
        EmqError: there is no GPU, TensorRT is not installed, or an engine was built for something else.
    """

    name = "tensorrt"
    library = MODULES[installed_flavour() or CLASSIC]
    targets = tuple(MODULES)

    def __init__(
        self,
        bundle: Bundle | Checkpoint,
        artefacts: Sequence[Artefact] = (),
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        prove: bool = False,
    ) -> None:
        if isinstance(bundle, Checkpoint):
            raise UsageError(
                "TensorRT runs engines, not checkpoints; build them with emqdeploy export --target tensorrt and open"
                " the bundle"
            )
        self._bundle = bundle
        self._artefacts = {child: artefact for artefact in artefacts for child in bundle.children_of(artefact)}
        trt = load_tensorrt(flavour_of(artefacts[0]))
        for artefact in artefacts:
            check_artefact(artefact)
        self.device = f"{cuda.device_name()}, compute capability {cuda.compute_capability()}"
        if prove and self.needs_proof(bundle.card.levels):
            self._proof = Proof(self.name, self.library, self.device, loader_of(bundle, self.name))
        self._shared = _Shared(trt)
        self._lock = threading.Lock()
        self._selector: _Engine | None = None
        super().__init__(self._artefacts, bundle.card.input_shape, children, residency)

    @classmethod
    def why_not(cls) -> str | None:
        """Needs either flavour of TensorRT, and a GPU."""
        return tensorrt_here()

    @classmethod
    def open_bundle(
        cls, bundle: Bundle, children: Sequence[ChildLike] | None, flavour: str | None = None, **options: Any
    ) -> TensorRtRuntime:
        """Opens the engines of a bundle.

        Args:
            bundle: what `emqdeploy export` wrote.
            children: those to load at once; None loads all.
            flavour: ``if`` for the selector engine; None takes an engine per child.
            **options: of the adapter.
        """
        engines = [artefact for artefact in bundle.artefacts if artefact.target in cls.targets]
        if flavour is not None:
            engines = [artefact for artefact in engines if artefact.flavour == flavour]
            # One selector at a time: the newest, built for whichever GPUs.
            engines = [one for one in engines if one.role == CHILD or one.children == engines[-1].children]
        else:
            engines = [artefact for artefact in engines if artefact.role == CHILD]
        if not engines:
            which = f" of flavour {flavour!r}" if flavour else ""
            raise UsageError(
                f"{bundle.path} holds no TensorRT engines{which}; build them on this device with: emqdeploy export"
                f" {bundle.path} --target tensorrt"
            )
        return cls(bundle, _for_this_device(engines), children, **{"prove": True, **options})

    @classmethod
    def needs_proof(cls, levels: Levels) -> bool:
        """Its builder chooses kernels by their speed, on each GPU anew."""
        return True

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer; what computes it is read from the engine, ``unknown`` where the engine does not say."""
        child = self.find(child)
        layers = self._artefacts[child].layers
        kernels = inspect_engine(self._shared.trt, self._engine(child).engine.engine, [layer.name for layer in layers])
        return [LayerPrecision(one.name, one.grid_bits, one.stored_as, *kernels[one.name]) for one in layers]

    def close(self) -> None:
        """Drops the engines and their memory."""
        super().close()
        self._selector = None

    def _build(self, child: Child) -> _Choice:
        choice = self._opened(child)
        if self._proof is not None:
            self._proof(child, [self._artefacts[child].sha256.encode()], choice.run)
        return choice

    def _opened(self, child: Child) -> _Choice:
        artefact = self._artefacts[child]
        if artefact.role != SELECTOR:
            engine = self._load(artefact)
            return _Choice(engine, None, engine.size_bytes)
        with self._lock:
            if self._selector is None:
                self._selector = self._load(artefact)
        values = selector_values(self._bundle.children_of(artefact))
        # The one engine is counted once, at the widest child.
        return _Choice(self._selector, values[child], self._selector.size_bytes if child == self.children[-1] else 0)

    def _load(self, artefact: Artefact) -> _Engine:
        return _Engine(self._shared, self._bundle.content_of(artefact), str(self._bundle.path / artefact.file))


def _for_this_device(engines: Sequence[Artefact]) -> list[Artefact]:
    """Of several engines for the same children, the one for the GPU that is here; the newest where none is for it."""
    here = cuda.compute_capability() if len({one.children for one in engines}) < len(engines) else None
    chosen: dict[tuple[str, ...], Artefact] = {}
    for artefact in engines:
        held = chosen.get(artefact.children)
        if held is None or _is_for(artefact, here) or not _is_for(held, here):
            chosen[artefact.children] = artefact
    return list(chosen.values())


def _is_for(artefact: Artefact, capability: str | None) -> bool:
    wanted = artefact.built_for.get("compute_capability")
    return capability in (wanted if isinstance(wanted, list | tuple) else [wanted])

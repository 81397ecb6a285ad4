"""The TensorRT adapter, classic and RTX by one code path: engines stay resident and share one scratch buffer.

An engine belongs to the device, the compute capability and the version that it was built for, so that is compared
before anything is loaded.
"""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.grid import Floats
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.base import RUNTIMES, LayerPrecision, Runtime

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
"""Python module of each flavour of TensorRT, by the name that a manifest uses."""

EXTRAS = {"tensorrt": "tensorrt-classic", "tensorrt-rtx": "tensorrt"}
"""The extra of emqdeploy that installs each."""

IMAGES, LOGITS, SELECTOR_INPUT = "images", "logits", "bits"


def load_tensorrt(flavour: str) -> Any:
    """Imports a flavour of TensorRT, or raises the sentence that says how to install it."""
    if flavour not in MODULES:
        raise UsageError(f"unknown TensorRT {flavour!r}; known: {', '.join(MODULES)}")
    return require(MODULES[flavour], EXTRAS[flavour])


def check_built_for(built_for: Mapping[str, Any], here: Mapping[str, str], name: str) -> None:
    """Raises one sentence unless an engine was built for what is here.

    Args:
        built_for: of the manifest: ``runtime``, ``version`` and ``compute_capability`` (one, or a list).
        here: the same three of this machine.
        name: of the engine, for the message.
    """
    again = "build it again on this machine with: emqdeploy export --target tensorrt"
    for key, what in (("runtime", "runtime"), ("version", "version"), ("compute_capability", "compute capability")):
        wanted = built_for.get(key)
        allowed = [str(entry) for entry in (wanted if isinstance(wanted, list | tuple) else [wanted])]
        if wanted is not None and here[key] not in allowed:
            raise EmqError(f"{name} was built for {what} {' or '.join(allowed)}, here is {here[key]}; {again}")


def quiet_logger(trt: Any) -> Any:
    """Returns a logger that keeps TensorRT's last error, for our own sentence, and prints nothing."""

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.last = "it does not say why"

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.last = message.strip().splitlines()[0]

    return Logger()


def deserialize(trt: Any, runtime: Any, data: bytes, name: str) -> Any:
    """Opens an engine, or raises one sentence."""
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EmqError(
            f"TensorRT {trt.__version__} cannot load {name} ({runtime.logger.last}); it is damaged or of another"
            " version, export it again"
        )
    return engine


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
        engine = shared.runtime.deserialize_cuda_engine(data)
        if engine is None:
            raise EmqError(
                f"TensorRT {trt.__version__} cannot load {name}, it is damaged or of another version; export again"
            )
        self.shared, self.engine = shared, engine
        self.context = engine.create_execution_context(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        self.scratch_bytes = int(engine.device_memory_size_v2)
        self.size_bytes = len(data)
        self.largest = int(next(iter(engine.get_tensor_profile_shape(IMAGES, 0)[-1])))
        self.classes = int(tuple(engine.get_tensor_shape(LOGITS))[-1])
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        self.selector = SELECTOR_INPUT in names
        self.selector_on_host = self.selector and (
            engine.get_tensor_location(SELECTOR_INPUT) == trt.TensorLocation.HOST
        )

    def run(self, images: Floats, bits: int) -> Floats:
        """Returns logits; a batch beyond the engine's largest is cut into pieces."""
        parts = [self._run(images[start : start + self.largest], bits) for start in range(0, len(images), self.largest)]
        return np.concatenate(parts)

    def _run(self, images: Floats, bits: int) -> Floats:
        shared, context = self.shared, self.context
        images = np.ascontiguousarray(images)
        selection = np.array([bits], np.int64)
        logits = np.empty((len(images), self.classes), np.float32)
        with shared.lock:
            scratch = shared.buffer("scratch", self.scratch_bytes)
            context.set_device_memory(scratch.address, scratch.size_bytes)
            inputs, outputs = shared.buffer(IMAGES, images.nbytes), shared.buffer(LOGITS, logits.nbytes)
            shared.stream.upload(images, inputs)
            context.set_input_shape(IMAGES, images.shape)
            context.set_tensor_address(IMAGES, inputs.address)
            context.set_tensor_address(LOGITS, outputs.address)
            if self.selector:
                context.set_tensor_address(SELECTOR_INPUT, self._selection_address(selection))
            if not context.execute_async_v3(shared.stream.handle):
                raise EmqError(f"TensorRT could not run a batch of shape {images.shape}: {shared.logger.last}")
            shared.stream.download(outputs, logits)
            shared.stream.wait()
        return logits

    def _selection_address(self, selection: np.ndarray) -> int:
        if self.selector_on_host:
            return int(selection.ctypes.data)
        buffer = self.shared.buffer(SELECTOR_INPUT, selection.nbytes)
        self.shared.stream.upload(selection, buffer)
        return buffer.address

    def layer_types(self) -> dict[str, str]:
        """Reads from the engine itself in which type each of its layers computes, by name."""
        inspector = self.engine.create_engine_inspector()
        text = inspector.get_engine_information(self.shared.trt.LayerInformationFormat.JSON)
        return inspected_types(text)


class _Width:
    """One bit-width of an engine."""

    def __init__(self, engine: _Engine, bits: int, size_bytes: int) -> None:
        self.engine, self.bits, self.size_bytes = engine, bits, size_bytes

    def run(self, images: Floats) -> Floats:
        return self.engine.run(images, self.bits)


@RUNTIMES.register("tensorrt")
class TensorRtRuntime(Runtime):
    """Runs the engines of a bundle, or its selector engine.

    Args:
        bundle: with engines of one flavour of TensorRT.
        artefacts: one engine per bit-width, or one selector.
        bits: bit-widths to load at once; None loads all.
        residency: what stays in memory, see `Runtime`.
        threads: accepted for symmetry; a GPU has its own.

    Raises:
        EmqError: there is no GPU, TensorRT is not installed, or an engine was built for something else.
    """

    name = "tensorrt"

    def __init__(
        self,
        bundle: Bundle | Checkpoint,
        artefacts: Sequence[Artefact] = (),
        bits: Sequence[int] | None = None,
        residency: str = "all",
        threads: int | None = None,
    ) -> None:
        if isinstance(bundle, Checkpoint):
            raise UsageError(
                "TensorRT runs engines, not checkpoints; build them with emqdeploy export --target tensorrt and open"
                " the bundle"
            )
        self._bundle = bundle
        self._artefacts = {width: artefact for artefact in artefacts for width in artefact.bits}
        trt = load_tensorrt(_flavour(artefacts[0]))
        for artefact in artefacts:
            check_built_for(artefact.built_for, _here(_flavour(artefact)), artefact.file)
        self.device = f"{cuda.device_name()}, compute capability {cuda.compute_capability()}"
        self._shared = _Shared(trt)
        self._lock = threading.Lock()
        self._selector: _Engine | None = None
        super().__init__(tuple(self._artefacts), tuple(bundle.input["shape"]), bits, residency)

    @classmethod
    def open_bundle(
        cls, bundle: Bundle, bits: Sequence[int] | None, flavour: str | None = None, **options: Any
    ) -> TensorRtRuntime:
        """Opens the engines of a bundle.

        Args:
            bundle: what `emqdeploy export` wrote.
            bits: bit-widths to load at once; None loads all.
            flavour: ``if`` or ``derive`` for the selector engine; None takes the engines per bit-width.
            **options: of the adapter.
        """
        engines = [artefact for artefact in bundle.artefacts if artefact.target in MODULES]
        if flavour is not None:
            engines = [artefact for artefact in engines if artefact.flavour == flavour][-1:]
        else:
            engines = [artefact for artefact in engines if artefact.role == "width"]
        if not engines:
            which = f" of flavour {flavour!r}" if flavour else ""
            raise UsageError(
                f"{bundle.path} holds no TensorRT engines{which}; build them with: emqdeploy export --target tensorrt"
            )
        return cls(bundle, _for_this_device(engines), bits, **options)

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; what computes it is read from the engine, ``unknown`` where the engine does not say."""
        self.check_bits(bits)
        types = self._engine(bits).engine.layer_types()
        return [
            LayerPrecision(layer["name"], layer["grid_bits"], layer["stored_as"], type_of(layer["name"], types))
            for layer in self._artefacts[bits].layers
        ]

    def close(self) -> None:
        """Drops the engines and their memory."""
        super().close()
        self._selector = None

    def _build(self, bits: int) -> _Width:
        artefact = self._artefacts[bits]
        if artefact.role != "selector":
            engine = self._load(artefact)
            return _Width(engine, bits, engine.size_bytes)
        with self._lock:
            if self._selector is None:
                self._selector = self._load(artefact)
        # The one engine is counted once, at the highest bit-width.
        return _Width(self._selector, bits, self._selector.size_bytes if bits == max(artefact.bits) else 0)

    def _load(self, artefact: Artefact) -> _Engine:
        path = self._bundle.file_of(artefact)
        return _Engine(self._shared, path.read_bytes(), str(path))


def tensorrt_here() -> str | None:
    """Why TensorRT cannot run here, in one sentence; None where it can."""
    if all(importlib.util.find_spec(module) is None for module in MODULES.values()):
        return 'TensorRT is not installed; run: pip install "emqdeploy[tensorrt]"'
    try:
        cuda.compute_capability()
    except EmqError as error:
        return str(error)
    return None


def built_elsewhere(artefact: Artefact) -> str | None:
    """Why an engine cannot be loaded here, in one sentence; None where it can."""
    try:
        check_built_for(artefact.built_for, _here(_flavour(artefact)), artefact.file)
    except EmqError as error:
        return str(error)
    return None


def _flavour(artefact: Artefact) -> str:
    return str(artefact.built_for.get("runtime", artefact.target))


def _here(flavour: str) -> dict[str, str]:
    return {
        "runtime": flavour,
        "version": str(load_tensorrt(flavour).__version__),
        "compute_capability": cuda.compute_capability(),
    }


def inspected_types(text: str) -> dict[str, str]:
    """Reads an engine's inspector output: by layer name, the type of the weights' and inputs' common arithmetic.

    A fused layer's name joins the names of what was fused into it.
    """
    types: dict[str, str] = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):  # the engine was built without details: names only
            continue
        formats = [str(entry.get("Format/Datatype", entry.get("Datatype", ""))) for entry in layer.get("Inputs", [])]
        if formats:
            types[str(layer.get("Name", ""))] = _arithmetic(formats[0])
    return types


def _arithmetic(format_: str) -> str:
    lowered = format_.lower()
    known = {"int8": "int8", "half": "float16", "fp16": "float16", "fp32": "float32", "float": "float32"}
    return next((name for word, name in known.items() if word in lowered), "unknown")


def type_of(layer: str, types: Mapping[str, str]) -> str:
    """The type of the fused layer whose name holds this layer's as a whole word."""
    for name, kind in types.items():
        if layer in name.replace("+", " ").replace("||", " ").split() or layer == name:
            return kind
    return "unknown"


def _for_this_device(engines: Sequence[Artefact]) -> list[Artefact]:
    """Of several engines for one bit-width, the one for the GPU that is here; the newest where none is for it."""
    here = cuda.compute_capability() if len({a.bits for a in engines}) < len(engines) else None
    chosen: dict[tuple[int, ...], Artefact] = {}
    for artefact in engines:
        held = chosen.get(artefact.bits)
        if held is None or _is_for(artefact, here) or not _is_for(held, here):
            chosen[artefact.bits] = artefact
    return list(chosen.values())


def _is_for(artefact: Artefact, capability: str | None) -> bool:
    wanted = artefact.built_for.get("compute_capability")
    return capability in (wanted if isinstance(wanted, list | tuple) else [wanted])

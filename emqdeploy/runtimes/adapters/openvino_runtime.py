"""The OpenVINO adapter: one compiled model per child, from the same graph and the same codes.

OpenVINO moves scales through the graph and rounds in its own way, so its answers are close to those of the integer
reference, not equal to them: `emqdeploy verify` says how close.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.bundle import CHILD, Bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.levels import FULL, Levels
from emqdeploy.format.precision import INT8, LayerPrecision
from emqdeploy.graph.openvino_rounding import keep_rounding
from emqdeploy.runtimes.base import RUNTIMES, Runtime, bundled_checkpoint, loader_of, wanted_children
from emqdeploy.runtimes.graph_sources import Graphs
from emqdeploy.runtimes.machine import saturates
from emqdeploy.runtimes.onnx_kernels import UNREAD, Arithmetic
from emqdeploy.runtimes.proof import Proof

CPU_SETTINGS: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
"""On processors that have bfloat16, OpenVINO would compute in it what is not quantized, without a word."""


class _CompiledEngine:
    """A compiled model; one request runs one batch at a time, so each thread takes an idle one."""

    def __init__(self, compiled: Any, size_bytes: int) -> None:
        self.compiled = compiled
        self.size_bytes = size_bytes
        self._idle: deque[Any] = deque()

    def run(self, images: Floats) -> Floats:
        try:
            request = self._idle.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        try:
            request.infer([images], share_inputs=True)
            logits: Floats = request.get_output_tensor(0).data.copy()
        except Exception as error:
            raise EmqError(f"OpenVINO could not run this batch: {_sentence(error)}") from error
        self._idle.append(request)
        return logits


@functools.cache
def shared_core() -> Any:
    """The one OpenVINO of this process; it is never destroyed before the process ends.

    Its CPU plugin gives the thread that loads it a stack for signals, and takes the memory back when it is destroyed.
    Where another thread did that, the next Ctrl-C found no stack and the process crashed.
    """
    return require("openvino", "openvino").Core()


@RUNTIMES.register("openvino")
class OpenVinoRuntime(Runtime):
    """Runs a checkpoint or the files of a bundle in OpenVINO.

    Args:
        source: the codes, or the graphs.
        children: those to keep resident from the start; None keeps all. Others are built when asked for.
        residency: what stays in memory, see `Runtime`.
        threads: threads inside an operator; None leaves that to OpenVINO.
        device: OpenVINO's name of it: ``CPU``, ``GPU``, ``NPU``.
        prove: compare each child with the integer reference before it serves, see `emqdeploy.runtimes.proof`; who
            compares it anyway need not.
        cache_dir: where OpenVINO keeps what it compiled, which makes later starts several times faster; None keeps
            nothing.
    """

    name = library = "openvino"
    targets = ("openvino",)

    def __init__(
        self,
        source: Checkpoint | Graphs,
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        device: str = "CPU",
        cache_dir: str | Path | None = None,
        prove: bool = True,
    ) -> None:
        self._core = shared_core()
        known = self._core.available_devices
        if device not in known:
            raise UsageError(
                f"OpenVINO finds no device {device!r} here; it finds {', '.join(known)}; choose one of these"
            )
        self._graphs = Graphs.of_checkpoint(source) if isinstance(source, Checkpoint) else source
        if self._graphs.levels == FULL and device == "CPU" and saturates():
            raise EmqError(
                "OpenVINO adds products in int16 on this processor, which has no VNNI, where this network's full levels"
                " do not fit; use --runtime onnxruntime, or quantize with --levels half"
            )
        self.device = device
        if prove and self.needs_proof(self._graphs.levels):
            self._proof = Proof(self.name, self.library, device, self._graphs.checkpoint)
        # One batch at a time with all threads: requests of other threads wait their turn instead of sharing cores.
        self._settings: dict[str, Any] = {**CPU_SETTINGS, "NUM_STREAMS": 1} if device == "CPU" else {}
        if threads is not None:
            self._settings["INFERENCE_NUM_THREADS"] = threads
        if cache_dir is not None:
            self._settings["CACHE_DIR"] = str(cache_dir)
        super().__init__(self._graphs.sources, self._graphs.input_shape, children, residency)

    @classmethod
    def open_bundle(cls, bundle: Bundle, children: Sequence[ChildLike] | None, **options: Any) -> OpenVinoRuntime:
        """Opens the OpenVINO artefacts of a bundle; without any, its checkpoint."""
        artefacts = [one for one in bundle.artefacts if one.target in cls.targets and one.role == CHILD]
        if artefacts:
            return cls(Graphs.of_artefacts(bundle, artefacts, loader_of(bundle, cls.name)), children, **options)
        return cls(bundled_checkpoint(bundle, cls.name), wanted_children(bundle, children), **options)

    @classmethod
    def needs_proof(cls, levels: Levels) -> bool:
        """Its transformations are many, and some have been wrong."""
        return True

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer; what computes it is read from the graph that OpenVINO runs."""
        child = self.find(child)
        kernels = executed_as(self._engine(child).compiled)
        return [
            LayerPrecision(layer.name, layer.grid_bits, layer.stored_as, *kernels.get(layer.name, UNREAD))
            for layer in self._graphs.layers[child]
        ]

    def _build(self, child: Child) -> _CompiledEngine:
        graph = self._graphs.sources[child]()
        parts = (_rounding(graph),) if isinstance(graph, bytes) else (graph.xml, graph.weights)
        size = sum(map(len, parts))
        try:
            model = self._core.read_model(*parts)
            compiled = self._core.compile_model(model, self.device, self._settings)
        except Exception as error:
            raise EmqError(f"OpenVINO cannot load child {child.name}: {_sentence(error)}") from error
        engine = _CompiledEngine(compiled, size)
        if self._proof is not None:
            self._proof(child, parts, engine.run)
        return engine


def _rounding(model: bytes) -> bytes:
    """A filled graph in the form in which OpenVINO rounds every tensor, as the exported artefacts have it."""
    onnx = require("onnx", "openvino")
    try:
        proto = onnx.load_from_string(model)
    except Exception as error:
        raise EmqError(f"OpenVINO cannot load a graph that is no ONNX model: {_sentence(error)}") from error
    keep_rounding(proto)
    data: bytes = proto.SerializeToString()
    return data


def executed_as(compiled: Any) -> dict[str, Arithmetic]:
    """Reads from a compiled model how each layer is computed, by the names of the layers fused into it."""
    found: dict[str, Arithmetic] = {}
    for node in compiled.get_runtime_model().get_ordered_ops():
        info = {key: getattr(value, "value", value) for key, value in node.get_rt_info().items()}
        if str(info.get("layerType")) in ("Convolution", "FullyConnected", "MatMul"):
            # Its own kernels say so in their names; a device that does not is reported by its type.
            kernel = str(info.get("primitiveType", ""))
            integer = kernel.lower().endswith(("i8", "u8"))
            computed: Arithmetic = (INT8, True) if integer else (str(info.get("runtimePrecision")), False)
            for name in str(info.get("originalLayersNames", "")).split(","):
                found[name.partition("/WithoutBiases")[0]] = computed
    return found


def _sentence(error: Exception) -> str:
    """The last line of OpenVINO's message says what was wrong; the ones before say where in its sources."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

"""The onnxruntime adapter: one session per bit-width, built from the codes in memory, kept resident.

onnxruntime packs weights when a session is created, so they must be constant by then; a network whose weights change
inside the graph runs 2.5 to 4 times slower. Switching between resident sessions is an assignment.
"""

from __future__ import annotations

import contextlib
import functools
import json
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, require
from emqdeploy.grid import Codes, Floats
from emqdeploy.runtimes.base import RUNTIMES, LayerPrecision, RuntimeBase

INTEGER_KERNELS = ("QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "ConvInteger", "MatMulInteger")
_LAYER_KERNELS = (*INTEGER_KERNELS, "Conv", "FusedConv", "Gemm", "FusedGemm", "MatMul", "FusedMatMul")


def session_options(threads: int | None = None, optimise: bool = True) -> Any:
    """Options that every session of ours shares.

    Args:
        threads: threads inside an operator; None lets onnxruntime use every core.
        optimise: False runs the graph as written, in float between the quantizers.
    """
    ort = require("onnxruntime", "runtime")
    _share_allocator()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A waiting thread must not spin: another session, or the caller's camera loop, needs the core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


@functools.cache
def _share_allocator() -> None:
    """Gives all sessions of this process one arena.

    With an arena each, the activations of the session that is switched to are never in the cache, and every session
    holds on to memory that only the running one needs; `benchmarks/switching.py` times the first output.
    """
    ort = require("onnxruntime", "runtime")
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    # Another library of this process may have registered one already; then that one is shared.
    with contextlib.suppress(Exception):
        ort.create_and_register_allocator(memory, None)


def create_session(model: bytes, options: Any, arrays: dict[str, Any] | None = None) -> Any:
    """Creates a session on the CPU, filling the open initializers of a skeleton with ``arrays``."""
    ort = require("onnxruntime", "runtime")
    if arrays is not None:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
    try:
        return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise EmqError(f"onnxruntime cannot load this model: {str(error).splitlines()[0]}") from error


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(RuntimeBase):
    """Runs a checkpoint in onnxruntime.

    Args:
        checkpoint: its codes stay in memory, so that any bit-width can be built at any time without the file.
        bits: bit-widths to keep resident from the start; None keeps every stored one. Others are built when asked for.
        threads: threads inside an operator; None uses every core.
        optimise: False keeps the graph as written (the float rung of parity).
        trace: also return the codes of these quantized tensors from `run_traced`.
    """

    name = "onnxruntime"

    def __init__(
        self,
        checkpoint: Checkpoint,
        bits: Sequence[int] | None = None,
        threads: int | None = None,
        optimise: bool = True,
        trace: Sequence[str] = (),
    ) -> None:
        super().__init__(checkpoint.network.widths, tuple(checkpoint.metadata["network"]["input_shape"]))
        self.threads = threads
        self.optimise = optimise
        self.trace = list(trace)
        self._network = checkpoint.network
        self._skeleton = _with_outputs(checkpoint.skeleton, self.trace) if trace else checkpoint.skeleton
        self._sessions: dict[int, Any] = {}
        resident = self.available_bits if bits is None else tuple(bits)
        for width in resident:
            self.check_bits(width)
            self._sessions[width] = self._build(width)
        self.set_bits(max(resident))

    @property
    def resident_bits(self) -> tuple[int, ...]:
        """The bit-widths that switch at once."""
        return tuple(sorted(self._sessions))

    def set_bits(self, bits: int) -> None:
        """Switches; a bit-width that is not resident is built from the codes in memory first."""
        session = self._sessions.get(bits)
        if session is None:
            self.check_bits(bits)
            session = self._sessions[bits] = self._build(bits)
        self._session, self.bits = session, bits

    def evict(self, bits: int) -> None:
        """Gives the memory of a resident bit-width back; the one in use stays."""
        if bits != self.bits:
            self._sessions.pop(bits, None)

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        session = self._session
        if session is None:
            raise EmqError("this runtime is closed; open the checkpoint again")
        self.check_images(images)
        logits: Floats = session.run(("logits",), {"images": images})[0]
        return logits

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every traced tensor."""
        logits, *codes = self._session.run(["logits", *self.trace], {"images": images})
        return logits, dict(zip(self.trace, codes, strict=True))

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        self.check_bits(bits)
        options = session_options(self.threads, self.optimise)
        arrays = self._network.initializers(bits)
        kernels = profile_kernels(self._skeleton, options, arrays, self.input_shape)
        return [
            LayerPrecision(
                name,
                layer.grid_bits(bits),
                "int8" if layer.pinned else f"{bits} bit-plane{'s' if bits > 1 else ''}",
                computed_as(kernels.get(name)),
            )
            for name, layer in self._network.layers.items()
        ]

    def close(self) -> None:
        """Drops every session."""
        self._sessions.clear()
        self._session = None

    def _build(self, bits: int) -> Any:
        options = session_options(self.threads, self.optimise)
        return create_session(self._skeleton, options, self._network.initializers(bits))


def computed_as(kernel: str | None) -> str:
    """The arithmetic of a kernel."""
    if kernel is None:
        return "unknown"
    return "int8" if kernel in INTEGER_KERNELS else "float32"


def profile_kernels(
    model: bytes, options: Any, arrays: dict[str, Any] | None, input_shape: tuple[int, ...]
) -> dict[str, str]:
    """Runs one inference under onnxruntime's profiler; returns the kernel that computed each layer, by layer name.

    A fused kernel carries the name of the operator that it replaced, with a suffix of onnxruntime's own.
    """
    with tempfile.TemporaryDirectory() as folder:
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = create_session(model, options, arrays)
        session.run(("logits",), {"images": np.zeros((1, *input_shape), np.float32)})
        events = json.loads(Path(session.end_profiling()).read_text())
    kernels: dict[str, str] = {}
    for event in events:
        operator = event.get("args", {}).get("op_name")
        if operator in _LAYER_KERNELS and event["name"].endswith("_kernel_time"):
            name = re.sub(
                r"(_quant|_nchwc|_nhwc|_token_\d+|/?QLinear\w*)*$", "", event["name"].removesuffix("_kernel_time")
            )
            kernels[name] = operator
    return kernels


def _with_outputs(skeleton: bytes, names: Sequence[str]) -> bytes:
    """The same graph with some uint8 values as further outputs."""
    onnx = require("onnx", "export")
    model = onnx.load_from_string(skeleton)
    for name in names:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None))
    data: bytes = model.SerializeToString()
    return data

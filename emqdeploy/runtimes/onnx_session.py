"""Sessions of onnxruntime: the options that all of ours share, and one sentence where one cannot be made or run."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.bundle import INPUT
from emqdeploy.format.grid import Floats
from emqdeploy.format.levels import FULL, HALF, Levels
from emqdeploy.format.onnx_messages import FLOAT, UINT8, load_model
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.graph.reference import VALUES_SUFFIX

PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}
"""What computes, by the name that a user gives."""


def session_options(
    threads: int | None = None, optimise: bool = True, external_folder: Path | None = None, levels: Levels = HALF
) -> Any:
    """Options that every session of ours shares.

    Args:
        threads: threads inside an operator; None lets onnxruntime use every core.
        optimise: False runs the graph as written, in float between the quantizers.
        external_folder: where files lie that a model given as bytes refers to.
        levels: those of the network, from its card.
    """
    ort = require("onnxruntime", "runtime")
    _share_allocator()
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_env_allocators", "1")
    # A waiting thread must not spin: another session, or the caller's camera loop, needs the core.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if levels == FULL:
        # Processors with AVX2 and without VNNI add two products in int16, where full levels do not fit; the kernels
        # that this asks for are slower there and exact. Others ignore it.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if external_folder is not None:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(external_folder))
    if threads is not None:
        if threads < 1:
            raise UsageError(f"threads is {threads}; give at least 1, or None for every core")
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


def check_provider(name: str) -> str:
    """Returns onnxruntime's own name of a provider that this build of it has.

    Raises:
        UsageError: the name is unknown.
        EmqError: the installed onnxruntime was built without it.
    """
    ort = require("onnxruntime", "runtime")
    if name not in PROVIDERS:
        known = ", ".join(PROVIDERS)
        raise UsageError(f"unknown provider {name!r}; known: {known}, and native for a checkpoint")
    have = ort.get_available_providers()
    if PROVIDERS[name] not in have:
        known = ", ".join(short for short, long in PROVIDERS.items() if long in have)
        raise EmqError(
            f"this onnxruntime has no {PROVIDERS[name]}, it has {known}; install onnxruntime-gpu or choose one of these"
        )
    return PROVIDERS[name]


def create_session(
    model: bytes | Path, options: Any, arrays: dict[str, Any] | None = None, provider: str = "cpu"
) -> Any:
    """Creates a session; what is not on the provider itself falls to the CPU, but the provider must be there.

    Args:
        model: a serialised ONNX model, or the file that holds one.
        options: from `session_options`.
        arrays: fill the open initializers of a skeleton.
        provider: a name in `PROVIDERS`.
    """
    ort = require("onnxruntime", "runtime")
    wanted = check_provider(provider)
    if arrays is not None:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
        options.add_external_initializers(list(arrays), values)
    source = str(model) if isinstance(model, Path) else model
    try:
        session = ort.InferenceSession(source, options, providers=list(dict.fromkeys([wanted, PROVIDERS["cpu"]])))
    except Exception as error:
        raise EmqError(f"onnxruntime cannot load this model: {str(error).splitlines()[0]}") from error
    if wanted not in session.get_providers():
        raise EmqError(
            f"onnxruntime did not start {wanted} and would compute on the CPU instead; check its driver and libraries,"
            " or choose provider cpu"
        )
    return session


class SessionEngine:
    """A session of one child.

    Args:
        session: of onnxruntime.
        size_bytes: what it keeps: the weights, packed.
        extra: inputs beside the images that stay the same.
    """

    def __init__(self, session: Any, size_bytes: int, extra: dict[str, Any] | None = None) -> None:
        self.session = session
        self.size_bytes = size_bytes
        self._extra = extra or {}

    def run(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        logits: Floats = self.run_outputs((CLASSIFICATION.output,), images)[0]
        return logits

    def run_outputs(self, names: Sequence[str], images: Floats) -> list[Any]:
        """Returns the named outputs of the graph."""
        try:
            outputs: list[Any] = self.session.run(names, {INPUT: images, **self._extra})
        except Exception as error:
            raise EmqError(f"onnxruntime could not run this batch: {str(error).splitlines()[0]}") from error
        return outputs


def with_outputs(model: bytes, names: Sequence[str]) -> bytes:
    """Returns the same graph with some codes, and float answers of layers, as further outputs."""
    made = load_model(model)
    for name in names:
        kind = FLOAT if name.endswith(VALUES_SUFFIX) else UINT8
        made.graph.output.add(name=name).type.tensor_type.elem_type = kind
    data: bytes = made.SerializeToString()
    return data

"""Building TensorRT engines: classic TensorRT 10 and 11 and TensorRT-RTX by one code path.

Networks are strongly typed: what the QDQ graph says is what is built, and no precision flag (TensorRT 11 removed them
all) is touched. Classic TensorRT builds for the GPU that it sees; TensorRT-RTX builds ahead of time for the compute
capabilities it is told, on any machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.files import atomic_write_bytes
from emqdeploy.graph.tensorrt_flavours import RTX, load_tensorrt, quiet_logger

DEFAULT_CAPABILITIES = ("8.6", "8.9", "12.0")
"""RTX 30, 40 and 50."""


@dataclass(frozen=True)
class Engine:
    """A serialised engine and where it may be loaded."""

    data: bytes
    built_for: dict[str, Any]


def build_engine(
    flavour: str,
    model: bytes,
    max_batch: int,
    capabilities: Sequence[str] = (),
    gpu: dict[str, str] | None = None,
) -> Engine:
    """Builds one engine.

    Args:
        flavour: of TensorRT, see `emqdeploy.graph.tensorrt_flavours`.
        model: the symmetric ONNX model, with inputs ``images`` and, for a selector, ``bits``.
        max_batch: the largest batch; the engine is optimised for batch 1.
        capabilities: compute capabilities for TensorRT-RTX, such as ``8.6``; all of `DEFAULT_CAPABILITIES` if empty.
        gpu: ``device`` and ``compute_capability`` of the GPU that classic TensorRT builds for.

    Raises:
        EmqError: the package is missing, or TensorRT refuses the graph; the sentence has its reason.
    """
    trt = load_tensorrt(flavour)
    log = quiet_logger(trt)
    try:
        builder = trt.Builder(log)
    except TypeError as error:
        raise EmqError(f"{flavour} cannot start here: {log.first or error}; check the NVIDIA driver") from error
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise EmqError(f"{flavour} does not take {_parser_error(parser)}; change that layer or use --target onnx")
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine can say later what it computes in
    config.add_optimization_profile(_profile(builder, network, max_batch))
    built_for: dict[str, Any] = {"runtime": flavour, "version": str(trt.__version__), "max_batch": max_batch}
    cache = None
    if flavour == RTX:
        chosen = list(capabilities or DEFAULT_CAPABILITIES)
        _set_capabilities(trt, config, chosen)
        built_for |= {"device": "NVIDIA RTX", "compute_capability": chosen}
    else:
        built_for |= gpu or {}
        cache = _timing_cache(config, [str(trt.__version__), str(gpu), hashlib.sha256(model).hexdigest()])
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EmqError(f"{flavour} cannot build the engine: {log.first or 'it gives no reason'}; use --target onnx")
    if cache is not None:
        _keep_timing_cache(config, cache)
    return Engine(bytes(plan), built_for)


def check_capabilities(capabilities: Sequence[str]) -> None:
    """Raises for a compute capability that the installed TensorRT-RTX does not build for."""
    trt = load_tensorrt(RTX)
    known = known_capabilities(trt)
    for capability in capabilities:
        if capability not in known:
            raise UsageError(
                f"--compute-capability is {capability!r}; TensorRT-RTX {trt.__version__} builds for {', '.join(known)}"
            )


def known_capabilities(trt: Any) -> list[str]:
    """The compute capabilities that TensorRT-RTX builds for, such as ``8.6``."""
    names = [name.removeprefix("SM") for name in dir(trt.ComputeCapability) if name.startswith("SM")]
    return [f"{name[:-1]}.{name[-1]}" for name in sorted(names, key=int)]


def _set_capabilities(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    config.num_compute_capabilities = len(capabilities)
    for index, capability in enumerate(capabilities):
        config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{capability.replace('.', '')}"), index)


def _creation_flags(trt: Any) -> int:
    """Strong typing: a flag up to TensorRT 11, the only way there is afterwards."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


def _profile(builder: Any, network: Any, max_batch: int) -> Any:
    profile = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = tuple(tensor.shape)
        if shape[0] == -1:
            one, most = (1, *shape[1:]), (max_batch, *shape[1:])
            profile.set_shape(tensor.name, one, one, most)
    return profile


def _parser_error(parser: Any) -> str:
    error = parser.get_error(0)
    where = f"operator {error.node_operator()} ({error.node_name()}): " if error.node_operator() else ""
    return where + str(error.desc()).splitlines()[0]


def _timing_cache(config: Any, key: Sequence[str]) -> Path:
    """Hands what earlier builds of the same graph for the same GPU and version measured to the builder."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path = root / "emqdeploy" / "tensorrt" / f"{hashlib.sha256('|'.join(key).encode()).hexdigest()[:32]}.timing"
    held = path.read_bytes() if path.exists() else b""
    config.set_timing_cache(config.create_timing_cache(held), ignore_mismatch=False)
    return path


def _keep_timing_cache(config: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_bytes(path, bytes(config.get_timing_cache().serialize()))

"""TensorRT's engines as files: whether one may be loaded here, loading it, and what its layers compute in."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.format.bundle import Artefact
from emqdeploy.format.precision import FLOAT32, INT8
from emqdeploy.graph.tensorrt_flavours import EXTRAS, RTX, installed_flavour, load_tensorrt
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.onnx_kernels import UNREAD, Arithmetic

_TYPES: dict[str, Arithmetic] = {
    "int8": (INT8, True),
    "half": ("float16", False),
    "fp16": ("float16", False),
    "fp32": (FLOAT32, False),
    "float": (FLOAT32, False),
}
"""What the inspector's words for a tensor's format mean, by a part of them."""


def tensorrt_here() -> str | None:
    """Why TensorRT cannot run here, in one sentence; None where it can."""
    if installed_flavour() is None:
        return f'TensorRT is not installed; run: pip install "emqdeploy[{EXTRAS[RTX]}]"'
    try:
        cuda.compute_capability()
    except EmqError as error:
        return str(error)
    return None


def flavour_of(artefact: Artefact) -> str:
    """The flavour of TensorRT that an engine was built with."""
    return str(artefact.built_for.get("runtime", artefact.target))


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


def check_artefact(artefact: Artefact) -> None:
    """Raises one sentence unless an engine can be loaded here: its flavour, its version and its GPU."""
    flavour = flavour_of(artefact)
    here = {
        "runtime": flavour,
        "version": str(load_tensorrt(flavour).__version__),
        "compute_capability": cuda.compute_capability(),
    }
    check_built_for(artefact.built_for, here, artefact.file)


def built_elsewhere(artefact: Artefact) -> str | None:
    """Why an engine cannot be loaded here, in one sentence; None where it can."""
    try:
        check_artefact(artefact)
    except EmqError as error:
        return str(error)
    return None


def open_engine(trt: Any, runtime: Any, data: bytes, name: str) -> Any:
    """Opens an engine, or raises one sentence.

    Args:
        trt: a flavour of TensorRT.
        runtime: its ``Runtime``, with a logger of `quiet_logger`.
        data: the serialised engine.
        name: of the file, for the message.
    """
    engine = runtime.deserialize_cuda_engine(data)
    if engine is None:
        raise EmqError(
            f"TensorRT {trt.__version__} cannot load {name} ({runtime.logger.why()}); it is damaged or of another"
            " version, export it again"
        )
    return engine


def inspect_engine(trt: Any, engine: Any, layers: Iterable[str]) -> dict[str, Arithmetic]:
    """Reads from an open engine how each layer is computed; unread where it does not say."""
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    found = inspected(text)
    return {layer: _of_layer(layer, found) for layer in layers}


def inspected(text: str) -> dict[str, Arithmetic]:
    """Reads an inspector's output: by layer name, the common arithmetic of the weights and inputs.

    A fused layer's name joins the names of what was fused into it.
    """
    found: dict[str, Arithmetic] = {}
    for layer in json.loads(text).get("Layers", []):
        if isinstance(layer, str):  # the engine was built without details: names only
            continue
        formats = [str(entry.get("Format/Datatype", entry.get("Datatype", ""))) for entry in layer.get("Inputs", [])]
        if formats:
            first = formats[0].lower()
            found[str(layer.get("Name", ""))] = next((_TYPES[word] for word in _TYPES if word in first), UNREAD)
    return found


def _of_layer(layer: str, found: Mapping[str, Arithmetic]) -> Arithmetic:
    """The arithmetic of the fused layer whose name holds this layer's as a whole word."""
    for name, computed in found.items():
        if layer in name.replace("+", " ").replace("||", " ").split() or layer == name:
            return computed
    return UNREAD

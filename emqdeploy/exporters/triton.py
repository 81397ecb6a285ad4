"""A model repository for NVIDIA Triton: one model per child, so that a client chooses by name."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.exporters.products import Job, Product
from emqdeploy.format.bundle import INPUT, SELECTOR
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.selector import SELECTOR_INPUT

REPOSITORY = "triton"
"""Directory of the bundle that a Triton server is pointed at."""

_BACKENDS = {
    "onnx": ("onnxruntime_onnx", "model.onnx", "KIND_CPU"),
    "tensorrt": ("tensorrt_plan", "model.plan", "KIND_GPU"),
}
"""Platform, file name and where it runs, by target. Triton loads engines of classic TensorRT only."""

_DTYPES = {"float32": "TYPE_FP32", "int64": "TYPE_INT64"}


def as_triton_model(job: Job, product: Product, name: str) -> Product:
    """Gives a product its place in a model repository, with a ``config.pbtxt`` beside it.

    Raises:
        UsageError: Triton has no backend for the target.
    """
    if product.target not in _BACKENDS:
        raise UsageError(
            f"--layout triton takes targets {' and '.join(_BACKENDS)}, not {product.target}; leave --layout out"
        )
    platform, file, kind = _BACKENDS[product.target]
    model = f"{job.model}_{name}".replace("-", "_").replace(".", "_")
    card = job.checkpoint.card
    shape = list(card.input_shape)
    # The choice of a selector stands for the whole batch, so Triton must not count a batch dimension in it.
    batched = product.role != SELECTOR
    free = [] if batched else [-1]
    inputs = [(INPUT, "float32", [*free, *shape])] + ([] if batched else [(SELECTOR_INPUT, "int64", [1])])
    text = config_pbtxt(
        model,
        platform,
        job.settings.max_batch if batched else 0,
        inputs,
        [(TASKS[card.task].output, "float32", [*free, len(card.classes)])],
        kind,
    )
    config = job.stage(f"{model}.pbtxt", text.encode())
    companions = {**product.companions, f"{REPOSITORY}/{model}/config.pbtxt": config}
    return replace(product, id=f"triton-{product.id}", place=f"{REPOSITORY}/{model}/1/{file}", companions=companions)


def config_pbtxt(
    model: str,
    platform: str,
    max_batch: int,
    inputs: list[tuple[str, str, list[int]]],
    outputs: list[tuple[str, str, list[int]]],
    kind: str,
) -> str:
    """Returns a model configuration in protobuf's text form.

    Args:
        model: the model's name, which must be that of its directory.
        platform: Triton's name of the backend and format.
        max_batch: the largest batch that Triton makes; 0 where the model's shapes hold the batch themselves.
        inputs: name, dtype and shape of every input.
        outputs: likewise.
        kind: where instances run.
    """
    batching = ["dynamic_batching { }"] if max_batch > 1 else []
    lines = [
        f"name: {_quoted(model)}",
        f"platform: {_quoted(platform)}",
        f"max_batch_size: {max_batch}",
        *(_tensor("input", *entry) for entry in inputs),
        *(_tensor("output", *entry) for entry in outputs),
        f"instance_group {{ kind: {kind} }}",
        *batching,
    ]
    return "\n".join(lines) + "\n"


def _tensor(field: str, name: str, dtype: str, shape: list[int]) -> str:
    dims = ", ".join(map(str, shape))
    return f"{field} {{ name: {_quoted(name)} data_type: {_DTYPES[dtype]} dims: [ {dims} ] }}"


def _quoted(text: Any) -> str:
    return json.dumps(str(text))

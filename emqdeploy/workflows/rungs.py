"""The rungs of parity: every way to run one child of a checkpoint, and what its answers have to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from emqdeploy.errors import require
from emqdeploy.format.bundle import INPUT
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.filling import filled_model
from emqdeploy.graph.floating import float_operators
from emqdeploy.graph.native_graph import native_model
from emqdeploy.graph.parity import Judge, may_round, must_agree, must_be_exact
from emqdeploy.graph.reference import layer_values, quantized_tensors
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import Runtime, open_runtime
from emqdeploy.runtimes.native_operators import register_operators
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options

_EVALUATED_PIXELS = 8 * 64 * 64
"""Pixels of all images that the ONNX reference evaluator gets: it computes in plain numpy, a second for a megapixel."""

Answers = tuple[Floats, Mapping[str, Codes]]
"""Logits and, where they can be seen, the codes of quantized tensors by name."""

Followed = Literal["behind floats", "everywhere"]


@dataclass(frozen=True)
class Rung:
    """One way to run a child.

    Attributes:
        run: answers a batch.
        judge: returns what is wrong with a comparison, or None.
        close: releases what the rung holds.
        most_images: how many images it gets at most; None means all.
        precision: what each layer is stored and computed as, where the rung knows.
        locate: finds the first tensor whose codes differ from the reference's, where `run` shows none.
        followed: where the reference goes on with the codes that the rung had: behind float operators, so that every
            integer kernel is compared given its own inputs, or everywhere, where a batch is not right without that, for
            a rounding early in a network moves all that comes after it.
    """

    run: Callable[[Floats], Answers]
    judge: Judge
    close: Callable[[], None] = lambda: None
    most_images: int | None = None
    precision: Callable[[], list[LayerPrecision]] | None = None
    locate: Callable[[Floats, Mapping[str, Codes]], str | None] | None = None
    followed: Followed | None = None


def rung_of(runtime: Runtime, child: Child, judge: Judge, **options: Any) -> Rung:
    """The rung of an opened runtime that shows no codes.

    Args:
        runtime: closed with the rung.
        child: it raises where the runtime does not have it.
        judge: of its answers.
        **options: further fields of `Rung`.
    """
    child = runtime.find(child)
    return Rung(
        lambda images: (runtime.run(images, child), {}),
        judge,
        runtime.close,
        precision=lambda: runtime.precision(child),
        **options,
    )


RUNGS: Registry[Callable[[Checkpoint, Child], Rung]] = Registry("rung")
"""Rungs that a checkpoint alone is enough for; each raises one sentence where it cannot run here."""


def strictest(checkpoint: Checkpoint) -> Judge:
    """Operators that stay in float round differently everywhere, so a network with some can only be close."""
    return must_agree if float_operators(checkpoint.skeleton) else must_be_exact


@RUNGS.register("onnxruntime")
def fused(checkpoint: Checkpoint, child: Child) -> Rung:
    """The graph as onnxruntime runs it: integer kernels, every code visible."""
    return _traced(checkpoint, child, must_be_exact, optimise=True)


@RUNGS.register("unfused")
def unfused(checkpoint: Checkpoint, child: Child) -> Rung:
    """The graph as written, in float between the quantizers."""
    return _traced(checkpoint, child, may_round, optimise=False)


@RUNGS.register("torch")
def torch(checkpoint: Checkpoint, child: Child) -> Rung:
    """The torch network with the deployed numbers."""
    runtime: Any = open_runtime(checkpoint, "torch", children=[child])
    return Rung(runtime.run_traced, may_round, runtime.close, followed="everywhere")


@RUNGS.register("onnx-reference")
def evaluator(checkpoint: Checkpoint, child: Child) -> Rung:
    """ONNX's own reference evaluator: no runtime, only the standard, on a few images."""
    require("onnx", "export")
    from onnx.reference import ReferenceEvaluator

    tensors, output = quantized_tensors(checkpoint.skeleton), TASKS[checkpoint.card.task].output
    session: Any = ReferenceEvaluator(filled_model(checkpoint.skeleton, checkpoint.network.initializers(child)))

    def run(images: Floats) -> Answers:
        values = session.run(None, {INPUT: images}, intermediate=True)
        return values[output], {name: values[name] for name in tensors}

    _, height, width = checkpoint.card.input_shape
    most = max(1, _EVALUATED_PIXELS // (height * width))
    return Rung(run, may_round, most_images=most, followed="everywhere")


@RUNGS.register("openvino")
def openvino(checkpoint: Checkpoint, child: Child) -> Rung:
    """OpenVINO on the CPU."""
    return rung_of(open_runtime(checkpoint, "openvino", children=[child], prove=False), child, must_agree)


@RUNGS.register("native")
def native(checkpoint: Checkpoint, child: Child) -> Rung:
    """Our own kernels on this processor, every code visible."""
    runtime: Any = open_runtime(checkpoint, "native", children=[child])
    return Rung(runtime.run_traced, must_be_exact, runtime.close)


@RUNGS.register("onnxruntime-native")
def operators(checkpoint: Checkpoint, child: Child) -> Rung:
    """Our own kernels as operators of onnxruntime, every code visible."""
    options = session_options(levels=checkpoint.card.levels)
    register_operators(options)
    tensors, followed = quantized_tensors(checkpoint.skeleton), _followed(checkpoint, integers=True)
    if followed is not None:
        tensors += layer_values(checkpoint.skeleton)
    model = native_model(checkpoint, [child], tensors).SerializeToString()
    engine = SessionEngine(create_session(model, options), 0, selection(selector_values([child])[child]))

    def run(images: Floats) -> Answers:
        logits, *codes = engine.run_outputs([TASKS[checkpoint.card.task].output, *tensors], images)
        return logits, dict(zip(tensors, codes, strict=True))

    return Rung(run, must_be_exact, followed=followed)


def _traced(checkpoint: Checkpoint, child: Child, judge: Judge, optimise: bool) -> Rung:
    tensors, followed = quantized_tensors(checkpoint.skeleton), _followed(checkpoint, optimise)
    if followed == "behind floats":
        tensors += layer_values(checkpoint.skeleton)
    runtime: Any = open_runtime(checkpoint, "onnxruntime", children=[child], trace=tensors, optimise=optimise)
    return Rung(runtime.run_traced, judge, runtime.close, followed=followed)


def _followed(checkpoint: Checkpoint, integers: bool) -> Followed | None:
    if not integers:
        return "everywhere"
    return "behind floats" if float_operators(checkpoint.skeleton) else None

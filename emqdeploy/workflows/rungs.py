"""The rungs of parity: every way to run one child of a checkpoint, and what its answers have to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from emqdeploy.errors import require
from emqdeploy.format.bundle import INPUT
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.filling import filled_model
from emqdeploy.graph.floating import float_operators
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import layer_values, quantized_tensors
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import Runtime, open_runtime

DISAGREEMENT = 0.005
"""Share of images that a runtime with a rounding of its own may decide differently where the margin is clear."""

ACCURACY_POINTS = 0.3
"""Percentage points by which its accuracy may differ; of fewer than 333 images, one image."""

_EVALUATED_PIXELS = 8 * 64 * 64
"""Pixels of all images that the ONNX reference evaluator gets: it computes in plain numpy, a second for a megapixel."""

Answers = tuple[Floats, Mapping[str, Codes]]
"""Logits and, where they can be seen, the codes of quantized tensors by name."""

Judge = Callable[[Parity, float | None], str | None]
"""Returns what is wrong with a comparison, or None; also given how many points the accuracy differs, where known."""


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
        followed: whether the reference goes on behind float operators with the codes that the rung had there, so that
            every integer kernel is compared given its own inputs.
    """

    run: Callable[[Floats], Answers]
    judge: Judge
    close: Callable[[], None] = lambda: None
    most_images: int | None = None
    precision: Callable[[], list[LayerPrecision]] | None = None
    locate: Callable[[Floats, Mapping[str, Codes]], str | None] | None = None
    followed: bool = False


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


def must_be_exact(parity: Parity, accuracy_points: float | None) -> str | None:
    """An integer runtime gives the reference's codes and logits, all of them."""
    if parity.differing_codes:
        return f"{parity.differing_codes} of {parity.codes} codes differ"
    if parity.max_rounded_step > 1:
        return f"codes behind float operators differ by up to {parity.max_rounded_step} steps, more than a rounding"
    return f"logits differ by {100 * parity.max_logit_error:.2g} %" if parity.max_logit_error else None


def may_round(parity: Parity, accuracy_points: float | None) -> str | None:
    """Float sums round a tie the other way: a decision may flip only where the margin is small."""
    return _flipped(parity) if parity.unsafe_flips else None


def must_agree(parity: Parity, accuracy_points: float | None) -> str | None:
    """A runtime that rounds in its own way decides as the reference does, but for one image, or a few in a thousand."""
    if parity.unsafe_flips > max(1, DISAGREEMENT * parity.images):
        return _flipped(parity)
    allowed = max(ACCURACY_POINTS, 100 / max(parity.images, 1))
    if parity.unsafe_flips and accuracy_points is not None and abs(accuracy_points) > allowed:
        return f"accuracy differs by {accuracy_points:+.2f} points"
    return None


def strictest(checkpoint: Checkpoint) -> Judge:
    """Operators that stay in float round differently everywhere, so a network with some can only be close."""
    return may_round if float_operators(checkpoint.skeleton) else must_be_exact


def _flipped(parity: Parity) -> str:
    return f"{parity.unsafe_flips} of {parity.images} images change their class though its margin is above 1 %"


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
    return Rung(runtime.run_traced, may_round, runtime.close)


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
    return Rung(run, may_round, most_images=max(1, _EVALUATED_PIXELS // (height * width)))


@RUNGS.register("openvino")
def openvino(checkpoint: Checkpoint, child: Child) -> Rung:
    """OpenVINO on the CPU."""
    return rung_of(open_runtime(checkpoint, "openvino", children=[child]), child, must_agree)


def _traced(checkpoint: Checkpoint, child: Child, judge: Judge, optimise: bool) -> Rung:
    followed = optimise and bool(float_operators(checkpoint.skeleton))
    tensors = quantized_tensors(checkpoint.skeleton)
    if followed:
        tensors += layer_values(checkpoint.skeleton)
    runtime: Any = open_runtime(checkpoint, "onnxruntime", children=[child], trace=tensors, optimise=optimise)
    return Rung(runtime.run_traced, judge, runtime.close, followed=followed)

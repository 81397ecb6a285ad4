"""The rungs of parity: every way to run one bit-width, and what its answers have to be."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import require
from emqdeploy.floating import float_operators
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.reference import layer_values, quantized_tensors
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import LayerPrecision, Runtime, open_runtime
from emqdeploy.runtimes.graphs import Graphs, filled_model
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, OnnxSelectorRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options, with_outputs
from emqdeploy.runtimes.openvino_runtime import OpenVinoRuntime
from emqdeploy.runtimes.tensorrt_runtime import MODULES, TensorRtRuntime, built_elsewhere, tensorrt_here

AGREEMENT = 0.995
"""Share of equal arg-maxes that a runtime with a rounding of its own has to reach."""

ACCURACY_POINTS = 0.3
"""Percentage points by which its accuracy may differ."""

_EVALUATED_PIXELS = 8 * 64 * 64
"""Pixels of all images that the ONNX reference evaluator gets: it computes in plain numpy, a second for a megapixel."""


Judge = Callable[[Parity, float | None], str | None]
"""Returns what is wrong with a comparison, or None; also given how many points the accuracy differs, where known."""


@dataclass(frozen=True)
class Rung:
    """One way to run a bit-width.

    Attributes:
        run: returns logits and, where they can be seen, the codes of quantized tensors by name.
        judge: returns what is wrong with a comparison, or None.
        close: releases what the rung holds.
        most_images: how many images it gets at most; None means all.
        precision: what each layer is stored and computed as, where the rung knows.
        locate: finds the first tensor whose codes differ from the reference's, where `run` shows none.
        followed: whether the reference goes on behind float operators with the codes that the rung had there, so that
            every integer kernel is compared given its own inputs.
    """

    run: Callable[[Floats], tuple[Floats, Mapping[str, Codes]]]
    judge: Judge
    close: Callable[[], None] = lambda: None
    most_images: int | None = None
    precision: Callable[[], list[LayerPrecision]] | None = None
    locate: Callable[[Floats, Mapping[str, Codes]], str | None] | None = None
    followed: bool = False


RUNGS: Registry[Callable[[Checkpoint, int], Rung]] = Registry("rung")
"""Rungs that a checkpoint alone is enough for; each raises one sentence where it cannot run here."""


def must_be_exact(parity: Parity, accuracy_points: float | None) -> str | None:
    """An integer runtime gives the reference's codes and logits, all of them."""
    if parity.differing_codes:
        return f"{parity.differing_codes} of {parity.codes} codes differ"
    if parity.max_rounded_step > 1:
        return f"codes behind float operators differ by up to {parity.max_rounded_step} steps, more than a rounding"
    return f"logits differ by {100 * parity.max_logit_error:.2g} %" if parity.max_logit_error else None


def may_round(parity: Parity, accuracy_points: float | None) -> str | None:
    """Float sums round a tie the other way: an arg-max may flip only where the top two logits are close."""
    if parity.unsafe_flips:
        return f"{parity.unsafe_flips} of {parity.images} images change their class though its margin is above 1 %"
    return None


def must_agree(parity: Parity, accuracy_points: float | None) -> str | None:
    """A runtime that rounds in its own way classifies as the reference does, but for a few images in a thousand."""
    if may_round(parity, accuracy_points) is None:
        return None
    if parity.top1_agreement < AGREEMENT:
        return f"only {100 * parity.top1_agreement:.2f} % of the images get the same class"
    if accuracy_points is not None and abs(accuracy_points) > ACCURACY_POINTS:
        return f"accuracy differs by {accuracy_points:+.2f} points"
    return None


@RUNGS.register("onnxruntime")
def fused(checkpoint: Checkpoint, bits: int) -> Rung:
    """The graph as onnxruntime runs it: integer kernels, every code visible."""
    return _traced(checkpoint, bits, must_be_exact, optimise=True)


@RUNGS.register("unfused")
def unfused(checkpoint: Checkpoint, bits: int) -> Rung:
    """The graph as written, in float between the quantizers."""
    return _traced(checkpoint, bits, may_round, optimise=False)


@RUNGS.register("torch")
def torch(checkpoint: Checkpoint, bits: int) -> Rung:
    """The torch network with the deployed numbers."""
    runtime: Any = open_runtime(checkpoint, "torch", bits=[bits])
    return Rung(runtime.run_traced, may_round, runtime.close)


@RUNGS.register("onnx-reference")
def evaluator(checkpoint: Checkpoint, bits: int) -> Rung:
    """ONNX's own reference evaluator: no runtime, only the standard, on a few images."""
    require("onnx", "export")
    from onnx.reference import ReferenceEvaluator

    tensors = quantized_tensors(checkpoint.skeleton)
    session: Any = ReferenceEvaluator(filled_model(checkpoint.skeleton, checkpoint.network.initializers(bits)))

    def run(images: Floats) -> tuple[Floats, dict[str, Codes]]:
        values = session.run(None, {"images": images}, intermediate=True)
        return values["logits"], {name: values[name] for name in tensors}

    _, height, width = checkpoint.metadata["network"]["input_shape"]
    return Rung(run, may_round, most_images=max(1, _EVALUATED_PIXELS // (height * width)))


@RUNGS.register("openvino")
def openvino(checkpoint: Checkpoint, bits: int) -> Rung:
    """OpenVINO on the CPU."""
    runtime = open_runtime(checkpoint, "openvino", bits=[bits])
    return Rung(logits_of(runtime, bits), must_agree, runtime.close)


def unavailable(artefact: Artefact) -> str | None:
    """Why the runtime of an exported file cannot run here, in one sentence; None where it can."""
    if artefact.target == "openvino":
        return None if find_spec("openvino") else 'OpenVINO is not installed; run: pip install "emqdeploy[openvino]"'
    if artefact.target in MODULES:
        return tensorrt_here() or built_elsewhere(artefact)
    return None


def artefact_rung(bundle: Bundle, artefact: Artefact, checkpoint: Checkpoint, bits: int) -> Rung:
    """Opens an exported file in the runtime that it was made for.

    Raises:
        EmqError: one sentence: the file was altered, or its runtime refuses it.
    """
    opened: Runtime
    # TensorRT's form of the ONNX graph has a float bias, so it rounds in its own way wherever it runs.
    judge: Judge = _strictest(checkpoint) if artefact.target == "onnx" else must_agree
    if artefact.target == "openvino":
        opened = OpenVinoRuntime(Graphs.of_artefacts(bundle, [artefact]))
    elif artefact.target in MODULES:
        opened = TensorRtRuntime(bundle, [artefact])
    else:
        path = bundle.file_of(artefact)
        opened = OnnxSelectorRuntime(path) if artefact.role == "selector" else OnnxFileRuntime({bits: path})
    opened.check_bits(bits)
    locate = None
    if artefact.target == "onnx" and artefact.role == "width":
        locate = functools.partial(_first_difference, bundle.file_of(artefact), quantized_tensors(checkpoint.skeleton))
    return Rung(
        logits_of(opened, bits),
        judge,
        opened.close,
        precision=lambda: opened.precision(bits),
        locate=locate,
    )


def logits_of(runtime: Runtime, bits: int) -> Callable[[Floats], tuple[Floats, dict[str, Codes]]]:
    """A runtime that shows no codes."""
    return lambda images: (runtime.run(images, bits), {})


def _traced(checkpoint: Checkpoint, bits: int, judge: Judge, optimise: bool) -> Rung:
    followed = optimise and bool(float_operators(checkpoint.skeleton))
    tensors = quantized_tensors(checkpoint.skeleton)
    if followed:
        tensors += layer_values(checkpoint.skeleton)
    runtime: Any = open_runtime(checkpoint, "onnxruntime", bits=[bits], trace=tensors, optimise=optimise)
    return Rung(runtime.run_traced, judge, runtime.close, followed=followed)


def _strictest(checkpoint: Checkpoint) -> Judge:
    """Operators that stay in float round differently everywhere, so a network with some can only be close."""
    return may_round if float_operators(checkpoint.skeleton) else must_be_exact


def _first_difference(path: Path, tensors: list[str], images: Floats, codes: Mapping[str, Codes]) -> str | None:
    """Runs an exported file once more with every quantized tensor as an output."""
    session = create_session(with_outputs(path.read_bytes(), tensors), session_options(external_folder=path.parent))
    found = dict(zip(tensors, session.run(tensors, {"images": images}), strict=True))
    return next((name for name in tensors if not np.array_equal(found[name], codes[name])), None)

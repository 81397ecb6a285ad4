"""Parity of every way to run a checkpoint with the integer reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.checkpoint import Checkpoint, load_checkpoint
from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.grid import Floats
from emqdeploy.parity import Parity
from emqdeploy.progress import Report, silent
from emqdeploy.reference import IntegerReference, quantized_tensors
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import open_runtime, precision_summary
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime
from emqdeploy.runtimes.source import dataset_of

PARITY_IMAGES = 256
"""Test images that an export is proven on; `verify` takes more when asked."""

PARITY_BATCH = 64


def parity_images(checkpoint: Checkpoint, count: int | None, data_dir: Path | None) -> tuple[Floats, str]:
    """Returns normalised test images and where they come from; noise where the data set is not at hand."""
    preprocessing = Preprocessing.from_dict(checkpoint.metadata["preprocessing"])
    try:
        images = dataset_of(checkpoint.metadata, data_dir).test.images[:count]
        origin = f"{len(images)} test images"
    except EmqError:
        shape = (count or PARITY_IMAGES, preprocessing.channels, preprocessing.height, preprocessing.width)
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        origin = f"{len(images)} noise images, because the data set is not at hand"
    return preprocessing.normalize(images), origin


def verify_width(checkpoint: Checkpoint, bits: int, images: Floats, artefact: Path | None = None) -> dict[str, Any]:
    """Compares every way of running one bit-width with the integer reference.

    Rungs: ``onnxruntime`` (fused: must be exact), ``torch`` and ``unfused`` (float between the quantizers: ties may
    round differently, an arg-max may flip only where its margin is below 1 % of the logit range) and, where an exported
    file is given, ``artefact`` (its logits must be those of the reference).
    """
    tensors = quantized_tensors(checkpoint.skeleton)
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(bits))
    runtimes: dict[str, Any] = {
        "onnxruntime": open_runtime(checkpoint, "onnxruntime", bits=[bits], trace=tensors),
        "unfused": open_runtime(checkpoint, "onnxruntime", bits=[bits], trace=tensors, optimise=False),
    }
    skipped = {}
    try:
        runtimes["torch"] = open_runtime(checkpoint, "torch", bits=[bits])
    except EmqError as error:
        skipped["torch"] = str(error)
    rungs = {name: Parity() for name in runtimes}
    exported = None if artefact is None else OnnxFileRuntime(artefact)
    if exported is not None:
        rungs["artefact"] = Parity()
    for start in range(0, len(images), PARITY_BATCH):
        batch = images[start : start + PARITY_BATCH]
        expected = reference.run(batch)
        for name, runtime in runtimes.items():
            rungs[name].add(expected, runtime.run_traced(batch))
        if exported is not None:
            rungs["artefact"].add((expected[0], {}), (exported(batch), {}))
    precision = (exported or runtimes["onnxruntime"]).precision(bits)
    ok = rungs["onnxruntime"].exact and all(rung.unsafe_flips == 0 for rung in rungs.values())
    if exported is not None:
        ok = ok and rungs["artefact"].max_logit_error == 0
    return {
        "bits": bits,
        "ok": ok,
        "rungs": {name: rung.to_dict() for name, rung in rungs.items()},
        "skipped": skipped,
        **precision_summary(precision),
    }


def verify(
    path: Path | None,
    bits: Sequence[int] | None = None,
    count: int | None = None,
    data_dir: Path | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Verifies stored bit-widths of a checkpoint, and the files exported beside it."""
    found = find_checkpoint(path)
    checkpoint = load_checkpoint(found)
    images, origin = parity_images(checkpoint, count, data_dir)
    widths = list(bits or checkpoint.network.widths)
    for width in widths:
        checkpoint.network.check_bits(width)
    results = []
    for width in widths:
        report(f"verifying {width} bits on {origin}")
        artefact = found.parent / "bundle" / f"model-w{width}.onnx"
        results.append(verify_width(checkpoint, width, images, artefact if artefact.exists() else None))
    return {
        "checkpoint": str(found),
        "images": origin,
        "ok": all(result["ok"] for result in results),
        "results": results,
    }

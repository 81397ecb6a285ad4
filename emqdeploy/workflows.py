"""What needs training, export and runtimes at once: the only module that may combine them.

Every function returns plain values that can be printed as a table or as JSON.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.checkpoint import Checkpoint, load_checkpoint
from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError, writable_dir
from emqdeploy.files import atomic_write_text
from emqdeploy.grid import Floats
from emqdeploy.parity import Parity
from emqdeploy.reference import IntegerReference, quantized_tensors
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import open_runtime, precision_summary
from emqdeploy.runtimes.bench import Report, bench, silent
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime
from emqdeploy.runtimes.source import dataset_of

PARITY_IMAGES = 256
"""Test images that an export is proven on; `verify` takes more when asked."""

PARITY_BATCH = 64

# --- parity -------------------------------------------------------------------------------------------------------


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
        artefact = found.parent / "onnx" / f"model-w{width}.onnx"
        results.append(verify_width(checkpoint, width, images, artefact if artefact.exists() else None))
    return {
        "checkpoint": str(found),
        "images": origin,
        "ok": all(result["ok"] for result in results),
        "results": results,
    }


# --- export -------------------------------------------------------------------------------------------------------


def export(
    path: Path | None,
    bits: Sequence[int] | None,
    target: str = "onnx",
    out: Path | None = None,
    allow_float: bool = False,
    data_dir: Path | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Exports bit-widths of a checkpoint and proves each file equal to the integer reference.

    Raises:
        EmqError: a file differs from the reference, or a layer of it runs in float and ``allow_float`` is not set.
    """
    from emqdeploy.export.onnx_file import TARGETS

    exporter = TARGETS[target]
    found = find_checkpoint(path)
    checkpoint = load_checkpoint(found)
    widths = list(bits or checkpoint.trained_bits)
    for width in widths:
        checkpoint.network.check_bits(width)
    directory = writable_dir(out or found.parent / "onnx")
    images, origin = parity_images(checkpoint, PARITY_IMAGES, data_dir)
    artefacts = []
    for width in widths:
        report(f"exporting {width} bits for {target}, verifying on {origin}")
        # Proven first, put in its place afterwards: a file that fails never stands where a good one may have stood.
        with tempfile.TemporaryDirectory(dir=directory, prefix=".unproven-") as unproven:
            artefact = exporter(checkpoint, width, Path(unproven))
            result = verify_width(checkpoint, width, images, artefact.path)
            _require_proof(artefact.path.name, result, allow_float)
            path = directory / artefact.path.name
            os.replace(artefact.path, path)
        fused = result["rungs"]["onnxruntime"]
        artefacts.append(
            {
                "bits": width,
                "target": target,
                "path": str(path),
                "size_bytes": artefact.size_bytes,
                **{key: result[key] for key in ("stored_as", "computed_as", "integer_layers", "layers", "per_layer")},
                "status": "verified",
                "parity": {**fused, "images_from": origin, "other_rungs": _other_rungs(result)},
            }
        )
    manifest = {"checkpoint": str(found), "artefacts": artefacts}
    atomic_write_text(directory / "manifest.json", json.dumps(manifest, indent=2) + "\n")
    return manifest


def _require_proof(name: str, result: dict[str, Any], allow_float: bool) -> None:
    """Raises unless the file gave the reference's answers in integer kernels."""
    if not result["ok"]:
        where = result["rungs"]["onnxruntime"]["first_difference"] or "logits"
        raise EmqError(f"{name} differs from what was trained (first in {where}); it was not kept, please report this")
    if result["float_layers"] and not allow_float:
        raise EmqError(
            f"{name} runs {len(result['float_layers'])} of {result['layers']} layers in float"
            f" ({', '.join(result['float_layers'][:3])}); it was not kept, pass --allow-float to accept that"
        )


def _other_rungs(result: dict[str, Any]) -> dict[str, Any]:
    return {name: rung for name, rung in result["rungs"].items() if name != "onnxruntime"}


# --- demo ---------------------------------------------------------------------------------------------------------

DEMO_BITS = (8, 4, 2)


def demo(out: Path, report: Report = silent) -> dict[str, Any]:
    """Trains on the embedded digits, exports, verifies and benches 8, 4 and 2 bits."""
    from emqdeploy.training.api import train
    from emqdeploy.training.config import TrainConfig

    report("training one network for 1, 2, 4 and 8 bits on the embedded digits")
    result = train(TrainConfig(), out)
    checkpoint = result.checkpoints[0]
    exported = export(checkpoint, DEMO_BITS, report=report)
    measured = bench(checkpoint, DEMO_BITS, report=report)
    rows = []
    for artefact, row in zip(exported["artefacts"], measured["rows"], strict=True):
        proven = {key: artefact[key] for key in ("parity", "stored_as", "computed_as")}
        rows.append({**row, **proven, "artefact_bytes": artefact["size_bytes"]})
    return {
        "checkpoint": str(checkpoint),
        "seconds": result.seconds,
        "sample_passes": result.sample_passes,
        "accuracy": {str(bits): percent for bits, percent in result.accuracy.items()},
        "rows": rows,
        "environment": measured["environment"],
    }

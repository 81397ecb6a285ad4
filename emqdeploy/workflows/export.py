"""Export: files that are proven before they are put in their place."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from emqdeploy.checkpoint import load_checkpoint
from emqdeploy.errors import EmqError, writable_dir
from emqdeploy.files import atomic_write_text
from emqdeploy.progress import Report, silent
from emqdeploy.runs import find_checkpoint
from emqdeploy.workflows.verify import PARITY_IMAGES, parity_images, verify_width


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

"""Parity of every way to run a network with the integer reference: a checkpoint, and every file of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.format.bundle import BASELINE, VERIFIED, Bundle, is_bundle
from emqdeploy.format.bundle_writer import BundleWriter
from emqdeploy.format.child import Child, ChildLike, select_children
from emqdeploy.format.emq import SUFFIX, Checkpoint, load_checkpoint
from emqdeploy.format.precision import LayerPrecision, precision_summary
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.workflows.comparing import BATCH, Compared, ParityImages, layer_of, parity_images, reference_batches
from emqdeploy.workflows.export import BUNDLE_DIRECTORY
from emqdeploy.workflows.handlers import find_target
from emqdeploy.workflows.rungs import RUNGS, Rung

_ADVICE = ("openvino",)
"""Rungs that say what would happen elsewhere: who exports to OpenVINO has artefacts, and those decide."""


def verify(
    path: Path | None,
    bits: str | Sequence[ChildLike] | None = None,
    count: int | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Verifies a checkpoint, and every file of its bundle.

    Args:
        path: a bundle, a checkpoint, a run; None means the latest run. The bundle beside a checkpoint counts too.
        bits: children; None takes all stored ones, of a bundle the exported ones.
        count: test images; None takes all.
        data_dir: where the data set's files lie.
        model: the network's own function ``pkg.module:function``, named again so that torch may import it.
        report: receives one line about what is being done.

    Returns:
        ``ok``, ``images``, ``results`` (per child the rungs, what could not run here, and the layers) and
        ``completed``: artefacts that the manifest now calls verified.
    """
    if path is not None and is_bundle(path):
        bundle: Bundle | None = Bundle.open(path)
        found = _checkpoint_in(Bundle.open(path))
    else:
        found = find_checkpoint(path)
        if found.suffix != SUFFIX:
            raise UsageError(
                f"{found} is one file of an export; name its bundle, or the checkpoint that it was made from"
            )
        beside = found.parent / BUNDLE_DIRECTORY
        bundle = Bundle.open(beside) if is_bundle(beside) else None
    checkpoint = load_checkpoint(found)
    if model is not None:
        _trust(model, checkpoint)
    exported = bundle.exported if bundle is not None and bundle.checkpoint_path == found else ()
    children = select_children(checkpoint.network.children, bits or exported or "all")
    images = parity_images(checkpoint.card, count, data_dir)
    results = []
    for child in children:
        report(f"verifying {child} on {images.origin}")
        results.append(_verify_child(checkpoint, bundle, child, images))
    return {
        "checkpoint": str(found),
        "bundle": None if bundle is None else str(bundle.path),
        "images": images.origin,
        "completed": [] if bundle is None else _complete(bundle, results, images.origin),
        "ok": all(result["ok"] for result in results),
        "results": results,
    }


def _trust(model: str, checkpoint: Checkpoint) -> None:
    """Lets torch build the network from the user's own function, where the user names the one that it was made from."""
    stored = checkpoint.card.model
    if model != stored:
        raise UsageError(f"this network is {stored}, not {model}; name the same model, or none")
    require("torch", "train")
    from emqdeploy.models import trust

    trust(model)


def _checkpoint_in(bundle: Bundle) -> Path:
    if bundle.checkpoint_path is None:
        raise UsageError(
            f"{bundle.path} holds no checkpoint to compare with; export it again, or verify the checkpoint"
        )
    return bundle.checkpoint_path


def _verify_child(checkpoint: Checkpoint, bundle: Bundle | None, child: Child, images: ParityImages) -> dict[str, Any]:
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
    opened: dict[str, Rung] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, make in RUNGS.items():
        try:
            opened[name] = make(checkpoint, child)
        except EmqError as error:
            skipped[name] = str(error)
    if bundle is not None:
        _open_artefacts(bundle, checkpoint, child, opened, skipped, failed)
    compared = {name: Compared(rung, reference, checkpoint.card.task) for name, rung in opened.items()}
    for batch in reference_batches(reference, images):
        for name, one in list(compared.items()):
            try:
                one.add(batch)
            except EmqError as error:
                failed[name] = str(error)
                compared.pop(name).rung.close()
    precision = _precision(compared, checkpoint, child)
    rungs = {name: one.to_dict() for name, one in compared.items()}
    for artefact in bundle.artefacts if bundle is not None else ():
        inspect = compared[artefact.id].rung.precision if artefact.id in compared else None
        if artefact.status != VERIFIED and inspect is not None:
            rungs[artefact.id]["per_layer"] = [layer.to_dict() for layer in inspect()]
    for name, row in rungs.items():
        locate = compared[name].rung.locate
        if row["wrong"] is not None and locate is not None:
            some = images.inputs[:BATCH]
            row["first_layer"] = layer_of(locate(some, reference.run(some)[1]))
    for one in compared.values():
        one.rung.close()
    return {
        "child": child.name,
        "bits": child.bits,
        "ok": not failed and all(rung["wrong"] is None for name, rung in rungs.items() if name not in _ADVICE),
        "rungs": rungs,
        "failed": failed,
        "skipped": skipped,
        **precision_summary(precision),
    }


def _open_artefacts(
    bundle: Bundle,
    checkpoint: Checkpoint,
    child: Child,
    opened: dict[str, Rung],
    skipped: dict[str, str],
    failed: dict[str, str],
) -> None:
    """Opens every artefact that serves a child, or says why that is not possible."""
    for artefact in bundle.artefacts:
        if artefact.role == BASELINE or not artefact.serves(child):
            continue
        try:
            target = find_target(artefact.target)
            reason = target.why_not(artefact)
            if reason is None:
                opened[artefact.id] = target.open(bundle, artefact, child, checkpoint)
            else:
                skipped[artefact.id] = reason
        except EmqError as error:
            failed[artefact.id] = str(error)


def _complete(bundle: Bundle, results: Sequence[dict[str, Any]], origin: str) -> list[str]:
    """Writes into the manifest what was not known when an artefact was built on a machine that could not run it."""
    completed = []
    for artefact in bundle.artefacts:
        rows = [entry["rungs"].get(artefact.id) for entry in results if entry["child"] in artefact.children]
        if artefact.status == VERIFIED or not rows or len(rows) < len(artefact.children):
            continue
        if any(row is None or row["wrong"] is not None or "per_layer" not in row for row in rows):
            continue
        known = {layer["name"]: layer for layer in rows[-1]["per_layer"]}
        layers = tuple(
            msgspec.structs.replace(layer, **{key: known[layer.name][key] for key in ("computed_as", "integer")})
            for layer in artefact.layers
        )
        numbers = {key: value for key, value in rows[-1].items() if key not in ("wrong", "per_layer")}
        parity = {"reference": "integer reference", "runtime": artefact.target, "images_from": origin, **numbers}
        with BundleWriter(bundle.path, bundle.card, bundle.children) as writer:
            writer.amend(artefact.id, status=VERIFIED, layers=layers, parity=parity)
        completed.append(artefact.id)
    return completed


def _precision(compared: dict[str, Compared], checkpoint: Checkpoint, child: Child) -> list[LayerPrecision]:
    """What the first exported file says about the layers; without one, what onnxruntime does with the checkpoint."""
    for name, one in compared.items():
        if name not in RUNGS and one.rung.precision is not None:
            return one.rung.precision()
    with open_runtime(checkpoint, "onnxruntime", children=[child]) as runtime:
        return runtime.precision(child)

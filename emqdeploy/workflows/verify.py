"""Parity of every way to run a network with the integer reference, and of that with the model that it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import BASELINE, VERIFIED, Bundle, is_bundle
from emqdeploy.format.bundle_writer import BundleWriter
from emqdeploy.format.child import Child, ChildLike, select_children
from emqdeploy.format.emq import SUFFIX, Checkpoint, load_checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.precision import LayerPrecision, precision_summary
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.source import trust_own
from emqdeploy.workflows.comparing import BATCH, Compared, ParityImages, layer_of, parity_images, reference_batches
from emqdeploy.workflows.export import BUNDLE_DIRECTORY
from emqdeploy.workflows.handlers import find_target
from emqdeploy.workflows.origin import Origin
from emqdeploy.workflows.rungs import RUNGS, Rung


def verify(
    path: Path | None,
    bits: str | Sequence[ChildLike] | None = None,
    count: int | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
    pretrained: Path | None = None,
    report: Report = silent,
    data: str | None = None,
) -> dict[str, Any]:
    """Verifies a checkpoint, and every file of its bundle.

    Args:
        path: a bundle, a checkpoint, a run; None means the latest run. The bundle beside a checkpoint counts too.
        bits: children; None takes all stored ones, of a bundle the exported ones.
        count: test images; None takes all.
        data_dir: where the data set's files lie.
        model: the network's own function ``pkg.module:function``, named again so that torch may import it.
        pretrained: the float weights that the network was made from; None takes what `quantize` left beside it.
        report: receives one line about what is being done.
        data: other images than those of the network's own data set.

    Returns:
        ``ok``, ``images``, ``results`` (per child the rungs, its ``origin``: how far it is from the network that it was
        made from, what could not run here, and the layers), ``not_compared``: why the float model is not at hand, and
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
    trust_own(model, checkpoint.card)
    exported = bundle.exported if bundle is not None and bundle.checkpoint_path == found else ()
    children = select_children(checkpoint.network.children, bits or exported or "all")
    images = parity_images(checkpoint.card, count, data_dir, data, found if bundle is None else bundle.path)
    folders = [found.parent] if bundle is None else [found.parent, bundle.path.parent]
    origin = Origin.find(checkpoint, pretrained, folders, images)
    results = []
    for child in children:
        report(f"verifying {child} on {images.origin}")
        results.append(_verify_child(checkpoint, bundle, child, images, origin))
    return {
        "checkpoint": str(found),
        "bundle": None if bundle is None else str(bundle.path),
        "images": images.origin,
        "not_compared": origin.missing,
        "completed": [] if bundle is None else _complete(bundle, results, images.origin),
        "ok": all(result["ok"] for result in results),
        "results": results,
    }


def _checkpoint_in(bundle: Bundle) -> Path:
    if bundle.checkpoint_path is None:
        raise UsageError(
            f"{bundle.path} holds no checkpoint to compare with; export it again, or verify the checkpoint"
        )
    return bundle.checkpoint_path


def _verify_child(
    checkpoint: Checkpoint, bundle: Bundle | None, child: Child, images: ParityImages, origin: Origin
) -> dict[str, Any]:
    opened: dict[str, Rung] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, make in RUNGS.items():
        try:
            opened[name] = make(checkpoint, child)
        except EmqError as error:
            skipped[name] = str(error)
    compared, answers = _compare(checkpoint, child, images, opened, failed)
    # A target may compute a network of its own, which its files are compared with.
    for network, artefacts in _open_artefacts(bundle, checkpoint, child, skipped, failed):
        compared |= _compare(network, child, images, artefacts, failed)[0]
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
            row["first_layer"] = layer_of(locate(some, compared[name].reference.run(some)[1]))
    for one in compared.values():
        one.rung.close()
    made_from = origin.compare(child, answers)
    faults = [rung["wrong"] for rung in rungs.values()]
    faults += [] if made_from is None else [made_from["wrong"]]
    return {
        "child": child.name,
        "bits": child.bits,
        "ok": not failed and not any(faults),
        "origin": made_from,
        "rungs": rungs,
        "failed": failed,
        "skipped": skipped,
        **precision_summary(precision),
    }


def _compare(
    checkpoint: Checkpoint, child: Child, images: ParityImages, rungs: dict[str, Rung], failed: dict[str, str]
) -> tuple[dict[str, Compared], Floats]:
    """Compares rungs with the reference of a network; returns those that ran, and the reference's logits."""
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
    compared = {name: Compared(rung, reference, checkpoint.card.task) for name, rung in rungs.items()}
    answers = []
    for batch in reference_batches(reference, images):
        answers.append(batch.logits)
        for name, one in list(compared.items()):
            try:
                one.add(batch)
            except EmqError as error:
                failed[name] = str(error)
                compared.pop(name).rung.close()
    return compared, np.concatenate(answers)


def _open_artefacts(
    bundle: Bundle | None, checkpoint: Checkpoint, child: Child, skipped: dict[str, str], failed: dict[str, str]
) -> list[tuple[Checkpoint, dict[str, Rung]]]:
    """Opens every artefact that serves a child, or says why that is not possible; by the network that it computes."""
    opened: dict[str, tuple[Checkpoint, dict[str, Rung]]] = {}
    for artefact in bundle.artefacts if bundle is not None else ():
        if artefact.role == BASELINE or not artefact.serves(child):
            continue
        assert bundle is not None
        try:
            target = find_target(artefact.target)
            reason = target.why_not(artefact)
            if reason is not None:
                skipped[artefact.id] = reason
                continue
            network = target.network(checkpoint)
            rung = target.open(bundle, artefact, child, network)
            opened.setdefault(network.card.levels, (network, {}))[1][artefact.id] = rung
        except EmqError as error:
            failed[artefact.id] = str(error)
    return list(opened.values())


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

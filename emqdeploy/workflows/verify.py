"""Parity of every way to run a network with the integer reference: a checkpoint, and every file of a bundle."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from emqdeploy.bundle import VERIFIED, Bundle
from emqdeploy.bundle_writer import BundleWriter
from emqdeploy.checkpoint import SUFFIX, Checkpoint, load_checkpoint
from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.progress import Report, silent
from emqdeploy.reference import CODES_SUFFIX, VALUES_SUFFIX, IntegerReference
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes.base import LayerPrecision, exported_bits, open_runtime, precision_summary
from emqdeploy.runtimes.source import dataset_of, is_bundle
from emqdeploy.workflows.rungs import RUNGS, Rung, artefact_rung, unavailable

PARITY_IMAGES = 256
"""Test images that an export is proven on; `verify` takes more when asked."""

PARITY_BATCH = 64

BUNDLE_BESIDE = "bundle"
"""Where a bundle lies beside its checkpoint unless the user chose another place."""

_ADVICE = ("openvino",)
"""Rungs that say what would happen elsewhere: who exports to OpenVINO has artefacts, and those decide."""


@dataclass
class _Compared:
    """A rung at work."""

    rung: Rung
    parity: Parity = field(default_factory=Parity)
    correct: int = 0
    reference_correct: int = 0


def parity_images(checkpoint: Checkpoint, count: int | None, data_dir: Path | None) -> tuple[Floats, str]:
    """Returns normalised test images and where they come from; noise where the data set is not at hand."""
    images, _, origin = labelled_images(checkpoint, count, data_dir)
    return images, origin


def labelled_images(
    checkpoint: Checkpoint, count: int | None, data_dir: Path | None
) -> tuple[Floats, NDArray[Any] | None, str]:
    """Returns normalised test images, their classes and where they come from; noise has no classes."""
    preprocessing = Preprocessing.from_dict(checkpoint.metadata["preprocessing"])
    labels: NDArray[Any] | None = None
    try:
        test = dataset_of(checkpoint.metadata, data_dir).test
        images, labels = test.images[:count], np.asarray(test.labels[:count])
        origin = f"{len(images)} test images"
    except EmqError:
        shape = (count or PARITY_IMAGES, preprocessing.channels, preprocessing.height, preprocessing.width)
        images = np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)
        origin = f"{len(images)} noise images, because the data set is not at hand"
    return preprocessing.normalize(images), labels, origin


def verify(
    path: Path | None,
    bits: Sequence[int] | None = None,
    count: int | None = None,
    data_dir: Path | None = None,
    model: str | None = None,
    report: Report = silent,
) -> dict[str, Any]:
    """Verifies a checkpoint, and every file of its bundle.

    Args:
        path: a bundle, a checkpoint, a run; None means the latest run. The bundle beside a checkpoint counts too.
        bits: bit-widths; None takes all stored ones, of a bundle the exported ones.
        count: test images; None takes all.
        data_dir: where the data set's files lie.
        model: the network's own function ``pkg.module:function``, named again so that torch may import it.
        report: receives one line about what is being done.

    Returns:
        ``ok``, ``images``, ``results`` (per bit-width the rungs, what could not run here, and the layers) and
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
        beside = found.parent / BUNDLE_BESIDE
        bundle = Bundle.open(beside) if is_bundle(beside) else None
    checkpoint = load_checkpoint(found)
    if model is not None:
        _trust(model, checkpoint)
    exported = exported_bits(bundle) if bundle is not None and bundle.checkpoint_path == found else ()
    widths = list(bits or exported or checkpoint.network.widths)
    for width in widths:
        checkpoint.network.check_bits(width)
    images, labels, origin = labelled_images(checkpoint, count, data_dir)
    results = []
    for width in widths:
        report(f"verifying {width} bits on {origin}")
        results.append(_verify_width(checkpoint, bundle, width, images, labels))
    return {
        "checkpoint": str(found),
        "bundle": None if bundle is None else str(bundle.path),
        "images": origin,
        "completed": [] if bundle is None else _complete(bundle, results, origin),
        "ok": all(result["ok"] for result in results),
        "results": results,
    }


def _trust(model: str, checkpoint: Checkpoint) -> None:
    """Lets torch build the network from the user's own function, where the user names the one that it was made from."""
    stored = checkpoint.metadata["network"]["model"]
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


def _verify_width(
    checkpoint: Checkpoint,
    bundle: Bundle | None,
    bits: int,
    images: Floats,
    labels: NDArray[Any] | None,
) -> dict[str, Any]:
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(bits))
    compared: dict[str, _Compared] = {}
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for name, make in RUNGS.items():
        try:
            compared[name] = _Compared(make(checkpoint, bits))
        except EmqError as error:
            skipped[name] = str(error)
    for artefact in bundle.artefacts if bundle is not None else ():
        if bundle is None or artefact.role == "baseline" or bits not in artefact.bits:
            continue
        reason = unavailable(artefact)
        if reason is not None:
            skipped[artefact.id] = reason
            continue
        try:
            compared[artefact.id] = _Compared(artefact_rung(bundle, artefact, checkpoint, bits))
        except EmqError as error:
            failed[artefact.id] = str(error)
    for start in range(0, len(images), PARITY_BATCH):
        part = slice(start, start + PARITY_BATCH)
        expected = reference.run(images[part])
        for name, one in list(compared.items()):
            try:
                _add(one, reference, images[part], expected, None if labels is None else labels[part])
            except EmqError as error:
                failed[name] = str(error)
                compared.pop(name).rung.close()
    precision = _precision(compared, checkpoint, bits)
    rungs = {name: _row(one, labels is not None) for name, one in compared.items()}
    for artefact in bundle.artefacts if bundle is not None else ():
        inspect = compared[artefact.id].rung.precision if artefact.id in compared else None
        if artefact.status != VERIFIED and inspect is not None:
            rungs[artefact.id]["per_layer"] = [asdict(layer) for layer in inspect()]
    for name, row in rungs.items():
        locate = compared[name].rung.locate
        if row["wrong"] is not None and locate is not None:
            some = images[:PARITY_BATCH]
            row["first_layer"] = _layer_of(locate(some, reference.run(some)[1]))
    for one in compared.values():
        one.rung.close()
    return {
        "bits": bits,
        "ok": not failed and all(rung["wrong"] is None for name, rung in rungs.items() if name not in _ADVICE),
        "rungs": rungs,
        "failed": failed,
        "skipped": skipped,
        **precision_summary(precision),
    }


def _add(
    one: _Compared,
    reference: IntegerReference,
    images: Floats,
    expected: tuple[Floats, dict[str, Codes]],
    labels: NDArray[Any] | None,
) -> None:
    """Runs a rung on a batch, or on as much of it as the rung may still get."""
    most = one.rung.most_images
    count = len(images) if most is None else min(len(images), most - one.parity.images)
    if count <= 0:
        return
    actual = one.rung.run(images[:count])
    logits, codes = expected
    if one.rung.followed:
        followed = reference.follow(images[:count], actual[1])
        logits = followed.logits
        one.parity.add_followed(followed, actual)
    else:
        # A runtime that shows no codes is compared by its logits.
        one.parity.add((logits[:count], {name: codes[name][:count] for name in actual[1]}), actual)
    if labels is not None:
        one.correct += int((actual[0].argmax(1) == labels[:count]).sum())
        one.reference_correct += int((logits[:count].argmax(1) == labels[:count]).sum())


def _row(one: _Compared, labelled: bool) -> dict[str, Any]:
    images = max(one.parity.images, 1)
    accuracy = 100 * one.correct / images if labelled else None
    points = 100 * (one.correct - one.reference_correct) / images if labelled else None
    return one.parity.to_dict() | {
        "accuracy": accuracy,
        "accuracy_points": points,
        "wrong": one.rung.judge(one.parity, points),
        "first_layer": _layer_of(one.parity.first_difference),
    }


def _complete(bundle: Bundle, results: Sequence[dict[str, Any]], origin: str) -> list[str]:
    """Writes into the manifest what was not known when an artefact was built on a machine that could not run it."""
    completed = []
    for artefact in bundle.artefacts:
        rows = [entry["rungs"].get(artefact.id) for entry in results if entry["bits"] in artefact.bits]
        if artefact.status == VERIFIED or len(rows) < len(artefact.bits):
            continue
        if any(row is None or row["wrong"] is not None for row in rows):
            continue
        known = {layer["name"]: layer["computed_as"] for layer in rows[-1]["per_layer"]}
        layers = tuple(layer | {"computed_as": known[layer["name"]]} for layer in artefact.layers)
        numbers = {key: value for key, value in rows[-1].items() if key not in ("wrong", "per_layer")}
        parity = {"reference": "integer reference", "runtime": artefact.target, "images_from": origin, **numbers}
        with BundleWriter(bundle.path, bundle.about) as writer:
            writer.amend(artefact.id, status=VERIFIED, layers=layers, parity=parity)
        completed.append(artefact.id)
    return completed


def _layer_of(tensor: str | None) -> str | None:
    return None if tensor is None else tensor.removesuffix(CODES_SUFFIX).removesuffix(VALUES_SUFFIX)


def _precision(compared: dict[str, _Compared], checkpoint: Checkpoint, bits: int) -> list[LayerPrecision]:
    """What the first exported file says about the layers; without one, what onnxruntime does with the checkpoint."""
    for one in compared.values():
        if one.rung.precision is not None:
            return one.rung.precision()
    with open_runtime(checkpoint, "onnxruntime", bits=[bits]) as runtime:
        return runtime.precision(bits)

"""Export: files that are proven before they enter the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from emqdeploy.bundle import MANIFEST_FILE, Artefact, Bundle
from emqdeploy.bundle_writer import BundleWriter
from emqdeploy.checkpoint import Checkpoint, load_checkpoint
from emqdeploy.errors import EmqError
from emqdeploy.export import openvino_target, tensorrt_target  # noqa: F401  (register their targets)
from emqdeploy.export.selector import SELECTORS
from emqdeploy.export.settings import ExportSettings
from emqdeploy.export.storage import STORAGES
from emqdeploy.export.targets import TARGETS, Job, Product
from emqdeploy.progress import Report, silent
from emqdeploy.runs import find_checkpoint
from emqdeploy.runtimes import cuda
from emqdeploy.workflows import proof_openvino, proof_tensorrt  # noqa: F401  (register their provers)
from emqdeploy.workflows.baselines import baseline_products
from emqdeploy.workflows.proof import PROVERS, Proven, Prover
from emqdeploy.workflows.verify import PARITY_IMAGES, parity_images

BUNDLE_DIRECTORY = "bundle"

_PIXELS = 128 * 64 * 64
"""Pixels of all images of a proof: the integer reference computes in exact arithmetic, which large images make slow."""


def export(settings: ExportSettings, report: Report = silent) -> dict[str, Any]:
    """Exports bit-widths of a checkpoint into a bundle, each file proven first.

    Returns:
        ``bundle``, ``checkpoint`` and ``artefacts``: what this export added, as in the manifest, with ``path``.

    Raises:
        EmqError: a file differs from the reference, a layer of it runs in float and that was not allowed, a package is
            missing, or another export writes to the same directory.
    """
    exporter = TARGETS[settings.target]
    for registry, name in ((STORAGES, settings.storage), (SELECTORS, settings.selector)):
        if name is not None:
            _ = registry[name]  # an unknown name is refused before anything is read
    found = find_checkpoint(settings.path)
    checkpoint = load_checkpoint(found)
    widths = tuple(settings.bits or checkpoint.trained_bits)
    for width in widths:
        checkpoint.network.check_bits(width)
    # A checkpoint that lies in a bundle is exported into that bundle.
    home = found.parent if (found.parent / MANIFEST_FILE).exists() else found.parent / BUNDLE_DIRECTORY
    directory = settings.out or home
    rows = []
    with BundleWriter(directory, _about(checkpoint)) as writer:
        emq = writer.stage_checkpoint(found)
        images, origin = parity_images(checkpoint, _image_count(checkpoint), settings.data_dir)
        prover = Prover(checkpoint, images, origin, settings.allow_float, settings.data_dir)
        job = Job(checkpoint, emq, widths, writer.staging, settings, _gpu(), report)
        baselines = baseline_products(job, found.parent) if settings.with_baselines else ()
        for product in chain(exporter(job), baselines):
            is_baseline = product.role == "baseline"
            report(f"measuring {product.id}" if is_baseline else f"proving {product.id} on {origin}")
            prove = PROVERS["baseline" if is_baseline else product.target]
            artefact = _add(writer, product, prove(prover, product))
            rows.append(_row(directory, artefact))
    return {"bundle": str(directory), "checkpoint": str(found), "artefacts": rows}


def _add(writer: BundleWriter, product: Product, proven: Proven) -> Artefact:
    return writer.add(
        product.path,
        product.place,
        product.companions,
        id=product.id,
        bits=product.bits,
        target=product.target,
        flavour=product.flavour,
        role=product.role,
        shared=product.shared,
        built_for=product.built_for,
        layers=proven.layers,
        float_ops=proven.float_ops,
        parity=proven.parity,
        cost=proven.cost,
        status=proven.status,
    )


def _row(directory: Path, artefact: Artefact) -> dict[str, Any]:
    own = [name for name in artefact.shared if name.startswith(str(Path(artefact.file).with_suffix("")))]
    return artefact.to_dict() | {
        "path": str(directory / artefact.file),
        "total_bytes": artefact.size_bytes + sum((directory / name).stat().st_size for name in own),
        "stored_as": artefact.stored_as,
        "computed_as": artefact.computed_as,
        "integer_layers": artefact.integer_layers,
    }


def materialize(
    path: Path, bits: Sequence[int] | None, data_dir: Path | None, report: Report = silent
) -> dict[str, Any]:
    """Writes plain int8 ONNX files of a bundle whose files share the ``.emq``; needs no torch.

    Args:
        path: the bundle.
        bits: bit-widths; None takes those of the bundle's ``master`` files, and all stored ones where it has none.
        data_dir: where the data set's files lie; without the data set the files are proven on noise.
        report: receives progress.
    """
    bundle = Bundle.open(path)
    if bundle.checkpoint_path is None:
        raise EmqError(f"{path} holds no checkpoint to make files from; export it again")
    shared = {width for artefact in bundle.artefacts if artefact.flavour == "master" for width in artefact.bits}
    widths = tuple(bits or sorted(shared) or load_checkpoint(bundle.checkpoint_path).network.widths)
    settings = ExportSettings(path=bundle.checkpoint_path, bits=widths, out=bundle.path, data_dir=data_dir)
    return export(settings, report)


def _gpu() -> dict[str, str] | None:
    """The NVIDIA GPU of this machine; None where there is none, or nothing to reach it with."""
    try:
        return {"device": cuda.device_name(), "compute_capability": cuda.compute_capability()}
    except EmqError:
        return None


def _about(checkpoint: Checkpoint) -> dict[str, Any]:
    metadata = checkpoint.metadata
    return {
        "model": metadata["network"]["model"],
        "classes": checkpoint.classes,
        "preprocessing": metadata["preprocessing"],
        "input": {"name": "images", "shape": list(metadata["network"]["input_shape"]), "dtype": "float32"},
        "data": metadata["data"],
        "accuracy": metadata["accuracy"],
        "trained_bits": list(checkpoint.trained_bits),
    }


def _image_count(checkpoint: Checkpoint) -> int:
    _, height, width = checkpoint.metadata["network"]["input_shape"]
    return max(8, min(PARITY_IMAGES, _PIXELS // (height * width)))

"""Export: files that are proven before they enter the bundle."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from emqdeploy.errors import EmqError
from emqdeploy.exporters.products import Job, Product
from emqdeploy.exporters.selector import SELECTORS, several
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.exporters.storage import STORAGES
from emqdeploy.format.bundle import BASELINE, Artefact, Bundle, is_bundle
from emqdeploy.format.bundle_writer import BundleWriter, open_or_repair
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child, ChildLike, in_order, select_children
from emqdeploy.format.emq import load_checkpoint, read_card
from emqdeploy.format.runs import find_checkpoint
from emqdeploy.progress import Report, silent
from emqdeploy.runtimes.source import trust_own
from emqdeploy.runtimes.test_images import BUNDLED, bundled_images, find_test_set, save_test_set
from emqdeploy.workflows.baselines import baseline_products, check_float_model, measure_baseline
from emqdeploy.workflows.comparing import PARITY_IMAGES, Prover, parity_images
from emqdeploy.workflows.handlers import Proven, Target, find_target

BUNDLE_DIRECTORY = "bundle"
"""Where a bundle lies beside its checkpoint unless the user chose another place."""

_PIXELS = 128 * 64 * 64
"""Pixels of all images of a proof: the integer reference computes in exact arithmetic, which large images make slow."""


def export(settings: ExportSettings, report: Report = silent) -> dict[str, Any]:
    """Exports children of a checkpoint into a bundle, each file proven first.

    Returns:
        ``bundle``, ``checkpoint`` and ``artefacts``: what this export added, as in the manifest, with ``path``; and a
        ``note`` where no test images were at hand.

    Raises:
        EmqError: a file differs from the reference, a layer of it runs in float and that was not allowed, a package is
            missing, or another export writes to the same directory.
    """
    target = find_target(settings.target)
    for registry, name in ((STORAGES, settings.storage), (SELECTORS, settings.selector)):
        if name is not None:
            _ = registry[name]  # an unknown name is refused before anything is read
    found = settings.path
    if found is not None and is_bundle(found):
        bundle = open_or_repair(found, report)
        forms = target.forms(bundle, settings)
        if forms:
            return _build(bundle, target, forms, settings, report)
        if bundle.checkpoint_path is None:
            raise EmqError(f"{found} holds no checkpoint to export from; export from the run, or copy its bundle again")
        found = bundle.checkpoint_path
    found = find_checkpoint(found)
    checkpoint = load_checkpoint(found)
    network, card = checkpoint.network, checkpoint.card
    children = select_children(network.children, settings.bits or card.trained or "all")
    if settings.selector is not None:
        several(children)  # nothing is written before a selector is refused
    # A checkpoint that lies in a bundle is exported into that bundle.
    home = found.parent if is_bundle(found.parent) else found.parent / BUNDLE_DIRECTORY
    directory = settings.out or home
    if settings.with_baselines:
        trust_own(settings.model, card)
        check_float_model(found.parent, card)
    rows: list[dict[str, Any]] = []
    with BundleWriter(directory, card, network.children, report) as writer:
        emq = writer.stage_checkpoint(found)
        images = parity_images(card, _image_count(card), settings.data_dir, settings.data, found)
        computed = target.network(checkpoint)
        if computed.card.levels != card.levels:
            report(f"{settings.target} has 128 of 256 levels for what is never negative; proven is that network")
        prover = Prover(computed, images, settings.allow_float, settings.data_dir)
        job = Job(computed, emq, children, writer.staging, settings, report)
        baselines = baseline_products(job, found.parent) if settings.with_baselines else ()
        for product in chain(target.products(job), baselines):
            if product.role == BASELINE:
                report(f"measuring {product.id}")
                proven = measure_baseline(prover, product)
            else:
                report(f"proving {product.id} on {images.origin}")
                proven = find_target(product.target).prove(prover, product)
            rows.append(_row(directory, _add(writer, product, proven), product.children))
        _keep_images(writer, card, settings)
    made = {"bundle": str(directory), "checkpoint": str(found), "artefacts": rows}
    return made | ({"note": f"proven on {images.origin}: {images.missing}"} if images.missing else {})


def _keep_images(writer: BundleWriter, card: Card, settings: ExportSettings) -> None:
    """Gives the bundle some test images, so that it can be measured wherever it is copied to."""
    try:
        test = find_test_set(card, settings.data, settings.data_dir, labelled=False)
    except EmqError:
        if settings.test_images:
            raise
        return
    some = bundled_images(test, card, settings.test_images)
    if some is not None:
        staged = writer.staging / BUNDLED
        save_test_set(staged, some)
        writer.keep(staged, BUNDLED)


def materialize(
    path: Path,
    bits: str | Sequence[ChildLike] | None,
    data_dir: Path | None,
    report: Report = silent,
    data: str | None = None,
) -> dict[str, Any]:
    """Writes plain int8 ONNX files of a bundle whose files share the ``.emq``; needs no torch.

    Args:
        path: the bundle.
        bits: children; None takes those of the bundle's ``master`` files, and all stored ones where it has none.
        data_dir: where the data set's files lie; without test images the files are proven on noise.
        report: receives progress.
        data: other images to prove them on.
    """
    bundle = open_or_repair(path, report)
    if bundle.checkpoint_path is None:
        raise EmqError(f"{path} holds no checkpoint to make files from; export it again")
    shared = {child for one in bundle.artefacts if one.flavour == "master" for child in bundle.children_of(one)}
    wanted = bits or in_order(shared) or tuple(read_card(bundle.checkpoint_path)[1])
    settings = ExportSettings(path=bundle.checkpoint_path, bits=wanted, out=bundle.path, data_dir=data_dir, data=data)
    return export(settings, report)


def _build(
    bundle: Bundle, target: Target, forms: list[Artefact], settings: ExportSettings, report: Report
) -> dict[str, Any]:
    """Adds what a bundle lacks of files that a target builds from others in it, on the device."""
    with BundleWriter(bundle.path, bundle.card, bundle.children, report) as writer:
        built = target.build(bundle, forms, writer.staging, settings, report)
        rows = [_row(bundle.path, _add(writer, product, proven), product.children) for product, proven in built]
    checkpoint = bundle.checkpoint_path
    return {
        "bundle": str(bundle.path),
        "checkpoint": None if checkpoint is None else str(checkpoint),
        "artefacts": rows,
    }


def _add(writer: BundleWriter, product: Product, proven: Proven) -> Artefact:
    return writer.add(
        product.path,
        product.place,
        product.companions,
        id=product.id,
        children=tuple(child.name for child in product.children),
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


def _row(directory: Path, artefact: Artefact, children: Sequence[Child]) -> dict[str, Any]:
    own = [name for name in artefact.shared if name.startswith(str(Path(artefact.file).with_suffix("")))]
    return artefact.to_dict() | {
        "bits": sorted({child.bits for child in children}),
        "path": str(directory / artefact.file),
        "total_bytes": artefact.size_bytes + sum((directory / name).stat().st_size for name in own),
        "stored_as": artefact.stored_as,
        "computed_as": artefact.computed_as,
        "integer_layers": artefact.integer_layers,
    }


def _image_count(card: Card) -> int:
    _, height, width = card.input_shape
    return max(8, min(PARITY_IMAGES, _PIXELS // (height * width)))

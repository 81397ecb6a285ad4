"""Engines that a device lacks, built from the ONNX forms in a bundle; needs TensorRT there, neither torch nor onnx."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from emqdeploy.bundle import NOT_RUN, Artefact, Bundle
from emqdeploy.bundle_writer import BundleWriter
from emqdeploy.export.tensorrt_engine import CLASSIC, build_engine, load
from emqdeploy.progress import Report, silent

FORM = "tensorrt-onnx"
"""Target of the artefacts that engines are built from."""

MAX_BATCH = 8


def build_missing_engines(
    path: Path, gpu: dict[str, str], report: Report = silent, flavour: str = CLASSIC
) -> list[Artefact]:
    """Builds an engine for every ONNX form in a bundle that has none for this GPU and this TensorRT yet.

    Args:
        path: the bundle; the engines are added to it.
        gpu: ``device`` and ``compute_capability`` of the GPU that is at hand.
        report: receives progress: on a small device an engine takes minutes.
        flavour: of TensorRT.

    Returns:
        what was added.

    Raises:
        EmqError: TensorRT is missing or refuses a network, or the bundle cannot be written.
    """
    bundle = Bundle.open(path)
    forms = [artefact for artefact in bundle.artefacts if artefact.target == FORM]
    if not forms:
        return []
    here = {"version": str(load(flavour).__version__), "compute_capability": gpu["compute_capability"]}
    held = {(one.bits, one.flavour) for one in bundle.artefacts if one.target == flavour and _is_for(one, here)}
    missing = [form for form in forms if (form.bits, form.flavour) not in held]
    if not missing:
        return []
    with BundleWriter(bundle.path, _about(bundle)) as writer:
        return [_build(writer, bundle, form, gpu, flavour, report) for form in missing]


def _build(
    writer: BundleWriter, bundle: Bundle, form: Artefact, gpu: dict[str, str], flavour: str, report: Report
) -> Artefact:
    name = form.id.replace(FORM, flavour)
    report(f"building the engine {name} for {gpu['device']}, which can take minutes")
    capabilities = (gpu["compute_capability"],)
    engine = build_engine(flavour, bundle.file_of(form).read_bytes(), MAX_BATCH, capabilities, gpu)
    staged = writer.staging / f"{name}.engine"
    staged.write_bytes(engine.data)
    return writer.add(
        staged,
        f"tensorrt/{name}.engine",
        id=name,
        bits=form.bits,
        target=flavour,
        flavour=form.flavour,
        role=form.role,
        layers=form.layers,
        float_ops=form.float_ops,
        built_for=engine.built_for,
        parity=form.parity,
        status=NOT_RUN,
    )


def _is_for(artefact: Artefact, here: dict[str, str]) -> bool:
    """Whether an engine was built for this GPU and version."""
    for key, value in here.items():
        wanted = artefact.built_for.get(key)
        if value not in (wanted if isinstance(wanted, list | tuple) else [wanted]):
            return False
    return True


def _about(bundle: Bundle) -> dict[str, Any]:
    """The manifest's fields about the network, as they stand."""
    return {
        "model": bundle.model,
        "classes": list(bundle.classes),
        "preprocessing": bundle.preprocessing,
        "input": bundle.input,
        "data": bundle.data,
        "accuracy": {str(bits): percent for bits, percent in bundle.accuracy.items()},
        "trained_bits": list(bundle.trained_bits),
    }

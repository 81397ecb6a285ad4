"""ONNX: QDQ graphs of standard operators, proven in onnxruntime's integer kernels."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from emqdeploy.errors import UsageError
from emqdeploy.exporters.native_graph import select_natively
from emqdeploy.exporters.products import Job, Product, tag
from emqdeploy.exporters.selector import SELECTORS
from emqdeploy.exporters.settings import TRITON
from emqdeploy.exporters.storage import STORAGES, Stored
from emqdeploy.exporters.triton import as_triton_model
from emqdeploy.format.bundle import CHILD, INPUT, SELECTOR, Artefact, Bundle, Role
from emqdeploy.format.child import Child, in_order
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.precision import LayerPrecision
from emqdeploy.format.segment import NATIVE
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import quantized_tensors
from emqdeploy.runtimes.onnx_file import OnnxFileRuntime, open_sealed, open_selector
from emqdeploy.runtimes.onnx_session import create_session, session_options, with_outputs
from emqdeploy.workflows.comparing import Prover
from emqdeploy.workflows.cost import measured_cost
from emqdeploy.workflows.handlers import TARGETS, Proven, Target
from emqdeploy.workflows.rungs import Rung, rung_of, strictest


@TARGETS.register("onnx")
class Onnx(Target):
    """A file per child, and a selector where one is asked for; exact in every code."""

    name = "onnx"
    runtime = "onnxruntime"

    def products(self, job: Job) -> Iterator[Product]:
        """One graph per child; they share the ``.emq`` where they are stored as ``master``."""
        settings = job.settings
        if settings.kernels == NATIVE:
            job.report("exporting one ONNX graph with an input 'bits' for emqdeploy-native")
            children, stored = in_order(job.children), select_natively(job.checkpoint, job.emq, job.children)
            yield _product(job, f"onnx-{NATIVE}", children, NATIVE, NATIVE, stored, SELECTOR)
            return
        store = STORAGES[settings.storage]
        if settings.layout == TRITON and settings.storage == "master":
            raise UsageError("--layout triton needs self-contained files; use --storage int8 or packed")
        suffix = "" if settings.storage == "int8" else f"-{settings.storage}"
        for child in job.children:
            job.report(f"exporting {child} to ONNX")
            stored = store(job.checkpoint, job.emq, child)
            name = tag(child)
            yield _product(job, f"onnx{suffix}-{name}", (child,), settings.storage, f"{name}{suffix}", stored)
        if settings.selector is not None:
            kind = settings.selector
            job.report(f"exporting one ONNX graph with an input 'bits' ({kind})")
            stored = SELECTORS[kind](job.checkpoint, job.emq, job.children)
            children = in_order(job.children)
            yield _product(job, f"onnx-selector-{kind}", children, kind, f"selector-{kind}", stored, SELECTOR)

    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """In onnxruntime, as any program opens it."""
        path, judge = bundle.file_of(artefact), strictest(checkpoint)
        if artefact.role == SELECTOR:
            return rung_of(open_selector(path, artefact.flavour), child, judge)
        locate = functools.partial(_first_difference, path, quantized_tensors(checkpoint.skeleton))
        return rung_of(OnnxFileRuntime({child: path}), child, judge, locate=locate)

    def compare(self, prover: Prover, product: Product) -> tuple[Parity, tuple[LayerPrecision, ...]]:
        """The file's own logits, and every code of the graph that it holds."""
        logits, layers = super().compare(prover, product)
        codes = Parity()
        for child in product.children:
            fused = prover.fused(child, "onnxruntime-native" if product.flavour == NATIVE else "onnxruntime")
            self.require_right(product, child, fused)
            codes.merge(fused.parity)
        codes.max_logit_error = max(codes.max_logit_error, logits.max_logit_error)
        return codes, layers

    def prove(self, prover: Prover, product: Product) -> Proven:
        """Also measures what a form other than plain int8 costs."""
        proven = super().prove(prover, product)
        return replace(proven, cost=measured_cost(prover.checkpoint, product, prover.images.inputs[:1]))


def _product(
    job: Job, id_: str, children: tuple[Child, ...], flavour: str, name: str, stored: Stored, role: Role = CHILD
) -> Product:
    file = f"model-{name}.onnx"
    path = job.stage(file, stored.data)
    shared = (job.emq.name,) if stored.needs_checkpoint else ()
    product = Product(id_, children, "onnx", flavour, path, file, stored.stored_as, role, shared=shared)
    return as_triton_model(job, product, name) if job.settings.layout == TRITON else product


def _first_difference(path: Path, tensors: list[str], images: Floats, codes: Mapping[str, Codes]) -> str | None:
    """Runs an exported file once more with every quantized tensor as an output."""
    about, data = open_sealed(path)
    options = session_options(external_folder=path.parent, levels=about.card.levels)
    session = create_session(with_outputs(data, tensors), options)
    found = dict(zip(tensors, session.run(tensors, {INPUT: images}), strict=True))
    return next((name for name in tensors if not np.array_equal(found[name], codes[name])), None)

"""TensorRT: engines of both flavours, and the ONNX form that they are built from.

An engine runs only on the GPU that it was built for. Where that is not at hand, its ONNX form stands in for it, and
`verify` on the device completes the proof. What a device lacks is built there from the forms that lie in the bundle,
which takes neither torch nor the onnx package.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from emqdeploy.errors import EmqError, UsageError, require
from emqdeploy.exporters.onnx_writer import sealed
from emqdeploy.exporters.products import Job, Product, tag
from emqdeploy.exporters.settings import PLAIN, TRITON, ExportSettings
from emqdeploy.exporters.symmetric import symmetric_model, symmetric_selector, with_zero_points
from emqdeploy.exporters.tensorrt_engine import DEFAULT_CAPABILITIES, Engine, build_engine, check_capabilities
from emqdeploy.exporters.triton import as_triton_model
from emqdeploy.format.bundle import CHILD, INPUT, NOT_RUN, SELECTOR, Artefact, Bundle, Role
from emqdeploy.format.child import Child, in_order, select_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Floats
from emqdeploy.format.levels import HALF
from emqdeploy.format.tasks import TASKS
from emqdeploy.graph.parity import may_round, must_agree
from emqdeploy.graph.reference import CODES_SUFFIX, quantized_tensors
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.graph.tensorrt_flavours import CLASSIC, RTX, is_installed, load_tensorrt
from emqdeploy.progress import Report
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.adapters.tensorrt_runtime import TensorRtRuntime
from emqdeploy.runtimes.onnx_file import check_sealed
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.tensorrt_engines import built_elsewhere
from emqdeploy.workflows.comparing import Prover
from emqdeploy.workflows.handlers import TARGETS, Proven, Target, staged
from emqdeploy.workflows.rungs import Answers, Rung, rung_of

DIRECTORY = "tensorrt"
FORM = "tensorrt-onnx"

UNREAD = "unknown until loaded"
"""What an engine computes in that could not be opened here."""

_NOT_RUN_NOTE = (
    f"compared: the ONNX form, in onnxruntime as written; the engine itself is {NOT_RUN}, and emqdeploy verify on the"
    " device completes that"
)

_IF = "if"
"""The one kind of selector that TensorRT takes."""


@dataclass(frozen=True)
class _Form:
    """A symmetric ONNX model, sealed."""

    children: tuple[Child, ...]
    flavour: str
    role: Role
    name: str
    data: bytes
    stored_as: dict[str, str]


class _Symmetric(Target):
    """What TensorRT's symmetric int8, which has no zero point, makes of a network."""

    def network(self, checkpoint: Checkpoint) -> Checkpoint:
        """The network at half levels: zero is in the middle here, or below it are no codes and 128 above."""
        if checkpoint.card.levels == HALF:
            return checkpoint
        network = checkpoint.network.at_half_levels()
        card = msgspec.structs.replace(checkpoint.card, levels=HALF)
        zeros = {name: site.code_of_zero for name, site in network.sites.items()}
        skeleton = with_zero_points(checkpoint.skeleton, zeros)
        return replace(checkpoint, network=network, card=card, skeleton=skeleton)


@TARGETS.register(FORM)
class TensorRtForm(_Symmetric):
    """The ONNX form that TensorRT takes; its own builder makes the engine on the device.

    It is proven in onnxruntime as written: in float between the quantizers, so ties may round differently.
    """

    name = FORM
    runtime = "onnxruntime, the ONNX form as written"
    note = "compared: the ONNX form, in onnxruntime as written; what TensorRT computes in shows once it has built it"
    unread = UNREAD

    def products(self, job: Job) -> Iterator[Product]:
        """The forms, and the command that builds each."""
        if job.settings.layout == TRITON:
            raise UsageError("--layout triton takes engines, not what they are built from; use --target tensorrt")
        for form in _forms(job):
            place = f"{DIRECTORY}/model-{form.name}.onnx"
            yield Product(
                f"{FORM}-{form.name}",
                form.children,
                FORM,
                form.flavour,
                job.stage(f"model-{form.name}.onnx", form.data),
                place,
                form.stored_as,
                form.role,
                built_for={"command": _trtexec_command(place, job)},
            )

    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """In onnxruntime without its fusions, with every code that no branch of a selector hides."""
        onnx = require("onnx", "export")
        path, data = bundle.path / artefact.file, bundle.content_of(artefact)
        held = check_sealed(path, data).read_children()
        if child not in held or (artefact.role != SELECTOR and len(held) > 1):
            names = ", ".join(one.name for one in held)
            raise EmqError(f"{path} holds child {names}, not {child.name}; export the bundle again")
        feeds = selection(selector_values(held)[child]) if artefact.role == SELECTOR else {}
        model = onnx.load_from_string(data)
        zeros = {f"{name}{CODES_SUFFIX}": site.code_of_zero for name, site in checkpoint.network.sites.items()}
        defined = {name for node in model.graph.node for name in node.output}
        traced = [name for name in quantized_tensors(checkpoint.skeleton) if name in defined]
        for name in traced:
            model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
        session = create_session(model.SerializeToString(), session_options(optimise=False))
        output = TASKS[checkpoint.card.task].output

        def run(images: Floats) -> Answers:
            logits, *codes = session.run([output, *traced], {INPUT: images, **feeds})
            centred = zip(traced, codes, strict=True)
            return logits, {name: (values.astype(np.int16) + zeros[name]).astype(np.uint8) for name, values in centred}

        return Rung(run, may_round, followed="everywhere" if traced else None)

    def prove(self, prover: Prover, product: Product) -> Proven:
        """Says nothing of TensorRT itself."""
        return replace(super().prove(prover, product), status=NOT_RUN)


@TARGETS.register(RTX)
class TensorRtRtx(_Symmetric):
    """Engines for RTX GPUs, built ahead of time on any machine."""

    name = RTX
    runtime = "TensorRT on this GPU"
    note = "compared: decisions in TensorRT, which rounds in its own way, so its codes are its own"
    remedy = "use --target onnx"
    unread = UNREAD

    def flavour(self, report: Report) -> str:
        """The flavour of TensorRT that builds here."""
        load_tensorrt(RTX)
        return RTX

    def products(self, job: Job) -> Iterator[Product]:
        """An engine per form; each is built from the form that is proven in its place."""
        settings, flavour = job.settings, self.flavour(job.report)
        if flavour == RTX:
            check_capabilities(settings.compute_capabilities)
            if settings.layout == TRITON:
                raise UsageError(
                    "--layout triton loads engines of TensorRT itself, which needs a GPU to build; export there"
                )
        for form in _forms(job):
            job.report(f"building a {flavour} engine ({form.name})")
            engine = _build(flavour, form.data, settings)
            product = Product(
                f"{flavour}-{form.name}",
                form.children,
                flavour,
                form.flavour,
                job.stage(f"model-{form.name}.engine", engine.data),
                f"{DIRECTORY}/{flavour}-{form.name}.engine",
                form.stored_as,
                form.role,
                built_for=engine.built_for,
                stand_in=job.stage(f"stand-in-{form.name}.onnx", form.data),
            )
            yield as_triton_model(job, product, form.name) if settings.layout == TRITON else product

    def why_not(self, artefact: Artefact) -> str | None:
        """It needs the GPU and the version that it was built for."""
        return TensorRtRuntime.why_not() or built_elsewhere(artefact)

    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """On the GPU."""
        return rung_of(TensorRtRuntime(bundle, [artefact]), child, must_agree)

    def prove(self, prover: Prover, product: Product) -> Proven:
        """The form first, and where the engine runs here, the engine itself."""
        assert product.stand_in is not None
        form = replace(product, target=FORM, path=product.stand_in)
        proven = TensorRtForm().prove(prover, form)
        if self.why_not(staged(product, prover.checkpoint)[1]) is None:
            return super().prove(prover, product)
        return replace(proven, parity=proven.parity | {"note": _NOT_RUN_NOTE})

    def forms(self, bundle: Bundle, settings: ExportSettings) -> list[Artefact]:
        """The ONNX forms of what is asked for; none where they are not all there, or another kind is meant."""
        if settings.fp16 or settings.selector or settings.out or settings.layout != PLAIN:
            return []
        forms = [artefact for artefact in bundle.artefacts if artefact.target == FORM]
        if settings.bits is None:
            return forms
        wanted = {child.name for child in select_children(bundle.children, settings.bits)}
        chosen = [form for form in forms if wanted.issuperset(form.children)]
        return chosen if {name for form in chosen for name in form.children} == wanted else []

    def build(
        self, bundle: Bundle, forms: list[Artefact], staging: Path, settings: ExportSettings, report: Report
    ) -> Iterator[tuple[Product, Proven]]:
        """Builds an engine for every form that has none for this GPU and this TensorRT yet."""
        flavour = self.flavour(report)
        wanted = [cuda.compute_capability()] if flavour == CLASSIC else list(settings.compute_capabilities)
        if flavour == RTX:
            check_capabilities(wanted)
            wanted = wanted or list(DEFAULT_CAPABILITIES)
        version = str(load_tensorrt(flavour).__version__)
        held = {
            (one.children, one.flavour)
            for one in bundle.artefacts
            if one.target == flavour and one.built_for.get("version") == version and _covers(one, wanted)
        }
        for form in forms:
            if (form.children, form.flavour) in held:
                continue
            name = form.id.replace(FORM, flavour)
            report(f"building the engine {name} for compute capability {', '.join(wanted)}, which can take minutes")
            data = bundle.content_of(form)
            check_sealed(bundle.path / form.file, data)
            engine = _build(flavour, data, settings)
            path = staging / f"{name}.engine"
            path.write_bytes(engine.data)
            product = Product(
                name,
                bundle.children_of(form),
                flavour,
                form.flavour,
                path,
                f"{DIRECTORY}/{name}.engine",
                {layer.name: layer.stored_as for layer in form.layers},
                form.role,
                built_for=engine.built_for,
            )
            yield product, Proven(form.layers, form.parity | {"note": _NOT_RUN_NOTE}, form.float_ops, NOT_RUN)


@TARGETS.register(CLASSIC)
class TensorRt(TensorRtRtx):
    """Classic TensorRT where it is installed and a GPU is at hand, else TensorRT-RTX, which builds without one."""

    name = CLASSIC

    def flavour(self, report: Report) -> str:
        """The flavour of TensorRT that builds here."""
        gpu = gpu_here()
        if gpu is not None and is_installed(CLASSIC):
            return CLASSIC
        load_tensorrt(RTX)
        why = "there is no GPU here" if gpu is None else "TensorRT itself is not installed"
        report(f"{why}, so TensorRT-RTX builds the engines, for RTX GPUs; on a Jetson use --target {FORM}")
        return RTX


def gpu_here() -> dict[str, str] | None:
    """The NVIDIA GPU of this machine; None where there is none, or nothing to reach it with."""
    try:
        return {"device": cuda.device_name(), "compute_capability": cuda.compute_capability()}
    except EmqError:
        return None


def _build(flavour: str, form: bytes, settings: ExportSettings) -> Engine:
    return build_engine(flavour, form, settings.max_batch, settings.compute_capabilities, gpu_here())


def _forms(job: Job) -> Iterator[_Form]:
    """The symmetric models that the user asked for, one at a time."""
    settings, checkpoint = job.settings, job.checkpoint
    if settings.storage != "int8":
        raise UsageError(
            f"--storage {settings.storage} is a form of --target onnx: TensorRT has no convolution on 2 or 4 bits and"
            " builds from int8; leave --storage out"
        )
    if settings.selector not in (None, _IF):
        raise UsageError(f"--selector {settings.selector} is a form of --target onnx; use --selector {_IF}")
    suffix = "-fp16" if settings.fp16 else ""
    stored = dict.fromkeys(checkpoint.network.layers, "int8")
    for child in job.children:
        job.report(f"exporting {child} for TensorRT")
        data = sealed(symmetric_model(checkpoint, child, settings.fp16), checkpoint, [child], "int8")
        yield _Form((child,), f"int8{suffix}", CHILD, f"{tag(child)}{suffix}", data, stored)
    if settings.selector is not None:
        children = in_order(job.children)
        model = symmetric_selector(checkpoint, children, settings.fp16)
        data = sealed(model, checkpoint, children, "int8", selector=_IF)
        yield _Form(children, _IF, SELECTOR, f"selector-{_IF}{suffix}", data, stored)


def _trtexec_command(name: str, job: Job) -> str:
    """The command that builds the engine of an ONNX file on the device, run in the bundle."""
    shape = "x".join(map(str, job.checkpoint.card.input_shape))
    one, most = f"{INPUT}:1x{shape}", f"{INPUT}:{job.settings.max_batch}x{shape}"
    return (
        f"trtexec --onnx={name} --saveEngine={name.removesuffix('.onnx')}.engine --stronglyTyped"
        f" --minShapes={one} --optShapes={one} --maxShapes={most}"
    )


def _covers(artefact: Artefact, capabilities: list[str]) -> bool:
    """Whether an engine was built for all of these GPUs."""
    built: Any = artefact.built_for.get("compute_capability")
    return set(built if isinstance(built, list | tuple) else [built]).issuperset(capabilities)

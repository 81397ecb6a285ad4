"""The TensorRT targets: engines, and the ONNX form with the command that builds it on the device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.export.graph import sealed
from emqdeploy.export.settings import TRITON
from emqdeploy.export.symmetric import symmetric_model, symmetric_selector
from emqdeploy.export.targets import TARGETS, Job, Product, in_layout
from emqdeploy.export.tensorrt_engine import CLASSIC, RTX, build_engine, check_capabilities, is_installed, load

DIRECTORY = "tensorrt"


@dataclass(frozen=True)
class _Form:
    """A symmetric ONNX model, sealed."""

    bits: tuple[int, ...]
    flavour: str
    role: str
    name: str
    data: bytes
    stored_as: dict[str, str]


@TARGETS.register("tensorrt")
def tensorrt_products(job: Job) -> Iterator[Product]:
    """Classic TensorRT where it is installed and a GPU is at hand, else TensorRT-RTX, which builds without one."""
    if job.gpu is not None and is_installed(CLASSIC):
        yield from _engines(job, CLASSIC)
        return
    load(RTX)
    why = "there is no GPU here" if job.gpu is None else "TensorRT itself is not installed"
    job.report(f"{why}, so TensorRT-RTX builds the engines, for RTX GPUs; on a Jetson use --target tensorrt-onnx")
    yield from _engines(job, RTX)


@TARGETS.register("tensorrt-rtx")
def tensorrt_rtx_products(job: Job) -> Iterator[Product]:
    """Engines for RTX GPUs, built ahead of time on any machine."""
    load(RTX)
    yield from _engines(job, RTX)


@TARGETS.register("tensorrt-onnx")
def tensorrt_onnx_products(job: Job) -> Iterator[Product]:
    """The ONNX form that TensorRT takes; its own builder makes the engine on the device."""
    if job.settings.layout == TRITON:
        raise UsageError("--layout triton takes engines, not what they are built from; use --target tensorrt")
    for form in _forms(job):
        name = f"{DIRECTORY}/model-{form.name}.onnx"
        path = job.stage(f"model-{form.name}.onnx", form.data)
        built_for = {"command": trtexec_command(name, job)}
        yield Product(
            f"tensorrt-onnx-{form.name}",
            form.bits,
            "tensorrt-onnx",
            form.flavour,
            path,
            name,
            form.stored_as,
            form.role,
            built_for=built_for,
            stand_in=path,
        )


def trtexec_command(name: str, job: Job) -> str:
    """The command that builds the engine of an ONNX file on the device, run in the bundle."""
    shape = "x".join(map(str, job.checkpoint.metadata["network"]["input_shape"]))
    one, most = f"images:1x{shape}", f"images:{job.settings.max_batch}x{shape}"
    return (
        f"trtexec --onnx={name} --saveEngine={name.removesuffix('.onnx')}.engine --stronglyTyped"
        f" --minShapes={one} --optShapes={one} --maxShapes={most}"
    )


def _engines(job: Job, flavour: str) -> Iterator[Product]:
    if flavour == RTX:
        check_capabilities(job.settings.compute_capabilities)
    if job.settings.layout == TRITON and flavour == RTX:
        raise UsageError("--layout triton loads engines of TensorRT itself, which needs a GPU to build; export there")
    for form in _forms(job):
        job.report(f"building a {flavour} engine ({form.name})")
        settings = job.settings
        engine = build_engine(flavour, form.data, settings.max_batch, settings.compute_capabilities, job.gpu)
        product = Product(
            f"{flavour}-{form.name}",
            form.bits,
            flavour,
            form.flavour,
            job.stage(f"model-{form.name}.engine", engine.data),
            f"{DIRECTORY}/{flavour}-{form.name}.engine",
            form.stored_as,
            form.role,
            built_for=engine.built_for,
            stand_in=job.stage(f"stand-in-{form.name}.onnx", form.data),
        )
        yield in_layout(job, product, form.name)


def _forms(job: Job) -> Iterator[_Form]:
    """The symmetric models that the user asked for, one at a time."""
    settings, layers = job.settings, job.checkpoint.network.layers
    if settings.storage != "int8":
        raise UsageError(
            f"--storage {settings.storage} is a form of --target onnx: TensorRT has no convolution on 2 or 4 bits and"
            " builds from int8; leave --storage out"
        )
    suffix = "-fp16" if settings.fp16 else ""
    stored = dict.fromkeys(layers, "int8")
    for width in job.widths:
        job.report(f"exporting {width} bits for TensorRT")
        model = symmetric_model(job.checkpoint, width, settings.fp16)
        yield _Form((width,), f"int8{suffix}", "width", f"w{width}{suffix}", _seal(job, model, [width]), stored)
    if settings.selector is not None:
        kind, widths = settings.selector, tuple(sorted(job.widths))
        model = symmetric_selector(job.checkpoint, widths, kind, settings.fp16)
        if kind == "derive":
            stored = {name: "int8" if layer.pinned else "int8 codes" for name, layer in layers.items()}
        yield _Form(widths, kind, "selector", f"selector-{kind}{suffix}", _seal(job, model, widths), stored)


def _seal(job: Job, model: Any, widths: Sequence[int]) -> bytes:
    extra = {"selector": job.settings.selector} if len(widths) > 1 else {}
    return sealed(model, job.checkpoint, widths, "int8", form="tensorrt", **extra)

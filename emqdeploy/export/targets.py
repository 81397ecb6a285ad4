"""Targets by name: each turns a checkpoint into staged files, which a workflow proves and moves into the bundle."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import UsageError
from emqdeploy.export.selector import SELECTORS
from emqdeploy.export.settings import TRITON, ExportSettings
from emqdeploy.export.storage import STORAGES, Stored
from emqdeploy.progress import Report, silent
from emqdeploy.registry import Registry


@dataclass(frozen=True)
class Job:
    """One export at work.

    Attributes:
        checkpoint: what is exported.
        emq: its file, in the staging directory.
        widths: the bit-widths, in the order that the user named.
        staging: where files are written before they are proven.
        settings: what the user asked for.
        gpu: ``device`` and ``compute_capability`` of the GPU that is at hand, None where there is none.
        report: receives one line about what is being done.
    """

    checkpoint: Checkpoint
    emq: Path
    widths: tuple[int, ...]
    staging: Path
    settings: ExportSettings
    gpu: dict[str, str] | None = None
    report: Report = silent

    @property
    def model(self) -> str:
        """The network's name, fit for a file."""
        name = str(self.checkpoint.metadata["network"]["model"])
        return "".join(letter if letter.isalnum() or letter in "-_." else "-" for letter in name)

    def stage(self, name: str, data: bytes) -> Path:
        """Writes a file below the staging directory."""
        path = self.staging / name
        path.write_bytes(data)
        return path


@dataclass(frozen=True)
class Product:
    """A staged file, not yet proven.

    Attributes:
        id: of the artefact that it becomes.
        bits: the bit-widths that it serves, ascending.
        target: as in the manifest.
        flavour: as in the manifest.
        path: the staged file.
        place: its place in the bundle.
        stored_as: type of the weights, by layer.
        role: as in the manifest.
        companions: staged files that it needs, by their place in the bundle.
        shared: files of the bundle that it needs.
        built_for: where it may be loaded.
        stand_in: the ONNX form that is proven in its place where the file itself cannot run here.
    """

    id: str
    bits: tuple[int, ...]
    target: str
    flavour: str
    path: Path
    place: str
    stored_as: dict[str, str]
    role: str = "width"
    companions: dict[str, Path] = field(default_factory=dict)
    shared: tuple[str, ...] = ()
    built_for: dict[str, Any] = field(default_factory=dict)
    stand_in: Path | None = None


TARGETS: Registry[Callable[[Job], Iterator[Product]]] = Registry("target")
"""Exporters by name; each refuses what it cannot do before it yields its first product."""


@TARGETS.register("onnx")
def onnx_products(job: Job) -> Iterator[Product]:
    """QDQ graphs of standard operators: one per bit-width, and a selector where one is asked for."""
    settings = job.settings
    store = STORAGES[settings.storage]
    select = None if settings.selector is None else SELECTORS[settings.selector]
    if settings.layout == TRITON and settings.storage == "master":
        raise UsageError("--layout triton needs self-contained files; use --storage int8 or packed")
    suffix = "" if settings.storage == "int8" else f"-{settings.storage}"
    for width in job.widths:
        job.report(f"exporting {width} bits to ONNX")
        stored = store(job.checkpoint, job.emq, width)
        yield _onnx_product(job, f"onnx{suffix}-w{width}", (width,), settings.storage, f"w{width}{suffix}", stored)
    if select is not None:
        job.report(f"exporting one ONNX graph with an input 'bits' ({settings.selector})")
        stored = select(job.checkpoint, job.emq, job.widths)
        kind, widths = str(settings.selector), tuple(sorted(job.widths))
        yield _onnx_product(job, f"onnx-selector-{kind}", widths, kind, f"selector-{kind}", stored, "selector")


def _onnx_product(
    job: Job, id_: str, bits: tuple[int, ...], flavour: str, name: str, stored: Stored, role: str = "width"
) -> Product:
    file = f"model-{name}.onnx"
    path = job.stage(file, stored.data)
    shared = (job.emq.name,) if stored.needs_checkpoint else ()
    product = Product(id_, bits, "onnx", flavour, path, file, stored.stored_as, role, shared=shared)
    return in_layout(job, product, name)


def in_layout(job: Job, product: Product, name: str) -> Product:
    """Returns the product with the place that the layout gives it."""
    if job.settings.layout != TRITON:
        return product
    from emqdeploy.export.triton import as_triton_model

    return as_triton_model(job, product, name)

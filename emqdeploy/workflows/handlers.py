"""What an export target is: how its files are made, opened, proven and judged, and why one cannot run here.

A module of `emqdeploy.workflows.targets` holds one handler each, or a few that belong together. `export` proves a file
with its handler before it enters the bundle, and `verify` proves it again with the same one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from emqdeploy.errors import EmqError
from emqdeploy.exporters.products import Job, Product
from emqdeploy.exporters.settings import ExportSettings
from emqdeploy.format.bundle import NOT_RUN, VERIFIED, Artefact, Bundle, SharedFile, sha256
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.precision import UNKNOWN, LayerPrecision, float_layers
from emqdeploy.graph.parity import Parity
from emqdeploy.progress import Report
from emqdeploy.registry import Registry, load_package
from emqdeploy.workflows.comparing import Compared, Prover, layer_of
from emqdeploy.workflows.rungs import Rung


@dataclass(frozen=True)
class Proven:
    """What the proof of a product found: the fields of `Artefact` that are not known before."""

    layers: tuple[LayerPrecision, ...]
    parity: dict[str, Any]
    float_ops: dict[str, int]
    status: str = VERIFIED
    cost: dict[str, Any] = field(default_factory=dict)


class Target(ABC):
    """One kind of exported file.

    Attributes:
        name: on the command line and in manifests.
        runtime: where its files are proven, in words for the manifest.
        note: what such a proof leaves open, for the manifest; empty where it leaves nothing.
        remedy: what to do where a file differs.
        unread: what computes layers of which the runtime does not tell.
    """

    name: ClassVar[str]
    runtime: ClassVar[str]
    note: ClassVar[str] = ""
    remedy: ClassVar[str] = "please report this"
    unread: ClassVar[str] = UNKNOWN

    @abstractmethod
    def products(self, job: Job) -> Iterator[Product]:
        """Writes staged files, one at a time; refuses what it cannot do before the first one."""

    @abstractmethod
    def open(self, bundle: Bundle, artefact: Artefact, child: Child, checkpoint: Checkpoint) -> Rung:
        """Opens a file in the runtime that it was made for; how it is judged comes with it.

        Args:
            bundle: where it lies; of a file that is proven first, the staging directory.
            artefact: the file.
            child: one that it serves.
            checkpoint: what it was made from.

        Raises:
            EmqError: one sentence: the file was altered, or its runtime refuses it.
        """

    def network(self, checkpoint: Checkpoint) -> Checkpoint:
        """The network as this target computes it, which is what its files are made from and proven against."""
        return checkpoint

    def why_not(self, artefact: Artefact) -> str | None:
        """Why a file cannot run here, in one sentence; None where it can."""
        return None

    def forms(self, bundle: Bundle, settings: ExportSettings) -> list[Artefact]:
        """What lies in a bundle that this target's files can be built from without the checkpoint."""
        return []

    def build(
        self, bundle: Bundle, forms: list[Artefact], staging: Path, settings: ExportSettings, report: Report
    ) -> Iterator[tuple[Product, Proven]]:
        """Builds what the bundle lacks of files that are made from its `forms`; what is known of those holds for them.

        Args:
            bundle: what the user named.
            forms: from the method of that name.
            staging: where files are written.
            settings: what the user asked for.
            report: receives progress.
        """
        raise EmqError("this target builds nothing from the files of a bundle; name its checkpoint")

    def compare(self, prover: Prover, product: Product) -> tuple[Parity, tuple[LayerPrecision, ...]]:
        """Compares a staged file with the reference at each of its children.

        Returns:
            the comparison of all of them, and the layers at the widest.
        """
        bundle, artefact = staged(product, prover.checkpoint)
        total, computed = Parity(), {}
        for child in product.children:
            rung = self.open(bundle, artefact, child, prover.checkpoint)
            try:
                compared = prover.compare(rung, child)
                self.require_right(product, child, compared)
                total.merge(compared.parity)
                if rung.precision is not None and child == product.children[-1]:
                    computed = {layer.name: (layer.computed_as, layer.integer) for layer in rung.precision()}
            finally:
                rung.close()
        # What the layers are stored as, the writer knows best; what computes them, the runtime.
        layers = (
            LayerPrecision(layer.name, layer.grid_bits, layer.stored_as, *computed.get(layer.name, (self.unread, None)))
            for layer in artefact.layers
        )
        return total, tuple(layers)

    def require_right(self, product: Product, child: Child, compared: Compared) -> None:
        """Raises for a file that does not answer as it has to."""
        if compared.wrong is not None:
            layer = layer_of(compared.parity.first_difference)
            where = f", first in {layer}" if layer else ""
            raise EmqError(
                f"{product.path.name} differs from what was trained at {child} ({compared.wrong}{where}); it was not"
                f" kept, {self.remedy}"
            )

    def prove(self, prover: Prover, product: Product) -> Proven:
        """Proves a staged file.

        Raises:
            EmqError: it answers wrongly, its runtime refuses it, or layers run in float and nobody allowed that.
        """
        parity, layers = self.compare(prover, product)
        slow = float_layers(layers)
        if slow and not prover.allow_float:
            raise EmqError(
                f"{product.path.name} runs {len(slow)} of {len(layers)} layers in float ({', '.join(slow[:3])}); it was"
                " not kept, pass --allow-float to accept that"
            )
        about = {"reference": "integer reference", "runtime": self.runtime, "images_from": prover.images.origin}
        about |= {"note": self.note} if self.note else {}
        return Proven(layers, about | parity.to_dict(), prover.float_ops)


TARGETS: Registry[type[Target]] = Registry("target")


def find_target(name: str) -> Target:
    """Returns the handler of a target; raises a sentence that lists the names."""
    load_package("emqdeploy.workflows.targets")
    return TARGETS[name]()


def staged(product: Product, checkpoint: Checkpoint) -> tuple[Bundle, Artefact]:
    """A product as an artefact of a bundle that lies in the staging directory, so that it is opened like any other."""
    network, path = checkpoint.network, product.path
    widest = product.children[-1]
    files = {one.name: SharedFile(sha256(one), one.stat().st_size) for one in product.companions.values()}
    artefact = Artefact(
        id=product.id,
        children=tuple(child.name for child in product.children),
        target=product.target,
        flavour=product.flavour,
        role=product.role,
        file=path.name,
        sha256=sha256(path),
        size_bytes=path.stat().st_size,
        status=NOT_RUN,
        shared=tuple(files),
        layers=tuple(
            LayerPrecision(name, network.grid_bits(name, widest), product.stored_as[name]) for name in network.layers
        ),
        built_for=product.built_for,
    )
    return Bundle(path.parent, checkpoint.card, network.children, (artefact,), files, None), artefact

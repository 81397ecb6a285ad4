"""Where an adapter gets the graph of a child: from a checkpoint's codes, or from the files of a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from emqdeploy.format.bundle import Artefact, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.ir import Ir, read_ir
from emqdeploy.format.levels import HALF, Levels
from emqdeploy.format.precision import INT8, LayerPrecision
from emqdeploy.graph.filling import filled_model


@dataclass(frozen=True)
class Graphs:
    """Graphs by child, made or read when they are asked for.

    Attributes:
        input_shape: ``(C, H, W)`` of one image.
        sources: per child, returns a serialised ONNX model, or a network of OpenVINO that passed the gate.
        layers: per child, the layers as they are stored.
        levels: those of the network, see `emqdeploy.format.levels`.
        checkpoint: loads what the graphs were made from; None where that is not at hand.
    """

    input_shape: tuple[int, ...]
    sources: dict[Child, Callable[[], bytes | Ir]]
    layers: dict[Child, tuple[LayerPrecision, ...]]
    levels: Levels = HALF
    checkpoint: Callable[[], Checkpoint] | None = None

    @classmethod
    def of_checkpoint(cls, checkpoint: Checkpoint) -> Graphs:
        """Fills the checkpoint's graph with the numbers of a child when it is asked for."""
        network = checkpoint.network

        def source(child: Child) -> Callable[[], bytes]:
            return lambda: filled_model(checkpoint.skeleton, network.initializers(child)).SerializeToString()

        def layers(child: Child) -> tuple[LayerPrecision, ...]:
            return tuple(LayerPrecision(name, network.grid_bits(name, child), INT8) for name in network.layers)

        return cls(
            checkpoint.card.input_shape,
            {child: source(child) for child in network.children},
            {child: layers(child) for child in network.children},
            checkpoint.card.levels,
            lambda: checkpoint,
        )

    @classmethod
    def of_artefacts(
        cls, bundle: Bundle, artefacts: Sequence[Artefact], checkpoint: Callable[[], Checkpoint] | None = None
    ) -> Graphs:
        """Reads OpenVINO's files of one child each; of several for one child the newest."""

        def read(artefact: Artefact) -> Ir:
            xml = bundle.content_of(artefact)
            weights = b"".join(map(bundle.shared_content, artefact.shared))
            return read_ir(xml, weights, bundle.card, bundle.path / artefact.file)

        def source(artefact: Artefact) -> Callable[[], Ir]:
            return lambda: read(artefact)

        held = {child: artefact for artefact in artefacts for child in bundle.children_of(artefact)}
        return cls(
            bundle.card.input_shape,
            {child: source(artefact) for child, artefact in held.items()},
            {child: artefact.layers for child, artefact in held.items()},
            bundle.card.levels,
            checkpoint,
        )

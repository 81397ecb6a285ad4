"""The native adapter: one network in our own library serves every child, and a switch costs nothing.

Weights lie in memory once, as codes; each layer of each child is computed by the kernel that was fastest here when the
network was opened. Networks with operators in float are refused: they run in onnxruntime.
"""

from __future__ import annotations

from collections.abc import Sequence

from emqdeploy.format.bundle import Bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.precision import INT8, LayerPrecision, bit_planes
from emqdeploy.runtimes.base import RUNTIMES, Runtime, bundled_checkpoint, wanted_children
from emqdeploy.runtimes.native_library import PACKAGE, NativeNetwork


class _Engine:
    """One child of the shared network."""

    def __init__(self, network: NativeNetwork, index: int) -> None:
        self._network = network
        self._index = index
        # All children share the codes; what a child has of its own is small.
        self.size_bytes = network.size_bytes // len(network.children)

    def run(self, images: Floats) -> Floats:
        return self._network.run(self._index, images)


@RUNTIMES.register("native")
class NativeRuntime(Runtime):
    """Runs a checkpoint with emqdeploy's own kernels.

    Args:
        checkpoint: what to run.
        children: those to have ready; all of them are, whatever is asked for.
        residency: what counts as resident, see `Runtime`; it changes no memory here.
        threads: threads inside a layer; None uses every core.
    """

    name = "native"
    library = PACKAGE

    def __init__(
        self,
        checkpoint: Checkpoint,
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
    ) -> None:
        self._network = NativeNetwork(checkpoint, threads)
        self._frozen = checkpoint.network
        super().__init__(checkpoint.network.children, checkpoint.card.input_shape, children, residency)

    @classmethod
    def open_bundle(cls, bundle: Bundle, children: Sequence[ChildLike] | None, **options: object) -> NativeRuntime:
        """Opens the checkpoint of a bundle."""
        return cls(bundled_checkpoint(bundle, cls.name), wanted_children(bundle, children), **options)  # type: ignore[arg-type]

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every site."""
        self.check_images(images)
        return self._network.trace(self._index(self.child), images)

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Every layer, with the kernel that was chosen for it."""
        child = self.find(child)
        report = []
        for name, layer in self._frozen.layers.items():
            bits = self._frozen.grid_bits(name, child)
            stored = INT8 if layer.pinned else bit_planes(bits)
            report.append(LayerPrecision(name, bits, stored, self._network.method(child, name), True))
        return report

    def _index(self, child: Child) -> int:
        return self._network.children.index(child)

    def _build(self, child: Child) -> _Engine:
        return _Engine(self._network, self._index(child))

"""The torch adapter: the reference that the runtimes are compared with, in float on the deployed grid."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from emqdeploy.errors import EmqError, require
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.card import Card
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.precision import FLOAT32, LayerPrecision
from emqdeploy.graph.reference import CODES_SUFFIX
from emqdeploy.runtimes.base import RUNTIMES, Runtime, bundled_checkpoint, wanted_children

_REMEDY = "use the original, or another runtime"


class _TorchEngine:
    """One child as a torch module."""

    def __init__(self, torch: Any, module: Any, size_bytes: int) -> None:
        self._torch = torch
        self.module = module
        self.size_bytes = size_bytes

    def run(self, images: Floats) -> Floats:
        with self._torch.inference_mode():
            logits: Floats = self.module(self._torch.from_numpy(images)).numpy()
        return logits


@RUNTIMES.register("torch")
class TorchRuntime(Runtime):
    """Runs a checkpoint in torch: fake-quantized activations, weights ``scale * z``, the rounded integer bias.

    Args:
        checkpoint: what to run.
        children: those to build at once; None builds the widest one, others when they are first used.
        residency: what stays in memory, see `Runtime`; weights are float32 here, four bytes each.
        threads: torch's threads, of the whole process; None leaves them as they are.
    """

    name = library = "torch"

    def __init__(
        self,
        checkpoint: Checkpoint,
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
    ) -> None:
        self._torch = require("torch", "train")
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._frozen = checkpoint.network
        self._structure = structure_of(checkpoint.card)
        self._lock = threading.Lock()
        stored, shape = checkpoint.network.children, checkpoint.card.input_shape
        super().__init__(stored, shape, stored[-1:] if children is None else children, residency)

    @classmethod
    def open_bundle(cls, bundle: Bundle, children: Sequence[ChildLike] | None, **options: Any) -> TorchRuntime:
        """Opens the checkpoint of a bundle."""
        return cls(bundled_checkpoint(bundle, cls.name), wanted_children(bundle, children), **options)

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every site."""
        self.check_images(images)
        active = self._in_use()
        traced: dict[str, Codes] = {}
        handles = []
        taps = self._structure.taps()
        for name, site in self._frozen.sites.items():
            zero = site.code_range(active.child).zero_point
            scale = site.scales[active.child]

            def keep(
                module: Any, inputs: Any, output: Any, name: str = name, zero: int = zero, scale: float = scale
            ) -> None:
                codes = (output / scale).round() + zero
                traced[name + CODES_SUFFIX] = codes.to(self._torch.uint8).numpy()

            handles.append(active.engine.module.get_submodule(taps[name]).register_forward_hook(keep))
        try:
            return active.engine.run(images), traced
        finally:
            for handle in handles:
                handle.remove()

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Every layer multiplies in float32 here; that is what a reference is for."""
        child, network = self.find(child), self._frozen
        return [
            LayerPrecision(name, network.grid_bits(name, child), FLOAT32, FLOAT32, False) for name in network.layers
        ]

    def _build(self, child: Child) -> _TorchEngine:
        from emqdeploy.quant.deploy import deployed_reference

        with self._lock:  # the structure is shared while it is rewritten
            try:
                module = deployed_reference(self._structure, self._frozen, child)
            except (LookupError, AttributeError, ValueError, RuntimeError) as error:
                raise EmqError(f"the structure that this checkpoint names has other layers; {_REMEDY}") from error
        return _TorchEngine(self._torch, module, 4 * self._frozen.weight_count())


def structure_of(card: Card) -> Any:
    """Builds the network that a card describes; that part of it has no schema, and may say anything.

    Raises:
        EmqError: it says nothing that can be built, or describes another network than the rest of the card.
    """
    from emqdeploy.models import check_trusted
    from emqdeploy.quant.build import NetworkSpec

    try:
        check_trusted(card.model)
    except EmqError as error:
        raise EmqError(f"{error}, or choose another runtime") from error
    try:
        spec = NetworkSpec.from_dict(card.structure)
        if (spec.model, spec.classes, spec.input_shape) != (card.model, len(card.classes), card.input_shape):
            raise EmqError(f"this checkpoint names the structure of another network than its own; {_REMEDY}")
        return spec.build()
    except EmqError:
        raise
    except Exception as error:
        raise EmqError(
            f"this checkpoint does not say how its network is built, which runtime 'torch' needs; {_REMEDY}"
        ) from error

"""The onnxruntime adapter: one session per child, built from the codes in memory.

onnxruntime packs weights when a session is created, so they must be constant by then; a network whose weights change
inside the graph runs 2.5 to 4 times slower. Switching between resident sessions is an assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emqdeploy.errors import UsageError
from emqdeploy.format.bundle import Bundle
from emqdeploy.format.child import Child, ChildLike
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.grid import Codes, Floats
from emqdeploy.format.levels import FULL, Levels
from emqdeploy.format.precision import INT8, LayerPrecision, bit_planes
from emqdeploy.format.segment import NATIVE
from emqdeploy.format.tasks import CLASSIFICATION
from emqdeploy.runtimes.base import RUNTIMES, Runtime, bundled_checkpoint, wanted_children
from emqdeploy.runtimes.machine import saturates
from emqdeploy.runtimes.native_session import NativeSession
from emqdeploy.runtimes.onnx_file import OnnxFiles
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import SessionEngine, create_session, session_options, with_outputs
from emqdeploy.runtimes.proof import Proof
from emqdeploy.runtimes.scratch import Scratch


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(OnnxFiles):
    """Runs a checkpoint in onnxruntime.

    Args:
        checkpoint: its codes stay in memory, so that any child can be built at any time without the file.
        children: those to keep resident from the start; None keeps every stored one. Others are built when asked for.
        residency: what stays in memory, see `Runtime`.
        threads: threads inside an operator; None uses every core.
        provider: ``cpu``, ``cuda`` or ``tensorrt``: what computes; it is an error where onnxruntime does not have it.
            ``native``: the processor, with our own kernels as operators in one session for all children.
        optimise: False keeps the graph as written (the float rung of parity); not with ``native``.
        trace: also return the codes of these quantized tensors from `run_traced`; not with ``native``.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        children: Sequence[ChildLike] | None = None,
        residency: str = "all",
        threads: int | None = None,
        provider: str = "cpu",
        optimise: bool = True,
        trace: Sequence[str] = (),
    ) -> None:
        self.threads = threads
        self.device = provider
        self.optimise = optimise
        self.trace = list(trace)
        self._network, self._levels = checkpoint.network, checkpoint.card.levels
        if provider == NATIVE and (trace or not optimise):
            raise UsageError("provider native computes as it is; leave out optimise and trace, or use runtime 'native'")
        self._native = NativeSession(checkpoint, threads) if provider == NATIVE else None
        if self._native is None and not trace and optimise and self.needs_proof(self._levels):
            self._proof = Proof(self.name, self.library, provider, lambda: checkpoint)
        self._scratch = Scratch(self._network.weight_count())
        self._skeleton = with_outputs(checkpoint.skeleton, self.trace) if trace else checkpoint.skeleton
        super().__init__(self._network.children, checkpoint.card.input_shape, children, residency)
        self._scratch.release()

    @classmethod
    def open_bundle(
        cls, bundle: Bundle, children: Sequence[ChildLike] | None, flavour: str | None = None, **options: Any
    ) -> Runtime:
        """Opens a bundle: from its checkpoint, which has every child, or from the files of one flavour.

        Args:
            bundle: what `emqdeploy export` wrote.
            children: those to keep ready; None keeps the exported ones.
            flavour: ``int8`` or ``packed`` runs these files, ``if`` the selector; None builds sessions from the
                checkpoint in the bundle, where it lies there.
            **options: of the adapter.
        """
        if flavour is not None or bundle.checkpoint is None:
            return super().open_bundle(bundle, children, flavour, **options)
        return cls(bundled_checkpoint(bundle, cls.name), wanted_children(bundle, children), **options)

    @classmethod
    def needs_proof(cls, levels: Levels) -> bool:
        """Where products could saturate it is told to use other kernels, and does not say whether it has them."""
        return levels == FULL and saturates()

    def close(self) -> None:
        """Drops the sessions."""
        super().close()
        self._native = None

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every traced tensor."""
        self.check_images(images)
        logits, *codes = self._engine(None).run_outputs([CLASSIFICATION.output, *self.trace], images)
        return logits, dict(zip(self.trace, codes, strict=True))

    def precision(self, child: ChildLike) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        child = self.find(child)
        if self._native is not None:
            return self._native.precision(child)
        options = session_options(self.threads, self.optimise, levels=self._levels)
        arrays = self._network.initializers(child)
        kernels = profile_kernels(self._skeleton, options, arrays, self.input_shape, self.device)
        report = []
        for name, layer in self._network.layers.items():
            bits = self._network.grid_bits(name, child)
            stored = INT8 if layer.pinned else bit_planes(bits)
            report.append(LayerPrecision(name, bits, stored, *computed_as(kernels.get(name))))
        return report

    def _build(self, child: Child) -> SessionEngine:
        if self._native is not None:
            return self._native.engine(child)
        options = session_options(self.threads, self.optimise, levels=self._levels)
        with self._scratch.lent() as scratch:
            arrays = self._network.initializers(child, scratch)
            session = create_session(self._skeleton, options, arrays, self.device)
            engine = SessionEngine(session, sum(array.nbytes for array in arrays.values()))
            if self._proof is not None:
                self._proof(child, (self._skeleton, *(array.tobytes() for array in arrays.values())), engine.run)
        return engine

"""The onnxruntime adapter: one session per bit-width, built from the codes in memory.

onnxruntime packs weights when a session is created, so they must be constant by then; a network whose weights change
inside the graph runs 2.5 to 4 times slower. Switching between resident sessions is an assignment.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emqdeploy.bundle import Bundle
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError
from emqdeploy.grid import Codes, Floats
from emqdeploy.runtimes.base import RUNTIMES, LayerPrecision, Runtime, bundled_checkpoint, wanted_bits
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options, with_outputs
from emqdeploy.runtimes.scratch import Scratch


class SessionEngine:
    """A session of one bit-width.

    Args:
        session: of onnxruntime.
        size_bytes: what it keeps: the weights, packed.
        extra: inputs beside the images that stay the same.
    """

    def __init__(self, session: Any, size_bytes: int, extra: dict[str, Any] | None = None) -> None:
        self.session = session
        self.size_bytes = size_bytes
        self._extra = extra or {}

    def run(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        logits: Floats = self.run_outputs(("logits",), images)[0]
        return logits

    def run_outputs(self, names: Sequence[str], images: Floats) -> list[Any]:
        """Returns the named outputs of the graph."""
        try:
            outputs: list[Any] = self.session.run(names, {"images": images, **self._extra})
        except Exception as error:
            raise EmqError(f"onnxruntime could not run this batch: {str(error).splitlines()[0]}") from error
        return outputs


@RUNTIMES.register("onnxruntime")
class OnnxRuntime(Runtime):
    """Runs a checkpoint in onnxruntime.

    Args:
        checkpoint: its codes stay in memory, so that any bit-width can be built at any time without the file.
        bits: bit-widths to keep resident from the start; None keeps every stored one. Others are built when asked for.
        residency: what stays in memory, see `Runtime`.
        threads: threads inside an operator; None uses every core.
        provider: ``cpu``, ``cuda`` or ``tensorrt``: what computes; it is an error where onnxruntime does not have it.
        optimise: False keeps the graph as written (the float rung of parity).
        trace: also return the codes of these quantized tensors from `run_traced`.
    """

    name = "onnxruntime"

    def __init__(
        self,
        checkpoint: Checkpoint,
        bits: Sequence[int] | None = None,
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
        self._network = checkpoint.network
        self._scratch = Scratch(self._network.weight_count())
        self._skeleton = with_outputs(checkpoint.skeleton, self.trace) if trace else checkpoint.skeleton
        shape = checkpoint.metadata["network"]["input_shape"]
        super().__init__(checkpoint.network.widths, shape, bits, residency)
        self._scratch.release()

    @classmethod
    def open_bundle(
        cls, bundle: Bundle, bits: Sequence[int] | None, flavour: str | None = None, **options: Any
    ) -> Runtime:
        """Opens a bundle: from its checkpoint, which has every bit-width, or from the files of one flavour.

        Args:
            bundle: what `emqdeploy export` wrote.
            bits: bit-widths to keep ready; None keeps the exported ones.
            flavour: ``int8`` or ``packed`` runs these files, ``if`` or ``derive`` the selector; None builds sessions
                from the checkpoint in the bundle, where it lies there.
            **options: of the adapter.
        """
        from emqdeploy.runtimes.onnx_file import open_files

        if flavour is not None or bundle.checkpoint is None:
            return open_files(bundle, bits, flavour, **options)
        return cls(bundled_checkpoint(bundle, cls.name), wanted_bits(bundle, bits), **options)

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every traced tensor."""
        self.check_images(images)
        logits, *codes = self._engine(None).run_outputs(["logits", *self.trace], images)
        return logits, dict(zip(self.trace, codes, strict=True))

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Reports every layer; kernels are read from a profile of one real inference."""
        self.check_bits(bits)
        options = session_options(self.threads, self.optimise)
        arrays = self._network.initializers(bits)
        kernels = profile_kernels(self._skeleton, options, arrays, self.input_shape, self.device)
        return [
            LayerPrecision(
                name,
                layer.grid_bits(bits),
                "int8" if layer.pinned else f"{bits} bit-plane{'s' if bits > 1 else ''}",
                computed_as(kernels.get(name)),
            )
            for name, layer in self._network.layers.items()
        ]

    def _build(self, bits: int) -> SessionEngine:
        options = session_options(self.threads, self.optimise)
        with self._scratch.lent() as scratch:
            arrays = self._network.initializers(bits, scratch)
            session = create_session(self._skeleton, options, arrays, self.device)
        return SessionEngine(session, sum(array.nbytes for array in arrays.values()))

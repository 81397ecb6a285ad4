"""The torch adapter: the reference that the runtimes are compared with, in float on the deployed grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import require
from emqdeploy.grid import Codes, Floats
from emqdeploy.reference import CODES_SUFFIX
from emqdeploy.runtimes.base import RUNTIMES, LayerPrecision, RuntimeBase


@RUNTIMES.register("torch")
class TorchRuntime(RuntimeBase):
    """Runs a checkpoint in torch: fake-quantized activations, weights ``scale * z``, the rounded integer bias.

    Args:
        checkpoint: what to run.
        bits: accepted for symmetry; every stored bit-width is built when it is first used.
        threads: torch's threads; None leaves them as they are.
    """

    name = "torch"

    def __init__(self, checkpoint: Checkpoint, bits: Sequence[int] | None = None, threads: int | None = None) -> None:
        self._torch = require("torch", "train")
        from emqdeploy.quant.build import NetworkSpec

        spec = NetworkSpec.from_dict(checkpoint.metadata["network"])
        super().__init__(checkpoint.network.widths, spec.input_shape)
        if threads is not None:
            self._torch.set_num_threads(threads)
        self._frozen = checkpoint.network
        self._structure = spec.build()
        self._modules: dict[int, Any] = {}
        self.set_bits(max(bits) if bits else self.bits)

    def set_bits(self, bits: int) -> None:
        """Switches; a bit-width that was not used yet is built first."""
        from emqdeploy.quant.deploy import deployed_reference

        self.check_bits(bits)
        if bits not in self._modules:
            self._modules[bits] = deployed_reference(self._structure, self._frozen, bits)
        self._module, self.bits = self._modules[bits], bits

    def __call__(self, images: Floats) -> Floats:
        """Returns logits ``(N, classes)``."""
        self.check_images(images)
        module = self._module
        with self._torch.inference_mode():
            logits: Floats = module(self._torch.from_numpy(images)).numpy()
        return logits

    def run_traced(self, images: Floats) -> tuple[Floats, dict[str, Codes]]:
        """Returns logits and the codes of every site."""
        traced: dict[str, Codes] = {}
        handles = []
        taps = self._structure.taps()
        for name, site in self._frozen.sites.items():
            zero = site.code_range(self.bits).zero_point
            scale = site.scales[self.bits]

            def keep(
                module: Any, inputs: Any, output: Any, name: str = name, zero: int = zero, scale: float = scale
            ) -> None:
                codes = (output / scale).round() + zero
                traced[name + CODES_SUFFIX] = codes.to(self._torch.uint8).numpy()

            handles.append(self._module.get_submodule(taps[name]).register_forward_hook(keep))
        try:
            return self(images), traced
        finally:
            for handle in handles:
                handle.remove()

    def precision(self, bits: int) -> list[LayerPrecision]:
        """Every layer multiplies in float32 here; that is what a reference is for."""
        layers = self._frozen.layers
        return [LayerPrecision(name, layer.grid_bits(bits), "float32", "float32") for name, layer in layers.items()]

    def close(self) -> None:
        """Drops every network."""
        self._modules.clear()

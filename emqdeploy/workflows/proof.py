"""Proof of exported files: what each answers, and which kernels it runs, before it takes its place in a bundle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from emqdeploy.bundle import VERIFIED
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError
from emqdeploy.export.targets import Product
from emqdeploy.floating import float_operators
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.reference import IntegerReference, layer_values, quantized_tensors
from emqdeploy.registry import Registry
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.onnx_kernels import computed_as
from emqdeploy.workflows.cost import load, measured_cost, profile, selection

BATCH = 64


@dataclass(frozen=True)
class Proven:
    """What the proof of one product found: the fields of `Artefact` that are not known before."""

    layers: tuple[dict[str, Any], ...]
    parity: dict[str, Any]
    float_ops: dict[str, int]
    status: str = VERIFIED
    cost: dict[str, Any] = field(default_factory=dict)


class Prover:
    """Compares files with the integer reference of one checkpoint.

    Args:
        checkpoint: what was exported.
        images: normalised images ``(N, C, H, W)``.
        origin: where the images are from, for the manifest.
        allow_float: accept layers that run in float.
        data_dir: where the data set's files lie.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        images: Floats,
        origin: str,
        allow_float: bool = False,
        data_dir: Path | None = None,
    ) -> None:
        self.checkpoint, self.images, self.origin, self.allow_float = checkpoint, images, origin, allow_float
        self.data_dir = data_dir
        self.float_ops = float_operators(checkpoint.skeleton)
        self._expected: dict[int, tuple[Floats, dict[str, Codes]]] = {}
        self._fused: dict[int, Parity] = {}

    def expected(self, bits: int) -> tuple[Floats, dict[str, Codes]]:
        """Returns the reference's logits and codes, computed once per bit-width."""
        if bits not in self._expected:
            reference = IntegerReference(self.checkpoint.skeleton, self.checkpoint.network.initializers(bits))
            self._expected[bits] = reference.run(self.images, BATCH)
        return self._expected[bits]

    def fused(self, bits: int) -> Parity:
        """Compares every code of every quantized tensor of the fused graph with the reference, once per bit-width.

        An exported file shows its logits only, so the codes are read from the same graph with more outputs. Behind
        float operators the reference goes on with the graph's own codes.
        """
        if bits not in self._fused:
            tensors = quantized_tensors(self.checkpoint.skeleton)
            if self.float_ops:
                tensors += layer_values(self.checkpoint.skeleton)
            runtime: Any = open_runtime(self.checkpoint, "onnxruntime", bits=[bits], trace=tensors)
            parity = Parity()
            if self.float_ops:
                self._follow(parity, bits, runtime.run_traced)
            else:
                self.compare(parity, bits, runtime.run_traced)
            runtime.close()
            self._fused[bits] = parity
        return self._fused[bits]

    def _follow(self, parity: Parity, bits: int, run: Callable[[Floats], tuple[Floats, dict[str, Any]]]) -> None:
        reference = IntegerReference(self.checkpoint.skeleton, self.checkpoint.network.initializers(bits))
        for start in range(0, len(self.images), BATCH):
            images = self.images[start : start + BATCH]
            actual = run(images)
            parity.add_followed(reference.follow(images, actual[1]), actual)

    def compare(self, parity: Parity, bits: int, run: Callable[[Floats], tuple[Floats, dict[str, Codes]]]) -> None:
        """Adds all images to a comparison; what ``run`` returns no codes of is compared by its logits alone."""
        logits, codes = self.expected(bits)
        for start in range(0, len(self.images), BATCH):
            part = slice(start, start + BATCH)
            actual = run(self.images[part])
            parity.add((logits[part], {name: codes[name][part] for name in actual[1]}), actual)

    def layers(self, product: Product, kernels: dict[str, str], unknown: str = "unknown") -> tuple[dict[str, Any], ...]:
        """Describes every layer as a manifest does; ``kernels`` says what computes it."""
        network = self.checkpoint.network.layers
        width = max(product.bits)
        return tuple(
            {
                "name": name,
                "grid_bits": layer.grid_bits(width),
                "stored_as": product.stored_as[name],
                "computed_as": kernels.get(name, unknown),
            }
            for name, layer in network.items()
        )

    def require_integers(self, product: Product, layers: Sequence[dict[str, Any]]) -> None:
        """Raises where layers run in float and nobody allowed that."""
        slow = [layer["name"] for layer in layers if not layer["computed_as"].startswith(("int8", "unknown"))]
        if slow and not self.allow_float:
            raise EmqError(
                f"{product.path.name} runs {len(slow)} of {len(layers)} layers in float ({', '.join(slow[:3])}); it was"
                " not kept, pass --allow-float to accept that"
            )


PROVERS: Registry[Callable[[Prover, Product], Proven]] = Registry("prover")
"""How files are proven, by target; of baselines by their role."""


@PROVERS.register("onnx")
def prove_onnx(prover: Prover, product: Product) -> Proven:
    """In onnxruntime: every code of the fused graph, and the file's own logits, are those of the reference."""
    session = load(product.path)
    logits, codes = Parity(), Parity()
    for bits in product.bits:
        feeds = selection(product, bits)

        def run(images: Floats, feeds: dict[str, Any] = feeds) -> tuple[Floats, dict[str, Codes]]:
            return session.run(["logits"], {"images": images, **feeds})[0], {}

        prover.compare(logits, bits, run)
        codes.merge(prover.fused(bits))
    # Float operators round a little differently in every graph, so a file with some can only be close.
    wrong = logits.unsafe_flips if prover.float_ops else logits.max_logit_error > 0
    if wrong or not codes.exact:
        where = codes.first_difference or "logits"
        raise EmqError(
            f"{product.path.name} differs from what was trained (first in {where}); it was not kept, please report this"
        )
    bits = max(product.bits)
    kernels = profile(product, selection(product, bits), prover.checkpoint.metadata["network"]["input_shape"])
    layers = prover.layers(product, {name: computed_as(kernel) for name, kernel in kernels.items()})
    prover.require_integers(product, layers)
    parity = {
        "reference": "integer reference",
        "runtime": "onnxruntime",
        "images_from": prover.origin,
        **codes.to_dict(),
        "max_logit_error": logits.max_logit_error,
    }
    return Proven(layers, parity, prover.float_ops, cost=measured_cost(prover.checkpoint, product, prover.images[:1]))

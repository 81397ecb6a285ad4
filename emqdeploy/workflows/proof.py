"""Proof of exported files: what each answers, and which kernels it runs, before it takes its place in a bundle."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from emqdeploy.bundle import NOT_RUN, VERIFIED
from emqdeploy.checkpoint import Checkpoint
from emqdeploy.errors import EmqError, require
from emqdeploy.export.storage import store_int8
from emqdeploy.export.targets import Product
from emqdeploy.floating import float_operators
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.reference import CODES_SUFFIX, IntegerReference, layer_values, quantized_tensors
from emqdeploy.registry import Registry
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.onnx_kernels import computed_as, profile_kernels
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.tensorrt_runtime import MODULES, inspected_types, load_tensorrt, tensorrt_here, type_of

BATCH = 64

UNKNOWN = "unknown until loaded"
"""What an engine computes in that could not be opened here."""

COST_ROUNDS = 5
"""Interleaved rounds of a cost that is measured during the export; `bench` measures in earnest."""


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
    """

    def __init__(self, checkpoint: Checkpoint, images: Floats, origin: str, allow_float: bool = False) -> None:
        self.checkpoint, self.images, self.origin, self.allow_float = checkpoint, images, origin, allow_float
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
        slow = [layer["name"] for layer in layers if layer["computed_as"] not in ("int8", "unknown", UNKNOWN)]
        if slow and not self.allow_float:
            raise EmqError(
                f"{product.path.name} runs {len(slow)} of {len(layers)} layers in float ({', '.join(slow[:3])}); it was"
                " not kept, pass --allow-float to accept that"
            )


PROVERS: Registry[Callable[[Prover, Product], Proven]] = Registry("prover")
"""How a target's files are proven, by target."""


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
    return Proven(layers, parity, prover.float_ops, cost=_cost(prover, product))


@PROVERS.register("tensorrt-onnx")
@PROVERS.register("tensorrt-rtx")
@PROVERS.register("tensorrt")
def prove_tensorrt(prover: Prover, product: Product) -> Proven:
    """The ONNX form in onnxruntime, as written: in float between the quantizers, so ties may round differently.

    An engine is opened only where its flavour of TensorRT finds a GPU; elsewhere what it computes in stays unknown
    until `verify` on the device has looked.
    """
    parity = symmetric_parity(prover, product)
    if parity.unsafe_flips:
        raise EmqError(
            f"{product.path.name} differs from what was trained (first in {parity.first_difference}); it was not kept,"
            " please report this"
        )
    kernels = engine_kernels(prover, product) if runs_here(product) else {}
    layers = prover.layers(product, kernels, unknown=UNKNOWN)
    prover.require_integers(product, layers)
    described = {
        "reference": "integer reference",
        "runtime": "onnxruntime, the ONNX form as written",
        "images_from": prover.origin,
        "note": _TENSORRT_NOTES[product.target != "tensorrt-onnx"],
        **parity.to_dict(),
    }
    return Proven(layers, described, prover.float_ops, status=NOT_RUN)


_TENSORRT_NOTES = {
    False: "compared: the ONNX form, in onnxruntime as written; what TensorRT computes in shows once it has built it",
    True: f"compared: the ONNX form, in onnxruntime as written; the engine itself is {NOT_RUN}, and emqdeploy verify on"
    " the device completes that",
}


def runs_here(product: Product) -> bool:
    """Whether an engine can be opened on this machine."""
    if product.target not in MODULES or tensorrt_here() is not None:
        return False
    wanted = product.built_for["compute_capability"]
    return cuda.compute_capability() in (wanted if isinstance(wanted, list) else [wanted])


def engine_kernels(prover: Prover, product: Product) -> dict[str, str]:
    """Reads from an engine itself in which type each layer computes."""
    trt = load_tensorrt(product.target)
    engine = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(product.path.read_bytes())
    if engine is None:
        raise EmqError(f"TensorRT {trt.__version__} cannot load the engine that it built ({product.path.name})")
    text = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    types = inspected_types(text)
    return {name: type_of(name, types) for name in prover.checkpoint.network.layers}


def symmetric_parity(prover: Prover, product: Product) -> Parity:
    """Compares every code of the symmetric graph with the reference, at every bit-width that it serves."""
    assert product.stand_in is not None
    onnx = require("onnx", "export")
    model = onnx.load(product.stand_in)
    sites = prover.checkpoint.network.sites
    zeros = {f"{name}{CODES_SUFFIX}": 128 if site.signed else 0 for name, site in sites.items()}
    defined = {name for node in model.graph.node for name in node.output}
    # The branches of an If hide their tensors: its logits stand for them.
    traced = [name for name in quantized_tensors(prover.checkpoint.skeleton) if name in defined]
    for name in traced:
        model.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT8, None))
    session = create_session(model.SerializeToString(), session_options(optimise=False))
    parity = Parity()
    for bits in product.bits:
        feeds = selection(product, bits)

        def run(images: Floats, feeds: dict[str, Any] = feeds) -> tuple[Floats, dict[str, Codes]]:
            logits, *codes = session.run(["logits", *traced], {"images": images, **feeds})
            centred = zip(traced, codes, strict=True)
            return logits, {name: (values.astype(np.int16) + zeros[name]).astype(np.uint8) for name, values in centred}

        prover.compare(parity, bits, run)
    return parity


def load(path: Path) -> Any:
    """Opens a file in onnxruntime as any program would."""
    return create_session(path, session_options())


def profile(product: Product, feeds: dict[str, Any], input_shape: Sequence[int]) -> dict[str, str]:
    """Returns the kernel of every layer of a staged file, by layer name."""
    return profile_kernels(product.path, session_options(), None, tuple(input_shape), feeds=feeds)


def selection(product: Product, bits: int) -> dict[str, Any]:
    """The further input of a selector."""
    return {"bits": np.array([bits], np.int64)} if product.role == "selector" else {}


def _cost(prover: Prover, product: Product) -> dict[str, Any]:
    """What another form than plain int8 costs in onnxruntime, beside the int8 file of the same bit-width."""
    if product.flavour == "int8":
        return {}
    bits = max(product.bits)
    plain = store_int8(prover.checkpoint, product.path, bits).data
    image = prover.images[:1]
    makers = {
        "plain": lambda: create_session(plain, session_options()),
        "this": lambda: load(product.path),
    }
    load_ms = {name: min(_timed(make) for _ in range(2)) for name, make in makers.items()}
    feeds = {"plain": {"images": image}, "this": {"images": image, **selection(product, bits)}}
    sessions = {name: make() for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for _ in range(COST_ROUNDS):
        for name, session in sessions.items():
            run = functools.partial(session.run, None, feeds[name])
            run()
            times[name] += [_timed(run) for _ in range(3)]
    latency_ms = {name: float(np.median(samples)) for name, samples in times.items()}
    return {
        "compared_with": f"int8 file at {bits} bits, onnxruntime, one image, measured during the export",
        "load_ms": round(load_ms["this"], 2),
        "load_ms_int8": round(load_ms["plain"], 2),
        "latency_ms": round(latency_ms["this"], 4),
        "latency_ms_int8": round(latency_ms["plain"], 4),
        "latency_ratio": round(latency_ms["this"] / latency_ms["plain"], 3),
    }


def _timed(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return 1000 * (time.perf_counter() - start)

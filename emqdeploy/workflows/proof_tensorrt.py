"""Proof of what TensorRT builds: its ONNX form in onnxruntime, and the engine itself where a GPU is at hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from emqdeploy.bundle import NOT_RUN
from emqdeploy.errors import EmqError, require
from emqdeploy.export.targets import Product
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.reference import CODES_SUFFIX, quantized_tensors
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.runtimes.tensorrt_runtime import MODULES, inspected_types, load_tensorrt, tensorrt_here, type_of
from emqdeploy.workflows.cost import selection
from emqdeploy.workflows.proof import PROVERS, Proven, Prover

UNKNOWN = "unknown until loaded"
"""What an engine computes in that could not be opened here."""


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

"""Proof of OpenVINO's IR: OpenVINO rounds in its own way, so its decisions are compared, not its codes."""

from __future__ import annotations

from emqdeploy.errors import EmqError
from emqdeploy.export.targets import Product
from emqdeploy.grid import Codes, Floats
from emqdeploy.parity import Parity
from emqdeploy.runtimes.openvino_runtime import CPU_SETTINGS, executed_as, shared_core
from emqdeploy.workflows.proof import PROVERS, Proven, Prover

LARGEST_DISAGREEMENT = 0.005
"""Share of images whose arg-max may differ from that of the integer reference where its top two logits are more than
1 % of the logit range apart; one image always may."""


@PROVERS.register("openvino")
def prove_openvino(prover: Prover, product: Product) -> Proven:
    """Compares the decisions on every image, and reads from the compiled model what each layer computes in."""
    core = shared_core()
    (bits,) = product.bits
    try:
        compiled = core.compile_model(core.read_model(product.path), "CPU", CPU_SETTINGS)
    except RuntimeError as error:
        raise EmqError(f"OpenVINO cannot load {product.path.name}: {str(error).strip().splitlines()[-1]}") from error
    parity = Parity()

    def run(images: Floats) -> tuple[Floats, dict[str, Codes]]:
        return compiled(images)[0], {}

    prover.compare(parity, bits, run)
    if parity.unsafe_flips > max(1, LARGEST_DISAGREEMENT * parity.images):
        raise EmqError(
            f"{product.path.name} decides differently from what was trained on {parity.unsafe_flips} of {parity.images}"
            " images in OpenVINO; it was not kept, use --target onnx"
        )
    layers = prover.layers(product, executed_as(compiled))
    prover.require_integers(product, layers)
    described = {
        "reference": "integer reference",
        "runtime": "openvino on this CPU",
        "images_from": prover.origin,
        "note": "compared: decisions in OpenVINO, which rounds in its own way, so its codes are its own",
        **parity.to_dict(),
    }
    return Proven(layers, described, prover.float_ops)

"""What onnxruntime makes of a network: the golden record of kernels, each held to the integer reference."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import torch

from emqdeploy.format.frozen import FrozenNetwork
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import IntegerReference, layer_values, quantized_tensors
from emqdeploy.quant.network import MultiBitNetwork
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runtimes.onnx_session import create_session, session_options, with_outputs

SHORT = {
    "QLinearGlobalAveragePool": "QPool",
    "DequantizeLinear": "DQ",
    "QuantizeLinear": "Q",
    "BatchNormalization": "Norm",
    "LayerNormalization": "LayerNorm",
}
MOVES = ("Transpose", "Clip", "Reshape", "Flatten", "Squeeze", "Split", "Gather", "Shape", "Concat", "Expand")


def kernels_that_run(network: MultiBitNetwork, frozen: FrozenNetwork, shape: tuple[int, int, int], folder: Path) -> str:
    """Returns the operators of the optimised graph, but for moves, after checking it.

    Every layer is one integer kernel; codes and float answers of layers are those of the integer reference at every
    batch size; behind float operators codes are at most a rounding away.
    """
    skeleton = export_skeleton(network, frozen, shape)
    tensors = quantized_tensors(skeleton) + layer_values(skeleton)
    found = ""
    for child in frozen.children:
        arrays = frozen.initializers(child)
        options = session_options(threads=1)
        options.optimized_model_filepath = str(folder / "optimised.onnx")
        session = create_session(skeleton, options, arrays)
        graph = onnx.load(folder / "optimised.onnx", load_external_data=False).graph
        counts = Counter(SHORT.get(node.op_type, node.op_type) for node in graph.node if node.op_type not in MOVES)
        assert counts["QLinearConv"] + counts["QGemm"] == len(network.layers)
        found = " ".join(sorted(f"{kind}:{count}" for kind, count in counts.items()))
        reference = IntegerReference(skeleton, arrays)
        traced = create_session(with_outputs(skeleton, tensors), session_options(threads=1), arrays)
        for count in (1, 3):
            images = torch.randn(count, *shape, generator=torch.Generator().manual_seed(count)).clamp(-2, 2).numpy()
            logits, *values = traced.run(["logits", *tensors], {"images": images})
            observed = dict(zip(tensors, values, strict=True))
            followed = reference.follow(images, observed)
            parity = Parity()
            parity.add_followed(followed, (logits, observed))
            assert parity.exact, parity.first_difference
            assert parity.differing_rounded <= 1e-3 * parity.rounded
            np.testing.assert_array_equal(logits, followed.logits)
            np.testing.assert_allclose(session.run(["logits"], {"images": images})[0], logits, rtol=0, atol=1e-6)
            assert len(followed.exact) + len(followed.rounded) == len(tensors)
    return found

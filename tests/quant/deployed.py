"""What holds for every family of learned grids: what training computes with is what is deployed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from emqdeploy.format.child import parse_children
from emqdeploy.format.grid import Grid, Kind
from emqdeploy.graph.reference import IntegerReference, quantized_tensors
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.families.base import FamilyOptions, WeightQuantizer
from emqdeploy.quant.insertion import InsertionConfig
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.native_library import library_path

from ..conftest import deploy


def assert_deployed(one: WeightQuantizer, weight: Tensor, bits: int, limit: int, kind: Kind) -> Tensor:
    """The value is ``scale * z``, every ``z`` keeps the limit, and the grid makes it of the stored code; returns it."""
    quantized = one(weight, bits)
    stored = Grid(
        quantized.scale.detach().numpy(),
        *(part.numpy().astype(np.int16) for part in (quantized.slope, quantized.offset)),
        quantized.bits.numpy().astype(np.uint8),
        one.kind,
        None if quantized.table is None else quantized.table.numpy().astype(np.int8),
    )
    integers = stored.integers(quantized.codes.numpy().astype(np.uint8))
    assert one.kind == kind
    assert np.abs(integers.astype(int)).max() <= limit
    if stored.table is not None:
        assert (np.diff(stored.table.astype(int)) >= 0).all()
    value = quantized.scale.detach()[:, None] * torch.from_numpy(integers)
    torch.testing.assert_close(quantized.value, value, rtol=0, atol=0)
    torch.testing.assert_close(one.value(weight, bits), value, rtol=0, atol=0)
    return value


def assert_exact_in_runtimes(options: FamilyOptions, bits: str) -> None:
    """No code of onnxruntime, and no logit of the native kernels where they are installed, is not the reference's."""
    made = deploy(NetworkSpec("resnet8", 10, (1, 8, 8), 2.0, parse_children(bits), (), InsertionConfig(options)))
    checkpoint, images = made.checkpoint, made.images
    names = quantized_tensors(checkpoint.skeleton)
    for child in checkpoint.network.children:
        expected, codes = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
        _, found = OnnxRuntime(checkpoint, [child], threads=1, trace=names).run_traced(images)
        for name in names:
            np.testing.assert_array_equal(found[name], codes[name])
        if library_path() is not None:
            np.testing.assert_array_equal(NativeRuntime(checkpoint, [child], threads=1)(images), expected)

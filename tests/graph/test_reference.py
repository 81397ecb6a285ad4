"""The integer reference: fused onnxruntime must agree with it in every code of every quantized tensor."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn

from emqdeploy.errors import EmqError
from emqdeploy.format.child import Child
from emqdeploy.graph.filling import filled_model
from emqdeploy.graph.floating import float_operators
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import IntegerReference, quantized_tensors
from emqdeploy.models import trust
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.adapters.torch_reference import TorchRuntime
from emqdeploy.runtimes.onnx_session import create_session, session_options

from ..conftest import ALL_BITS, Deployed, deploy


def assert_parity(deployed: Deployed, child: Child, count: int) -> None:
    """Fused codes and logits are the reference's; torch's logits are close and decide alike."""
    checkpoint, images = deployed.checkpoint, deployed.images[:count]
    tensors = quantized_tensors(checkpoint.skeleton)
    assert len(tensors) >= len(checkpoint.network.sites)
    expected, codes = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
    traced, found = OnnxRuntime(checkpoint, children=[child], threads=1, trace=tensors).run_traced(images)
    for name in tensors:
        np.testing.assert_array_equal(found[name], codes[name], err_msg=name)
        assert len(np.unique(codes[name])) > 1, f"{name} is dead: nothing is compared"
    np.testing.assert_array_equal(traced, expected)
    np.testing.assert_array_equal(OnnxRuntime(checkpoint, children=[child], threads=1)(images), expected)
    logits = TorchRuntime(checkpoint, children=[child])(images)
    assert np.abs(logits - expected).max() <= 0.1 * np.ptp(expected)
    parity = Parity()
    parity.add((expected, {}), (logits, {}))
    assert parity.unsafe_flips == 0


def variant(model: str, size: int, channels: int, activation_bits: int | str) -> Deployed:
    """A network with random weights at one activation setting."""
    children = {bits: Child.of(bits, activation_bits) for bits in ALL_BITS}
    trained = [children.pop(bits) for bits in (2, 4, 8)]
    return deploy(NetworkSpec(model, 10, (channels, size, size), 2.0, tuple(trained), tuple(children.values())))


@pytest.mark.parametrize("activation_bits", [8, 4, "same"])
def test_resnet8_is_exact_at_every_width(small: Deployed, activation_bits: int | str) -> None:
    """Every weight width with every kind of activation width."""
    deployed = small if activation_bits == 8 else variant("resnet8", 8, 1, activation_bits)
    for child in deployed.checkpoint.network.children:
        assert_parity(deployed, child, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "size", "activation_bits", "widths"),
    [
        ("resnet20", 16, 8, (1, 3, 8)),
        ("resnet18", 32, "same", (1, 5)),
        ("mobilenet_v2", 32, 8, (1, 4, 8)),
    ],
)
def test_larger_networks_are_exact(model: str, size: int, activation_bits: int | str, widths: tuple[int, ...]) -> None:
    """Depth, projections, max-pooling, depthwise layers and ReLU6."""
    deployed = variant(model, size, 3, activation_bits)
    for bits in widths:
        assert_parity(deployed, deployed.checkpoint.network.find(bits), 2)


def test_batches_are_joined(small: Deployed) -> None:
    """A test set runs in parts, with the results of one run."""
    reference = IntegerReference(small.checkpoint.skeleton, small.checkpoint.network.initializers(Child.of(4)))
    logits, codes = reference.run(small.images, batch=5)
    expected, expected_codes = reference.run(small.images)
    np.testing.assert_array_equal(logits, expected)
    for name, array in codes.items():
        np.testing.assert_array_equal(array, expected_codes[name])


def test_a_changed_weight_is_noticed(small: Deployed) -> None:
    """One integer off by one changes codes, so zero differences mean something."""
    arrays = small.checkpoint.network.initializers(Child.of(4))
    _, before = IntegerReference(small.checkpoint.skeleton, arrays).run(small.images)
    name = next(name for name in arrays if name.endswith("conv1.weight"))
    arrays[name] = arrays[name].copy()
    arrays[name][0, 0, 1, 1] += 1
    _, after = IntegerReference(small.checkpoint.skeleton, arrays).run(small.images)
    assert any((before[key] != after[key]).any() for key in before)


def test_an_operator_without_reference_is_named() -> None:
    """What cannot be checked is said."""
    node = helper.make_node("NoSuchOperator", ["images"], ["logits"], name="odd")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("images", "logits")]
    graph = helper.make_graph([node], "g", values[:1], values[1:])
    reference = IntegerReference(helper.make_model(graph).SerializeToString(), {})
    with pytest.raises(EmqError, match=r"cannot run operator 'NoSuchOperator' \(odd\)"):
        reference.run(np.zeros((1, 2), np.float32))


class Stream(nn.Module):
    """A sum that a layer reads in codes and another sum in floats, as in a transformer's residual stream."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.left, self.right = (nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8)) for _ in range(2))
        self.block, self.norm, self.head = nn.Conv2d(8, 8, 1), nn.GroupNorm(1, 8), nn.Linear(8, classes)

    def forward(self, images: Tensor) -> Tensor:
        """The normalization keeps the second sum in float."""
        stream = self.left(images) + self.right(images)
        logits: Tensor = self.head(self.norm(stream + self.block(stream)).mean((2, 3)))
        return logits


def stream(num_classes: int) -> nn.Module:
    """What `create_model` calls."""
    return Stream(num_classes)


def test_a_sum_that_is_read_in_float_too_rounds_as_floats_do() -> None:
    """No runtime fuses it, and of codes in the middle between two others fused and plain sums make different ones."""
    trust(f"{__name__}:stream")
    checkpoint = deploy(NetworkSpec(f"{__name__}:stream", 10, (1, 16, 16), 2.0, (Child.of(8),))).checkpoint
    arrays = checkpoint.network.initializers(checkpoint.network.children[0])
    arrays |= {"left_1.scale": np.float32(0.02), "right_1.scale": np.float32(0.02), "add.scale": np.float32(0.04)}
    model, tensors = filled_model(checkpoint.skeleton, arrays), quantized_tensors(checkpoint.skeleton)
    model.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in tensors)
    images = torch.randn(4, 1, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(-2, 2).numpy()
    _, *found = create_session(model.SerializeToString(), session_options(1)).run(None, {"images": images})
    observed = dict(zip(tensors, found, strict=True))
    followed = IntegerReference(checkpoint.skeleton, arrays).follow(images, observed)
    np.testing.assert_array_equal(followed.rounded["add/codes"], observed["add/codes"])
    assert float_operators(checkpoint.skeleton)["Add"] == 2

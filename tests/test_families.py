"""Every family of networks: exact in integer kernels at every bit-width and activation width, and nothing in float."""

from __future__ import annotations

import functools
from importlib.util import find_spec

import numpy as np
import pytest

from emqdeploy.format.child import Child, parse_children
from emqdeploy.graph.floating import float_operators
from emqdeploy.graph.parity import Parity
from emqdeploy.graph.reference import IntegerReference, layer_values, quantized_tensors
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes.adapters.onnx_runtime import OnnxRuntime
from emqdeploy.runtimes.adapters.torch_reference import TorchRuntime

from .conftest import ALL_BITS, Deployed, deploy

FLOAT_SHARE = 1e-3
"""Share of codes behind float operators that may round differently in two implementations."""


@functools.cache
def deployed(model: str, size: int, channels: int, activation_bits: int | str) -> Deployed:
    """A network with random weights at one activation setting."""
    trained, unseen = (parse_children(text, activation_bits) for text in ("2,4,8", "1,3,5-7"))
    return deploy(NetworkSpec(model, 10, (channels, size, size), 2.0, trained, unseen))


def child_of(subject: Deployed, bits: int) -> Child:
    """The child of a weight width."""
    return next(child for child in subject.checkpoint.network.children if child.bits == bits)


def assert_exact(subject: Deployed, bits: int, count: int) -> Parity:
    """Integer kernels are the reference's, given their inputs; torch classifies alike where the margin is clear."""
    checkpoint, images = subject.checkpoint, subject.images[:count]
    child = child_of(subject, bits)
    tensors = quantized_tensors(checkpoint.skeleton) + layer_values(checkpoint.skeleton)
    reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
    runtime = OnnxRuntime(checkpoint, [child], threads=1, trace=tensors)
    logits, found = runtime.run_traced(images)
    followed = reference.follow(images, found)
    parity = Parity()
    parity.add_followed(followed, (logits, found))
    assert parity.exact, parity.first_difference
    assert parity.max_logit_error == 0
    assert parity.differing_rounded <= FLOAT_SHARE * parity.rounded
    assert {*followed.exact, *followed.rounded} == set(tensors)
    alive = [len(np.unique(values)) > 1 for values in (followed.exact | followed.rounded).values()]
    assert all(alive), "a tensor is dead: nothing is compared"
    expected = OnnxRuntime(checkpoint, [child], threads=1)(images)
    np.testing.assert_allclose(expected, logits, rtol=0, atol=1e-5 * np.ptp(logits))
    torch_logits = TorchRuntime(checkpoint, [child])(images)
    top = np.sort(expected, axis=1)
    decided = top[:, -1] - top[:, -2] > 0.05 * np.ptp(expected)
    np.testing.assert_array_equal(torch_logits.argmax(1)[decided], expected.argmax(1)[decided])
    return parity


SMALL = ("preact-resnet8", "mobilenet-micro", "vit-micro")


@pytest.mark.parametrize("model", SMALL)
def test_small_families_are_exact_at_every_width(model: str) -> None:
    """Pre-activation, depthwise, transformer; the residual family has tests of its own."""
    subject = deployed(model, 8, 1, 8)
    for bits in ALL_BITS:
        parity = assert_exact(subject, bits, 4)
        assert (parity.rounded > 0) == (model == "vit-micro")


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [4, "same"])
@pytest.mark.parametrize("model", SMALL)
def test_small_families_are_exact_at_every_activation_width(model: str, activation_bits: int | str) -> None:
    """Narrow activations, fixed or following the weights."""
    subject = deployed(model, 8, 1, activation_bits)
    for bits in ALL_BITS:
        assert_exact(subject, bits, 4)


def test_only_transformers_compute_in_float() -> None:
    """Pre-activation normalizations are integer kernels; a transformer's float operators are counted by type."""
    assert float_operators(deployed("preact-resnet8", 8, 1, 8).checkpoint.skeleton) == {}
    assert float_operators(deployed("vit-micro", 8, 1, 8).checkpoint.skeleton) == {
        "Add": 7,
        "Gelu": 3,
        "LayerNormalization": 7,
        "MatMul": 6,
        "Mul": 3,
        "ReduceMean": 1,
        "Softmax": 3,
    }


def test_a_changed_integer_is_noticed() -> None:
    """Following a runtime must not hide a wrong kernel: one weight off by one shows, and by the layer's name."""
    subject = deployed("vit-micro", 8, 1, 8)
    checkpoint, images = subject.checkpoint, subject.images
    tensors = quantized_tensors(checkpoint.skeleton) + layer_values(checkpoint.skeleton)
    logits, found = OnnxRuntime(checkpoint, [4], threads=1, trace=tensors).run_traced(images)
    arrays = checkpoint.network.initializers(child_of(subject, 4))
    arrays["blocks.1.fc1.weight"] = arrays["blocks.1.fc1.weight"].copy()
    arrays["blocks.1.fc1.weight"][0, 0] += 1
    parity = Parity()
    parity.add_followed(IntegerReference(checkpoint.skeleton, arrays).follow(images, found), (logits, found))
    assert not parity.exact
    assert parity.first_difference == "blocks.1.fc1/values"


def test_a_wrong_float_operator_is_noticed() -> None:
    """Codes behind a float operator that are off by more than a rounding are no parity."""
    subject = deployed("vit-micro", 8, 1, 8)
    checkpoint, images = subject.checkpoint, subject.images
    tensors = quantized_tensors(checkpoint.skeleton) + layer_values(checkpoint.skeleton)
    logits, found = OnnxRuntime(checkpoint, [4], threads=1, trace=tensors).run_traced(images)
    arrays = checkpoint.network.initializers(child_of(subject, 4))
    arrays["blocks.1.norm2.weight"] = 1.2 * arrays["blocks.1.norm2.weight"]
    parity = Parity()
    parity.add_followed(IntegerReference(checkpoint.skeleton, arrays).follow(images, found), (logits, found))
    assert parity.max_rounded_step > 1
    assert not parity.exact


LARGE = [
    pytest.param("resnet18", 21, marks=pytest.mark.slow),
    pytest.param("mobilenet_v2", 53, marks=pytest.mark.slow),
    pytest.param("preact-resnet20", 32, marks=pytest.mark.slow),
    pytest.param(
        "timm/vit_tiny_patch16_224",
        50,
        marks=[pytest.mark.slow, pytest.mark.skipif(not find_spec("timm"), reason="timm is not installed")],
    ),
]


@pytest.mark.parametrize(("model", "layers"), LARGE)
def test_every_layer_of_known_networks_is_an_integer_kernel(model: str, layers: int) -> None:
    """W4A8, W2A8, W8A8 and W4A4: as many integer kernels as quantized layers, read from a profile of a real run."""
    for activation_bits, widths in ((8, (4, 2, 8)), (4, (4,))):
        subject = deployed(model, 32, 3, activation_bits)
        children = [child_of(subject, bits) for bits in widths]
        with OnnxRuntime(subject.checkpoint, children, threads=1) as runtime:
            for child in children:
                assert [layer.integer for layer in runtime.precision(child)] == [True] * layers
        assert_exact(subject, widths[0], 1)

"""The native library: exact in every code, whatever the network, the child, the instructions and the threads."""

from __future__ import annotations

import multiprocessing
import threading
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from emqdeploy.data import Preprocessing
from emqdeploy.errors import EmqError
from emqdeploy.format.card import Card, DataSource
from emqdeploy.format.child import Child, parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.quant.deploy import freeze
from emqdeploy.quant.insertion import InsertionConfig, insert_quantizers
from emqdeploy.quant.skeleton import export_skeleton
from emqdeploy.runtimes.adapters.native_runtime import NativeRuntime
from emqdeploy.runtimes.native_library import instruction_sets, library_path

from ...conftest import Deployed, deploy, settled

pytestmark = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")

CHILDREN = "1a2,2a2,1a4,2a4,3a5,4a4,4,5,6,7,8"
KERNELS = ("int8", "lookup", "lookup of four", "int16,", "int16 deferred")


@cache
def deployed(model: str) -> Deployed:
    """A network with random weights and children of many widths."""
    return deploy(NetworkSpec(model, 10, (1, 8, 8), 2.0, parse_children(CHILDREN, 8), ()))


def assert_exact(checkpoint: Checkpoint, images: np.ndarray, threads: int = 1) -> None:
    """Every code and every logit is the reference's, at every child."""
    with NativeRuntime(checkpoint, threads=threads) as runtime:
        for child in checkpoint.network.children:
            runtime.use(child)
            logits, codes = runtime.run_traced(images)
            reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
            expected, expected_codes = reference.run(images)
            for name, values in expected_codes.items():
                np.testing.assert_array_equal(codes[name].reshape(values.shape), values, f"{name} at {child}")
            np.testing.assert_array_equal(logits, expected)
            np.testing.assert_array_equal(runtime.run(images), expected)


@pytest.mark.parametrize("model", ["resnet8", "preact-resnet8", "mobilenet-micro"])
@pytest.mark.parametrize("instructions", instruction_sets() if library_path() else ["none"])
def test_families_are_exact_on_every_instruction_set(
    instructions: str, model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Residual, pre-activation and depthwise networks, with the kernels that are fastest here."""
    monkeypatch.setenv("EMQ_ISA", instructions)
    assert_exact(deployed(model).checkpoint, deployed(model).images[:2])


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("instructions", instruction_sets() if library_path() else ["none"])
def test_every_kernel_is_exact(instructions: str, kernel: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is not the fastest on this machine is chosen on others."""
    monkeypatch.setenv("EMQ_ISA", instructions)
    monkeypatch.setenv("EMQ_KERNEL", kernel)
    assert_exact(deployed("resnet8").checkpoint, deployed("resnet8").images[:1])


def test_threads_share_a_layer_exactly() -> None:
    """Parts of a layer that several threads compute meet without a gap."""
    assert_exact(deployed("resnet8").checkpoint, deployed("resnet8").images[:2], threads=3)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("instructions", instruction_sets() if library_path() else ["none"])
def test_threads_share_the_channels_of_wide_layers(
    instructions: str, kernel: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are few positions, each part has all and some blocks of 64 channels; the last is not full."""
    monkeypatch.setenv("EMQ_ISA", instructions)
    monkeypatch.setenv("EMQ_KERNEL", kernel)
    for groups in (1, 2):
        checkpoint, images = wide(groups)
        assert_exact(checkpoint, images[:1], threads=2)


@cache
def wide(groups: int) -> tuple[Checkpoint, np.ndarray]:
    """A network with a layer of 150 channels a group at 63 positions."""
    shape = {"width": 8, "outputs": 150, "groups": groups, "kernel": 3, "stride": 1, "dilation": 1}
    return drawn("1a2,1,2a4,4,8", **shape, signed=False, flat=False)


class Drawn(nn.Module):
    """A network around one drawn convolution: joined with another one, pooled, and averaged or read as it is.

    Args:
        width: input channels of a group.
        outputs: output channels of a group.
        groups: of the convolution.
        kernel: side of its window.
        stride: of the window.
        dilation: of the window.
        signed: whether it reads negative codes as well.
        flat: whether the head reads all pixels instead of their mean.
    """

    def __init__(
        self, width: int, outputs: int, groups: int, kernel: int, stride: int, dilation: int, signed: bool, flat: bool
    ) -> None:
        super().__init__()
        channels, padding = width * groups, dilation * (kernel // 2)
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.between = nn.BatchNorm2d(channels) if signed else nn.ReLU()
        self.drawn = nn.Conv2d(channels, outputs * groups, kernel, stride, padding, dilation, groups)
        self.beside = nn.Conv2d(channels, 5, 1, stride)
        self.norm = nn.BatchNorm2d(outputs * groups)
        self.mix = nn.Conv2d(outputs * groups + 5, 6, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.mean = nn.Identity() if flat else nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(len(self.features(torch.zeros(1, 3, 9, 7))[0]), 5)

    def features(self, images: Tensor) -> Tensor:
        """Features ``(N, F)`` of images ``(N, 3, 9, 7)``."""
        hidden = self.between(self.first(images))
        both = torch.cat([torch.relu(self.norm(self.drawn(hidden))), torch.relu(self.beside(hidden))], 1)
        return torch.flatten(self.mean(self.pool(torch.relu(self.mix(both)))), 1)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)``."""
        logits: Tensor = self.head(self.features(images))
        return logits


@settings(max_examples=8, deadline=None)
@given(
    width=st.integers(1, 7),
    outputs=st.sampled_from([2, 9]),
    groups=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5]),
    stride=st.integers(1, 2),
    dilation=st.integers(1, 2),
    signed=st.booleans(),
    flat=st.booleans(),
    children=st.sampled_from(["1a2,2a4,8", "1,3a3,7a8", "2a2,4a4,5a8"]),
)
def test_drawn_shapes_are_exact(children: str, **shape: int | bool) -> None:
    """Odd channels, groups, windows, strides, dilations, signs, borders, joins and readers of all pixels at once."""
    checkpoint, images = drawn(children, **shape)
    for instructions in instruction_sets():
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("EMQ_ISA", instructions)
            assert_exact(checkpoint, images[:1])


def drawn(children: str, **shape: int | bool) -> tuple[Checkpoint, np.ndarray]:
    """A checkpoint of `Drawn` with random weights, and images ``(3, 3, 9, 7)``."""
    torch.manual_seed(0)
    model = Drawn(**shape)  # type: ignore[arg-type]
    images = torch.randn(3, 3, 9, 7).clamp(-2, 2)
    return deployed_model(model, parse_children(children, 8), images), images.numpy()


def deployed_model(model: nn.Module, children: tuple[Child, ...], images: Tensor) -> Checkpoint:
    """A checkpoint of any module with its random weights."""
    network = settled(insert_quantizers(model, InsertionConfig(), children, (), 2.0), images)
    frozen = freeze(network, network.known)
    shape = (int(images.shape[1]), int(images.shape[2]), int(images.shape[3]))
    card = Card(
        model="drawn",
        classes=tuple("abcde"),
        preprocessing=Preprocessing(*shape, (0.5,) * 3, (0.25,) * 3).pixels(),
        data=DataSource("digits"),
        trained=tuple(child.name for child in children),
        structure={},
    )
    return Checkpoint(frozen, export_skeleton(network, frozen, shape), card)


@pytest.mark.parametrize(("kernel", "stride", "padding"), [(2, 2, 0), (3, 2, 0), (3, 2, 1), (2, 3, 1)])
def test_a_last_window_may_reach_beyond_the_padding(kernel: int, stride: int, padding: int) -> None:
    """A maximum in `ceil_mode` has as many windows as the reference, and the last one has what there is."""
    pool = nn.MaxPool2d(kernel, stride, padding, ceil_mode=True)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), pool, nn.Conv2d(5, 5, 1), nn.ReLU(), nn.Flatten())
    torch.manual_seed(0)
    images = torch.randn(2, 3, 9, 8).clamp(-2, 2)
    model.append(nn.Linear(model(images).shape[1], 5))
    assert_exact(deployed_model(model, parse_children("2a4,8"), images), images.numpy())


def test_a_request_keeps_its_child() -> None:
    """Switches while other threads run never mix two children in one answer."""
    subject = deployed("resnet8")
    image = subject.images[:1]
    with NativeRuntime(subject.checkpoint, threads=2) as runtime:
        expected = {child: runtime.run(image, child) for child in runtime.children}
        wrong: list[str] = []

        def ask(start: int) -> None:
            for number in range(200):
                child = runtime.children[(start + number) % len(runtime.children)]
                runtime.use(child)
                if not np.array_equal(runtime.run(image, child), expected[child]):
                    wrong.append(child.name)

        threads = [threading.Thread(target=ask, args=(start,)) for start in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def _answer_in_a_child(runtime: NativeRuntime, image: np.ndarray, answers: Any) -> None:
    answers.send(runtime.run(image, "4"))


def test_a_forked_child_has_threads_of_its_own() -> None:
    """Those of its parent are not there: nothing waits for them, neither to compute nor to close."""
    subject, context = deployed("resnet8"), multiprocessing.get_context("fork")
    image = subject.images[:1]
    with NativeRuntime(subject.checkpoint, threads=2) as runtime:
        expected = runtime.run(image, "4")
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=_answer_in_a_child, args=(runtime, image, sender))
        process.start()
        np.testing.assert_array_equal(receiver.recv(), expected)
        process.join()
        assert process.exitcode == 0


@pytest.mark.parametrize(
    ("attribute", "numbers", "message"),
    [
        ("strides", [0, 0], r"a window of 0, allowed are 1\.\.4096"),
        ("kernel_shape", [1 << 20, 1 << 20], "a window of 1048576"),
        ("kernel_shape", [5, 3], "layer 'conv1' has other weights than its graph|conv1 has other weights"),
        ("pads", [1 << 20] * 4, "a window of 1048576"),
        ("pads", [4096] * 4, "a tensor of more than 64 MB"),
        ("group", 3, "has groups that do not divide|other weights"),
    ],
)
def test_windows_are_bounded_before_memory_is_taken(attribute: str, numbers: Any, message: str) -> None:
    """A graph that came past the gate says nothing that the library would compute a place in memory with."""
    checkpoint = deployed("resnet8").checkpoint
    model = onnx.load_from_string(checkpoint.skeleton)
    node = next(one for one in model.graph.node if one.op_type == "Conv")
    kept = [one for one in node.attribute if one.name != attribute]
    del node.attribute[:]
    node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, numbers)])
    with pytest.raises(EmqError, match=message):
        NativeRuntime(replace(checkpoint, skeleton=model.SerializeToString()))


@pytest.mark.parametrize(("operator", "inputs"), [("Add", 2), ("GlobalAveragePool", 1), ("Concat", 3)])
def test_what_nothing_reads_is_refused(operator: str, inputs: int) -> None:
    """A sum without a place to go to was written to no tensor at all, and took the process with it."""
    checkpoint = deployed("resnet8").checkpoint
    model = onnx.load_from_string(checkpoint.skeleton)
    place = next(i for i, one in enumerate(model.graph.node) if one.op_type == "Conv") - 2
    read = next(one for one in model.graph.node if one.op_type == "Conv").input[0]
    axis = {"axis": 1} if operator == "Concat" else {}
    model.graph.node.insert(place, onnx.helper.make_node(operator, [read] * inputs, ["unread"], name="idle", **axis))
    with pytest.raises(EmqError, match="the graph computes idle for nothing"):
        NativeRuntime(replace(checkpoint, skeleton=model.SerializeToString()))


def test_what_it_cannot_compute_is_refused_by_name() -> None:
    """A transformer's float operators have no kernel here; the sentence names one and the way out."""
    with pytest.raises(EmqError, match=r"operator \w+ .* has no integer kernel of its own; run this .* in onnxruntime"):
        NativeRuntime(deployed("vit-micro").checkpoint)


def test_an_instruction_set_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence lists those that the processor has kernels for."""
    monkeypatch.setenv("EMQ_ISA", "quantum")
    with pytest.raises(EmqError, match=r"EMQ_ISA is 'quantum', this processor has kernels for: .*portable"):
        NativeRuntime(deployed("resnet8").checkpoint)


def test_layers_say_what_computes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every layer is an integer kernel with a name."""
    monkeypatch.setenv("EMQ_ISA", "portable")
    with NativeRuntime(deployed("mobilenet-micro").checkpoint) as runtime:
        layers = runtime.precision("1a2")
    assert {layer.computed_as for layer in layers} == {"int8, portable", "int8, depthwise"}
    assert all(layer.integer for layer in layers)

"""One graph whose integer parts our kernels compute in onnxruntime: every code is the reference's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ctypes import CDLL, CFUNCTYPE, addressof, c_char_p, c_int, c_uint32, c_void_p, cast, create_string_buffer
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.native_graph import select_natively
from emqdeploy.format.child import parse_children
from emqdeploy.format.emq import Checkpoint
from emqdeploy.format.gate import Expected, check_graph
from emqdeploy.graph.native_graph import native_model
from emqdeploy.graph.reference import IntegerReference
from emqdeploy.graph.selector import selection, selector_values
from emqdeploy.runtimes import native_operators
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.native_library import instruction_sets, library_path
from emqdeploy.runtimes.onnx_file import open_selector
from emqdeploy.workflows.comparing import Batch, Compared
from emqdeploy.workflows.rungs import RUNGS

from ..conftest import Deployed
from ..runtimes.adapters.test_native import CHILDREN, deployed, deployed_model

pytestmark = pytest.mark.skipif(library_path() is None, reason="emqdeploy-native is not installed")


class Between(nn.Module):
    """Everything that stands between segments: floats that layers of all kinds answer, codes that others move."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.norm = nn.LayerNorm(8)
        self.wide, self.narrow = nn.Linear(8, 12), nn.Linear(12, 8)
        self.grouped = nn.Conv2d(8, 8, 3, 2, 1, groups=2)
        self.gate = nn.Conv2d(8, 8, 1)
        self.beside = nn.Conv2d(8, 8, 1, 2)
        self.last = nn.Conv2d(8, 6, 1)
        self.head = nn.Linear(6 * 4 * 3, 5)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``(N, 5)`` of images ``(N, 3, 8, 6)``."""
        x = torch.relu(self.stem(images))
        rows = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        x = torch.relu(x + self.narrow(functional.gelu(self.wide(rows))).permute(0, 3, 1, 2))
        y = functional.silu(self.grouped(x))
        y = y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True)))
        z = torch.relu(self.beside(x)) + torch.relu(y)  # of different levels
        n, c, h, w = z.shape
        z = z.reshape(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        logits: Tensor = self.head(torch.flatten(functional.max_pool2d(torch.relu(self.last(z)), 3, 1, 1), 1))
        return logits


def plain_session(model: bytes, threads: int = 1) -> Any:
    """A session as any program creates it, that knows nothing of emqdeploy but the library's path."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = threads
    options.register_custom_ops_library(str(library_path()))
    return ort.InferenceSession(model, options)


def assert_exact(checkpoint: Checkpoint, images: np.ndarray, children: Sequence[str]) -> None:
    """Every code is the reference's, of float operators' neighbours given what the operators answered."""
    for name in children:
        child = checkpoint.network.find(name)
        rung = RUNGS["onnxruntime-native"](checkpoint, child)
        reference = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child))
        compared = Compared(rung, reference, checkpoint.card.task)
        compared.add(Batch(images, None, *reference.run(images)))
        assert compared.wrong is None, f"{compared.wrong} at {name}"
        assert compared.parity.codes > 0


@pytest.mark.parametrize("model", ["resnet8", "preact-resnet8", "mobilenet-micro", "vit-micro"])
def test_families_are_exact(model: str) -> None:
    """Residual, pre-activation, depthwise and transformer networks, every width."""
    assert_exact(deployed(model).checkpoint, deployed(model).images[:3], CHILDREN.split(","))


def test_what_stands_between_segments_is_exact() -> None:
    """Answers in float of plain, grouped and depthwise convolutions and of rows; codes that others move."""
    torch.manual_seed(0)
    images = torch.randn(4, 3, 8, 6).clamp(-2, 2)
    checkpoint = deployed_model(Between(), parse_children("1a2,3,2a4,8", 8), images)
    assert_exact(checkpoint, images.numpy(), ["1a2", "3", "2a4", "8"])


@pytest.mark.parametrize("instructions", instruction_sets() if library_path() else ["none"])
def test_linear_layers_over_tokens_are_exact_everywhere(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of channels, answers in float and codes that onnxruntime moves, on each instruction set."""
    monkeypatch.setenv("EMQ_ISA", instructions)
    assert_exact(deployed("vit-micro").checkpoint, deployed("vit-micro").images[:2], ["1a2", "2a4", "8"])


@pytest.mark.parametrize(("model", "threads"), [("resnet8", 1), ("resnet8", 3), ("vit-micro", 2)])
def test_any_program_opens_the_file(model: str, threads: int) -> None:
    """One session answers as the reference at every child and batch; float operators leave the last digits open."""
    checkpoint, images = deployed(model).checkpoint, deployed(model).images
    children = checkpoint.network.children
    session = plain_session(select_natively(checkpoint, Path(), children).data, threads)
    for child, value in reversed(selector_values(children).items()):
        expected, _ = IntegerReference(checkpoint.skeleton, checkpoint.network.initializers(child)).run(images)
        for count in (1, len(images)):
            logits = session.run(None, {"images": images[:count], **selection(value)})[0]
            allowed = 0 if model == "resnet8" else 0.02 * np.ptp(expected)
            assert np.abs(logits - expected[:count]).max() <= allowed


def test_a_network_of_integers_is_one_operator() -> None:
    """And its weights are there once, whatever the number of children."""
    checkpoint = deployed("resnet8").checkpoint
    model = native_model(checkpoint, checkpoint.network.children)
    assert [(node.domain, node.op_type) for node in model.graph.node] == [("emqdeploy", "Segment")]
    weights = sum(layer.codes.size for layer in checkpoint.network.layers.values())
    codes = next(tensor for tensor in model.graph.initializer if tensor.name.endswith("/codes"))
    assert list(codes.dims) == [weights]


def test_an_older_onnxruntime_is_refused_in_a_sentence() -> None:
    """Its table is shorter: nothing is called in it but the function that makes a status."""
    said: list[bytes] = []
    create = CFUNCTYPE(c_void_p, c_int, c_char_p)(lambda code, message: said.append(message) or 1)
    table = (c_void_p * 1)(cast(create, c_void_p))
    get = CFUNCTYPE(c_void_p, c_uint32)(lambda version: addressof(table) if version == 1 else None)
    text = create_string_buffer(b"1.16.3")
    version = CFUNCTYPE(c_void_p)(lambda: addressof(text))
    base = (c_void_p * 2)(cast(get, c_void_p), cast(version, c_void_p))
    register = CDLL(str(library_path())).RegisterCustomOps
    register.restype, register.argtypes = c_void_p, [c_void_p, c_void_p]
    assert register(None, addressof(base)) == 1
    assert said == [b"onnxruntime 1.16.3 is too old for the operators of emqdeploy; install onnxruntime 1.17 or newer"]


@pytest.mark.parametrize(("names", "values"), [(("2", "4", "8"), (2, 4, 8)), (("2a4", "4a4", "8"), (0, 1, 2))])
def test_a_child_that_is_not_there_is_an_error_of_the_run(
    names: Sequence[str], values: Sequence[int], small: Deployed
) -> None:
    """The sentence lists the values, which are widths where those name the children; the session goes on."""
    checkpoint = (small if names[0] == "2" else deployed("resnet8")).checkpoint
    model = native_model(checkpoint, [checkpoint.network.find(name) for name in names])
    session, images = plain_session(model.SerializeToString()), small.images[:1]
    for value in (-1, 3, 9):
        known = ", ".join(map(str, values))
        with pytest.raises(Exception, match=f"bits is {value}, this network has {known}; give one of these"):
            session.run(None, {"images": images, **selection(value)})
    for value in values:
        assert session.run(None, {"images": images, **selection(value)})[0].shape == (1, 10)


def test_the_file_is_opened_through_the_gate(tmp_path: Path) -> None:
    """Kernels are named by layer, and the runtime is like any other."""
    checkpoint, images = deployed("vit-micro").checkpoint, deployed("vit-micro").images[:2]
    stored = select_natively(checkpoint, Path(), checkpoint.network.children)
    path = tmp_path / "model.onnx"
    path.write_bytes(stored.data)
    with open_selector(path, "native", threads=1) as runtime:
        layers = runtime.precision("2a4")
        assert runtime.run(images, "1a2").shape == (2, 10)
    assert [layer.name for layer in layers] == list(checkpoint.network.layers)
    assert all(layer.integer and layer.computed_as for layer in layers)


@pytest.mark.parametrize("model", ["resnet8", "vit-micro"])
def test_a_checkpoint_runs_so_without_a_file(model: str) -> None:
    """Provider native: one session for all children, the reference's answers, and the kernel of every layer."""
    checkpoint, images = deployed(model).checkpoint, deployed(model).images[:2]
    with open_runtime(checkpoint, "onnxruntime", provider="native", threads=1) as runtime:
        for child in ("1a2", "8"):
            runtime.use(child)
            arrays = checkpoint.network.initializers(runtime.child)
            expected, _ = IntegerReference(checkpoint.skeleton, arrays).run(images)
            allowed = 0 if model == "resnet8" else 0.02 * np.ptp(expected)
            assert np.abs(runtime.run(images) - expected).max() <= allowed
        layers = runtime.precision("2a4")
    assert [layer.name for layer in layers] == list(checkpoint.network.layers)
    assert all(layer.integer and layer.computed_as for layer in layers)
    with pytest.raises(UsageError, match="leave out optimise and trace"):
        open_runtime(checkpoint, "onnxruntime", provider="native", optimise=False)


def sides(model: Any) -> Any:
    """Of what goes into a model."""
    return model.graph.input[0].type.tensor_type.shape.dim


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda node, inner: setattr(node, "domain", "com.other"), "of domain 'com.other'"),
        (
            lambda node, inner: setattr(node, "op_type", "Program"),
            "of domain 'emqdeploy' is none of",
        ),
        (lambda node, inner: node.attribute.append(onnx.helper.make_attribute("a", 1)), "is none of ours"),
        (lambda node, inner: setattr(inner.graph.node[0], "domain", "com.other"), "operators of another domain"),
        (lambda node, inner: setattr(inner.graph.node[-1], "op_type", "Loop"), "operator 'Loop' is none"),
        (lambda node, inner: inner.graph.input.append(inner.graph.input[0]), "other inputs and outputs than its graph"),
        (
            lambda node, inner: setattr(inner.graph.input[0].type.tensor_type.shape.dim[3], "dim_value", 4),
            "other shapes",
        ),
    ],
)
def test_the_gate_admits_only_what_we_write(damage: Callable[[Any, Any], None], message: str) -> None:
    """Another operator of our domain, another domain inside a segment, or other shapes than around it."""
    checkpoint = deployed("resnet8").checkpoint
    model = native_model(checkpoint, checkpoint.network.children)
    (node,) = model.graph.node
    graph = next(tensor for tensor in model.graph.initializer if tensor.name == node.input[1])
    inner = onnx.load_from_string(graph.raw_data)
    damage(node, inner)
    graph.raw_data = inner.SerializeToString()
    graph.dims[:] = [len(graph.raw_data)]
    expected = Expected(checkpoint.card, {}, selector=True, segments=True)
    with pytest.raises(EmqError, match=message):
        check_graph(model.SerializeToString(), expected, "model.onnx")


def test_a_file_without_our_seal_may_not_use_our_domain() -> None:
    """Only what says that it is for our kernels, under our seal, has segments."""
    checkpoint = deployed("resnet8").checkpoint
    data = native_model(checkpoint, checkpoint.network.children).SerializeToString()
    check_graph(data, Expected(checkpoint.card, {}, selector=True, segments=True), "model.onnx")
    with pytest.raises(EmqError, match="uses operator 'Segment' of domain 'emqdeploy'"):
        check_graph(data, Expected(checkpoint.card, {}, selector=True), "model.onnx")


def test_a_layer_without_a_kernel_of_ours_is_refused_by_name() -> None:
    """Before anything is written, with the way out."""
    checkpoint = deployed("resnet8").checkpoint
    skeleton = onnx.load_from_string(checkpoint.skeleton)
    node = next(one for one in skeleton.graph.node if one.op_type == "Gemm")
    next(one for one in node.attribute if one.name == "transB").i = 0
    with pytest.raises(EmqError, match=r"layer 'fc' \(Gemm\) has no kernel of ours here; export without --kernels"):
        native_model(replace(checkpoint, skeleton=skeleton.SerializeToString()), checkpoint.network.children)


def test_without_the_library_one_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exporting, verifying and opening end alike."""
    monkeypatch.setattr(native_operators, "library_path", lambda: None)
    with pytest.raises(EmqError, match=r"emqdeploy_native is not installed, .* run: pip install"):
        RUNGS["onnxruntime-native"](deployed("resnet8").checkpoint, parse_children("8", 8)[0])

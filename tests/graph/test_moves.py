"""Moves and quantizers: the order that runtimes get is the same network, and one that OpenVINO computes rightly."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from onnx import helper, numpy_helper

from emqdeploy.graph.moves import carry_codes, carry_floats
from emqdeploy.runtimes.onnx_session import create_session, session_options

SIDE, CHANNELS = 4, 8
IMAGES = np.random.default_rng(1).uniform(-1, 1, (2, 3, SIDE, SIDE)).astype(np.float32)


class Graph:
    """A QDQ graph, written operator by operator as the exporter writes it; a value's name is what a method returns."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.numbers = np.random.default_rng(0)
        self.image = self.grid("images", 1 / 127, 128)

    def constant(self, value: Any, name: str = "") -> str:
        """Adds an array, once per name."""
        name = name or f"c{len(self.constants)}"
        if name not in {tensor.name for tensor in self.constants}:
            self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def node(self, operator: str, *inputs: str, parts: int = 1, **attributes: Any) -> Any:
        """Adds an operator."""
        outputs = [f"v{len(self.nodes)}_{part}" for part in range(parts)]
        self.nodes.append(helper.make_node(operator, inputs, outputs, name=f"n{len(self.nodes)}", **attributes))
        return outputs[0] if parts == 1 else outputs

    def grid(self, value: str, scale: float, zero: int = 0, clamp: bool = False) -> str:
        """Quantizes and dequantizes; equal numbers are one site."""
        ends = (self.constant(np.float32(scale), f"s{scale}"), self.constant(np.uint8(zero), f"z{zero}"))
        codes = self.node("QuantizeLinear", value, *ends)
        if clamp:
            codes = self.node("Clip", codes, *(self.constant(np.uint8(end), f"e{end}") for end in (0, 127)))
        return str(self.node("DequantizeLinear", codes, *ends))

    def convolution(self, value: str, inputs: int, outputs: int, scale: float) -> str:
        """One by one pixel, with a scale per channel; its answer is float."""
        weights = self.numbers.integers(-64, 64, (outputs, inputs, 1, 1)).astype(np.int8)
        scales = self.numbers.uniform(0.005, 0.01, outputs).astype(np.float32)
        weight = [self.constant(weights), self.constant(scales), self.constant(np.zeros(outputs, np.int8))]
        bias = [
            self.constant(self.numbers.integers(-99, 99, outputs).astype(np.int32)),
            self.constant(np.float32(scale) * scales),
        ]
        dequantized = [self.node("DequantizeLinear", *part, axis=0) for part in (weight, bias)]
        return str(self.node("Conv", value, *dequantized, kernel_shape=[1, 1]))

    def concatenation(self, scales: tuple[float, float]) -> str:
        """Two convolutions, each on a grid of its own."""
        half = CHANNELS // 2
        parts = [self.grid(self.convolution(self.image, 3, half, 1 / 127), scale, clamp=True) for scale in scales]
        return str(self.node("Concat", *parts, axis=1))

    def shaped(self, value: str, *shape: int) -> str:
        """Reshapes all but the batch."""
        return str(self.node("Reshape", value, self.constant(np.array([-1, *shape]))))

    def model(self, value: str) -> onnx.ModelProto:
        """Ends the graph with a value."""
        self.nodes.append(helper.make_node("Identity", [value], ["logits"]))
        info = helper.make_tensor_value_info
        images = info("images", onnx.TensorProto.FLOAT, ["N", *IMAGES.shape[1:]])
        logits = info("logits", onnx.TensorProto.FLOAT, ["N", None, None, None])
        graph = helper.make_graph(self.nodes, "g", [images], [logits], self.constants)
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def answers(model: onnx.ModelProto, optimise: bool = False) -> np.ndarray:
    """What onnxruntime makes of a graph as it is written."""
    session = create_session(model.SerializeToString(), session_options(1, optimise))
    return np.asarray(session.run(None, {"images": IMAGES})[0])


def shuffled(graph: Graph, value: str, grid: tuple[float, int] | None = None) -> str:
    """A channel shuffle, with a quantizer in its middle, as tracing puts it there."""
    value = graph.shaped(value, 2, CHANNELS // 2, SIDE, SIDE)
    value = str(graph.node("Transpose", value, perm=[0, 2, 1, 3, 4]))
    value = graph.grid(value, *grid) if grid else value
    return graph.shaped(value, CHANNELS, SIDE, SIDE)


def shuffle() -> onnx.ModelProto:
    """Concatenation of tensors on two grids, a shuffle that is quantized in the middle, a convolution."""
    graph = Graph()
    value = graph.grid(shuffled(graph, graph.concatenation((0.01, 0.02)), (0.02, 128)), 0.02, 128)
    return graph.model(graph.convolution(value, CHANNELS, 5, 0.02))


def tokens() -> onnx.ModelProto:
    """A convolution's float answer becomes rows, is quantized there, and goes back."""
    graph = Graph()
    value = graph.shaped(graph.concatenation((0.01, 0.02)), CHANNELS, SIDE * SIDE)
    value = graph.grid(str(graph.node("Transpose", value, perm=[0, 2, 1])), 0.02, 128)
    value = graph.shaped(str(graph.node("Transpose", value, perm=[0, 2, 1])), CHANNELS, SIDE, SIDE)
    return graph.model(graph.convolution(graph.grid(value, 0.02, 128), CHANNELS, 5, 0.02))


def permuted() -> onnx.ModelProto:
    """Channels in another order between two convolutions."""
    graph = Graph()
    value = graph.grid(graph.convolution(graph.image, 3, CHANNELS, 1 / 127), 0.02)
    value = str(graph.node("Gather", value, graph.constant(np.random.default_rng(5).permutation(CHANNELS)), axis=1))
    return graph.model(graph.convolution(value, CHANNELS, 5, 0.02))


def regridded() -> onnx.ModelProto:
    """A signed concatenation is quantized again on another grid."""
    graph = Graph()
    value = graph.grid(graph.grid(graph.concatenation((0.01, 0.02)), 0.02, 128), 0.016, 128)
    return graph.model(graph.convolution(value, CHANNELS, 5, 0.016))


@pytest.mark.parametrize("build", [shuffle, tokens, permuted, regridded])
def test_openvino_computes_it(build: Any) -> None:
    """Each of these is computed wrongly there, or ends the process, as it was written; one step at most is its own."""
    openvino = pytest.importorskip("openvino")
    from emqdeploy.runtimes.adapters.openvino_runtime import CPU_SETTINGS

    model = build()
    expected = answers(model)
    carry_codes(model)
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(model.SerializeToString()), "CPU", CPU_SETTINGS)
    assert np.abs(compiled([IMAGES])[0] - expected).max() < 0.05 * np.ptp(expected)


moves = st.sampled_from(("shuffle", "rows", "half", "permute", "split", "pool"))
# Equal numbers are one site, which is clamped at all its places or at none.
grids = st.sampled_from(((0.02, 0, True), (0.025, 0, False), (0.02, 128, False), (0.015, 128, False)))


@settings(max_examples=40)
@example("concatenation", [("half", (0.02, 0, True), False, True), ("split", (0.02, 0, True), True, False)])
@given(
    st.sampled_from(("concatenation", "convolution", "sum")),
    st.lists(st.tuples(moves, grids, st.booleans(), st.booleans()), min_size=1, max_size=3),
)
def test_it_is_the_same_network(source: str, steps: list[tuple[str, tuple[float, int, bool], bool, bool]]) -> None:
    """Whatever is moved and quantized in between: not a bit differs, in either direction.

    A second time changes nothing, and onnxruntime's fusions agree.
    """
    graph = Graph()
    value = graph.concatenation((0.01, 0.02)) if source == "concatenation" else ""
    if source != "concatenation":
        value = graph.convolution(graph.image, 3, CHANNELS, 1 / 127)
    if source == "sum":
        value = str(graph.node("Add", graph.grid(value, 0.01), graph.grid(value, 0.02, 128)))
    scale = 0.03
    for move, grid, inside, behind in steps:
        if move == "shuffle":
            value = shuffled(graph, value, grid[:2] if inside else None)
        elif move == "rows":
            value = str(graph.node("Transpose", graph.shaped(value, CHANNELS, SIDE * SIDE), perm=[0, 2, 1]))
            value = graph.grid(value, *grid) if inside else value
            value = graph.shaped(str(graph.node("Transpose", value, perm=[0, 2, 1])), CHANNELS, SIDE, SIDE)
        elif move == "half":
            ends = (graph.constant(np.array([end])) for end in (0, SIDE, 2))
            value = str(graph.node("Slice", value, *ends))
            value = str(graph.node("Concat", value, value, axis=2))
        elif move == "permute":
            order = graph.constant(np.random.default_rng(2).permutation(CHANNELS))
            value = str(graph.node("Gather", value, order, axis=1))
        elif move == "split":
            one, two = graph.node("Split", value, parts=2, axis=1, num_outputs=2)
            value = str(graph.node("Concat", graph.grid(two, *grid) if inside else two, one, axis=1))
        else:
            value = str(graph.node("MaxPool", value, kernel_shape=[3, 3], pads=[1] * 4))
        value = graph.grid(value, *grid) if behind else value
    value = graph.grid(value, scale, 128)
    model = graph.model(graph.convolution(value, CHANNELS, 5, scale))
    expected = answers(model)
    carry_codes(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(answers(model), expected)
    if source != "sum":  # onnxruntime's integer sum rounds in its own way, which the integer reference knows
        np.testing.assert_allclose(answers(model, optimise=True), expected, rtol=0, atol=1e-6)
    again = onnx.ModelProto()
    again.CopyFrom(model)
    carry_codes(again)
    assert again == model
    carry_floats(again)
    np.testing.assert_array_equal(answers(again), expected)
    codes = {name for node in again.graph.node if node.op_type in ("QuantizeLinear", "Clip") for name in node.output}
    assert all(node.input[0] not in codes for node in again.graph.node if node.op_type in ("Transpose", "Split"))


def test_the_codes_of_a_site_keep_their_name() -> None:
    """Parity compares by name: what a site gives is still called so, in the order that readers see it in."""
    graph = Graph()
    value = graph.grid(shuffled(graph, graph.concatenation((0.01, 0.02)), (0.02, 128)), 0.02, 128)
    for node in graph.nodes:
        if node.op_type == "QuantizeLinear" and node.input[1] == "s0.02" and node.input[2] == "z128":
            last = node
    old, last.output[0] = last.output[0], "site/codes"
    for node in graph.nodes:
        node.input[:] = ["site/codes" if name == old else name for name in node.input]
    model = graph.model(value)
    model.graph.output.append(helper.make_tensor_value_info("site/codes", onnx.TensorProto.UINT8, None))
    expected = answers_of(model)
    carry_codes(model)
    np.testing.assert_array_equal(answers_of(model), expected)
    assert sum(node.op_type == "QuantizeLinear" for node in model.graph.node) == 4  # the image, two parts, the site


def answers_of(model: onnx.ModelProto) -> np.ndarray:
    """The site's codes."""
    session = create_session(model.SerializeToString(), session_options(1, optimise=False))
    return np.asarray(session.run(["site/codes"], {"images": IMAGES})[0])

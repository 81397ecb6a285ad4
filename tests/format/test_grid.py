"""The numeric contract: codes nest, grids are optimal, and integer operators compute what onnxruntime computes."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import TensorProto, helper

from emqdeploy.format import grid
from emqdeploy.format.child import SAME, WEIGHT_BITS, activation_width
from emqdeploy.format.grid import (
    INTEGER,
    ODD,
    CodeRange,
    Grid,
    Kind,
    code_range,
    dequantize,
    encode,
    fold,
    integer_add,
    integer_bias,
    integer_conv,
    integer_linear,
    integer_mean,
    odd_integers,
    pack_planes,
    quantize,
    requantize,
    snap,
    truncate,
    unpack_planes,
    usable_bits,
)
from emqdeploy.format.levels import FULL, largest_weight

LIMITS = [largest_weight(signed) for signed in (False, True)]
finite = st.floats(-8, 8, width=32)
weights_of_a_layer = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=finite)
some_codes = hnp.arrays(np.uint8, st.tuples(st.integers(1, 6), st.integers(1, 9)))


def run_node(node: Any, inputs: list[np.ndarray]) -> np.ndarray:
    """Runs one operator of onnxruntime on the CPU."""
    values = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in zip(node.input, inputs, strict=True)
    ]
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(helper.make_graph([node], "one", values, [output]), opset_imports=opsets, ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, dict(zip(node.input, inputs, strict=True)))[0]
    return result


# --- codes and planes ---------------------------------------------------------------------------------------------


@given(weights_of_a_layer)
def test_codes_nest(weights: NDArray[np.float32]) -> None:
    """The b-bit code computed from the weights is the master's prefix; else one file could not hold all widths."""
    squashed = np.tanh(weights)
    peak = max(np.abs(squashed).max(), np.float32(1e-30))
    unit = squashed / (2 * peak) + np.float32(0.5)
    for bits in WEIGHT_BITS:
        direct = np.minimum(np.floor(unit * np.float32(2**bits)), 2**bits - 1)
        np.testing.assert_array_equal(truncate(encode(weights), bits), direct)


def test_rounded_codes_do_not_nest() -> None:
    """DoReFa's codes must never be truncated: the prefix of a 3-bit code is not the 2-bit code."""
    unit = np.linspace(0, 1, 101)
    assert (np.round(7 * unit).astype(int) >> 1 != np.round(3 * unit).astype(int)).any()


@given(weights_of_a_layer)
def test_odd_integers_are_odd_and_symmetric(weights: NDArray[np.float32]) -> None:
    """Levels are symmetric around zero at every width, so 1 bit is -1 and +1."""
    for bits in WEIGHT_BITS:
        odd = odd_integers(encode(weights), bits)
        assert (odd % 2 == 1).all()
        assert np.abs(odd).max() <= 2**bits - 1
    assert set(odd_integers(np.array([0, 255], np.uint8), 1)) == {-1, 1}


def test_an_all_zero_layer_has_one_code() -> None:
    """A dead layer divides by nothing."""
    assert (encode(np.zeros((2, 3), np.float32)) == 128).all()


@settings(max_examples=60)
@given(hnp.arrays(np.uint8, st.integers(0, 70)), st.integers(0, 8))
def test_planes_round_trip(codes: NDArray[np.uint8], count: int) -> None:
    """Any number of weights comes back from any prefix of planes, without the bits of the absent ones."""
    planes = pack_planes(codes)[:count]
    assert all(len(plane) == -(-len(codes) // 8) for plane in planes)
    kept = np.uint8(0xFF << (8 - count) & 0xFF)
    np.testing.assert_array_equal(unpack_planes(planes, len(codes)), codes & kept)


def test_planes_of_many_weights_round_trip() -> None:
    """More weights than one cache block holds."""
    codes = np.random.default_rng(0).integers(0, 256, (1 << 18) + 8 * 5 + 3, np.uint8)
    np.testing.assert_array_equal(unpack_planes(pack_planes(codes), len(codes)), codes)


def test_the_first_plane_is_the_sign() -> None:
    """The most significant bit comes first and the first weight is its lowest bit: a format that files rely on."""
    codes = np.array([128, 0, 255, 1], np.uint8)
    planes = pack_planes(codes)
    assert planes[0].tolist() == [0b0101]
    assert planes[7].tolist() == [0b1100]


# --- grids --------------------------------------------------------------------------------------------------------


@given(some_codes, st.sampled_from([ODD, INTEGER]), st.data())
def test_bytes_give_what_integers_give(codes: NDArray[np.uint8], kind: Kind, data: st.DataObject) -> None:
    """The arithmetic modulo 256 is exact for every grid whose integers fit int8, negative slopes included."""
    channels = len(codes)
    bits = np.array(data.draw(st.lists(st.integers(1, 8), min_size=channels, max_size=channels)), np.uint8)
    cut = np.stack([truncate(row, int(width)) for row, width in zip(codes, bits, strict=True)]).astype(np.int32)
    levels = (1 << bits.astype(np.int32))[:, None]
    stands_for = 2 * cut - (levels - 1) if kind == ODD else cut - levels // 2
    largest = np.abs(stands_for).max(axis=1)
    slope = np.array([data.draw(st.integers(-(127 // max(u, 1)), 127 // max(u, 1))) for u in largest.tolist()])
    room = 127 - np.abs(slope) * largest
    offset = np.array([data.draw(st.integers(-r, r)) for r in room.tolist()])
    scale = np.ones(channels, np.float32)
    made = Grid(scale, slope.astype(np.int16), offset.astype(np.int16), bits, kind)
    expected = slope[:, None] * stands_for + offset[:, None]
    np.testing.assert_array_equal(made.integers(codes), expected)
    gain, shift = made.affine()
    np.testing.assert_array_equal(gain[:, None] * cut + shift[:, None], expected)


snap_case = st.tuples(
    st.sampled_from(LIMITS), st.integers(1, 64), st.floats(1e-6, 10), st.floats(-30, 30)
)  # limit, U, A, O / A


@settings(max_examples=300)
@given(snap_case)
def test_snap_finds_the_best_grid(case: tuple[int, int, float, float]) -> None:
    """``|m U + k|`` keeps the limit, ``m`` lies in its upper half, and no other ``m`` there leaves a smaller error."""
    limit, largest, gain, ratio = case
    largest = min(largest, limit)
    scale, m, k = (
        array.item() for array in snap(np.array([largest]), np.array([gain]), np.array([ratio * gain]), limit)
    )
    true_ratio = ratio * gain / gain
    assert m * largest + abs(k) <= limit
    assert scale == pytest.approx(gain / m)
    fitting = [i for i in range(1, limit + 1) if i * largest + abs(np.rint(i * true_ratio)) <= limit]
    if fitting:
        candidates = [i for i in fitting if 2 * i >= max(fitting)]
        assert m in candidates
        assert k == np.rint(m * true_ratio)
        assert abs(m * true_ratio - k) / m <= min(abs(i * true_ratio - np.rint(i * true_ratio)) / i for i in candidates)
    else:
        assert m == 1
        assert abs(k) == min(limit - largest, abs(np.rint(true_ratio)))


@pytest.mark.parametrize("limit", LIMITS)
def test_constant_and_dead_channels(limit: int) -> None:
    """A channel without spread is its mean at full scale; a dead one is zero."""
    scale, m, k = snap(np.array([1, 1, 1]), np.zeros(3), np.array([0.5, -0.25, 0.0]), limit)
    assert m.tolist() == [0, 0, 0]
    assert k.tolist() == [limit, -limit, 0]
    np.testing.assert_allclose(scale * k, [0.5, -0.25, 0.0])


def test_usable_bits_keep_the_limit() -> None:
    """Where a channel's integers pass the limit it falls back: 8 to 7 bits at 127, to 6 behind a signed tensor."""
    codes = np.array([[0, 255], [70, 180]], np.uint8)
    assert usable_bits(codes, 8, 127).tolist() == [7, 8]
    assert usable_bits(codes, 8, 64).tolist() == [6, 7]
    assert usable_bits(codes, 4, 64).tolist() == [4, 4]
    assert usable_bits(codes, 1, 64).tolist() == [1, 1]


# --- folding ------------------------------------------------------------------------------------------------------


def simple_grid(channels: int) -> Grid:
    """Four-bit channels of scale 0.01."""
    ones = np.ones(channels, np.int16)
    return Grid(np.full(channels, 0.01, np.float32), 8 * ones, 3 * ones, np.full(channels, 4, np.uint8))


def test_folding_is_the_normalization() -> None:
    """A folded channel computes ``gain (w x + b) + shift``, also where the gain is negative: scales stay positive."""
    codes = np.array([[0, 100, 255]] * 2, np.uint8)
    gain, shift, bias = np.array([2.0, -3.0]), np.array([0.5, -0.25]), np.array([0.1, 0.2])
    before = simple_grid(2)
    after, folded_bias = fold(before, bias, gain, shift, 0.02)
    assert (after.scale > 0).all()
    expected = gain[:, None] * before.scale[:, None] * before.integers(codes)
    np.testing.assert_allclose(after.scale[:, None] * after.integers(codes), expected, rtol=1e-6)
    np.testing.assert_allclose(folded_bias, bias * gain + shift, rtol=1e-6)
    np.testing.assert_array_equal(after.integers(codes)[1], -before.integers(codes)[1])


@given(st.floats(-1e-30, 1e-3), st.floats(-1e4, 1e4), st.floats(1e-6, 10))
def test_a_vanishing_gain_keeps_the_bias(gain: float, shift: float, input_scale: float) -> None:
    """Zero-initialised gains are common; the bias must neither overflow int32 nor change."""
    folded, bias = fold(simple_grid(1), np.zeros(1), np.array([gain]), np.array([shift]), input_scale)
    integer, scale = integer_bias(bias, input_scale, folded.scale)
    assert abs(int(integer[0])) <= grid.BIAS_HEADROOM * (1 + 1e-6)
    assert integer[0] * float(scale[0]) == pytest.approx(float(bias[0]), abs=float(scale[0]), rel=1e-6)


def test_a_channel_without_bias_and_gain_is_silent() -> None:
    """Nothing is divided by zero, and the scale stays a normal number."""
    folded, bias = fold(simple_grid(1), np.zeros(1), np.zeros(1), np.zeros(1), 0.1)
    integer, scale = integer_bias(bias, 0.1, folded.scale)
    assert integer[0] == 0
    assert scale[0] > np.finfo(np.float32).tiny


def test_the_integer_bias_rounds_to_its_scale() -> None:
    """The bias scale is the float32 product that onnxruntime expects, else it falls back to float kernels."""
    integer, scale = integer_bias(np.array([1.0, -0.26], np.float32), 0.1, np.array([0.5, 0.1], np.float32))
    np.testing.assert_array_equal(scale, np.float32(0.1) * np.array([0.5, 0.1], np.float32))
    assert integer.tolist() == [20, -26]
    assert integer.dtype == np.int32


# --- activations --------------------------------------------------------------------------------------------------


def test_code_ranges() -> None:
    """Never-negative 8-bit tensors have 128 levels, signed ones 256 codes around 128; narrower ones all of theirs."""
    assert code_range(8, False) == CodeRange(0, 0, 127)
    assert code_range(7, False) == CodeRange(0, 0, 127)
    assert code_range(4, False) == code_range(4, False, FULL) == CodeRange(0, 0, 15)
    assert code_range(7, False, FULL) == CodeRange(0, 0, 127)
    assert code_range(8, False, FULL) == CodeRange(0, 0, 255)
    assert code_range(8, True, FULL) == code_range(8, True)
    assert code_range(8, True) == CodeRange(128, 0, 255)
    assert code_range(4, True) == CodeRange(128, 120, 135)
    assert (code_range(4, True).levels, code_range(4, True).steps) == (16, 7)


def test_activation_bits_follow_the_setting() -> None:
    """``same`` follows the weights but never below 2 bits; a number stays."""
    assert [activation_width(SAME, bits) for bits in (1, 2, 5, 8)] == [2, 2, 5, 8]
    assert activation_width(8, 1) == 8


@settings(deadline=None)
@given(hnp.arrays(np.float32, 16, elements=st.floats(-1000, 1000, width=32)), st.floats(0.0009765625, 10, width=32))
def test_quantize_is_quantizelinear(values: NDArray[np.float32], scale: float) -> None:
    """The reference and the runtime round the same values to the same codes."""
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    for codes in (code_range(8, True), CodeRange(0, 0, 255)):
        expected = run_node(node, [values, np.array(scale, np.float32), np.array(codes.zero_point, np.uint8)])
        np.testing.assert_array_equal(quantize(values, scale, codes), expected)


def test_ties_round_to_even_as_in_the_runtime() -> None:
    """Values exactly between two codes, which random ones never are."""
    values = (np.arange(-300, 300) + 0.5).astype(np.float32) * np.float32(0.25)
    node = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["y"])
    expected = run_node(node, [values, np.array(0.25, np.float32), np.array(128, np.uint8)])
    np.testing.assert_array_equal(quantize(values, 0.25, code_range(8, True)), expected)


def test_a_tensor_on_its_grid_stays_there() -> None:
    """Repeating a quantizer behind a pool or a flatten changes nothing."""
    codes = code_range(8, True)
    every = np.arange(256, dtype=np.uint8)
    for scale in (0.0123, 1 / 3, 7e-4):
        np.testing.assert_array_equal(quantize(dequantize(every, scale, 128), scale, codes), every)


# --- integer operators --------------------------------------------------------------------------------------------


def test_requantize_rounds_half_to_even() -> None:
    """As hardware does: 0.5 and 2.5 go down, 1.5 goes up; then the zero point and the clamp."""
    sums = np.array([1, 3, 5, -1, -3, 1000]).reshape(1, 1, 6)
    half = np.array([0.5], np.float32)
    assert requantize(sums, half, CodeRange(0, 0, 127)).ravel().tolist() == [0, 2, 2, 0, 0, 127]
    assert requantize(sums, half, CodeRange(128, 0, 255)).ravel().tolist() == [128, 130, 130, 128, 126, 255]


def naive_conv(
    x: NDArray[Any], w: NDArray[Any], bias: NDArray[Any], strides: Any, pads: Any, dilations: Any, groups: int
) -> NDArray[Any]:
    """The convolution as it stands in textbooks."""
    x = np.pad(x.astype(int), ((0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])))
    per_group = len(w) // groups
    span = [(size - 1) * dilation + 1 for size, dilation in zip(w.shape[2:], dilations, strict=True)]
    height, width = ((x.shape[2 + i] - span[i]) // strides[i] + 1 for i in range(2))
    y = np.zeros((len(x), len(w), height, width), int)
    for n, c, i, j in np.ndindex(*y.shape):
        start = c // per_group * w.shape[1]
        rows = i * strides[0] + np.arange(w.shape[2]) * dilations[0]
        columns = j * strides[1] + np.arange(w.shape[3]) * dilations[1]
        window = x[n, start : start + w.shape[1]][:, rows][:, :, columns]
        y[n, c, i, j] = (window * w[c].astype(int)).sum() + bias[c]
    return y


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("strides", [(1, 1), (2, 1)])
@pytest.mark.parametrize(("pads", "dilations"), [((0, 0, 0, 0), (1, 1)), ((1, 0, 2, 1), (1, 2))])
def test_integer_conv(groups: int, strides: Any, pads: Any, dilations: Any) -> None:
    """Groups, stride, padding on each side and dilation agree with the plain loop."""
    random = np.random.default_rng(groups)
    x = random.integers(-128, 128, (2, 4, 7, 6)).astype(np.int16)
    w = random.integers(-127, 128, (8, 4 // groups, 3, 2)).astype(np.int8)
    bias = random.integers(-(10**6), 10**6, 8).astype(np.int32)
    expected = naive_conv(x, w, bias, strides, pads, dilations, groups)
    np.testing.assert_array_equal(integer_conv(x, w, bias, strides, pads, dilations, groups), expected)


def test_integer_linear() -> None:
    """A matrix product in exact integers."""
    random = np.random.default_rng(1)
    x = random.integers(-128, 128, (3, 50)).astype(np.int16)
    w = random.integers(-127, 128, (7, 50)).astype(np.int8)
    bias = random.integers(-(2**30), 2**30, 7).astype(np.int32)
    np.testing.assert_array_equal(integer_linear(x, w, bias), x.astype(int) @ w.T.astype(int) + bias)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 2**32 - 1),
    st.sampled_from([(0, 0, 0), (128, 128, 128), (0, 128, 128), (128, 0, 0)]) | st.tuples(*3 * [st.integers(0, 255)]),
)
def test_integer_add_is_qlinearadd(seed: int, zeros: tuple[int, int, int]) -> None:
    """Residual sums equal onnxruntime's fused kernel in every code."""
    random = np.random.default_rng(seed)
    a, b = (random.integers(0, 256, 4096, np.uint8) for _ in range(2))
    scales = tuple(float(np.float32(scale)) for scale in random.uniform(0.001, 0.1, 3))
    node = helper.make_node("QLinearAdd", ["a", "sa", "za", "b", "sb", "zb", "sy", "zy"], ["y"], domain="com.microsoft")
    scalars = [np.array(scale, np.float32) for scale in scales]
    points = [np.array(zero, np.uint8) for zero in zeros]
    inputs = [a, scalars[0], points[0], b, scalars[1], points[1], scalars[2], points[2]]
    ours = integer_add(a, b, (scales[0], scales[1], scales[2]), zeros[:2], CodeRange(zeros[2], 0, 255))
    np.testing.assert_array_equal(ours, run_node(node, inputs))


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([0, 128]), st.integers(1, 9), st.integers(1, 9))
def test_integer_mean_is_qlinearglobalaveragepool(seed: int, zero: int, height: int, width: int) -> None:
    """Global average pooling equals onnxruntime's fused kernel in every code."""
    random = np.random.default_rng(seed)
    x = random.integers(0, 256, (2, 16, height, width), np.uint8)
    scale_x, scale_y = (float(np.float32(scale)) for scale in random.uniform(0.001, 0.1, 2))
    names = ["x", "sx", "zx", "sy", "zy"]
    node = helper.make_node("QLinearGlobalAveragePool", names, ["y"], domain="com.microsoft", channels_last=0)
    point = np.array(zero, np.uint8)
    expected = run_node(node, [x, np.array(scale_x, np.float32), point, np.array(scale_y, np.float32), point])
    ours = integer_mean(x.astype(np.int16) - np.int16(zero), scale_x, scale_y, CodeRange(zero, 0, 255))
    np.testing.assert_array_equal(ours, expected)

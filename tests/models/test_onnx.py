"""Float ONNX files: each operator is the same function in torch; what is no network of images is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from emqdeploy.errors import EmqError
from emqdeploy.graph.fidelity import snr_db
from emqdeploy.models import create_model
from emqdeploy.models.described import DescribedNetwork
from emqdeploy.models.onnx import OnnxNetwork, read_network

Array = np.ndarray[Any, Any]
SIDE, CHANNELS, CLASSES = 9, 3, 5


def random(*shape: int, seed: int = 0) -> Array:
    """Numbers around zero."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def node(operator: str, inputs: str, output: str, **attributes: Any) -> Any:
    """An operator; inputs and outputs are words, and ``_`` one that is left out."""
    names = ["" if name == "_" else name for name in inputs.split()]
    return helper.make_node(operator, names, output.split(), **attributes)


def model_file(
    folder: Path,
    nodes: list[Any],
    constants: dict[str, Array],
    output: str = "y",
    shape: tuple[Any, ...] = ("n", CHANNELS, SIDE, SIDE),
    opset: int = 17,
    kind: int = TensorProto.FLOAT,
    domains: tuple[str, ...] = (),
) -> Path:
    """A file with such operators."""
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    path = folder / "model.onnx"
    path.write_bytes(helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString())
    return path


HEAD = [node("GlobalAveragePool", "head", "pooled"), node("Flatten", "pooled", "flat"), node("Gemm", "flat w b", "y")]
"""From whatever channels to logits; ``w`` has to fit."""


def ends_in(channels: int) -> dict[str, Array]:
    """The constants of `HEAD`."""
    return {"w": random(channels, CLASSES, seed=8), "b": random(CLASSES, seed=9)}


def same_function(network: OnnxNetwork, images: Array | None = None) -> nn.Module:
    """The module that was read, once it answers as onnxruntime does."""
    module = DescribedNetwork(network.description)
    module.load_state_dict(network.state)
    shape = (network.channels, *network.sides)
    given = random(4, *shape, seed=3) if images is None else images
    wanted = network.answer(given)
    with torch.inference_mode():
        found = module.eval()(torch.from_numpy(given)).numpy()
    assert found.shape == (len(given), network.classes)
    assert snr_db(wanted, found) > 90
    return module


def operators(module: nn.Module) -> set[str]:
    """Kinds of the modules inside."""
    return {type(one).__name__ for one in module.modules()}


KERNEL = random(4, CHANNELS, 3, 3, seed=1)
SAME_FUNCTION: dict[str, tuple[list[Any], dict[str, Array], int]] = {
    "conv": ([node("Conv", "x k c", "head", pads=[1, 1, 1, 1], strides=[2, 2])], {"k": KERNEL, "c": random(4)}, 4),
    "conv same upper": ([node("Conv", "x k", "head", auto_pad="SAME_UPPER", strides=[2, 2])], {"k": KERNEL}, 4),
    "conv same lower": ([node("Conv", "x k", "head", auto_pad="SAME_LOWER", strides=[2, 2])], {"k": KERNEL}, 4),
    "conv uneven": ([node("Conv", "x k", "head", pads=[0, 1, 2, 0])], {"k": KERNEL}, 4),
    "conv grouped": ([node("Conv", "x k", "head", group=3, dilations=[2, 2])], {"k": random(6, 1, 3, 3)}, 6),
    "conv plus constant": (
        [node("Conv", "x k", "a"), node("Add", "a c", "head")],
        {"k": KERNEL, "c": random(4, 1, 1)},
        4,
    ),
    "batch norm": (
        [node("BatchNormalization", "x s t m v", "head", epsilon=1e-3)],
        {"s": random(3), "t": random(3, seed=1), "m": random(3, seed=2), "v": random(3, seed=4) ** 2},
        3,
    ),
    "relu6": ([node("Clip", "x low high", "head")], {"low": np.float32(0), "high": np.float32(6)}, 3),
    "clip": ([node("Clip", "x _ high", "head")], {"high": np.float32(0.5)}, 3),
    "prelu": ([node("PRelu", "x s", "head")], {"s": random(3, 1, 1)}, 3),
    "hard sigmoid": ([node("HardSigmoid", "x", "head", alpha=0.25, beta=0.4)], {}, 3),
    "leaky, elu": ([node("LeakyRelu", "x", "a", alpha=0.2), node("Elu", "a", "head", alpha=0.7)], {}, 3),
    "max pool": ([node("MaxPool", "x", "head", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])], {}, 3),
    "max pool uneven": ([node("MaxPool", "x", "head", kernel_shape=[2, 2], strides=[2, 2], pads=[0, 0, 1, 1])], {}, 3),
    "average counts": (
        [node("AveragePool", "x", "head", kernel_shape=[3, 3], pads=[1, 0, 1, 2], count_include_pad=1)],
        {},
        3,
    ),
    "average": ([node("AveragePool", "x", "head", kernel_shape=[3, 3], pads=[1, 1, 1, 1], strides=[2, 2])], {}, 3),
    "pad reflect": ([node("Pad", "x p", "head", mode="reflect")], {"p": np.array([0, 0, 1, 2, 0, 0, 2, 1])}, 3),
    "pad value": (
        [node("Pad", "x p v", "head")],
        {"p": np.array([0, 0, 1, 0, 0, 0, 0, 1]), "v": np.float32(0.3)},
        3,
    ),
    "pad channels": ([node("Pad", "x p", "head")], {"p": np.array([0, 1, 0, 0, 0, 2, 0, 0])}, 6),
    "split and join": (
        [node("Split", "x sizes", "a b_", axis=1), node("Concat", "b_ a", "head", axis=1)],
        {"sizes": np.array([1, 2])},
        3,
    ),
    "slice": (
        [node("Slice", "x from to axes steps", "head")],
        {"from": np.array([1, -8]), "to": np.array([2**31, -1]), "axes": np.array([1, 3]), "steps": np.array([1, 2])},
        2,
    ),
    "gather": ([node("Gather", "x i", "head", axis=1)], {"i": np.array([2, 0, -1, 1])}, 4),
    "arithmetic": (
        [
            *(node("Sub", "one x", "a"), node("Mul", "a a", "c"), node("Add", "c one", "d"), node("Sqrt", "d", "e")),
            *(node("Div", "x e", "f"), node("Sub", "f one", "g"), node("Div", "g two", "h"), node("Pow", "h two", "i")),
            *(node("Exp", "i", "j"), node("Min", "j two", "k"), node("Max", "k x", "l"), node("Neg", "l", "m")),
            *(node("Reciprocal", "e", "n_"), node("Add", "m n_", "o"), node("Mul", "o each", "head")),
        ],
        {"one": np.float32(1), "two": np.float32(2), "each": random(3, 1, 1)},
        3,
    ),
    "squeeze and excite": (
        [
            *(
                node("ReduceMean", "x", "a", axes=[2, 3], keepdims=1),
                node("Conv", "a k", "c"),
                node("Sigmoid", "c", "d"),
            ),
            node("Mul", "d x", "head"),
        ],
        {"k": random(3, 3, 1, 1)},
        3,
    ),
    "silu, hard swish": (
        [
            *(
                node("Sigmoid", "x", "a"),
                node("Mul", "x a", "c"),
                node("Add", "c three", "d"),
                node("Clip", "d low six", "e"),
            ),
            *(node("Mul", "c e", "f"), node("Div", "f six", "head")),
        ],
        {"three": np.float32(3), "low": np.float32(0), "six": np.float32(6)},
        3,
    ),
}


@pytest.mark.parametrize("name", SAME_FUNCTION)
def test_an_operator_is_the_same_function(name: str, tmp_path: Path) -> None:
    """In torch and in onnxruntime."""
    nodes, constants, channels = SAME_FUNCTION[name]
    network = read_network(model_file(tmp_path, [*nodes, *HEAD], constants | ends_in(channels)))
    module = same_function(network)
    if name == "silu, hard swish":
        assert {"SiLU", "Hardswish"} <= operators(module)
    if name == "conv plus constant":
        assert [step["kind"] for step in network.description["steps"]][:2] == ["Conv2d", "AdaptiveAvgPool2d"]


def tokens() -> list[Any]:
    """Images as rows of tokens with one more in front, as vision transformers have them; the graph computes sizes."""
    return [
        *(node("Conv", "x k", "patches", strides=[3, 3]), node("Shape", "patches", "all", start=0, end=2)),
        *(node("Concat", "all rest", "wanted", axis=0), node("Reshape", "patches wanted", "flat0")),
        *(node("Transpose", "flat0", "rows", perm=[0, 2, 1]), node("Shape", "rows", "count", start=0, end=1)),
        *(node("Concat", "count one_and_width", "wide", axis=0), node("Expand", "first wide", "firsts")),
        node("Concat", "firsts rows", "tokens", axis=1),
    ]


TOKENS = {
    "k": random(4, CHANNELS, 3, 3, seed=1), "rest": np.array([-1]), "one_and_width": np.array([1, 4]),
    "first": random(1, 1, 4, seed=5),
}  # fmt: skip


def test_a_transformer_is_read_with_its_modules(tmp_path: Path) -> None:
    """Sizes that depend on the number of images, a class token, and norms and GELU that old exporters took apart."""
    nodes = [
        *tokens(),
        *(node("ReduceMean", "tokens", "mean", axes=[-1]), node("Sub", "tokens mean", "centred")),
        *(node("Pow", "centred two", "square"), node("ReduceMean", "square", "var", axes=[-1])),
        *(node("Add", "var eps", "moved"), node("Sqrt", "moved", "root"), node("Div", "centred root", "normal")),
        *(node("Mul", "normal gain", "scaled"), node("Add", "scaled shift", "normed")),
        *(node("MatMul", "normed up", "wide0"), node("Add", "ub wide0", "h")),
        *(node("Div", "h sqrt2", "h2"), node("Erf", "h2", "e"), node("Add", "e one", "e1"), node("Mul", "h e1", "g")),
        *(node("Mul", "g half", "gelu"), node("Transpose", "gelu", "keys", perm=[0, 2, 1])),
        *(node("MatMul", "gelu keys", "scores"), node("Softmax", "scores", "soft", axis=-1)),
        *(
            node("MatMul", "soft gelu", "mixed"),
            node("Add", "mixed gelu", "sum"),
            node("Gather", "sum zero", "cls", axis=1),
        ),
        node("Gemm", "cls w b", "y"),
    ]
    constants = TOKENS | ends_in(6) | {
        "two": np.float32(2), "eps": np.float32(1e-6), "gain": random(4), "shift": random(4, seed=2),
        "up": random(4, 6), "ub": random(6), "sqrt2": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5),
        "zero": np.array(0),
    }  # fmt: skip
    module = same_function(read_network(model_file(tmp_path, nodes, constants)))
    assert {"LayerNorm", "GELU", "Linear"} <= operators(module)
    assert [one.bias is not None for one in module.modules() if isinstance(one, nn.Linear)] == [True, True]


def test_channels_may_come_last(tmp_path: Path) -> None:
    """As other frameworks write them: the network takes them first, and nothing is left of the exchange."""
    nodes = [node("Transpose", "x", "first", perm=[0, 3, 1, 2]), node("Conv", "first k", "head"), *HEAD]
    path = model_file(tmp_path, nodes, {"k": KERNEL} | ends_in(4), shape=("n", SIDE, SIDE, CHANNELS))
    network = read_network(path)
    same_function(network)
    assert "permute" not in {step["kind"] for step in network.description["steps"]}


def test_a_softmax_at_the_end_is_left_out(tmp_path: Path) -> None:
    """Files answer with logits; the note says so."""
    nodes = [node("Identity", "x", "head"), *HEAD[:2], node("Gemm", "flat w b", "z"), node("Softmax", "z", "y")]
    network = read_network(model_file(tmp_path, nodes, ends_in(CHANNELS)))
    same_function(network)
    assert "softmax" in network.notes[0]


def test_a_file_for_one_image_serves_any_number(tmp_path: Path) -> None:
    """Most are exported so: sizes of a reshape begin with a fixed one."""
    nodes = [node("Conv", "x k", "a"), node("GlobalAveragePool", "a", "p"), node("Reshape", "p s", "flat"), HEAD[2]]
    path = model_file(tmp_path, nodes, {"k": KERNEL, "s": np.array([1, 4])} | ends_in(4), shape=(1, 3, SIDE, SIDE))
    same_function(read_network(path))


def exported(name: str, folder: Path, opset: int, dynamo: bool = False) -> Path:
    """One of our models as torch exports it, with random statistics."""
    torch.manual_seed(0)
    model = create_model(name, 10, 1, 8).eval()
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(0.5, 2)
    path = folder / f"{name}.onnx"
    image = torch.randn(2, 1, 8, 8)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if dynamo:
            batch = torch.export.Dim("batch")
            torch.onnx.export(model, (image,), path, dynamo=True, dynamic_shapes=({0: batch},), verbose=False)
        else:
            torch.onnx.export(
                model,
                (image,),
                path,
                dynamo=False,
                opset_version=opset,
                input_names=["x"],
                dynamic_axes={"x": {0: "n"}},
            )
    return path


@pytest.mark.parametrize(
    ("name", "opset", "dynamo"),
    [("resnet8", 11, False), ("mobilenet-micro", 17, False), ("vit-micro", 17, False), ("vit-micro", 0, True)],
)
def test_what_torch_exports_is_read(name: str, opset: int, dynamo: bool, tmp_path: Path) -> None:
    """By either exporter, also with weights in a file beside it; layers keep the names of the model."""
    network = read_network(exported(name, tmp_path, opset, dynamo))
    module = same_function(network)
    if name == "resnet8":
        assert "stage2.0.conv1" in dict(module.named_modules())


def test_constants_may_lie_beside(tmp_path: Path) -> None:
    """In another file of the same folder, and nowhere else."""
    nodes = [node("Conv", "x k", "head"), *HEAD]
    path = model_file(tmp_path, nodes, {"k": KERNEL} | ends_in(4))
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="data.bin", size_threshold=16)
    same_function(read_network(path))
    (tmp_path / "data.bin").write_bytes(b"short")
    with pytest.raises(EmqError, match="too short"):
        read_network(path)
    for tensor in (model := onnx.load(path, load_external_data=False)).graph.initializer:
        for entry in tensor.external_data:
            entry.value = "../data.bin" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EmqError, match="not in a file beside it"):
        read_network(path)


def _if() -> Any:
    branch = helper.make_graph([node("Constant", "", "z", value_float=1.0)], "branch", [], [])
    return helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)


Refused = tuple[list[Any], dict[str, Any], str]
CONV = node("Conv", "x k", "head")
REFUSED: dict[str, Callable[[], Refused]] = {
    "control flow": lambda: ([_if(), CONV, *HEAD], {}, r"dynamic control flow \(If"),
    "a custom operator": lambda: (
        [helper.make_node("Swirl", ["x"], ["head"], domain="my.ops"), *HEAD],
        {"domains": ("my.ops",)},
        "custom operator my.ops::Swirl",
    ),
    "an unusual operator": lambda: ([node("Det", "x", "head"), *HEAD], {}, "operator Det is none that networks of im"),
    "a quantized file": lambda: (
        [node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "head"), *HEAD],
        {},
        "quantized already",
    ),
    "bytes": lambda: ([CONV, *HEAD], {"kind": TensorProto.UINT8}, "uint8 of .*, which are no images"),
    "half precision": lambda: ([CONV, *HEAD], {"kind": TensorProto.FLOAT16}, "in float16, .* export it in float32"),
    "double precision": lambda: ([CONV, *HEAD], {"kind": TensorProto.DOUBLE}, "in double, .* export it in float32"),
    "half precision inside": lambda: (
        [node("Cast", "x", "a", to=TensorProto.FLOAT16), node("Conv", "a k", "head"), *HEAD],
        {},
        "Cast makes other numbers than float32",
    ),
    "a transposed convolution": lambda: ([node("ConvTranspose", "x k", "head"), *HEAD], {}, "operator ConvTranspose"),
    "enlarging": lambda: ([node("Resize", "x _ twice", "head", mode="nearest"), *HEAD], {}, "operator Resize is none"),
    "text": lambda: ([CONV, *HEAD], {"shape": ("n", 128)}, "float of . x 128, which are no images"),
    "open sizes": lambda: ([CONV, *HEAD], {"shape": ("n", 3, "h", "w")}, "leaves the size of its images open"),
    "no logits": lambda: ([CONV, node("Identity", "head", "y")], {}, "answers with N x 4 x 7 x 7, not with logits"),
    "a constant": lambda: ([node("Identity", "b", "y")], {}, "whatever the images are"),
    "mixed images": lambda: (
        [node("Reshape", "x s", "a"), node("Reshape", "a t", "head"), *HEAD], {}, "mixes images with one another"
    ),
    "huge constants": lambda: (
        [node("ConstantOfShape", "huge", "z"), node("Mul", "x z", "head"), *HEAD], {}, "more than 268435456 values"
    ),
    "sizes from pixels": lambda: (
        [node("NonZero", "x", "i"), node("Reshape", "x i", "head"), *HEAD], {}, "operator NonZero is none"
    ),
    "sizes that do not fit": lambda: ([node("Conv", "x w", "head"), *HEAD], {}, "Conv"),
    "training statistics": lambda: (
        [node("BatchNormalization", "x b3 b3 b3 b3", "head", training_mode=1), *HEAD], {}, "statistics of the batch"
    ),
    "an old operator set": lambda: ([CONV, *HEAD], {"opset": 6}, "operator set 6"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_network_of_images_is_refused(what: str, tmp_path: Path) -> None:
    """In one sentence that names the file and what in it is not."""
    nodes, options, message = REFUSED[what]()
    constants = {
        "k": KERNEL, "c": np.array(True), "s": np.array([3, -1]), "t": np.array([-1, 3, 9, 9]), "b3": random(3),
        "twice": np.float32([1, 1, 2, 2]), "huge": np.array([1 << 40]), "z": np.uint8(0), **ends_in(4),
    }  # fmt: skip
    if what == "a quantized file":
        constants["s"] = np.float32(1)
    path = model_file(tmp_path, nodes, constants, **options)
    with pytest.raises(EmqError, match=message) as caught:
        read_network(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_two_inputs_are_named(tmp_path: Path) -> None:
    """Only one may be there."""
    path = model_file(tmp_path, [CONV, *HEAD], {"k": KERNEL} | ends_in(4))
    model = onnx.load(path)
    model.graph.input.append(helper.make_tensor_value_info("age", TensorProto.FLOAT, ("n", 1)))
    path.write_bytes(model.SerializeToString())
    with pytest.raises(EmqError, match=r"takes 2 inputs \(x, age\)"):
        read_network(path)


def test_weights_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    """The tensor is."""
    bad = KERNEL.copy()
    bad[0, 0, 0, 0] = np.nan
    with pytest.raises(EmqError, match="not finite in 'k'"):
        read_network(model_file(tmp_path, [CONV, *HEAD], {"k": bad} | ends_in(4)))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x08" * 40])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    """Whatever their name says."""
    path = tmp_path / "model.onnx"
    path.write_bytes(content)
    with pytest.raises(EmqError, match="ONNX"):
        read_network(path)


GOOD = {"steps": [{"kind": "scale", "name": "a", "inputs": ["images"], "settings": {"number": 2.0}}], "tensors": {}}


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "eval"},
        {"kind": "__class__"},
        {"kind": "Conv2d", "settings": {"in_channels": 1 << 20, "out_channels": 1 << 20, "kernel_size": 7}},
        {"kind": "Conv2d", "settings": {"device": "cuda:9"}},
        {"inputs": ["later"]},
        {"name": "images"},
        {"settings": [1]},
    ],
)
def test_a_description_is_data(change: dict[str, Any]) -> None:
    """It names what is in two tables and nothing else, and builds nothing that fills the memory."""
    DescribedNetwork(GOOD)
    with pytest.raises(EmqError):
        DescribedNetwork({**GOOD, "steps": [GOOD["steps"][0] | change]})  # type: ignore[index]

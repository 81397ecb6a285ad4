"""TensorRT: the symmetric form answers like the integer reference, and TensorRT-RTX builds engines of it without a GPU.

No engine runs here: that takes a GPU, and `emqdeploy verify` on the device.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.exporters.onnx_writer import sealed
from emqdeploy.exporters.products import Product
from emqdeploy.exporters.symmetric import symmetric_model, symmetric_selector
from emqdeploy.exporters.tensorrt_engine import build_engine, check_capabilities
from emqdeploy.format.child import Child
from emqdeploy.graph import tensorrt_flavours
from emqdeploy.graph.tensorrt_flavours import CLASSIC, RTX
from emqdeploy.quant.build import NetworkSpec
from emqdeploy.runtimes.onnx_session import create_session, session_options
from emqdeploy.workflows.comparing import ParityImages, Prover
from emqdeploy.workflows.targets.tensorrt import TensorRtForm

from ..conftest import Deployed, deploy
from ..mixing import MIXED, mixed_network

WIDTHS = (2, 8)

FAMILIES: dict[str, tuple[str, tuple[int, int, int], int | str]] = {
    "residual": ("resnet8", (1, 8, 8), 8),
    "residual, 4-bit activations": ("resnet8", (1, 8, 8), 4),
    "depthwise": ("mobilenet-micro", (1, 8, 8), 8),
    "pre-activation": ("preact-resnet20", (1, 8, 8), 8),
    "transformer": ("vit-micro", (1, 16, 16), 8),
}


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest) -> Deployed:
    """The smallest network of each family."""
    model, shape, activations = FAMILIES[request.param]
    return deploy(NetworkSpec(model, 10, shape, 2.0, tuple(Child.of(bits, activations) for bits in WIDTHS)))


def form(deployed: Deployed, bits: int, fp16: bool = False) -> Any:
    """The symmetric model of a weight width."""
    return symmetric_model(deployed.checkpoint, deployed.checkpoint.network.find(bits), fp16)


def choice(deployed: Deployed, *bits: int) -> Any:
    """The symmetric selector of some weight widths."""
    return symmetric_selector(deployed.checkpoint, [deployed.checkpoint.network.find(one) for one in bits])


def compare(deployed: Deployed, model: Any, child: Child, tmp_path: Path) -> Any:
    """Compares a symmetric model with the integer reference, code by code."""
    path = tmp_path / "form.onnx"
    path.write_bytes(sealed(model, deployed.checkpoint, [child], "int8"))
    stored = dict.fromkeys(deployed.checkpoint.network.layers, "int8")
    product = Product("x", (child,), "tensorrt-onnx", "int8", path, "x", stored)
    prover = Prover(deployed.checkpoint, ParityImages(deployed.images, None, "random images"))
    return TensorRtForm().compare(prover, product)[0]


@pytest.mark.parametrize("bits", WIDTHS)
def test_the_symmetric_form_is_the_same_network(family: Deployed, bits: int, tmp_path: Path) -> None:
    """Codes are those of the integer reference, up to ties that round differently in float, and no decision differs."""
    model = form(family, bits)
    onnx.checker.check_model(model, full_check=True)
    parity = compare(family, model, family.checkpoint.network.find(bits), tmp_path)
    assert parity.codes > 1000
    assert parity.differing_codes <= 0.02 * parity.codes
    assert parity.unsafe_flips == 0


def test_it_is_the_same_network_at_widths_per_layer(tmp_path: Path) -> None:
    """A child with a 4-bit tensor among 8-bit ones: clamps where the codes do not fill int8, and only there."""
    mixed = mixed_network()
    parity = compare(mixed, symmetric_model(mixed.checkpoint, MIXED), MIXED, tmp_path)
    assert parity.differing_codes <= 0.02 * parity.codes
    assert parity.unsafe_flips == 0


def test_it_is_what_tensorrt_takes(family: Deployed) -> None:
    """int8 with zero points of zero only, float biases, no integer Clip, positive scales."""
    model = form(family, 2)
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert not {array.dtype for array in arrays.values()} & {np.dtype(np.uint8), np.dtype(np.int32)}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert (arrays[node.input[1]] > 0).all()
            assert not arrays[node.input[2]].any()
        if node.op_type in ("Conv", "Gemm"):
            assert arrays[node.input[2]].dtype == np.float32


def test_half_precision_leaves_the_quantizers_alone(tmp_path: Path) -> None:
    """float16 between quantized layers, float32 scales, and nearly the same answers."""
    vit = deploy(NetworkSpec("vit-micro", 10, (1, 16, 16), 2.0, (Child.of(8),)))
    model = form(vit, 8, fp16=True)
    onnx.checker.check_model(model, full_check=True)
    casts = [node for node in model.graph.node if node.op_type == "Cast"]
    assert len(casts) > 20
    assert not any(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.graph.initializer)
    logits = [
        create_session(graph.SerializeToString(), session_options(1, optimise=False)).run(None, {"images": vit.images})
        for graph in (model, form(vit, 8))
    ]
    assert 0 < np.abs(logits[0][0] - logits[1][0]).max() < 0.05 * np.ptp(logits[1][0])


def test_selectors_answer_like_the_separate_forms(small: Deployed) -> None:
    """One graph for several children, to the last bit."""
    selector = choice(small, 2, 4, 8)
    onnx.checker.check_model(selector, full_check=True)
    session = create_session(selector.SerializeToString(), session_options(1, optimise=False))
    for bits, answers in ((1, 2), (2, 2), (3, 4), (4, 4), (8, 8), (9, 8)):
        separate = form(small, answers).SerializeToString()
        alone = create_session(separate, session_options(1, optimise=False)).run(None, {"images": small.images})[0]
        feeds = {"images": small.images, "bits": np.array([bits], np.int64)}
        np.testing.assert_array_equal(session.run(None, feeds)[0], alone)


def test_an_engine_builds_for_one_gpu(family: Deployed) -> None:
    """Ahead of time, on a machine without a GPU; the engine says what it was built for."""
    pytest.importorskip("tensorrt_rtx")
    engine = build_engine(RTX, form(family, 2).SerializeToString(), 8, ["8.6"])
    assert len(engine.data) > 100_000
    assert engine.built_for["compute_capability"] == ["8.6"]
    assert engine.built_for["runtime"] == "tensorrt-rtx"
    assert engine.built_for["max_batch"] == 8


@pytest.mark.slow
@pytest.mark.parametrize("fp16", [False, True])
def test_engines_build_for_every_gpu(family: Deployed, fp16: bool) -> None:
    """RTX 30, 40 and 50, one by one and all in one engine, at both ends of the widths."""
    pytest.importorskip("tensorrt_rtx")
    for bits in WIDTHS:
        model = form(family, bits, fp16).SerializeToString()
        for capabilities in (["8.6"], ["8.9"], ["12.0"], []):
            assert build_engine(RTX, model, 4, capabilities).data


def test_selector_engines_build(small: Deployed) -> None:
    """A conditional."""
    pytest.importorskip("tensorrt_rtx")
    assert build_engine(RTX, choice(small, 2, 8).SerializeToString(), 8, ["8.9"]).data


def test_what_cannot_be_built_is_one_sentence(small: Deployed, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator that TensorRT lacks, an unknown GPU, a package that is not there."""
    pytest.importorskip("tensorrt_rtx")
    model = form(small, 2)
    node = onnx.helper.make_node("Det", ["images"], ["logits"], name="determinant")
    del model.graph.node[:]
    model.graph.node.append(node)
    with pytest.raises(EmqError, match=r"tensorrt-rtx does not take operator Det \(determinant\).*use --target onnx"):
        build_engine(RTX, model.SerializeToString(), 8)
    with pytest.raises(UsageError, match=r"--compute-capability is '7.0'; TensorRT-RTX .* builds for 7.5"):
        check_capabilities(["7.0"])
    monkeypatch.setitem(tensorrt_flavours.MODULES, RTX, "tensorrt_that_is_not_there")
    with pytest.raises(EmqError, match=r'run: pip install "emqdeploy\[tensorrt\]"'):
        build_engine(RTX, b"", 8)
    monkeypatch.setitem(tensorrt_flavours.MODULES, CLASSIC, "tensorrt_that_is_not_there")
    with pytest.raises(EmqError, match=r'run: pip install "emqdeploy\[tensorrt-classic\]"'):
        build_engine(CLASSIC, b"", 8)

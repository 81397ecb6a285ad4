"""The TensorRT adapter as far as it goes without a GPU; the rest is marked and runs where there is one."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from emqdeploy.errors import EmqError, UsageError
from emqdeploy.format.bundle import Artefact, Bundle
from emqdeploy.format.child import Child
from emqdeploy.format.precision import FLOAT32, INT8, LayerPrecision
from emqdeploy.graph.tensorrt_flavours import load_tensorrt, quiet_logger
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.adapters.tensorrt_runtime import TensorRtRuntime, _Engine
from emqdeploy.runtimes.base import find_adapter, open_runtime
from emqdeploy.runtimes.onnx_kernels import UNREAD
from emqdeploy.runtimes.tensorrt_engines import (
    built_elsewhere,
    check_built_for,
    inspect_engine,
    inspected,
    tensorrt_here,
)

from ...conftest import Deployed

HERE = {"runtime": "tensorrt-rtx", "version": "1.7.1", "compute_capability": "8.9"}

without_gpu = pytest.mark.skipif(tensorrt_here() is None, reason="this machine runs TensorRT")


def _engine(**changes: Any) -> Artefact:
    about: dict[str, Any] = {
        "id": "tensorrt-rtx-w4",
        "children": ("4",),
        "target": "tensorrt-rtx",
        "flavour": "int8",
        "role": "child",
        "file": "model-w4.engine",
        "sha256": "0" * 64,
        "size_bytes": 0,
        "status": "built, not run here",
        "layers": (LayerPrecision("conv1", 8, INT8),),
        "built_for": {"runtime": "tensorrt-rtx"},
    }
    return Artefact(**about | changes)


@pytest.fixture
def bundle_of(small: Deployed) -> Callable[..., Bundle]:
    """Bundles that hold these artefacts, as far as their manifest says."""
    children = (Child.of(2), Child.of(4))
    return lambda *artefacts: Bundle(Path("deploy"), small.checkpoint.card, children, artefacts, {}, None)


@pytest.mark.parametrize(
    ("built_for", "sentence"),
    [
        ({"runtime": "tensorrt"}, "was built for runtime tensorrt, here is tensorrt-rtx"),
        ({"version": "10.3.0"}, "was built for version 10.3.0, here is 1.7.1"),
        ({"compute_capability": "8.6"}, "was built for compute capability 8.6, here is 8.9"),
        ({"compute_capability": ["8.6", "12.0"]}, "was built for compute capability 8.6 or 12.0, here is 8.9"),
    ],
)
def test_engines_built_elsewhere_are_refused(built_for: dict[str, Any], sentence: str) -> None:
    """One sentence names what the engine was built for, what is here, and what to do."""
    with pytest.raises(EmqError, match=sentence) as error:
        check_built_for(built_for, HERE, "model-w4.engine")
    assert "emqdeploy export --target tensorrt" in str(error.value)


def test_engines_for_here_are_accepted() -> None:
    """What the manifest does not name fits everywhere."""
    for built_for in ({}, HERE, HERE | {"compute_capability": ["8.6", "8.9"]}, {"device": "any"}):
        check_built_for(built_for, HERE, "model-w4.engine")


def test_damaged_engines_are_one_sentence() -> None:
    """TensorRT itself, which needs no GPU to look at a header, says why, and prints nothing."""
    pytest.importorskip("tensorrt_rtx")
    trt = load_tensorrt("tensorrt-rtx")
    shared: Any = SimpleNamespace(trt=trt, runtime=trt.Runtime(quiet_logger(trt)))
    with pytest.raises(EmqError, match=r"cannot load model-w4\.engine \(.*\); it is damaged or of another") as error:
        _Engine(shared, b"no engine" * 100, "model-w4.engine")
    assert "does not say" not in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("flavour", "extra"), [("tensorrt", "tensorrt-classic"), ("tensorrt-rtx", "tensorrt")])
def test_a_missing_flavour_names_its_extra(flavour: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Classic TensorRT and TensorRT-RTX are two packages, installed by two extras."""
    monkeypatch.setitem(sys.modules, flavour.replace("-", "_"), None)
    with pytest.raises(EmqError, match=rf'is not installed; run: pip install "emqdeploy\[{extra}\]"'):
        load_tensorrt(flavour)


def test_the_adapter_says_what_it_is() -> None:
    """Its library is a module of Python that it computes with; it runs either flavour."""
    adapter = find_adapter("tensorrt")
    assert adapter.library in ("tensorrt", "tensorrt_rtx")
    assert adapter.targets == ("tensorrt", "tensorrt-rtx")
    assert adapter.why_not() == tensorrt_here()


@without_gpu
def test_without_a_gpu_the_sentence_says_so(bundle_of: Callable[..., Bundle]) -> None:
    """Whether a driver or the package is missing; opening an engine raises the same."""
    reason = tensorrt_here()
    assert reason is not None
    with pytest.raises(EmqError) as error:
        TensorRtRuntime.open_bundle(bundle_of(_engine()), None)
    assert "GPU" in str(error.value) or "pip install" in str(error.value)
    assert built_elsewhere(_engine()) == str(error.value)


def test_bundles_without_engines_say_how_to_get_them(bundle_of: Callable[..., Bundle]) -> None:
    """A missing target or flavour."""
    with pytest.raises(
        UsageError,
        match=r"holds no TensorRT engines; build them on this device with: emqdeploy export \S+ --target tensorrt",
    ):
        TensorRtRuntime.open_bundle(bundle_of(), None)
    with pytest.raises(UsageError, match="no TensorRT engines of flavour 'if'"):
        TensorRtRuntime.open_bundle(bundle_of(_engine()), None, flavour="if")


def test_checkpoints_are_no_engines(small: Deployed) -> None:
    """The sentence says which command builds one."""
    with pytest.raises(UsageError, match="emqdeploy export --target tensorrt"):
        open_runtime(small.checkpoint, "tensorrt")
    with pytest.raises(UsageError, match="unknown TensorRT 'trt'; known: tensorrt, tensorrt-rtx"):
        load_tensorrt("trt")


def test_the_inspector_is_read_by_layer() -> None:
    """Types of the layers' inputs, by the names of fused layers; an engine without details says nothing."""
    layers = [
        {"Name": "conv1 + relu", "Inputs": [{"Name": "x", "Format/Datatype": "Channel major INT8 format"}]},
        {"Name": "fc", "Inputs": [{"Name": "y", "Format/Datatype": "Row major linear FP32"}]},
        {"Name": "odd", "Inputs": [{"Name": "y", "Format/Datatype": "Row major BF8"}]},
        {"Name": "constant", "Inputs": []},
    ]
    text = json.dumps({"Layers": layers})
    assert inspected(text) == {"conv1 + relu": (INT8, True), "fc": (FLOAT32, False), "odd": UNREAD}
    assert inspected(json.dumps({"Layers": ["conv1 + relu"]})) == {}
    inspector = SimpleNamespace(get_engine_information=lambda kind: text)
    engine = SimpleNamespace(create_engine_inspector=lambda: inspector)
    trt = SimpleNamespace(LayerInformationFormat=SimpleNamespace(JSON=1))
    found = inspect_engine(trt, engine, ["conv1", "fc", "conv2"])
    assert found == {"conv1": (INT8, True), "fc": (FLOAT32, False), "conv2": UNREAD}


@pytest.mark.gpu
def test_memory_and_streams_of_the_gpu() -> None:
    """A round trip through the GPU's memory."""
    stream, buffer = cuda.Stream(), cuda.Buffer(4096)
    sent, received = np.arange(1024, dtype=np.float32), np.empty(1024, np.float32)
    stream.upload(sent, buffer)
    stream.download(buffer, received)
    stream.wait()
    np.testing.assert_array_equal(received, sent)
    assert cuda.compute_capability().count(".") == 1
    assert cuda.device_name()

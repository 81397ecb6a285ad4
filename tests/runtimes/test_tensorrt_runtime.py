"""The TensorRT adapter as far as it goes without a GPU; the rest is marked and runs where there is one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emqdeploy.bundle import Artefact, Bundle
from emqdeploy.errors import EmqError, UsageError
from emqdeploy.runtimes import cuda
from emqdeploy.runtimes.base import open_runtime
from emqdeploy.runtimes.tensorrt_runtime import (
    TensorRtRuntime,
    check_built_for,
    deserialize,
    inspected_types,
    load_tensorrt,
    quiet_logger,
    tensorrt_here,
)

from ..conftest import Deployed

HERE = {"runtime": "tensorrt-rtx", "version": "1.7.1", "compute_capability": "8.9"}

without_gpu = pytest.mark.skipif(tensorrt_here() is None, reason="this machine runs TensorRT")


def _engine(**changes: Any) -> Artefact:
    artefact = Artefact(
        id="tensorrt-rtx-w4",
        bits=(4,),
        target="tensorrt-rtx",
        flavour="int8",
        role="width",
        file="model-w4.engine",
        sha256="",
        size_bytes=0,
        status="built, not run here",
        layers=({"name": "conv1", "grid_bits": 8, "stored_as": "int8", "computed_as": "unknown until loaded"},),
        built_for={"runtime": "tensorrt-rtx"},
    )
    return replace(artefact, **changes)


def _bundle(*artefacts: Artefact) -> Bundle:
    shape = {"name": "images", "shape": [1, 8, 8], "dtype": "float32"}
    return Bundle(Path("deploy"), artefacts, {}, "resnet8", ("0",), {}, shape, {}, {}, (4,), None)


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
    with pytest.raises(EmqError, match=r"cannot load model-w4\.engine \(.*\); it is damaged or of another") as error:
        deserialize(trt, trt.Runtime(quiet_logger(trt)), b"no engine" * 100, "model-w4.engine")
    assert "does not say" not in str(error.value)
    assert "\n" not in str(error.value)


@without_gpu
def test_without_a_gpu_the_sentence_says_so() -> None:
    """Whether a driver or the package is missing; opening an engine raises the same."""
    reason = tensorrt_here()
    assert reason is not None
    with pytest.raises(EmqError) as error:
        TensorRtRuntime.open_bundle(_bundle(_engine()), None)
    assert "GPU" in str(error.value) or "pip install" in str(error.value)


def test_bundles_without_engines_say_how_to_get_them() -> None:
    """A missing target or flavour."""
    with pytest.raises(
        UsageError, match="holds no TensorRT engines; build them with: emqdeploy export --target tensorrt"
    ):
        TensorRtRuntime.open_bundle(_bundle(), None)
    with pytest.raises(UsageError, match="no TensorRT engines of flavour 'if'"):
        TensorRtRuntime.open_bundle(_bundle(_engine()), None, flavour="if")


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
        {"Name": "constant", "Inputs": []},
    ]
    assert inspected_types(json.dumps({"Layers": layers})) == {"conv1 + relu": "int8", "fc": "float32"}
    assert inspected_types(json.dumps({"Layers": ["conv1 + relu"]})) == {}


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
